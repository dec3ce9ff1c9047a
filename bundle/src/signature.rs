//! SSH signatures (SSHSIG, the format of `ssh-keygen -Y sign`) as Postern takes them.
//!
//! Stricter than `ssh-keygen -Y verify`: one namespace per purpose, sha512 only, key types
//! ed25519, ecdsa-p256 and their security-key forms only, exactly one spelling of the armour, and
//! a security key must say that its user was present (touched it), which neither `ssh-keygen` nor
//! the ssh-key crate looks at.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};

/// Namespace of signatures over a payload.
pub const BUNDLE_NAMESPACE: &str = "bundle.v1@postern";
/// Namespace of signatures over a trust blob.
pub const TRUST_NAMESPACE: &str = "trust.v1@postern";

const USER_PRESENT: u8 = 0x01;
const USER_VERIFIED: u8 = 0x04;

/// Why a signature does not count.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SignatureError {
    /// Not the one spelling of an armoured SSH signature.
    #[error("signature is malformed")]
    Malformed,
    /// Made for another purpose.
    #[error("signature is for namespace {found:?}, not {expected:?}")]
    Namespace {
        /// What belongs there.
        expected: &'static str,
        /// What it says.
        found: String,
    },
    /// Another hash than sha512.
    #[error("signature uses {found}, not sha512")]
    Hash {
        /// What it says.
        found: String,
    },
    /// Another key type than those taken.
    #[error("key type {found} is not one of ed25519, ecdsa-p256, sk-ed25519, sk-ecdsa-p256")]
    KeyType {
        /// What it is.
        found: String,
    },
    /// The signed bytes are others, or the signature was changed.
    #[error("tampered with: the signature of {signer} does not fit the signed bytes")]
    Mismatch {
        /// The key that the signature names.
        signer: Fingerprint,
    },
    /// A security key signed without a touch.
    #[error("security key {signer} signed without its user being present")]
    UserPresence {
        /// The key.
        signer: Fingerprint,
    },
    /// A security key signed without PIN or biometrics where trust asks for them.
    #[error("security key {signer} signed without verifying its user")]
    UserVerification {
        /// The key.
        signer: Fingerprint,
    },
}

/// SHA-256 fingerprint of a key in OpenSSH's notation, `SHA256:` and 43 digits of base64.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(String);

impl Fingerprint {
    pub(crate) fn of(key: &KeyData) -> Self {
        Self(key.fingerprint(HashAlg::Sha256).to_string())
    }

    pub(crate) fn of_digest(digest: &[u8]) -> Self {
        Self(format!("SHA256:{}", base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that is no SHA-256 fingerprint.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a fingerprint is `SHA256:` and 43 digits of base64, as `ssh-keygen -l` prints it")]
pub struct FingerprintError;

impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;

    fn try_from(text: String) -> Result<Self, FingerprintError> {
        match text.parse::<ssh_key::Fingerprint>() {
            Ok(parsed) if parsed.is_sha256() && parsed.to_string() == text => Ok(Self(text)),
            _ => Err(FingerprintError),
        }
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.0
    }
}

/// A public key that may sign: ed25519, ecdsa-p256 or a security key's form of them.
///
/// Equal keys have equal key material; comments do not count. Written as one line of OpenSSH.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SignerKey(PublicKey);

impl SignerKey {
    /// Takes a key.
    ///
    /// # Errors
    ///
    /// Returns [`SignatureError::KeyType`] for any other type.
    pub fn new(key: PublicKey) -> Result<Self, SignatureError> {
        accepted_type(key.key_data())?;
        Ok(Self(key))
    }

    /// Its fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.0.key_data())
    }

    /// Its comment, such as a person's name.
    #[must_use]
    pub fn comment(&self) -> &str {
        self.0.comment()
    }
}

impl PartialEq for SignerKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key_data() == other.0.key_data()
    }
}

impl Eq for SignerKey {}

impl FromStr for SignerKey {
    type Err = SignatureError;

    fn from_str(line: &str) -> Result<Self, SignatureError> {
        Self::new(PublicKey::from_openssh(line).map_err(|_| SignatureError::Malformed)?)
    }
}

impl TryFrom<String> for SignerKey {
    type Error = SignatureError;

    fn try_from(line: String) -> Result<Self, SignatureError> {
        line.parse()
    }
}

impl From<SignerKey> for String {
    fn from(key: SignerKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_openssh().map_err(|_| fmt::Error)?)
    }
}

/// A well-formed signature of an accepted type for one purpose; nothing is known yet of what it
/// is over or whether its key counts.
#[derive(Clone, Debug)]
pub struct ParsedSignature {
    sshsig: SshSig,
    signer: Fingerprint,
}

impl ParsedSignature {
    /// Parses one armoured signature.
    ///
    /// # Errors
    ///
    /// Returns an error unless it is spelled in the one way that `ssh-keygen` does and is for
    /// `namespace`, sha512 and an accepted key type.
    pub fn parse(armoured: &str, namespace: &'static str) -> Result<Self, SignatureError> {
        let blob = dearmour(armoured)?;
        let sshsig = SshSig::from_pem(armoured).map_err(|_| SignatureError::Malformed)?;
        // The crate reads some lengths loosely: what it read must be all there is.
        if encode(&sshsig).is_none_or(|encoded| encoded != blob) {
            return Err(SignatureError::Malformed);
        }
        if sshsig.namespace() != namespace {
            return Err(SignatureError::Namespace {
                expected: namespace,
                found: sshsig.namespace().to_owned(),
            });
        }
        if sshsig.hash_alg() != HashAlg::Sha512 {
            return Err(SignatureError::Hash { found: sshsig.hash_alg().to_string() });
        }
        accepted_type(sshsig.public_key())?;
        if sshsig.algorithm() != sshsig.public_key().algorithm() {
            return Err(SignatureError::Malformed);
        }
        let signer = Fingerprint::of(sshsig.public_key());
        Ok(Self { sshsig, signer })
    }

    /// Fingerprint of the key that the signature names.
    #[must_use]
    pub fn signer(&self) -> &Fingerprint {
        &self.signer
    }

    /// The key that the signature names.
    #[must_use]
    pub fn key(&self) -> SignerKey {
        SignerKey(self.sshsig.public_key().clone().into())
    }

    /// Whether the signature names this key.
    #[must_use]
    pub fn is_by(&self, key: &SignerKey) -> bool {
        self.sshsig.public_key() == key.0.key_data()
    }

    /// Checks it against `message`.
    ///
    /// # Errors
    ///
    /// Returns [`SignatureError::Mismatch`], or what a security key's flags lack.
    pub fn verify(
        &self,
        message: &[u8],
        require_user_verification: bool,
    ) -> Result<(), SignatureError> {
        let mismatch = || SignatureError::Mismatch { signer: self.signer.clone() };
        PublicKey::from(self.sshsig.public_key().clone())
            .verify(self.sshsig.namespace(), message, &self.sshsig)
            .map_err(|_| mismatch())?;
        if matches!(self.sshsig.algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256)
        {
            // The raw signature of a security key ends with one byte of flags and a counter of
            // four bytes (PROTOCOL.u2f of OpenSSH); both are under the signature.
            let raw = self.sshsig.signature_bytes();
            let flags = raw.len().checked_sub(5).and_then(|at| raw.get(at)).copied();
            let flags = flags.ok_or_else(mismatch)?;
            if flags & USER_PRESENT == 0 {
                return Err(SignatureError::UserPresence { signer: self.signer.clone() });
            }
            if require_user_verification && flags & USER_VERIFIED == 0 {
                return Err(SignatureError::UserVerification { signer: self.signer.clone() });
            }
        } else if require_user_verification {
            return Err(SignatureError::UserVerification { signer: self.signer.clone() });
        }
        Ok(())
    }
}

/// Why a key could not sign.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// Not a type that any box would take.
    #[error(transparent)]
    KeyType(SignatureError),
    /// The ssh-key crate refused, for example because the key is encrypted or held in hardware.
    #[error("the key cannot sign here; sign with `ssh-keygen -Y sign` instead")]
    Key(#[source] ssh_key::Error),
}

/// Signs `message` with a private key held in memory; the result is armoured.
///
/// # Errors
///
/// Returns an error for a key of another type or one that is encrypted or held in hardware.
pub fn sign(
    key: &PrivateKey,
    namespace: &'static str,
    message: &[u8],
) -> Result<String, SigningError> {
    accepted_type(key.public_key().key_data()).map_err(SigningError::KeyType)?;
    let sshsig = key.sign(namespace, HashAlg::Sha512, message).map_err(SigningError::Key)?;
    sshsig.to_pem(LineEnding::LF).map_err(SigningError::Key)
}

fn accepted_type(key: &KeyData) -> Result<(), SignatureError> {
    match key.algorithm() {
        Algorithm::Ed25519
        | Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }
        | Algorithm::SkEd25519
        | Algorithm::SkEcdsaSha2NistP256 => Ok(()),
        other => Err(SignatureError::KeyType { found: other.to_string() }),
    }
}

/// Decodes the armour and refuses every spelling but `ssh-keygen`'s, so that no byte of a bundle
/// can change unnoticed.
fn dearmour(armoured: &str) -> Result<Vec<u8>, SignatureError> {
    let body = armoured
        .strip_prefix("-----BEGIN SSH SIGNATURE-----\n")
        .and_then(|rest| rest.strip_suffix("\n-----END SSH SIGNATURE-----\n"))
        .ok_or(SignatureError::Malformed)?;
    let lines: Vec<&str> = body.split('\n').collect();
    let (last, full) = lines.split_last().ok_or(SignatureError::Malformed)?;
    if last.is_empty() || last.len() > 70 || full.iter().any(|line| line.len() != 70) {
        return Err(SignatureError::Malformed);
    }
    STANDARD.decode(lines.concat()).map_err(|_| SignatureError::Malformed)
}

/// The one encoding of a signature without reserved data (PROTOCOL.sshsig of OpenSSH). The
/// crate's own misplaces the flags of sk-ecdsa.
fn encode(sshsig: &SshSig) -> Option<Vec<u8>> {
    let algorithm = sshsig.algorithm();
    let raw = sshsig.signature_bytes();
    let trailer = match algorithm {
        Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => 5,
        _ => 0,
    };
    let (raw, trailer) = raw.split_at_checked(raw.len().checked_sub(trailer)?)?;
    let mut signature = Vec::new();
    put_string(&mut signature, algorithm.as_str().as_bytes())?;
    put_string(&mut signature, raw)?;
    signature.extend_from_slice(trailer);
    let mut blob = b"SSHSIG\0\0\0\x01".to_vec();
    put_string(&mut blob, &PublicKey::from(sshsig.public_key().clone()).to_bytes().ok()?)?;
    put_string(&mut blob, sshsig.namespace().as_bytes())?;
    put_string(&mut blob, b"")?;
    put_string(&mut blob, sshsig.hash_alg().as_str().as_bytes())?;
    put_string(&mut blob, &signature)?;
    Some(blob)
}

fn put_string(to: &mut Vec<u8>, string: &[u8]) -> Option<()> {
    to.extend_from_slice(&u32::try_from(string.len()).ok()?.to_be_bytes());
    to.extend_from_slice(string);
    Some(())
}

#[cfg(test)]
mod tests;
