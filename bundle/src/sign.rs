//! Makes a bundle: sections, manifest, signatures.
//!
//! The site file has been checked by then. Signing is a step of its own ([`payload`], signatures,
//! [`crate::container::assemble`]), so that a key in hardware or at another desk can take part.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::container::{FramingError, Sections};
use crate::device_key::DevicePublic;
use crate::manifest::{
    AgentVersion, BoxEntry, Confirm, FORMAT, HardwareMatch, Manifest, ManifestError, SectionHashes,
};
use crate::seal::{self, SealError, Secrets};
use crate::verify::hex;

/// Why no payload could be made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DraftError {
    /// A value that every box would refuse.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A part above its limit.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// Encryption failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A box has secrets and no key to seal them to.
    #[error("box {name} has secrets, but no device key is given to seal them to")]
    NoSealKey {
        /// The box.
        name: String,
    },
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    Randomness,
}

/// What goes into a bundle.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The site's name.
    pub site: String,
    /// The site file as written.
    pub site_yaml: String,
    /// PEM text by the path that the site file gives it.
    pub certs: BTreeMap<String, String>,
    /// The boxes in the order of the site file.
    pub boxes: Vec<BoxDraft>,
    /// The bundle's number.
    pub serial: u64,
    /// Epoch of trust.
    pub trust_epoch: u32,
    /// Oldest agent that understands it.
    pub minimum_agent: AgentVersion,
    /// Seconds since 1970.
    pub created_at: u64,
    /// How boxes decide that it works.
    pub confirm: Confirm,
    /// Why it was made, for people.
    pub reason: String,
}

/// One box and what it alone may know.
#[derive(Clone, Debug)]
pub struct BoxDraft {
    /// Its name in the site file.
    pub name: String,
    /// How a machine knows that it is this box.
    pub matches: HardwareMatch,
    /// Its public keys once known.
    pub device: Option<DevicePublic>,
    /// What its own part of the site refers to.
    pub secrets: Secrets,
}

/// Makes the payload: what the signatures are over.
///
/// # Errors
///
/// Returns an error for a draft that no box would take.
pub fn payload(draft: &Draft) -> Result<Vec<u8>, DraftError> {
    let certs = serde_json::to_string(&draft.certs).expect("paths and texts are always JSON");
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| DraftError::Randomness)?;
    let mut boxes = Vec::new();
    let mut secrets = Vec::new();
    for one in &draft.boxes {
        match &one.device {
            Some(device) => secrets.push(seal::seal(&one.secrets, &device.seal)?),
            None if one.secrets.is_empty() => {}
            None => return Err(DraftError::NoSealKey { name: one.name.clone() }),
        }
        boxes.push(BoxEntry {
            name: one.name.clone(),
            matches: one.matches.clone(),
            seal_key: one.device.as_ref().map(|device| device.seal.fingerprint()),
        });
    }
    let sha256 = |bytes: &[u8]| hex(&Sha256::digest(bytes));
    let manifest = Manifest {
        format: FORMAT,
        bundle_id: hex(&id),
        site: draft.site.clone(),
        boxes,
        serial: draft.serial,
        trust_epoch: draft.trust_epoch,
        minimum_agent: draft.minimum_agent,
        created_at: draft.created_at,
        confirm: draft.confirm.clone(),
        sha256: SectionHashes {
            site: sha256(draft.site_yaml.as_bytes()),
            certs: sha256(certs.as_bytes()),
            secrets: secrets.iter().map(|one| sha256(one)).collect(),
        },
        reason: draft.reason.clone(),
    };
    manifest.check()?;
    let manifest = serde_json::to_vec_pretty(&manifest).expect("a manifest is always JSON");
    let sections = Sections {
        manifest: &manifest,
        site: &draft.site_yaml,
        certs: &certs,
        secrets: secrets.iter().map(Vec::as_slice).collect(),
    };
    Ok(sections.to_payload()?)
}
