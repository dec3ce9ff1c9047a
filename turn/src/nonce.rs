//! Stateless nonces (RFC 8489 §9.2, §13).
//!
//! A nonce is the time it was made and an HMAC over that time, the realm and the client's IP
//! address (IPv6: its /64, so that a host may change its privacy address). Nothing is stored for
//! a stranger, and a nonce proves that its bearer receives what is sent to that address. The port
//! is left out because NATs change it between a client's attempts.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use crate::five_tuple::Source;
use crate::random::derive;

/// How long a nonce is valid.
pub(crate) const NONCE_LIFETIME: Duration = Duration::from_secs(3600);

/// Octets of a nonce: hexadecimal time and tag.
const NONCE_LENGTH: usize = 8 + 32;

/// What a nonce proves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NonceState {
    /// Made here for this source, and young.
    Valid,
    /// Made here for this source, too long ago: the source is proven all the same.
    Expired,
    /// Not made here, or for somebody else.
    Foreign,
}

/// Makes and checks nonces.
#[derive(Clone)]
pub(crate) struct Nonces {
    key: [u8; 32],
    started: Instant,
}

impl Nonces {
    pub(crate) fn new(seed: &[u8; 32], now: Instant) -> Self {
        Self { key: derive(seed, b"nonce key", &[]), started: now }
    }

    /// A fresh nonce for this source.
    pub(crate) fn issue(&self, realm: &str, source: IpAddr, now: Instant) -> String {
        self.nonce(realm, source, self.seconds(now))
    }

    /// Judges what a client sent.
    pub(crate) fn check(
        &self,
        nonce: &[u8],
        realm: &str,
        source: IpAddr,
        now: Instant,
    ) -> NonceState {
        let Some(made) = (nonce.len() == NONCE_LENGTH)
            .then(|| std::str::from_utf8(&nonce[..8]).ok())
            .flatten()
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        else {
            return NonceState::Foreign;
        };
        let expected = self.nonce(realm, source, made);
        if !bool::from(expected.as_bytes().ct_eq(nonce)) {
            return NonceState::Foreign;
        }
        let age = u64::from(self.seconds(now).saturating_sub(made));
        if age < NONCE_LIFETIME.as_secs() { NonceState::Valid } else { NonceState::Expired }
    }

    fn nonce(&self, realm: &str, source: IpAddr, made: u32) -> String {
        let mut input = Vec::with_capacity(16 + realm.len());
        input.extend(made.to_be_bytes());
        input.extend(Source::of(source).bytes());
        input.extend(realm.as_bytes());
        let tag = derive(&self.key, b"nonce", &input);
        let mut text = format!("{made:08x}");
        for octet in &tag[..16] {
            text.push_str(&format!("{octet:02x}"));
        }
        text
    }

    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.started).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}
