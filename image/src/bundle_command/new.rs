//! `postern bundle new`.

/// Options of `postern bundle new`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern bundle new` is not here yet")
}
