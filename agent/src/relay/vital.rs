//! Threads that the relay cannot do without: when one of them ends, the process does, and systemd
//! starts another one. A relay that lives on with a dead shard would fail some clients for ever.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a thread's `work`, and `end` when that fails or panics.
pub(super) fn run(work: impl FnOnce() -> io::Result<()>, end: impl FnOnce()) {
    // Nothing of what a panic leaves behind is looked at again.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!("the relay's event loop failed: {error}");
            end();
        }
        Err(_) => {
            tracing::error!("a thread of the relay panicked");
            end();
        }
    }
}

/// Ends the process as failed.
pub(super) fn end_process() {
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::run;

    #[test]
    fn a_thread_that_fails_or_panics_ends_the_process_and_one_that_is_done_does_not() {
        let ends = |work: fn() -> io::Result<()>| {
            let mut ended = false;
            run(work, || ended = true);
            ended
        };

        assert!(!ends(|| Ok(())));
        assert!(ends(|| Err(io::ErrorKind::Other.into())));
        assert!(ends(|| panic!("as a bug would")));
    }
}
