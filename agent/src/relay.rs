//! `postern-agent relay`: the sockets of the TURN relay, around the state machine of [`turn`].
//!
//! The *control* thread talks to the agent and to postern-net, opens listening sockets and waits
//! where it must. The *acceptor* takes connections: of clients over TCP, and of the proxy, which
//! takes TLS off and joins the stream. Each *shard*, one per processor, has a state machine, its
//! clients' sockets and its relay ports, and never waits for anything but events. Nothing here
//! holds a privilege: sockets below 1024 come from postern-net.
//!
//! ```text
//! agent ── slice ──→ control ── config, listeners ──→ shards ←──→ clients (listeners)
//! postern-net ── sockets below 1024 ──↗        ↖── snapshots ─┘ ↖──→ peers (relay ports)
//! clients over TCP, proxy ──→ acceptor ── streams ──↗
//! ```
//!
//! An allocation stays on the shard that made it. The kernel gives each client's datagrams to one
//! shard (SO_REUSEPORT); what belongs to another one goes there through its queue.
//!
//! # Invariants
//!
//! 1. Without a slice there is no listener; a slice that cannot be served changes nothing.
//! 2. A new slice keeps every allocation whose addresses are still there.
//! 3. A relay port is bound on both faces of a family or on none.
//! 4. An ICMP error about one packet never fails the next one.
//! 5. For a packet that is passed on nothing is allocated, locked or looked up by name.

mod acceptor;
mod control;
mod listener;
mod report;
mod security_log;
mod shard;
mod slice;
mod slice_file;
mod stream;
mod vital;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::Context;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use nix::unistd::Pid;

use crate::notify::notify;

/// More shards than this gain nothing on the boxes that this is for.
const MOST_SHARDS: u8 = 16;

/// How the relay runs.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Serves the slice in this file instead of asking the agent. SIGHUP reads it again, SIGUSR1
    /// writes FILE.report.
    #[arg(long, value_name = "FILE")]
    slice: Option<PathBuf>,
    /// How many shards there are; one per processor unless said.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_SHARDS)))]
    shards: Option<u8>,
    /// Processors that shards stay on, one after the other.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cpu: Vec<usize>,
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
    let cpus = if options.cpu.is_empty() { allowed_processors() } else { options.cpu.clone() };
    let count = options.shards.map_or(cpus.len(), usize::from);
    let count = u8::try_from(count).unwrap_or(u8::MAX).clamp(1, MOST_SHARDS);
    let (shards, handle) = shard::new(count).context("cannot start the relay")?;
    for (index, shard) in shards.into_iter().enumerate() {
        let cpu = cpus.get(index % cpus.len().max(1)).copied();
        let thread = std::thread::Builder::new().name(format!("shard-{index}"));
        thread.spawn(move || run_shard(shard, cpu)).context("cannot start a shard")?;
    }
    match &options.slice {
        None => {
            notify("READY=1");
            control::run(&handle);
            Ok(())
        }
        Some(path) => slice_file::run(&handle, path),
    }
}

/// The processors that this process may use.
fn allowed_processors() -> Vec<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect()
}

/// A shard's thread. The process ends with it.
fn run_shard(mut shard: shard::Shard, cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(error) = pinned {
            tracing::warn!("cannot stay on processor {cpu}: {error}");
        }
    }
    vital::run(|| shard.run(), vital::end_process);
}

/// Every relay port takes two descriptors, far more than the usual soft limit.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the limit on open files, allocations may fail: {error}");
    }
}
