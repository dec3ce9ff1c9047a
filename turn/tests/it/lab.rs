//! A server between an inside and an outside network, and clients that speak STUN to it.
//!
//! ```text
//! 198.51.100.0/24 (inside)              192.0.2.0/24 (DMZ), 203.0.113.0/24 (outside)
//!   .180 media server ── LAN1 .168 [box] LAN2 .61 ── static NAT 203.0.113.156
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_turn::stun::{AttributeType, Class, Key, Message, Method, TransactionId, Writer};
use postern_turn::{
    Config, Destination, Errand, Event, Face, Family, FiveTuple, Output, RelayPort, RelaySocket,
    Relayed, Server, Settings, ShardId, Shared, Side, Transport,
};

pub(crate) const REALM: &str = "example.org";
pub(crate) const NAT: &str = "203.0.113.156";
pub(crate) const LAN1: &str = "198.51.100.168";
pub(crate) const LAN2: &str = "192.0.2.61";
pub(crate) const MEDIA_SERVER: &str = "198.51.100.180:40000";
pub(crate) const OUTSIDE_PEER: &str = "203.0.113.77:5000";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn epoch() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the one point that virtual time counts from")]
    Instant::now()
}

pub(crate) fn settings() -> Settings {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    Settings {
        realm: REALM.into(),
        users: vec![("alice".into(), "wonder".into()), ("bob".into(), "builder".into())],
        inside_listeners: vec![ip(LAN1)],
        media_ports: Some(24000..=24031),
        outside: vec![
            Face { local: ip(LAN2), told: ip(NAT) },
            Face { local: ip("2001:db8:2::61"), told: ip("2001:db8:2::61") },
        ],
        inside: vec![Face { local: ip(LAN1), told: ip(LAN1) }],
        inside_clients_are_told_inside: false,
        inside_routes: nets(&["198.51.100.0/24", "2001:db8:1::/48"]),
        outside_routes: nets(&["198.51.100.192/26"]),
        allow: nets(&["198.51.100.180/32", "2001:db8:9::/48"]),
        allow_outside: nets(&["203.0.113.0/24"]),
        own_addresses: vec![ip(NAT), ip(LAN1), ip(LAN2), ip("2001:db8:2::61"), ip("192.0.2.62")],
        ..Settings::default()
    }
}

/// A client on the Internet.
pub(crate) fn guest(port: u16) -> FiveTuple {
    let client = SocketAddr::new(ip("203.0.113.7"), port);
    FiveTuple { transport: Transport::Udp, client, server: at("192.0.2.61:3478") }
}

/// A client on the internal network.
pub(crate) fn insider(port: u16) -> FiveTuple {
    let client = SocketAddr::new(ip("198.51.100.20"), port);
    FiveTuple { transport: Transport::Udp, client, server: at("198.51.100.168:3478") }
}

/// The same client over TCP.
pub(crate) fn tcp(client: FiveTuple) -> FiveTuple {
    FiveTuple { transport: Transport::Tcp, ..client }
}

pub(crate) struct Lab {
    /// Shard 0.
    pub(crate) server: Server,
    /// The other shards.
    pub(crate) others: Vec<Server>,
    /// Which shard the kernel gives a client's datagrams to; 0 when it is not here.
    pub(crate) homes: BTreeMap<FiveTuple, u8>,
    /// Which shard has a relay port.
    pub(crate) owners: BTreeMap<RelayPort, u8>,
    /// What else the shards wanted done, oldest first.
    pub(crate) wanted: Vec<Output>,
    /// Ports that another program holds in IPv6 only.
    pub(crate) held_v6: BTreeSet<u16>,
    pub(crate) now: Instant,
    pub(crate) open: BTreeSet<RelayPort>,
    pub(crate) last_opened: Vec<RelaySocket>,
    /// Ports that another program holds.
    pub(crate) held: BTreeSet<u16>,
    pub(crate) events: Vec<Event>,
    pub(crate) timeout: Option<Instant>,
    replies: VecDeque<(FiveTuple, Vec<u8>)>,
    transactions: u64,
}

/// What a client knows about its credentials.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: &'static str,
    pub(crate) key: Key,
    pub(crate) nonce: Vec<u8>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(settings())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        Self::sharded(settings, 1)
    }

    /// A relay of so many shards. Clients come in on shard 0 unless `homes` says otherwise.
    pub(crate) fn sharded(settings: Settings, shards: u8) -> Self {
        let config = Arc::new(Config::new(settings).unwrap());
        let shared = Shared::new(&config, [7; 32]);
        Self::of(&shared, &config, 0..shards)
    }

    /// Some shards of a relay, the first of them where clients come in.
    pub(crate) fn of(shared: &Arc<Shared>, config: &Arc<Config>, shards: Range<u8>) -> Self {
        let now = epoch();
        let shard = |id| Server::new(Arc::clone(shared), ShardId(id), Arc::clone(config), now);
        Self {
            server: shard(shards.start),
            others: shards.skip(1).map(shard).collect(),
            homes: BTreeMap::new(),
            owners: BTreeMap::new(),
            wanted: Vec::new(),
            held_v6: BTreeSet::new(),
            now,
            open: BTreeSet::new(),
            last_opened: Vec::new(),
            held: BTreeSet::new(),
            events: Vec::new(),
            timeout: None,
            replies: VecDeque::new(),
            transactions: 0,
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        for id in 0..=self.others.len() {
            self.shard(u8::try_from(id).unwrap()).handle_timeout(now);
        }
        self.drain();
    }

    pub(crate) fn shard(&mut self, id: u8) -> &mut Server {
        match id {
            0 => &mut self.server,
            id => &mut self.others[usize::from(id) - 1],
        }
    }

    /// What a client sends, on whatever shard it ends.
    pub(crate) fn handle(
        &mut self,
        client: FiveTuple,
        datagram: &[u8],
    ) -> Option<(Destination, Vec<u8>)> {
        let mut shard = self.homes.get(&client).copied().unwrap_or(0);
        for _ in 0..3 {
            let now = self.now;
            let relayed = self.shard(shard).handle_client(client, datagram, now)?;
            let payload = &datagram[relayed.payload.clone()];
            match relayed.to {
                Destination::Shard { shard: other, errand: Errand::Client(of) } => {
                    assert_eq!((of, payload), (client, datagram));
                    shard = other.0;
                    if client.transport == Transport::Tcp {
                        self.homes.insert(client, shard);
                    }
                }
                Destination::Shard { shard, errand: Errand::Relay { origin, target } } => {
                    let relayed = self.shard(shard.0).handle_relay(origin, target, payload, now);
                    return relayed.map(|relayed| wire(&relayed, payload));
                }
                _ => return Some(wire(&relayed, datagram)),
            }
        }
        panic!("a datagram goes round between shards");
    }

    pub(crate) fn drain(&mut self) {
        let mut timeout = None;
        for id in 0..=self.others.len() {
            let next = self.drain_shard(u8::try_from(id).unwrap());
            timeout = [timeout, next].into_iter().flatten().min();
        }
        self.timeout = timeout;
    }

    fn drain_shard(&mut self, id: u8) -> Option<Instant> {
        let now = self.now;
        loop {
            match self.shard(id).poll_output() {
                Output::Reply { client, message } => self.replies.push_back((client, message)),
                Output::OpenRelay { relay, sockets, .. } => {
                    if self.held.contains(&relay.0) {
                        self.shard(id).handle_relay_refused(relay, now);
                    } else {
                        assert!(self.open.insert(relay), "{relay:?} is open already");
                        let families: BTreeSet<_> =
                            sockets.iter().map(|s| Family::of(s.address.ip())).collect();
                        let mut families: Vec<_> = families.into_iter().collect();
                        if self.held_v6.contains(&relay.0) {
                            families.retain(|family| *family == Family::V4);
                        }
                        self.last_opened = sockets;
                        self.owners.insert(relay, id);
                        self.shard(id).handle_relay_opened(relay, &families, now);
                    }
                }
                Output::CloseRelay(port) => {
                    self.open.remove(&port);
                }
                Output::Event(event) => self.events.push(event),
                Output::Timeout(timeout) => return timeout,
                other => self.wanted.push(other),
            }
        }
    }

    /// Another configuration, on every shard.
    pub(crate) fn set_config(&mut self, settings: Settings) {
        let config = Arc::new(Config::new(settings).unwrap());
        let now = self.now;
        for id in 0..=self.others.len() {
            let config = Arc::clone(&config);
            self.shard(u8::try_from(id).unwrap()).set_config(config, now);
        }
        self.drain();
    }

    /// What was sent to clients and nobody looked at.
    pub(crate) fn said(&mut self) -> Vec<(FiveTuple, Vec<u8>)> {
        self.drain();
        self.replies.drain(..).collect()
    }

    /// Drains and does not look at the replies.
    pub(crate) fn forget_replies(&mut self) {
        self.drain();
        self.replies.clear();
    }

    pub(crate) fn transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        let mut id = [1; 12];
        id[4..].copy_from_slice(&self.transactions.to_be_bytes());
        TransactionId(id)
    }

    /// Sends a datagram that is no packet to relay, and returns the reply.
    pub(crate) fn send(&mut self, client: FiveTuple, datagram: &[u8]) -> Option<Vec<u8>> {
        assert_eq!(self.handle(client, datagram), None);
        self.drain();
        let (to, reply) = self.replies.pop_front()?;
        assert_eq!(to, client);
        assert!(self.replies.is_empty());
        Some(reply)
    }

    /// Begins a request.
    pub(crate) fn begin(&mut self, method: Method) -> Writer {
        let transaction = self.transaction();
        Writer::new(Class::Request, method, transaction)
    }

    /// Begins an Allocate request for UDP.
    pub(crate) fn begin_allocate(&mut self) -> Writer {
        self.begin(Method::ALLOCATE).attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
    }

    /// Fetches a nonce.
    pub(crate) fn login(&mut self, client: FiveTuple, user: &'static str, password: &str) -> Login {
        let request = self.begin_allocate().finish();
        let reply = self.send(client, &request).unwrap();
        let reply = Message::parse(&reply).unwrap();
        assert_eq!(reply.error_code().unwrap().0, 401);
        assert_eq!(reply.attribute(AttributeType::REALM), Some(REALM.as_bytes()));
        let nonce = reply.attribute(AttributeType::NONCE).unwrap().to_vec();
        Login { user, key: Key::long_term(user, REALM, password), nonce }
    }

    pub(crate) fn alice(&mut self, client: FiveTuple) -> Login {
        self.login(client, "alice", "wonder")
    }

    pub(crate) fn bob(&mut self, client: FiveTuple) -> Login {
        self.login(client, "bob", "builder")
    }

    /// Sends a request with credentials and returns the reply.
    pub(crate) fn ask(&mut self, client: FiveTuple, login: &Login, request: Writer) -> Reply {
        let request = login.sign(request);
        Reply::new(self.send(client, &request).expect("a reply"))
    }

    /// Makes an allocation as alice and returns her login and the relayed address.
    pub(crate) fn allocate(&mut self, client: FiveTuple) -> (Login, SocketAddr) {
        let login = self.alice(client);
        let request = self.begin_allocate();
        let relayed = self.ask(client, &login, request).relayed();
        (login, relayed)
    }

    pub(crate) fn permit(&mut self, client: FiveTuple, login: &Login, peers: &[&str]) -> Reply {
        let mut request = self.begin(Method::CREATE_PERMISSION);
        for peer in peers {
            let peer = SocketAddr::new(ip(peer), 0);
            request = request.xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
        }
        self.ask(client, login, request)
    }

    pub(crate) fn bind(
        &mut self,
        client: FiveTuple,
        login: &Login,
        number: u16,
        peer: SocketAddr,
    ) -> Reply {
        let [high, low] = number.to_be_bytes();
        let request = self
            .begin(Method::CHANNEL_BIND)
            .attribute(AttributeType::CHANNEL_NUMBER, &[high, low, 0, 0])
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
        self.ask(client, login, request)
    }

    pub(crate) fn refresh(&mut self, client: FiveTuple, login: &Login, lifetime: u32) -> Reply {
        let request =
            self.begin(Method::REFRESH).attribute(AttributeType::LIFETIME, &lifetime.to_be_bytes());
        self.ask(client, login, request)
    }

    /// Sends data through a Send indication.
    pub(crate) fn indicate(
        &mut self,
        client: FiveTuple,
        peer: SocketAddr,
        data: &[u8],
    ) -> Option<(Destination, Vec<u8>)> {
        let transaction = self.transaction();
        let datagram = Writer::new(Class::Indication, Method::SEND, transaction)
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
            .attribute(AttributeType::DATA, data)
            .finish();
        self.handle(client, &datagram)
    }

    /// Sends data through a channel.
    pub(crate) fn channel(
        &mut self,
        client: FiveTuple,
        number: u16,
        data: &[u8],
    ) -> Option<(Destination, Vec<u8>)> {
        self.handle(client, &channel_data(number, data))
    }

    /// A datagram arrives at a relay port.
    pub(crate) fn arrive(
        &mut self,
        relay: u16,
        face: Side,
        peer: SocketAddr,
        data: &[u8],
    ) -> Option<(Destination, Vec<u8>)> {
        let relay = RelayPort(relay);
        let owner = self.owners.get(&relay).copied().unwrap_or(0);
        let now = self.now;
        let relayed = self.shard(owner).handle_peer(relay, face, peer, data, now);
        relayed.map(|relayed| wire(&relayed, data))
    }
}

impl Login {
    pub(crate) fn sign(&self, request: Writer) -> Vec<u8> {
        request
            .attribute(AttributeType::USERNAME, self.user.as_bytes())
            .attribute(AttributeType::REALM, REALM.as_bytes())
            .attribute(AttributeType::NONCE, &self.nonce)
            .integrity(&self.key)
            .finish()
    }
}

/// A response, owned.
pub(crate) struct Reply(pub(crate) Vec<u8>);

impl Reply {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Message::parse(&bytes).expect("replies are well-formed");
        Self(bytes)
    }

    pub(crate) fn message(&self) -> Message<'_> {
        Message::parse(&self.0).unwrap()
    }

    /// 0 for success.
    pub(crate) fn code(&self) -> u16 {
        match self.message().class() {
            Class::Success => 0,
            Class::Error => self.message().error_code().unwrap().0,
            other => panic!("{other:?} is no response"),
        }
    }

    pub(crate) fn relayed(&self) -> SocketAddr {
        assert_eq!(self.code(), 0);
        self.message().xor_address(AttributeType::XOR_RELAYED_ADDRESS).unwrap()
    }

    /// The value of an attribute that must be there.
    pub(crate) fn value(&self, kind: AttributeType) -> Vec<u8> {
        self.message().attribute(kind).unwrap().to_vec()
    }

    /// Every XOR-RELAYED-ADDRESS.
    pub(crate) fn all_relayed(&self) -> Vec<SocketAddr> {
        assert_eq!(self.code(), 0);
        let message = self.message();
        let relayed =
            message.attributes().filter(|(kind, _)| *kind == AttributeType::XOR_RELAYED_ADDRESS);
        let only = |value: &[u8]| {
            let copy = Writer::new(Class::Success, Method::ALLOCATE, message.transaction())
                .attribute(AttributeType::XOR_RELAYED_ADDRESS, value)
                .finish();
            let copy = Message::parse(&copy).unwrap();
            copy.xor_address(AttributeType::XOR_RELAYED_ADDRESS).unwrap()
        };
        relayed.map(|(_, value)| only(value)).collect()
    }

    pub(crate) fn lifetime(&self) -> u32 {
        let value = self.message().attribute(AttributeType::LIFETIME).unwrap();
        u32::from_be_bytes(value.try_into().unwrap())
    }
}

pub(crate) fn channel_data(number: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = number.to_be_bytes().to_vec();
    datagram.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    datagram.extend(data);
    datagram
}

/// The octets that a relayed packet puts on the wire.
pub(crate) fn wire(relayed: &Relayed, datagram: &[u8]) -> (Destination, Vec<u8>) {
    let mut bytes = relayed.prefix.as_bytes().to_vec();
    bytes.extend(&datagram[relayed.payload.clone()]);
    bytes.extend(vec![0; relayed.padding]);
    (relayed.to, bytes)
}

/// Peer and data of a Data indication.
pub(crate) fn data_indication(bytes: &[u8]) -> (SocketAddr, Vec<u8>) {
    let message = Message::parse(bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
    let peer = message.xor_address(AttributeType::XOR_PEER_ADDRESS).unwrap();
    (peer, message.attribute(AttributeType::DATA).unwrap().to_vec())
}

pub(crate) fn to_peer(relay: SocketAddr, side: Side, peer: &str) -> Destination {
    Destination::Peer { relay: RelayPort(relay.port()), side, peer: at(peer) }
}
