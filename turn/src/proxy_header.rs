//! The header that names both ends of a connection that somebody else accepted: [PROXY protocol],
//! version 2, as far as it is about TCP.
//!
//! The proxy terminates TLS and hands the stream on over a local socket, where it would otherwise
//! be from nobody. The two addresses are the two halves of the client's 5-tuple.
//!
//! ```text
//! 0  12  signature    12  1  version 2, command PROXY    13  1  family and protocol
//! 14  2  length of what follows (big endian)    16  addresses and ports, then TLVs (skipped)
//! ```
//!
//! Left out: version 1, UDP, Unix addresses, what TLVs say. LOCAL, which names nobody, is refused.
//!
//! # Invariants
//!
//! 1. Both addresses are of one family.
//! 2. A header that cannot be one is refused at the octet that shows it, and none is longer than
//!    [`ProxyHeader::MAX_LENGTH`].
//!
//! [PROXY protocol]: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Section 2.2: no other protocol begins like this.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Octets before the addresses.
const HEAD: usize = 16;
/// Version 2 and the command PROXY.
const PROXY: u8 = 0x21;
/// TCP over IPv4, and how long its addresses and ports are.
const TCP4: (u8, u8) = (0x11, 12);
/// TCP over IPv6.
const TCP6: (u8, u8) = (0x21, 36);

/// Why a stream does not begin with a header of use; its connection is to be closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProxyHeaderError {
    /// Something else.
    #[error("no PROXY header of version 2")]
    Signature,
    /// LOCAL, another version or an unknown command.
    #[error("PROXY header says version and command {said:#04x}, only {PROXY:#04x} is read")]
    Command {
        /// The thirteenth octet.
        said: u8,
    },
    /// Not TCP over IPv4 or IPv6.
    #[error("PROXY header says family and protocol {said:#04x}, which is not TCP")]
    Family {
        /// The fourteenth octet.
        said: u8,
    },
    /// Too short for its addresses or longer than anybody needs.
    #[error("PROXY header says {said} octets follow")]
    Length {
        /// What it says.
        said: usize,
    },
}

/// Both ends of a TCP connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyHeader {
    /// Over IPv4.
    V4 {
        /// The client.
        source: SocketAddrV4,
        /// What it connected to.
        destination: SocketAddrV4,
    },
    /// Over IPv6.
    V6 {
        /// The client.
        source: SocketAddrV6,
        /// What it connected to.
        destination: SocketAddrV6,
    },
}

impl ProxyHeader {
    /// The longest header that is read, TLVs included.
    pub const MAX_LENGTH: usize = 536;

    /// The header of a connection; `None` when its ends are of two families, which none is.
    #[must_use]
    pub const fn new(source: SocketAddr, destination: SocketAddr) -> Option<Self> {
        match (source, destination) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
                Some(Self::V4 { source, destination })
            }
            (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
                Some(Self::V6 { source, destination })
            }
            _ => None,
        }
    }

    /// The client.
    #[must_use]
    pub const fn source(&self) -> SocketAddr {
        match *self {
            Self::V4 { source, .. } => SocketAddr::V4(source),
            Self::V6 { source, .. } => SocketAddr::V6(source),
        }
    }

    /// What the client connected to.
    #[must_use]
    pub const fn destination(&self) -> SocketAddr {
        match *self {
            Self::V4 { destination, .. } => SocketAddr::V4(destination),
            Self::V6 { destination, .. } => SocketAddr::V6(destination),
        }
    }

    /// As it goes over the wire, without TLVs.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (family, length) = match self {
            Self::V4 { .. } => TCP4,
            Self::V6 { .. } => TCP6,
        };
        let mut bytes = Vec::with_capacity(HEAD + usize::from(length));
        bytes.extend_from_slice(&SIGNATURE);
        bytes.extend_from_slice(&[PROXY, family, 0, length]);
        match self {
            Self::V4 { source, destination } => {
                bytes.extend_from_slice(&source.ip().octets());
                bytes.extend_from_slice(&destination.ip().octets());
            }
            Self::V6 { source, destination } => {
                bytes.extend_from_slice(&source.ip().octets());
                bytes.extend_from_slice(&destination.ip().octets());
            }
        }
        bytes.extend_from_slice(&self.source().port().to_be_bytes());
        bytes.extend_from_slice(&self.destination().port().to_be_bytes());
        bytes
    }

    /// Reads the header that `stream` begins with, and says how long it is; `None` while its end
    /// has not come.
    ///
    /// # Errors
    ///
    /// Returns a [`ProxyHeaderError`] as soon as it is clear that no header of use will come.
    pub fn parse(stream: &[u8]) -> Result<Option<(Self, usize)>, ProxyHeaderError> {
        let seen = stream.len().min(SIGNATURE.len());
        if stream[..seen] != SIGNATURE[..seen] {
            return Err(ProxyHeaderError::Signature);
        }
        if let Some(&said) = stream.get(12).filter(|said| **said != PROXY) {
            return Err(ProxyHeaderError::Command { said });
        }
        let needed = match stream.get(13) {
            None => return Ok(None),
            Some(family) if *family == TCP4.0 => TCP4.1,
            Some(family) if *family == TCP6.0 => TCP6.1,
            Some(said) => return Err(ProxyHeaderError::Family { said: *said }),
        };
        let Some(&[high, low]) = stream.get(14..).and_then(|rest| rest.first_chunk::<2>()) else {
            return Ok(None);
        };
        let said = usize::from(u16::from_be_bytes([high, low]));
        let length = HEAD + said;
        if said < usize::from(needed) || length > Self::MAX_LENGTH {
            return Err(ProxyHeaderError::Length { said });
        }
        let Some(addresses) = stream.get(HEAD..length) else {
            return Ok(None);
        };
        Ok(decode(addresses, needed).map(|header| (header, length)))
    }
}

/// Reads as many octets as its family needs; `None` when there are fewer.
fn decode(addresses: &[u8], needed: u8) -> Option<ProxyHeader> {
    let mut rest = addresses;
    let port = |bytes: [u8; 2]| u16::from_be_bytes(bytes);
    if needed == TCP4.1 {
        let source = Ipv4Addr::from(take::<4>(&mut rest)?);
        let destination = Ipv4Addr::from(take::<4>(&mut rest)?);
        Some(ProxyHeader::V4 {
            source: SocketAddrV4::new(source, port(take(&mut rest)?)),
            destination: SocketAddrV4::new(destination, port(take(&mut rest)?)),
        })
    } else {
        let source = Ipv6Addr::from(take::<16>(&mut rest)?);
        let destination = Ipv6Addr::from(take::<16>(&mut rest)?);
        Some(ProxyHeader::V6 {
            source: SocketAddrV6::new(source, port(take(&mut rest)?), 0, 0),
            destination: SocketAddrV6::new(destination, port(take(&mut rest)?), 0, 0),
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}

#[cfg(test)]
mod tests;
