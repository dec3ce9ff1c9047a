//! What the shards of one relay share.
//!
//! The tables are behind a lock that only the control plane takes: Allocate, the end of an
//! allocation, a change of configuration. Who owns a relay port is one atomic per port, so that a
//! packet finds its shard without a lock.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::bandwidth::{Bucket, Rate};
use crate::config::Config;
use crate::five_tuple::Family;
use crate::quota::Usage;
use crate::relay_port::{RelayPort, RelayPorts};

/// Which shard: a server with its own thread, clients and relay ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct ShardId(pub u8);

/// What no shard owns.
const NOBODY: u8 = u8::MAX;

/// Ports, reservations and usage; see the module.
pub struct Shared {
    seed: [u8; 32],
    /// When the first shard was made: what nonces count from.
    started: OnceLock<Instant>,
    /// By port: the shard of the allocation that has it.
    owners: Box<[AtomicU8]>,
    tables: Mutex<Tables>,
    /// One bit for each shard there is.
    shards: AtomicU32,
}

/// What the control plane changes under the lock.
pub(crate) struct Tables {
    pub(crate) ports: RelayPorts,
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) usage: Usage,
    bandwidth: Bucket,
}

/// The port after an EVEN-PORT one, held for a second Allocate request (RFC 8656 §7.2).
pub(crate) struct Reservation {
    pub(crate) token: [u8; 8],
    pub(crate) port: RelayPort,
    pub(crate) family: Family,
    pub(crate) user: Arc<str>,
    pub(crate) expires_at: Instant,
}

impl Tables {
    /// Gives the ports back of reservations that nobody used in time.
    pub(crate) fn end_reservations(&mut self, now: Instant) {
        let ports = &mut self.ports;
        self.reservations.retain(|reservation| {
            let over = reservation.expires_at <= now;
            if over {
                ports.release(reservation.port);
            }
            !over
        });
    }
}

/// Octets of the total bandwidth limit that a shard takes at once, so that packets do not meet at
/// one lock.
const GRANT: u64 = 1 << 16;

/// How long a shard waits that got no grant.
const PAUSE: Duration = Duration::from_millis(1);

/// What is left of a shard's grant.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Grant {
    octets: u64,
    /// There while nothing is left and it is too early to ask again.
    not_before: Option<Instant>,
}

impl Grant {
    /// Takes `octets`, from a new grant if need be; false when the limit is reached.
    pub(crate) fn take(&mut self, shared: &Shared, rate: Rate, octets: u64, now: Instant) -> bool {
        if self.octets < octets {
            if self.not_before.is_some_and(|at| now < at) {
                return false;
            }
            if !shared.tables().bandwidth.take(rate, GRANT, now) {
                self.not_before = Some(now + PAUSE);
                return false;
            }
            self.not_before = None;
            self.octets += GRANT;
        }
        self.octets -= octets;
        true
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared(..)")
    }
}

impl Shared {
    /// What the shards that serve `config` share. `seed` must be unpredictable: ports and nonces
    /// come from it.
    #[must_use]
    pub fn new(config: &Config, seed: [u8; 32]) -> Arc<Self> {
        Arc::new(Self {
            seed,
            started: OnceLock::new(),
            owners: (0..=u16::MAX).map(|_| AtomicU8::new(NOBODY)).collect(),
            shards: AtomicU32::new(0),
            tables: Mutex::new(Tables {
                ports: RelayPorts::new(config.media_ports.clone()),
                reservations: Vec::new(),
                usage: Usage::default(),
                bandwidth: Bucket::default(),
            }),
        })
    }

    pub(crate) const fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// When the first shard was made, which is now if none was.
    pub(crate) fn started(&self, now: Instant) -> Instant {
        *self.started.get_or_init(|| now)
    }

    pub(crate) fn add_shard(&self, shard: ShardId) {
        self.shards.fetch_or(1 << shard.0, Ordering::Relaxed);
    }

    /// Whether there is such a shard.
    pub(crate) fn has_shard(&self, shard: ShardId) -> bool {
        self.shards.load(Ordering::Relaxed) & 1 << shard.0 != 0
    }

    /// The tables, for the control plane only.
    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard that has this port's allocation.
    pub(crate) fn owner(&self, port: RelayPort) -> Option<ShardId> {
        let owner = self.owners[usize::from(port.0)].load(Ordering::Relaxed);
        (owner != NOBODY).then_some(ShardId(owner))
    }

    /// Sets which shard has this port's allocation.
    pub(crate) fn set_owner(&self, port: RelayPort, owner: Option<ShardId>) {
        let owner = owner.map_or(NOBODY, |shard| shard.0);
        self.owners[usize::from(port.0)].store(owner, Ordering::Relaxed);
    }
}
