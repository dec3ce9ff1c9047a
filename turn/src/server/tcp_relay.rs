//! TCP allocations: Connect, ConnectionBind, ConnectionAttempt (RFC 6062 §5).

use std::net::SocketAddr;
use std::time::Instant;

use super::Server;
use super::attributes::{connection_id, peer_of};
use super::request::{Answer, Failure};
use crate::allocation::{Allocation, Origin};
use crate::connection::{Connection, MAX_UNBOUND_PER_ALLOCATION, Pending, State};
use crate::credential::Identity;
use crate::five_tuple::{Family, FiveTuple, Side, Source, Transport};
use crate::output::{ConnectError, ConnectionId, Errand, Output, RelayTransport, Relayed};
use crate::policy::Reach;
use crate::refusal::Rule;
use crate::relay_port::RelayPort;
use crate::stun::{AttributeType, Class, ErrorCode, Message, Method, Writer};

impl Server {
    /// RFC 6062 §5.2: connects to a peer. The answer waits for [`Self::handle_connected`].
    pub(super) fn connect(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        now: Instant,
    ) -> Result<Answer, Failure> {
        let allocation = self.own_allocation(client, identity, now)?;
        if allocation.transport != RelayTransport::Tcp {
            return Err(ErrorCode::ALLOCATION_MISMATCH.into());
        }
        let (side, relay) = (allocation.side, allocation.port);
        let peer = peer_of(request)?;
        let family = Family::of(peer.ip());
        let leg =
            *allocation.live_leg(family, now).ok_or(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH)?;
        let origin = allocation.origin(family);
        let reach = self.reach_port(side, peer)?;
        let target = match reach {
            Reach::OwnRelay => Some(self.shared.owner(RelayPort(peer.port())).ok_or(Failure {
                code: ErrorCode::CONNECTION_TIMEOUT_OR_FAILURE,
                refusal: Some((Rule::NoSuchRelay, Some(peer))),
            })?),
            _ => None,
        };
        if self.is_connected(client, peer) {
            return Err(ErrorCode::CONNECTION_ALREADY_EXISTS.into());
        }
        let pending = Pending {
            client,
            transaction: request.transaction(),
            key: identity.key.clone(),
            fingerprint: request.has_fingerprint(),
        };
        let state = State::Connecting(pending);
        let full = Failure::rule(ErrorCode::ALLOCATION_QUOTA_REACHED, Rule::AllocationQuota);
        let connection = self.add_connection(client, peer, state, now).ok_or(full)?;
        match (reach, target) {
            (Reach::Peer(side), _) => {
                if let Some(face) = leg.faces.face(side) {
                    let local = SocketAddr::new(face.local, relay.0);
                    let connect = Output::Connect { connection, relay, side, local, peer };
                    self.outputs.push_back(connect);
                }
            }
            (_, Some(shard)) => {
                let target = peer;
                let connect = Output::ConnectInside { connection, shard, origin, target };
                self.outputs.push_back(connect);
            }
            _ => {}
        }
        Ok(Answer::Later)
    }

    /// Whether the client's allocation has a connection to that peer, made or in the making.
    fn is_connected(&mut self, client: FiveTuple, peer: SocketAddr) -> bool {
        let Self { allocations, connections, .. } = self;
        let Some(allocation) = allocations.by_client(&client) else {
            return false;
        };
        let mut found = allocation.connections.iter().filter_map(|id| connections.get(*id));
        found.any(|connection| connection.peer == peer)
    }

    /// Adds a connection to the client's allocation, if the bounds allow it.
    fn add_connection(
        &mut self,
        client: FiveTuple,
        peer: SocketAddr,
        state: State,
        now: Instant,
    ) -> Option<ConnectionId> {
        let limit = self.config.quotas.per_allocation;
        let Self { allocations, connections, random, shard, .. } = self;
        let allocation = allocations.by_client(&client)?;
        let found = allocation.connections.iter().filter_map(|id| connections.get(*id));
        let unbound = found.filter(|found| !matches!(found.state, State::Bound)).count();
        if unbound >= MAX_UNBOUND_PER_ALLOCATION || allocation.connections.len() >= limit {
            return None;
        }
        let source = Source::of(client.client.ip());
        let connection = Connection { relay: allocation.port, source, peer, state };
        let id = connections.insert(connection, *shard, random, now)?;
        allocation.connections.push(id);
        Some(id)
    }

    /// The connection of [`Output::Connect`] or [`Output::ConnectInside`] is there, or failed: the
    /// client is told.
    pub fn handle_connected(
        &mut self,
        connection: ConnectionId,
        result: Result<(), ConnectError>,
        now: Instant,
    ) {
        if result.is_err() {
            self.fail(connection);
            return;
        }
        let Some(pending) = self.connections.connected(connection, now) else {
            self.outputs.push_back(Output::CloseConnection(connection));
            return;
        };
        self.counters.connections += 1;
        let writer = Writer::new(Class::Success, Method::CONNECT, pending.transaction)
            .attribute(AttributeType::CONNECTION_ID, &connection.0.to_be_bytes());
        self.reply_with(pending.client, pending.fingerprint, writer, Some(&pending.key));
    }

    /// Forgets a connection; a Connect request that waits for it gets 447.
    fn fail(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(id) else {
            return;
        };
        if let Some(allocation) = self.allocations.by_port(connection.relay) {
            allocation.connections.retain(|other| *other != id);
        }
        if let State::Connecting(pending) = connection.state {
            let writer = Writer::new(Class::Error, Method::CONNECT, pending.transaction)
                .error(ErrorCode::CONNECTION_TIMEOUT_OR_FAILURE);
            self.reply_with(pending.client, pending.fingerprint, writer, Some(&pending.key));
        }
    }

    /// Patience with a connection is over.
    pub(super) fn give_up(&mut self, connection: ConnectionId) {
        self.fail(connection);
        self.outputs.push_back(Output::CloseConnection(connection));
    }

    /// A peer connected to a TCP relay (RFC 6062 §5.3); `None`: close it. Nothing that it sends is
    /// to be lost: the client has 30 s to bind.
    pub fn handle_peer_connected(
        &mut self,
        relay: RelayPort,
        face: Side,
        peer: SocketAddr,
        now: Instant,
    ) -> Option<ConnectionId> {
        let peer = SocketAddr::new(peer.ip(), peer.port());
        let allocation = tcp_allocation(self.allocations.by_port(relay));
        let Some(allocation) =
            allocation.filter(|found| found.live_leg(Family::of(peer.ip()), now).is_some())
        else {
            self.counters.no_allocation += 1;
            return None;
        };
        if allocation.permissions.find(peer.ip(), now).is_none() {
            self.counters.no_permission += 1;
            return None;
        }
        match self.config.policy.reach(allocation.side, peer.ip()) {
            Reach::Peer(side) if side == face => {}
            Reach::Peer(_) => {
                self.counters.wrong_face += 1;
                return None;
            }
            Reach::OwnRelay => {
                self.deny(Rule::OwnAddress);
                return None;
            }
            Reach::Forbidden(denial) => {
                self.deny(denial.into());
                return None;
            }
        }
        let client = allocation.client;
        self.accept(client, peer, now)
    }

    /// Another TCP relay of our own connects to `target` here ([`Output::ConnectInside`]);
    /// `None`: close it.
    pub fn handle_relay_connected(
        &mut self,
        origin: Origin,
        target: SocketAddr,
        now: Instant,
    ) -> Option<ConnectionId> {
        let allocation = tcp_allocation(self.allocations.by_port(RelayPort(target.port())));
        let Some(allocation) = allocation.filter(|found| found.answers_to(target.ip(), now)) else {
            self.counters.dead_own_address += 1;
            return None;
        };
        let mut forms = origin.forms(&self.config);
        let Some(peer) = forms.find(|form| allocation.permissions.find(form.ip(), now).is_some())
        else {
            self.counters.no_permission += 1;
            return None;
        };
        let client = allocation.client;
        self.accept(client, peer, now)
    }

    /// Adds a connection that a peer made, and tells the client.
    fn accept(
        &mut self,
        client: FiveTuple,
        peer: SocketAddr,
        now: Instant,
    ) -> Option<ConnectionId> {
        let Some(id) = self.add_connection(client, peer, State::Unbound, now) else {
            self.deny(Rule::AllocationQuota);
            return None;
        };
        self.counters.connections += 1;
        let transaction = self.next_indication();
        let message = Writer::new(Class::Indication, Method::CONNECTION_ATTEMPT, transaction)
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
            .attribute(AttributeType::CONNECTION_ID, &id.0.to_be_bytes())
            .finish();
        self.outputs.push_back(Output::Reply { client, message });
        Some(id)
    }

    /// RFC 6062 §5.4: makes a client's new connection the data of a connection to a peer.
    pub(super) fn connection_bind(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        _now: Instant,
    ) -> Result<Answer, Failure> {
        let bad = Failure::from(ErrorCode::BAD_REQUEST);
        let id = connection_id(request)?;
        if client.transport != Transport::Tcp || self.allocations.by_client(&client).is_some() {
            return Err(bad);
        }
        if id.shard() != self.shard {
            if !self.shared.has_shard(id.shard()) {
                return Err(bad);
            }
            let errand = Errand::Client(client);
            return Ok(Answer::Elsewhere(Relayed::to_shard(id.shard(), errand, 0..0)));
        }
        let Self { allocations, connections, .. } = self;
        let connection = connections.get(id).ok_or(bad)?;
        if !matches!(connection.state, State::Unbound) {
            return Err(bad);
        }
        let allocation = allocations.by_port(connection.relay).ok_or(bad)?;
        if allocation.user != identity.user {
            return Err(ErrorCode::WRONG_CREDENTIALS.into());
        }
        connections.bind(id);
        let writer = Writer::answer(Class::Success, request);
        self.reply(client, request, writer, Some(&identity.key));
        self.outputs.push_back(Output::Join { client, connection: id });
        Ok(Answer::Later)
    }

    /// A connection to a peer is gone, or the client's stream that was joined to it.
    pub fn handle_connection_closed(&mut self, connection: ConnectionId, _now: Instant) {
        self.fail(connection);
    }

    /// Closes the connections of an allocation, or those of one family.
    pub(super) fn close_connections(&mut self, client: FiveTuple, family: Option<Family>) {
        let Self { allocations, connections, outputs, .. } = self;
        let Some(allocation) = allocations.by_client(&client) else {
            return;
        };
        allocation.connections.retain(|id| {
            let of_family = |connection: &Connection| {
                family.is_none_or(|family| family == Family::of(connection.peer.ip()))
            };
            let closes = connections.get(*id).is_none_or(of_family);
            if closes {
                connections.remove(*id);
                outputs.push_back(Output::CloseConnection(*id));
            }
            !closes
        });
    }
}

fn tcp_allocation(found: Option<&mut Allocation>) -> Option<&mut Allocation> {
    found.filter(|allocation| allocation.transport == RelayTransport::Tcp)
}
