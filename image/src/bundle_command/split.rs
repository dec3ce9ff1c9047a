//! `postern bundle split`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use bundle::container::{Container, Sections, split_armour};
use bundle::manifest::Manifest;
use bundle::signature::{BUNDLE_NAMESPACE, ParsedSignature, TRUST_NAMESPACE};

use super::files::{Overwrite, read, read_trust, say, write};

/// Options of `postern bundle split`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The NAME.postern file.
    bundle: PathBuf,
    /// Folder for the parts; made when it is not there.
    dir: PathBuf,
    /// Take the keys of `allowed_signers` from this trust file; without it they are the ones that
    /// the signatures themselves name.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Replace files that are there already.
    #[arg(long)]
    force: bool,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let bytes = read(&args.bundle)?;
    let wrong = || format!("{} is not a bundle", args.bundle.display());
    let container = Container::parse(&bytes).with_context(wrong)?;
    let sections = Sections::parse(container.payload).with_context(wrong)?;
    let manifest = Manifest::parse(sections.manifest).with_context(wrong)?;

    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("payload".into(), container.payload.to_vec()),
        ("manifest.json".into(), sections.manifest.to_vec()),
        ("site.yaml".into(), sections.site.as_bytes().to_vec()),
        ("certs.json".into(), sections.certs.as_bytes().to_vec()),
    ];
    for (number, (_, secrets)) in manifest.sealed_boxes().zip(&sections.secrets).enumerate() {
        files.push((format!("secrets.{}.age", number + 1), secrets.to_vec()));
    }
    for (number, signature) in container.signatures.iter().enumerate() {
        files.push((format!("sig.{}", number + 1), signature.as_bytes().to_vec()));
    }
    for (number, record) in container.trust.iter().enumerate() {
        files.push((format!("trust.{}.json", number + 1), record.blob.to_vec()));
        for (index, signature) in split_armour(record.signatures)?.iter().enumerate() {
            let name = format!("trust.{}.sig.{}", number + 1, index + 1);
            files.push((name, signature.as_bytes().to_vec()));
        }
    }
    files.push(("allowed_signers".into(), allowed_signers(args, &container)?.into_bytes()));

    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let overwrite: Overwrite = args.force.into();
    for (name, contents) in &files {
        write(&args.dir.join(name), contents, 0o644, overwrite)?;
        say(name)?;
    }
    say(&format!(
        "Check a signature:  cd {}; ssh-keygen -Y verify -f allowed_signers -I signer -n \
         {BUNDLE_NAMESPACE} -s sig.1 < payload",
        args.dir.display()
    ))?;
    for (number, one) in manifest.sealed_boxes().enumerate() {
        say(&format!(
            "Open the secrets of {} (FILE holds `seal` of its .device):  age -d -i FILE secrets.{}.age",
            one.name,
            number + 1
        ))?;
    }
    Ok(())
}

fn allowed_signers(args: &Args, container: &Container<'_>) -> anyhow::Result<String> {
    let mut keys = Vec::new();
    let mut text = String::new();
    if let Some(path) = &args.trust {
        let trust = read_trust(path)?;
        writeln!(text, "# Signers and roots of trust version {}.", trust.version())?;
        keys.extend(trust.current().live_signers().map(|key| (key, BUNDLE_NAMESPACE)));
        keys.extend(trust.current().live_roots().map(|key| (key, TRUST_NAMESPACE)));
        for (key, namespace) in &keys {
            writeln!(text, "signer namespaces=\"{namespace}\" {key}")?;
        }
        return Ok(text);
    }
    writeln!(text, "# The keys that the signatures name: compare them with the owner's.")?;
    for armoured in &container.signatures {
        let key = ParsedSignature::parse(armoured, BUNDLE_NAMESPACE)?.key();
        writeln!(text, "signer namespaces=\"{BUNDLE_NAMESPACE}\" {key}")?;
    }
    Ok(text)
}
