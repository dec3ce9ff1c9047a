//! `postern bundle show`.

/// Options of `postern bundle show`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern bundle show` is not here yet")
}
