//! `postern-agent host`.

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("`host` is not here yet")
}
