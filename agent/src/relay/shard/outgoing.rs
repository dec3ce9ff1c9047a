//! What leaves a shard: collected while a batch of datagrams is handled, sent when it is done.
//!
//! Packets to clients are collected per listener, so that one call sends to many of them; packets
//! to peers per relay socket. Order is kept from each sender to each receiver.

use std::io;
use std::net::UdpSocket;

use nix::errno::Errno;
use sys::datagrams::{Message, Outbox, Piece};
use sys::udp::{Fragmentation, set_fragmentation};

use crate::relay::shard::batch::Batch;

/// Messages in one call.
const MESSAGES: usize = 64;

/// How often a packet is tried whose socket may first report the error of an earlier one: one
/// from each time the kernel is asked, and one that came meanwhile.
const ATTEMPTS: usize = 3;

/// What was not sent as it should be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Losses {
    /// Packets that the kernel refused.
    pub(super) not_sent: u64,
    /// Runs that the kernel would not split, so that their packets left one by one.
    pub(super) unsegmented: u64,
}

/// Sends batches.
pub(super) struct Sender {
    outbox: Outbox,
    pub(super) losses: Losses,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self { outbox: Outbox::new(MESSAGES), losses: Losses::default() }
    }

    /// Sends every message of a batch; `socket` says from where, by the caller's number.
    pub(super) fn flush<'a>(
        &mut self,
        batch: &mut Batch,
        memory: &[u8],
        socket: impl Fn(u32) -> Option<&'a UdpSocket>,
    ) {
        let mut first = 0;
        while let Some(run) = batch.run(first) {
            first = run.messages.end;
            let Some(socket) = socket(run.socket) else {
                self.lose(batch, run.messages.start..run.messages.end);
                continue;
            };
            if run.dont_fragment {
                let v6 = socket.local_addr().is_ok_and(|local| local.is_ipv6());
                let set = |how| {
                    if let Err(error) = set_fragmentation(socket, v6, how) {
                        tracing::debug!("cannot set DF: {error}");
                    }
                };
                set(Fragmentation::Forbidden);
                self.send(socket, batch, memory, run.messages.start, run.messages.end);
                set(Fragmentation::Allowed);
            } else {
                self.send(socket, batch, memory, run.messages.start, run.messages.end);
            }
        }
        batch.clear();
    }

    fn send(
        &mut self,
        socket: &UdpSocket,
        batch: &Batch,
        memory: &[u8],
        mut first: usize,
        end: usize,
    ) {
        let mut attempts = ATTEMPTS;
        while first < end {
            let messages = &batch.messages()[first..end];
            let sent = match messages {
                [message] if message.segment.is_none() && message.pieces.len() == 1 => {
                    let Piece { start, length } = batch.pieces()[message.pieces.start];
                    let octets = &memory[start..start + length];
                    let sent = match message.to {
                        Some(to) => socket.send_to(octets, to),
                        None => socket.send(octets),
                    };
                    sent.map(|_| 1)
                }
                _ => self.outbox.send(socket, memory, messages, batch.pieces()),
            };
            match sent {
                Ok(count) => {
                    first += count.max(1);
                    attempts = ATTEMPTS;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // No room is no room for those behind it either.
                    self.lose(batch, first..end);
                    return;
                }
                Err(error) if is_unsegmentable(&error) && messages[0].segment.is_some() => {
                    self.losses.unsegmented += 1;
                    self.send_singly(socket, batch, memory, first);
                    first += 1;
                }
                Err(error) => {
                    attempts -= 1;
                    if attempts == 0 || is_final(&error) {
                        tracing::trace!("send to {:?}: {error}", messages[0].to);
                        self.lose(batch, first..first + 1);
                        first += 1;
                        attempts = ATTEMPTS;
                    }
                }
            }
        }
    }

    /// Sends the datagrams of a run each on its own.
    fn send_singly(&mut self, socket: &UdpSocket, batch: &Batch, memory: &[u8], message: usize) {
        let to = batch.messages()[message].to;
        for pieces in batch.datagrams(message) {
            let single = Message { to, pieces: 0..pieces.len(), segment: None };
            let sent = (0..ATTEMPTS).any(|_| {
                self.outbox.send(socket, memory, std::slice::from_ref(&single), &pieces).is_ok()
            });
            self.losses.not_sent += u64::from(!sent);
        }
    }

    fn lose(&mut self, batch: &Batch, messages: std::ops::Range<usize>) {
        let packets: usize = messages.map(|message| batch.count(message)).sum();
        self.losses.not_sent += u64::try_from(packets).unwrap_or(0);
    }
}

/// Whether the kernel says that it cannot split a run: longer than the path's packets may be, or
/// no checksum offload for it.
fn is_unsegmentable(error: &io::Error) -> bool {
    let errors = [Errno::EINVAL, Errno::EMSGSIZE, Errno::EIO, Errno::EOPNOTSUPP];
    errors.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Whether an error is about this very packet, so that another attempt is in vain.
fn is_final(error: &io::Error) -> bool {
    let errors = [Errno::EMSGSIZE, Errno::EINVAL, Errno::EPERM, Errno::ENOBUFS];
    errors.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
