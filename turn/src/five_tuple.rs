//! Who a client is, and on which side (RFC 8656 §2).

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

/// How a client talks to this server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP, with or without TLS.
    Tcp,
}

/// Identifies a client: its address, the address it talks to, and the transport between them.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct FiveTuple {
    /// Between the two.
    pub transport: Transport,
    /// The client's transport address as seen from here.
    pub client: SocketAddr,
    /// The server's transport address that the client talks to.
    pub server: SocketAddr,
}

impl Hash for FiveTuple {
    /// In few steps: every datagram of a client is looked up by it. What is equal hashes alike;
    /// scope and flow, which hardly ever differ alone, are left to the comparison.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        for address in [self.client, self.server] {
            match address.ip() {
                IpAddr::V4(ip) => state.write_u32(ip.to_bits()),
                IpAddr::V6(ip) => state.write_u128(ip.to_bits()),
            }
        }
        let transport = u32::from(self.transport == Transport::Tcp);
        state.write_u32(u32::from(self.client.port()) << 16 | u32::from(self.server.port()));
        state.write_u32(transport);
    }
}

/// Which NIC leads there.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Side {
    /// LAN1, the internal network.
    Inside,
    /// LAN2, the rest of the world.
    Outside,
}

/// An address family (RFC 8656 §18.6).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A source as far as limits are concerned: an IPv4 address or an IPv6 /64, which is what one
/// host can pick its addresses from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub(crate) struct Source([u8; 8]);

impl Source {
    pub(crate) fn of(address: IpAddr) -> Self {
        let mut bytes = [0; 8];
        match address.to_canonical() {
            // No IPv6 /64 in use begins like this: 100::/8 is reserved but for the discard prefix.
            IpAddr::V4(ip) => {
                bytes[0] = 1;
                bytes[4..].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => bytes.copy_from_slice(&ip.octets()[..8]),
        }
        Self(bytes)
    }

    pub(crate) const fn bytes(self) -> [u8; 8] {
        self.0
    }
}
