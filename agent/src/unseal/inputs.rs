//! What a judgement stands on besides the bundle: read-only files and credentials.

use std::fs;
use std::io;
use std::path::Path;

use bundle::device_key::SealKey;
use bundle::trust::TrustChain;
use bundle::verify::{Floor, Hardware};

use super::judge::Refusal;
use crate::message::{LKG_FILE, LastKnownGood, TRUST_FILE};

/// The owner's first trust blob: part of the image, below verity.
const IMAGE_TRUST: &str = "/usr/lib/postern/trust";

/// The inputs, parsed.
#[derive(Debug)]
pub(super) struct Inputs {
    /// Trust as far as it was walked before. Opening the confirmed bundle again does not need it,
    /// so a damaged trust file keeps no box from coming up.
    pub(super) trust: Result<TrustChain, Refusal>,
    /// The confirmed generation.
    pub(super) confirmed: Option<LastKnownGood>,
    /// What this machine is.
    pub(super) hardware: Hardware,
    /// Opens this box's secrets; `None` before the device keys are in place.
    pub(super) seal: Option<SealKey>,
}

impl Inputs {
    /// Reads them from where they lie on the box.
    ///
    /// # Errors
    ///
    /// Returns what is missing or damaged.
    pub(super) fn read() -> Result<Self, Refusal> {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
        let credentials = credentials.as_deref().map(Path::new);
        let net = Path::new("/sys/class/net");
        Self::read_from(
            Path::new(IMAGE_TRUST),
            Path::new(TRUST_FILE),
            Path::new(LKG_FILE),
            credentials,
            net,
        )
    }

    pub(super) fn read_from(
        image_trust: &Path,
        stored_trust: &Path,
        lkg: &Path,
        credentials: Option<&Path>,
        net: &Path,
    ) -> Result<Self, Refusal> {
        let not_ready = |reason: String| Refusal { code: "not-ready", reason };
        let wrong = |path: &Path, error: &dyn std::fmt::Display| {
            not_ready(format!("this box cannot judge bundles: {}: {error}", path.display()))
        };
        let trust = || {
            let image = fs::read(image_trust).map_err(|error| wrong(image_trust, &error))?;
            let anchor =
                TrustChain::anchored(&image).map_err(|error| wrong(image_trust, &error))?;
            let stored =
                read_optional(stored_trust).map_err(|error| wrong(stored_trust, &error))?;
            anchor
                .with_stored(&stored.unwrap_or_default())
                .map_err(|error| wrong(stored_trust, &error))
        };
        let confirmed = read_optional(lkg).map_err(|error| wrong(lkg, &error))?;
        let confirmed = confirmed
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(|error| wrong(lkg, &error))?;

        let credential = |name: &str| -> Result<Option<String>, Refusal> {
            let Some(folder) = credentials else { return Ok(None) };
            let path = folder.join(name);
            let bytes = read_optional(&path).map_err(|error| wrong(&path, &error))?;
            Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
        };
        let seal = match credential("seal")? {
            Some(text) => Some(text.parse::<SealKey>().map_err(|error| {
                not_ready(format!("this box's device keys are damaged: {error}"))
            })?),
            None => None,
        };
        let hardware = Hardware {
            serial_number: credential("dmi-serial")?,
            uuid: credential("dmi-uuid")?,
            macs: match credential("macs")? {
                Some(list) => list.split_whitespace().map(str::to_owned).collect(),
                None => macs_below(net),
            },
            seal_key: seal.as_ref().map(|seal| seal.public().fingerprint()),
        };
        Ok(Self { trust: trust(), confirmed, hardware, seal })
    }

    /// The lower bound for serials.
    pub(super) fn floor(&self) -> Floor {
        self.confirmed.as_ref().map_or_else(Floor::default, |confirmed| Floor {
            serial: confirmed.floor,
            confirmed: Some((confirmed.generation.serial, confirmed.generation.digest.clone())),
        })
    }
}

fn read_optional(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// MAC addresses of the NICs that are seen here, sorted.
fn macs_below(net: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(net) else { return Vec::new() };
    let mut macs: Vec<String> = entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("address")).ok())
        .map(|mac| mac.trim().to_ascii_lowercase())
        .filter(|mac| mac.len() == 17 && mac != "00:00:00:00:00:00")
        .collect();
    macs.sort();
    macs
}
