//! Packets from one shard to another: a bounded queue per shard, one wake-up per batch.
//!
//! What finds no room is dropped and counted, as a NIC does: a shard never waits for another one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use nix::sys::eventfd::EventFd;
use turn::{Errand, ShardId};

/// Parcels that wait for one shard.
const PARCELS: usize = 1024;

/// Octets that a parcel holds in place; media packets are shorter.
const IN_PLACE: usize = 2048;

/// A packet for another shard.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) errand: Errand,
    octets: Octets,
}

#[expect(clippy::large_enum_variant, reason = "in place is the point: no allocation per packet")]
#[derive(Debug)]
enum Octets {
    InPlace(usize, [u8; IN_PLACE]),
    /// Longer than any path's packets: rare enough for an allocation.
    Apart(Box<[u8]>),
}

impl Parcel {
    fn new(errand: Errand, payload: &[u8]) -> Self {
        let octets = if payload.len() <= IN_PLACE {
            let mut octets = [0; IN_PLACE];
            octets[..payload.len()].copy_from_slice(payload);
            Octets::InPlace(payload.len(), octets)
        } else {
            Octets::Apart(payload.into())
        };
        Self { errand, octets }
    }

    pub(super) fn payload(&self) -> &[u8] {
        match &self.octets {
            Octets::InPlace(length, octets) => &octets[..*length],
            Octets::Apart(octets) => octets,
        }
    }
}

/// How to reach one shard.
#[derive(Clone)]
pub(super) struct Door {
    parcels: SyncSender<Parcel>,
    wake: Arc<EventFd>,
}

/// A shard's door, and where it takes what was put in.
pub(super) fn door(wake: Arc<EventFd>) -> (Door, Receiver<Parcel>) {
    let (parcels, receiver) = sync_channel(PARCELS);
    (Door { parcels, wake }, receiver)
}

/// The doors of all shards, seen from one.
pub(super) struct Neighbours {
    doors: Vec<Door>,
    /// By shard: whether something was put in since the last wake-up.
    waiting: Vec<bool>,
    /// Parcels that found no room.
    pub(super) overflows: u64,
}

impl Neighbours {
    pub(super) fn new(doors: Vec<Door>) -> Self {
        Self { waiting: vec![false; doors.len()], doors, overflows: 0 }
    }

    /// Puts a packet in at a shard's door.
    pub(super) fn give(&mut self, shard: ShardId, errand: Errand, payload: &[u8]) {
        let index = usize::from(shard.0);
        let given = self
            .doors
            .get(index)
            .is_some_and(|door| door.parcels.try_send(Parcel::new(errand, payload)).is_ok());
        if given {
            self.waiting[index] = true;
        } else {
            self.overflows += 1;
        }
    }

    /// Wakes every shard that got something.
    pub(super) fn wake(&mut self) {
        for (waiting, door) in self.waiting.iter_mut().zip(&self.doors) {
            if std::mem::take(waiting)
                && let Err(error) = door.wake.write(1)
            {
                // Full: it is about to wake up anyway.
                tracing::debug!("eventfd: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use nix::sys::eventfd::{EfdFlags, EventFd};
    use turn::{Errand, FiveTuple, ShardId, Transport};

    use super::{IN_PLACE, Neighbours, PARCELS, door};

    #[test]
    fn parcels_arrive_whole_and_what_finds_no_room_is_counted() {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let (door, parcels) = door(Arc::clone(&wake));
        let mut neighbours = Neighbours::new(vec![door]);
        let address: SocketAddr = "192.0.2.1:5000".parse().unwrap();
        let client = FiveTuple { transport: Transport::Udp, client: address, server: address };

        for length in [0, 1, IN_PLACE, IN_PLACE + 1, 65_507] {
            neighbours.give(ShardId(0), Errand::Client(client), &vec![7; length]);
            let parcel = parcels.try_recv().unwrap();
            assert_eq!(parcel.payload(), vec![7; length]);
            assert_eq!(parcel.errand, Errand::Client(client));
        }
        for _ in 0..PARCELS + 3 {
            neighbours.give(ShardId(0), Errand::Client(client), b"x");
        }
        neighbours.give(ShardId(9), Errand::Client(client), b"nobody");

        assert_eq!(neighbours.overflows, 4);
        assert_eq!(wake.read().ok(), None, "nobody is woken before the batch is done");
        neighbours.wake();
        assert_eq!(wake.read().unwrap(), 1, "one wake-up for all");
        neighbours.wake();
        assert_eq!(wake.read().ok(), None);
    }
}
