//! The opening of relay ports, and the answer to Allocate.
//!
//! ```text
//! port taken ─→ OpenRelay ─┬─ handle_relay_opened ──→ success, or ADDRESS-ERROR-CODE for one family
//!      ↑                   └─ handle_relay_refused ─┬→ 508 after 32 ports
//!      └──── another port ──────────────────────────┘
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Server;
use super::attributes::{family_number, lifetime_bytes};
use super::request::Failure;
use crate::five_tuple::{Family, FiveTuple, Side};
use crate::output::{Event, Output, RelaySocket};
use crate::refusal::Rule;
use crate::relay_port::{RelayPort, Wish};
use crate::shared::Reservation;
use crate::stun::{AttributeType, Class, ErrorCode, Key, Method, Writer};

/// RFC 8656 §7.2: at least 30 s.
const RESERVATION_LIFETIME: Duration = Duration::from_secs(30);

/// How many ports are tried for one allocation when other programs hold some.
const MAX_ATTEMPTS: usize = 32;

impl Server {
    /// Asks the caller for the sockets of an allocation's port.
    pub(super) fn open(&mut self, client: FiveTuple) {
        let Some(allocation) = self.allocations.by_client(&client) else {
            return;
        };
        let port = allocation.port;
        let mut sockets = Vec::new();
        for (_, leg) in allocation.legs.iter() {
            for side in [Side::Outside, Side::Inside] {
                if let Some(face) = leg.faces.face(side) {
                    let address = SocketAddr::new(face.local, port.0);
                    sockets.push(RelaySocket { side, address });
                }
            }
        }
        let transport = allocation.transport;
        self.outputs.push_back(Output::OpenRelay { relay: port, transport, sockets });
    }

    /// The sockets of [`Output::OpenRelay`] are bound in these families: the client is told.
    pub fn handle_relay_opened(&mut self, relay: RelayPort, opened: &[Family], now: Instant) {
        let Some(allocation) = self.allocations.by_port(relay) else {
            return;
        };
        let Some(opening) = &mut allocation.opening else {
            return;
        };
        let failed: Vec<_> =
            allocation.legs.families().filter(|family| !opened.contains(family)).collect();
        if failed.len() == allocation.legs.families().count() {
            self.handle_relay_refused(relay, now);
            return;
        }
        let (client, wish) = (allocation.client, opening.wish);
        if !failed.is_empty() && opening.refused.len() + 1 < MAX_ATTEMPTS {
            let another = self.shared.tables().ports.take(wish, &mut self.random);
            if let Some(another) = another {
                opening.refused.push(relay);
                self.outputs.push_back(Output::CloseRelay(relay));
                self.try_port(client, relay, another);
                return;
            }
        }
        for family in failed {
            self.allocations.change_legs(client, |allocation| {
                *allocation.legs.slot(family) = None;
                allocation.family_error = Some((family, ErrorCode::INSUFFICIENT_CAPACITY));
            });
        }
        self.opened(client, now);
    }

    /// The port is open: reserves the next one if that was asked for, and answers.
    fn opened(&mut self, client: FiveTuple, now: Instant) {
        let Some(allocation) = self.allocations.by_client(&client) else {
            return;
        };
        let (Some(opening), Some(relayed)) = (allocation.opening.take(), allocation.relayed())
        else {
            return;
        };
        let user = Arc::clone(&allocation.user);
        let mut tables = self.shared.tables();
        if opening.wish == Wish::EvenWithNext {
            let token = self.random.octets();
            allocation.token = Some(token);
            let expires_at = now + RESERVATION_LIFETIME;
            self.reservations.push_back(expires_at);
            tables.reservations.push(Reservation {
                token,
                port: RelayPort(allocation.port.0 + 1),
                family: Family::of(relayed.ip()),
                user: Arc::clone(&user),
                expires_at,
            });
        }
        for refused in opening.refused {
            tables.ports.release(refused);
        }
        drop(tables);
        self.counters.allocations += 1;
        self.outputs.push_back(Output::Event(Event::Allocated { client, user, relayed }));
        self.announce(client, &opening.key, opening.fingerprint, now);
    }

    /// The sockets of [`Output::OpenRelay`] cannot be bound: another port is tried, and in the
    /// end the client is told 508.
    pub fn handle_relay_refused(&mut self, relay: RelayPort, now: Instant) {
        let Self { allocations, shared, random, .. } = self;
        let Some(allocation) = allocations.by_port(relay) else {
            return;
        };
        let Some(opening) = allocation.opening.as_mut() else {
            return;
        };
        opening.refused.push(relay);
        if opening.wish == Wish::EvenWithNext {
            opening.refused.push(RelayPort(relay.0 + 1));
        }
        let client = allocation.client;
        let last = opening.from_reservation || opening.refused.len() >= MAX_ATTEMPTS;
        let another = (!last).then(|| shared.tables().ports.take(opening.wish, random)).flatten();
        if let Some(another) = another {
            self.try_port(client, relay, another);
            return;
        }
        let (key, fingerprint) = (opening.key.clone(), opening.fingerprint);
        let (transaction, user) = (allocation.transaction, Arc::clone(&allocation.user));
        self.free(client);
        let code = ErrorCode::INSUFFICIENT_CAPACITY;
        self.refuse(client, &user, Failure::rule(code, Rule::MediaPorts));
        let writer = Writer::new(Class::Error, Method::ALLOCATE, transaction).error(code);
        self.reply_with(client, fingerprint, writer, Some(&key));
        self.handle_timeout(now);
    }

    /// Opens another port for an allocation than the one that was refused.
    fn try_port(&mut self, client: FiveTuple, refused: RelayPort, another: RelayPort) {
        self.shared.set_owner(refused, None);
        self.shared.set_owner(another, Some(self.shard));
        self.allocations.set_port(client, another);
        self.open(client);
    }

    /// Answers the Allocate request that made an allocation, the first time or again.
    pub(super) fn announce(
        &mut self,
        client: FiveTuple,
        key: &Key,
        fingerprint: bool,
        now: Instant,
    ) {
        let ticket = self.ticket(client);
        let Some(allocation) = self.allocations.by_client(&client) else {
            return;
        };
        let mut writer = Writer::new(Class::Success, Method::ALLOCATE, allocation.transaction);
        for relayed in allocation.all_relayed() {
            writer = writer.xor_address(AttributeType::XOR_RELAYED_ADDRESS, relayed);
        }
        // Rounded up: an answer to a retransmission says what the first one said.
        let ends = allocation.legs.last_expiry();
        let left = ends.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let left = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
        writer = writer
            .attribute(AttributeType::LIFETIME, &lifetime_bytes(left))
            .xor_address(AttributeType::XOR_MAPPED_ADDRESS, client.client);
        if let Some(token) = allocation.token {
            writer = writer.attribute(AttributeType::RESERVATION_TOKEN, &token);
        }
        if let Some((family, code)) = allocation.family_error {
            writer = writer.attribute(AttributeType::ADDRESS_ERROR_CODE, &error_of(family, code));
        }
        if let Some(ticket) = ticket {
            writer = writer.attribute(AttributeType::MOBILITY_TICKET, &ticket);
        }
        self.reply_with(client, fingerprint, writer, Some(key));
    }
}

/// ADDRESS-ERROR-CODE (RFC 8656 §18.12).
fn error_of(family: Family, code: ErrorCode) -> Vec<u8> {
    let [_, hundreds] = (code.0 / 100).to_be_bytes();
    let [_, number] = (code.0 % 100).to_be_bytes();
    let mut value = vec![family_number(family), 0, hundreds, number];
    value.extend(code.reason().as_bytes());
    value
}
