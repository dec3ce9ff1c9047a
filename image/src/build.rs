//! `postern build`: the disk image from lock, recipe, overlays and two programs.
//!
//! A pure function of its inputs: no network, no mounts, nothing of the image is run.

mod assemble;
mod steps;

/// Options of `postern build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs it.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`postern build` is not here yet")
}
