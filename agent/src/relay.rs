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

#[cfg(test)]
mod tests;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::notify::notify;

/// Runs until it is told to stop.
///
/// # Errors
///
/// Returns what keeps the process from starting: no epoll, no randomness.
pub(crate) fn run() -> anyhow::Result<()> {
    raise_open_files();
    let (mut shard, handle) = shard::Shard::new().context("cannot start the relay")?;
    let control = std::thread::Builder::new().name("control".into());
    control.spawn(move || control::run(&handle)).context("cannot start the control thread")?;
    notify("READY=1");
    shard.run().context("the relay's event loop failed")
}

/// Every relay port takes two descriptors, far more than the usual soft limit.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the limit on open files, allocations may fail: {error}");
    }
}
