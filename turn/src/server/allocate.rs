//! Allocate (RFC 8656 §7.2): what is asked for, whether it may be had, and the port.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Server;
use super::attributes::{
    granted_lifetime, lifetime, plain_address, requested_family, token, wants_both_families, wish,
};
use super::request::{Answer, Failure};
use crate::allocation::{Allocation, Leg, Legs, Opening, Traffic};
use crate::bandwidth::Bucket;
use crate::channel::Channels;
use crate::credential::Identity;
use crate::five_tuple::{Family, FiveTuple, Source, Transport};
use crate::mobility::Mobility;
use crate::output::RelayTransport;
use crate::permission::Permissions;
use crate::refusal::Rule;
use crate::relay_port::{RelayPort, Wish};
use crate::shared::Tables;
use crate::stun::{AttributeType, ErrorCode, Message, Writer};

/// RFC 8656 §18.8.
const PROTOCOL_UDP: u8 = 17;

/// RFC 6062 §6.2.
const PROTOCOL_TCP: u8 = 6;

/// How many reservations there are at most.
const MAX_RESERVATIONS: usize = 256;

/// What an Allocate request asks for.
struct Wanted {
    transport: RelayTransport,
    wish: Wish,
    token: Option<[u8; 8]>,
    /// REQUESTED-ADDRESS-FAMILY, or IPv4.
    family: Family,
    /// ADDITIONAL-ADDRESS-FAMILY.
    both_families: bool,
    lifetime: Duration,
    mobility: bool,
}

/// The port and families that an allocation gets.
struct Granted {
    port: RelayPort,
    families: Vec<Family>,
    family_error: Option<(Family, ErrorCode)>,
}

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
    ) -> Result<Answer, Failure> {
        if let Some(allocation) = self.allocations.by_client(&client) {
            let again = allocation.transaction == request.transaction();
            if !again || allocation.user != identity.user {
                return Err(ErrorCode::ALLOCATION_MISMATCH.into());
            }
            if allocation.opening.is_none() {
                self.announce(client, &identity.key, request.has_fingerprint(), now);
            }
            return Ok(Answer::Later);
        }
        let wanted = self.wanted(client, request)?;
        if let Some(drain) = &self.config.drain {
            let family = Family::of(client.client.ip());
            let elsewhere = drain.alternate.iter().any(|to| Family::of(to.ip()) == family);
            let code = match elsewhere {
                true => ErrorCode::TRY_ALTERNATE,
                false => ErrorCode::INSUFFICIENT_CAPACITY,
            };
            return Err(Failure::rule(code, Rule::Drain));
        }
        let granted = self.grant(client, &wanted, identity)?;
        self.insert(client, request, identity, &wanted, &granted, now);
        self.open(client);
        Ok(Answer::Later)
    }

    /// The order of RFC 8656 §7.2 and RFC 6062 §5.1.
    fn wanted(&self, client: FiveTuple, request: &Message<'_>) -> Result<Wanted, Failure> {
        let bad = ErrorCode::BAD_REQUEST;
        let transport = match request.attribute(AttributeType::REQUESTED_TRANSPORT) {
            Some([PROTOCOL_UDP, _, _, _]) => RelayTransport::Udp,
            Some([PROTOCOL_TCP, _, _, _]) => RelayTransport::Tcp,
            Some([_, _, _, _]) => return Err(ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL.into()),
            _ => return Err(bad.into()),
        };
        let wish = wish(request)?;
        let token = token(request)?;
        if transport == RelayTransport::Tcp {
            if !self.config.tcp_relay {
                let code = ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL;
                return Err(Failure::rule(code, Rule::TcpRelay));
            }
            let datagrams = request.attribute(AttributeType::DONT_FRAGMENT).is_some();
            if client.transport != Transport::Tcp
                || datagrams
                || wish != Wish::Any
                || token.is_some()
            {
                return Err(bad.into());
            }
        }
        let has = |kind| request.attribute(kind).is_some();
        let family = has(AttributeType::REQUESTED_ADDRESS_FAMILY);
        let additional = has(AttributeType::ADDITIONAL_ADDRESS_FAMILY);
        if token.is_some() && (family || additional || wish != Wish::Any) || family && additional {
            return Err(bad.into());
        }
        let both_families = wants_both_families(request)?;
        if both_families && wish == Wish::EvenWithNext {
            return Err(bad.into());
        }
        let mobility = match request.attribute(AttributeType::MOBILITY_TICKET) {
            None => false,
            Some(_) if !self.config.mobility => {
                return Err(Failure::rule(ErrorCode::MOBILITY_FORBIDDEN, Rule::Mobility));
            }
            Some([]) => true,
            Some(_) => return Err(bad.into()),
        };
        Ok(Wanted {
            transport,
            wish,
            token,
            family: requested_family(request)?.unwrap_or(Family::V4),
            both_families,
            lifetime: granted_lifetime(lifetime(request)?),
            // A TCP allocation ends with its control connection: there is nothing to move.
            mobility: mobility && transport == RelayTransport::Udp,
        })
    }

    /// Takes the port and counts the allocation, or does neither.
    fn grant(
        &mut self,
        client: FiveTuple,
        wanted: &Wanted,
        identity: &Identity,
    ) -> Result<Granted, Failure> {
        let Self { shared, config, random, shard, .. } = self;
        let source = Source::of(client.client.ip());
        let mut tables = shared.tables();
        let reserved = wanted.token.map(|token| reserved(&tables, token, identity)).transpose()?;
        let asked = match (reserved, wanted.both_families) {
            (Some(index), _) => vec![tables.reservations[index].family],
            (None, true) => vec![Family::V4, Family::V6],
            (None, false) => vec![wanted.family],
        };
        let (families, missing): (Vec<_>, Vec<_>) =
            asked.into_iter().partition(|family| config.faces(*family).is_some());
        if families.is_empty() {
            return Err(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED.into());
        }
        if wanted.wish == Wish::EvenWithNext && tables.reservations.len() >= MAX_RESERVATIONS {
            return Err(Failure::rule(ErrorCode::INSUFFICIENT_CAPACITY, Rule::TotalQuota));
        }
        tables.usage.check(config.quotas, &identity.user, source).map_err(|rule| {
            let code = match rule {
                Rule::TotalQuota => ErrorCode::INSUFFICIENT_CAPACITY,
                _ => ErrorCode::ALLOCATION_QUOTA_REACHED,
            };
            Failure::rule(code, rule)
        })?;
        let port = match reserved {
            Some(index) => Some(tables.reservations.swap_remove(index).port),
            None => tables.ports.take(wanted.wish, random),
        };
        let port = port.ok_or(Failure::rule(ErrorCode::INSUFFICIENT_CAPACITY, Rule::MediaPorts))?;
        tables.usage.add(&identity.user, source);
        shared.set_owner(port, Some(*shard));
        let unsupported = ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED;
        let family_error = missing.first().map(|family| (*family, unsupported));
        Ok(Granted { port, families, family_error })
    }

    fn insert(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        wanted: &Wanted,
        granted: &Granted,
        now: Instant,
    ) {
        let side = self.config.side_of_client(client);
        let told = self.config.told(side);
        let mut legs = Legs::default();
        for family in &granted.families {
            let leg = |faces| Leg { faces, told, expires_at: now + wanted.lifetime };
            *legs.slot(*family) = self.config.faces(*family).map(leg);
        }
        let mobility = wanted.mobility.then(|| Box::new(Mobility::new(self.next_ticket())));
        self.allocations.insert(Allocation {
            client,
            side,
            transport: wanted.transport,
            port: granted.port,
            legs,
            user: Arc::clone(&identity.user),
            permissions: Permissions::default(),
            channels: Channels::default(),
            traffic: Traffic::default(),
            bandwidth: Bucket::default(),
            icmp: Bucket::default(),
            transaction: request.transaction(),
            token: None,
            family_error: granted.family_error,
            opening: Some(Box::new(Opening {
                key: identity.key.clone(),
                fingerprint: request.has_fingerprint(),
                wish: wanted.wish,
                from_reservation: wanted.token.is_some(),
                refused: Vec::new(),
            })),
            mobility,
            connections: Vec::new(),
            limit_reported: false,
        });
    }

    /// Adds ALTERNATE-SERVER to a 300 (RFC 8489 §10).
    pub(super) fn with_alternate(
        &self,
        client: FiveTuple,
        code: ErrorCode,
        writer: Writer,
    ) -> Writer {
        let family = Family::of(client.client.ip());
        let alternates = self.config.drain.iter().flat_map(|drain| &drain.alternate);
        let alternate = alternates.copied().find(|to| Family::of(to.ip()) == family);
        match alternate.filter(|_| code == ErrorCode::TRY_ALTERNATE) {
            Some(to) => writer.attribute(AttributeType::ALTERNATE_SERVER, &plain_address(to)),
            None => writer,
        }
    }
}

/// The reservation that a token of this user's stands for.
fn reserved(tables: &Tables, token: [u8; 8], identity: &Identity) -> Result<usize, ErrorCode> {
    let mut reservations = tables.reservations.iter();
    let index = reservations
        .position(|reservation| reservation.token == token && reservation.user == identity.user);
    index.ok_or(ErrorCode::INSUFFICIENT_CAPACITY)
}
