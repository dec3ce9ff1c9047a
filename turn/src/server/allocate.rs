//! Allocate (RFC 8656 §7.2) and the opening of relay ports.
//!
//! ```text
//! Allocate ─→ port taken ─→ OpenRelay ─┬─ handle_relay_opened ──→ success
//!                  ↑                   └─ handle_relay_refused ─┬→ 508 after 32 ports
//!                  └──── another port ──────────────────────────┘
//! ```

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Server;
use super::request::{granted_lifetime, lifetime, lifetime_bytes, requested_family};
use crate::allocation::{Allocation, Opening, Traffic};
use crate::channel::Channels;
use crate::credential::Identity;
use crate::five_tuple::{Family, FiveTuple, Side, Source};
use crate::output::{Event, Output, RelaySocket, RelayTransport};
use crate::permission::Permissions;
use crate::quota::Exceeded;
use crate::relay_port::{RelayPort, Wish};
use crate::shared::Reservation;
use crate::stun::{AttributeType, Class, ErrorCode, Key, Message, Method, Writer};

/// RFC 8656 §18.8.
const PROTOCOL_UDP: u8 = 17;

/// RFC 8656 §7.2: at least 30 s.
const RESERVATION_LIFETIME: Duration = Duration::from_secs(30);

/// How many reservations there are at most.
const MAX_RESERVATIONS: usize = 256;

/// How many ports are tried for one allocation when other programs hold some.
const MAX_ATTEMPTS: usize = 32;

impl Server {
    /// Handles an Allocate request whose credentials are already checked.
    ///
    /// On success the answer waits for [`Self::handle_relay_opened`].
    pub(super) fn allocate(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        if let Some(allocation) = self.allocations.by_client(client) {
            let again = allocation.transaction == request.transaction();
            if !again || allocation.user != identity.user {
                return Err(ErrorCode::ALLOCATION_MISMATCH);
            }
            if allocation.opening.is_none() {
                self.announce(client, &identity.key, request.has_fingerprint(), now);
            }
            return Ok(());
        }
        match request.attribute(AttributeType::REQUESTED_TRANSPORT) {
            Some([PROTOCOL_UDP, _, _, _]) => {}
            Some([_, _, _, _]) => return Err(ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL),
            _ => return Err(ErrorCode::BAD_REQUEST),
        }
        let family = requested_family(request)?;
        let wish = wish(request)?;
        let token = token(request)?;
        if token.is_some() && (family.is_some() || wish != Wish::Any) {
            return Err(ErrorCode::BAD_REQUEST);
        }
        let granted = granted_lifetime(lifetime(request)?);
        let source = Source::of(client.client.ip());
        let room = self.shared.tables().usage.check(self.config.quotas, &identity.user, source);
        room.map_err(|exceeded| match exceeded {
            Exceeded::UserOrSource => ErrorCode::ALLOCATION_QUOTA_REACHED,
            Exceeded::Total => self.exhausted(),
        })?;
        let (family, port) = self.pick(family, wish, token, identity)?;
        let faces = self.config.faces(family).ok_or(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED)?;
        let side = self.config.side_of_client(client);
        self.allocations.insert(Allocation {
            client,
            side,
            user: identity.user.clone(),
            port,
            faces,
            told: self.config.told(faces, side),
            transaction: request.transaction(),
            token: None,
            expires_at: now + granted,
            opening: Some(Opening {
                key: identity.key.clone(),
                fingerprint: request.has_fingerprint(),
                wish,
                from_reservation: token.is_some(),
                refused: Vec::new(),
            }),
            permissions: Permissions::default(),
            channels: Channels::default(),
            traffic: Traffic::default(),
        });
        self.shared.tables().usage.add(&identity.user, source);
        self.shared.set_owner(port, Some(self.shard));
        self.open(client);
        Ok(())
    }

    /// Takes a port: the reserved one, or one that fulfils the wish.
    fn pick(
        &mut self,
        family: Option<Family>,
        wish: Wish,
        token: Option<[u8; 8]>,
        identity: &Identity,
    ) -> Result<(Family, RelayPort), ErrorCode> {
        let mut tables = self.shared.tables();
        if let Some(token) = token {
            let held = |reservation: &Reservation| {
                reservation.token == token && reservation.user == identity.user
            };
            let index = tables.reservations.iter().position(held);
            let index = index.ok_or(ErrorCode::INSUFFICIENT_CAPACITY)?;
            let reservation = tables.reservations.swap_remove(index);
            return Ok((reservation.family, reservation.port));
        }
        let family = family.unwrap_or(Family::V4);
        if self.config.faces(family).is_none() {
            return Err(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED);
        }
        if wish == Wish::EvenWithNext && tables.reservations.len() >= MAX_RESERVATIONS {
            return Err(ErrorCode::INSUFFICIENT_CAPACITY);
        }
        let port = tables.ports.take(wish, &mut self.random);
        drop(tables);
        port.map(|port| (family, port)).ok_or_else(|| self.exhausted())
    }

    /// Reports that there is no more room.
    fn exhausted(&mut self) -> ErrorCode {
        self.outputs.push_back(Output::Event(Event::Exhausted));
        ErrorCode::INSUFFICIENT_CAPACITY
    }

    /// Asks the caller for the sockets of an allocation's port.
    fn open(&mut self, client: FiveTuple) {
        if let Some(allocation) = self.allocations.by_client(client) {
            let port = allocation.port;
            let at = |ip| SocketAddr::new(ip, port.0);
            let outside = Some((Side::Outside, allocation.faces.outside));
            let inside = allocation.faces.inside.map(|face| (Side::Inside, face));
            let sockets = outside.into_iter().chain(inside);
            let sockets = sockets.map(|(side, face)| RelaySocket { side, address: at(face.local) });
            self.outputs.push_back(Output::OpenRelay {
                relay: port,
                transport: RelayTransport::Udp,
                sockets: sockets.collect(),
            });
        }
    }

    /// The sockets of [`Output::OpenRelay`] are bound in these families: the client is told.
    pub fn handle_relay_opened(&mut self, port: RelayPort, opened: &[Family], now: Instant) {
        if opened.is_empty() {
            self.handle_relay_refused(port, now);
            return;
        }
        let Some(allocation) = self.allocations.by_port(port) else {
            return;
        };
        let Some(opening) = allocation.opening.take() else {
            return;
        };
        if opening.wish == Wish::EvenWithNext {
            let token = self.random.octets();
            allocation.token = Some(token);
            let expires_at = now + RESERVATION_LIFETIME;
            self.reservations.push_back(expires_at);
            self.shared.tables().reservations.push(Reservation {
                token,
                port: RelayPort(port.0 + 1),
                family: Family::of(allocation.told),
                user: allocation.user.clone(),
                expires_at,
            });
        }
        let client = allocation.client;
        let event = Event::Allocated {
            client,
            user: allocation.user.clone(),
            relayed: allocation.relayed(),
        };
        for refused in opening.refused {
            self.shared.tables().ports.release(refused);
        }
        self.counters.allocations += 1;
        self.outputs.push_back(Output::Event(event));
        self.announce(client, &opening.key, opening.fingerprint, now);
    }

    /// The sockets of [`Output::OpenRelay`] cannot be bound: another port is tried, and in the
    /// end the client is told 508.
    pub fn handle_relay_refused(&mut self, port: RelayPort, _now: Instant) {
        let Some(allocation) = self.allocations.by_port(port) else {
            return;
        };
        let Some(opening) = allocation.opening.as_mut() else {
            return;
        };
        opening.refused.push(port);
        if opening.wish == Wish::EvenWithNext {
            opening.refused.push(RelayPort(port.0 + 1));
        }
        let client = allocation.client;
        let another = if opening.from_reservation || opening.refused.len() >= MAX_ATTEMPTS {
            None
        } else {
            self.shared.tables().ports.take(opening.wish, &mut self.random)
        };
        if let Some(another) = another {
            self.shared.set_owner(port, None);
            self.shared.set_owner(another, Some(self.shard));
            self.allocations.set_port(client, another);
            self.open(client);
            return;
        }
        let (key, fingerprint) = (opening.key.clone(), opening.fingerprint);
        let transaction = allocation.transaction;
        self.free(client);
        let code = self.exhausted();
        self.counters.exhausted += 1;
        let writer = Writer::new(Class::Error, Method::ALLOCATE, transaction).error(code);
        self.reply_with(client, fingerprint, writer, Some(&key));
    }

    /// Answers the Allocate request that made an allocation, the first time or again.
    fn announce(&mut self, client: FiveTuple, key: &Key, fingerprint: bool, now: Instant) {
        let Some(allocation) = self.allocations.by_client(client) else {
            return;
        };
        // Rounded up: an answer to a retransmission says what the first one said.
        let left = allocation.expires_at.saturating_duration_since(now);
        let left = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
        let mut writer = Writer::new(Class::Success, Method::ALLOCATE, allocation.transaction)
            .xor_address(AttributeType::XOR_RELAYED_ADDRESS, allocation.relayed())
            .attribute(AttributeType::LIFETIME, &lifetime_bytes(left))
            .xor_address(AttributeType::XOR_MAPPED_ADDRESS, client.client);
        if let Some(token) = allocation.token {
            writer = writer.attribute(AttributeType::RESERVATION_TOKEN, &token);
        }
        self.reply_with(client, fingerprint, writer, Some(key));
    }
}

/// EVEN-PORT of a request (RFC 8656 §18.7).
fn wish(request: &Message<'_>) -> Result<Wish, ErrorCode> {
    match request.attribute(AttributeType::EVEN_PORT) {
        None => Ok(Wish::Any),
        Some([bits]) if bits & 0x80 == 0 => Ok(Wish::Even),
        Some([_]) => Ok(Wish::EvenWithNext),
        Some(_) => Err(ErrorCode::BAD_REQUEST),
    }
}

/// RESERVATION-TOKEN of a request (RFC 8656 §18.10).
fn token(request: &Message<'_>) -> Result<Option<[u8; 8]>, ErrorCode> {
    match request.attribute(AttributeType::RESERVATION_TOKEN) {
        None => Ok(None),
        Some(value) => value.try_into().map(Some).map_err(|_| ErrorCode::BAD_REQUEST),
    }
}
