//! The server: its state, its entry points, time and configuration.
//!
//! ```text
//! datagram from a client ─ handle_client ─┬─ ChannelData, Send ─→ Relayed (relay.rs)
//!                                         └─ request ─→ authentication.rs ─→ request.rs
//! datagram from a peer ── handle_peer ────→ Relayed (relay.rs)     Allocate ─→ allocate.rs
//! from another shard ──── handle_relay ───→ Relayed (relay.rs)     opening  ─→ open.rs
//! ICMP error ──────────── handle_icmp ────→ Data indication        Refresh  ─→ refresh.rs
//! connections (RFC 6062) ─ tcp_relay.rs    moves (RFC 8016) ─ mobility.rs
//! ```

mod allocate;
mod attributes;
mod authentication;
mod expiry;
mod icmp;
mod limits;
mod mobility;
mod open;
mod permit;
mod refresh;
mod relay;
mod request;
mod tcp_relay;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::allocation::{Allocation, Leg};
use crate::allocations::Allocations;
use crate::config::Config;
use crate::connection::Connections;
use crate::credential::Kept;
use crate::five_tuple::FiveTuple;
use crate::nonce::Nonces;
use crate::output::Output;
use crate::permission::Revision;
use crate::random::{Random, derive};
use crate::reply_limit::ReplyLimit;
use crate::routes::Routes;
use crate::shared::{Grant, ShardId, Shared};
use crate::status::{AllocationStatus, Counters, Status};
use crate::stun::TransactionId;

/// How many freed allocations are remembered for Refresh requests that come again: a conference
/// that ends frees hundreds at once. Some 100 octets each.
const MAX_TOMBSTONES: usize = 1024;

/// One shard of a TURN server; see the [crate] for how to drive it.
pub struct Server {
    shared: Arc<Shared>,
    shard: ShardId,
    config: Arc<Config>,
    revision: Revision,
    nonces: Nonces,
    kept_keys: Kept,
    /// Time since 1970 and when that was.
    wall_clock: Option<(Duration, Instant)>,
    random: Random,
    reply_limit: ReplyLimit,
    allocations: Allocations,
    /// When the reservations that were made here end, the first one first.
    reservations: VecDeque<Instant>,
    tombstones: VecDeque<Tombstone>,
    routes: Routes,
    connections: Connections,
    /// Of the total bandwidth limit.
    grant: Grant,
    /// Of the last mobility ticket.
    tickets: u64,
    /// Where Data indications' transaction ids come from.
    indications: u64,
    outputs: VecDeque<Output>,
    counters: Counters,
}

/// A family of an allocation that a Refresh request ended, so that the same request gets the same
/// answer.
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
    /// same configuration, and a number of its own below 16.
    #[must_use]
    pub fn new(shared: Arc<Shared>, shard: ShardId, config: Arc<Config>, now: Instant) -> Self {
        shared.add_shard(shard);
        let mut random = Random::new(derive(shared.seed(), b"ports and tokens", &[shard.0]));
        Self {
            revision: Revision(0),
            nonces: Nonces::new(shared.seed(), shared.started(now)),
            kept_keys: Kept::new(),
            wall_clock: None,
            reply_limit: ReplyLimit::new(shared.seed()),
            allocations: Allocations::new(random.octets()),
            reservations: VecDeque::new(),
            tombstones: VecDeque::new(),
            routes: Routes::new(random.octets()),
            connections: Connections::default(),
            grant: Grant::default(),
            tickets: 0,
            indications: 0,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            random,
            config,
            shared,
            shard,
        }
    }

    /// Says what time it is for people, as time since 1970: time-limited credentials need it. Call
    /// it at the start and whenever the clock was set, or about once a second.
    pub fn set_wall_clock(&mut self, unix: Duration, now: Instant) {
        self.wall_clock = Some((unix, now));
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
        self.config = Arc::clone(&config);
        let clients: Vec<_> = self.allocations.iter().map(|a| a.client).collect();
        for client in clients {
            if let Some(allocation) = self.allocations.by_client(&client) {
                allocation.limit_reported = false;
                allocation.side = config.side_of_client(client);
            }
            self.drop_orphans(client);
        }
    }

    /// What to do next. Call it until it says [`Output::Timeout`].
    pub fn poll_output(&mut self) -> Output {
        if let Some(output) = self.outputs.pop_front() {
            return output;
        }
        let times = [
            self.allocations.next_expiry(),
            self.reservations.front().copied(),
            self.connections.next_deadline(),
            self.routes.next_sweep(),
        ];
        Output::Timeout(times.into_iter().flatten().min())
    }

    /// What is there right now.
    #[must_use]
    pub fn status(&self) -> Status {
        let tcp = self.allocations.over_tcp();
        Status {
            active_clients: self.allocations.len(),
            active_relays_tcp: tcp,
            active_relays_udp: self.allocations.len() - tcp,
            connections: self.connections.len(),
        }
    }

    /// At most so many allocations, for people.
    #[must_use]
    pub fn allocations(&self, now: Instant, most: usize) -> Vec<AllocationStatus> {
        let view = |allocation: &Allocation| AllocationStatus {
            client: allocation.client,
            user: Arc::clone(&allocation.user),
            relayed: allocation.all_relayed().collect(),
            transport: allocation.transport,
            expires_in: allocation
                .legs
                .last_expiry()
                .map(|at| at.saturating_duration_since(now))
                .unwrap_or_default(),
            permissions: allocation.permissions.len(),
            channels: allocation.channels.len(),
            connections: allocation.connections.len(),
            packets_from_client: allocation.traffic.packets_from_client,
            octets_from_client: allocation.traffic.octets_from_client,
            packets_to_client: allocation.traffic.packets_to_client,
            octets_to_client: allocation.traffic.octets_to_client,
        };
        let live = self.allocations.iter().filter(|allocation| allocation.is_live(now));
        live.take(most).map(view).collect()
    }

    /// What has happened so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Remembers which Refresh request ended an allocation or a family of it.
    fn bury(&mut self, tombstone: Tombstone) {
        if self.tombstones.len() == MAX_TOMBSTONES {
            self.tombstones.pop_front();
        }
        self.tombstones.push_back(tombstone);
    }
}
