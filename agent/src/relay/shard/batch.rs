//! Packets that wait to leave, in runs: what goes to one receiver one behind the other, of one
//! size, leaves with UDP_SEGMENT as one message.

use std::net::SocketAddr;
use std::ops::Range;

use sys::datagrams::{Message, Piece};

/// The kernel takes this many datagrams in a run (UDP_MAX_SEGMENTS was 64 for long).
const MOST_SEGMENTS: usize = 64;
/// The kernel takes this much in a run, IPv6 header included.
const LONGEST_RUN: usize = 65_000;
/// A longer datagram does not fit an Ethernet frame as it is, so that no run of it can be sent.
const LONGEST_SEGMENT: usize = 1_472;

/// How a message may grow.
#[derive(Clone, Copy, Debug)]
struct Tail {
    /// Which socket it leaves from.
    socket: u32,
    /// Whether it may not be fragmented.
    dont_fragment: bool,
    /// Octets of each datagram but the last.
    segment: usize,
    /// Octets of all datagrams.
    length: usize,
    /// How many datagrams.
    count: usize,
    /// Whether another one may follow.
    open: bool,
}

/// Messages in the order they came.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<Message>,
    pieces: Vec<Piece>,
    tails: Vec<Tail>,
}

/// Messages that leave from one socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Run {
    /// Which socket, by a number of the caller's.
    pub(super) socket: u32,
    /// Whether they may not be fragmented.
    pub(super) dont_fragment: bool,
    /// Which of [`Batch::messages`].
    pub(super) messages: Range<usize>,
}

impl Batch {
    /// Adds a datagram made of `pieces`; without an address it is for whom the socket is connected
    /// to.
    pub(super) fn push(
        &mut self,
        socket: u32,
        to: Option<SocketAddr>,
        dont_fragment: bool,
        pieces: &[Piece],
    ) {
        let length = pieces.iter().map(|piece| piece.length).sum();
        if let (Some(message), Some(tail)) = (self.messages.last_mut(), self.tails.last_mut())
            && tail.takes(length)
            && tail.socket == socket
            && tail.dont_fragment == dont_fragment
            && message.to == to
        {
            tail.add(length);
            message.segment = u16::try_from(tail.segment).ok();
            for piece in pieces {
                match self.pieces.last_mut() {
                    Some(last) if last.start + last.length == piece.start => {
                        last.length += piece.length;
                    }
                    _ => self.pieces.push(*piece),
                }
            }
            message.pieces.end = self.pieces.len();
            return;
        }
        let first = self.pieces.len();
        self.pieces.extend_from_slice(pieces);
        self.messages.push(Message { to, pieces: first..self.pieces.len(), segment: None });
        self.tails.push(Tail {
            socket,
            dont_fragment,
            segment: length,
            length,
            count: 1,
            open: (1..=LONGEST_SEGMENT).contains(&length),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.pieces.clear();
        self.tails.clear();
    }

    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How many datagrams a message holds.
    pub(super) fn count(&self, message: usize) -> usize {
        self.tails[message].count
    }

    /// Messages from `first` on that leave from the same socket in the same way.
    pub(super) fn run(&self, first: usize) -> Option<Run> {
        let Tail { socket, dont_fragment, .. } = *self.tails.get(first)?;
        let same = |tail: &&Tail| tail.socket == socket && tail.dont_fragment == dont_fragment;
        let length = self.tails[first..].iter().take_while(same).count();
        Some(Run { socket, dont_fragment, messages: first..first + length })
    }

    /// The datagrams of a message, one by one: the pieces of each.
    pub(super) fn datagrams(&self, message: usize) -> Vec<Vec<Piece>> {
        let Tail { segment, .. } = self.tails[message];
        let mut datagrams = vec![Vec::new()];
        let mut room = segment;
        for piece in &self.pieces[self.messages[message].pieces.clone()] {
            let mut piece = *piece;
            while piece.length > 0 {
                if room == 0 {
                    datagrams.push(Vec::new());
                    room = segment;
                }
                let length = piece.length.min(room);
                if let Some(datagram) = datagrams.last_mut() {
                    datagram.push(Piece { start: piece.start, length });
                }
                piece = Piece { start: piece.start + length, length: piece.length - length };
                room -= length;
            }
        }
        datagrams
    }
}

impl Tail {
    const fn takes(&self, length: usize) -> bool {
        self.open
            && length > 0
            && length <= self.segment
            && self.count < MOST_SEGMENTS
            && self.length + length <= LONGEST_RUN
    }

    const fn add(&mut self, length: usize) {
        self.length += length;
        self.count += 1;
        self.open = length == self.segment;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use sys::datagrams::Piece;

    use super::{Batch, LONGEST_RUN, MOST_SEGMENTS};

    fn peer(last: u8) -> Option<SocketAddr> {
        Some(SocketAddr::from(([192, 0, 2, last], 5000)))
    }

    fn piece(start: usize, length: usize) -> Piece {
        Piece { start, length }
    }

    #[test]
    fn packets_of_one_size_to_one_receiver_are_one_run_that_a_shorter_one_ends() {
        let mut batch = Batch::default();
        for (start, length) in [(4, 100), (108, 100), (212, 60), (300, 60)] {
            batch.push(1, peer(1), false, &[piece(start, length)]);
        }

        let shapes: Vec<_> =
            batch.messages().iter().map(|m| (m.pieces.clone(), m.segment)).collect();
        assert_eq!(shapes, [(0..3, Some(100)), (3..4, None)]);
        assert_eq!((batch.count(0), batch.count(1)), (3, 1));
    }

    #[test]
    fn packets_for_others_from_other_sockets_or_not_to_be_fragmented_are_no_run() {
        let mut batch = Batch::default();
        for (socket, to, dont_fragment) in
            [(1, 1, false), (1, 2, false), (2, 2, false), (2, 2, true), (2, 2, true)]
        {
            batch.push(socket, peer(to), dont_fragment, &[piece(0, 10)]);
        }

        assert_eq!(batch.messages().len(), 4);
        assert_eq!(batch.run(0).unwrap().messages, 0..2);
        assert_eq!(batch.run(2).unwrap().messages, 2..3);
        assert!(batch.run(3).unwrap().dont_fragment);
        assert_eq!(batch.run(4), None);
    }

    #[test]
    fn what_lies_together_stays_one_piece() {
        let mut batch = Batch::default();
        batch.push(1, peer(1), false, &[piece(0, 104)]);
        batch.push(1, peer(1), false, &[piece(104, 104)]);

        assert_eq!(batch.pieces(), [piece(0, 208)]);
        assert_eq!(batch.messages()[0].segment, Some(104));
        assert_eq!(batch.datagrams(0), [vec![piece(0, 104)], vec![piece(104, 104)]]);
    }

    #[test]
    fn a_run_ends_where_the_kernel_would_refuse_it() {
        let mut small = Batch::default();
        let mut large = Batch::default();
        let mut jumbo = Batch::default();
        let mut empty = Batch::default();
        for index in 0..2 * MOST_SEGMENTS {
            small.push(1, peer(1), false, &[piece(index * 20, 10)]);
            large.push(1, peer(1), false, &[piece(index * 2000, 1400)]);
            jumbo.push(1, peer(1), false, &[piece(index * 9000, 8000)]);
            empty.push(1, peer(1), false, &[piece(0, 0)]);
        }

        assert_eq!(small.messages().len(), 2);
        assert_eq!(large.messages().len(), (2 * MOST_SEGMENTS).div_ceil(LONGEST_RUN / 1400));
        assert_eq!(jumbo.messages().len(), 2 * MOST_SEGMENTS);
        assert_eq!(empty.messages().len(), 2 * MOST_SEGMENTS);
    }

    #[test]
    fn a_run_comes_apart_into_its_datagrams() {
        let mut batch = Batch::default();
        for start in [0, 300, 600] {
            let payload = if start == 600 { 50 } else { 96 };
            batch.push(1, peer(1), false, &[piece(1000 + start, 4), piece(start, payload)]);
        }

        let datagrams = batch.datagrams(0);

        assert_eq!(
            datagrams,
            [0, 300, 600].map(|start| {
                vec![piece(1000 + start, 4), piece(start, if start == 600 { 50 } else { 96 })]
            })
        );
    }
}
