//! Long-term credentials (RFC 8489 §9.2.4).
//!
//! ```text
//! no MESSAGE-INTEGRITY(-SHA256) ────→ 401 with REALM and NONCE     (no failure: the first try)
//! its length wrong ─────────────────→ 400
//! USERNAME or USERHASH, REALM or
//!   NONCE missing ──────────────────→ 400
//! PASSWORD-ALGORITHM(S) not those of
//!   the challenge ──────────────────→ 400                          (a bid-down)
//! nonce not ours, or too old ───────→ 438 with a new one
//! unknown user, wrong password or
//!   realm, or over ─────────────────→ 401, counted and reported    (the nonce proves the source)
//! ```
//!
//! The nonce is judged before the password, where RFC 8489 has it last: nobody learns about
//! passwords, and no log line is written, from a forged source. The client tries again either way.
//!
//! # Amplification
//!
//! A challenge is all that a stranger gets. It says nothing but what RFC 8489 asks for: with a realm
//! of up to 28 octets it is at most three times as long as the smallest request on the wire, IPv4
//! and UDP headers included, and [`ReplyLimit`](crate::reply_limit::ReplyLimit) bounds how many
//! there are.

use std::time::{Duration, Instant};

use super::Server;
use crate::credential::{At, Claim, Identity, Name, judge};
use crate::five_tuple::FiveTuple;
use crate::nonce::{NonceState, offers_password_algorithms};
use crate::output::{Event, Output};
use crate::stun::{
    AttributeType, Class, ErrorCode, Integrity, Message, Method, PasswordAlgorithm, Writer,
};

/// PASSWORD-ALGORITHMS: SHA-256 preferred, MD5.
const PASSWORD_ALGORITHMS: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

impl Server {
    /// Checks a request's credentials; `None` when it was answered with an error or dropped.
    pub(super) fn authenticate(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        now: Instant,
    ) -> Option<Identity> {
        match self.check_credentials(client, request, now) {
            Ok(identity) => Some(identity),
            Err(code) => {
                self.challenge(client, request, code, now);
                None
            }
        }
    }

    fn check_credentials(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        now: Instant,
    ) -> Result<Identity, ErrorCode> {
        if !request.has_integrity() {
            return Err(ErrorCode::UNAUTHENTICATED);
        }
        let username = request.attribute(AttributeType::USERNAME);
        let name = match (username, request.attribute(AttributeType::USERHASH)) {
            (Some(name), None) => Name::Plain(name),
            (None, Some(hash)) => Name::Hash(hash),
            _ => return Err(ErrorCode::BAD_REQUEST),
        };
        let (Some(realm), Some(nonce), Some(_)) = (
            request.attribute(AttributeType::REALM),
            request.attribute(AttributeType::NONCE),
            request.integrity(),
        ) else {
            return Err(ErrorCode::BAD_REQUEST);
        };
        let chosen = chosen_algorithm(request, nonce)?;
        if self.nonce_state(client, request, now) != NonceState::Valid {
            return Err(ErrorCode::STALE_NONCE);
        }
        let at = match request.method() {
            Method::ALLOCATE => At::WallClock(self.unix_time(now)),
            _ => At::AnyTime,
        };
        let claim = Claim { name, realm, algorithm: chosen.unwrap_or(PasswordAlgorithm::Md5), at };
        match judge(&self.config.credentials, &mut self.kept_keys, request, claim) {
            Ok(mut identity) => {
                // Who negotiated nothing may not know the other attribute (RFC 8489 §9.2.4).
                let integrity = chosen.map_or(Integrity::Sha1, |_| Integrity::Sha256);
                identity.key = identity.key.signing(integrity);
                Ok(identity)
            }
            Err(reason) => {
                self.counters.refused_credentials += 1;
                let user = self.config.credentials.display(name);
                let source = client.client;
                let event = Event::RefusedCredentials { user, source, reason };
                self.outputs.push_back(Output::Event(event));
                Err(ErrorCode::UNAUTHENTICATED)
            }
        }
    }

    fn unix_time(&self, now: Instant) -> Option<Duration> {
        let (unix, at) = self.wall_clock?;
        Some(unix + now.saturating_duration_since(at))
    }

    /// What the request's nonce proves; without one, nothing.
    pub(super) fn nonce_state(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        now: Instant,
    ) -> NonceState {
        let nonce = request.attribute(AttributeType::NONCE).unwrap_or_default();
        self.nonces.check(nonce, &self.config.realm, client.client.ip(), now)
    }

    /// Answers with an error that tells realm and nonce, unless the source may be forged and has
    /// been answered often enough.
    fn challenge(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        code: ErrorCode,
        now: Instant,
    ) {
        if !self.may_answer(client, request, now) {
            return;
        }
        let mut writer = Writer::answer(Class::Error, request).terse_error(code);
        if code != ErrorCode::BAD_REQUEST {
            let anonymity = self.config.credentials.anonymity();
            let nonce = self.nonces.issue(&self.config.realm, client.client, anonymity, now);
            writer = writer
                .attribute(AttributeType::REALM, self.config.realm.as_bytes())
                .attribute(AttributeType::NONCE, nonce.as_bytes())
                .attribute(AttributeType::PASSWORD_ALGORITHMS, &PASSWORD_ALGORITHMS);
        }
        self.reply(client, request, writer, None);
    }

    /// Whether a request whose credentials are not checked may be answered.
    pub(super) fn may_answer(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        now: Instant,
    ) -> bool {
        let proven = self.nonce_state(client, request, now) != NonceState::Foreign;
        if proven || self.reply_limit.admit(self.config.reply_rate, client.client.ip(), now) {
            return true;
        }
        self.counters.limited_replies += 1;
        false
    }
}

/// The password algorithm that a client chose, `None` when it did not choose (and means MD5).
///
/// # Errors
///
/// [`ErrorCode::BAD_REQUEST`] when it was not offered that choice: somebody between the client and
/// here weakened the offer.
fn chosen_algorithm(
    request: &Message<'_>,
    nonce: &[u8],
) -> Result<Option<PasswordAlgorithm>, ErrorCode> {
    if !offers_password_algorithms(nonce) {
        return Ok(None);
    }
    let chosen = request.attribute(AttributeType::PASSWORD_ALGORITHM);
    match (request.attribute(AttributeType::PASSWORD_ALGORITHMS), chosen) {
        (None, None) => Ok(None),
        (Some(offered), Some(chosen)) if offered == PASSWORD_ALGORITHMS => {
            PasswordAlgorithm::of(chosen).map(Some).ok_or(ErrorCode::BAD_REQUEST)
        }
        _ => Err(ErrorCode::BAD_REQUEST),
    }
}
