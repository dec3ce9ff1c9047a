//! Keys and checksums of STUN, the suite's own.

use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;

/// HMAC-SHA1 (RFC 8489 §14.5).
pub(super) fn hmac_sha1(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// HMAC-SHA256 (RFC 8489 §14.6).
pub(super) fn hmac_sha256(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// The key of the long-term credentials under MD5 (RFC 8489 §9.2.2).
pub(super) fn md5_key(user: &str, realm: &str, password: &str) -> Vec<u8> {
    Md5::digest(format!("{user}:{realm}:{password}")).to_vec()
}

/// The key of the long-term credentials under SHA-256 (RFC 8489 §18.5.1.2).
pub(super) fn sha256_key(user: &str, realm: &str, password: &str) -> Vec<u8> {
    Sha256::digest(format!("{user}:{realm}:{password}")).to_vec()
}

/// USERHASH (RFC 8489 §14.4).
pub(super) fn user_hash(user: &str, realm: &str) -> Vec<u8> {
    Sha256::digest(format!("{user}:{realm}")).to_vec()
}

/// Standard base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let octet = |n: usize| u32::from(group.get(n).copied().unwrap_or(0));
        let bits = octet(0) << 16 | octet(1) << 8 | octet(2);
        for n in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * n) & 63).unwrap_or(0);
            text.push(if n > group.len() { '=' } else { char::from(DIGITS[digit]) });
        }
    }
    text
}

/// CRC-32 of ITU-T V.42, bit by bit.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::{base64, crc32, hmac_sha1, md5_key};

    #[test]
    fn crc32_of_the_nine_digits_is_the_catalogued_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn base64_pads_as_rfc_4648_shows() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn the_long_term_key_is_that_of_rfc_5389() {
        let key = md5_key("user", "realm", "pass");

        assert_eq!(key[..4], [0x84, 0x93, 0xFB, 0xC5]);
    }

    #[test]
    fn hmac_sha1_is_that_of_rfc_2202() {
        let mac = hmac_sha1(b"Jefe", b"what do ya want for nothing?");

        assert_eq!(mac[..4], [0xEF, 0xFC, 0xDF, 0x6A]);
    }
}
