//! TCP connections that never finish a message: an octet now and then.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::Pid;
use turn::stun::{AttributeType, Class, Method, TransactionId, Writer};

use crate::bench::field::SERVER;
use crate::bench::load::namespace;

/// An octet on each connection in turn, this often.
const EVERY: Duration = Duration::from_micros(250);

/// The connections.
#[derive(Debug)]
pub(super) struct Trickle {
    streams: Vec<(TcpStream, usize)>,
    message: Vec<u8>,
    next: usize,
    due: Instant,
    closed: usize,
    sent: u64,
}

impl Trickle {
    /// Opens `count` connections from the namespace of `process`.
    pub(super) fn open(process: Pid, count: usize) -> Result<Self> {
        let open = || -> Result<_> {
            let stream = TcpStream::connect_timeout(&SERVER, Duration::from_secs(2))?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok((stream, 0))
        };
        let opened = || std::iter::repeat_with(open).take(count).collect();
        let streams = namespace::enter(process, opened).context("TCP to the relay")?;
        let writer = Writer::new(Class::Request, Method::ALLOCATE, TransactionId([7; 12]));
        let message = writer.attribute(AttributeType::SOFTWARE, &[0x41; 700]).finish();
        Ok(Self { streams, message, next: 0, due: Instant::now(), closed: 0, sent: 0 })
    }

    /// Sends an octet if it is time, and says whether it was.
    pub(super) fn pump(&mut self, now: Instant) -> bool {
        if now < self.due || self.streams.is_empty() {
            return false;
        }
        self.due = now + EVERY;
        self.next = (self.next + 1) % self.streams.len();
        let (stream, at) = &mut self.streams[self.next];
        match stream.write(&self.message[*at..=*at]) {
            Ok(_) => {
                *at = (*at + 1) % self.message.len();
                self.sent += 1;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The relay has had enough of it.
            Err(_) => {
                drop(self.streams.swap_remove(self.next));
                self.closed += 1;
            }
        }
        true
    }

    /// Octets sent.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Connections that the relay has closed.
    pub(super) const fn closed(&self) -> usize {
        self.closed
    }
}
