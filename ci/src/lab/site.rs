//! The reference edge's site, made into a signed bundle with the same commands a person uses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::certificates::Authority;
use super::topology::InnerPath;
use crate::artifacts;

/// The folder with everything that belongs to the site.
#[derive(Debug)]
pub struct SiteFiles {
    folder: PathBuf,
    postern: PathBuf,
    /// The TURN password that the bundle carries.
    pub turn_password: String,
}

/// What differs between the bundles of one site.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// The bundle's serial.
    pub serial: u64,
    /// Whether the conference is a declared peer.
    pub inner: InnerPath,
}

impl SiteFiles {
    /// Writes certificates, keys and secrets of a fresh site into `folder`.
    ///
    /// # Errors
    ///
    /// Shows what `postern bundle` said.
    pub fn prepare(
        folder: &Path,
        postern: &Path,
        public: &Authority,
        private: &Authority,
    ) -> Result<Self> {
        fs::create_dir_all(folder.join("certs"))?;
        let pair = public.issue(&["vcse.octavio.com", "cmsweb.octavio.com", "octavio.com"])?;
        fs::write(folder.join("certs/vcse.pem"), &pair.chain)?;
        fs::write(folder.join("certs/inside-ca.pem"), private.certificate())?;
        let turn_password = random_word()?;
        let secrets = serde_json::json!({
            "admin-password": random_word()?,
            "turn-password": turn_password,
            "vcse-key": pair.key,
        });
        let site = Self { folder: folder.to_owned(), postern: postern.to_owned(), turn_password };
        // JSON is YAML.
        write_private(&site.folder.join("octavio.secrets.yaml"), &secrets.to_string())?;
        for file in artifacts::signer(postern)? {
            let name = file.file_name().context("a file")?.to_owned();
            fs::copy(&file, site.folder.join(name))?;
        }
        site.postern(&["bundle", "keygen", "--device", "vcse"])?;
        Ok(site)
    }

    /// Writes the variant's site file and signs it; returns the bundle.
    ///
    /// # Errors
    ///
    /// Shows what `postern bundle sign` said.
    pub fn sign(&self, variant: Variant) -> Result<PathBuf> {
        self.write_site(variant)?;
        let bundle = self.folder.join(format!("octavio-{}.postern", variant.serial));
        self.sign_current("signer", &bundle)?;
        Ok(bundle)
    }

    /// Signs the reference site under `serial` with the key `signer` of this folder.
    ///
    /// # Errors
    ///
    /// Shows what `postern bundle sign` said.
    pub fn sign_as(&self, signer: &str, serial: u64) -> Result<PathBuf> {
        self.write_site(Variant { serial, inner: InnerPath::DeclaredPeer })?;
        let bundle = self.folder.join(format!("octavio-{serial}-{signer}.postern"));
        self.sign_current(signer, &bundle)?;
        Ok(bundle)
    }

    /// Signs the site file as it lies in the folder.
    ///
    /// # Errors
    ///
    /// Shows what `postern bundle sign` said.
    pub fn sign_current(&self, signer: &str, bundle: &Path) -> Result<()> {
        let out = bundle.to_str().context("a path in UTF-8")?;
        let trust = format!("{signer}.trust");
        let words = [
            "bundle",
            "sign",
            "octavio.site.yaml",
            "--key",
            signer,
            "--trust",
            &trust,
            "--device",
            "vcse=vcse.device.pub",
            "--secrets",
            "octavio.secrets.yaml",
            "-o",
            out,
        ];
        self.postern(&words).map(drop)
    }

    fn write_site(&self, variant: Variant) -> Result<()> {
        fs::write(self.folder.join("octavio.site.yaml"), site_text(variant)?)?;
        Ok(())
    }

    /// The trust blob that goes into the image.
    #[must_use]
    pub fn trust(&self) -> PathBuf {
        self.folder.join("signer.trust")
    }

    /// The box's private device keys.
    #[must_use]
    pub fn device_key(&self) -> PathBuf {
        self.folder.join("vcse.device")
    }

    /// The same keys as `postern-agent device` leaves them on a box: `seal`, `identity` and what
    /// says where they come from.
    ///
    /// # Errors
    ///
    /// Says when the file is not a pair of device keys.
    pub fn device_files(&self) -> Result<Vec<PathBuf>> {
        let text = fs::read_to_string(self.device_key())?;
        let pair: serde_json::Value = serde_json::from_str(&text)?;
        let folder = self.folder.join("device");
        fs::create_dir_all(&folder)?;
        let seal = pair["seal"].as_str().context("no seal key")?;
        let identity = pair["identity"].as_str().context("no identity key")?;
        let mut files = Vec::new();
        for (name, text) in [("seal", seal), ("identity", identity), ("origin", "flashed")] {
            let file = folder.join(name);
            write_private(&file, &format!("{}\n", text.trim_end()))?;
            files.push(file);
        }
        let public = folder.join("device.pub");
        fs::copy(self.folder.join("vcse.device.pub"), &public)?;
        files.push(public);
        Ok(files)
    }

    /// The folder of it all.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The box's serial number, as its firmware would say it.
    #[must_use]
    pub fn hardware_serial(&self) -> &'static str {
        "7RQ2X13"
    }

    /// Runs `postern` in the site's folder and returns what it printed.
    ///
    /// # Errors
    ///
    /// Shows what it said when it fails.
    pub fn postern(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(&self.postern).args(words).current_dir(&self.folder).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("postern {}: {}", words.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The reference site file with the variant's differences.
fn site_text(variant: Variant) -> Result<String> {
    let text = fs::read_to_string(artifacts::repository().join("docs/octavio.site.yaml"))?;
    let serial = format!("serial: {} ", variant.serial);
    let mut edits = vec![
        // The name is asked of the split DNS, so that the split is seen.
        ("addresses: [172.16.85.180] ", "# "),
        ("time: { servers: [10.88.246.210] }", "time: { servers: [time.octavio.com] }"),
        ("serial: 7 ", serial.as_str()),
        // What the reference leaves off and clients of the lab try.
        ("# tcp-relay: true ", "tcp-relay: true "),
    ];
    if variant.inner == InnerPath::TurnOnly {
        edits.push(("allow: [172.16.85.180/32]", "allow: []"));
    }
    let mut edited = text;
    for (from, to) in edits {
        ensure!(edited.contains(from), "docs/octavio.site.yaml has no `{from}` to vary");
        edited = edited.replacen(from, to, 1);
    }
    Ok(edited)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

fn random_word() -> Result<String> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
