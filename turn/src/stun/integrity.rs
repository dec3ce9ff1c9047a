//! Keys, MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT (RFC 8489 §9, §14.5 to §14.7,
//! §18.5).

use std::fmt;

use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;

use crate::stun::attribute::AttributeType;
use crate::stun::message::{FINGERPRINT_LENGTH, HEADER_LENGTH};

/// How a long-term password becomes a key (RFC 8489 §18.5.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PasswordAlgorithm {
    /// MD5: what everybody spoke before RFC 8489.
    Md5,
    /// SHA-256.
    Sha256,
}

impl PasswordAlgorithm {
    /// PASSWORD-ALGORITHM's value: the number, and that there are no parameters.
    #[must_use]
    pub const fn value(self) -> [u8; 4] {
        match self {
            Self::Md5 => [0, 1, 0, 0],
            Self::Sha256 => [0, 2, 0, 0],
        }
    }

    /// The inverse of [`Self::value`].
    #[must_use]
    pub fn of(value: &[u8]) -> Option<Self> {
        [Self::Md5, Self::Sha256].into_iter().find(|algorithm| algorithm.value() == value)
    }
}

/// Which attribute protects a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Integrity {
    /// MESSAGE-INTEGRITY: HMAC-SHA1.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256.
    Sha256,
}

impl Integrity {
    /// Its attribute.
    #[must_use]
    pub const fn attribute(self) -> AttributeType {
        match self {
            Self::Sha1 => AttributeType::MESSAGE_INTEGRITY,
            Self::Sha256 => AttributeType::MESSAGE_INTEGRITY_SHA256,
        }
    }

    /// Whether its value may have this many octets. HMAC-SHA256 may be truncated only where a STUN
    /// usage says so (RFC 8489 §14.6), and TURN does not.
    #[must_use]
    pub const fn may_have(self, octets: usize) -> bool {
        match self {
            Self::Sha1 => octets == 20,
            Self::Sha256 => octets == 32,
        }
    }
}

/// What messages are signed and checked with, and which attribute a
/// [`Writer`](super::Writer) puts the signature in.
#[derive(Clone)]
pub struct Key {
    secret: Secret,
    integrity: Integrity,
}

#[derive(Clone)]
enum Secret {
    Md5([u8; 16]),
    Sha256([u8; 32]),
    Password(Vec<u8>),
}

impl Key {
    /// MD5(username ":" realm ":" password), RFC 8489 §9.2.2; signs with MESSAGE-INTEGRITY, as
    /// those do that know no other algorithm.
    #[must_use]
    pub fn long_term(user: &str, realm: &str, password: &str) -> Self {
        Self::long_term_with(PasswordAlgorithm::Md5, user, realm, password).signing(Integrity::Sha1)
    }

    /// The key of a negotiated password algorithm; signs with MESSAGE-INTEGRITY-SHA256.
    #[must_use]
    pub fn long_term_with(
        algorithm: PasswordAlgorithm,
        user: &str,
        realm: &str,
        password: &str,
    ) -> Self {
        let parts = [user.as_bytes(), b":", realm.as_bytes(), b":", password.as_bytes()];
        let secret = match algorithm {
            PasswordAlgorithm::Md5 => Secret::Md5(digest::<Md5>(&parts).into()),
            PasswordAlgorithm::Sha256 => Secret::Sha256(digest::<Sha256>(&parts).into()),
        };
        Self { secret, integrity: Integrity::Sha256 }
    }

    /// The password itself, RFC 8489 §9.1.1; signs with MESSAGE-INTEGRITY.
    #[must_use]
    pub fn short_term(password: &str) -> Self {
        let secret = Secret::Password(password.as_bytes().to_vec());
        Self { secret, integrity: Integrity::Sha1 }
    }

    /// The same key for the other attribute.
    #[must_use]
    pub fn signing(mut self, integrity: Integrity) -> Self {
        self.integrity = integrity;
        self
    }

    pub(super) const fn integrity(&self) -> Integrity {
        self.integrity
    }

    pub(super) fn octets(&self) -> &[u8] {
        match &self.secret {
            Secret::Md5(octets) => octets,
            Secret::Sha256(octets) => octets,
            Secret::Password(octets) => octets,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// USERHASH (RFC 8489 §14.4): finds a user without naming it.
#[must_use]
pub fn userhash(user: &str, realm: &str) -> [u8; 32] {
    digest::<Sha256>(&[user.as_bytes(), b":", realm.as_bytes()]).into()
}

fn digest<D: Digest>(parts: &[&[u8]]) -> md5::digest::Output<D> {
    let mut digest = D::new();
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

/// The HMAC over `before`, a message up to the attribute, as if it ended with that attribute;
/// as many octets of it as `length` says.
pub(super) fn sign(key: &Key, integrity: Integrity, before: &[u8], length: usize) -> Vec<u8> {
    let mut value = match integrity {
        Integrity::Sha1 => mac::<Hmac<Sha1>>(key, before, length).finalize().into_bytes().to_vec(),
        Integrity::Sha256 => {
            mac::<Hmac<Sha256>>(key, before, length).finalize().into_bytes().to_vec()
        }
    };
    value.truncate(length);
    value
}

/// Whether `value` is [`sign`]'s result; constant time.
pub(super) fn verify(key: &Key, integrity: Integrity, before: &[u8], value: &[u8]) -> bool {
    let length = value.len();
    integrity.may_have(length)
        && match integrity {
            Integrity::Sha1 => mac::<Hmac<Sha1>>(key, before, length).verify_slice(value).is_ok(),
            Integrity::Sha256 => {
                mac::<Hmac<Sha256>>(key, before, length).verify_slice(value).is_ok()
            }
        }
}

fn mac<M: Mac + hmac::digest::KeyInit>(key: &Key, before: &[u8], length: usize) -> M {
    let mut mac = <M as Mac>::new_from_slice(key.octets()).expect("HMAC takes keys of any length");
    feed(before, 4 + length, |bytes| mac.update(bytes));
    mac
}

/// The value of FINGERPRINT over `before`, as if the message ended with that attribute.
pub(super) fn fingerprint(before: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    feed(before, FINGERPRINT_LENGTH, |bytes| {
        for byte in bytes {
            let index = usize::from(crc.to_le_bytes()[0] ^ byte);
            crc = (crc >> 8) ^ CRC[index];
        }
    });
    !crc ^ 0x5354_554E
}

/// Feeds `before` with its length field set to end after `attribute` more octets.
fn feed(before: &[u8], attribute: usize, mut update: impl FnMut(&[u8])) {
    let length = before.len() + attribute - HEADER_LENGTH;
    let length = u16::try_from(length).expect("a STUN message is below 64 KiB");
    update(&before[..2]);
    update(&length.to_be_bytes());
    update(&before[4..]);
}

/// CRC-32 of ITU V.42, byte by byte.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    let mut seed = 0_u32;
    while index < 256 {
        let mut value = seed;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xEDB8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
        seed += 1;
    }
    table
};
