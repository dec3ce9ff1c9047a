//! `postern run`.

/// Options of `postern run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern run` is not here yet")
}
