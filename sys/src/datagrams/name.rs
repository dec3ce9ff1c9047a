//! Socket addresses as the kernel reads and writes them (ip(7), ipv6(7)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use nix::libc;

/// The longer of `struct sockaddr_in` (16) and `struct sockaddr_in6` (28).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4))]
pub(super) struct Name([u8; Self::CAPACITY]);

impl Name {
    pub(super) const CAPACITY: usize = 28;
    const V4_LENGTH: usize = 16;

    pub(super) const EMPTY: Self = Self([0; Self::CAPACITY]);

    /// Writes an address and returns how many octets of this it takes.
    pub(super) fn set(&mut self, address: SocketAddr) -> usize {
        let bytes = &mut self.0;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&family(libc::AF_INET));
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                bytes[8..16].fill(0);
                Self::V4_LENGTH
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&family(libc::AF_INET6));
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                Self::CAPACITY
            }
        }
    }

    /// What the kernel wrote; the unspecified address when that is of no known family.
    pub(super) fn address(&self) -> SocketAddr {
        let bytes = &self.0;
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        if bytes[..2] == family(libc::AF_INET) {
            let ip = Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7]);
            return SocketAddr::new(IpAddr::V4(ip), port);
        }
        if bytes[..2] == family(libc::AF_INET6) {
            let ip: [u8; 16] = std::array::from_fn(|index| bytes[8 + index]);
            let flow = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let scope = u32::from_ne_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
            return SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into();
        }
        SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)
    }
}

/// `sa_family_t` of a constant that fits it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "2 and 10")]
const fn family(number: libc::c_int) -> [u8; 2] {
    (number as libc::sa_family_t).to_ne_bytes()
}
