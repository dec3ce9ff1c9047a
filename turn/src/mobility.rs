//! Mobility tickets (RFC 8016).
//!
//! A ticket names its allocation (shard, relay port, serial number) and carries an HMAC over the
//! names: nothing is stored for it, a forged one costs one HMAC, and any shard can tell whose it
//! is. A serial number is used once, so that a ticket of an allocation that is gone never fits the
//! next one on its port.

use subtle::ConstantTimeEq;

use crate::five_tuple::FiveTuple;
use crate::random::derive;
use crate::relay_port::RelayPort;
use crate::shared::ShardId;
use crate::stun::TransactionId;

/// Octets of a ticket: shard, port, serial number, tag.
pub(crate) const TICKET_LENGTH: usize = 1 + 2 + 8 + 16;

/// What an allocation that may move remembers.
#[derive(Debug)]
pub(crate) struct Mobility {
    /// Of the ticket that the client was given last.
    pub(crate) serial: u64,
    /// Of the ticket of a move that was taken back: its client may not have got the one after it.
    pub(crate) former: Option<u64>,
    /// There while data still goes to the old 5-tuple.
    pub(crate) moving: Option<Moving>,
    /// The last move, so that the same request gets the same answer.
    pub(crate) last: Option<(FiveTuple, TransactionId)>,
}

/// On the way to another 5-tuple.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moving {
    pub(crate) to: FiveTuple,
    /// Of the ticket that it moved with; good until the move is over.
    pub(crate) serial: u64,
}

impl Mobility {
    pub(crate) const fn new(serial: u64) -> Self {
        Self { serial, former: None, moving: None, last: None }
    }

    /// Whether a ticket with that serial number moves the allocation.
    pub(crate) fn accepts(&self, serial: u64) -> bool {
        serial == self.serial
            || self.former == Some(serial)
            || self.moving.is_some_and(|moving| moving.serial == serial)
    }
}

/// What a ticket says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ticket {
    pub(crate) shard: ShardId,
    pub(crate) port: RelayPort,
    pub(crate) serial: u64,
}

impl Ticket {
    /// MOBILITY-TICKET's value.
    pub(crate) fn seal(self, seed: &[u8; 32]) -> [u8; TICKET_LENGTH] {
        let mut bytes = [0; TICKET_LENGTH];
        let (names, tag) = bytes.split_at_mut(TICKET_LENGTH - 16);
        names[0] = self.shard.0;
        names[1..3].copy_from_slice(&self.port.0.to_be_bytes());
        names[3..].copy_from_slice(&self.serial.to_be_bytes());
        tag.copy_from_slice(&derive(seed, b"mobility ticket", names)[..16]);
        bytes
    }

    /// The inverse of [`Self::seal`]; `None` for what was not sealed with `seed`.
    pub(crate) fn open(bytes: &[u8], seed: &[u8; 32]) -> Option<Self> {
        let bytes = <&[u8; TICKET_LENGTH]>::try_from(bytes).ok()?;
        let (names, tag) = bytes.split_at(TICKET_LENGTH - 16);
        let expected = derive(seed, b"mobility ticket", names);
        if !bool::from(expected[..16].ct_eq(tag)) {
            return None;
        }
        let serial = names[3..].first_chunk().copied()?;
        Some(Self {
            shard: ShardId(names[0]),
            port: RelayPort(u16::from_be_bytes([names[1], names[2]])),
            serial: u64::from_be_bytes(serial),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Ticket;
    use crate::relay_port::RelayPort;
    use crate::shared::ShardId;

    #[test]
    fn a_ticket_opens_with_its_seed_and_every_changed_bit_closes_it() {
        let ticket = Ticket { shard: ShardId(3), port: RelayPort(24_000), serial: 7 };
        let sealed = ticket.seal(&[1; 32]);

        assert_eq!(Ticket::open(&sealed, &[1; 32]), Some(ticket));
        assert_eq!(Ticket::open(&sealed, &[2; 32]), None);
        assert_eq!(Ticket::open(&sealed[1..], &[1; 32]), None);
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Ticket::open(&changed, &[1; 32]), None, "bit {bit}");
        }
    }
}
