//! `postern-agent agent`.

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("`agent` is not here yet")
}
