//! What the process takes from itself before it reads a stranger's byte. The unit file takes the
//! rest: network, file systems, system calls, capabilities.

use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};

/// Bytes that a file may grow to; memfds count, the plan and the slices are the longest.
const MAX_FILE: u64 = 8 << 20;
/// Bytes of address space: far above what a bundle of 1 MiB takes.
const MAX_ADDRESS_SPACE: u64 = 1 << 30;
/// Descriptors.
const MAX_DESCRIPTORS: u64 = 32;
/// Seconds of processor time.
const MAX_SECONDS: u64 = 20;

/// Gives up privileges to come, core dumps with the seal key in them, and endless use of the box.
///
/// # Errors
///
/// Returns the error of prctl(2) or setrlimit(2).
pub(super) fn confine() -> nix::Result<()> {
    set_no_new_privs()?;
    set_dumpable(false)?;
    for (resource, limit) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, MAX_FILE),
        (Resource::RLIMIT_AS, MAX_ADDRESS_SPACE),
        (Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (Resource::RLIMIT_CPU, MAX_SECONDS),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    Ok(())
}
