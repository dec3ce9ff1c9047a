//! ICMP errors about packets to peers (RFC 8656 §11.5).

/// An ICMP or ICMPv6 error, as the kernel's error queue reports it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IcmpError {
    /// Of the ICMP message; of ICMPv6 when the peer has an IPv6 address.
    pub kind: u8,
    /// Of the ICMP message.
    pub code: u8,
    /// The next hop's MTU when the packet was too big, else 0.
    pub mtu: u32,
}
