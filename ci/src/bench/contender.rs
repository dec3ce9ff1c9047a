//! The relays that are measured, each told to do the same.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use turn::stun::{Class, Method, TransactionId, Writer};

use crate::bench::field::{Field, INSIDE, MEDIA_PORTS, OUTSIDE, PEER, SERVER};
use crate::bench::load::namespace;
use crate::bench::processor::{self, Priority};
use crate::lab::host;
use crate::relay_server::RelaySettings;

/// REALM, and the one user with its password.
pub(super) const REALM: &str = "example.org";
pub(super) const USER: &str = "guest";
pub(super) const PASSWORD: &str = "a password of the bench";

/// How long a relay may take to answer its first request.
const PATIENCE: Duration = Duration::from_secs(20);

/// A relay's program.
#[derive(Clone, Debug)]
pub(crate) enum Contender {
    /// `postern-agent`.
    Postern(PathBuf),
    /// `turnserver`, and what to call it in the output.
    Coturn(PathBuf, &'static str),
}

impl Contender {
    /// What the output calls it.
    #[must_use]
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Postern(_) => "postern",
            Self::Coturn(_, name) => name,
        }
    }

    /// The version that it reports.
    ///
    /// # Errors
    ///
    /// Says when it cannot be run.
    pub(crate) fn version(&self) -> Result<String> {
        let (Self::Postern(program) | Self::Coturn(program, _)) = self;
        let output = Command::new(program).arg("--version").output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.split_whitespace().last().unwrap_or("of no known version").to_owned())
    }

    /// Starts it in `field` on its core; comes back when it has answered a Binding request.
    ///
    /// # Errors
    ///
    /// Shows the end of its log when it does not.
    pub(crate) fn start(&self, field: &Field, priority: Priority) -> Result<Relay> {
        let folder = field.server.directory().join(self.name());
        fs::create_dir_all(&folder)?;
        let log = folder.join("log");
        let out = File::create(&log)?;
        let words = self.words(&folder, priority)?;
        let init = field.server.init().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &init, "--net", "--"]).args(words);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        command.env("RUST_LOG", "warn");

        let probe = namespace::enter(field.clients.init(), || {
            let socket = UdpSocket::bind("10.9.0.1:0")?;
            socket.connect(SERVER)?;
            socket.set_read_timeout(Some(Duration::from_millis(2)))?;
            Ok(socket)
        })?;
        let begun = Instant::now();
        let child = command.spawn().context("cannot run nsenter(1)")?;
        let report = folder.join("slice.json.report");
        let mut relay = Relay { child, started_in: Duration::ZERO, log, report };
        await_answer(&probe, &mut relay, begun)?;
        relay.started_in = begun.elapsed();
        Ok(relay)
    }

    fn words(&self, folder: &Path, priority: Priority) -> Result<Vec<OsString>> {
        match self {
            Self::Postern(program) => {
                let file = folder.join("slice.json");
                fs::write(&file, serde_json::to_vec_pretty(&settings().slice())?)?;
                let mut words = priority.command(processor::RELAY, program);
                words.extend(["relay", "--shards", "1", "--cpu", "0", "--slice"].map(Into::into));
                words.push(file.into());
                Ok(words)
            }
            Self::Coturn(program, _) => {
                let mut words = priority.command(processor::RELAY, program);
                words.extend(coturn(folder)?.into_iter().map(Into::into));
                Ok(words)
            }
        }
    }
}

/// As on a box: clients outside, a declared media server inside, both faces opened.
fn settings() -> RelaySettings {
    let [outside, inside] = [OUTSIDE, INSIDE].map(IpAddr::from);
    RelaySettings {
        realm: REALM.to_owned(),
        users: vec![(USER.to_owned(), PASSWORD.to_owned())],
        udp: vec![SERVER],
        tcp: vec![SERVER],
        inside_addresses: vec![inside],
        media_ports: MEDIA_PORTS,
        outside: vec![(outside, outside)],
        inside: vec![(inside, inside)],
        inside_routes: vec!["10.8.2.0/24".to_owned()],
        allow: vec![format!("{PEER}/32")],
        own_addresses: vec![outside, inside],
        mobility: true,
        ..RelaySettings::default()
    }
}

fn coturn(folder: &Path) -> Result<Vec<String>> {
    let at = |name: &str| folder.join(name).display().to_string();
    let database = at("turndb");
    if Path::new(&database).exists() {
        fs::remove_file(&database)?;
    }
    let (first, last) = MEDIA_PORTS;
    Ok(vec![
        "-n".to_owned(),
        format!("--listening-ip={OUTSIDE}"),
        "--listening-port=3478".to_owned(),
        format!("--relay-ip={INSIDE}"),
        format!("--min-port={first}"),
        format!("--max-port={last}"),
        "--relay-threads=1".to_owned(),
        "--lt-cred-mech".to_owned(),
        format!("--realm={REALM}"),
        format!("--user={USER}:{PASSWORD}"),
        "--no-tls".to_owned(),
        "--no-dtls".to_owned(),
        "--no-cli".to_owned(),
        format!("--userdb={database}"),
        format!("--pidfile={}", at("pid")),
        "--log-file=stdout".to_owned(),
        "--simple-log".to_owned(),
    ])
}

/// A relay that runs; it ends with this value.
#[derive(Debug)]
pub(crate) struct Relay {
    child: Child,
    /// From its start to its first answer.
    pub(crate) started_in: Duration,
    log: PathBuf,
    /// Where our relay writes its status when it is told to.
    report: PathBuf,
}

impl Relay {
    /// Its process.
    #[must_use]
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it printed.
    #[must_use]
    pub(crate) fn end_of_log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// The status object of our relay.
    ///
    /// # Errors
    ///
    /// Says when it does not come.
    pub(crate) fn report(&self) -> Result<serde_json::Value> {
        if self.report.exists() {
            fs::remove_file(&self.report)?;
        }
        kill(Pid::from_raw(i32::try_from(self.process())?), Signal::SIGUSR1)?;
        let report = host::eventually(PATIENCE, || Ok(fs::read(&self.report)?))?;
        Ok(serde_json::from_slice(&report)?)
    }

    /// Says what it said when it has ended.
    ///
    /// # Errors
    ///
    /// Shows the end of its log.
    pub(crate) fn ensure_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the relay ended ({status}):\n{}", self.end_of_log());
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn await_answer(probe: &UdpSocket, relay: &mut Relay, begun: Instant) -> Result<()> {
    let request = Writer::new(Class::Request, Method::BINDING, TransactionId(*b"how are you?"));
    let request = request.finish();
    let mut buffer = [0; 512];
    loop {
        // Refused, as long as nobody listens.
        drop(probe.send(&request));
        match probe.recv(&mut buffer) {
            Ok(_) => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        relay.ensure_alive()?;
        let log = || format!("no answer within {PATIENCE:?}:\n{}", relay.end_of_log());
        ensure!(begun.elapsed() < PATIENCE, log());
    }
}
