//! Secrets for one box: age to its seal key alone, inside it JSON {name: base64}.

use std::collections::BTreeMap;
use std::io::Read as _;

use argon2::password_hash::{PasswordHasher as _, SaltString};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::device_key::{SealKey, SealPublic};

/// A box's secrets by name.
pub type Secrets = BTreeMap<String, Vec<u8>>;

/// Longest text inside a section, well above what 256 KiB of age file can hold.
const MAX_PLAIN: u64 = 256 << 10;

/// Why secrets could not be sealed or opened. It never repeats a secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SealError {
    /// age could not encrypt.
    #[error("secrets could not be encrypted")]
    Encrypt,
    /// Sealed to another key.
    #[error("secrets are sealed to another key than this box's")]
    OtherKey,
    /// Not an age file, or a changed one.
    #[error("secrets are not an intact age file")]
    Damaged,
    /// Inside is not JSON {name: base64}.
    #[error("secrets are not JSON of names and base64")]
    Malformed,
    /// Argon2 or the operating system's randomness failed.
    #[error("the password could not be hashed")]
    Hash,
}

/// Encrypts `secrets` to one box.
///
/// # Errors
///
/// Returns [`SealError::Encrypt`].
pub fn seal(secrets: &Secrets, to: &SealPublic) -> Result<Vec<u8>, SealError> {
    let encoded: BTreeMap<&str, String> =
        secrets.iter().map(|(name, secret)| (name.as_str(), STANDARD.encode(secret))).collect();
    let plain = serde_json::to_vec(&encoded).map_err(|_| SealError::Encrypt)?;
    age::encrypt(&to.0, &plain).map_err(|_| SealError::Encrypt)
}

/// Opens what [`seal`] made.
///
/// # Errors
///
/// Returns [`SealError::OtherKey`], [`SealError::Damaged`] or [`SealError::Malformed`].
pub fn open(sealed: &[u8], with: &SealKey) -> Result<Secrets, SealError> {
    let decryptor = age::Decryptor::new_buffered(sealed).map_err(|_| SealError::Damaged)?;
    let reader =
        decryptor.decrypt(std::iter::once(&with.0 as &dyn age::Identity)).map_err(|error| {
            match error {
                age::DecryptError::NoMatchingKeys => SealError::OtherKey,
                _ => SealError::Damaged,
            }
        })?;
    let mut plain = Vec::new();
    reader.take(MAX_PLAIN).read_to_end(&mut plain).map_err(|_| SealError::Damaged)?;
    let encoded: BTreeMap<String, String> =
        serde_json::from_slice(&plain).map_err(|_| SealError::Malformed)?;
    let decode = |(name, secret): (String, String)| {
        Ok((name, STANDARD.decode(secret).map_err(|_| SealError::Malformed)?))
    };
    encoded.into_iter().map(decode).collect()
}

/// Hashes the admin password (argon2id, PHC string): the password itself never travels.
///
/// # Errors
///
/// Returns [`SealError::Hash`].
pub fn hash_password(password: &[u8]) -> Result<String, SealError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|_| SealError::Hash)?;
    let salt = SaltString::encode_b64(&salt).map_err(|_| SealError::Hash)?;
    let hash = argon2::Argon2::default().hash_password(password, &salt);
    Ok(hash.map_err(|_| SealError::Hash)?.to_string())
}
