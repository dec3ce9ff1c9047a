//! `postern bundle check`.

/// Options of `postern bundle check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern bundle check` is not here yet")
}
