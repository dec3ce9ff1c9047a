//! A client's data connection and its peer's, joined (RFC 6062 §5.4): octets both ways until each
//! direction has ended.
//!
//! # Invariants
//!
//! 1. Nothing more is read from one end than the other end has taken, but for one piece.
//! 2. An end that is not joined yet is not read: the kernel keeps its octets, and stops its peer.
//! 3. The end of one direction is passed on behind its last octet; the other direction goes on.

use std::io::{self, Read};
use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use turn::ConnectionId;

use crate::connection_limit::Place;
use crate::relay::stream::outbound::Outbound;
use crate::relay::stream::wire::Wire;

/// How far an end is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// The kernel is connecting it.
    Connecting {
        /// Until then.
        deadline: Instant,
    },
    /// Nobody is joined to it.
    Waiting,
    /// Joined to the end with this number.
    Joined(u32),
}

/// One end of a connection between a client and a peer.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) wire: Wire,
    pub(super) connection: ConnectionId,
    pub(super) progress: Progress,
    pub(super) interest: EpollFlags,
    outbound: Outbound,
    has_read_all: bool,
    has_written_all: bool,
    _place: Option<Place>,
}

impl Half {
    pub(super) fn new(wire: Wire, connection: ConnectionId, progress: Progress) -> Self {
        Self {
            wire,
            connection,
            progress,
            interest: EpollFlags::empty(),
            outbound: Outbound::default(),
            has_read_all: false,
            has_written_all: false,
            _place: None,
        }
    }

    /// The same with octets that are to be written first, and the place of the client it was.
    pub(super) fn with(mut self, outbound: Outbound, place: Option<Place>) -> Self {
        (self.outbound, self._place) = (outbound, place);
        self
    }

    /// What epoll is to watch, by how much the other end has not taken yet.
    pub(super) fn wanted(&self, other: &Self) -> EpollFlags {
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, !self.has_read_all && other.outbound.is_empty());
        wanted.set(EpollFlags::EPOLLOUT, !self.outbound.is_empty());
        wanted
    }

    /// Octets that the other end sent before it was joined.
    ///
    /// # Errors
    ///
    /// Returns what ends the connection.
    pub(super) fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        self.outbound.write_through(octets, &mut self.wire)
    }
}

/// Moves what can be moved both ways; whether both directions have ended.
///
/// # Errors
///
/// Returns what ends the connection.
pub(super) fn pump(one: &mut Half, other: &mut Half, scratch: &mut [u8]) -> io::Result<bool> {
    pass(one, other, scratch)?;
    pass(other, one, scratch)?;
    Ok(one.has_written_all && other.has_written_all)
}

fn pass(from: &mut Half, to: &mut Half, scratch: &mut [u8]) -> io::Result<()> {
    to.outbound.write_to(&mut to.wire)?;
    // One piece, then other sockets have their turn; epoll tells it again when there is more.
    if !from.has_read_all && to.outbound.is_empty() {
        match from.wire.read(scratch) {
            Ok(0) => from.has_read_all = true,
            Ok(length) => to.outbound.write_through(&scratch[..length], &mut to.wire)?,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
    if from.has_read_all && to.outbound.is_empty() && !to.has_written_all {
        to.wire.end_writing()?;
        to.has_written_all = true;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use nix::sys::epoll::EpollFlags;
    use turn::ConnectionId;

    use super::{Half, Progress, Wire, pump};

    fn half() -> (Half, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let wire = Wire::local(ours).unwrap();
        (Half::new(wire, ConnectionId(1), Progress::Waiting), theirs)
    }

    #[test]
    fn one_direction_ends_behind_its_last_octet_and_the_other_goes_on() {
        let (mut client, mut at_client) = half();
        let (mut peer, mut at_peer) = half();
        let mut scratch = [0; 64];
        at_client.write_all(b"question").unwrap();
        at_client.shutdown(Shutdown::Write).unwrap();

        // A piece per turn, and the end is one of its own.
        let mut turns = |client: &mut Half, peer: &mut Half| {
            pump(client, peer, &mut scratch).unwrap() || pump(client, peer, &mut scratch).unwrap()
        };

        assert!(!turns(&mut client, &mut peer));
        let mut question = String::new();
        at_peer.read_to_string(&mut question).unwrap();
        at_peer.write_all(b"answer").unwrap();
        drop(at_peer);
        assert!(turns(&mut client, &mut peer));
        drop(client);
        let mut answer = String::new();
        at_client.read_to_string(&mut answer).unwrap();

        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    }

    #[test]
    fn an_end_that_takes_nothing_stops_the_other_after_one_piece() {
        let (mut client, mut at_client) = half();
        let (mut peer, at_peer) = half();
        at_client.set_nonblocking(true).unwrap();
        let mut scratch = [0; 8192];
        let mut sent = 0;
        let mut stalled = 0;

        while stalled < 3 {
            match at_client.write(&[7; 4096]) {
                Ok(length) => (sent, stalled) = (sent + length, 0),
                Err(_) => stalled += 1,
            }
            assert!(!pump(&mut client, &mut peer, &mut scratch).unwrap());
        }

        assert!(sent < 4 << 20, "somebody keeps all of it: {sent}");
        assert!(!client.wanted(&peer).contains(EpollFlags::EPOLLIN));
        assert!(peer.wanted(&client).contains(EpollFlags::EPOLLOUT));
        drop(at_peer);
        assert!(pump(&mut client, &mut peer, &mut scratch).is_err());
    }
}
