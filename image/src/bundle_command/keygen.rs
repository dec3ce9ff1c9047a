//! `postern bundle keygen`.

/// Options of `postern bundle keygen`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern bundle keygen` is not here yet")
}
