//! Connections between clients and peers (RFC 6062).
//!
//! ```text
//! Connect ─→ connecting ─┬─→ unbound ─┬─ ConnectionBind ─→ bound
//! peer connects ─────────┼────↗       └─ 30 s ──→ closed
//!                        └─ failed or 30 s ─────→ 447
//! ```
//!
//! An identifier is 28 unpredictable bits and the shard's number: who has it may join a stream to
//! a connection that another client of the same user made.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::five_tuple::{FiveTuple, Source};
use crate::output::ConnectionId;
use crate::random::Random;
use crate::relay_port::RelayPort;
use crate::shared::ShardId;
use crate::stun::{Key, TransactionId};

/// RFC 6062 §5.2, §5.3: to connect, and to bind.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Connections of one allocation that are not bound yet, at most.
pub(crate) const MAX_UNBOUND_PER_ALLOCATION: usize = 16;

/// Connections of one source's allocations that are not bound yet, at most.
pub(crate) const MAX_UNBOUND_PER_SOURCE: usize = 64;

/// Bits of an identifier that name the shard.
const SHARD_BITS: u32 = 4;

/// A connection to a peer.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) relay: RelayPort,
    /// Of the client that has the allocation.
    pub(crate) source: Source,
    pub(crate) peer: SocketAddr,
    pub(crate) state: State,
}

#[derive(Debug)]
pub(crate) enum State {
    /// The Connect request waits for its answer.
    Connecting(Pending),
    /// It waits for a ConnectionBind request.
    Unbound,
    /// A client data connection carries it.
    Bound,
}

/// What the answer to a Connect request needs.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) client: FiveTuple,
    pub(crate) transaction: TransactionId,
    pub(crate) key: Key,
    pub(crate) fingerprint: bool,
}

/// All connections of one shard.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    by_id: HashMap<ConnectionId, Connection>,
    unbound_of_source: HashMap<Source, usize>,
    /// When patience ends; the same time for all, so in order.
    deadlines: VecDeque<(Instant, ConnectionId)>,
}

impl Connections {
    /// Adds a connection that is not bound; `None` when its source has too many of them.
    pub(crate) fn insert(
        &mut self,
        connection: Connection,
        shard: ShardId,
        random: &mut Random,
        now: Instant,
    ) -> Option<ConnectionId> {
        let unbound = self.unbound_of_source.entry(connection.source).or_default();
        if *unbound >= MAX_UNBOUND_PER_SOURCE {
            return None;
        }
        *unbound += 1;
        let id = loop {
            let [a, b, c, d, ..] = random.octets();
            let number = u32::from_be_bytes([a, b, c, d]) >> SHARD_BITS << SHARD_BITS;
            let id = ConnectionId(number | u32::from(shard.0));
            if !self.by_id.contains_key(&id) {
                break id;
            }
        };
        self.by_id.insert(id, connection);
        self.deadlines.push_back((now + PATIENCE, id));
        Some(id)
    }

    pub(crate) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        self.by_id.get(&id)
    }

    /// The peer answered: the client has time to bind from now on. Returns what the answer needs.
    pub(crate) fn connected(&mut self, id: ConnectionId, now: Instant) -> Option<Pending> {
        let connection = self.by_id.get_mut(&id)?;
        if !matches!(connection.state, State::Connecting(_)) {
            return None;
        }
        let State::Connecting(pending) = std::mem::replace(&mut connection.state, State::Unbound)
        else {
            return None;
        };
        self.deadlines.retain(|(_, other)| *other != id);
        self.deadlines.push_back((now + PATIENCE, id));
        Some(pending)
    }

    /// A client data connection carries it from now on.
    pub(crate) fn bind(&mut self, id: ConnectionId) {
        if let Some(connection) = self.by_id.get_mut(&id) {
            connection.state = State::Bound;
            let source = connection.source;
            self.settle(id, source);
        }
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        let connection = self.by_id.remove(&id)?;
        if !matches!(connection.state, State::Bound) {
            self.settle(id, connection.source);
        }
        Some(connection)
    }

    /// It is no longer among those that are not bound.
    fn settle(&mut self, id: ConnectionId, source: Source) {
        self.deadlines.retain(|(_, other)| *other != id);
        if let Some(count) = self.unbound_of_source.get_mut(&source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.unbound_of_source.remove(&source);
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    /// A connection whose time is over.
    pub(crate) fn overdue(&self, now: Instant) -> Option<ConnectionId> {
        self.deadlines.front().filter(|(at, _)| *at <= now).map(|(_, id)| *id)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }
}

impl ConnectionId {
    /// The shard that made it.
    pub(crate) const fn shard(self) -> ShardId {
        ShardId((self.0 & ((1 << SHARD_BITS) - 1)) as u8)
    }
}
