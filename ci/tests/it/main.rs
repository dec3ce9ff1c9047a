//! The reference deployment, end to end, in the lab: as the agent's processes in a namespace and
//! as the booted image.
//!
//! These tests make network namespaces and so run as root; without it they fail and say so.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, also outside #[test]")]

mod conformance;
mod interop;
mod machine_edge;
mod namespace_edge;
mod refusals;
mod relay_under_attack;
mod roll_back;

use std::sync::{Mutex, MutexGuard, PoisonError};

use postern_ci::artifacts::Artifacts;
use postern_ci::lab::topology::{InnerPath, Nics};
use postern_ci::lab::{Lab, Setup};

/// One lab at a time: two cores do not carry two conferences, and frames are counted.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(nics: Nics, inner: InnerPath) -> Lab {
    let artifacts = Artifacts::build().unwrap();
    Lab::start(&artifacts, Setup { nics, inner }).unwrap()
}

/// Panics with the whole chain of causes.
#[track_caller]
fn must<T>(what: &str, result: anyhow::Result<T>) -> T {
    match result {
        Ok(value) => {
            println!("ok: {what}");
            value
        }
        Err(error) => panic!("{what}: {error:#}"),
    }
}
