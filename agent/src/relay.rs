//! `postern-agent relay`: the sockets of the TURN relay, around the state machine of [`turn`].
//!
//! Two threads. The *control* thread talks to the agent and to postern-net, opens listening
//! sockets and waits where it must; the *shard* has the state machine and every socket, and never
//! waits for anything but datagrams. Nothing here holds a privilege: sockets below 1024 come from
//! postern-net.
//!
//! ```text
//! agent ── slice ──→ control ── config, listeners ──→ shard ←──→ clients (listeners)
//! postern-net ── sockets below 1024 ──↗        ↖── report ──┘  ↖──→ peers (relay ports)
//! ```
//!
//! # Invariants
//!
//! 1. Without a slice there is no listener; a slice that cannot be served changes nothing.
//! 2. A new slice keeps every allocation whose addresses are still there.
//! 3. A relay port is bound on both faces or on none.
//! 4. An ICMP error about one packet never fails the next one.
//!
//! Left out so far: TCP and TLS clients, several shards, UDP GRO and GSO, ICMP to clients.

mod control;
mod listener;
mod report;
mod security_log;
mod shard;
mod slice;
mod slice_file;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::Context;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use nix::unistd::Pid;

use crate::notify::notify;

/// How the relay runs.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Serves the slice in this file instead of asking the agent. SIGHUP reads it again, SIGUSR1
    /// writes FILE.report.
    #[arg(long, value_name = "FILE")]
    slice: Option<PathBuf>,
    /// The processor to run on.
    #[arg(long)]
    cpu: Option<usize>,
}

/// Runs until it is told to stop.
///
/// # Errors
///
/// Returns what keeps the process from starting: no epoll, no randomness, a slice in a file that
/// cannot be served.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    raise_open_files();
    // Before there are threads, so that none of them is interrupted.
    slice_file::signals().thread_block().context("cannot block signals")?;
    let (shard, handle) = shard::Shard::new().context("cannot start the relay")?;
    let cpu = options.cpu;
    let thread = std::thread::Builder::new().name("shard-0".into());
    thread.spawn(move || run_shard(shard, cpu)).context("cannot start the shard")?;
    match &options.slice {
        None => {
            notify("READY=1");
            control::run(&handle);
            Ok(())
        }
        Some(path) => slice_file::run(&handle, path),
    }
}

/// A shard's thread. The process ends with it: systemd starts another one.
fn run_shard(mut shard: shard::Shard, cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(error) = pinned {
            tracing::warn!("cannot stay on processor {cpu}: {error}");
        }
    }
    if let Err(error) = shard.run() {
        tracing::error!("the relay's event loop failed: {error}");
        std::process::exit(1);
    }
}

/// Every relay port takes two descriptors, far more than the usual soft limit.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the limit on open files, allocations may fail: {error}");
    }
}
