//! The server: its state, its entry points, time and configuration.
//!
//! ```text
//! datagram from a client ─ handle_client ─┬─ ChannelData, Send ─→ Relayed (relay.rs)
//!                                         └─ request ─→ authentication.rs ─→ request.rs
//! datagram from a peer ── handle_peer ────→ Relayed (relay.rs)     Allocate ─→ allocate.rs
//! ```

mod allocate;
mod authentication;
mod relay;
mod request;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::allocation::{Allocation, Allocations, Origin};
use crate::config::Config;
use crate::credential::Kept;
use crate::five_tuple::{Family, FiveTuple, Side, Source};
use crate::icmp::IcmpError;
use crate::nonce::Nonces;
use crate::output::{ConnectError, ConnectionId, Event, Output, RelayTransport};
use crate::permission::Revision;
use crate::random::{Random, derive};
use crate::relay_port::RelayPort;
use crate::reply_limit::ReplyLimit;
use crate::shared::{ShardId, Shared};
use crate::status::{AllocationStatus, Counters, Status};
use crate::stun::TransactionId;

/// How many freed allocations are remembered for retransmitted Refresh requests.
const MAX_TOMBSTONES: usize = 256;

/// One shard of a TURN server; see the [crate] for how to drive it.
pub struct Server {
    shared: Arc<Shared>,
    shard: ShardId,
    config: Arc<Config>,
    revision: Revision,
    nonces: Nonces,
    kept_keys: Kept,
    random: Random,
    reply_limit: ReplyLimit,
    allocations: Allocations,
    /// When the reservations that were made here end, the first one first.
    reservations: VecDeque<Instant>,
    tombstones: VecDeque<Tombstone>,
    /// Time since 1970 and when that was.
    wall_clock: Option<(Duration, Instant)>,
    /// Where Data indications' transaction ids come from.
    indications: u64,
    outputs: VecDeque<Output>,
    counters: Counters,
}

/// An allocation that a Refresh request ended, so that the same request gets the same answer.
struct Tombstone {
    client: FiveTuple,
    transaction: TransactionId,
    user: Arc<str>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Server {
    /// Makes a shard without allocations. Every shard of a relay has the same `shared` and the
    /// same configuration, and a number of its own.
    #[must_use]
    pub fn new(shared: Arc<Shared>, shard: ShardId, config: Arc<Config>, now: Instant) -> Self {
        Self {
            revision: Revision(0),
            nonces: Nonces::new(shared.seed(), shared.started(now)),
            kept_keys: Kept::new(),
            random: Random::new(derive(shared.seed(), b"ports and tokens", &[shard.0])),
            reply_limit: ReplyLimit::new(shared.seed()),
            allocations: Allocations::default(),
            reservations: VecDeque::new(),
            tombstones: VecDeque::new(),
            wall_clock: None,
            indications: 0,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            config,
            shared,
            shard,
        }
    }

    /// Serves another configuration from now on.
    ///
    /// Allocations stay as long as their faces do: their ports may lie outside the new range,
    /// their users may be gone (no Refresh works then), and every permission and channel is
    /// judged again by the new policy at its next packet.
    pub fn set_config(&mut self, config: Arc<Config>, now: Instant) {
        self.handle_timeout(now);
        self.revision = Revision(self.revision.0 + 1);
        self.shared.tables().ports.set_range(config.media_ports.clone());
        self.config = config;
        let orphans: Vec<_> =
            self.allocations.iter().filter(|a| !self.has_faces(a)).map(|a| a.client).collect();
        for client in orphans {
            self.free(client);
        }
    }

    /// Whether the box still has the addresses that the allocation's sockets are bound to.
    fn has_faces(&self, allocation: &Allocation) -> bool {
        let family = Family::of(allocation.faces.outside.local);
        self.config.faces(family).is_some_and(|faces| {
            faces.outside == allocation.faces.outside
                && (faces.inside.is_none()
                    || allocation.faces.inside.is_none()
                    || faces.inside == allocation.faces.inside)
        })
    }

    /// Ends what is over; call it when the time of [`Output::Timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(client) = self.allocations.expired(now) {
            self.free(client);
        }
        if self.reservations.front().is_some_and(|at| *at <= now) {
            self.reservations.retain(|at| *at > now);
            self.shared.tables().end_reservations(now);
        }
    }

    /// Says what time it is for people, as time since 1970: time-limited credentials need it. Call
    /// it at the start and whenever the clock was set, or about once a second.
    pub fn set_wall_clock(&mut self, unix: Duration, now: Instant) {
        self.wall_clock = Some((unix, now));
    }

    /// Handles an ICMP error about a packet that went to `peer` from a relay port.
    pub fn handle_icmp(
        &mut self,
        _relay: RelayPort,
        _face: Side,
        _peer: SocketAddr,
        _error: IcmpError,
        _now: Instant,
    ) {
        self.counters.icmp += 1;
    }

    /// The client's connection is gone, and its allocation with it (RFC 8656 §4).
    pub fn handle_client_gone(&mut self, client: FiveTuple, now: Instant) {
        self.handle_timeout(now);
        self.free(client);
    }

    /// The connection of [`Output::Connect`] or [`Output::ConnectInside`] is there, or failed.
    pub fn handle_connected(
        &mut self,
        connection: ConnectionId,
        _result: Result<(), ConnectError>,
        _now: Instant,
    ) {
        self.outputs.push_back(Output::CloseConnection(connection));
    }

    /// A peer connected to a TCP relay; `None`: close it.
    pub fn handle_peer_connected(
        &mut self,
        _relay: RelayPort,
        _face: Side,
        _peer: SocketAddr,
        _now: Instant,
    ) -> Option<ConnectionId> {
        self.counters.no_permission += 1;
        None
    }

    /// Another TCP relay of our own connects to `target` here ([`Output::ConnectInside`]);
    /// `None`: close it.
    pub fn handle_relay_connected(
        &mut self,
        _origin: Origin,
        _target: SocketAddr,
        _now: Instant,
    ) -> Option<ConnectionId> {
        self.counters.no_permission += 1;
        None
    }

    /// A peer data connection is gone.
    pub fn handle_connection_closed(&mut self, _connection: ConnectionId, _now: Instant) {}

    /// What to do next. Call it until it says [`Output::Timeout`].
    pub fn poll_output(&mut self) -> Output {
        if let Some(output) = self.outputs.pop_front() {
            return output;
        }
        let reservation = self.reservations.front().copied();
        Output::Timeout(self.allocations.next_expiry().into_iter().chain(reservation).min())
    }

    /// What is there right now.
    #[must_use]
    pub fn status(&self) -> Status {
        let tcp = self.allocations.over_tcp();
        Status {
            active_clients: self.allocations.len(),
            active_relays_tcp: tcp,
            active_relays_udp: self.allocations.len() - tcp,
        }
    }

    /// Every allocation, for people.
    #[must_use]
    pub fn allocations(&self, now: Instant) -> Vec<AllocationStatus> {
        let view = |allocation: &Allocation| AllocationStatus {
            client: allocation.client,
            user: Arc::clone(&allocation.user),
            relayed: allocation.relayed(),
            transport: RelayTransport::Udp,
            expires_in: allocation.expires_at.saturating_duration_since(now),
            permissions: allocation.permissions.len(),
            channels: allocation.channels.len(),
            packets_from_client: allocation.traffic.packets_from_client,
            octets_from_client: allocation.traffic.octets_from_client,
            packets_to_client: allocation.traffic.packets_to_client,
            octets_to_client: allocation.traffic.octets_to_client,
        };
        self.allocations.iter().filter(|allocation| allocation.is_live(now)).map(view).collect()
    }

    /// What has happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Ends an allocation.
    fn free(&mut self, client: FiveTuple) {
        let Some(allocation) = self.allocations.remove(client) else {
            return;
        };
        let mut tables = self.shared.tables();
        tables.usage.remove(&allocation.user, Source::of(client.client.ip()));
        tables.ports.release(allocation.port);
        self.shared.set_owner(allocation.port, None);
        let relayed = allocation.relayed();
        match allocation.opening {
            Some(opening) => {
                for port in opening.refused {
                    tables.ports.release(port);
                }
            }
            None => self.outputs.push_back(Output::Event(Event::Freed { client, relayed })),
        }
        self.outputs.push_back(Output::CloseRelay(allocation.port));
    }

    /// Remembers which Refresh request ended an allocation.
    fn bury(&mut self, tombstone: Tombstone) {
        if self.tombstones.len() == MAX_TOMBSTONES {
            self.tombstones.pop_front();
        }
        self.tombstones.push_back(tombstone);
    }
}
