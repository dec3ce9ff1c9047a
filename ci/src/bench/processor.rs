//! Which core a process has, and that nothing else takes it away.
//!
//! The relay has core 0 and the load generator core 1, both with real-time priority: on two shared
//! cores figures are nonsense otherwise. A process spins for less than a second at a time, so that
//! the kernel's own work is not starved.

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

/// The core of the relay under test.
pub(super) const RELAY: usize = 0;
/// The core of the load generator, and of everything else that this program runs.
pub(super) const LOAD: usize = 1;

/// Whether processes may have real-time priority here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Priority {
    real_time: bool,
}

impl Priority {
    /// Finds out, says so when it is refused, and moves this process off the relay's core.
    ///
    /// # Errors
    ///
    /// Says so when the machine has fewer than two cores.
    pub(crate) fn claim() -> Result<Self> {
        let mut cores = CpuSet::new();
        cores.set(LOAD)?;
        sched_setaffinity(Pid::from_raw(0), &cores).context("this takes two cores")?;
        let tried = Command::new("chrt").args(["-f", "50", "true"]).stderr(Stdio::null()).status();
        let real_time = tried.is_ok_and(|status| status.success());
        if !real_time {
            println!("REAL-TIME PRIORITY IS REFUSED HERE: other work will distort every figure.");
        }
        // The processes that this one starts have a socket for each of many clients.
        let (_, descriptors) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors)?;
        Ok(Self { real_time })
    }

    /// What every process has: enough where nothing depends on time.
    pub(crate) const fn ordinary() -> Self {
        Self { real_time: false }
    }

    /// A command that will run `program` on that core and ends when this thread ends.
    pub(super) fn command(
        self,
        core: usize,
        program: impl AsRef<OsStr>,
    ) -> Vec<std::ffi::OsString> {
        let mut words = vec!["setpriv", "--pdeathsig", "KILL"];
        let core = core.to_string();
        words.extend(["taskset", "-c", &core]);
        if self.real_time {
            words.extend(["chrt", "-f", "50"]);
        }
        let words = words.into_iter().map(std::ffi::OsString::from);
        words.chain([program.as_ref().to_owned()]).collect()
    }
}

/// Nanoseconds that all threads of a process have run.
pub(super) fn time_used(process: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let used = text.split_whitespace().next().context("an empty schedstat")?;
        sum += used.parse::<u64>()?;
    }
    Ok(sum)
}

/// Octets of memory that a process has in use.
pub(super) fn resident(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes = line.trim().trim_end_matches("kB").trim();
    Ok(kilobytes.parse::<u64>()? * 1024)
}
