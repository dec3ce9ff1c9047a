//! The verdict on a bundle, in an order that parses nothing before its signatures hold; the first
//! failure stops.
//!
//! 1. [`walk_trust`]: size and framing, then the trust walk. What it returns is to be stored at
//!    once, whatever comes after, so that a revocation sticks.
//! 2. [`authenticate`]: signatures by enough trusted signers, then the manifest. Or [`reopen`], at
//!    boot: the digest is the one confirmed before, signers are not judged again, so that
//!    revoking the signer of the running bundle cannot lock a box out.
//! 3. [`AuthenticBundle::accept`]: this box, its agent, trust epoch, serial, section hashes.
//! 4. [`VerifiedBundle::secrets`], and parsing the site, which is the caller's work.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::container::{Container, FramingError, Sections};
use crate::device_key::SealKey;
use crate::manifest::{AgentVersion, BoxEntry, HardwareMatch, Manifest, ManifestError};
use crate::seal::{self, SealError, Secrets};
use crate::signature::{BUNDLE_NAMESPACE, Fingerprint, ParsedSignature, SignatureError};
use crate::trust::{TrustBlob, TrustChain, TrustError};

/// Why a bundle was refused. Every variant is final for these bytes on this box: it keeps the
/// bundle that it has.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// The frame is wrong.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// The trust walk failed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A signature does not hold.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Nobody we trust signed.
    #[error("signed by {found}, which trust version {version} does not know as a signer")]
    UnknownSigner {
        /// The first such signer.
        found: Fingerprint,
        /// The trust in force.
        version: u32,
    },
    /// Signed by a key that no longer counts.
    #[error("signed by {found}, which trust version {version} has revoked")]
    Revoked {
        /// The key.
        found: Fingerprint,
        /// The trust in force.
        version: u32,
    },
    /// Too few signers.
    #[error("signed by {found} of the {needed} signers that trust version {version} asks for")]
    Threshold {
        /// Distinct trusted signers.
        found: usize,
        /// How many are needed.
        needed: usize,
        /// The trust in force.
        version: u32,
    },
    /// The payload is not the one confirmed before.
    #[error("digest {found} is not the confirmed {expected}")]
    Digest {
        /// Of this payload.
        found: String,
        /// The one wanted.
        expected: String,
    },
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// For other machines.
    #[error("for another box: it is for {wanted}; this is {here}")]
    OtherBox {
        /// What the bundle matches.
        wanted: String,
        /// What this machine is.
        here: String,
    },
    /// Two boxes of the site match this machine.
    #[error("boxes {first} and {second} of the bundle both match this machine")]
    Ambiguous {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// Sealed to other device keys.
    #[error("box {name} is sealed to device key {wanted}, this box has {here}")]
    SealKey {
        /// The box.
        name: String,
        /// In the manifest.
        wanted: Fingerprint,
        /// Ours.
        here: Fingerprint,
    },
    /// Needs a newer agent.
    #[error("needs agent {needed} or newer, this is {here}")]
    Agent {
        /// At least.
        needed: AgentVersion,
        /// Ours.
        here: AgentVersion,
    },
    /// Made under trust that no longer counts.
    #[error("trust epoch {found} is below {needed}, the oldest that still counts")]
    Epoch {
        /// The bundle's.
        found: u32,
        /// What trust asks for.
        needed: u32,
    },
    /// Not newer than what was confirmed.
    #[error("serial {offered} is not above the floor {floor}: sign it again with a higher serial")]
    BelowFloor {
        /// The bundle's.
        offered: u64,
        /// The box's.
        floor: u64,
    },
    /// Two different bundles under one serial: somebody signs twice.
    #[error("serial {serial} is confirmed with digest {confirmed}, this one has {offered}")]
    SameSerial {
        /// The serial of both.
        serial: u64,
        /// Digest in force.
        confirmed: String,
        /// Digest of this bundle.
        offered: String,
    },
    /// A section is not what the manifest says.
    #[error("section {section} does not have the sha256 that the manifest gives")]
    SectionHash {
        /// Which.
        section: &'static str,
    },
    /// More or fewer secrets than boxes.
    #[error("{found} secrets sections for {needed} boxes with a seal key")]
    SecretsCount {
        /// Sections.
        found: usize,
        /// Boxes with a seal key.
        needed: usize,
    },
}

impl VerifyError {
    /// A word for programs that does not change.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Framing(FramingError::Unsigned) => "unsigned",
            Self::Framing(FramingError::CutShort { .. }) => "cut-short",
            Self::Framing(_) => "malformed",
            Self::Trust(TrustError::Gap { .. }) => "trust-gap",
            Self::Trust(_) => "trust",
            Self::Signature(SignatureError::Mismatch { .. }) => "tampered",
            Self::Signature(SignatureError::UserPresence { .. }) => "user-not-present",
            Self::Signature(SignatureError::UserVerification { .. }) => "user-not-verified",
            Self::Signature(_) => "signature",
            Self::UnknownSigner { .. } => "unknown-signer",
            Self::Revoked { .. } => "revoked-signer",
            Self::Threshold { .. } => "too-few-signers",
            Self::Digest { .. } => "other-digest",
            Self::Manifest(_) => "manifest",
            Self::OtherBox { .. } => "other-box",
            Self::Ambiguous { .. } => "ambiguous-box",
            Self::SealKey { .. } => "other-seal-key",
            Self::Agent { .. } => "agent-too-old",
            Self::Epoch { .. } => "trust-epoch",
            Self::BelowFloor { .. } => "below-serial-floor",
            Self::SameSerial { .. } => "same-serial-other-digest",
            Self::SectionHash { .. } | Self::SecretsCount { .. } => "section-hash",
        }
    }
}

/// Walks trust on with what the bundle carries; store what comes back when it is newer.
///
/// # Errors
///
/// Returns an error of the frame or of the walk.
pub fn walk_trust(bytes: &[u8], trust: &TrustChain) -> Result<TrustChain, VerifyError> {
    Ok(trust.extended(&Container::parse(bytes)?.trust)?)
}

/// Checks the signatures against `trust` (after [`walk_trust`]), then reads the manifest.
///
/// # Errors
///
/// Returns the first thing that is wrong.
pub fn authenticate(bytes: &[u8], trust: &TrustChain) -> Result<AuthenticBundle, VerifyError> {
    let container = Container::parse(bytes)?;
    let signers = judge_signatures(&container, trust.current())?;
    let trust = JudgedUnder { version: trust.version(), min_epoch: trust.current().min_epoch };
    AuthenticBundle::new(container.payload, signers, Some(trust))
}

/// Opens a bundle that was confirmed before under `digest`; signers are not judged again.
///
/// # Errors
///
/// Returns [`VerifyError::Digest`] for any other payload.
pub fn reopen(bytes: &[u8], digest: &str) -> Result<AuthenticBundle, VerifyError> {
    let container = Container::parse(bytes)?;
    let found = self::digest(container.payload);
    if found != digest {
        return Err(VerifyError::Digest { found, expected: digest.to_owned() });
    }
    let signers = container
        .signatures
        .iter()
        .filter_map(|one| ParsedSignature::parse(one, BUNDLE_NAMESPACE).ok())
        .map(|signature| signature.signer().clone())
        .collect();
    AuthenticBundle::new(container.payload, signers, None)
}

/// A bundle whose signatures hold (or whose digest was confirmed before) and whose manifest is
/// well formed. Whether this box may take it is not known yet.
#[derive(Clone, Debug)]
pub struct AuthenticBundle {
    manifest: Manifest,
    payload: Vec<u8>,
    digest: String,
    signers: Vec<Fingerprint>,
    trust: Option<JudgedUnder>,
}

#[derive(Clone, Copy, Debug)]
struct JudgedUnder {
    version: u32,
    min_epoch: u32,
}

impl AuthenticBundle {
    fn new(
        payload: &[u8],
        signers: Vec<Fingerprint>,
        trust: Option<JudgedUnder>,
    ) -> Result<Self, VerifyError> {
        let sections = Sections::parse(payload)?;
        let manifest = Manifest::parse(sections.manifest)?;
        let digest = digest(payload);
        Ok(Self { manifest, payload: payload.to_vec(), digest, signers, trust })
    }

    /// What it says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Fingerprints of the trusted keys that signed it.
    #[must_use]
    pub fn signers(&self) -> &[Fingerprint] {
        &self.signers
    }

    /// SHA-256 of its payload, lower-case hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Decides whether `receiver` takes it.
    ///
    /// # Errors
    ///
    /// Returns the first reason against it.
    pub fn accept(self, receiver: &Receiver<'_>) -> Result<VerifiedBundle, VerifyError> {
        let index = receiver.target.find(&self.manifest)?;
        if self.manifest.minimum_agent > receiver.agent {
            return Err(VerifyError::Agent {
                needed: self.manifest.minimum_agent,
                here: receiver.agent,
            });
        }
        if let Some(trust) = self.trust
            && self.manifest.trust_epoch < trust.min_epoch
        {
            return Err(VerifyError::Epoch {
                found: self.manifest.trust_epoch,
                needed: trust.min_epoch,
            });
        }
        let unchanged = receiver.floor.admit(self.manifest.serial, &self.digest)?;
        let sections = Sections::parse(&self.payload)?;
        check_hashes(&self.manifest, &sections)?;
        let sealed = self.manifest.boxes[index].seal_key.is_some().then(|| {
            let before = &self.manifest.boxes[..index];
            before.iter().filter(|entry| entry.seal_key.is_some()).count()
        });
        let (site, certs) = (sections.site.to_owned(), sections.certs.to_owned());
        let secrets = sealed.map(|at| sections.secrets[at].to_vec());
        Ok(VerifiedBundle { bundle: self, index, unchanged, site, certs, secrets })
    }
}

/// Who is asked to take a bundle.
#[derive(Clone, Debug)]
pub struct Receiver<'a> {
    /// Which machine it is.
    pub target: Target<'a>,
    /// What it has confirmed.
    pub floor: Floor,
    /// Its agent.
    pub agent: AgentVersion,
}

/// How the box of the manifest is found.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// By what the machine is.
    Hardware(&'a Hardware),
    /// By name: for an engineer's machine, which is not the box.
    Named(&'a str),
}

/// What a machine knows of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hardware {
    /// SMBIOS system serial number.
    pub serial_number: Option<String>,
    /// SMBIOS system UUID.
    pub uuid: Option<String>,
    /// Permanent MAC addresses of its NICs.
    pub macs: Vec<String>,
    /// Fingerprint of its seal key.
    pub seal_key: Option<Fingerprint>,
}

impl Hardware {
    fn is(&self, wanted: &HardwareMatch) -> bool {
        let same = |here: &str, wanted: &str| here.trim().eq_ignore_ascii_case(wanted);
        match wanted {
            HardwareMatch::SerialNumber(serial) => {
                self.serial_number.as_deref().is_some_and(|here| here.trim() == serial)
            }
            HardwareMatch::Uuid(uuid) => self.uuid.as_deref().is_some_and(|here| same(here, uuid)),
            HardwareMatch::Mac(mac) => self.macs.iter().any(|here| same(here, mac)),
            HardwareMatch::Any(any) => *any,
        }
    }

    fn describe(&self) -> String {
        let or_none = |text: &Option<String>| {
            text.as_deref()
                .map(str::trim)
                .filter(|text| !text.is_empty())
                .unwrap_or("none")
                .to_owned()
        };
        format!(
            "serial-number {}, uuid {}, macs {}",
            or_none(&self.serial_number),
            or_none(&self.uuid),
            if self.macs.is_empty() { "none".to_owned() } else { self.macs.join(" ") }
        )
    }
}

impl Target<'_> {
    fn find(self, manifest: &Manifest) -> Result<usize, VerifyError> {
        let other = |here: String| {
            let wanted: Vec<_> = manifest
                .boxes
                .iter()
                .map(|entry| format!("{} ({})", entry.name, entry.matches))
                .collect();
            VerifyError::OtherBox { wanted: wanted.join(", "), here }
        };
        let hardware = match self {
            Self::Named(name) => {
                let found = manifest.boxes.iter().position(|entry| entry.name == name);
                return found.ok_or_else(|| other(name.to_owned()));
            }
            Self::Hardware(hardware) => hardware,
        };
        let mut matching =
            manifest.boxes.iter().enumerate().filter(|(_, entry)| hardware.is(&entry.matches));
        let (index, entry) = matching.next().ok_or_else(|| other(hardware.describe()))?;
        if let Some((_, second)) = matching.next() {
            return Err(VerifyError::Ambiguous {
                first: entry.name.clone(),
                second: second.name.clone(),
            });
        }
        if let (Some(wanted), Some(here)) = (&entry.seal_key, &hardware.seal_key)
            && wanted != here
        {
            return Err(VerifyError::SealKey {
                name: entry.name.clone(),
                wanted: wanted.clone(),
                here: here.clone(),
            });
        }
        Ok(index)
    }
}

/// What a box has confirmed: the lower bound for serials.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Floor {
    /// Serials at or below this are refused; 0 refuses none.
    pub serial: u64,
    /// Serial and digest of the bundle in force, which is taken again.
    pub confirmed: Option<(u64, String)>,
}

impl Floor {
    /// Returns whether the bundle is the one in force.
    fn admit(&self, serial: u64, digest: &str) -> Result<bool, VerifyError> {
        match &self.confirmed {
            Some((confirmed, other)) if *confirmed == serial => {
                if other == digest {
                    return Ok(true);
                }
                Err(VerifyError::SameSerial {
                    serial,
                    confirmed: other.clone(),
                    offered: digest.to_owned(),
                })
            }
            _ if serial <= self.serial => {
                Err(VerifyError::BelowFloor { offered: serial, floor: self.serial })
            }
            _ => Ok(false),
        }
    }
}

/// A bundle that this box may take. Only this module makes one.
#[derive(Clone, Debug)]
pub struct VerifiedBundle {
    bundle: AuthenticBundle,
    index: usize,
    unchanged: bool,
    site: String,
    certs: String,
    secrets: Option<Vec<u8>>,
}

impl VerifiedBundle {
    /// What it says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.bundle.manifest
    }

    /// Its entry for this box.
    #[must_use]
    pub fn target(&self) -> &BoxEntry {
        &self.bundle.manifest.boxes[self.index]
    }

    /// SHA-256 of its payload, lower-case hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.bundle.digest
    }

    /// Fingerprints of the trusted keys that signed it.
    #[must_use]
    pub fn signers(&self) -> &[Fingerprint] {
        &self.bundle.signers
    }

    /// Version of the trust it was judged under; `None` when it was reopened by its digest.
    #[must_use]
    pub fn trust_version(&self) -> Option<u32> {
        self.bundle.trust.map(|trust| trust.version)
    }

    /// Whether it is the very bundle in force.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.unchanged
    }

    /// The site file.
    #[must_use]
    pub fn site(&self) -> &str {
        &self.site
    }

    /// The certificate files by the path that the site file gives them.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError::Certs`].
    pub fn certs(&self) -> Result<BTreeMap<String, String>, OpenError> {
        serde_json::from_str(&self.certs).map_err(|_| OpenError::Certs)
    }

    /// This box's secrets; none when the bundle was made without its seal key.
    ///
    /// # Errors
    ///
    /// Returns [`OpenError::Secrets`].
    pub fn secrets(&self, with: &SealKey) -> Result<Secrets, OpenError> {
        match &self.secrets {
            None => Ok(Secrets::new()),
            Some(sealed) => Ok(seal::open(sealed, with)?),
        }
    }
}

/// Why a verified bundle could not be opened. It never repeats a secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// Section certs is not JSON of paths and PEM.
    #[error("section certs is not JSON of paths and PEM text")]
    Certs,
    /// The secrets do not open.
    #[error(transparent)]
    Secrets(#[from] SealError),
}

fn judge_signatures(
    container: &Container<'_>,
    trust: &TrustBlob,
) -> Result<Vec<Fingerprint>, VerifyError> {
    let mut signatures = Vec::new();
    for armoured in &container.signatures {
        signatures.push(ParsedSignature::parse(armoured, BUNDLE_NAMESPACE)?);
    }
    let mut signers: Vec<Fingerprint> = Vec::new();
    let mut stranger = None;
    for signature in &signatures {
        // A signature by a key that does not count is no reason to refuse what others signed:
        // during a change of keys, boxes with the old trust and with the new one both read it.
        match trust.signer_of(signature) {
            Some(signer) => {
                signature.verify(container.payload, signer.require_uv)?;
                if !signers.contains(signature.signer()) {
                    signers.push(signature.signer().clone());
                }
            }
            None => stranger = stranger.or_else(|| Some(signature.signer().clone())),
        }
    }
    let version = trust.version;
    match stranger {
        _ if signers.len() >= trust.threshold => Ok(signers),
        Some(found) if signers.is_empty() && trust.revoked.contains(&found) => {
            Err(VerifyError::Revoked { found, version })
        }
        Some(found) if signers.is_empty() => Err(VerifyError::UnknownSigner { found, version }),
        _ => Err(VerifyError::Threshold { found: signers.len(), needed: trust.threshold, version }),
    }
}

fn check_hashes(manifest: &Manifest, sections: &Sections<'_>) -> Result<(), VerifyError> {
    let check = |section, bytes: &[u8], expected: &str| {
        if hex(&Sha256::digest(bytes)) == expected {
            Ok(())
        } else {
            Err(VerifyError::SectionHash { section })
        }
    };
    let hashes = &manifest.sha256;
    check("site", sections.site.as_bytes(), &hashes.site)?;
    check("certs", sections.certs.as_bytes(), &hashes.certs)?;
    if sections.secrets.len() != hashes.secrets.len() {
        return Err(VerifyError::SecretsCount {
            found: sections.secrets.len(),
            needed: hashes.secrets.len(),
        });
    }
    for (secrets, hash) in sections.secrets.iter().zip(&hashes.secrets) {
        check("secrets", secrets, hash)?;
    }
    Ok(())
}

/// SHA-256 over a payload in lower-case hex: what names a bundle beside its serial.
#[must_use]
pub fn digest(payload: &[u8]) -> String {
    hex(&Sha256::digest(payload))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

#[cfg(test)]
mod tests;
