//! The manifest: what a bundle is, which boxes it is for, what it asks of them.
//!
//! JSON, every field required, unknown ones refused. It is parsed once its signatures hold.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::signature::Fingerprint;

/// The one format there is.
pub const FORMAT: u32 = 1;
/// Most boxes in one bundle.
pub const MAX_BOXES: usize = 64;

/// Why a manifest is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON of a manifest.
    #[error("manifest is malformed: {reason}")]
    Json {
        /// What is wrong and where.
        reason: String,
    },
    /// A newer format.
    #[error("bundle format {found} is not known here; this program knows format {FORMAT}")]
    Format {
        /// What it says.
        found: u32,
    },
    /// A value out of its range.
    #[error("manifest: {reason}")]
    Value {
        /// What is wrong.
        reason: &'static str,
    },
}

/// What a bundle says of itself.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// 32 hex digits drawn at random when it was signed.
    pub bundle_id: String,
    /// The site's name.
    pub site: String,
    /// The boxes that it is for; section `secrets` comes once per box with a seal key, in this
    /// order.
    pub boxes: Vec<BoxEntry>,
    /// The bundle's number; it only grows.
    pub serial: u64,
    /// Epoch of trust; a box whose trust asks for a later one refuses the bundle.
    pub trust_epoch: u32,
    /// Oldest agent that understands it.
    pub minimum_agent: AgentVersion,
    /// Seconds since 1970 when it was signed; a box's clock is never earlier than this.
    pub created_at: u64,
    /// How the box decides that it works.
    pub confirm: Confirm,
    /// SHA-256 of each section.
    pub sha256: SectionHashes,
    /// Why it was made, for people.
    pub reason: String,
}

/// One box.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BoxEntry {
    /// Its name in the site file.
    pub name: String,
    /// How a machine knows that it is this box.
    #[serde(rename = "match")]
    pub matches: HardwareMatch,
    /// Fingerprint of its seal key; `null` until it is known, then it gets no secrets.
    pub seal_key: Option<Fingerprint>,
}

/// How a machine knows that it is a box of the site.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum HardwareMatch {
    /// SMBIOS system serial number.
    SerialNumber(String),
    /// SMBIOS system UUID, lower case.
    Uuid(String),
    /// Permanent MAC address of any NIC, lower case with colons.
    Mac(String),
    /// Any machine (`true`); no secrets may travel then.
    Any(bool),
}

impl fmt::Display for HardwareMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SerialNumber(serial) => write!(f, "serial-number {serial}"),
            Self::Uuid(uuid) => write!(f, "uuid {uuid}"),
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Any(_) => f.write_str("any machine"),
        }
    }
}

/// How a new configuration is confirmed.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Confirm {
    /// By whom.
    pub mode: ConfirmMode,
    /// Seconds until it is taken back unless confirmed, 10..=600.
    pub deadline: u16,
    /// Probes that must pass.
    pub require: Vec<Probe>,
}

/// Who confirms.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfirmMode {
    /// The box, by its probes.
    Auto,
    /// A person.
    Manual,
}

/// A probe to the outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// The gateway answers.
    Gateway,
    /// DNS answers by each NIC.
    Dns,
    /// A STUN server sees the static NAT address.
    Stun,
    /// The upstream answers.
    Upstream,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::Dns => "dns",
            Self::Stun => "stun",
            Self::Upstream => "upstream",
        })
    }
}

/// SHA-256 of each section in lower-case hex.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SectionHashes {
    /// Of `site`.
    pub site: String,
    /// Of `certs`.
    pub certs: String,
    /// Of each `secrets`, in order.
    pub secrets: Vec<String>,
}

/// Version of the agent, `MAJOR.MINOR.PATCH`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentVersion(u16, u16, u16);

impl AgentVersion {
    /// The version that this source is.
    ///
    /// # Panics
    ///
    /// Never: the workspace's version has three numbers, as a test checks.
    #[must_use]
    pub fn this() -> Self {
        env!("CARGO_PKG_VERSION").parse().expect("the workspace's version is three numbers")
    }
}

/// Text that is no version.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a version is three numbers with dots between")]
pub struct AgentVersionError;

impl FromStr for AgentVersion {
    type Err = AgentVersionError;

    fn from_str(text: &str) -> Result<Self, AgentVersionError> {
        let mut numbers = text.split('.').map(|part| part.parse().map_err(|_| AgentVersionError));
        let mut next = || numbers.next().ok_or(AgentVersionError)?;
        let version = Self(next()?, next()?, next()?);
        if numbers.next().is_some() || version.to_string() != text {
            return Err(AgentVersionError);
        }
        Ok(version)
    }
}

impl TryFrom<String> for AgentVersion {
    type Error = AgentVersionError;

    fn try_from(text: String) -> Result<Self, AgentVersionError> {
        text.parse()
    }
}

impl From<AgentVersion> for String {
    fn from(version: AgentVersion) -> Self {
        version.to_string()
    }
}

impl fmt::Display for AgentVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Manifest {
    /// Parses section `manifest`.
    ///
    /// # Errors
    ///
    /// Returns an error for unknown or missing fields and for values out of range.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let malformed =
            |error: serde_json::Error| ManifestError::Json { reason: error.to_string() };
        // A newer format may have other fields, so it is looked at first.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(json).map_err(malformed)?;
        if format != FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        let manifest: Self = serde_json::from_slice(json).map_err(malformed)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Refuses values out of their range; a signer calls it before signing.
    ///
    /// # Errors
    ///
    /// Returns [`ManifestError::Value`].
    pub fn check(&self) -> Result<(), ManifestError> {
        let fail = |reason| Err(ManifestError::Value { reason });
        let is_hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !is_hex(&self.bundle_id, 32) {
            return fail("bundle-id is not 32 hex digits");
        }
        if self.boxes.is_empty() || self.boxes.len() > MAX_BOXES {
            return fail("a bundle is for 1 to 64 boxes");
        }
        for (index, entry) in self.boxes.iter().enumerate() {
            if self.boxes[..index].iter().any(|other| other.name == entry.name) {
                return fail("two boxes have the same name");
            }
            match (&entry.matches, &entry.seal_key) {
                (HardwareMatch::Any(false), _) => return fail("match any: false matches nothing"),
                (HardwareMatch::Any(true), Some(_)) => {
                    return fail("a box that is any machine can have no seal key");
                }
                _ => {}
            }
        }
        if self.serial == 0 {
            return fail("serials begin with 1");
        }
        if !(10..=600).contains(&self.confirm.deadline) {
            return fail("confirm deadline is not 10 to 600 seconds");
        }
        let hashes = [&self.sha256.site, &self.sha256.certs];
        if hashes.into_iter().chain(&self.sha256.secrets).any(|hash| !is_hex(hash, 64)) {
            return fail("a section's sha256 is not 64 hex digits");
        }
        if self.sha256.secrets.len() != self.sealed_boxes().count() {
            return fail("sha256.secrets is not one per box with a seal key");
        }
        Ok(())
    }

    /// The boxes that have a section `secrets`, in order.
    pub fn sealed_boxes(&self) -> impl Iterator<Item = &BoxEntry> {
        self.boxes.iter().filter(|entry| entry.seal_key.is_some())
    }
}
