//! `postern-agent unseal`.

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    anyhow::bail!("`unseal` is not here yet")
}
