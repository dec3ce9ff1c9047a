//! `postern-agent console`.

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("`console` is not here yet")
}
