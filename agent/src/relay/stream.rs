//! Streams of one shard: clients over TCP and TLS, and the connections of TCP relays (RFC 6062).
//!
//! ```text
//! acceptor ─ Arrival ─→ Client ── messages ──→ state machine ── answers, data ──→ Client
//! another shard ───↗       │                        │
//!                          └──────── Join ──────────┤
//!                                      v            v
//!                       peer ←──→ Half = Half     PeerListener, Half (connecting, waiting)
//! ```
//!
//! # Invariants
//!
//! 1. Nothing here waits: a stream that takes nothing keeps a bounded buffer and the rest is
//!    dropped (data of peers), refused (answers) or left with its sender (joined connections).
//! 2. What is written to a client during one round of events leaves with one call.
//! 3. A 5-tuple has at most one stream; a new one ends the old one.

mod arrival;
mod client;
mod outbound;
mod peers;
mod splice;
mod table;
mod wire;

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::ops::AddAssign;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollFlags};
use turn::{
    ConnectError, ConnectionId, Family, FiveTuple, Origin, Output, ProxyHeader, RelayPort,
    RelaySocket, ShardId, Transport, framing,
};

pub(super) use self::arrival::{Arrival, Gate, gate};
use self::client::Client;
use self::peers::{PeerListener, begin_to_connect, listen_for_peers};
use self::splice::{Half, Progress, pump};
use self::table::{Entry, Table};
pub(super) use self::wire::Wire;
use crate::relay::shard::Forwarder;

/// Taken from one client before other sockets have their turn; a message that has begun goes
/// before.
const PIECE: usize = 64 * 1024;
/// Peers accepted from one relay port before other sockets have their turn.
const PEERS: usize = 16;
/// How long connecting to a peer may take.
const CONNECT_TIME: Duration = Duration::from_secs(30);
/// A client's stream that moves more often is not looked for any more.
const MOST_MOVES: u8 = 3;
/// Messages that say that their receiver has an allocation: the successful answers to Allocate,
/// CreatePermission and ChannelBind (RFC 8656 §17).
const ALLOCATED: [[u8; 2]; 3] = [[0x01, 0x03], [0x01, 0x08], [0x01, 0x09]];

/// What is open and what has happened.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::relay) struct StreamCounters {
    /// Clients' connections that are open, joined ones included.
    pub(in crate::relay) clients: u64,
    /// Clients' connections so far.
    pub(in crate::relay) clients_total: u64,
    /// Clients that sent what is no message, or none in time.
    pub(in crate::relay) cut_off: u64,
    /// Connections with peers that are open.
    pub(in crate::relay) peers: u64,
    /// Connections with peers so far.
    pub(in crate::relay) peers_total: u64,
}

impl AddAssign for StreamCounters {
    fn add_assign(&mut self, other: Self) {
        self.clients += other.clients;
        self.clients_total += other.clients_total;
        self.cut_off += other.cut_off;
        self.peers += other.peers;
        self.peers_total += other.peers_total;
    }
}

/// See the module.
pub(super) struct Streams {
    shard: ShardId,
    gates: Vec<Gate>,
    arrivals: Receiver<Arrival>,
    table: Table,
    by_client: HashMap<FiveTuple, u32>,
    by_connection: HashMap<ConnectionId, u32>,
    by_relay: HashMap<RelayPort, Vec<u32>>,
    /// Clients with something to write.
    dirty: Vec<u32>,
    scratch: Vec<u8>,
    totals: StreamCounters,
}

/// What a shard lends while streams work.
pub(super) struct Around<'a> {
    /// Where descriptors are watched, with [`Token::Stream`](crate::relay::shard::StreamToken).
    pub(super) epoll: &'a Epoll,
    /// Where messages of clients go: [`Forwarder::handle_message`].
    pub(super) forwarder: &'a mut Forwarder,
    pub(super) now: Instant,
}

impl Streams {
    /// The streams of `shard`, which others reach by `gates`.
    pub(super) fn new(shard: ShardId, gates: Vec<Gate>, arrivals: Receiver<Arrival>) -> Self {
        Self {
            shard,
            gates,
            arrivals,
            table: Table::default(),
            by_client: HashMap::new(),
            by_connection: HashMap::new(),
            by_relay: HashMap::new(),
            dirty: Vec::new(),
            scratch: vec![0; PIECE],
            totals: StreamCounters::default(),
        }
    }

    /// What is open and what has happened.
    pub(super) fn counters(&self) -> StreamCounters {
        let (clients, peers) = self.table.count();
        StreamCounters { clients, peers, ..self.totals }
    }

    /// Takes the streams that were given to this shard.
    pub(super) fn take_arrivals(&mut self, around: &mut Around<'_>) {
        while let Ok(arrival) = self.arrivals.try_recv() {
            match arrival {
                Arrival::Accepted { wire, who, place } => {
                    self.totals.clients_total += 1;
                    let client = Client::new(wire, who, Some(place), around.now);
                    self.admit(client, around);
                }
                Arrival::Moved(mut client) => {
                    let message = client.take_begun();
                    if let Some(id) = self.admit(*client, around) {
                        self.take_octets(id, &message, around);
                    }
                }
                Arrival::Relay { origin, target, wire } => {
                    self.accept_relay(origin, target, wire, around);
                }
            }
        }
    }

    /// Something happened to the descriptor that is watched under this number.
    pub(super) fn handle_event(&mut self, id: u32, events: EpollFlags, around: &mut Around<'_>) {
        match self.table.get_mut(id) {
            Some(Entry::Client(_)) => {
                if events.contains(EpollFlags::EPOLLOUT) {
                    self.mark(id);
                }
                self.read_client(id, around);
            }
            Some(Entry::Half(half)) => match half.progress {
                Progress::Connecting { .. } => self.finish_connecting(id, around),
                Progress::Waiting => {}
                Progress::Joined(other) => self.pump(id, other, around),
            },
            Some(Entry::Listener(_)) => self.accept_peers(id, around),
            None => {}
        }
    }

    /// Sends data of a peer to a client, or drops it when there is no room: never waits.
    pub(super) fn send(&mut self, client: FiveTuple, message: &[&[u8]]) -> bool {
        let Some(&id) = self.by_client.get(&client) else {
            return false;
        };
        let sent = self.table.client(id).is_some_and(|client| client.add_data(message));
        self.mark(id);
        sent
    }

    /// Answers a client, or drops the answer when the client reads none.
    pub(super) fn answer(&mut self, client: FiveTuple, message: &[u8], now: Instant) -> bool {
        let Some(&id) = self.by_client.get(&client) else {
            return false;
        };
        let Some(client) = self.table.client(id) else {
            return false;
        };
        if ALLOCATED.iter().any(|kind| message.starts_with(kind)) {
            client.set_allocated(true, now);
        }
        let sent = client.add_answer(message);
        self.mark(id);
        sent
    }

    /// A client's allocation has ended.
    pub(super) fn handle_freed(&mut self, client: FiveTuple, now: Instant) {
        let id = self.by_client.get(&client).copied();
        if let Some(client) = id.and_then(|id| self.table.client(id)) {
            client.set_allocated(false, now);
        }
    }

    /// Writes what waits; whether the state machine was told something.
    pub(super) fn flush(&mut self, around: &mut Around<'_>) -> bool {
        let mut told = false;
        while let Some(id) = self.dirty.pop() {
            let Some(client) = self.table.client(id) else {
                continue;
            };
            client.dirty = false;
            match client.write() {
                Ok(false) => {
                    let wanted = client.wanted();
                    self.watch(id, wanted, around.epoll);
                }
                Ok(true) => {
                    self.end_client(id, around);
                    told = true;
                }
                Err(error) => {
                    tracing::debug!(who = ?client.who, %error, "client's stream ended");
                    self.end_client(id, around);
                    told = true;
                }
            }
        }
        told
    }

    /// Ends what took too long. Called about once a second.
    pub(super) fn keep_time(&mut self, around: &mut Around<'_>) {
        for id in self.table.late(around.now) {
            if let Some(Entry::Client(client)) = self.table.get_mut(id) {
                tracing::debug!(who = ?client.who, "client completes no message");
                self.totals.cut_off += u64::from(!client.ended);
                self.end_client(id, around);
            } else {
                self.fail_to_connect(id, around);
            }
        }
    }

    /// Listens for peers on a relay port, all or none per family; returns the open families.
    ///
    /// # Errors
    ///
    /// Returns the last refusal when no family could be opened.
    pub(super) fn open(
        &mut self,
        relay: RelayPort,
        sockets: &[RelaySocket],
        around: &mut Around<'_>,
    ) -> io::Result<Vec<Family>> {
        self.close(relay, None);
        let mut families = Vec::new();
        let mut refusal = io::ErrorKind::NotFound.into();
        for family in [Family::V4, Family::V6] {
            let wanted: Vec<_> =
                sockets.iter().filter(|it| Family::of(it.address.ip()) == family).collect();
            let opened: io::Result<Vec<_>> =
                wanted.iter().map(|it| listen_for_peers(it.address)).collect();
            match opened {
                Ok(opened) if opened.is_empty() => {}
                Ok(opened) => {
                    families.push(family);
                    for (RelaySocket { side, address }, socket) in wanted.into_iter().zip(opened) {
                        let (side, address) = (*side, *address);
                        let listener = PeerListener { relay, side, address, socket };
                        let id = self.table.insert(Entry::Listener(listener));
                        self.watch(id, EpollFlags::EPOLLIN, around.epoll);
                        self.by_relay.entry(relay).or_default().push(id);
                    }
                }
                Err(error) => refusal = error,
            }
        }
        if families.is_empty() { Err(refusal) } else { Ok(families) }
    }

    /// The port's listeners, of one family or of both, are closed.
    pub(super) fn close(&mut self, relay: RelayPort, family: Option<Family>) {
        let Some(ids) = self.by_relay.get_mut(&relay) else {
            return;
        };
        let table = &mut self.table;
        ids.retain(|id| {
            let Some(Entry::Listener(listener)) = table.get_mut(*id) else {
                return false;
            };
            let close = family.is_none_or(|it| it == Family::of(listener.address.ip()));
            if close {
                drop(table.remove(*id));
            }
            !close
        });
        if ids.is_empty() {
            self.by_relay.remove(&relay);
        }
    }

    /// [`Output::Connect`], [`Output::ConnectInside`], [`Output::Join`] and
    /// [`Output::CloseConnection`].
    pub(super) fn handle_output(&mut self, output: Output, around: &mut Around<'_>) {
        match output {
            Output::Connect { connection, local, peer, .. } => {
                self.connect(connection, local, peer, around);
            }
            Output::ConnectInside { connection, shard, origin, target } => {
                self.connect_inside(connection, shard, (origin, target), around);
            }
            Output::Join { client, connection } => self.join(client, connection, around),
            Output::CloseConnection(connection) => {
                if let Some(id) = self.by_connection.get(&connection).copied() {
                    self.close_half(id);
                }
            }
            _ => {}
        }
    }

    /// The relay serves nothing any more: closes everything.
    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.by_client.clear();
        self.by_connection.clear();
        self.by_relay.clear();
        self.dirty.clear();
    }

    /// Every event that epoll told is handled.
    pub(super) fn end_round(&mut self) {
        self.table.end_round();
    }

    /// Takes a client in; `None` when it cannot be watched.
    fn admit(&mut self, client: Client, around: &mut Around<'_>) -> Option<u32> {
        around.forwarder.server_mut()?;
        if let Some(who) = client.who {
            self.end_namesake(who, around);
        }
        let (who, wanted) = (client.who, client.wanted());
        let id = self.table.insert(Entry::Client(client));
        if let Some(who) = who {
            self.by_client.insert(who, id);
        }
        self.watch(id, wanted, around.epoll);
        self.mark(id);
        Some(id)
    }

    /// Ends the stream that a 5-tuple had before.
    fn end_namesake(&mut self, who: FiveTuple, around: &mut Around<'_>) {
        if let Some(&before) = self.by_client.get(&who) {
            self.end_client(before, around);
        }
    }

    fn read_client(&mut self, id: u32, around: &mut Around<'_>) {
        let Some(client) = self.table.client(id).filter(|client| !client.ended) else {
            return;
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        match client.wire.read(&mut scratch) {
            Ok(0) => {
                client.end(around.now);
                self.mark(id);
            }
            Ok(length) => {
                let mut begun = client.take_begun();
                if begun.is_empty() {
                    client.begins(around.now);
                    self.take_octets(id, &scratch[..length], around);
                } else {
                    begun.extend_from_slice(&scratch[..length]);
                    self.take_octets(id, &begun, around);
                }
            }
            // Epoll tells it again when there is more.
            Err(error) if is_of_the_moment(&error) => {}
            Err(error) => {
                tracing::debug!(who = ?client.who, %error, "client's stream ended");
                self.end_client(id, around);
            }
        }
        self.scratch = scratch;
    }

    /// Handles the messages that are whole, and keeps the begin of the next one.
    fn take_octets(&mut self, id: u32, octets: &[u8], around: &mut Around<'_>) {
        let mut rest = octets;
        let Some(client) = self.table.client(id) else {
            return;
        };
        let who = match client.who {
            Some(who) => who,
            None => match ProxyHeader::parse(rest) {
                Ok(Some((header, length))) => {
                    rest = &rest[length..];
                    self.introduce(id, &header, around)
                }
                Ok(None) => return client.keep(rest),
                Err(error) => {
                    tracing::warn!(%error, "a stream was joined that says not whose it is");
                    return self.cut_off(id, around);
                }
            },
        };
        loop {
            let Some(client) = self.table.client(id) else {
                return;
            };
            let length = match framing::next(rest, client.limit()) {
                Ok(Some(length)) => length,
                Ok(None) => return client.keep(rest),
                Err(error) => {
                    tracing::debug!(client = %who.client, %error, "client is cut off");
                    return self.cut_off(id, around);
                }
            };
            let (message, more) = rest.split_at(length);
            client.heard(!more.is_empty(), around.now);
            let moves = around.forwarder.handle_message(who, message, self, around.now);
            if let Some(shard) = moves {
                return self.move_client(id, shard, rest, around);
            }
            rest = more;
        }
    }

    /// Takes the 5-tuple of a joined stream from its header.
    fn introduce(&mut self, id: u32, header: &ProxyHeader, around: &mut Around<'_>) -> FiveTuple {
        let who = FiveTuple {
            transport: Transport::Tcp,
            client: header.source(),
            server: header.destination(),
        };
        self.end_namesake(who, around);
        self.by_client.insert(who, id);
        if let Some(client) = self.table.client(id) {
            client.who = Some(who);
        }
        who
    }

    /// Sends a client's stream to the shard that has its allocation, unread octets first.
    fn move_client(&mut self, id: u32, shard: ShardId, rest: &[u8], around: &mut Around<'_>) {
        self.watch(id, EpollFlags::empty(), around.epoll);
        let Some(Entry::Client(mut client)) = self.table.remove(id) else {
            return;
        };
        if let Some(who) = client.who {
            self.by_client.remove(&who);
        }
        client.keep(rest);
        client.dirty = false;
        client.moves += 1;
        match self.gates.get(usize::from(shard.0)) {
            Some(gate) if client.moves <= MOST_MOVES => gate.give(Arrival::Moved(Box::new(client))),
            _ => tracing::debug!(who = ?client.who, "client's stream found no shard"),
        }
    }

    fn cut_off(&mut self, id: u32, around: &mut Around<'_>) {
        self.totals.cut_off += 1;
        self.end_client(id, around);
    }

    /// Closes a client's stream; its allocation goes with it.
    fn end_client(&mut self, id: u32, around: &mut Around<'_>) {
        let Some(Entry::Client(client)) = self.table.remove(id) else {
            return;
        };
        let Some(who) = client.who else {
            return;
        };
        self.by_client.remove(&who);
        if let Some(server) = around.forwarder.server_mut() {
            server.handle_client_gone(who, around.now);
        }
    }

    /// Puts a client on the list of those that have something to write.
    fn mark(&mut self, id: u32) {
        if let Some(client) = self.table.client(id)
            && !std::mem::replace(&mut client.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    fn watch(&mut self, id: u32, wanted: EpollFlags, epoll: &Epoll) {
        if let Err(error) = self.table.watch(id, wanted, epoll) {
            tracing::warn!(%error, "a stream cannot be watched");
        }
    }

    fn accept_peers(&mut self, id: u32, around: &mut Around<'_>) {
        for _ in 0..PEERS {
            let Some(Entry::Listener(listener)) = self.table.get_mut(id) else {
                return;
            };
            let (relay, side) = (listener.relay, listener.side);
            let (stream, peer) = match listener.socket.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, "a peer cannot be accepted");
                    }
                    return;
                }
            };
            let peer = SocketAddr::new(peer.ip(), peer.port());
            let Ok(wire) = Wire::tcp(stream) else { continue };
            let server = around.forwarder.server_mut();
            let connection =
                server.and_then(|it| it.handle_peer_connected(relay, side, peer, around.now));
            if let Some(connection) = connection {
                self.add_half(Half::new(wire, connection, Progress::Waiting));
            }
        }
    }

    fn connect(
        &mut self,
        connection: ConnectionId,
        local: SocketAddr,
        peer: SocketAddr,
        around: &mut Around<'_>,
    ) {
        match begin_to_connect(local, peer) {
            Ok(wire) => {
                let deadline = around.now + CONNECT_TIME;
                let progress = Progress::Connecting { deadline };
                let id = self.add_half(Half::new(wire, connection, progress));
                self.watch(id, EpollFlags::EPOLLOUT, around.epoll);
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "no connection to a peer");
                tell(connection, Err(ConnectError), around);
            }
        }
    }

    fn finish_connecting(&mut self, id: u32, around: &mut Around<'_>) {
        self.watch(id, EpollFlags::empty(), around.epoll);
        let Some(Entry::Half(half)) = self.table.get_mut(id) else {
            return;
        };
        match half.wire.connected() {
            Ok(()) => {
                half.progress = Progress::Waiting;
                tell(half.connection, Ok(()), around);
            }
            Err(error) => {
                tracing::debug!(%error, "no connection to a peer");
                self.fail_to_connect(id, around);
            }
        }
    }

    fn fail_to_connect(&mut self, id: u32, around: &mut Around<'_>) {
        if let Some(Entry::Half(half)) = self.table.remove(id) {
            self.by_connection.remove(&half.connection);
            tell(half.connection, Err(ConnectError), around);
        }
    }

    /// Connects to a TCP relay of our own, without the kernel's network.
    fn connect_inside(
        &mut self,
        connection: ConnectionId,
        shard: ShardId,
        (origin, target): (Origin, SocketAddr),
        around: &mut Around<'_>,
    ) {
        let pair = UnixStream::pair()
            .and_then(|(here, there)| Ok((Wire::local(here)?, Wire::local(there)?)));
        let (here, there) = match pair {
            Ok(pair) => pair,
            Err(error) => {
                tracing::debug!(%error, "no connection between two relays");
                return tell(connection, Err(ConnectError), around);
            }
        };
        self.add_half(Half::new(here, connection, Progress::Waiting));
        if shard == self.shard {
            self.accept_relay(origin, target, there, around);
        } else if let Some(gate) = self.gates.get(usize::from(shard.0)) {
            gate.give(Arrival::Relay { origin, target, wire: there });
        }
        tell(connection, Ok(()), around);
    }

    fn accept_relay(
        &mut self,
        origin: Origin,
        target: SocketAddr,
        wire: Wire,
        around: &mut Around<'_>,
    ) {
        let server = around.forwarder.server_mut();
        let connection =
            server.and_then(|it| it.handle_relay_connected(origin, target, around.now));
        if let Some(connection) = connection {
            self.add_half(Half::new(wire, connection, Progress::Waiting));
        }
    }

    fn add_half(&mut self, half: Half) -> u32 {
        self.totals.peers_total += 1;
        let connection = half.connection;
        let id = self.table.insert(Entry::Half(half));
        self.by_connection.insert(connection, id);
        id
    }

    /// Makes a client's stream the data of a connection.
    fn join(&mut self, client: FiveTuple, connection: ConnectionId, around: &mut Around<'_>) {
        let client_id = self.by_client.get(&client).copied();
        let peer_id = self.by_connection.get(&connection).copied();
        let (client_id, peer_id) = match (client_id, peer_id) {
            (Some(client_id), Some(peer_id)) => (client_id, peer_id),
            (Some(client_id), None) => return self.end_client(client_id, around),
            (None, Some(peer_id)) => {
                return self.end_connection(peer_id, connection, &"its client is gone", around);
            }
            (None, None) => return,
        };
        self.watch(client_id, EpollFlags::empty(), around.epoll);
        let Some(Entry::Client(mut stream)) = self.table.remove(client_id) else {
            return;
        };
        self.by_client.remove(&client);
        let begun = stream.take_begun();
        let Client { wire, outbound, place, .. } = stream;
        let half = Half::new(wire, connection, Progress::Joined(peer_id)).with(outbound, place);
        let client_id = self.table.insert(Entry::Half(half));
        let written = match self.table.get_mut(peer_id) {
            Some(Entry::Half(peer)) => {
                peer.progress = Progress::Joined(client_id);
                peer.write(&begun)
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        match written {
            Ok(()) => self.pump(client_id, peer_id, around),
            Err(error) => self.end_connection(client_id, connection, &error, around),
        }
    }

    /// Moves what two joined ends have for each other.
    fn pump(&mut self, one: u32, other: u32, around: &mut Around<'_>) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let moved = self.table.pair(one, other).map(|(first, second)| {
            let ended = pump(first, second, &mut scratch);
            (ended, first.connection, first.wanted(second), second.wanted(first))
        });
        self.scratch = scratch;
        let Some((ended, connection, first, second)) = moved else {
            return;
        };
        match ended {
            Ok(false) => {
                self.watch(one, first, around.epoll);
                self.watch(other, second, around.epoll);
            }
            Ok(true) => self.end_connection(one, connection, &"both ends are done", around),
            Err(error) => self.end_connection(one, connection, &error, around),
        }
    }

    fn end_connection(
        &mut self,
        id: u32,
        connection: ConnectionId,
        why: &dyn std::fmt::Display,
        around: &mut Around<'_>,
    ) {
        tracing::debug!(?connection, %why, "connection with a peer ended");
        self.close_half(id);
        if let Some(server) = around.forwarder.server_mut() {
            server.handle_connection_closed(connection, around.now);
        }
    }

    /// Closes one end and the one that is joined to it.
    fn close_half(&mut self, id: u32) {
        let Some(Entry::Half(half)) = self.table.remove(id) else {
            return;
        };
        self.by_connection.remove(&half.connection);
        if let Progress::Joined(other) = half.progress {
            drop(self.table.remove(other));
        }
    }
}

fn is_of_the_moment(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn tell(connection: ConnectionId, result: Result<(), ConnectError>, around: &mut Around<'_>) {
    if let Some(server) = around.forwarder.server_mut() {
        server.handle_connected(connection, result, around.now);
    }
}
