//! `postern lock`.

/// Options of `postern lock`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern lock` is not here yet")
}
