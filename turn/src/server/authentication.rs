//! Long-term credentials (RFC 8489 §9.2.4).
//!
//! ```text
//! no MESSAGE-INTEGRITY ─────────────→ 401 with REALM and NONCE     (no failure: the first try)
//! USERNAME, REALM or NONCE missing ─→ 400
//! nonce not ours, or too old ───────→ 438 with a new one
//! unknown user or wrong password ───→ 401, counted and reported    (the nonce proves the source)
//! ```
//!
//! The nonce is judged before the password: nobody learns about passwords, and no log line is
//! written, from a forged source.

use std::sync::Arc;
use std::time::Instant;

use super::Server;
use crate::five_tuple::FiveTuple;
use crate::nonce::NonceState;
use crate::output::Event;
use crate::output::Output;
use crate::stun::{AttributeType, Class, ErrorCode, Key, Message, Writer};

/// Who a request is from.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) user: Arc<str>,
    pub(super) key: Key,
}

impl Server {
    /// Checks a request's credentials; `None` when it was answered with an error or dropped.
    pub(super) fn authenticate(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        now: Instant,
    ) -> Option<Identity> {
        if !request.has_integrity() {
            self.challenge(client, request, ErrorCode::UNAUTHENTICATED, now);
            return None;
        }
        let user = request.attribute(AttributeType::USERNAME);
        let realm = request.attribute(AttributeType::REALM);
        let (Some(user), Some(_), true) =
            (user, realm, request.attribute(AttributeType::NONCE).is_some())
        else {
            self.challenge(client, request, ErrorCode::BAD_REQUEST, now);
            return None;
        };
        if self.nonce_state(client, request, now) != NonceState::Valid {
            self.challenge(client, request, ErrorCode::STALE_NONCE, now);
            return None;
        }
        let known = std::str::from_utf8(user)
            .ok()
            .and_then(|name| self.config.users.get_key_value(name))
            .map(|(name, key)| Identity { user: Arc::clone(name), key: key.clone() });
        // An unknown user costs the same time as a known one.
        let nobody = Key::long_term("", "", "");
        let matches = request.verify(known.as_ref().map_or(&nobody, |identity| &identity.key));
        if let (Some(identity), true) = (known, matches) {
            return Some(identity);
        }
        self.counters.refused_credentials += 1;
        let user = String::from_utf8_lossy(user).into_owned();
        let event = Event::RefusedCredentials { user, source: client.client };
        self.outputs.push_back(Output::Event(event));
        self.challenge(client, request, ErrorCode::UNAUTHENTICATED, now);
        None
    }

    /// What the request's nonce proves; without one, nothing.
    pub(super) fn nonce_state(
        &self,
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
        let mut writer = Writer::answer(Class::Error, request).error(code);
        if code != ErrorCode::BAD_REQUEST {
            let nonce = self.nonces.issue(&self.config.realm, client.client.ip(), now);
            writer = writer
                .attribute(AttributeType::REALM, self.config.realm.as_bytes())
                .attribute(AttributeType::NONCE, nonce.as_bytes());
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
