//! Allocations (RFC 8656 §3.2) and the table that finds them.
//!
//! # Invariants
//!
//! 1. A 5-tuple has at most one allocation, and a relay port belongs to at most one.
//! 2. Every allocation has exactly one entry in the list of expiry times.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::channel::Channels;
use crate::config::{Config, Faces};
use crate::five_tuple::{Family, FiveTuple, Side, Transport};
use crate::permission::Permissions;
use crate::relay_port::{RelayPort, Wish};
use crate::stun::{Key, TransactionId};

/// RFC 8656 §3.2: what a client gets that asks for less, or for nothing.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);

/// RFC 8656 §7.2 recommends one hour.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// A relayed transport address and all that belongs to it.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) client: FiveTuple,
    pub(crate) side: Side,
    pub(crate) user: Arc<str>,
    pub(crate) port: RelayPort,
    pub(crate) faces: Faces,
    /// The address in XOR-RELAYED-ADDRESS.
    pub(crate) told: IpAddr,
    /// Of the Allocate request: tells its retransmission from a second one.
    pub(crate) transaction: TransactionId,
    /// Sent again when the request comes again.
    pub(crate) token: Option<[u8; 8]>,
    pub(crate) expires_at: Instant,
    /// There until the caller has opened the relay port.
    pub(crate) opening: Option<Opening>,
    pub(crate) permissions: Permissions,
    pub(crate) channels: Channels,
    pub(crate) traffic: Traffic,
}

/// What an allocation has relayed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets_from_client: u64,
    pub(crate) octets_from_client: u64,
    pub(crate) packets_to_client: u64,
    pub(crate) octets_to_client: u64,
}

impl Traffic {
    pub(crate) fn from_client(&mut self, length: usize) {
        self.packets_from_client += 1;
        self.octets_from_client += length as u64;
    }

    pub(crate) fn to_client(&mut self, length: usize) {
        self.packets_to_client += 1;
        self.octets_to_client += length as u64;
    }
}

/// What the answer to an Allocate request needs once the port is open.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) key: Key,
    pub(crate) fingerprint: bool,
    pub(crate) wish: Wish,
    pub(crate) from_reservation: bool,
    /// Ports that another program holds; given back when this is settled.
    pub(crate) refused: Vec<RelayPort>,
}

/// Where a packet comes from that stays among our own relay ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Origin {
    relay: RelayPort,
    family: Family,
    /// Which face the origin's client was told.
    told: Side,
}

impl Origin {
    /// The transport addresses that the origin is known by, the one its client was told first.
    pub(crate) fn forms(self, config: &Config) -> impl Iterator<Item = SocketAddr> + use<> {
        let faces = config.faces(self.family);
        let told = faces.map(|faces| match faces.inside {
            Some(inside) if self.told == Side::Inside => inside.told,
            _ => faces.outside.told,
        });
        let forms = faces.map(Faces::forms).into_iter().flatten().flatten();
        let others = forms.filter(move |ip| Some(*ip) != told);
        told.into_iter().chain(others).map(move |ip| SocketAddr::new(ip, self.relay.0))
    }
}

impl Allocation {
    /// XOR-RELAYED-ADDRESS.
    pub(crate) fn relayed(&self) -> SocketAddr {
        SocketAddr::new(self.told, self.port.0)
    }

    pub(crate) fn origin(&self) -> Origin {
        let inside = self.faces.inside.is_some_and(|face| face.told == self.told);
        Origin {
            relay: self.port,
            family: Family::of(self.told),
            told: if inside { Side::Inside } else { Side::Outside },
        }
    }

    /// Whether packets pass: the port is open and the time is not over.
    pub(crate) fn is_live(&self, now: Instant) -> bool {
        self.opening.is_none() && self.expires_at > now
    }
}

/// Index of an allocation in the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
struct Slot(usize);

/// All allocations.
#[derive(Debug, Default)]
pub(crate) struct Allocations {
    slots: Vec<Option<Allocation>>,
    free: Vec<Slot>,
    by_client: HashMap<FiveTuple, Slot>,
    by_port: HashMap<RelayPort, Slot>,
    expirations: BTreeSet<(Instant, Slot)>,
    over_tcp: usize,
}

impl Allocations {
    /// Adds an allocation; the caller has checked that 5-tuple and port are free.
    pub(crate) fn insert(&mut self, allocation: Allocation) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot(self.slots.len() - 1)
        });
        self.by_client.insert(allocation.client, slot);
        self.by_port.insert(allocation.port, slot);
        self.expirations.insert((allocation.expires_at, slot));
        self.over_tcp += usize::from(allocation.client.transport == Transport::Tcp);
        self.slots[slot.0] = Some(allocation);
    }

    /// Takes an allocation out.
    pub(crate) fn remove(&mut self, client: FiveTuple) -> Option<Allocation> {
        let slot = self.by_client.remove(&client)?;
        let allocation = self.slots[slot.0].take()?;
        self.by_port.remove(&allocation.port);
        self.expirations.remove(&(allocation.expires_at, slot));
        self.over_tcp -= usize::from(client.transport == Transport::Tcp);
        self.free.push(slot);
        Some(allocation)
    }

    pub(crate) fn by_client(&mut self, client: FiveTuple) -> Option<&mut Allocation> {
        let slot = self.by_client.get(&client)?;
        self.slots[slot.0].as_mut()
    }

    pub(crate) fn by_port(&mut self, port: RelayPort) -> Option<&mut Allocation> {
        let slot = self.by_port.get(&port)?;
        self.slots[slot.0].as_mut()
    }

    /// Sets when an allocation ends.
    pub(crate) fn set_expiry(&mut self, client: FiveTuple, expires_at: Instant) {
        let Some(slot) = self.by_client.get(&client) else {
            return;
        };
        if let Some(allocation) = self.slots[slot.0].as_mut() {
            self.expirations.remove(&(allocation.expires_at, *slot));
            self.expirations.insert((expires_at, *slot));
            allocation.expires_at = expires_at;
        }
    }

    /// Gives an allocation another port.
    pub(crate) fn set_port(&mut self, client: FiveTuple, port: RelayPort) {
        let Some(slot) = self.by_client.get(&client) else {
            return;
        };
        if let Some(allocation) = self.slots[slot.0].as_mut() {
            self.by_port.remove(&allocation.port);
            self.by_port.insert(port, *slot);
            allocation.port = port;
        }
    }

    /// When the first allocation ends.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.expirations.first().map(|(at, _)| *at)
    }

    /// A client whose allocation has ended.
    pub(crate) fn expired(&self, now: Instant) -> Option<FiveTuple> {
        let (at, slot) = self.expirations.first()?;
        if *at > now {
            return None;
        }
        self.slots[slot.0].as_ref().map(|allocation| allocation.client)
    }

    /// Every allocation, in the order of the table.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.slots.iter().flatten()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_client.len()
    }

    /// How many there are whose client uses TCP.
    pub(crate) const fn over_tcp(&self) -> usize {
        self.over_tcp
    }
}
