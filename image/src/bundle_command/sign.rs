//! `postern bundle sign`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context as _, bail, ensure};
use bundle::container::assemble;
use bundle::device_key::DevicePublic;
use bundle::manifest::{self, AgentVersion};
use bundle::seal::{self, Secrets};
use bundle::sign::{BoxDraft, Draft, payload};
use bundle::signature::BUNDLE_NAMESPACE;
use bundle::site::{Fault, SecretKind, Site};
use bundle::trust::TrustChain;
use bundle::verify::{Floor, Receiver, Target, authenticate, walk_trust};
use ssh_key::PrivateKey;

use super::files::{note, read_device, read_secrets, read_text, read_trust, say, write};

/// Options of `postern bundle sign`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The site file; certificate files are read relative to it.
    site: PathBuf,
    /// Signing key: an SSH private key, or its .pub when ssh-agent or a security key holds it;
    /// may be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    key: Vec<PathBuf>,
    /// The trust file that boxes judge by; the result must pass it.
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// Public device keys of a box; may be given several times.
    #[arg(long, value_name = "BOX=FILE", value_parser = name_and_path)]
    device: Vec<(String, PathBuf)>,
    /// File of secrets: YAML `name: text`, mode 0600. Without it, NAME.secrets.yaml beside
    /// NAME.site.yaml when it is there.
    #[arg(long, value_name = "FILE")]
    secrets: Option<PathBuf>,
    /// One secret from a file; it counts before the file of secrets.
    #[arg(long, value_name = "NAME=@FILE", value_parser = name_and_at_path)]
    secret: Vec<(String, PathBuf)>,
    /// Why this bundle is made, for people.
    #[arg(long, default_value = "")]
    reason: String,
    /// Where it goes. Without it, NAME.postern beside NAME.site.yaml.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output if it is there already.
    #[arg(long)]
    force: bool,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let output = args.output.clone().unwrap_or_else(|| beside(&args.site, ".postern"));
    ensure!(
        args.force || !output.exists(),
        "{} exists already; say --force to replace it",
        output.display()
    );
    let trust = read_trust(&args.trust)?;
    let yaml = read_text(&args.site)?;
    let site = match Site::parse(&yaml, &args.site.to_string_lossy()) {
        Ok(site) => site,
        Err(faults) => return refuse(&args.site, &faults),
    };
    let certs = read_certs(&site, &args.site)?;
    let secrets = collect_secrets(&site, args)?;
    let mut faults = site.warnings().to_vec();
    let now = SystemTime::now();
    faults.extend(bundle::site::check(&site, &certs, Some(&secrets), now));
    if faults.iter().any(Fault::is_error) {
        return refuse(&args.site, &faults);
    }
    faults.iter().for_each(|fault| note(&fault.to_string()));

    let draft = draft(&site, yaml, certs, &secrets, args, now, &trust)?;
    let payload = payload(&draft)?;
    let mut signatures = Vec::new();
    for key in &args.key {
        signatures.push(sign_with(key, &payload)?);
    }
    let bundle = assemble(&trust.for_bundle(), &payload, &signatures)?;
    for one in &draft.boxes {
        accept(&bundle, &trust, &one.name)
            .context("the new bundle would be refused by its own box; nothing was written")?;
    }
    write(&output, &bundle, 0o644, args.force.into())?;
    say(&format!(
        "{}  site {}, serial {}, {} bytes, for {}",
        output.display(),
        draft.site,
        draft.serial,
        bundle.len(),
        draft.boxes.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ")
    ))
}

/// Judges as a box would, but by the box's name.
pub(super) fn accept(
    bytes: &[u8],
    trust: &TrustChain,
    name: &str,
) -> Result<bundle::verify::VerifiedBundle, bundle::verify::VerifyError> {
    authenticate(bytes, &walk_trust(bytes, trust)?)?.accept(&Receiver {
        target: Target::Named(name),
        floor: Floor::default(),
        agent: AgentVersion::this(),
    })
}

fn draft(
    site: &Site,
    site_yaml: String,
    certs: BTreeMap<String, String>,
    secrets: &Secrets,
    args: &Args,
    now: SystemTime,
    trust: &TrustChain,
) -> anyhow::Result<Draft> {
    let mut devices = BTreeMap::new();
    for (name, path) in &args.device {
        ensure!(
            site.machine(name).is_some(),
            "--device {name}=...: the site has no box {name}, it has {}",
            site.boxes.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        );
        devices.insert(name.as_str(), read_device(path)?);
    }
    let mut boxes = Vec::new();
    for (name, machine) in &site.boxes {
        boxes.push(box_draft(site, name, machine, devices.remove(name.as_str()), secrets)?);
    }
    Ok(Draft {
        site: site.name.to_string(),
        site_yaml,
        certs,
        boxes,
        serial: site.serial.get(),
        trust_epoch: trust.current().min_epoch,
        minimum_agent: AgentVersion::this(),
        created_at: now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs(),
        confirm: manifest::Confirm {
            mode: match site.confirm.mode {
                bundle::site::ConfirmMode::Auto => manifest::ConfirmMode::Auto,
                bundle::site::ConfirmMode::Manual => manifest::ConfirmMode::Manual,
            },
            deadline: u16::try_from(site.confirm.deadline.as_secs())
                .context("the confirm deadline is too long")?,
            require: site.confirm.require.iter().copied().map(probe).collect(),
        },
        reason: args.reason.clone(),
    })
}

fn box_draft(
    site: &Site,
    name: &str,
    machine: &bundle::site::SiteBox,
    device: Option<DevicePublic>,
    secrets: &Secrets,
) -> anyhow::Result<BoxDraft> {
    let mut own = Secrets::new();
    for (secret, kind) in site.secrets_of(name) {
        let value = &secrets[&secret];
        // The password itself never leaves this machine.
        let value = match kind {
            SecretKind::AdminPassword if !value.starts_with(b"$argon2id$") => {
                seal::hash_password(value)?.into_bytes()
            }
            _ => value.clone(),
        };
        own.insert(secret, value);
    }
    if device.is_none() && !own.is_empty() {
        bail!(
            "box {name} has secrets ({}): give its public device keys with --device \
             {name}=FILE.device.pub; a box shows them at first boot, `postern bundle keygen \
             --device {name}` makes some beforehand",
            own.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        );
    }
    let matches = match &machine.hardware {
        bundle::site::HardwareMatch::SerialNumber(serial) => {
            manifest::HardwareMatch::SerialNumber(serial.to_string())
        }
        bundle::site::HardwareMatch::Uuid(uuid) => {
            manifest::HardwareMatch::Uuid(uuid.to_string().to_ascii_lowercase())
        }
        bundle::site::HardwareMatch::Mac(mac) => manifest::HardwareMatch::Mac(mac.to_string()),
        bundle::site::HardwareMatch::Any => manifest::HardwareMatch::Any(true),
    };
    Ok(BoxDraft { name: name.to_owned(), matches, device, secrets: own })
}

fn probe(probe: bundle::site::Probe) -> manifest::Probe {
    match probe {
        bundle::site::Probe::Gateway => manifest::Probe::Gateway,
        bundle::site::Probe::Dns => manifest::Probe::Dns,
        bundle::site::Probe::Stun => manifest::Probe::Stun,
        bundle::site::Probe::Upstream => manifest::Probe::Upstream,
    }
}

fn read_certs(site: &Site, site_file: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let folder = site_file.parent().unwrap_or_else(|| Path::new(""));
    let mut certs = BTreeMap::new();
    for file in site.files() {
        let text = read_text(&folder.join(&file))
            .with_context(|| format!("{} names {file}", site_file.display()))?;
        certs.insert(file, text);
    }
    Ok(certs)
}

/// Every secret that the site refers to, and no other.
fn collect_secrets(site: &Site, args: &Args) -> anyhow::Result<Secrets> {
    let mut wanted = BTreeMap::new();
    for name in site.boxes.keys() {
        wanted.extend(site.secrets_of(name));
    }
    let default = beside(&args.site, ".secrets.yaml");
    let file = args.secrets.clone().or_else(|| default.exists().then(|| default.clone()));
    let mut found = match &file {
        Some(path) => read_secrets(path)?,
        None => Secrets::new(),
    };
    for (name, path) in &args.secret {
        let mut value = super::files::read(path)?;
        // Editors and `echo` end a password's file with a newline that is not part of it.
        if wanted.get(name) != Some(&SecretKind::PrivateKey) && value.ends_with(b"\n") {
            value.pop();
        }
        found.insert(name.clone(), value);
    }
    let missing: Vec<String> = wanted
        .iter()
        .filter(|(name, _)| !found.contains_key(*name))
        .map(|(name, kind)| format!("{name} ({kind})"))
        .collect();
    ensure!(
        missing.is_empty(),
        "no value for {}; write them into {} (mode 0600) or give each with --secret NAME=@FILE",
        missing.join(", "),
        file.as_ref().unwrap_or(&default).display()
    );
    found.retain(|name, _| {
        let used = wanted.contains_key(name);
        if !used {
            note(&format!("secret {name} is left out: the site does not refer to it"));
        }
        used
    });
    Ok(found)
}

/// Signs with a key in a file, or has `ssh-keygen` do it: encrypted keys, ssh-agent, hardware.
fn sign_with(key: &Path, payload: &[u8]) -> anyhow::Result<String> {
    let private = PrivateKey::from_openssh(read_text(key)?);
    if let Ok(private) = private
        && !private.is_encrypted()
        && let Ok(signature) = bundle::signature::sign(&private, BUNDLE_NAMESPACE, payload)
    {
        return Ok(signature);
    }
    let mut child = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", BUNDLE_NAMESPACE, "-f"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run ssh-keygen, which this key needs (package openssh-client)")?;
    let mut input = child.stdin.take().context("ssh-keygen has no standard input")?;
    std::io::Write::write_all(&mut input, payload)?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ssh-keygen could not sign with {}", key.display());
    Ok(String::from_utf8(output.stdout)?)
}

fn refuse(site: &Path, faults: &[Fault]) -> anyhow::Result<()> {
    faults.iter().for_each(|fault| note(&format!("{fault}\n")));
    let errors = faults.iter().filter(|fault| fault.is_error()).count();
    let s = if errors == 1 { "" } else { "s" };
    bail!("{}: {errors} error{s}; nothing was signed", site.display())
}

/// `dir/octavio.site.yaml` and `.postern` give `dir/octavio.postern`.
fn beside(site: &Path, suffix: &str) -> PathBuf {
    let name = site.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".site.yaml").or_else(|| name.strip_suffix(".yaml"));
    site.with_file_name(format!("{}{suffix}", stem.unwrap_or(&name)))
}

fn name_and_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.into()))
        }
        _ => Err("write NAME=FILE".to_owned()),
    }
}

fn name_and_at_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once("=@") {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.into()))
        }
        _ => Err("write NAME=@FILE; a secret on the command line would be seen by others".into()),
    }
}
