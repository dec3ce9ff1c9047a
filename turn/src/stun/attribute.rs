//! Attribute types, error codes and address encoding (RFC 8489 §14, RFC 8656 §18, §19).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::stun::message::{MAGIC_COOKIE, TransactionId};

/// The type of an attribute.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct AttributeType(pub u16);

impl AttributeType {
    /// USERNAME.
    pub const USERNAME: Self = Self(0x0006);
    /// MESSAGE-INTEGRITY.
    pub const MESSAGE_INTEGRITY: Self = Self(0x0008);
    /// ERROR-CODE.
    pub const ERROR_CODE: Self = Self(0x0009);
    /// UNKNOWN-ATTRIBUTES.
    pub const UNKNOWN_ATTRIBUTES: Self = Self(0x000A);
    /// CHANNEL-NUMBER.
    pub const CHANNEL_NUMBER: Self = Self(0x000C);
    /// LIFETIME.
    pub const LIFETIME: Self = Self(0x000D);
    /// XOR-PEER-ADDRESS.
    pub const XOR_PEER_ADDRESS: Self = Self(0x0012);
    /// DATA.
    pub const DATA: Self = Self(0x0013);
    /// REALM.
    pub const REALM: Self = Self(0x0014);
    /// NONCE.
    pub const NONCE: Self = Self(0x0015);
    /// XOR-RELAYED-ADDRESS.
    pub const XOR_RELAYED_ADDRESS: Self = Self(0x0016);
    /// REQUESTED-ADDRESS-FAMILY.
    pub const REQUESTED_ADDRESS_FAMILY: Self = Self(0x0017);
    /// EVEN-PORT.
    pub const EVEN_PORT: Self = Self(0x0018);
    /// REQUESTED-TRANSPORT.
    pub const REQUESTED_TRANSPORT: Self = Self(0x0019);
    /// DONT-FRAGMENT.
    pub const DONT_FRAGMENT: Self = Self(0x001A);
    /// MESSAGE-INTEGRITY-SHA256.
    pub const MESSAGE_INTEGRITY_SHA256: Self = Self(0x001C);
    /// PASSWORD-ALGORITHM.
    pub const PASSWORD_ALGORITHM: Self = Self(0x001D);
    /// USERHASH.
    pub const USERHASH: Self = Self(0x001E);
    /// XOR-MAPPED-ADDRESS.
    pub const XOR_MAPPED_ADDRESS: Self = Self(0x0020);
    /// RESERVATION-TOKEN.
    pub const RESERVATION_TOKEN: Self = Self(0x0022);
    /// CONNECTION-ID (RFC 6062).
    pub const CONNECTION_ID: Self = Self(0x002A);
    /// MOBILITY-TICKET (RFC 8016).
    pub const MOBILITY_TICKET: Self = Self(0x8030);
    /// ADDITIONAL-ADDRESS-FAMILY; a server may ignore it.
    pub const ADDITIONAL_ADDRESS_FAMILY: Self = Self(0x8000);
    /// ADDRESS-ERROR-CODE.
    pub const ADDRESS_ERROR_CODE: Self = Self(0x8001);
    /// PASSWORD-ALGORITHMS.
    pub const PASSWORD_ALGORITHMS: Self = Self(0x8002);
    /// ICMP.
    pub const ICMP: Self = Self(0x8004);
    /// SOFTWARE; never sent by this server.
    pub const SOFTWARE: Self = Self(0x8022);
    /// ALTERNATE-SERVER.
    pub const ALTERNATE_SERVER: Self = Self(0x8023);
    /// FINGERPRINT.
    pub const FINGERPRINT: Self = Self(0x8028);

    /// Whether a request with it must be refused by who does not know it (RFC 8489 §14).
    #[must_use]
    pub const fn is_comprehension_required(self) -> bool {
        self.0 < 0x8000
    }
}

/// The code of an ERROR-CODE attribute.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct ErrorCode(pub u16);

impl ErrorCode {
    /// Another server takes the client (ALTERNATE-SERVER).
    pub const TRY_ALTERNATE: Self = Self(300);
    /// The request is malformed.
    pub const BAD_REQUEST: Self = Self(400);
    /// Credentials are missing or wrong.
    pub const UNAUTHENTICATED: Self = Self(401);
    /// Policy refuses the peer.
    pub const FORBIDDEN: Self = Self(403);
    /// The site has no mobility (RFC 8016).
    pub const MOBILITY_FORBIDDEN: Self = Self(405);
    /// A comprehension-required attribute is not known.
    pub const UNKNOWN_ATTRIBUTE: Self = Self(420);
    /// No allocation, or one too many.
    pub const ALLOCATION_MISMATCH: Self = Self(437);
    /// The nonce is not valid, or no longer.
    pub const STALE_NONCE: Self = Self(438);
    /// This server has no address of that family.
    pub const ADDRESS_FAMILY_NOT_SUPPORTED: Self = Self(440);
    /// Not the user that made the allocation.
    pub const WRONG_CREDENTIALS: Self = Self(441);
    /// Only UDP is relayed.
    pub const UNSUPPORTED_TRANSPORT_PROTOCOL: Self = Self(442);
    /// The peer's family is not the allocation's.
    pub const PEER_ADDRESS_FAMILY_MISMATCH: Self = Self(443);
    /// There is a connection to that peer already (RFC 6062).
    pub const CONNECTION_ALREADY_EXISTS: Self = Self(446);
    /// The peer cannot be connected to (RFC 6062).
    pub const CONNECTION_TIMEOUT_OR_FAILURE: Self = Self(447);
    /// The user or the source has too many allocations.
    pub const ALLOCATION_QUOTA_REACHED: Self = Self(486);
    /// No port, no room.
    pub const INSUFFICIENT_CAPACITY: Self = Self(508);

    /// The reason phrase: for people who read captures.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TRY_ALTERNATE => "Try Alternate",
            Self::BAD_REQUEST => "Bad Request",
            Self::UNAUTHENTICATED => "Unauthenticated",
            Self::FORBIDDEN => "Forbidden",
            Self::MOBILITY_FORBIDDEN => "Mobility Forbidden",
            Self::UNKNOWN_ATTRIBUTE => "Unknown Attribute",
            Self::ALLOCATION_MISMATCH => "Allocation Mismatch",
            Self::STALE_NONCE => "Stale Nonce",
            Self::ADDRESS_FAMILY_NOT_SUPPORTED => "Address Family not Supported",
            Self::WRONG_CREDENTIALS => "Wrong Credentials",
            Self::UNSUPPORTED_TRANSPORT_PROTOCOL => "Unsupported Transport Protocol",
            Self::PEER_ADDRESS_FAMILY_MISMATCH => "Peer Address Family Mismatch",
            Self::CONNECTION_ALREADY_EXISTS => "Connection Already Exists",
            Self::CONNECTION_TIMEOUT_OR_FAILURE => "Connection Timeout or Failure",
            Self::ALLOCATION_QUOTA_REACHED => "Allocation Quota Reached",
            Self::INSUFFICIENT_CAPACITY => "Insufficient Capacity",
            _ => "",
        }
    }
}

/// Walks over attributes whose lengths [`Message::parse`](super::Message::parse) has checked.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(super) const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) const fn remaining(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (AttributeType, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, body) = self.rest.split_first_chunk::<4>()?;
        let kind = AttributeType(u16::from_be_bytes([head[0], head[1]]));
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = body.get(..length)?;
        self.rest = body.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// An XOR-...-ADDRESS value on the wire: at most 20 octets (RFC 8489 §14.2).
pub(crate) fn xor_address_bytes(
    address: SocketAddr,
    transaction: TransactionId,
) -> ([u8; 20], usize) {
    let mut bytes = [0; 20];
    let port = address.port().to_be_bytes();
    bytes[2] = port[0] ^ MAGIC_COOKIE[0];
    bytes[3] = port[1] ^ MAGIC_COOKIE[1];
    let length = match address.ip() {
        IpAddr::V4(ip) => {
            bytes[1] = 1;
            bytes[4..8].copy_from_slice(&ip.octets());
            8
        }
        IpAddr::V6(ip) => {
            bytes[1] = 2;
            bytes[4..].copy_from_slice(&ip.octets());
            20
        }
    };
    mask(&mut bytes[4..length], transaction);
    (bytes, length)
}

/// The inverse of [`xor_address_bytes`].
pub(crate) fn decode_xor_address(value: &[u8], transaction: TransactionId) -> Option<SocketAddr> {
    let (head, ip) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([head[2] ^ MAGIC_COOKIE[0], head[3] ^ MAGIC_COOKIE[1]]);
    let ip: IpAddr = match head[1] {
        1 => {
            let mut octets: [u8; 4] = ip.try_into().ok()?;
            mask(&mut octets, transaction);
            Ipv4Addr::from(octets).into()
        }
        2 => {
            let mut octets: [u8; 16] = ip.try_into().ok()?;
            mask(&mut octets, transaction);
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn mask(octets: &mut [u8], transaction: TransactionId) {
    let pattern = MAGIC_COOKIE.iter().chain(&transaction.0);
    for (octet, pattern) in octets.iter_mut().zip(pattern) {
        *octet ^= pattern;
    }
}
