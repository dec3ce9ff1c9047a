//! A client of the virtual network: asks for whatever, again when it gets no answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use postern_turn::FiveTuple;
use postern_turn::stun::{AttributeType, Class, Key, Message, Method, TransactionId, Writer};

use crate::hostile::Dice;
use crate::lab::{MEDIA_SERVER, OUTSIDE_PEER, REALM, at, channel_data};

/// How often a request is sent until the client gives up.
const TRIES: u32 = 5;

/// IPv6, as a value of an attribute that names a family.
const V6: [u8; 4] = [2, 0, 0, 0];

pub(crate) struct Client {
    pub(crate) tuple: FiveTuple,
    pub(crate) name: u16,
    /// XOR-RELAYED-ADDRESS of the allocation it believes to have.
    pub(crate) relayed: Option<SocketAddr>,
    /// Every relay port that it ever had; it may not know, when the answer was lost.
    pub(crate) ports: BTreeSet<u16>,
    /// Every peer it ever asked a permission or a channel for.
    pub(crate) asked: BTreeSet<IpAddr>,
    /// Every peer it ever asked a channel for, by number.
    pub(crate) bound: BTreeMap<u16, BTreeSet<SocketAddr>>,
    key: Key,
    nonce: Vec<u8>,
    pending: Option<Pending>,
    transactions: u64,
}

/// A request that waits for its answer.
struct Pending {
    method: Method,
    transaction: TransactionId,
    attributes: Vec<(AttributeType, Vec<u8>)>,
    peers: Vec<SocketAddr>,
    datagram: Vec<u8>,
    tries: u32,
}

impl Client {
    pub(crate) fn new(tuple: FiveTuple, name: u16) -> Self {
        Self {
            tuple,
            name,
            relayed: None,
            ports: BTreeSet::new(),
            asked: BTreeSet::new(),
            bound: BTreeMap::new(),
            key: Key::long_term("alice", REALM, "wonder"),
            nonce: Vec::new(),
            pending: None,
            transactions: 0,
        }
    }

    /// Sends something, and says when to wake it again.
    pub(crate) fn wake(
        &mut self,
        dice: &mut Dice,
        others: &[SocketAddr],
    ) -> (Option<Vec<u8>>, Duration) {
        if let Some(pending) = &mut self.pending {
            if pending.tries < TRIES {
                pending.tries += 1;
                let again = Duration::from_millis(500 << pending.tries);
                return (Some(pending.datagram.clone()), again);
            }
            self.pending = None;
        }
        let pause = Duration::from_millis(u64::try_from(dice.below(20_000)).unwrap());
        let peer = peer(dice, others);
        let number = 0x4000 + u16::from(dice.byte() % 3);
        let data = format!("c{}", self.name).into_bytes();
        if self.relayed.is_none() && dice.below(8) != 0 {
            let mut attributes = vec![(AttributeType::REQUESTED_TRANSPORT, vec![17, 0, 0, 0])];
            match dice.below(8) {
                0 | 1 => attributes.push((AttributeType::EVEN_PORT, vec![dice.byte() & 0x80])),
                2 => attributes.push((AttributeType::ADDITIONAL_ADDRESS_FAMILY, V6.to_vec())),
                3 => attributes.push((AttributeType::REQUESTED_ADDRESS_FAMILY, V6.to_vec())),
                4 => attributes.push((AttributeType::MOBILITY_TICKET, vec![])),
                _ => {}
            }
            return (Some(self.request(Method::ALLOCATE, attributes, vec![])), retry());
        }
        let datagram = match dice.below(12) {
            0 => {
                let mut attributes = vec![(AttributeType::LIFETIME, vec![0; 4])];
                if dice.below(3) == 0 {
                    attributes.push((AttributeType::REQUESTED_ADDRESS_FAMILY, V6.to_vec()));
                }
                self.request(Method::REFRESH, attributes, vec![])
            }
            1 => self.request(Method::REFRESH, vec![], vec![]),
            2 | 3 => self.request(Method::CREATE_PERMISSION, vec![], vec![peer]),
            4 | 5 => {
                let [high, low] = number.to_be_bytes();
                let value = vec![high, low, 0, 0];
                self.bound.entry(number).or_default().insert(peer);
                let attributes = vec![(AttributeType::CHANNEL_NUMBER, value)];
                self.request(Method::CHANNEL_BIND, attributes, vec![peer])
            }
            6..=8 => return (Some(channel_data(number, &data)), pause / 10),
            9 | 10 => {
                let datagram = Writer::new(Class::Indication, Method::SEND, self.transaction())
                    .xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
                    .attribute(AttributeType::DATA, &data)
                    .finish();
                return (Some(datagram), pause / 10);
            }
            // Away for so long that permissions, channels or the allocation may be over.
            _ => return (None, pause * 60),
        };
        (Some(datagram), retry())
    }

    /// Begins a transaction.
    fn request(
        &mut self,
        method: Method,
        attributes: Vec<(AttributeType, Vec<u8>)>,
        peers: Vec<SocketAddr>,
    ) -> Vec<u8> {
        self.asked.extend(peers.iter().map(SocketAddr::ip));
        let transaction = self.transaction();
        let mut writer = Writer::new(Class::Request, method, transaction);
        for (kind, value) in &attributes {
            writer = writer.attribute(*kind, value);
        }
        for peer in &peers {
            writer = writer.xor_address(AttributeType::XOR_PEER_ADDRESS, *peer);
        }
        if !self.nonce.is_empty() {
            writer = writer
                .attribute(AttributeType::USERNAME, b"alice")
                .attribute(AttributeType::REALM, REALM.as_bytes())
                .attribute(AttributeType::NONCE, &self.nonce)
                .integrity(&self.key);
        }
        let datagram = writer.finish();
        let pending = Pending {
            method,
            transaction,
            attributes,
            peers,
            datagram: datagram.clone(),
            tries: 0,
        };
        self.pending = Some(pending);
        datagram
    }

    /// Takes a response; says whether it brought an allocation.
    pub(crate) fn handle_reply(&mut self, reply: &Message<'_>) -> bool {
        let matches = |pending: &mut Pending| pending.transaction == reply.transaction();
        let Some(pending) = self.pending.take_if(matches) else {
            return false;
        };
        match reply.error_code().map(|code| code.0) {
            // The next try, by the alarm that is set already, is a request of its own.
            Some(401 | 438) => {
                self.nonce = reply.attribute(AttributeType::NONCE).unwrap().to_vec();
                self.request(pending.method, pending.attributes, pending.peers);
            }
            Some(437) if pending.method != Method::ALLOCATE => self.relayed = None,
            Some(_) => {}
            None if pending.method == Method::ALLOCATE => {
                let relayed = reply.xor_address(AttributeType::XOR_RELAYED_ADDRESS).unwrap();
                self.relayed = Some(relayed);
                return true;
            }
            // Of one family: the other one may still be there, and the next answer tells.
            None if pending.attributes == [(AttributeType::LIFETIME, vec![0; 4])] => {
                self.relayed = None;
            }
            None => {}
        }
        false
    }

    /// An Allocate request, with what is known of the nonce.
    pub(crate) fn allocate(&mut self) -> Vec<u8> {
        let attributes = vec![(AttributeType::REQUESTED_TRANSPORT, vec![17, 0, 0, 0])];
        self.request(Method::ALLOCATE, attributes, vec![])
    }

    /// The outcome of [`Self::allocate`]; `None` when it is to be called again.
    pub(crate) fn handle_allocated(&mut self, reply: &[u8]) -> Option<Result<SocketAddr, u16>> {
        let reply = Message::parse(reply).unwrap();
        let code = reply.error_code().map(|code| code.0);
        self.handle_reply(&reply);
        match code {
            Some(401 | 438) => None,
            Some(code) => Some(Err(code)),
            None => self.relayed.map(Ok),
        }
    }

    fn transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        let mut id = [0; 12];
        id[..2].copy_from_slice(&self.name.to_be_bytes());
        id[4..].copy_from_slice(&self.transactions.to_be_bytes());
        TransactionId(id)
    }
}

fn retry() -> Duration {
    Duration::from_millis(500)
}

/// A peer: allowed, forbidden, or another client's relayed address.
fn peer(dice: &mut Dice, others: &[SocketAddr]) -> SocketAddr {
    let some = [
        MEDIA_SERVER,
        OUTSIDE_PEER,
        "198.51.100.180:40001",
        "198.51.100.180:80",
        "127.0.0.1:5000",
        "192.0.2.62:2000",
        "198.51.100.21:4000",
        "[2001:db8:9::1]:5000",
    ];
    if dice.below(3) != 0 || others.is_empty() {
        return at(some[dice.below(some.len())]);
    }
    others[dice.below(others.len())]
}
