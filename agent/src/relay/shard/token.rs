//! What an epoll event is about, in the 64 bits that the kernel keeps for us.

use std::io;
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::relay::shard::relays::SocketId;

/// Which descriptor an event is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::relay) enum Token {
    /// A command or a parcel of another shard is there.
    Wake,
    /// A socket that clients talk to, by its number.
    Listener(u32),
    /// A socket of a relay port.
    Relay(SocketId),
    /// Whatever [`Streams`](crate::relay::stream::Streams) watches, by a number of its own.
    Stream(u32),
}

impl Token {
    pub(in crate::relay) const fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Wake => (0, 0),
            Self::Listener(id) => (1, id),
            Self::Relay(SocketId(id)) => (2, id),
            Self::Stream(id) => (3, id),
        };
        kind << 32 | number as u64
    }

    pub(super) fn decode(data: u64) -> Self {
        let number = u32::try_from(data & u64::from(u32::MAX)).unwrap_or(0);
        match data >> 32 {
            1 => Self::Listener(number),
            2 => Self::Relay(SocketId(number)),
            3 => Self::Stream(number),
            _ => Self::Wake,
        }
    }
}

/// Adds a descriptor to the epoll set.
///
/// # Errors
///
/// Returns the error of epoll_ctl(2).
pub(in crate::relay) fn watch(
    epoll: &Epoll,
    fd: impl AsFd,
    token: Token,
    flags: EpollFlags,
) -> io::Result<()> {
    Ok(epoll.add(fd, EpollEvent::new(flags, token.encode()))?)
}

#[cfg(test)]
mod tests {
    use super::{SocketId, Token};

    #[test]
    fn a_token_survives_the_kernel() {
        for token in [
            Token::Wake,
            Token::Listener(7),
            Token::Relay(SocketId(u32::MAX)),
            Token::Stream(u32::MAX),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
