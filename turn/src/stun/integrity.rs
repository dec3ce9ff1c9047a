//! MESSAGE-INTEGRITY and FINGERPRINT (RFC 8489 §14.5, §14.7).

use std::fmt;

use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;

use crate::stun::message::{FINGERPRINT_LENGTH, HEADER_LENGTH, INTEGRITY_LENGTH};

/// What MESSAGE-INTEGRITY is computed with.
///
/// An enum, so that a further password algorithm (RFC 8489 §18.5) is one more variant.
#[derive(Clone, Eq, PartialEq)]
pub enum Key {
    /// MD5(username ":" realm ":" password), RFC 8489 §9.2.2.
    LongTermMd5([u8; 16]),
    /// The password itself, RFC 8489 §9.1.1.
    ShortTerm(Vec<u8>),
}

impl Key {
    /// The key of a long-term credential.
    #[must_use]
    pub fn long_term(user: &str, realm: &str, password: &str) -> Self {
        Self::LongTermMd5(Md5::digest(format!("{user}:{realm}:{password}")).into())
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::LongTermMd5(bytes) => bytes,
            Self::ShortTerm(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The HMAC over `before`, a message up to MESSAGE-INTEGRITY, as if it ended with that attribute.
pub(super) fn sign(key: &Key, before: &[u8]) -> [u8; 20] {
    hmac(key, before).finalize().into_bytes().into()
}

/// Whether `value` is [`sign`]'s result; constant time.
pub(super) fn verify(key: &Key, before: &[u8], value: &[u8]) -> bool {
    hmac(key, before).verify_slice(value).is_ok()
}

fn hmac(key: &Key, before: &[u8]) -> Hmac<Sha1> {
    let mut mac = Hmac::<Sha1>::new_from_slice(key.bytes()).expect("HMAC takes keys of any length");
    feed(before, INTEGRITY_LENGTH, |bytes| mac.update(bytes));
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
