//! What a guest on the Internet sees of the edge, asserted with the programs a guest would use.
//!
//! Every check works on both kinds of edge: it looks from outside, and takes what it needs from
//! inside as a value.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::Lab;
use crate::lab::browser::Browser;
use crate::lab::conference::{ROOM, ROOM_NAME};
use crate::lab::host::eventually;
use crate::lab::topology::{CONFERENCE, InnerPath, LAN1, STATIC_NAT};

/// The URL of the reference deployment.
pub const GUEST_URL: &str = "https://cmsweb.octavio.com";
/// Ports that allocations may have.
pub const MEDIA_PORTS: std::ops::RangeInclusive<u16> = 24000..=29999;

/// The page loads over TLS that validates, with HSTS.
///
/// # Errors
///
/// Says what differs.
pub fn page_loads(lab: &Lab) -> Result<()> {
    let answer = curl(lab, &["-i", &format!("{GUEST_URL}/")])?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "no 200:\n{answer}");
    ensure!(answer.contains("Join call"), "not the conference's page:\n{answer}");
    let lower = answer.to_lowercase();
    ensure!(lower.contains("strict-transport-security: max-age=31536000"), "no HSTS:\n{answer}");
    Ok(())
}

/// Port 80 leads to the guest URL and nowhere else.
///
/// # Errors
///
/// Says what differs.
pub fn plain_http_redirects(lab: &Lab) -> Result<()> {
    let answer = curl(lab, &["-i", "http://cmsweb.octavio.com/room?id=1"])?;
    ensure!(answer.starts_with("HTTP/1.1 308"), "no 308:\n{answer}");
    let location = format!("location: {GUEST_URL}/room?id=1");
    ensure!(answer.to_lowercase().contains(&location), "wrong Location:\n{answer}");
    let answer = curl(lab, &["-i", "-H", "Host: evil.example", "http://cmsweb.octavio.com/"])?;
    ensure!(answer.starts_with("HTTP/1.1 421"), "another Host was not refused:\n{answer}");
    ensure!(!answer.to_lowercase().contains("location:"), "redirected by input:\n{answer}");
    Ok(())
}

/// A guest with the wrong Host gets the page that says what was expected.
///
/// # Errors
///
/// Says what differs.
pub fn wrong_host_is_explained(lab: &Lab) -> Result<()> {
    let answer = curl(lab, &["-i", "-H", "Host: cmsweb.cms.octavio.local", GUEST_URL])?;
    ensure!(answer.starts_with("HTTP/1.1 421"), "no 421:\n{answer}");
    for name in ["cmsweb.octavio.com", "cmsweb.cms.octavio.local"] {
        ensure!(answer.contains(name), "the page does not name {name}:\n{answer}");
    }
    Ok(())
}

/// coturn's client passes packets from relay to relay.
///
/// # Errors
///
/// Shows what it printed.
pub fn relay_to_relay(lab: &Lab) -> Result<()> {
    uclient_loses_nothing(lab, &["-y", "-m", "4"])
}

/// coturn's client passes packets to a declared peer on the inside and back.
///
/// # Errors
///
/// Shows what it printed.
pub fn declared_peer(lab: &Lab) -> Result<()> {
    let mut command = lab.topology.inside.command("turnutils_peer");
    command.args(["-L", CONFERENCE, "-p", "3480"]);
    let _peer = lab.topology.inside.daemon("turnutils_peer", &mut command)?;
    std::thread::sleep(Duration::from_millis(200));
    uclient_loses_nothing(lab, &["-e", CONFERENCE, "-r", "3480", "-m", "2"])
}

/// A peer that nobody declared is refused with 403.
///
/// # Errors
///
/// Shows what coturn's client printed.
pub fn undeclared_peer_is_refused(lab: &Lab) -> Result<()> {
    for peer in ["172.16.85.162", "192.168.245.1", "127.0.0.1", "169.254.169.254"] {
        let said = uclient(lab, &lab.site.turn_password, &["-e", peer, "-m", "1"])
            .err()
            .map(|error| error.to_string())
            .with_context(|| format!("a relay to {peer} was allowed"))?;
        ensure!(said.contains("403"), "{peer}: no 403:\n{said}");
    }
    Ok(())
}

/// A wrong password is refused; the log names user and source. `log` reads what the edge logs.
///
/// # Errors
///
/// Shows what coturn's client printed, or the log.
pub fn wrong_password_is_refused(lab: &Lab, log: impl Fn() -> String) -> Result<()> {
    let said = uclient(lab, "wrong", &["-y", "-m", "1"])
        .err()
        .map(|error| error.to_string())
        .context("a wrong password was accepted")?;
    ensure!(said.contains("Cannot complete Allocation"), "failed for another reason:\n{said}");
    browser_sees_401(lab)?;
    eventually(Duration::from_secs(5), || {
        let log = log();
        let found = log.lines().any(|line| {
            line.contains("refused")
                && line.contains("turnuser")
                && line.contains(&format!("{}:", crate::lab::topology::GUEST))
        });
        ensure!(found, "the log names no user and source:\n{log}");
        Ok(())
    })
}

/// An internal name is asked of the internal server alone; an external one of the external alone.
///
/// # Errors
///
/// Says which server was asked what.
pub fn dns_is_split(lab: &Lab, external_name: &str) -> Result<()> {
    let inside = "cms.octavio.local";
    eventually(Duration::from_secs(20), || {
        ensure!(lab.internal.questions_for(inside) > 0, "internal DNS was not asked for {inside}");
        ensure!(
            lab.external.questions_for(external_name) > 0,
            "external DNS was not asked for {external_name}"
        );
        Ok(())
    })?;
    let leaked = lab.external.questions_for(inside);
    ensure!(leaked == 0, "{inside} was asked of the external DNS {leaked} times");
    let strayed = lab.internal.questions_for(external_name);
    ensure!(strayed == 0, "{external_name} was asked of the internal DNS {strayed} times");
    Ok(())
}

/// Two guests join the room; the first decodes more than `frames` frames of the second's camera
/// in ten seconds. Returns how many.
///
/// # Errors
///
/// Shows what the page reports.
pub fn guests_meet(lab: &Lab, frames: u64) -> Result<u64> {
    let browser = Browser::start(&lab.topology.inet, lab.public.certificate())?;
    let first = browser.new_tab()?;
    join(&browser, "Alice")?;
    browser.new_tab()?;
    join(&browser, "Bob")?;
    browser.switch_to(&first)?;
    eventually(Duration::from_secs(60), || {
        let report = browser.evaluate("return await window.report();")?;
        ensure!(decoded(&report) > 0, "no frame yet:\n{}", explain(&browser, &report));
        Ok(())
    })
    .with_context(|| format!("Janus:\n{}", lab.conference.log_tail()))?;
    let before = browser.evaluate("return await window.report();")?;
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(10));
    let after = browser.evaluate("return await window.report();")?;
    let seconds = start.elapsed().as_secs_f64();
    let count = decoded(&after) - decoded(&before);
    ensure!(after["room"] == ROOM_NAME, "another room: {after}");
    ensure!(
        count > frames,
        "{count} frames in {seconds:.1} s, wanted more than {frames}:\n{}",
        explain(&browser, &after)
    );
    ensure_relayed(&after, lab)?;
    Ok(count)
}

/// A browser with the wrong password is answered 401 (coturn's client does not print the code).
fn browser_sees_401(lab: &Lab) -> Result<()> {
    let browser = Browser::start(&lab.topology.inet, lab.public.certificate())?;
    browser.open(&format!("{GUEST_URL}/"))?;
    let code = browser.evaluate(
        "const pc = new RTCPeerConnection({
           iceTransportPolicy: 'relay',
           iceServers: [{ urls: 'turn:vcse.octavio.com:3478?transport=udp',
                          username: 'turnuser', credential: 'wrong' }],
         });
         const code = new Promise((resolve) => {
           pc.onicecandidateerror = (event) => resolve(event.errorCode);
           pc.onicecandidate = (event) => { if (event.candidate) resolve(event.candidate.candidate); };
           setTimeout(() => resolve('nothing came'), 20000);
         });
         pc.createDataChannel('x');
         await pc.setLocalDescription(await pc.createOffer());
         return await code;",
    )?;
    ensure!(code == 401, "the browser was answered {code}, not 401");
    Ok(())
}

fn join(browser: &Browser<'_>, name: &str) -> Result<()> {
    browser.open(&format!("{GUEST_URL}/?call={ROOM}"))?;
    browser.evaluate(&format!("{}; return 1;", submit(name)))?;
    eventually(Duration::from_secs(60), || {
        let report = browser.evaluate("return await window.report();")?;
        ensure!(report["error"].is_null(), "{}", explain(browser, &report));
        ensure!(report["joined"] == true, "not joined:\n{}", explain(browser, &report));
        Ok(())
    })
    .with_context(|| format!("{name} joins"))
}

fn submit(name: &str) -> String {
    format!(
        "document.querySelector('#name').value = '{name}';
         document.querySelector('#call').value = '{ROOM}';
         document.querySelector('#join').requestSubmit()"
    )
}

fn decoded(report: &Value) -> u64 {
    report["framesDecoded"].as_u64().unwrap_or_default()
}

fn explain(browser: &Browser<'_>, report: &Value) -> String {
    let log = browser.evaluate("return document.querySelector('#log').textContent;");
    format!(
        "{report}\n{}",
        log.ok().and_then(|l| l.as_str().map(str::to_owned)).unwrap_or_default()
    )
}

/// Every candidate is the static NAT address with a port of the range; the pairs lead where the
/// inner firewall lets them.
fn ensure_relayed(report: &Value, lab: &Lab) -> Result<()> {
    let candidates = report["candidates"].as_array().context("no candidates")?;
    ensure!(!candidates.is_empty(), "no candidates: {report}");
    for candidate in candidates {
        let words: Vec<&str> = candidate.as_str().unwrap_or_default().split(' ').collect();
        let [_, _, _, _, address, port, "typ", "relay", ..] = words[..] else {
            bail!("not a relay candidate: {candidate}");
        };
        ensure!(address == STATIC_NAT, "candidate with {address}, not {STATIC_NAT}");
        ensure!(MEDIA_PORTS.contains(&port.parse()?), "port {port} outside the media range");
    }
    let wanted = match lab.inner_path() {
        InnerPath::DeclaredPeer => [CONFERENCE, LAN1],
        InnerPath::TurnOnly => [STATIC_NAT, STATIC_NAT],
    };
    for pair in report["pairs"].as_array().context("no pairs")? {
        let remote = pair[2].as_str().unwrap_or_default();
        ensure!(wanted.contains(&remote), "media goes to {remote}, wanted {wanted:?}: {report}");
    }
    Ok(())
}

fn curl(lab: &Lab, words: &[&str]) -> Result<String> {
    let authority = lab.directory().join("public.pem");
    std::fs::write(&authority, lab.public.certificate())?;
    let mut command = lab.topology.inet.command("curl");
    command.args(["-sS", "--max-time", "10", "--cacert"]).arg(authority).args(words);
    let output = command.output()?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// coturn's client, told `words`, gets back everything it sends.
///
/// # Errors
///
/// Shows what it printed.
pub fn uclient_loses_nothing(lab: &Lab, words: &[&str]) -> Result<()> {
    let said = uclient(lab, &lab.site.turn_password, words)?;
    ensure_all_arrived(&said)
}

/// Runs coturn's client from the Internet against the static NAT address.
fn uclient(lab: &Lab, password: &str, words: &[&str]) -> Result<String> {
    let mut command = lab.topology.inet.command("timeout");
    command.args(["30", "turnutils_uclient", "-v", "-c", "-n", "20", "-l", "160"]);
    command.args(["-u", "turnuser", "-w", password]).args(words).arg(STATIC_NAT);
    let output = command.output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "turnutils_uclient: {}\n{said}", output.status);
    let mut relays = 0;
    for line in said.lines() {
        if let Some((_, relay)) = line.split_once("Received relay addr: ") {
            let relay: std::net::SocketAddr = relay.trim().parse()?;
            ensure!(relay.ip().to_string() == STATIC_NAT, "relayed address {relay}:\n{said}");
            ensure!(MEDIA_PORTS.contains(&relay.port()), "relay port of {relay}:\n{said}");
            relays += 1;
        }
    }
    ensure!(relays > 0, "no relayed address:\n{said}");
    Ok(said)
}

fn ensure_all_arrived(said: &str) -> Result<()> {
    let total = said
        .lines()
        .rev()
        .find(|line| line.contains("Total lost packets"))
        .with_context(|| format!("no total:\n{said}"))?;
    ensure!(total.contains("Total lost packets 0 ("), "{total}\n{said}");
    Ok(())
}
