//! `postern bundle sign`.

/// Options of `postern bundle sign`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern bundle sign` is not here yet")
}
