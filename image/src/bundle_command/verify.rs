//! `postern bundle verify`.

/// Options of `postern bundle verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern bundle verify` is not here yet")
}
