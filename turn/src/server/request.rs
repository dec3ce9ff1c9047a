//! Requests: who handles which, what is refused, and how answers leave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Server;
use super::attributes::{lifetime_bytes, unknown_attributes};
use crate::allocation::Allocation;
use crate::credential::Identity;
use crate::five_tuple::FiveTuple;
use crate::output::{Event, Output, Relayed};
use crate::refusal::Rule;
use crate::stun::{AttributeType, Class, ErrorCode, Key, Message, Method, Writer};

/// Why a request gets an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Failure {
    pub(super) code: ErrorCode,
    /// There when a rule of the site's refuses what the protocol allows.
    pub(super) refusal: Option<(Rule, Option<SocketAddr>)>,
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        Self { code, refusal: None }
    }
}

impl Failure {
    /// A rule refuses the request.
    pub(super) const fn rule(code: ErrorCode, rule: Rule) -> Self {
        Self { code, refusal: Some((rule, None)) }
    }

    /// A rule refuses the peer.
    pub(super) const fn peer(rule: Rule, peer: SocketAddr) -> Self {
        Self { code: ErrorCode::FORBIDDEN, refusal: Some((rule, Some(peer))) }
    }
}

/// What a request that went well is answered with.
pub(super) enum Answer {
    /// Nothing but success.
    Success,
    /// LIFETIME.
    Lifetime(Duration),
    /// LIFETIME and MOBILITY-TICKET.
    Moved(Duration, [u8; crate::mobility::TICKET_LENGTH]),
    /// The answer comes later, or came already.
    Later,
    /// Another shard answers.
    Elsewhere(Relayed),
}

impl Server {
    pub(super) fn handle_request(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        now: Instant,
    ) -> Option<Relayed> {
        self.handle_timeout(now);
        match request.method() {
            Method::BINDING => self.handle_binding(client, request, now),
            Method::ALLOCATE
            | Method::REFRESH
            | Method::CREATE_PERMISSION
            | Method::CHANNEL_BIND
            | Method::CONNECT
            | Method::CONNECTION_BIND => {
                if let Some(identity) = self.authenticate(client, request, now) {
                    return self.handle_authenticated(client, request, &identity, now);
                }
            }
            _ => self.counters.malformed += 1,
        }
        None
    }

    /// RFC 8489 §6.3.1: Binding, which needs no credentials.
    fn handle_binding(&mut self, client: FiveTuple, request: &Message<'_>, now: Instant) {
        if !self.may_answer(client, request, now) {
            return;
        }
        let unknown = unknown_attributes(request);
        let writer = if unknown.is_empty() {
            Writer::answer(Class::Success, request)
                .xor_address(AttributeType::XOR_MAPPED_ADDRESS, client.client)
        } else {
            Writer::answer(Class::Error, request)
                .error(ErrorCode::UNKNOWN_ATTRIBUTE)
                .attribute(AttributeType::UNKNOWN_ATTRIBUTES, &unknown)
        };
        self.reply(client, request, writer, None);
    }

    fn handle_authenticated(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        now: Instant,
    ) -> Option<Relayed> {
        let unknown = unknown_attributes(request);
        if !unknown.is_empty() {
            let writer = Writer::answer(Class::Error, request)
                .error(ErrorCode::UNKNOWN_ATTRIBUTE)
                .attribute(AttributeType::UNKNOWN_ATTRIBUTES, &unknown);
            self.reply(client, request, writer, Some(&identity.key));
            return None;
        }
        let result = match request.method() {
            Method::ALLOCATE => self.allocate(client, request, identity, now),
            Method::REFRESH => self.refresh(client, request, identity, now),
            Method::CREATE_PERMISSION => self.create_permission(client, request, identity, now),
            Method::CHANNEL_BIND => self.channel_bind(client, request, identity, now),
            Method::CONNECT => self.connect(client, request, identity, now),
            _ => self.connection_bind(client, request, identity, now),
        };
        let success = || Writer::answer(Class::Success, request);
        let writer = match result {
            Ok(Answer::Later) => return None,
            Ok(Answer::Elsewhere(relayed)) => {
                self.counters.to_other_shard += 1;
                return Some(relayed);
            }
            Ok(Answer::Success) => success(),
            Ok(Answer::Lifetime(left)) => {
                success().attribute(AttributeType::LIFETIME, &lifetime_bytes(left))
            }
            Ok(Answer::Moved(left, ticket)) => success()
                .attribute(AttributeType::LIFETIME, &lifetime_bytes(left))
                .attribute(AttributeType::MOBILITY_TICKET, &ticket),
            Err(failure) => {
                self.refuse(client, &identity.user, failure);
                let writer = Writer::answer(Class::Error, request).error(failure.code);
                self.with_alternate(client, failure.code, writer)
            }
        };
        self.reply(client, request, writer, Some(&identity.key));
        None
    }

    /// Counts and reports an error.
    pub(super) fn refuse(&mut self, client: FiveTuple, user: &Arc<str>, failure: Failure) {
        match failure.code {
            ErrorCode::FORBIDDEN => self.counters.forbidden += 1,
            ErrorCode::ALLOCATION_QUOTA_REACHED => self.counters.quota_reached += 1,
            ErrorCode::INSUFFICIENT_CAPACITY => self.counters.exhausted += 1,
            _ => {}
        }
        let Some((rule, peer)) = failure.refusal else {
            return;
        };
        self.counters.refused.count(rule);
        if rule == Rule::MediaPorts {
            self.outputs.push_back(Output::Event(Event::Exhausted));
        }
        let (user, code) = (Arc::clone(user), failure.code);
        self.outputs.push_back(Output::Event(Event::Refused { client, user, peer, rule, code }));
    }

    /// The client's allocation, if this user made it (RFC 8656 §5).
    pub(super) fn own_allocation(
        &mut self,
        client: FiveTuple,
        identity: &Identity,
        now: Instant,
    ) -> Result<&mut Allocation, ErrorCode> {
        let allocation = self
            .allocations
            .by_client(&client)
            .filter(|allocation| allocation.is_live(now))
            .ok_or(ErrorCode::ALLOCATION_MISMATCH)?;
        if allocation.user == identity.user {
            Ok(allocation)
        } else {
            Err(ErrorCode::WRONG_CREDENTIALS)
        }
    }

    /// Finishes and queues the answer to `request`.
    pub(super) fn reply(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        writer: Writer,
        key: Option<&Key>,
    ) {
        self.reply_with(client, request.has_fingerprint(), writer, key);
    }

    /// Finishes and queues an answer: integrity when the request was authenticated, FINGERPRINT
    /// when it had one.
    pub(super) fn reply_with(
        &mut self,
        client: FiveTuple,
        fingerprint: bool,
        mut writer: Writer,
        key: Option<&Key>,
    ) {
        if let Some(key) = key {
            writer = writer.integrity(key);
        }
        if fingerprint {
            writer = writer.fingerprint();
        }
        self.outputs.push_back(Output::Reply { client, message: writer.finish() });
    }
}
