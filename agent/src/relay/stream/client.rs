//! A client's stream while it carries messages.
//!
//! # Invariants
//!
//! 1. Of what came in only the message is kept whose end has not come, and at most
//!    [`Client::limit`] octets of it: few before the client has an allocation.
//! 2. A message that has begun is whole within [`MESSAGE_TIME`]; a client without an allocation
//!    says something within [`IDLE_TIME`].

use std::io;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use turn::{FiveTuple, framing};

use crate::connection_limit::Place;
use crate::relay::stream::outbound::Outbound;
use crate::relay::stream::wire::Wire;

/// From the first octet of a message to its last, and from connecting to the first message.
const MESSAGE_TIME: Duration = Duration::from_secs(15);
/// How long a client without an allocation may say nothing.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// How long a client that has ended may take to read what was said to it.
const GOODBYE_TIME: Duration = Duration::from_secs(10);

/// Octets that a message of a stranger may have; no request is longer.
const STRANGERS_MESSAGE: usize = 4096;
/// Octets that a message may have: it is relayed in a UDP datagram.
const LONGEST_MESSAGE: usize = 65_536;
const _: () = assert!(LONGEST_MESSAGE <= framing::MAX_MESSAGE);

/// Octets that may wait for a client; further data for it is dropped, as a full network does.
const WAITING_DATA: usize = 64 * 1024;
/// Answers to its requests may wait beyond that.
const WAITING_ANSWERS: usize = WAITING_DATA + 16 * 1024;
/// Answers that may wait for a stranger: there may be thousands who ask and do not listen.
const STRANGERS_ANSWERS: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(in crate::relay) struct Client {
    pub(super) wire: Wire,
    /// Not known before the header of a joined stream has come.
    pub(super) who: Option<FiveTuple>,
    pub(super) outbound: Outbound,
    /// What epoll watches.
    pub(super) interest: EpollFlags,
    /// Whether it is on the list of those that have something to write.
    pub(super) dirty: bool,
    /// Whether it has sent everything it will.
    pub(super) ended: bool,
    /// How often it moved from shard to shard.
    pub(super) moves: u8,
    begun: Vec<u8>,
    allocated: bool,
    deadline: Option<Instant>,
    pub(super) place: Option<Place>,
}

impl Client {
    pub(super) fn new(
        wire: Wire,
        who: Option<FiveTuple>,
        place: Option<Place>,
        now: Instant,
    ) -> Self {
        Self {
            wire,
            who,
            outbound: Outbound::default(),
            interest: EpollFlags::empty(),
            dirty: false,
            ended: false,
            moves: 0,
            begun: Vec::new(),
            allocated: false,
            deadline: Some(now + MESSAGE_TIME),
            place,
        }
    }

    /// How long a message may be.
    pub(super) const fn limit(&self) -> usize {
        if self.allocated { LONGEST_MESSAGE } else { STRANGERS_MESSAGE }
    }

    /// Takes out what has come of a message.
    pub(super) fn take_begun(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.begun)
    }

    /// Keeps what has come of a message. Its time began with its first octet.
    pub(super) fn keep(&mut self, begun: &[u8]) {
        self.begun = begun.to_vec();
    }

    /// A message is whole; `more` of the next one is there.
    pub(super) fn heard(&mut self, more: bool, now: Instant) {
        self.deadline = match (more, self.allocated) {
            (true, _) => Some(now + MESSAGE_TIME),
            (false, false) => Some(now + IDLE_TIME),
            (false, true) => None,
        };
    }

    /// The first octets of a message have come after a pause.
    pub(super) fn begins(&mut self, now: Instant) {
        self.deadline = Some(now + MESSAGE_TIME);
    }

    /// It has sent everything.
    pub(super) fn end(&mut self, now: Instant) {
        self.ended = true;
        self.deadline = Some(now + GOODBYE_TIME);
    }

    /// Its allocation was made, or has ended.
    pub(super) fn set_allocated(&mut self, allocated: bool, now: Instant) {
        if self.allocated == allocated {
            return;
        }
        self.allocated = allocated;
        if self.begun.is_empty() && !self.ended {
            self.heard(false, now);
        }
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Adds data of a peer, or drops it.
    pub(super) fn add_data(&mut self, message: &[&[u8]]) -> bool {
        self.outbound.push(message, WAITING_DATA)
    }

    /// Adds an answer, or drops it: the client asks and does not listen.
    pub(super) fn add_answer(&mut self, message: &[u8]) -> bool {
        let limit = if self.allocated { WAITING_ANSWERS } else { STRANGERS_ANSWERS };
        self.outbound.push(&[message], limit)
    }

    /// Writes what the client takes; whether it is done with.
    ///
    /// # Errors
    ///
    /// Returns what ends the stream.
    pub(super) fn write(&mut self) -> io::Result<bool> {
        self.outbound.write_to(&mut self.wire)?;
        Ok(self.ended && self.outbound.is_empty())
    }

    /// What epoll is to watch.
    pub(super) fn wanted(&self) -> EpollFlags {
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, !self.ended);
        wanted.set(EpollFlags::EPOLLOUT, !self.outbound.is_empty());
        wanted
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::{Client, IDLE_TIME, MESSAGE_TIME, STRANGERS_ANSWERS, Wire};

    fn client(now: Instant) -> Client {
        let (ours, _) = UnixStream::pair().unwrap();
        Client::new(Wire::local(ours).unwrap(), None, None, now)
    }

    #[test]
    fn a_message_in_single_octets_does_not_put_its_deadline_off() {
        let start = Instant::now();
        let mut client = client(start);
        client.heard(false, start);
        assert!(!client.is_late(start + IDLE_TIME / 2));

        client.begins(start + IDLE_TIME / 2);
        client.keep(&[0]);
        client.keep(&[0, 3]);

        let second = Duration::from_secs(1);
        assert!(!client.is_late(start + IDLE_TIME / 2 + MESSAGE_TIME - second));
        assert!(client.is_late(start + IDLE_TIME / 2 + MESSAGE_TIME));
    }

    #[test]
    fn only_a_client_with_an_allocation_may_be_silent_and_send_long_messages() {
        let start = Instant::now();
        let mut client = client(start);
        client.heard(false, start);
        let stranger = client.limit();

        client.set_allocated(true, start);
        assert!(!client.is_late(start + 100 * IDLE_TIME));
        assert!(client.limit() > stranger);

        client.set_allocated(false, start);
        assert!(client.is_late(start + IDLE_TIME));
    }

    #[test]
    fn data_for_a_client_that_does_not_read_is_dropped_before_answers_are() {
        let mut client = client(Instant::now());
        client.set_allocated(true, Instant::now());
        let data = [0; 1200];

        let taken = (0..1000).filter(|_| client.add_data(&[&data])).count();

        assert_eq!(taken, 64 * 1024 / 1200);
        assert!(client.add_answer(&data));
        assert!((0..1000).any(|_| !client.add_answer(&data)), "there is an end to that too");
    }

    #[test]
    fn few_answers_wait_for_a_stranger() {
        let mut client = client(Instant::now());

        let taken = (0..1000).filter(|_| client.add_answer(&[0; 200])).count();

        assert_eq!(taken, STRANGERS_ANSWERS / 200);
    }
}
