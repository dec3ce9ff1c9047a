//! Sockets in another network namespace.

use std::fs::File;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

/// Calls `open` on a thread in the network namespace of `process`; what it opens stays there.
///
/// # Errors
///
/// Returns what `open` returns, or why the namespace cannot be entered.
pub(crate) fn enter<T: Send>(process: Pid, open: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(format!("/proc/{process}/ns/net"))?;
    let inside = || {
        setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
        open()
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .map_err(|_| anyhow!("a thread in a namespace panicked"))?
}
