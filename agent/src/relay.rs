//! `postern-agent relay`.

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("`relay` is not here yet")
}
