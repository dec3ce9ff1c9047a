//! No datagram makes the server panic, leave its port range or reach a forbidden peer.

use std::time::Duration;

use postern_turn::stun::{AttributeType, Class, Message, Method, TransactionId, Writer};
use postern_turn::{
    Config, Destination, FiveTuple, Output, Reach, RelayPort, Relayed, Settings, Side,
};

use crate::lab::{
    LAN1, Lab, Login, MEDIA_SERVER, NAT, OUTSIDE_PEER, at, channel_data, guest, insider, settings,
    tcp,
};

/// xorshift64*: enough to vary inputs, and the same run every time.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() >> 33).unwrap() % bound.max(1)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.roll().to_be_bytes()[0]
    }
}

/// What must hold of every packet that leaves.
fn check(config: &Config, side: Side, relayed: &Relayed, length: usize) {
    assert!(relayed.payload.end <= length);
    if let Destination::Peer { peer, relay, side: face } = relayed.to {
        assert_eq!(config.reach(side, peer.ip()), Reach::Peer(face));
        assert!(peer.port() >= 1024);
        assert!((24000..=24031).contains(&relay.0));
    }
}

fn samples(lab: &mut Lab, login: &Login, ticket: &[u8], dice: &mut Dice) -> Vec<u8> {
    let peers = [
        MEDIA_SERVER,
        OUTSIDE_PEER,
        "203.0.113.156:24003",
        "198.51.100.168:24004",
        "192.0.2.61:24005",
        "127.0.0.1:5000",
        "[::1]:5000",
        "[2001:db8:9::1]:5000",
        "192.0.2.62:2000",
        "198.51.100.180:80",
    ];
    let peer = at(peers[dice.below(peers.len())]);
    let number = 0x4000 + u16::from(dice.byte() % 4);
    let [high, low] = number.to_be_bytes();
    let families = AttributeType::ADDITIONAL_ADDRESS_FAMILY;
    let family = AttributeType::REQUESTED_ADDRESS_FAMILY;
    let request = match dice.below(16) {
        0 => lab.begin(Method::BINDING),
        1 => lab.begin_allocate(),
        2 => lab.begin_allocate().attribute(AttributeType::EVEN_PORT, &[dice.byte()]),
        3 => lab.begin(Method::REFRESH).attribute(AttributeType::LIFETIME, &[0, 0, 0, dice.byte()]),
        4 | 5 => {
            lab.begin(Method::CREATE_PERMISSION).xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
        }
        6 => lab
            .begin(Method::CHANNEL_BIND)
            .attribute(AttributeType::CHANNEL_NUMBER, &[high, low, 0, 0])
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer),
        9 => lab.begin_allocate().attribute(families, &[2, 0, 0, 0]),
        10 => lab.begin_allocate().attribute(AttributeType::MOBILITY_TICKET, &[]),
        11 => lab.begin(Method::REFRESH).attribute(AttributeType::MOBILITY_TICKET, ticket),
        12 => lab
            .begin(Method::REFRESH)
            .attribute(AttributeType::LIFETIME, &[0, 0, 0, dice.byte() % 2])
            .attribute(family, &[1 + dice.byte() % 2, 0, 0, 0]),
        13 => {
            lab.begin(Method::ALLOCATE).attribute(AttributeType::REQUESTED_TRANSPORT, &[6, 0, 0, 0])
        }
        14 => lab.begin(Method::CONNECT).xor_address(AttributeType::XOR_PEER_ADDRESS, peer),
        15 => lab
            .begin(Method::CONNECTION_BIND)
            .attribute(AttributeType::CONNECTION_ID, &[dice.byte(), 0, 0, 0]),
        7 => {
            return Writer::new(Class::Indication, Method::SEND, TransactionId([9; 12]))
                .xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
                .attribute(AttributeType::DATA, &vec![1; dice.below(20)])
                .finish();
        }
        _ => return channel_data(number, &vec![1; dice.below(20)]),
    };
    login.sign(request)
}

fn mutate(datagram: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        let index = dice.below(datagram.len());
        match dice.below(6) {
            0 if !datagram.is_empty() => datagram[index] = dice.byte(),
            1 if !datagram.is_empty() => datagram[index] ^= 1 << dice.below(8),
            2 => datagram.truncate(index),
            3 => datagram.extend((0..dice.below(9)).map(|_| 0xFF)),
            // Keeps the header's length true, so that the walk over the attributes is reached.
            4 if datagram.len() >= 28 => {
                let length = u16::try_from(datagram.len() - 20).unwrap() & !3;
                datagram[2..4].copy_from_slice(&length.to_be_bytes());
            }
            5 if datagram.len() >= 24 => datagram[23] = dice.byte(),
            _ => {}
        }
    }
}

#[test]
fn random_datagrams_are_counted_and_dropped() {
    let mut lab = Lab::new();
    let mut dice = Dice(1);
    for _ in 0..100_000 {
        let mut datagram: Vec<u8> = (0..dice.below(80)).map(|_| dice.byte()).collect();
        if dice.below(2) == 0 && datagram.len() >= 20 {
            datagram[0] &= 0x3F;
            let length = u16::try_from(datagram.len() - 20).unwrap();
            datagram[2..4].copy_from_slice(&length.to_be_bytes());
            datagram[4..8].copy_from_slice(&[0x21, 0x12, 0xA4, 0x42]);
        }

        assert_eq!(lab.server.handle_client(guest(1), &datagram, lab.now), None);
        lab.drain();
    }
    assert_eq!(lab.server.status().active_clients, 0);
}

#[test]
fn mutated_dialogues_never_break_an_invariant() {
    let settings = Settings { mobility: true, tcp_relay: true, ..settings() };
    let mut lab = Lab::with(settings.clone());
    let config = Config::new(settings).unwrap();
    let mut dice = Dice(2);
    let client = |port| if port % 2 == 0 { guest(port) } else { insider(port) };
    let over = |port, client| if port % 5 == 0 { tcp(client) } else { client };
    let clients: Vec<FiveTuple> = (1..20).map(|port| over(port, client(port))).collect();
    let mut ticket = Vec::new();
    let mut logins: Vec<_> = clients.iter().map(|client| lab.alice(*client)).collect();
    let mut relayed_packets = 0;
    for round in 0..60_000 {
        let who = dice.below(clients.len());
        let side = if who.is_multiple_of(2) { Side::Inside } else { Side::Outside };
        let mut datagram = samples(&mut lab, &logins[who], &ticket, &mut dice);
        if dice.below(3) == 0 {
            mutate(&mut datagram, &mut dice);
        }

        if let Some(relayed) = lab.server.handle_client(clients[who], &datagram, lab.now) {
            check(&config, side, &relayed, datagram.len());
            relayed_packets += 1;
        }
        let from = [MEDIA_SERVER, OUTSIDE_PEER, NAT, LAN1][dice.below(4)];
        let from = from.parse().unwrap_or_else(|_| at(&format!("{from}:24001")));
        let face = if dice.below(2) == 0 { Side::Inside } else { Side::Outside };
        let port = RelayPort(24000 + u16::from(dice.byte() % 32));
        if let Some(relayed) = lab.server.handle_peer(port, face, from, &datagram, lab.now) {
            assert!(matches!(relayed.to, Destination::Client(_)));
            relayed_packets += 1;
        }
        for (_, reply) in lab.said() {
            let reply = Message::parse(&reply).unwrap();
            if let Some(fresh) = reply.attribute(AttributeType::MOBILITY_TICKET) {
                ticket = fresh.to_vec();
            }
        }
        for output in std::mem::take(&mut lab.wanted) {
            if let Output::Connect { connection, .. } = output {
                let now = lab.now;
                lab.server.handle_connected(connection, Ok(()), now);
            }
        }
        if dice.below(50) == 0 {
            lab.server.handle_client_gone(clients[who], lab.now);
        }
        lab.forget_replies();
        assert!(lab.open.iter().all(|port| (24000..=24031).contains(&port.0)));
        assert_eq!(lab.open.len(), lab.server.status().active_clients);
        if round % 1000 == 999 {
            lab.pass(Duration::from_secs(200));
            lab.forget_replies();
            logins = clients.iter().map(|client| lab.alice(*client)).collect();
        }
    }
    assert!(lab.server.counters().moved > 10, "allocations do move");
    assert!(lab.server.counters().connections > 10, "connections are made");
    lab.pass(Duration::from_secs(3600));
    assert_eq!((lab.open.len(), lab.timeout), (0, None), "nothing is left behind");
    assert!(relayed_packets > 1000, "the dialogues do reach the data path: {relayed_packets}");
}
