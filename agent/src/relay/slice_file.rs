//! A slice from a file instead of from the agent: for tests and benchmarks, which have none.

use std::path::Path;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

use crate::notify::notify;
use crate::plan::RelaySlice;
use crate::relay::control::Control;
use crate::relay::shard::Handle;

/// What [`run`] waits for; every thread blocks them.
pub(super) fn signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGHUP);
    signals.add(Signal::SIGUSR1);
    signals
}

/// Serves the slice in `path` for ever: SIGHUP reads it again, SIGUSR1 writes `PATH.report`.
///
/// # Errors
///
/// Returns why the first slice cannot be served; a later one that cannot be changes nothing.
pub(super) fn run(shard: &Handle, path: &Path) -> anyhow::Result<()> {
    let streams = path.with_file_name("streams");
    let mut control = Control::new(shard).joined_at(streams);
    serve(&mut control, path)?;
    notify("READY=1");
    loop {
        match signals().wait()? {
            Signal::SIGHUP => {
                if let Err(error) = serve(&mut control, path) {
                    tracing::error!("{error:#}");
                }
            }
            _ => write_report(&control, path)?,
        }
    }
}

fn serve(control: &mut Control<'_>, path: &Path) -> anyhow::Result<()> {
    let file = || path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", file()))?;
    let slice: RelaySlice =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no slice", file()))?;
    control.swap(&slice).with_context(|| format!("cannot serve {}", file()))?;
    tracing::info!("serving {}", file());
    Ok(())
}

/// Whole or not at all, so that whoever waits for the file can read it at once.
fn write_report(control: &Control<'_>, path: &Path) -> anyhow::Result<()> {
    let report = path.with_added_extension("report");
    let partial = report.with_added_extension("partial");
    std::fs::write(&partial, control.report().to_string())
        .and_then(|()| std::fs::rename(&partial, &report))
        .with_context(|| format!("cannot write {}", report.display()))
}
