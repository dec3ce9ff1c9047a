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
use std::sync::Arc;
use std::time::Instant;

use crate::allocation::{Allocation, Allocations};
use crate::config::Config;
use crate::five_tuple::{Family, FiveTuple, Source};
use crate::nonce::Nonces;
use crate::output::{Event, Output};
use crate::permission::Revision;
use crate::quota::Usage;
use crate::random::{Random, derive};
use crate::relay_port::{RelayPort, RelayPorts};
use crate::reply_limit::ReplyLimit;
use crate::status::{Counters, Status};
use crate::stun::TransactionId;

/// How many freed allocations are remembered for retransmitted Refresh requests.
const MAX_TOMBSTONES: usize = 256;

/// A TURN server for clients over UDP; see the [crate] for how to drive it.
pub struct Server {
    config: Config,
    revision: Revision,
    nonces: Nonces,
    random: Random,
    reply_limit: ReplyLimit,
    allocations: Allocations,
    relay_ports: RelayPorts,
    reservations: Vec<Reservation>,
    usage: Usage,
    tombstones: VecDeque<Tombstone>,
    /// Where Data indications' transaction ids come from.
    indications: u64,
    outputs: VecDeque<Output>,
    counters: Counters,
}

/// The port after an EVEN-PORT one, held for a second Allocate request (RFC 8656 §7.2).
struct Reservation {
    token: [u8; 8],
    port: RelayPort,
    family: Family,
    user: Arc<str>,
    expires_at: Instant,
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
    /// Makes a server without allocations. `seed` must be unpredictable: ports and nonces come
    /// from it.
    #[must_use]
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        Self {
            revision: Revision(0),
            nonces: Nonces::new(&seed, now),
            random: Random::new(derive(&seed, b"ports and tokens", &[])),
            reply_limit: ReplyLimit::new(&seed),
            allocations: Allocations::default(),
            relay_ports: RelayPorts::new(config.media_ports.clone()),
            reservations: Vec::new(),
            usage: Usage::default(),
            tombstones: VecDeque::new(),
            indications: 0,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            config,
        }
    }

    /// Serves another configuration from now on.
    ///
    /// Allocations stay as long as their faces do: their ports may lie outside the new range,
    /// their users may be gone (no Refresh works then), and every permission and channel is
    /// judged again by the new policy at its next packet.
    pub fn set_config(&mut self, config: Config) {
        self.revision = Revision(self.revision.0 + 1);
        self.relay_ports.set_range(config.media_ports.clone());
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
        let (over, kept) =
            std::mem::take(&mut self.reservations).into_iter().partition(|r| r.expires_at <= now);
        self.reservations = kept;
        let over: Vec<Reservation> = over;
        for reservation in over {
            self.relay_ports.release(reservation.port);
        }
    }

    /// What to do next. Call it until it says [`Output::Timeout`].
    pub fn poll_output(&mut self) -> Output {
        if let Some(output) = self.outputs.pop_front() {
            return output;
        }
        let reservation = self.reservations.iter().map(|reservation| reservation.expires_at).min();
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
        self.usage.remove(&allocation.user, Source::of(client.client.ip()));
        self.relay_ports.release(allocation.port);
        let relayed = allocation.relayed();
        match allocation.opening {
            Some(opening) => {
                for port in opening.refused {
                    self.relay_ports.release(port);
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
