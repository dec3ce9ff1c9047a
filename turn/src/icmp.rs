//! ICMP errors (RFC 8656 §11.5, §18.13).

use crate::five_tuple::Family;

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

impl IcmpError {
    /// The value of an ICMP attribute: type in 7 bits, code in 9, and what the error says beside.
    /// `None` for messages that are no errors about a packet.
    pub(crate) fn attribute(self, family: Family) -> Option<[u8; 8]> {
        let too_big = match (family, self.kind, self.code) {
            // Destination unreachable (fragmentation needed), time exceeded.
            (Family::V4, 3, code) => code == 4,
            (Family::V4, 11, _) => false,
            // Destination unreachable, packet too big, time exceeded.
            (Family::V6, 2, _) => true,
            (Family::V6, 1 | 3, _) => false,
            _ => return None,
        };
        let mut value = [0; 8];
        let both = u16::from(self.kind) << 9 | u16::from(self.code);
        value[2..4].copy_from_slice(&both.to_be_bytes());
        let data = if too_big { self.mtu } else { 0 };
        value[4..].copy_from_slice(&data.to_be_bytes());
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::IcmpError;
    use crate::five_tuple::Family;

    #[test]
    fn type_code_and_mtu_are_where_the_rfc_has_them() {
        let error = |kind, code, mtu| IcmpError { kind, code, mtu };

        for (family, error, value) in [
            (Family::V4, error(3, 4, 1400), Some([0, 0, 0x06, 4, 0, 0, 0x05, 0x78])),
            (Family::V4, error(3, 3, 9), Some([0, 0, 0x06, 3, 0, 0, 0, 0])),
            (Family::V4, error(11, 0, 0), Some([0, 0, 0x16, 0, 0, 0, 0, 0])),
            (Family::V6, error(2, 0, 1280), Some([0, 0, 0x04, 0, 0, 0, 0x05, 0])),
            (Family::V6, error(1, 4, 0), Some([0, 0, 0x02, 4, 0, 0, 0, 0])),
            (Family::V4, error(8, 0, 0), None),
            (Family::V6, error(11, 0, 0), None),
            (Family::V6, error(4, 0, 0), None),
        ] {
            assert_eq!(error.attribute(family), value, "{error:?}");
        }
    }
}
