//! The sockets of relay ports, found by array index.
//!
//! A port has a socket per face, from which it sends to any peer. The peer that gets most of what
//! a port sends also has a *direct* one: connected to it, on the same address and port, so that
//! the kernel need not look for the route of every packet. The kernel gives what that peer sends
//! to the direct socket and all else to the other one.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use nix::sys::epoll::{Epoll, EpollFlags};
use turn::{Family, RelayPort, RelaySocket, Side};

use crate::relay::listener::{bind_beside, bind_relay};
use crate::relay::shard::token::{Token, watch};

/// A socket of a relay port: which port's, by place in the table, and which face.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::relay) struct SocketId(pub(super) u32);

/// Faces of a port: two sides in two families.
const FACES: u32 = 4;

/// Sockets of a port: one per face, and after them one per face that is direct.
const SOCKETS: u32 = 2 * FACES;

/// After so many packets to the same peer, none to another one between them, it gets a direct
/// socket: connectivity checks are fewer, media is more.
const STREAK: u16 = 64;

/// So many direct sockets per shard: descriptors are for ports first.
const MOST_DIRECT: usize = 4_096;

/// The index of a port that has no sockets.
const NONE: u32 = u32::MAX;

impl SocketId {
    fn new(entry: u32, side: Side, family: Family) -> Self {
        Self(entry * SOCKETS + face(side, family))
    }

    const fn entry(self) -> usize {
        (self.0 / SOCKETS) as usize
    }

    const fn place(self) -> usize {
        (self.0 % SOCKETS) as usize
    }

    /// The direct socket of the same face.
    const fn direct(self) -> Self {
        Self(self.0 + FACES)
    }

    /// The side that this socket is on.
    pub(super) const fn side(self) -> Side {
        if self.0.is_multiple_of(2) { Side::Outside } else { Side::Inside }
    }
}

const fn face(side: Side, family: Family) -> u32 {
    let family = match family {
        Family::V4 => 0,
        Family::V6 => 2,
    };
    match side {
        Side::Outside => family,
        Side::Inside => family + 1,
    }
}

/// The sockets of one port.
struct Entry {
    port: RelayPort,
    sockets: [Option<UdpSocket>; SOCKETS as usize],
    /// Datagrams that found no room, as last read from each socket.
    dropped: [u32; SOCKETS as usize],
    /// Whom the direct socket is for; there is at most one. Kept when it could not be opened, so
    /// that this is not tried again.
    direct: Option<SocketAddr>,
    /// To whom the last packets went, and how many in a row.
    last_peer: Option<SocketAddr>,
    streak: u16,
}

/// Every relay port that is open on this shard.
pub(super) struct Relays {
    /// By port: which entry.
    by_port: Vec<u32>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Datagrams that found no room in any socket's receive buffer so far.
    dropped: u64,
    /// Where the next look at the sockets' drops begins.
    next_look: usize,
    direct_sockets: usize,
}

impl Relays {
    pub(super) fn new() -> Self {
        Self {
            by_port: vec![NONE; 1 << 16],
            entries: Vec::new(),
            free: Vec::new(),
            dropped: 0,
            next_look: 0,
            direct_sockets: 0,
        }
    }

    /// Binds sockets, all or none per family; returns the families that are open.
    ///
    /// # Errors
    ///
    /// Returns the last refusal when no family could be opened.
    pub(super) fn open(
        &mut self,
        epoll: &Epoll,
        port: RelayPort,
        wanted: &[RelaySocket],
    ) -> Result<Vec<Family>, (SocketAddr, io::Error)> {
        self.close(port);
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(NONE)
        });
        let mut entry = Entry {
            port,
            sockets: [const { None }; SOCKETS as usize],
            dropped: [0; SOCKETS as usize],
            direct: None,
            last_peer: None,
            streak: 0,
        };
        let mut families = Vec::with_capacity(2);
        let mut refusal = None;
        for family in [Family::V4, Family::V6] {
            let wanted = wanted.iter().filter(|socket| Family::of(socket.address.ip()) == family);
            match entry.open(epoll, index, wanted) {
                Ok(true) => families.push(family),
                Ok(false) => {}
                Err(error) => {
                    entry.close(family);
                    refusal = Some(error);
                }
            }
        }
        if families.is_empty() {
            self.free.push(index);
            let nothing = || (SocketAddr::from(([0; 4], port.0)), io::ErrorKind::NotFound.into());
            return Err(refusal.unwrap_or_else(nothing));
        }
        self.by_port[usize::from(port.0)] = index;
        self.entries[index as usize] = Some(entry);
        Ok(families)
    }

    /// Closes every socket of a port. Closing takes them out of the epoll set.
    pub(super) fn close(&mut self, port: RelayPort) {
        let index = std::mem::replace(&mut self.by_port[usize::from(port.0)], NONE);
        if let Some(mut entry) = self.entries.get_mut(index as usize).and_then(Option::take) {
            self.dropped += entry.look_at_drops();
            self.direct_sockets -= usize::from(entry.has_direct());
            self.free.push(index);
        }
    }

    /// Closes a port's sockets of one family.
    pub(super) fn close_family(&mut self, port: RelayPort, family: Family) {
        let index = self.by_port[usize::from(port.0)];
        if let Some(Some(entry)) = self.entries.get_mut(index as usize) {
            self.dropped += entry.look_at_drops();
            let had_direct = entry.has_direct();
            entry.close(family);
            self.direct_sockets -= usize::from(had_direct && !entry.has_direct());
        }
    }

    /// Closes all.
    pub(super) fn clear(&mut self) {
        *self = Self { dropped: self.dropped, ..Self::new() };
    }

    /// The socket that sends to this peer, and the address to give with the packet: none when the
    /// socket is connected to it.
    pub(super) fn toward(
        &mut self,
        epoll: &Epoll,
        port: RelayPort,
        side: Side,
        peer: SocketAddr,
    ) -> Option<(SocketId, Option<SocketAddr>)> {
        let index = self.by_port[usize::from(port.0)];
        let entry = self.entries.get_mut(index as usize)?.as_mut()?;
        let id = SocketId::new(index, side, Family::of(peer.ip()));
        if entry.direct == Some(peer) {
            let is_open = entry.sockets[id.direct().place()].is_some();
            return Some(if is_open { (id.direct(), None) } else { (id, Some(peer)) });
        }
        if entry.direct.is_none() && entry.is_streak(peer) && self.direct_sockets < MOST_DIRECT {
            entry.direct = Some(peer);
            match entry.open_direct(epoll, id, peer) {
                Ok(()) => self.direct_sockets += 1,
                Err(error) => tracing::debug!("no direct socket: {error}"),
            }
        }
        Some((id, Some(peer)))
    }

    pub(super) fn socket(&self, id: SocketId) -> Option<(RelayPort, &UdpSocket)> {
        let entry = self.entries.get(id.entry())?.as_ref()?;
        Some((entry.port, entry.sockets[id.place()].as_ref()?))
    }

    /// How many datagrams found no room so far. Looks at a few ports each time, so that it takes
    /// the same time however many there are.
    pub(super) fn look_at_drops(&mut self) -> u64 {
        const AT_ONCE: usize = 64;
        let count = self.entries.len();
        for _ in 0..AT_ONCE.min(count) {
            self.next_look = (self.next_look + 1) % count;
            if let Some(entry) = &mut self.entries[self.next_look] {
                self.dropped += entry.look_at_drops();
            }
        }
        self.dropped
    }
}

impl Entry {
    /// Opens one family's sockets; whether there was any to open.
    fn open<'a>(
        &mut self,
        epoll: &Epoll,
        index: u32,
        wanted: impl Iterator<Item = &'a RelaySocket>,
    ) -> Result<bool, (SocketAddr, io::Error)> {
        let mut any = false;
        for RelaySocket { side, address } in wanted {
            let id = SocketId::new(index, *side, Family::of(address.ip()));
            let socket = bind_relay(*address)
                .and_then(|socket| {
                    watch(epoll, &socket, Token::Relay(id), EpollFlags::EPOLLIN).map(|()| socket)
                })
                .map_err(|error| (*address, error))?;
            self.sockets[id.place()] = Some(socket);
            any = true;
        }
        Ok(any)
    }

    fn close(&mut self, family: Family) {
        for side in [Side::Outside, Side::Inside] {
            let place = face(side, family) as usize;
            self.sockets[place] = None;
            self.sockets[place + FACES as usize] = None;
        }
    }

    fn has_direct(&self) -> bool {
        self.sockets[FACES as usize..].iter().any(Option::is_some)
    }

    /// Counts a packet to `peer`; whether it is time for a direct socket.
    fn is_streak(&mut self, peer: SocketAddr) -> bool {
        if self.last_peer == Some(peer) {
            self.streak = self.streak.saturating_add(1);
        } else {
            self.last_peer = Some(peer);
            self.streak = 1;
        }
        self.streak >= STREAK
    }

    fn open_direct(&mut self, epoll: &Epoll, id: SocketId, peer: SocketAddr) -> io::Result<()> {
        let socket = self.sockets[id.place()].as_ref().ok_or(io::ErrorKind::NotFound)?;
        let socket = bind_beside(socket, peer)?;
        watch(epoll, &socket, Token::Relay(id.direct()), EpollFlags::EPOLLIN)?;
        self.sockets[id.direct().place()] = Some(socket);
        Ok(())
    }

    /// How many datagrams have found no room since the last look.
    fn look_at_drops(&mut self) -> u64 {
        let mut fresh = 0;
        for (socket, before) in self.sockets.iter().zip(&mut self.dropped) {
            let now = socket.as_ref().and_then(|socket| sys::udp::dropped(socket).ok());
            let now = now.unwrap_or(*before);
            fresh += u64::from(now.wrapping_sub(*before));
            *before = now;
        }
        fresh
    }
}
