//! `postern-agent proxy`.

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("`proxy` is not here yet")
}
