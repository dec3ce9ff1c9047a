//! Runs the agent's processes on a lab host as their unit files say, and starts them again when
//! they end: the small stand-in for systemd that makes a namespace an edge.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

use super::host::{Daemon, Host};
use super::unit::Unit;

/// The units that stay; `postern-unseal@` is started for each connection.
const SERVICES: [&str; 5] =
    ["postern-net", "postern-host", "postern-agent", "postern-relay", "postern-proxy"];

/// Keeps the services of one edge running.
#[derive(Debug)]
pub struct Supervisor {
    stop: Arc<AtomicBool>,
    running: Arc<Mutex<BTreeMap<String, Daemon>>>,
    threads: Vec<JoinHandle<()>>,
}

/// What it needs to know of the edge.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The program `postern-agent`.
    pub agent: PathBuf,
    /// Folder of the unit files.
    pub units: PathBuf,
    /// User ids.
    pub users: BTreeMap<String, u32>,
    /// Credential files by name, in place of what systemd reads from the machine.
    pub credentials: BTreeMap<String, String>,
}

impl Supervisor {
    /// Starts all services on `host`.
    ///
    /// # Errors
    ///
    /// Says which unit cannot be read or started.
    pub fn start(host: &Arc<Host>, environment: &Environment) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let running = Arc::new(Mutex::new(BTreeMap::new()));
        let mut threads = vec![unseal_thread(host, environment, &stop)?];
        for name in SERVICES {
            let unit = Unit::read(&environment.units, name)?;
            start_unit(host, environment, &unit, &running)?;
        }
        let (host, environment) = (Arc::clone(host), environment.clone());
        let (thread_stop, thread_running) = (Arc::clone(&stop), Arc::clone(&running));
        threads.push(std::thread::spawn(move || {
            while !thread_stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                restart_ended(&host, &environment, &thread_running);
            }
        }));
        Ok(Self { stop, running, threads })
    }

    /// Ends a service as a crash would; it is started again within 100 ms.
    pub fn kill(&self, name: &str) {
        if let Some(daemon) = self.running.lock().expect("no panic while held").get_mut(name) {
            daemon.kill();
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn restart_ended(
    host: &Host,
    environment: &Environment,
    running: &Arc<Mutex<BTreeMap<String, Daemon>>>,
) {
    let ended: Vec<String> = {
        let mut running = running.lock().expect("no panic while held");
        running
            .iter_mut()
            .filter_map(|(name, daemon)| (!daemon.is_running()).then(|| name.clone()))
            .collect()
    };
    for name in ended {
        let started = Unit::read(&environment.units, &name)
            .and_then(|unit| start_unit(host, environment, &unit, running));
        drop(started);
    }
}

fn start_unit(
    host: &Host,
    environment: &Environment,
    unit: &Unit,
    running: &Arc<Mutex<BTreeMap<String, Daemon>>>,
) -> Result<()> {
    let mut command = host.command("setpriv");
    command.args(unit.setpriv(&environment.users)?).arg(&environment.agent).args(&unit.arguments);
    let daemon = host.daemon(&unit.name, &mut command)?;
    running.lock().expect("no panic while held").insert(unit.name.clone(), daemon);
    Ok(())
}

/// Accepts on the unseal socket and starts one process per connection (Accept=yes).
fn unseal_thread(
    host: &Arc<Host>,
    environment: &Environment,
    stop: &Arc<AtomicBool>,
) -> Result<JoinHandle<()>> {
    let unit = Unit::read(&environment.units, "postern-unseal@")?;
    let folder = credentials_for(host, environment, &unit)?;
    let path = format!("/proc/{}/root/run/postern/unseal", host.init());
    let listener = listen_at(Path::new(&path))?;
    let agent = environment.users.get("postern-agent").copied();
    std::os::unix::fs::chown(&path, agent, agent)?;
    let mut options = unit.setpriv(&environment.users)?;
    options.push("env".to_owned());
    options.push(format!("CREDENTIALS_DIRECTORY={folder}"));
    let (host, stop) = (Arc::clone(host), Arc::clone(stop));
    let program = environment.agent.clone();
    let log = host.directory().join("postern-unseal.log");
    Ok(std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let Some(connection) = accept(&listener) else { continue };
            let Ok(log) = fs::File::options().create(true).append(true).open(&log) else { return };
            let mut command = host.command("unshare");
            command.args(["--net", "setpriv"]).args(&options).arg(&program).args(&unit.arguments);
            command.stdin(Stdio::from(connection)).stderr(log);
            if let Ok(mut child) = command.spawn() {
                std::thread::spawn(move || child.wait());
            }
        }
    }))
}

/// Puts the unit's credentials into a folder that only its user reads, as systemd does.
fn credentials_for(host: &Host, environment: &Environment, unit: &Unit) -> Result<String> {
    let folder = format!("/run/credentials/{}", unit.name);
    let user = unit.user.as_ref().and_then(|user| environment.users.get(user)).unwrap_or(&0);
    host.run(&format!("mkdir -p {folder}"))?;
    for (name, path) in &unit.credentials {
        let line = match environment.credentials.get(name) {
            Some(value) => format!("printf %s '{value}' > {folder}/{name}"),
            None => format!("cp {path} {folder}/{name}"),
        };
        host.run(&line).with_context(|| format!("credential {name} of {}", unit.name))?;
    }
    host.run(&format!("chown -R {user} {folder}; chmod -R u=rX,go= {folder}"))?;
    Ok(folder)
}

fn listen_at(path: &Path) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&listener, Backlog::new(16)?)?;
    Ok(listener)
}

fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(100u8)).ok()?;
    let raw = nix::sys::socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).ok()?;
    Some(sys::fd_passing::own(raw))
}
