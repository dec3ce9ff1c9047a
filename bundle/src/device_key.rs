//! A box's two keys: `seal` (age X25519), to which its secrets are encrypted, and `identity`
//! (ed25519, an SSH key), which signs what the box says of itself.
//!
//! # Files
//!
//! - Private pair, `NAME.device`, on a provision partition `postern.device`: JSON
//!   `{"format": 1, "seal": "AGE-SECRET-KEY-1...", "identity": "-----BEGIN OPENSSH..."}`.
//! - Public halves, `NAME.device.pub` or `device.pub`: two lines, `seal age1...` and
//!   `identity ssh-ed25519 ... COMMENT`; lines that begin with `#` are comments.
//! - On the box each private key lies in its own file, as `age` and `ssh-keygen` write them.

use std::fmt;
use std::str::FromStr;

use age::secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey};

use crate::signature::Fingerprint;

const FORMAT: u32 = 1;

/// Why device keys could not be read. It never repeats key material.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeviceKeyError {
    /// Not the JSON of a private pair.
    #[error("not a device key file: it must be JSON with format 1, seal and identity")]
    File,
    /// The seal key is not an age X25519 secret key.
    #[error("seal key is not an age X25519 secret key (AGE-SECRET-KEY-1...)")]
    Seal,
    /// The identity key is not an unencrypted ed25519 key in OpenSSH's format.
    #[error("identity key is not an unencrypted ed25519 private key in OpenSSH's format")]
    Identity,
    /// Not the text of the public halves.
    #[error(
        "not the public half of device keys: it must have a line `seal age1...` and a line \
         `identity ssh-ed25519 ...`"
    )]
    Public,
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    Randomness,
}

/// The private pair.
pub struct DeviceKeys {
    seal: SealKey,
    identity: PrivateKey,
}

impl fmt::Debug for DeviceKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeviceKeys").field(&self.seal.public().fingerprint()).finish()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    format: u32,
    seal: String,
    identity: String,
}

impl DeviceKeys {
    /// Makes a new pair; `comment` names the box in the identity key.
    ///
    /// # Errors
    ///
    /// Returns [`DeviceKeyError::Randomness`].
    pub fn generate(comment: &str) -> Result<Self, DeviceKeyError> {
        let seal = SealKey(age::x25519::Identity::generate());
        Ok(Self { seal, identity: generate_ssh_key(comment)? })
    }

    /// Puts a pair together from the two files on a box.
    ///
    /// # Errors
    ///
    /// Returns [`DeviceKeyError::Seal`] or [`DeviceKeyError::Identity`].
    pub fn from_parts(seal: &str, identity: &str) -> Result<Self, DeviceKeyError> {
        let seal = seal.parse()?;
        let identity = PrivateKey::from_openssh(identity).map_err(|_| DeviceKeyError::Identity)?;
        if identity.algorithm() != Algorithm::Ed25519 || identity.is_encrypted() {
            return Err(DeviceKeyError::Identity);
        }
        Ok(Self { seal, identity })
    }

    /// Reads the text of a private pair.
    ///
    /// # Errors
    ///
    /// Returns an error for anything but such a file.
    pub fn parse(text: &str) -> Result<Self, DeviceKeyError> {
        let file: KeyFile = serde_json::from_str(text).map_err(|_| DeviceKeyError::File)?;
        if file.format != FORMAT {
            return Err(DeviceKeyError::File);
        }
        Self::from_parts(&file.seal, &file.identity)
    }

    /// The text of the private pair's file.
    ///
    /// # Errors
    ///
    /// Returns [`DeviceKeyError::Identity`] when the key cannot be written.
    pub fn to_file(&self) -> Result<String, DeviceKeyError> {
        let file =
            KeyFile { format: FORMAT, seal: self.seal_text(), identity: self.identity_text()? };
        let mut text = serde_json::to_string_pretty(&file).map_err(|_| DeviceKeyError::File)?;
        text.push('\n');
        Ok(text)
    }

    /// The seal key's own file.
    #[must_use]
    pub fn seal_text(&self) -> String {
        format!("{}\n", self.seal.0.to_string().expose_secret())
    }

    /// The identity key's own file.
    ///
    /// # Errors
    ///
    /// Returns [`DeviceKeyError::Identity`] when the key cannot be written.
    pub fn identity_text(&self) -> Result<String, DeviceKeyError> {
        let text = self.identity.to_openssh(LineEnding::LF);
        Ok(text.map_err(|_| DeviceKeyError::Identity)?.to_string())
    }

    /// The key that opens secrets.
    #[must_use]
    pub fn seal(&self) -> &SealKey {
        &self.seal
    }

    /// The key that signs receipts.
    #[must_use]
    pub fn identity(&self) -> &PrivateKey {
        &self.identity
    }

    /// The public halves.
    #[must_use]
    pub fn public(&self) -> DevicePublic {
        DevicePublic { seal: self.seal.public(), identity: self.identity.public_key().clone() }
    }
}

/// The private seal key.
pub struct SealKey(pub(crate) age::x25519::Identity);

impl SealKey {
    /// Its public half.
    #[must_use]
    pub fn public(&self) -> SealPublic {
        SealPublic(self.0.to_public())
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SealKey").field(&self.public().fingerprint()).finish()
    }
}

impl FromStr for SealKey {
    type Err = DeviceKeyError;

    fn from_str(text: &str) -> Result<Self, DeviceKeyError> {
        // age's own key files have comment lines above the key.
        let mut keys = text.lines().map(str::trim).filter(|line| !is_comment(line));
        match (keys.next(), keys.next()) {
            (Some(key), None) => key.parse().map(Self).map_err(|_| DeviceKeyError::Seal),
            _ => Err(DeviceKeyError::Seal),
        }
    }
}

/// The public seal key.
#[derive(Clone, Debug)]
pub struct SealPublic(pub(crate) age::x25519::Recipient);

impl SealPublic {
    /// SHA-256 over the key's text `age1...`.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_digest(&Sha256::digest(self.0.to_string()))
    }
}

impl fmt::Display for SealPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The public halves.
#[derive(Clone, Debug)]
pub struct DevicePublic {
    /// To which secrets are sealed.
    pub seal: SealPublic,
    /// With which receipts are checked.
    pub identity: PublicKey,
}

impl DevicePublic {
    /// Fingerprint of the identity key, as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn identity_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.identity.key_data())
    }
}

impl fmt::Display for DevicePublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.identity.to_openssh().map_err(|_| fmt::Error)?;
        write!(f, "seal {}\nidentity {identity}\n", self.seal)
    }
}

impl FromStr for DevicePublic {
    type Err = DeviceKeyError;

    fn from_str(text: &str) -> Result<Self, DeviceKeyError> {
        let (mut seal, mut identity) = (None, None);
        for line in text.lines().map(str::trim).filter(|line| !is_comment(line)) {
            match line.split_once(' ') {
                Some(("seal", key)) if seal.is_none() => {
                    let key = key.trim().parse().map_err(|_| DeviceKeyError::Public)?;
                    seal = Some(SealPublic(key));
                }
                Some(("identity", key)) if identity.is_none() => {
                    let key = PublicKey::from_openssh(key).map_err(|_| DeviceKeyError::Public)?;
                    identity = Some(key);
                }
                _ => return Err(DeviceKeyError::Public),
            }
        }
        match (seal, identity) {
            (Some(seal), Some(identity)) => Ok(Self { seal, identity }),
            _ => Err(DeviceKeyError::Public),
        }
    }
}

/// Makes an ed25519 SSH key, for signing bundles as for a box's identity.
///
/// # Errors
///
/// Returns [`DeviceKeyError::Randomness`].
pub fn generate_ssh_key(comment: &str) -> Result<PrivateKey, DeviceKeyError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|_| DeviceKeyError::Randomness)?;
    let keypair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    PrivateKey::new(keypair, comment).map_err(|_| DeviceKeyError::Identity)
}

fn is_comment(line: &str) -> bool {
    line.is_empty() || line.starts_with('#')
}
