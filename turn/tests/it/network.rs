//! Clients, a relay of one or more shards and peers, on a network that loses, delays, reorders and
//! doubles what they send. Time is virtual; the same seed makes the same run.
//!
//! What must always hold is asserted where it happens: see [`World::deliver`] and what it calls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_turn::stun::{AttributeType, Class, Message, Method};
use postern_turn::{
    Config, Destination, Errand, Event, Family, Output, Reach, RelayPort, Relayed, ReplyRate,
    Server, Settings, ShardId, Shared, Side,
};

use crate::client::Client;
use crate::hostile::Dice;
use crate::lab::{LAN1, LAN2, NAT, at, data_indication, epoch, guest, insider, ip, settings, wire};

/// How long a packet is on its way at most.
const MAX_LATENCY: u64 = 300;

/// What is on its way, or a client's alarm.
#[derive(Clone, Debug)]
enum Delivery {
    ToServer { client: usize, datagram: Vec<u8> },
    ToClient { client: usize, datagram: Vec<u8> },
    ToRelay { relay: RelayPort, side: Side, peer: SocketAddr, datagram: Vec<u8> },
    Wake { client: usize },
}

/// The part of a response that a repeated request must get again.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Answer {
    code: u16,
    relayed: Option<SocketAddr>,
    token: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) allocated: usize,
    pub(crate) repeated: usize,
    pub(crate) to_peers: usize,
    pub(crate) to_clients: usize,
    pub(crate) between_shards: usize,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) dice: Dice,
    pub(crate) tally: Tally,
    config: Arc<Config>,
    shards: Vec<Server>,
    clients: Vec<Client>,
    queue: BTreeMap<(Instant, u64), Delivery>,
    sent: u64,
    /// Which shard has which port's sockets open.
    sockets: BTreeMap<RelayPort, usize>,
    /// The last request that the relay has seen of each client, and its first answer.
    last: BTreeMap<usize, (Vec<u8>, Option<Answer>)>,
    replies: Vec<(usize, Vec<u8>)>,
}

pub(crate) fn crowded() -> Settings {
    Settings {
        mobility: true,
        reply_rate: ReplyRate { per_second: 1_000_000, burst: 1_000_000 },
        ..settings()
    }
}

impl World {
    pub(crate) fn new(seed: u64, shards: u8, clients: u16) -> Self {
        let now = epoch();
        let config = Arc::new(Config::new(crowded()).unwrap());
        let shared = Shared::new(&config, [7; 32]);
        let shard = |id| Server::new(Arc::clone(&shared), ShardId(id), Arc::clone(&config), now);
        let tuple = |port| if port % 2 == 0 { guest(port) } else { insider(port) };
        let mut world = Self {
            now,
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            tally: Tally::default(),
            shards: (0..shards).map(shard).collect(),
            clients: (0..clients).map(|index| Client::new(tuple(5000 + index), index)).collect(),
            config,
            queue: BTreeMap::new(),
            sent: 0,
            sockets: BTreeMap::new(),
            last: BTreeMap::new(),
            replies: Vec::new(),
        };
        for client in 0..world.clients.len() {
            let after = world.milliseconds(5_000);
            world.schedule(after, Delivery::Wake { client });
        }
        world
    }

    /// Lets so many things happen.
    pub(crate) fn run(&mut self, deliveries: usize) {
        for _ in 0..deliveries {
            let Some((&(at, _), _)) = self.queue.first_key_value() else {
                return;
            };
            self.pass_until(at);
            if let Some((_, delivery)) = self.queue.pop_first() {
                self.deliver(delivery);
            }
        }
    }

    /// Everybody goes away; returns how long it takes until the relay has nothing left to do.
    pub(crate) fn run_dry(&mut self) -> Duration {
        self.queue.clear();
        let begin = self.now;
        while let Some(timeout) = self.timeout() {
            assert!(timeout > self.now, "a timeout in the past never ends");
            self.pass_until(timeout);
        }
        self.now.saturating_duration_since(begin)
    }

    /// What is left behind: sockets, allocations.
    pub(crate) fn left(&self) -> (usize, usize) {
        let allocations: usize =
            self.shards.iter().map(|shard| shard.allocations(self.now, usize::MAX).len()).sum();
        let clients: usize = self.shards.iter().map(|shard| shard.status().active_clients).sum();
        (self.sockets.len(), clients + allocations)
    }

    /// Another policy, on every shard.
    pub(crate) fn set_config(&mut self, settings: Settings) {
        self.config = Arc::new(Config::new(settings).unwrap());
        self.last.clear();
        for shard in 0..self.shards.len() {
            self.shards[shard].set_config(Arc::clone(&self.config), self.now);
            self.drain(shard);
        }
    }

    /// A fresh client on a network that works, which asks for an allocation; the error is the
    /// code.
    pub(crate) fn allocate(&mut self, port: u16) -> Result<SocketAddr, u16> {
        self.clients.push(Client::new(guest(port), port));
        let client = self.clients.len() - 1;
        loop {
            let datagram = self.clients[client].allocate();
            self.handle_client(client, &datagram);
            let replies = std::mem::take(&mut self.replies);
            let (_, reply) = replies.into_iter().find(|(to, _)| *to == client).expect("a reply");
            if let Some(result) = self.clients[client].handle_allocated(&reply) {
                return result;
            }
        }
    }

    fn timeout(&mut self) -> Option<Instant> {
        let timeouts: Vec<_> = (0..self.shards.len()).map(|shard| self.drain(shard)).collect();
        timeouts.into_iter().flatten().min()
    }

    fn pass_until(&mut self, at: Instant) {
        while let Some(timeout) = self.timeout().filter(|timeout| *timeout <= at) {
            self.now = self.now.max(timeout);
            for shard in 0..self.shards.len() {
                self.shards[shard].handle_timeout(self.now);
                self.drain(shard);
            }
        }
        self.now = self.now.max(at);
    }

    fn milliseconds(&mut self, bound: u64) -> Duration {
        let bound = usize::try_from(bound).unwrap();
        Duration::from_millis(u64::try_from(self.dice.below(bound)).unwrap())
    }

    fn schedule(&mut self, after: Duration, delivery: Delivery) {
        self.sent += 1;
        self.queue.insert((self.now + after, self.sent), delivery);
    }

    /// One in ten is lost, one in ten comes twice, each after its own time.
    fn transmit(&mut self, delivery: &Delivery) {
        let copies = match self.dice.below(10) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let after = self.milliseconds(MAX_LATENCY);
            self.schedule(after, delivery.clone());
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Wake { client } => self.wake(client),
            Delivery::ToServer { client, datagram } => self.deliver_to_server(client, &datagram),
            Delivery::ToClient { client, datagram } => self.deliver_to_client(client, &datagram),
            Delivery::ToRelay { relay, side, peer, datagram } => {
                if let Some(&shard) = self.sockets.get(&relay) {
                    let relayed =
                        self.shards[shard].handle_peer(relay, side, peer, &datagram, self.now);
                    self.carry(shard, relayed, &datagram);
                    self.drain(shard);
                }
            }
        }
    }

    fn wake(&mut self, client: usize) {
        let others: Vec<SocketAddr> =
            self.clients.iter().filter_map(|client| client.relayed).collect();
        let (datagram, again) = self.clients[client].wake(&mut self.dice, &others);
        if let Some(datagram) = datagram {
            self.transmit(&Delivery::ToServer { client, datagram });
        }
        self.schedule(again, Delivery::Wake { client });
        // A stranger tries a port.
        let relay = RelayPort(24000 + u16::from(self.dice.byte() % 32));
        let side = if self.dice.below(2) == 0 { Side::Inside } else { Side::Outside };
        let peer =
            at(["198.51.100.180:40001", "203.0.113.99:9", "127.0.0.1:53"][self.dice.below(3)]);
        let datagram = format!("p{}", relay.0).into_bytes();
        self.transmit(&Delivery::ToRelay { relay, side, peer, datagram });
    }

    /// A request that comes again, and is still the client's last one, is answered as before.
    fn deliver_to_server(&mut self, client: usize, datagram: &[u8]) {
        self.handle_client(client, datagram);
        let replies = std::mem::take(&mut self.replies);
        let request = Message::parse(datagram).ok().filter(|m| m.class() == Class::Request);
        if request.is_some() {
            let answer = replies.iter().find(|(to, _)| *to == client).map(|(_, reply)| {
                let reply = Message::parse(reply).unwrap();
                assert_eq!(reply.transaction(), request.unwrap().transaction());
                Answer {
                    code: reply.error_code().map_or(0, |code| code.0),
                    relayed: reply.xor_address(AttributeType::XOR_RELAYED_ADDRESS),
                    token: reply.attribute(AttributeType::RESERVATION_TOKEN).map(<[u8]>::to_vec),
                }
            });
            match self.last.get(&client) {
                Some((seen, first)) if seen == datagram => {
                    self.tally.repeated += 1;
                    let code = |answer: &Option<Answer>| answer.as_ref().map(|answer| answer.code);
                    // Time passes, and others free or take room.
                    let stale = code(&answer) == Some(438);
                    let volatile = matches!(code(first), Some(437 | 438 | 486 | 508));
                    assert!(stale || volatile || answer == *first, "{answer:?}, first {first:?}");
                }
                _ => {
                    self.last.insert(client, (datagram.to_vec(), answer));
                }
            }
        }
        for (to, datagram) in replies {
            self.transmit(&Delivery::ToClient { client: to, datagram });
        }
    }

    fn handle_client(&mut self, client: usize, datagram: &[u8]) {
        let tuple = self.clients[client].tuple;
        let shard = usize::from(tuple.client.port()) % self.shards.len();
        let relayed = self.shards[shard].handle_client(tuple, datagram, self.now);
        self.carry(shard, relayed, datagram);
        self.drain(shard);
    }

    /// A packet reaches a client only through an allocation that it had, and from a peer that it
    /// asked for.
    fn deliver_to_client(&mut self, client: usize, datagram: &[u8]) {
        if datagram[0] & 0xC0 == 0x40 {
            let number = u16::from_be_bytes([datagram[0], datagram[1]]);
            let length = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
            let peer = self.clients[client].bound[&number].clone();
            self.check_data(client, &peer, &datagram[4..4 + length]);
            return;
        }
        let message = Message::parse(datagram).unwrap();
        if message.class() == Class::Indication {
            assert_eq!(message.method(), Method::DATA);
            let (peer, data) = data_indication(datagram);
            self.check_data(client, &BTreeSet::from([peer]), &data);
            return;
        }
        if self.clients[client].handle_reply(&message) {
            self.tally.allocated += 1;
        }
    }

    fn check_data(&mut self, client: usize, peers: &BTreeSet<SocketAddr>, data: &[u8]) {
        self.tally.to_clients += 1;
        let text = std::str::from_utf8(data).unwrap();
        let receiver = &self.clients[client];
        assert!(peers.iter().any(|peer| receiver.asked.contains(&peer.ip())), "{peers:?}");
        let number: u16 = text[1..].parse().unwrap();
        if text.starts_with('p') {
            assert!(receiver.ports.contains(&number), "{text} came to {:?}", receiver.ports);
        } else {
            let sender = self.clients.iter().find(|client| client.name == number).unwrap();
            let own: [IpAddr; 4] = [ip(NAT), ip(LAN1), ip(LAN2), ip("2001:db8:2::61")];
            assert!(
                peers.iter().any(|peer| {
                    own.contains(&peer.ip()) && sender.ports.contains(&peer.port())
                })
            );
        }
    }

    /// Takes a relayed packet to where it goes, through other shards if need be.
    fn carry(&mut self, mut shard: usize, relayed: Option<Relayed>, datagram: &[u8]) {
        let mut relayed = relayed;
        let mut datagram = datagram.to_vec();
        for _ in 0..4 {
            let Some(packet) = relayed else {
                return;
            };
            let (to, bytes) = wire(&packet, &datagram);
            match to {
                Destination::Client(tuple) => {
                    let client = self.clients.iter().position(|client| client.tuple == tuple);
                    let client = client.expect("only clients get packets");
                    self.transmit(&Delivery::ToClient { client, datagram: bytes });
                    return;
                }
                Destination::Peer { relay, side, peer } => {
                    return self.deliver_to_peer(shard, relay, side, peer, &bytes);
                }
                Destination::Shard { shard: ShardId(to), errand } => {
                    self.tally.between_shards += 1;
                    shard = usize::from(to);
                    let server = &mut self.shards[shard];
                    relayed = match errand {
                        Errand::Client(client) => server.handle_client(client, &bytes, self.now),
                        Errand::Relay { origin, target } => {
                            server.handle_relay(origin, target, &bytes, self.now)
                        }
                    };
                    self.drain(shard);
                    datagram = bytes;
                }
            }
        }
        panic!("{relayed:?} goes in circles");
    }

    /// A packet leaves only by a port of the client that sent it, toward a peer that it asked for
    /// and that the policy allows.
    fn deliver_to_peer(
        &mut self,
        shard: usize,
        relay: RelayPort,
        side: Side,
        peer: SocketAddr,
        data: &[u8],
    ) {
        self.tally.to_peers += 1;
        assert_eq!(self.sockets.get(&relay), Some(&shard));
        let name: u16 = std::str::from_utf8(data).unwrap()[1..].parse().unwrap();
        let client = self.clients.iter().find(|client| client.name == name).unwrap();
        let allocations = self.shards[shard].allocations(self.now, usize::MAX);
        let own = allocations.iter().find(|one| one.relayed[0].port() == relay.0).unwrap();
        assert_eq!(own.client, client.tuple);
        assert!(client.asked.contains(&peer.ip()), "{peer} was never asked for");
        let of = if client.tuple.server.ip() == ip(LAN1) { Side::Inside } else { Side::Outside };
        assert_eq!(self.config.reach(of, peer.ip()), Reach::Peer(side), "{peer}");
        assert!(peer.port() >= 1024);
        if self.dice.below(2) == 0 {
            let datagram = format!("p{}", relay.0).into_bytes();
            self.transmit(&Delivery::ToRelay { relay, side, peer, datagram });
        }
    }

    /// Does what a shard wants done; returns when it wants to be called.
    fn drain(&mut self, shard: usize) -> Option<Instant> {
        loop {
            match self.shards[shard].poll_output() {
                Output::Reply { client, message } => {
                    let to = self.clients.iter().position(|one| one.tuple == client);
                    self.replies.push((to.expect("only clients get replies"), message));
                }
                Output::OpenRelay { relay, sockets, .. } => {
                    let families: BTreeSet<_> =
                        sockets.iter().map(|socket| Family::of(socket.address.ip())).collect();
                    let families: Vec<_> = families.into_iter().collect();
                    if self.dice.below(20) == 0 {
                        self.shards[shard].handle_relay_refused(relay, self.now);
                        continue;
                    }
                    let before = self.sockets.insert(relay, shard);
                    assert_eq!(before, None, "{relay:?} belongs to two allocations");
                    assert!((24000..=24031).contains(&relay.0));
                    self.shards[shard].handle_relay_opened(relay, &families, self.now);
                }
                Output::CloseRelay(relay) => {
                    let owner = self.sockets.remove(&relay);
                    assert!(owner.is_none_or(|owner| owner == shard));
                }
                Output::Event(Event::Allocated { client, relayed, .. }) => {
                    let client = self.clients.iter_mut().find(|one| one.tuple == client);
                    client.expect("only clients allocate").ports.insert(relayed.port());
                }
                Output::Event(_) | Output::CloseFamily(..) => {}
                Output::Timeout(timeout) => return timeout,
                other => panic!("{other:?} was not expected"),
            }
        }
    }
}
