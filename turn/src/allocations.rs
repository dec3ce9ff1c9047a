//! The allocations of one shard and the ways to find them.
//!
//! A packet costs one hash of its 5-tuple, and a compare when it is of the same client as the
//! packet before; or one index by relay port.
//!
//! # Invariants
//!
//! 1. A 5-tuple leads to at most one allocation, and so does a relay port.
//! 2. Every allocation has exactly one entry in the list of expiry times.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use foldhash::fast::FixedState;

use crate::allocation::Allocation;
use crate::five_tuple::{FiveTuple, Transport};
use crate::relay_port::RelayPort;

/// Index of an allocation in the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct Slot(u32);

impl Slot {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// No allocation.
const NONE: u32 = u32::MAX;

/// All allocations.
#[derive(Debug)]
pub(crate) struct Allocations {
    slots: Vec<Option<Box<Allocation>>>,
    free: Vec<Slot>,
    by_client: HashMap<FiveTuple, Slot, FixedState>,
    /// By port: the slot, or [`NONE`].
    by_port: Vec<u32>,
    /// What [`Self::by_client`] found last.
    last: Option<(FiveTuple, Slot)>,
    expirations: BTreeSet<(Instant, Slot)>,
    live: usize,
    over_tcp: usize,
}

impl Allocations {
    /// An empty table. The hash of 5-tuples depends on `seed`, so that nobody can choose ports that
    /// meet.
    pub(crate) fn new(seed: [u8; 8]) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_client: HashMap::with_hasher(FixedState::with_seed(u64::from_be_bytes(seed))),
            by_port: vec![NONE; 1 << 16],
            last: None,
            expirations: BTreeSet::new(),
            live: 0,
            over_tcp: 0,
        }
    }

    /// Adds an allocation; the caller has checked that 5-tuple and port are free.
    pub(crate) fn insert(&mut self, allocation: Allocation) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot(u32::try_from(self.slots.len() - 1).expect("there are 2^16 ports"))
        });
        self.by_client.insert(allocation.client, slot);
        self.by_port[usize::from(allocation.port.0)] = slot.0;
        if let Some(at) = allocation.legs.next_expiry() {
            self.expirations.insert((at, slot));
        }
        self.live += 1;
        self.over_tcp += usize::from(allocation.client.transport == Transport::Tcp);
        self.slots[slot.index()] = Some(Box::new(allocation));
    }

    /// Takes an allocation out, with each 5-tuple that leads to it.
    pub(crate) fn remove(&mut self, client: FiveTuple) -> Option<Allocation> {
        let slot = self.by_client.get(&client).copied()?;
        let allocation = *self.slots[slot.index()].take()?;
        self.by_client.remove(&allocation.client);
        if let Some(moving) = allocation.mobility.as_ref().and_then(|mobility| mobility.moving) {
            self.by_client.remove(&moving.to);
        }
        self.last = None;
        self.by_port[usize::from(allocation.port.0)] = NONE;
        if let Some(at) = allocation.legs.next_expiry() {
            self.expirations.remove(&(at, slot));
        }
        self.live -= 1;
        self.over_tcp -= usize::from(allocation.client.transport == Transport::Tcp);
        self.free.push(slot);
        Some(allocation)
    }

    /// Where the allocation is that a client's 5-tuple leads to.
    #[inline]
    pub(crate) fn find(&mut self, client: &FiveTuple) -> Option<Slot> {
        if let Some((last, slot)) = self.last
            && last == *client
        {
            return Some(slot);
        }
        let slot = *self.by_client.get(client)?;
        self.last = Some((*client, slot));
        Some(slot)
    }

    /// Where the allocation is that has this relay port.
    #[inline]
    pub(crate) fn find_port(&self, port: RelayPort) -> Option<Slot> {
        let slot = self.by_port[usize::from(port.0)];
        (slot != NONE).then_some(Slot(slot))
    }

    /// The allocation that was found there.
    #[inline]
    pub(crate) fn at(&mut self, slot: Slot) -> Option<&mut Allocation> {
        self.slots[slot.index()].as_deref_mut()
    }

    /// The allocation that a client's 5-tuple leads to.
    pub(crate) fn by_client(&mut self, client: &FiveTuple) -> Option<&mut Allocation> {
        let slot = self.find(client)?;
        self.at(slot)
    }

    /// The allocation that has this relay port.
    pub(crate) fn by_port(&mut self, port: RelayPort) -> Option<&mut Allocation> {
        let slot = self.find_port(port)?;
        self.at(slot)
    }

    /// Changes an allocation's legs with `change`, and keeps the list of expiry times right.
    /// Returns whether a leg is left.
    pub(crate) fn change_legs(
        &mut self,
        client: FiveTuple,
        change: impl FnOnce(&mut Allocation),
    ) -> bool {
        let Some(slot) = self.by_client.get(&client).copied() else {
            return false;
        };
        let Some(allocation) = self.slots[slot.index()].as_deref_mut() else {
            return false;
        };
        let before = allocation.legs.next_expiry();
        change(allocation);
        let after = allocation.legs.next_expiry();
        if before != after {
            if let Some(before) = before {
                self.expirations.remove(&(before, slot));
            }
            if let Some(after) = after {
                self.expirations.insert((after, slot));
            }
        }
        after.is_some()
    }

    /// Gives an allocation another port.
    pub(crate) fn set_port(&mut self, client: FiveTuple, port: RelayPort) {
        let Some(slot) = self.by_client.get(&client).copied() else {
            return;
        };
        if let Some(allocation) = self.slots[slot.index()].as_deref_mut() {
            self.by_port[usize::from(allocation.port.0)] = NONE;
            self.by_port[usize::from(port.0)] = slot.0;
            allocation.port = port;
        }
    }

    /// Lets one more 5-tuple lead to the allocation of `client` (RFC 8016).
    pub(crate) fn add_client(&mut self, client: FiveTuple, another: FiveTuple) {
        if let Some(slot) = self.by_client.get(&client).copied() {
            self.by_client.insert(another, slot);
        }
    }

    /// Lets a 5-tuple lead nowhere that [`Self::add_client`] added or that `moved` takes the
    /// place of.
    pub(crate) fn drop_client(&mut self, client: FiveTuple, moved: Option<FiveTuple>) {
        self.by_client.remove(&client);
        self.last = None;
        if let Some(moved) = moved {
            self.over_tcp -= usize::from(client.transport == Transport::Tcp);
            self.over_tcp += usize::from(moved.transport == Transport::Tcp);
        }
    }

    /// When the first leg ends.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.expirations.first().map(|(at, _)| *at)
    }

    /// A client some leg of whose allocation has ended.
    pub(crate) fn expired(&self, now: Instant) -> Option<FiveTuple> {
        let (at, slot) = self.expirations.first()?;
        if *at > now {
            return None;
        }
        self.slots[slot.index()].as_ref().map(|allocation| allocation.client)
    }

    /// Every allocation, in the order of the table.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.slots.iter().flatten().map(|allocation| &**allocation)
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.live
    }

    /// How many there are whose client uses TCP.
    pub(crate) const fn over_tcp(&self) -> usize {
        self.over_tcp
    }
}
