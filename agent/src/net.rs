//! `postern-agent net`.

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("`net` is not here yet")
}
