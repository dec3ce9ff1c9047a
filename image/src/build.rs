//! `postern build`.

/// Options of `postern build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern build` is not here yet")
}
