//! A host of the lab: a process of its own network, mount and PID namespace.
//!
//! Everything that runs on a host lives in its PID namespace, so when the lab goes away, however
//! it goes away, the kernel ends all of it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One host.
#[derive(Debug)]
pub struct Host {
    name: String,
    /// `unshare`, which ends everything in the PID namespace when it ends.
    holder: Child,
    /// PID 1 of the namespace, as this process numbers it.
    init: Pid,
    directory: PathBuf,
}

impl Host {
    /// Starts a host with nothing but a loopback link. Its logs go below `directory`.
    ///
    /// # Errors
    ///
    /// Says when the namespaces cannot be made; that takes root.
    pub fn start(name: &str, directory: &Path) -> Result<Self> {
        let directory = directory.join(name);
        fs::create_dir_all(&directory)?;
        // The holder ends with the thread that starts it, so that a lab whose program is killed
        // leaves nothing behind.
        let mut holder = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--fork",
            ])
            .args(["--kill-child", "--mount-proc", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run setpriv(1) and unshare(1) from util-linux")?;
        let init = match wait_for_child_of(&mut holder) {
            Ok(init) => init,
            Err(error) => {
                drop(holder.kill());
                return Err(error.context("the lab needs root, to make network namespaces"));
            }
        };
        let host = Self { name: name.to_owned(), holder, init, directory };
        host.run("mount -t sysfs sysfs /sys")?;
        host.run("ip link set lo up")?;
        Ok(host)
    }

    /// Its name in the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its logs and files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The PID that names its namespaces to ip(8).
    #[must_use]
    pub fn init(&self) -> Pid {
        self.init
    }

    /// A command that will run on this host.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--net", "--mount", "--pid", "--"]);
        command.arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a line of shell on this host and returns what it printed.
    ///
    /// # Errors
    ///
    /// Shows the line and its standard error when it exits with anything but 0.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.command("sh").args(["-ec", line]).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("on {}: `{line}`: {}: {}", self.name, output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Calls `task` on a thread of its own in this host's network: a socket that it makes belongs
    /// to this host and can be used from anywhere.
    ///
    /// # Errors
    ///
    /// Says when the namespace cannot be entered.
    pub fn in_network<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.init))?;
        let entered = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?;
                Ok::<_, nix::Error>(task())
            });
            thread.join()
        });
        match entered {
            Ok(result) => result.with_context(|| format!("cannot enter {}'s network", self.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Makes `/etc/resolv.conf` of this host point at `server`.
    ///
    /// # Errors
    ///
    /// Returns what writing or mounting said.
    pub fn set_resolver(&self, server: &str) -> Result<()> {
        let file = self.directory.join("resolv.conf");
        fs::write(&file, format!("nameserver {server}\n"))?;
        self.bind(&file, "/etc/resolv.conf")
    }

    /// Shows `file` in the place of `over`, on this host only.
    ///
    /// # Errors
    ///
    /// Returns what mount(8) said.
    pub fn bind(&self, file: &Path, over: &str) -> Result<()> {
        // A symbolic link would lead out of the host's own files.
        self.run(&format!("mount --bind '{}' \"$(readlink -f {over})\"", file.display()))?;
        Ok(())
    }

    /// Starts a program that stays, with its output in `NAME.log`.
    ///
    /// # Errors
    ///
    /// Says when it cannot be started.
    pub fn daemon(&self, name: &str, command: &mut Command) -> Result<Daemon> {
        let log = self.directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Daemon { name: name.to_owned(), child, log })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// A program that runs on a host until this value goes away.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    /// `nsenter`; the program itself is its child.
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Everything it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Waits until `needle` appears in what it prints.
    ///
    /// # Errors
    ///
    /// Shows the end of the log when it does not come within `patience` or the program ends.
    pub fn wait_for(&mut self, needle: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            if self.log().contains(needle) {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = self.log();
                let tail: Vec<&str> = log.lines().rev().take(25).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!(
                    "{}: no `{needle}` in its output (ended: {ended:?}):\n{}",
                    self.name,
                    tail.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end (SIGTERM), then makes it (SIGKILL after 3 s).
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(3);
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
    }

    /// Ends it at once (SIGKILL), as a crash would.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        drop(self.child.kill());
        drop(self.child.wait());
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id())
            && let Some(child) = first_child(pid)
        {
            let _ = kill(child, signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            self.stop();
        }
    }
}

/// Calls `check` until it succeeds.
///
/// # Errors
///
/// Returns its last error once `patience` is over.
pub fn eventually<T>(patience: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("not within {patience:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn wait_for_child_of(holder: &mut Child) -> Result<Pid> {
    let pid = i32::try_from(holder.id())?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if let Some(status) = holder.try_wait()? {
            bail!("unshare ended: {status}");
        }
        // Not before it has become `sleep`: only then are the mounts of the namespace made.
        if let Some(child) = first_child(pid)
            && fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|c| c.trim() == "sleep")
        {
            return Ok(child);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("unshare did not start its child")
}

fn first_child(pid: i32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}
