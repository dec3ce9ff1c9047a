//! What foreign bytes meet first in the relay, each as a function of those bytes that panics when
//! a promise is broken.
//!
//! libFuzzer calls them, and so do the tests of `turn`, with every file of `corpus/`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use postern_turn::framing::{self, MAX_MESSAGE};
use postern_turn::stun::{AttributeType, Class, Key, Message, Method, TransactionId, Writer};
use postern_turn::{
    Config, ConnectError, Destination, Errand, Face, Family, FiveTuple, Output, ProxyHeader, Reach,
    RelayPort, Relayed, ReplyRate, Server, Settings, ShardId, Shared, Side, Transport,
};

/// A datagram as a STUN message: what was parsed is inside it, and says the same when it is
/// written again.
pub fn stun_message(data: &[u8]) {
    let Ok(message) = Message::parse(data) else {
        return;
    };
    let key = Key::short_term("key");
    assert!(!message.verify(&key) || message.has_integrity());
    assert!(message.integrity().is_none() || message.has_integrity());
    drop((message.error_code(), format!("{message:?}")));
    let mut writer = Writer::new(message.class(), message.method(), message.transaction());
    for (kind, value) in message.attributes() {
        assert!(data.as_ptr_range().contains(&value.as_ptr()) || value.is_empty());
        writer = writer.attribute(kind, value);
        if let Some(address) = message.xor_address(kind) {
            let again = Writer::new(message.class(), message.method(), message.transaction())
                .xor_address(kind, address)
                .finish();
            assert_eq!(Message::parse(&again).unwrap().xor_address(kind), Some(address));
        }
    }
    let written = writer.integrity(&key).fingerprint().finish();
    let again = Message::parse(&written).unwrap();
    assert!(again.attributes().eq(message.attributes()));
    assert!(again.verify(&key) && again.has_fingerprint());
}

/// A stream of messages: more octets never change what its begin has decided.
pub fn framing(data: &[u8]) {
    for limit in [MAX_MESSAGE, 1500] {
        let whole = framing::next(data, limit);
        for end in 0..data.len().min(64) {
            match framing::next(&data[..end], limit) {
                Ok(None) => {}
                Err(_) => assert!(whole.is_err(), "refused after {end} octets"),
                early @ Ok(Some(_)) => assert_eq!(early, whole),
            }
        }
        let mut rest = data;
        while let Ok(Some(length)) = framing::next(rest, limit) {
            assert!((4..=limit).contains(&length) && length % 4 == 0);
            assert!(framing::next(&rest[..length - 1], limit) == Ok(None));
            rest = &rest[length..];
        }
    }
}

/// The begin of a stream that the proxy hands over.
pub fn proxy_header(data: &[u8]) {
    let whole = ProxyHeader::parse(data);
    for end in 0..data.len().min(64) {
        match ProxyHeader::parse(&data[..end]) {
            Ok(None) => {}
            Err(_) => assert!(whole.is_err(), "refused after {end} octets"),
            early @ Ok(Some(_)) => assert_eq!(early, whole),
        }
    }
    if let Ok(Some((header, length))) = whole {
        assert!(length <= data.len() && length <= ProxyHeader::MAX_LENGTH);
        let bytes = header.to_bytes();
        assert_eq!(ProxyHeader::parse(&bytes), Ok(Some((header, bytes.len()))));
        assert_eq!(ProxyHeader::new(header.source(), header.destination()), Some(header));
    }
}

/// A dialogue with a relay of two shards: each step is an octet that says what it is, one that
/// says how long, and so many octets.
///
/// ```text
/// 0, 1     a datagram of the first, the second client as it is
/// 2, 3     a datagram of a peer to the relay port of the first, the second client
/// 4        time passes
/// 5        the configuration changes
/// 8 to 15  a signed request of the first client with these attributes; the octet is its method
/// 16 to 23 the same of the second client
/// ```
pub fn relay(data: &[u8]) {
    let mut lab = Lab::new();
    let mut rest = data;
    while let [step, length, tail @ ..] = rest {
        let length = usize::from(*length).min(tail.len());
        let (octets, next) = tail.split_at(length);
        rest = next;
        lab.step(*step, octets);
    }
    lab.run_dry();
}

const REALM: &str = "example.org";

/// Peers that a step may name by number.
const PEERS: [&str; 6] = [
    "198.51.100.180:40000",
    "203.0.113.77:5000",
    "203.0.113.156:24001",
    "198.51.100.180:80",
    "127.0.0.1:5000",
    "[2001:db8:9::1]:5000",
];

struct Lab {
    shards: Vec<Server>,
    config: Arc<Config>,
    now: Instant,
    clients: [FiveTuple; 2],
    nonces: [Vec<u8>; 2],
    relays: [Option<RelayPort>; 2],
    open: Vec<(RelayPort, usize)>,
    transactions: u64,
}

fn settings() -> Settings {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    let ip = |text: &str| text.parse().unwrap();
    Settings {
        realm: REALM.into(),
        users: vec![("alice".into(), "wonder".into())],
        inside_listeners: vec![ip("198.51.100.168")],
        media_ports: Some(24000..=24007),
        outside: vec![
            Face { local: ip("192.0.2.61"), told: ip("203.0.113.156") },
            Face { local: ip("2001:db8:2::61"), told: ip("2001:db8:2::61") },
        ],
        inside: vec![Face { local: ip("198.51.100.168"), told: ip("198.51.100.168") }],
        inside_routes: nets(&["198.51.100.0/24", "2001:db8:1::/48"]),
        allow: nets(&["198.51.100.180/32", "2001:db8:9::/48"]),
        allow_outside: nets(&["203.0.113.0/24"]),
        own_addresses: ["203.0.113.156", "198.51.100.168", "192.0.2.61"].map(ip).to_vec(),
        tcp_relay: true,
        mobility: true,
        reply_rate: ReplyRate { per_second: 1_000_000, burst: 1_000_000 },
        ..Settings::default()
    }
}

impl Lab {
    fn new() -> Self {
        // Only differences of times count.
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        #[expect(
            clippy::disallowed_methods,
            reason = "the one point that virtual time counts from"
        )]
        let now = *EPOCH.get_or_init(Instant::now);
        let config = Arc::new(Config::new(settings()).unwrap());
        let shared = Shared::new(&config, [7; 32]);
        let shard = |id| Server::new(Arc::clone(&shared), ShardId(id), Arc::clone(&config), now);
        let tuple = |client: &str, server: &str| FiveTuple {
            transport: Transport::Udp,
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
        };
        let mut lab = Self {
            shards: vec![shard(0), shard(1)],
            config,
            now,
            clients: [
                tuple("203.0.113.7:40000", "192.0.2.61:3478"),
                tuple("198.51.100.20:40000", "198.51.100.168:3478"),
            ],
            nonces: [Vec::new(), Vec::new()],
            relays: [None, None],
            open: Vec::new(),
            transactions: 0,
        };
        for who in 0..2 {
            let transport = [0, 25, 0, 4, 17, 0, 0, 0];
            let challenge = lab.signed(who, Method::ALLOCATE, &transport).unwrap();
            let challenge = Message::parse(&challenge).unwrap();
            lab.nonces[who] = challenge.attribute(AttributeType::NONCE).unwrap().to_vec();
            let reply = lab.signed(who, Method::ALLOCATE, &transport).unwrap();
            let reply = Message::parse(&reply).unwrap();
            let relayed = reply.xor_address(AttributeType::XOR_RELAYED_ADDRESS).unwrap();
            lab.relays[who] = Some(RelayPort(relayed.port()));
            for (peer, number) in PEERS.iter().take(3).zip(0x4000_u16..) {
                let [high, low] = number.to_be_bytes();
                let request = lab
                    .begin(Method::CHANNEL_BIND)
                    .attribute(AttributeType::CHANNEL_NUMBER, &[high, low, 0, 0])
                    .xor_address(AttributeType::XOR_PEER_ADDRESS, peer.parse().unwrap());
                lab.send_signed(who, request);
            }
        }
        lab
    }

    fn step(&mut self, step: u8, octets: &[u8]) {
        match step {
            0 | 1 => {
                self.handle_client(usize::from(step), octets);
            }
            2 | 3 => {
                let (Some(relay), [from, payload @ ..]) =
                    (self.relays[usize::from(step - 2)], octets)
                else {
                    return;
                };
                let peer: SocketAddr = PEERS[usize::from(from >> 1) % PEERS.len()].parse().unwrap();
                let side = if from & 1 == 0 { Side::Inside } else { Side::Outside };
                if let Some(&(_, shard)) = self.open.iter().find(|(port, _)| *port == relay) {
                    let relayed =
                        self.shards[shard].handle_peer(relay, side, peer, payload, self.now);
                    self.carry(shard, relayed, payload);
                }
            }
            4 => {
                let seconds: u64 = octets.iter().map(|octet| u64::from(*octet)).sum();
                self.now += Duration::from_secs(seconds);
                for shard in 0..2 {
                    self.shards[shard].handle_timeout(self.now);
                }
                self.drain();
            }
            5 => {
                let mut settings = settings();
                if octets.first().is_some_and(|octet| octet & 1 == 1) {
                    settings.allow.clear();
                }
                self.config = Arc::new(Config::new(settings).unwrap());
                for shard in 0..2 {
                    self.shards[shard].set_config(Arc::clone(&self.config), self.now);
                }
                self.drain();
            }
            8..=23 => {
                let methods = [
                    Method::ALLOCATE,
                    Method::REFRESH,
                    Method::CREATE_PERMISSION,
                    Method::CHANNEL_BIND,
                    Method::BINDING,
                    Method(10),
                    Method(11),
                    Method(12),
                ];
                let who = usize::from((step - 8) / 8);
                self.signed(who, methods[usize::from(step % 8)], octets);
            }
            _ => {}
        }
    }

    fn begin(&mut self, method: Method) -> Writer {
        self.transactions += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.transactions.to_be_bytes());
        Writer::new(Class::Request, method, TransactionId(id))
    }

    /// Sends a request with these attributes, as far as they are well-formed.
    fn signed(&mut self, who: usize, method: Method, mut attributes: &[u8]) -> Option<Vec<u8>> {
        let mut request = self.begin(method);
        while let [k0, k1, l0, l1, tail @ ..] = attributes {
            let length = usize::from(u16::from_be_bytes([*l0, *l1])).min(tail.len());
            let kind = AttributeType(u16::from_be_bytes([*k0, *k1]));
            request = request.attribute(kind, &tail[..length]);
            attributes = tail.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        self.send_signed(who, request)
    }

    fn send_signed(&mut self, who: usize, mut request: Writer) -> Option<Vec<u8>> {
        if !self.nonces[who].is_empty() {
            request = request
                .attribute(AttributeType::USERNAME, b"alice")
                .attribute(AttributeType::REALM, REALM.as_bytes())
                .attribute(AttributeType::NONCE, &self.nonces[who])
                .integrity(&Key::long_term("alice", REALM, "wonder"));
        }
        self.handle_client(who, &request.finish())
    }

    /// The first reply, if there was one.
    fn handle_client(&mut self, who: usize, datagram: &[u8]) -> Option<Vec<u8>> {
        let relayed = self.shards[who].handle_client(self.clients[who], datagram, self.now);
        self.carry(who, relayed, datagram);
        let reply = self.drain();
        if let Some(nonce) = reply.as_ref().and_then(|reply| {
            let reply = Message::parse(reply).expect("replies are well-formed");
            assert!(matches!(reply.class(), Class::Success | Class::Error));
            reply.attribute(AttributeType::NONCE).map(<[u8]>::to_vec)
        }) {
            self.nonces[who] = nonce;
        }
        reply
    }

    /// A packet goes to a client, to a peer that the policy allows, or to the other shard.
    fn carry(&mut self, mut shard: usize, mut relayed: Option<Relayed>, datagram: &[u8]) {
        let mut datagram = datagram.to_vec();
        for _ in 0..4 {
            let Some(packet) = relayed else {
                return;
            };
            let mut bytes = packet.prefix.as_bytes().to_vec();
            bytes.extend(&datagram[packet.payload]);
            bytes.resize(bytes.len() + packet.padding, 0);
            match packet.to {
                Destination::Client(client) => return assert!(self.clients.contains(&client)),
                Destination::Peer { relay, side, peer } => {
                    assert!(self.open.contains(&(relay, shard)));
                    assert!(peer.port() >= 1024);
                    let allowed = [Side::Inside, Side::Outside]
                        .map(|of| self.config.reach(of, peer.ip()) == Reach::Peer(side));
                    return assert!(allowed.contains(&true), "{peer} is forbidden");
                }
                Destination::Shard { shard: ShardId(to), errand } => {
                    shard = usize::from(to);
                    let server = &mut self.shards[shard];
                    relayed = match errand {
                        Errand::Client(client) => server.handle_client(client, &bytes, self.now),
                        Errand::Relay { origin, target } => {
                            server.handle_relay(origin, target, &bytes, self.now)
                        }
                    };
                    datagram = bytes;
                }
            }
        }
        panic!("a packet goes in circles");
    }

    fn drain(&mut self) -> Option<Vec<u8>> {
        let mut first = None;
        for shard in 0..2 {
            loop {
                match self.shards[shard].poll_output() {
                    Output::Reply { message, .. } => {
                        first.get_or_insert(message);
                    }
                    Output::OpenRelay { relay, sockets, .. } => {
                        assert!((24000..=24007).contains(&relay.0));
                        assert!(self.open.iter().all(|(port, _)| *port != relay));
                        self.open.push((relay, shard));
                        let families: BTreeSet<_> =
                            sockets.iter().map(|s| Family::of(s.address.ip())).collect();
                        let families: Vec<_> = families.into_iter().collect();
                        self.shards[shard].handle_relay_opened(relay, &families, self.now);
                    }
                    Output::CloseRelay(relay) => self.open.retain(|(port, _)| *port != relay),
                    Output::Connect { connection, .. }
                    | Output::ConnectInside { connection, .. } => {
                        self.shards[shard].handle_connected(
                            connection,
                            Err(ConnectError),
                            self.now,
                        );
                    }
                    Output::Timeout(_) => break,
                    _ => {}
                }
            }
        }
        first
    }

    /// When everybody has gone, nothing is left.
    fn run_dry(&mut self) {
        self.now += Duration::from_secs(2 * 3600);
        for shard in 0..2 {
            self.shards[shard].handle_timeout(self.now);
        }
        self.drain();
        for shard in &mut self.shards {
            assert_eq!(shard.poll_output(), Output::Timeout(None));
            assert_eq!(shard.status().active_clients, 0);
        }
        assert!(self.open.is_empty());
    }
}
