//! `postern bundle`.

/// The verbs of `postern bundle`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {}

/// Runs one.
pub(crate) fn run(_: &Command) -> anyhow::Result<()> {
    anyhow::bail!("`postern bundle` is not here yet")
}
