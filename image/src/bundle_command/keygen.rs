//! `postern bundle keygen`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bundle::device_key::{DeviceKeys, generate_ssh_key};
use bundle::signature::SignerKey;
use bundle::trust::TrustBlob;
use ssh_key::{LineEnding, PrivateKey, PublicKey};

use super::files::{Overwrite, read_text, say, with_suffix, write};

/// Options of `postern bundle keygen`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the new files: NAME and NAME.pub (the signing key, as OpenSSH writes it), NAME.trust.
    #[arg(default_value = "postern", conflicts_with = "device")]
    name: PathBuf,
    /// Take this SSH key (private or .pub; ed25519, ecdsa-p256 or a security key) instead of
    /// making one; only NAME.trust is written.
    #[arg(long, value_name = "FILE", conflicts_with = "device")]
    key: Option<PathBuf>,
    /// Make a box's device keys instead: BOX.device (private, for `postern run` or a provision
    /// partition) and BOX.device.pub (for `postern bundle sign --device`).
    #[arg(long, value_name = "BOX")]
    device: Option<PathBuf>,
    /// Replace files that are there already.
    #[arg(long)]
    force: bool,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let overwrite = args.force.into();
    match (&args.device, &args.key) {
        (Some(name), _) => device(name, overwrite),
        (None, Some(key)) => trust(&args.name, &read_key(key)?, overwrite),
        (None, None) => signer(&args.name, overwrite),
    }
}

fn signer(name: &Path, overwrite: Overwrite) -> anyhow::Result<()> {
    let comment = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let key = generate_ssh_key(&comment)?;
    let public = key.public_key().to_openssh()?;
    write(name, key.to_openssh(LineEnding::LF)?.as_bytes(), 0o600, overwrite)?;
    write(&with_suffix(name, ".pub"), format!("{public}\n").as_bytes(), 0o644, overwrite)?;
    say(&format!("{}  signing key; whoever has it can sign bundles", name.display()))?;
    trust(name, key.public_key(), overwrite)
}

fn trust(name: &Path, key: &PublicKey, overwrite: Overwrite) -> anyhow::Result<()> {
    let key = SignerKey::new(key.clone())?;
    let fingerprint = key.fingerprint();
    // An image's first blob is trusted for where it lies, so nobody signs it.
    let record = TrustBlob::first(key).to_record(&[])?;
    let path = with_suffix(name, ".trust");
    write(&path, &record, 0o644, overwrite)?;
    say(&format!("{}  trust version 1; root and signer: {fingerprint}", path.display()))
}

fn device(name: &Path, overwrite: Overwrite) -> anyhow::Result<()> {
    let comment = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let keys = DeviceKeys::generate(&comment)?;
    let public = keys.public();
    let private_path = with_suffix(name, ".device");
    let public_path = with_suffix(name, ".device.pub");
    write(&private_path, keys.to_file()?.as_bytes(), 0o600, overwrite)?;
    write(&public_path, public.to_string().as_bytes(), 0o644, overwrite)?;
    say(&format!("{}  private device keys of one box", private_path.display()))?;
    say(&format!(
        "{}  public halves; seal {}, identity {}",
        public_path.display(),
        public.seal.fingerprint(),
        public.identity_fingerprint()
    ))
}

fn read_key(path: &Path) -> anyhow::Result<PublicKey> {
    let text = read_text(path)?;
    if let Ok(private) = PrivateKey::from_openssh(&text) {
        return Ok(private.public_key().clone());
    }
    PublicKey::from_openssh(&text)
        .with_context(|| format!("{} is not an SSH key in OpenSSH's format", path.display()))
}
