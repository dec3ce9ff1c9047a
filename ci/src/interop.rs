//! TURN clients that others wrote, against the edge of the reference lab: coturn's, aioice's,
//! Chromium's and the crate `turn-client-proto`. All but one of them are guests on the Internet
//! and so behind the static NAT.

mod second_opinion;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use self::second_opinion::{SecondOpinion, second_opinion};
use crate::artifacts;
use crate::end_to_end::MEDIA_PORTS;
use crate::lab::Lab;
use crate::lab::browser::Browser;
use crate::lab::host::Host;
use crate::lab::topology::STATIC_NAT;

/// The name that the reference site's TURN servers are known by, inside and outside.
pub const EDGE: &str = "vcse.octavio.com";

/// How a client reaches the TURN server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// UDP to this port.
    Udp(u16),
    /// TCP to this port.
    Tcp(u16),
    /// TLS over TCP to this port.
    Tls(u16),
}

/// Every way into the relay that the reference site opens.
pub const WAYS: [Way; 5] =
    [Way::Udp(3478), Way::Udp(443), Way::Tcp(3478), Way::Tls(5349), Way::Tls(443)];

impl Way {
    const fn port(self) -> u16 {
        match self {
            Self::Udp(port) | Self::Tcp(port) | Self::Tls(port) => port,
        }
    }

    /// As an element of `iceServers` (RFC 7065).
    fn url(self) -> String {
        match self {
            Self::Udp(port) => format!("turn:{EDGE}:{port}?transport=udp"),
            Self::Tcp(port) => format!("turn:{EDGE}:{port}?transport=tcp"),
            Self::Tls(port) => format!("turns:{EDGE}:{port}?transport=tcp"),
        }
    }
}

/// coturn's client passes packets from relay to relay by each way, and from one TCP allocation to
/// another (RFC 6062).
///
/// # Errors
///
/// Shows what it printed.
pub fn coturns_client(lab: &Lab) -> Result<()> {
    for way in WAYS {
        let port = way.port().to_string();
        let mut words = vec!["-y", "-m", "2", "-p", &port];
        words.extend(match way {
            Way::Udp(_) => &[][..],
            Way::Tcp(_) => &["-t"],
            // It takes what is in one TLS record for one message, so messages must not come close
            // enough together to share one.
            Way::Tls(_) => &["-t", "-S", "-z", "100"],
        });
        crate::end_to_end::uclient_loses_nothing(lab, &words)
            .with_context(|| format!("turnutils_uclient, {way:?}"))?;
    }
    crate::end_to_end::uclient_loses_nothing(lab, &["-y", "-T", "-m", "2"])
        .context("turnutils_uclient -T")
}

/// Two agents of aioice that use relays only reach each other by each way.
///
/// # Errors
///
/// Shows what the script printed.
pub fn aioice(lab: &Lab) -> Result<()> {
    let python = python_with_aioice()?;
    let authority = lab.directory().join("public.pem");
    std::fs::write(&authority, lab.public.certificate())?;
    for way in WAYS {
        let (transport, security) = match way {
            Way::Udp(_) => ("udp", "plain"),
            Way::Tcp(_) => ("tcp", "plain"),
            Way::Tls(_) => ("tcp", "tls"),
        };
        let mut command = lab.topology.inet.command("env");
        command.arg(format!("TURN_PASSWORD={}", lab.site.turn_password));
        command.arg(format!("SSL_CERT_FILE={}", authority.display())).arg(&python);
        command.arg(artifacts::repository().join("ci/lab/aioice_relay.py"));
        command.args([EDGE, &way.port().to_string(), transport, security, "turnuser"]);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "aioice, {way:?}: {}\n{said}{error}", output.status);
        ensure!(said.contains("arrived 50 50"), "aioice, {way:?}: datagrams lost\n{said}{error}");
        for candidate in said.lines().filter_map(|line| line.strip_prefix("candidate ")) {
            ensure!(candidate.starts_with(STATIC_NAT), "aioice, {way:?}: candidate {candidate}");
        }
    }
    Ok(())
}

/// Two connections of one browser on the Internet that use relays only exchange messages, by each
/// way.
///
/// # Errors
///
/// Shows what the page saw.
pub fn chromium(lab: &Lab) -> Result<()> {
    chromium_on(lab, &lab.topology.inet, &WAYS)
}

/// The same on the internal network, where the edge's name leads to LAN1: no NAT reflection.
///
/// # Errors
///
/// Shows what the page saw.
pub fn chromium_inside(lab: &Lab) -> Result<()> {
    chromium_on(lab, &lab.topology.inside, &[Way::Udp(3478), Way::Tcp(3478), Way::Tls(5349)])
}

fn chromium_on(lab: &Lab, host: &Host, ways: &[Way]) -> Result<()> {
    let browser = Browser::start(host, lab.public.certificate())?;
    browser.open("about:blank")?;
    for way in ways {
        let report = browser
            .evaluate(&format!(
                "{}; return await exchange({});",
                include_str!("../lab/relay_pair.js"),
                serde_json::json!({
                    "urls": way.url(),
                    "username": "turnuser",
                    "credential": lab.site.turn_password,
                })
            ))
            .with_context(|| format!("Chromium on {}, {way:?}", host.name()))?;
        ensure!(
            report["arrived"] == 200,
            "Chromium on {}, {way:?}: messages lost: {report}",
            host.name()
        );
        ensure_relayed(&report).with_context(|| format!("Chromium on {}, {way:?}", host.name()))?;
    }
    Ok(())
}

/// Every candidate is the static NAT address with a port of the media range.
fn ensure_relayed(report: &Value) -> Result<()> {
    let candidates = report["candidates"].as_array().context("no candidates")?;
    ensure!(!candidates.is_empty(), "no candidates: {report}");
    for candidate in candidates {
        let words: Vec<&str> = candidate.as_str().unwrap_or_default().split(' ').collect();
        let [_, _, _, _, address, port, "typ", "relay", ..] = words[..] else {
            anyhow::bail!("not a relay candidate: {candidate}");
        };
        ensure!(address == STATIC_NAT, "candidate with {address}, not {STATIC_NAT}");
        ensure!(MEDIA_PORTS.contains(&port.parse()?), "port {port} outside the media range");
    }
    Ok(())
}

/// A Python with aioice, made once in the target folder from PyPI.
fn python_with_aioice() -> Result<PathBuf> {
    const AIOICE: &str = "aioice==0.13.0";
    // env(1) takes a word with `=` in it for a variable.
    let folder = artifacts::target_folder().join("lab").join(AIOICE.replace("==", "-"));
    let python = folder.join("bin/python");
    if folder.join(".done").exists() {
        return Ok(python);
    }
    run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(Command::new(&python).args(pip).arg(AIOICE))?;
    std::fs::write(folder.join(".done"), "")?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(())
}
