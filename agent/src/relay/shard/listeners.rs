//! The sockets that clients talk to.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use nix::sys::epoll::{Epoll, EpollFlags};

use crate::relay::shard::token::{Token, watch};

/// A listening socket on its way to a shard.
#[derive(Debug)]
pub(in crate::relay) struct Opened {
    /// What clients talk to.
    pub(in crate::relay) address: SocketAddr,
    /// This shard's own socket, or one that several shards send from.
    pub(in crate::relay) socket: UdpSocket,
    /// Whether this shard reads from it.
    pub(in crate::relay) reads: bool,
}

/// A socket that clients talk to.
pub(super) struct Listener {
    id: u32,
    pub(super) address: SocketAddr,
    pub(super) socket: UdpSocket,
    reads: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Listeners {
    all: Vec<Listener>,
    next_id: u32,
    /// Drops of sockets that are closed.
    dropped: u64,
}

impl Listeners {
    /// Adds `opened`, closes what is not wanted any more, and keeps the order of `wanted`.
    ///
    /// # Errors
    ///
    /// Returns the error of epoll_ctl(2); nothing is closed then.
    pub(super) fn change(
        &mut self,
        epoll: &Epoll,
        wanted: &[SocketAddr],
        opened: Vec<Opened>,
    ) -> io::Result<()> {
        let mut fresh = Vec::new();
        for Opened { address, socket, reads } in opened {
            let id = self.next_id;
            self.next_id = id.wrapping_add(1);
            if reads {
                watch(epoll, &socket, Token::Listener(id), EpollFlags::EPOLLIN)?;
            }
            fresh.push(Listener { id, address, socket, reads });
        }
        self.close(epoll, |address| !wanted.contains(&address));
        self.all.extend(fresh);
        self.all.sort_by_key(|l| wanted.iter().position(|address| *address == l.address));
        Ok(())
    }

    /// Closes listeners. Those that came from postern-net stay open there, so that closing our
    /// descriptor alone would leave them in the epoll set.
    pub(super) fn close(&mut self, epoll: &Epoll, which: impl Fn(SocketAddr) -> bool) {
        let dropped = &mut self.dropped;
        self.all.retain(|listener| {
            let close = which(listener.address);
            if close && listener.reads {
                *dropped += listener.dropped();
                if let Err(error) = epoll.delete(&listener.socket) {
                    tracing::debug!("epoll: {error}");
                }
            }
            !close
        });
    }

    /// By the number in its token.
    pub(super) fn by_id(&self, id: u32) -> Option<usize> {
        self.all.iter().position(|listener| listener.id == id)
    }

    /// By the address that a client talks to.
    pub(super) fn by_address(&self, address: SocketAddr) -> Option<usize> {
        self.all.iter().position(|listener| listener.address == address)
    }

    pub(super) fn all(&self) -> &[Listener] {
        &self.all
    }

    /// How many datagrams found no room in a listener's receive buffer so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped + self.all.iter().filter(|l| l.reads).map(Listener::dropped).sum::<u64>()
    }
}

impl Listener {
    fn dropped(&self) -> u64 {
        sys::udp::dropped(&self.socket).map_or(0, u64::from)
    }
}
