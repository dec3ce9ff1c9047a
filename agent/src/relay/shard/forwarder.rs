//! The data path of a shard: datagrams in, packets out, nothing allocated and nothing locked.
//!
//! Datagrams are received, many with one call and runs of one sender merged, into slots with room
//! before and behind. The state machine is shown each one where it lies and says what goes before
//! and behind it; that is written in place where the octets are free, else beside. Then all that
//! leaves is sent in as few calls as there are sockets, runs to one receiver merged again.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::Epoll;

use sys::datagrams::{Inbox, Layout, Piece, Received};
use turn::{Destination, Errand, FiveTuple, Output, Relayed, Server, ShardId, Transport};

use crate::relay::shard::batch::Batch;
use crate::relay::shard::errors;
use crate::relay::shard::listeners::Listeners;
use crate::relay::shard::neighbours::{Neighbours, Parcel};
use crate::relay::shard::outgoing::Sender;
use crate::relay::shard::relays::{Relays, SocketId};
use crate::relay::stream::Streams;

/// Datagrams, or merged runs, taken with one call.
const SLOTS: usize = 64;
/// Calls for one listener before other sockets have their turn.
const ROUNDS: usize = 4;
/// Datagrams taken from one relay socket before the next one has its turn.
const FROM_ONE_PEER_SOCKET: usize = 16;

/// Room before a datagram for the longest prefix.
const HEADROOM: usize = 64;
/// The longest UDP datagram, and the longest merged run.
const LONGEST: usize = 65_536;
/// Room behind it for padding, and so much more that slots do not begin at the same place of a
/// page: then they would all compete for the same few lines of the cache.
const TAILROOM: usize = 1_280;
/// The longest padding.
const PADDING: usize = 3;

/// Where zeros lie in the scratch memory, for padding that has no room in place.
const ZEROS: usize = 4;
/// Room for prefixes that have none in place: so many of the longest that a merged run of one
/// slot finds room.
const SCRATCH: usize = 64 * 1024;
const SCRATCH_OF_ONE_RUN: usize = MOST_MERGED * HEADROOM;
/// No kernel merges more datagrams (UDP_MAX_SEGMENTS), but a virtual NIC may claim it has.
const MOST_MERGED: usize = 128;

/// A message on its way to a client's stream.
struct Streamed {
    client: FiveTuple,
    pieces: Pieces,
}

/// Up to three pieces: prefix, payload, padding.
#[derive(Clone, Copy)]
struct Pieces {
    pieces: [Piece; 3],
    count: usize,
}

impl Pieces {
    fn as_slice(&self) -> &[Piece] {
        &self.pieces[..self.count]
    }
}

/// See the module.
pub(in crate::relay) struct Forwarder {
    epoll: Arc<Epoll>,
    server: Option<Server>,
    pub(super) listeners: Listeners,
    pub(super) relays: Relays,
    pub(super) neighbours: Neighbours,
    inbox: Inbox,
    /// The first slot that holds nothing that is still to be sent.
    slot: usize,
    /// The first octet of the scratch memory that is free.
    scratch: usize,
    to_clients: Batch,
    to_peers: Batch,
    to_streams: Vec<Streamed>,
    sender: Sender,
    /// Messages that a stream had no room for, and datagrams longer than any.
    lost: u64,
    /// Whether the state machine may have something to say.
    stale: bool,
}

impl Forwarder {
    pub(super) fn new(epoll: Arc<Epoll>, neighbours: Neighbours) -> Self {
        let layout = Layout {
            slots: SLOTS,
            before: HEADROOM,
            longest: LONGEST,
            behind: TAILROOM,
            scratch: SCRATCH,
        };
        let inbox = Inbox::new(layout);
        Self {
            epoll,
            server: None,
            listeners: Listeners::default(),
            relays: Relays::new(),
            neighbours,
            scratch: inbox.scratch() + ZEROS,
            inbox,
            slot: 0,
            to_clients: Batch::default(),
            to_peers: Batch::default(),
            to_streams: Vec::new(),
            sender: Sender::new(),
            lost: 0,
            stale: false,
        }
    }

    /// The state machine; what it is asked to do here may make it say something.
    pub(in crate::relay) fn server_mut(&mut self) -> Option<&mut Server> {
        self.stale = true;
        self.server.as_mut()
    }

    pub(super) const fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    pub(super) fn set_server(&mut self, server: Option<Server>) {
        self.stale = server.is_some();
        self.server = server;
    }

    /// Whether the state machine is to be asked what to do; asked once.
    pub(super) const fn is_stale(&mut self) -> bool {
        std::mem::replace(&mut self.stale, false)
    }

    /// What the state machine wants done next; `None` when there is none.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.server.as_mut().map(Server::poll_output)
    }

    /// Sends a client what the state machine answers.
    pub(super) fn reply(
        &mut self,
        client: FiveTuple,
        message: &[u8],
        streams: &mut Streams,
        now: Instant,
    ) {
        let sent = match client.transport {
            Transport::Tcp => streams.answer(client, message, now),
            Transport::Udp => {
                let index = self.listeners.by_address(client.server);
                let socket = index.map(|index| &self.listeners.all()[index].socket);
                socket.is_some_and(|socket| socket.send_to(message, client.client).is_ok())
            }
        };
        self.lost += u64::from(!sent);
    }

    /// Packets that the kernel or a stream did not take.
    pub(super) const fn not_sent(&self) -> u64 {
        self.sender.losses.not_sent + self.lost
    }

    /// Runs that the kernel would not split.
    pub(super) const fn unsegmented(&self) -> u64 {
        self.sender.losses.unsegmented
    }

    /// Takes what clients have sent to a listener and passes it on.
    pub(super) fn receive_from_clients(&mut self, id: u32, streams: &mut Streams, now: Instant) {
        let Some(listener) = self.listeners.by_id(id) else {
            return;
        };
        let server = self.listeners.all()[listener].address;
        for _ in 0..ROUNDS {
            self.flush(streams);
            let socket = &self.listeners.all()[listener].socket;
            let count = received(self.inbox.receive(socket, 0..SLOTS));
            self.slot = count;
            for slot in 0..count {
                let run = self.inbox.received(slot);
                let from = SocketAddr::new(run.from.ip(), run.from.port());
                let client = FiveTuple { transport: Transport::Udp, client: from, server };
                self.make_scratch(streams);
                self.each_datagram(run, |this, datagram, room| {
                    this.handle_client(client, datagram, room, now);
                });
            }
            if count < SLOTS {
                break;
            }
        }
        self.flush(streams);
    }

    /// Takes what peers have sent to a socket of a relay port; it leaves with the next
    /// [`flush`](Self::flush).
    pub(super) fn receive_from_peers(&mut self, id: SocketId, streams: &mut Streams, now: Instant) {
        if self.slot + FROM_ONE_PEER_SOCKET > SLOTS {
            self.flush(streams);
        }
        let Some((relay, socket)) = self.relays.socket(id) else {
            return;
        };
        let first = self.slot;
        let count = received(self.inbox.receive(socket, first..first + FROM_ONE_PEER_SOCKET));
        self.slot += count;
        for slot in first..first + count {
            let run = self.inbox.received(slot);
            self.make_scratch(streams);
            self.each_datagram(run, |this, datagram, room| {
                let Some(server) = &mut this.server else {
                    return;
                };
                let octets = &this.inbox.bytes()[datagram.clone()];
                if let Some(relayed) = server.handle_peer(relay, id.side(), run.from, octets, now) {
                    this.pass(&relayed, datagram, room);
                }
            });
        }
    }

    /// Tells the state machine what became of earlier packets of this socket.
    pub(super) fn receive_errors(&mut self, id: SocketId, now: Instant) {
        let Self { server: Some(server), relays, .. } = self else {
            return;
        };
        let Some((relay, socket)) = relays.socket(id) else {
            return;
        };
        errors::drain(socket, |peer, error| {
            server.handle_icmp(relay, id.side(), peer, error, now);
        });
        self.stale = true;
    }

    /// Does what another shard asks for.
    pub(super) fn handle_parcel(&mut self, parcel: &Parcel, streams: &mut Streams, now: Instant) {
        let datagram = self.put(parcel.payload(), streams);
        match parcel.errand {
            Errand::Client(client) => {
                self.handle_client(client, datagram, HEADROOM, now);
            }
            Errand::Relay { origin, target } => {
                let Some(server) = &mut self.server else {
                    return;
                };
                let octets = &self.inbox.bytes()[datagram.clone()];
                if let Some(relayed) = server.handle_relay(origin, target, octets, now) {
                    self.pass(&relayed, datagram, HEADROOM);
                }
            }
        }
    }

    /// Handles one message of a client that came over a stream; says which shard the stream is to
    /// move to, this message first, when the client's allocation is there.
    pub(in crate::relay) fn handle_message(
        &mut self,
        client: FiveTuple,
        message: &[u8],
        streams: &mut Streams,
        now: Instant,
    ) -> Option<ShardId> {
        let datagram = self.put(message, streams);
        self.handle_client(client, datagram, HEADROOM, now)
    }

    /// Sends everything that waits.
    pub(super) fn flush(&mut self, streams: &mut Streams) {
        let memory = self.inbox.bytes();
        if !self.to_peers.is_empty() {
            let relays = &self.relays;
            let socket = |id| relays.socket(SocketId(id)).map(|(_, socket)| socket);
            self.sender.flush(&mut self.to_peers, memory, socket);
        }
        if !self.to_clients.is_empty() {
            let listeners = self.listeners.all();
            let socket = |index| listeners.get(index as usize).map(|listener| &listener.socket);
            self.sender.flush(&mut self.to_clients, memory, socket);
        }
        for Streamed { client, pieces } in self.to_streams.drain(..) {
            let octets =
                pieces.pieces.map(|Piece { start, length }| &memory[start..start + length]);
            self.lost += u64::from(!streams.send(client, &octets[..pieces.count]));
        }
        self.slot = 0;
        self.scratch = self.inbox.scratch() + ZEROS;
    }

    /// Puts a message into a slot of its own.
    fn put(&mut self, message: &[u8], streams: &mut Streams) -> Range<usize> {
        if self.slot == SLOTS {
            self.flush(streams);
        }
        self.make_scratch(streams);
        let start = self.inbox.start(self.slot);
        self.slot += 1;
        let message = &message[..message.len().min(LONGEST)];
        let datagram = start..start + message.len();
        self.inbox.bytes_mut()[datagram.clone()].copy_from_slice(message);
        datagram
    }

    /// Sends what waits if the scratch memory might not do for another merged run.
    fn make_scratch(&mut self, streams: &mut Streams) {
        if self.scratch + SCRATCH_OF_ONE_RUN > self.inbox.scratch() + SCRATCH {
            let slot = self.slot;
            self.flush(streams);
            self.slot = slot;
        }
    }

    /// Calls `handle` with each datagram of a run and the free octets before it.
    fn each_datagram(
        &mut self,
        run: Received,
        mut handle: impl FnMut(&mut Self, Range<usize>, usize),
    ) {
        if run.truncated || has_too_many(&run) {
            self.lost += 1;
            return;
        }
        let end = run.start + run.length;
        let mut start = run.start;
        let mut room = HEADROOM;
        loop {
            let next = (start + run.segment).min(end);
            handle(self, start..next, room);
            if next >= end || run.segment == 0 {
                return;
            }
            start = next;
            room = 0;
        }
    }

    fn handle_client(
        &mut self,
        client: FiveTuple,
        datagram: Range<usize>,
        room: usize,
        now: Instant,
    ) -> Option<ShardId> {
        let server = self.server.as_mut()?;
        let octets = &self.inbox.bytes()[datagram.clone()];
        let Some(relayed) = server.handle_client(client, octets, now) else {
            self.stale = true;
            return None;
        };
        if client.transport == Transport::Tcp
            && let Destination::Shard { shard, errand: Errand::Client(_) } = relayed.to
        {
            return Some(shard);
        }
        self.pass(&relayed, datagram, room);
        None
    }

    /// Adds a packet to what leaves next. `room` octets before the datagram are free.
    fn pass(&mut self, relayed: &Relayed, datagram: Range<usize>, room: usize) {
        match relayed.to {
            Destination::Peer { relay, side, peer } => {
                let toward = self.relays.toward(&self.epoll, relay, side, peer);
                let Some((SocketId(id), to)) = toward else {
                    self.lost += 1;
                    return;
                };
                let pieces = self.place(relayed, datagram, room);
                self.to_peers.push(id, to, relayed.dont_fragment, pieces.as_slice());
            }
            Destination::Client(client) if client.transport == Transport::Udp => {
                let index = self.listeners.by_address(client.server);
                let Some(index) = index.and_then(|index| u32::try_from(index).ok()) else {
                    self.lost += 1;
                    return;
                };
                let pieces = self.place(relayed, datagram, room);
                self.to_clients.push(index, Some(client.client), false, pieces.as_slice());
            }
            Destination::Client(client) => {
                let pieces = self.place(relayed, datagram, room);
                self.to_streams.push(Streamed { client, pieces });
            }
            Destination::Shard { shard, errand } => {
                let start = datagram.start + relayed.payload.start;
                let payload = start..datagram.start + relayed.payload.end;
                self.neighbours.give(shard, errand, &self.inbox.bytes()[payload]);
            }
        }
    }

    /// Writes prefix and padding where they go, and says where the packet lies.
    fn place(&mut self, relayed: &Relayed, datagram: Range<usize>, room: usize) -> Pieces {
        let prefix = relayed.prefix.as_bytes();
        let start = datagram.start + relayed.payload.start;
        let end = datagram.start + relayed.payload.end;
        let mut pieces = Pieces { pieces: [Piece { start, length: end - start }; 3], count: 1 };
        if prefix.len() <= relayed.payload.start + room {
            // Over what the datagram had before its payload, which nobody needs any more.
            self.inbox.bytes_mut()[start - prefix.len()..start].copy_from_slice(prefix);
            pieces.pieces[0] =
                Piece { start: start - prefix.len(), length: end - start + prefix.len() };
        } else {
            let beside = self.scratch..self.scratch + prefix.len();
            self.scratch = beside.end;
            pieces.pieces[0] = Piece { start: beside.start, length: prefix.len() };
            self.inbox.bytes_mut()[beside].copy_from_slice(prefix);
            pieces.count = 2;
        }
        if relayed.padding > 0 {
            debug_assert!(relayed.padding <= PADDING);
            // Behind a payload that is not the last of a merged run, the next one lies.
            let zeros = self.inbox.scratch();
            pieces.pieces[pieces.count] = Piece { start: zeros, length: relayed.padding };
            pieces.count += 1;
        }
        pieces
    }
}

/// Whether the prefixes of a merged run might not find room in the scratch memory.
const fn has_too_many(run: &Received) -> bool {
    run.length > run.segment * MOST_MERGED
}

/// How many slots are filled; an error is about an earlier packet, and reported once.
fn received(result: io::Result<usize>) -> usize {
    result.unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::WouldBlock {
            tracing::trace!("receive: {error}");
        }
        0
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{HEADROOM, MOST_MERGED, Received, SCRATCH_OF_ONE_RUN, has_too_many};

    #[test]
    fn a_run_whose_prefixes_find_no_room_is_told_from_one_whose_do() {
        let run = |length, segment| Received {
            from: SocketAddr::from(([192, 0, 2, 1], 5000)),
            start: 0,
            length,
            segment,
            truncated: false,
        };
        for (length, segment, is_too_long) in
            [(0, 0, false), (65_507, 65_507, false), (MOST_MERGED * 9, 9, false), (1153, 9, true)]
        {
            assert_eq!(has_too_many(&run(length, segment)), is_too_long, "{length} {segment}");
            let prefixes = length.div_ceil(segment.max(1)) * HEADROOM;
            assert_eq!(prefixes > SCRATCH_OF_ONE_RUN, is_too_long);
        }
    }
}
