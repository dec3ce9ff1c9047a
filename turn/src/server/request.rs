//! Requests other than Allocate: Binding, Refresh, CreatePermission, ChannelBind.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{Server, Tombstone};
use crate::allocation::{Allocation, DEFAULT_LIFETIME, MAX_LIFETIME};
use crate::channel::{BindError, ChannelNumber};
use crate::credential::Identity;
use crate::five_tuple::{Family, FiveTuple};
use crate::output::Output;
use crate::permission::Verdict;
use crate::policy::Reach;
use crate::stun::{AttributeType, Class, ErrorCode, Key, Message, Method, Writer};

/// Comprehension-required attributes that a request may carry.
const KNOWN: [AttributeType; 12] = [
    AttributeType::USERNAME,
    AttributeType::USERHASH,
    AttributeType::PASSWORD_ALGORITHM,
    AttributeType::CHANNEL_NUMBER,
    AttributeType::LIFETIME,
    AttributeType::XOR_PEER_ADDRESS,
    AttributeType::REALM,
    AttributeType::NONCE,
    AttributeType::REQUESTED_ADDRESS_FAMILY,
    AttributeType::EVEN_PORT,
    AttributeType::REQUESTED_TRANSPORT,
    AttributeType::RESERVATION_TOKEN,
];

/// Ports of peers that no client gets to: services of the system.
pub(super) const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

impl Server {
    pub(super) fn handle_request(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        now: Instant,
    ) {
        self.handle_timeout(now);
        match request.method() {
            Method::BINDING => self.handle_binding(client, request, now),
            Method::ALLOCATE
            | Method::REFRESH
            | Method::CREATE_PERMISSION
            | Method::CHANNEL_BIND => {
                if let Some(identity) = self.authenticate(client, request, now) {
                    self.handle_authenticated(client, request, &identity, now);
                }
            }
            _ => self.counters.malformed += 1,
        }
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
    ) {
        let unknown = unknown_attributes(request);
        if !unknown.is_empty() {
            let writer = Writer::answer(Class::Error, request)
                .error(ErrorCode::UNKNOWN_ATTRIBUTE)
                .attribute(AttributeType::UNKNOWN_ATTRIBUTES, &unknown);
            self.reply(client, request, writer, Some(&identity.key));
            return;
        }
        let result = match request.method() {
            Method::ALLOCATE => match self.allocate(client, request, identity, now) {
                Ok(()) => return,
                Err(code) => Err(code),
            },
            Method::REFRESH => self.refresh(client, request, identity, now),
            Method::CREATE_PERMISSION => self.create_permission(client, request, identity, now),
            _ => self.channel_bind(client, request, identity, now),
        };
        let writer = match result {
            Ok(None) => Writer::answer(Class::Success, request),
            Ok(Some(lifetime)) => Writer::answer(Class::Success, request)
                .attribute(AttributeType::LIFETIME, &lifetime_bytes(lifetime)),
            Err(code) => {
                self.count(code);
                Writer::answer(Class::Error, request).error(code)
            }
        };
        self.reply(client, request, writer, Some(&identity.key));
    }

    fn count(&mut self, code: ErrorCode) {
        match code {
            ErrorCode::FORBIDDEN => self.counters.forbidden += 1,
            ErrorCode::ALLOCATION_QUOTA_REACHED => self.counters.quota_reached += 1,
            ErrorCode::INSUFFICIENT_CAPACITY => self.counters.exhausted += 1,
            _ => {}
        }
    }

    /// RFC 8656 §8.2. Answers with the LIFETIME that is left.
    fn refresh(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        now: Instant,
    ) -> Result<Option<Duration>, ErrorCode> {
        let asked = lifetime(request)?;
        let again = |tombstone: &Tombstone| {
            tombstone.client == client
                && tombstone.transaction == request.transaction()
                && tombstone.user == identity.user
        };
        if self.allocations.by_client(client).is_none() && self.tombstones.iter().any(again) {
            return Ok(Some(Duration::ZERO));
        }
        let allocation = self.own_allocation(client, identity, now)?;
        if let Some(family) = requested_family(request)?
            && family != Family::of(allocation.told)
        {
            return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH);
        }
        if asked == Some(Duration::ZERO) {
            self.free(client);
            self.bury(Tombstone {
                client,
                transaction: request.transaction(),
                user: identity.user.clone(),
            });
            return Ok(Some(Duration::ZERO));
        }
        let granted = granted_lifetime(asked);
        self.allocations.set_expiry(client, now + granted);
        Ok(Some(granted))
    }

    /// RFC 8656 §10.2: all peers or none.
    fn create_permission(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        now: Instant,
    ) -> Result<Option<Duration>, ErrorCode> {
        let limit = self.config.quotas.per_allocation;
        let (side, family) = {
            let allocation = self.own_allocation(client, identity, now)?;
            (allocation.side, Family::of(allocation.told))
        };
        let mut peers = Vec::new();
        let mut verdicts = Vec::new();
        for peer in peers_of(request)? {
            if Family::of(peer) != family {
                return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH);
            }
            let reach = self.config.policy.reach(side, peer);
            if matches!(reach, Reach::Forbidden(_)) {
                return Err(ErrorCode::FORBIDDEN);
            }
            if !peers.contains(&peer) {
                peers.push(peer);
                verdicts.push(Verdict { reach, revision: self.revision });
            }
        }
        let allocation = self.own_allocation(client, identity, now)?;
        if !allocation.permissions.have_room(&peers, limit, now) {
            return Err(ErrorCode::INSUFFICIENT_CAPACITY);
        }
        for (peer, verdict) in peers.into_iter().zip(verdicts) {
            allocation.permissions.install(peer, verdict, now);
        }
        Ok(None)
    }

    /// RFC 8656 §12.2; installs a permission too.
    fn channel_bind(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        now: Instant,
    ) -> Result<Option<Duration>, ErrorCode> {
        let limit = self.config.quotas.per_allocation;
        let (side, family) = {
            let allocation = self.own_allocation(client, identity, now)?;
            (allocation.side, Family::of(allocation.told))
        };
        let number = request
            .attribute(AttributeType::CHANNEL_NUMBER)
            .and_then(|value| <[u8; 4]>::try_from(value).ok())
            .and_then(|value| ChannelNumber::new(u16::from_be_bytes([value[0], value[1]])))
            .ok_or(ErrorCode::BAD_REQUEST)?;
        let peer =
            request.xor_address(AttributeType::XOR_PEER_ADDRESS).ok_or(ErrorCode::BAD_REQUEST)?;
        if Family::of(peer.ip()) != family {
            return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH);
        }
        let verdict = Verdict { reach: self.reach_port(side, peer)?, revision: self.revision };
        let allocation = self.own_allocation(client, identity, now)?;
        match allocation.channels.check(number, peer, limit, now) {
            Err(BindError::Conflict) => return Err(ErrorCode::BAD_REQUEST),
            Err(BindError::Full) => return Err(ErrorCode::INSUFFICIENT_CAPACITY),
            Ok(()) => {}
        }
        if !allocation.permissions.have_room(&[peer.ip()], limit, now) {
            return Err(ErrorCode::INSUFFICIENT_CAPACITY);
        }
        allocation.permissions.install(peer.ip(), verdict, now);
        allocation.channels.bind(number, peer, verdict, now);
        Ok(None)
    }

    /// The policy's word on a peer address with its port.
    fn reach_port(
        &self,
        side: crate::five_tuple::Side,
        peer: SocketAddr,
    ) -> Result<Reach, ErrorCode> {
        let reach = self.config.policy.reach(side, peer.ip());
        let port_is_open = match reach {
            Reach::OwnRelay => self.shared.tables().ports.contains(peer.port()),
            Reach::Peer(_) => true,
            Reach::Forbidden(_) => false,
        };
        if port_is_open && peer.port() >= FIRST_UNPRIVILEGED_PORT {
            Ok(reach)
        } else {
            Err(ErrorCode::FORBIDDEN)
        }
    }

    /// The client's allocation, if this user made it (RFC 8656 §5).
    fn own_allocation(
        &mut self,
        client: FiveTuple,
        identity: &Identity,
        now: Instant,
    ) -> Result<&mut Allocation, ErrorCode> {
        let allocation = self
            .allocations
            .by_client(client)
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

/// The value of UNKNOWN-ATTRIBUTES for what `message` has and nobody here knows.
pub(super) fn unknown_attributes(message: &Message<'_>) -> Vec<u8> {
    let known = |kind: AttributeType| {
        !kind.is_comprehension_required()
            || KNOWN.contains(&kind)
            || kind == AttributeType::DATA && message.method() == Method::SEND
    };
    let mut unknown: Vec<_> =
        message.attributes().map(|(kind, _)| kind).filter(|kind| !known(*kind)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    unknown.into_iter().flat_map(|kind| kind.0.to_be_bytes()).collect()
}

/// LIFETIME of a request.
pub(super) fn lifetime(request: &Message<'_>) -> Result<Option<Duration>, ErrorCode> {
    let Some(value) = request.attribute(AttributeType::LIFETIME) else {
        return Ok(None);
    };
    let value = <[u8; 4]>::try_from(value).map_err(|_| ErrorCode::BAD_REQUEST)?;
    Ok(Some(Duration::from_secs(u32::from_be_bytes(value).into())))
}

/// What a client gets that asked for this (RFC 8656 §7.2).
pub(super) fn granted_lifetime(asked: Option<Duration>) -> Duration {
    asked.unwrap_or(DEFAULT_LIFETIME).clamp(DEFAULT_LIFETIME, MAX_LIFETIME)
}

pub(super) fn lifetime_bytes(lifetime: Duration) -> [u8; 4] {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}

/// REQUESTED-ADDRESS-FAMILY of a request; an unknown family is one this server does not have.
pub(super) fn requested_family(request: &Message<'_>) -> Result<Option<Family>, ErrorCode> {
    match request.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY) {
        None => Ok(None),
        Some([1, _, _, _]) => Ok(Some(Family::V4)),
        Some([2, _, _, _]) => Ok(Some(Family::V6)),
        Some([_, _, _, _]) => Err(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED),
        Some(_) => Err(ErrorCode::BAD_REQUEST),
    }
}

/// Every XOR-PEER-ADDRESS of a CreatePermission request; at least one.
fn peers_of(request: &Message<'_>) -> Result<Vec<IpAddr>, ErrorCode> {
    let peers: Option<Vec<_>> = request
        .attributes()
        .filter(|(kind, _)| *kind == AttributeType::XOR_PEER_ADDRESS)
        .map(|(_, value)| crate::stun::decode_xor_address(value, request.transaction()))
        .map(|address| address.map(|address| address.ip()))
        .collect();
    peers.filter(|peers| !peers.is_empty()).ok_or(ErrorCode::BAD_REQUEST)
}
