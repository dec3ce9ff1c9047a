//! `postern bundle verify`.

use std::path::PathBuf;

use anyhow::Context as _;
use bundle::verify::{authenticate, walk_trust};

use super::files::{read, read_trust, say};
use super::sign::accept;

/// Options of `postern bundle verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The NAME.postern file.
    bundle: PathBuf,
    /// The trust file that boxes judge by.
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// Judge for this box only.
    #[arg(long, value_name = "NAME")]
    r#box: Option<String>,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let bytes = read(&args.bundle)?;
    let trust = read_trust(&args.trust)?;
    let refused = || format!("{} is refused", args.bundle.display());
    let trust = walk_trust(&bytes, &trust).with_context(refused)?;
    let bundle = authenticate(&bytes, &trust).with_context(refused)?;
    let names: Vec<String> = match &args.r#box {
        Some(name) => vec![name.clone()],
        None => bundle.manifest().boxes.iter().map(|one| one.name.clone()).collect(),
    };
    for name in &names {
        accept(&bytes, &trust, name).with_context(refused)?;
    }
    let manifest = bundle.manifest();
    say(&format!(
        "accepted: site {}, serial {}, for {}",
        manifest.site,
        manifest.serial,
        names.join(", ")
    ))?;
    for signer in bundle.signers() {
        say(&format!("signed by {signer} (trust version {})", trust.version()))?;
    }
    say(&format!("digest {}", bundle.digest()))
}
