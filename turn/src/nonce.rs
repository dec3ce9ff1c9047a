//! Stateless nonces (RFC 8489 §9.2, §13).
//!
//! ```text
//! obMatJos2 wAAA ........................
//! │         │    └ base64 of: seconds since the start (4 octets), the client's port (2), tag (12)
//! │         └ base64 of the security features (RFC 8489 §18.1)
//! └ says that the server speaks RFC 8489
//! ```
//!
//! The tag is an HMAC over everything before it, the realm and the client's IP address (IPv6: its
//! /64, so that a host may change its privacy address). Nothing is stored for a stranger, a nonce
//! proves that its bearer receives what is sent to that address, and nobody can change the security
//! features unseen. The port makes nonces of two sockets differ, as RFC 8489 §9.2.4 asks, but they
//! are not bound to it, because NATs change it between a client's attempts.
//!
//! Every hour has a key of its own, derived from the seed that all shards share; the last hour's
//! is still accepted, which is as long as a nonce lives.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::five_tuple::Source;
use crate::random::derive;

/// How long a nonce is valid, and how long a key makes new ones.
pub(crate) const NONCE_LIFETIME: Duration = Duration::from_secs(3600);

/// RFC 8489 §9.2: the begin of every nonce.
const COOKIE: &str = "obMatJos2";

/// Octets of the cookie with the security features.
const COOKIE_LENGTH: usize = COOKIE.len() + 4;

/// Octets of a nonce; RFC 8489 §14.10 allows 127 characters.
const NONCE_LENGTH: usize = COOKIE_LENGTH + 24;

/// The "Password algorithms" bit of RFC 8489 §18.1, in the first of three octets.
const PASSWORD_ALGORITHMS: u8 = 0x80;

/// The "Username anonymity" bit.
const USERNAME_ANONYMITY: u8 = 0x40;

/// What a nonce proves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NonceState {
    /// Made here for this source, and young.
    Valid,
    /// Made here for this source, too long ago: the source is proven all the same.
    Expired,
    /// Not made here, or for somebody else, or longer ago than any key is kept.
    Foreign,
}

/// Makes and checks nonces.
#[derive(Clone)]
pub(crate) struct Nonces {
    seed: [u8; 32],
    started: Instant,
    /// The keys of an even and of an odd hour.
    keys: [Option<(u32, Hmac<Sha256>)>; 2],
}

impl Nonces {
    /// Two of them with the same arguments accept each other's nonces.
    pub(crate) fn new(seed: &[u8; 32], started: Instant) -> Self {
        Self { seed: derive(seed, b"nonce", &[]), started, keys: [None, None] }
    }

    /// A fresh nonce for this client. `anonymity` tells it to send USERHASH instead of USERNAME.
    pub(crate) fn issue(
        &mut self,
        realm: &str,
        client: SocketAddr,
        anonymity: bool,
        now: Instant,
    ) -> String {
        let features = PASSWORD_ALGORITHMS | if anonymity { USERNAME_ANONYMITY } else { 0 };
        let mut nonce = String::with_capacity(NONCE_LENGTH);
        nonce.push_str(COOKIE);
        STANDARD.encode_string([features, 0, 0], &mut nonce);
        let mut body = [0; 18];
        let made = self.seconds(now);
        body[..4].copy_from_slice(&made.to_be_bytes());
        body[4..6].copy_from_slice(&client.port().to_be_bytes());
        let tag = self.tag(nonce.as_bytes(), &body[..6], realm, client.ip(), made);
        body[6..].copy_from_slice(&tag);
        STANDARD.encode_string(body, &mut nonce);
        nonce
    }

    /// Judges what a client sent.
    pub(crate) fn check(
        &mut self,
        nonce: &[u8],
        realm: &str,
        source: IpAddr,
        now: Instant,
    ) -> NonceState {
        let mut body = [0; 18];
        let Some((cookie, text)) = nonce.split_first_chunk::<COOKIE_LENGTH>() else {
            return NonceState::Foreign;
        };
        if nonce.len() != NONCE_LENGTH || STANDARD.decode_slice(text, &mut body) != Ok(body.len()) {
            return NonceState::Foreign;
        }
        let made = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
        let now = self.seconds(now);
        // Ahead of this shard's clock is one of another shard.
        if hour(now).abs_diff(hour(made)) > 1 {
            return NonceState::Foreign;
        }
        let tag = self.tag(cookie, &body[..6], realm, source, made);
        if !bool::from(tag.ct_eq(&body[6..])) {
            return NonceState::Foreign;
        }
        let age = u64::from(now.saturating_sub(made));
        if age < NONCE_LIFETIME.as_secs() { NonceState::Valid } else { NonceState::Expired }
    }

    fn tag(
        &mut self,
        cookie: &[u8],
        body: &[u8],
        realm: &str,
        source: IpAddr,
        made: u32,
    ) -> [u8; 12] {
        let mut mac = self.key(hour(made)).clone();
        mac.update(cookie);
        mac.update(body);
        mac.update(&Source::of(source).bytes());
        mac.update(realm.as_bytes());
        let full = mac.finalize().into_bytes();
        let mut tag = [0; 12];
        tag.copy_from_slice(&full[..12]);
        tag
    }

    /// The key of an hour, kept ready until that of two hours later takes its place.
    fn key(&mut self, hour: u32) -> &Hmac<Sha256> {
        let slot = &mut self.keys[usize::from(hour % 2 == 1)];
        if slot.as_ref().is_some_and(|(of, _)| *of != hour) {
            *slot = None;
        }
        let seed = &self.seed;
        let make = || {
            let key = derive(seed, b"hour", &hour.to_be_bytes());
            (hour, Hmac::new_from_slice(&key).expect("HMAC takes keys of any length"))
        };
        &slot.get_or_insert_with(make).1
    }

    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.started).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}

/// Whether a client that sends this nonce was offered password algorithms (RFC 8489 §9.2.4).
pub(crate) fn offers_password_algorithms(nonce: &[u8]) -> bool {
    let mut features = [0; 3];
    nonce.strip_prefix(COOKIE.as_bytes()).and_then(|rest| rest.first_chunk::<4>()).is_some_and(
        |text| {
            STANDARD.decode_slice(text, &mut features) == Ok(3)
                && features[0] & PASSWORD_ALGORITHMS != 0
        },
    )
}

/// Which key made a nonce.
const fn hour(seconds: u32) -> u32 {
    seconds / 3600
}
