//! STUN messages of the suite's own: it writes what no client should, and reads strictly.
//!
//! Nothing here is shared with the crate `turn`: a mistake there must not hide behind itself.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::digest;

/// RFC 8489 §5.
pub(super) const COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
const HEADER: usize = 20;

/// The classes, as bits of the message type.
pub(super) const INDICATION: u16 = 0x0010;
pub(super) const SUCCESS: u16 = 0x0100;
pub(super) const ERROR: u16 = 0x0110;

/// The methods, as bits of the message type.
pub(super) const BINDING: u16 = 0x0001;
pub(super) const ALLOCATE: u16 = 0x0003;
pub(super) const REFRESH: u16 = 0x0004;
pub(super) const SEND: u16 = 0x0006;
pub(super) const DATA_METHOD: u16 = 0x0007;
pub(super) const CREATE_PERMISSION: u16 = 0x0008;
pub(super) const CHANNEL_BIND: u16 = 0x0009;
pub(super) const CONNECT: u16 = 0x000A;
pub(super) const CONNECTION_BIND: u16 = 0x000B;
pub(super) const CONNECTION_ATTEMPT: u16 = 0x000C;

/// The attributes.
pub(super) const MAPPED_ADDRESS: u16 = 0x0001;
pub(super) const USERNAME: u16 = 0x0006;
pub(super) const MESSAGE_INTEGRITY: u16 = 0x0008;
pub(super) const ERROR_CODE: u16 = 0x0009;
pub(super) const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
pub(super) const CHANNEL_NUMBER: u16 = 0x000C;
pub(super) const LIFETIME: u16 = 0x000D;
pub(super) const XOR_PEER_ADDRESS: u16 = 0x0012;
pub(super) const DATA: u16 = 0x0013;
pub(super) const REALM: u16 = 0x0014;
pub(super) const NONCE: u16 = 0x0015;
pub(super) const XOR_RELAYED_ADDRESS: u16 = 0x0016;
pub(super) const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
pub(super) const EVEN_PORT: u16 = 0x0018;
pub(super) const REQUESTED_TRANSPORT: u16 = 0x0019;
pub(super) const DONT_FRAGMENT: u16 = 0x001A;
pub(super) const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
pub(super) const PASSWORD_ALGORITHM: u16 = 0x001D;
pub(super) const USERHASH: u16 = 0x001E;
pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub(super) const RESERVATION_TOKEN: u16 = 0x0022;
pub(super) const CONNECTION_ID: u16 = 0x002A;
pub(super) const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
pub(super) const ADDRESS_ERROR_CODE: u16 = 0x8001;
pub(super) const PASSWORD_ALGORITHMS: u16 = 0x8002;
pub(super) const ICMP: u16 = 0x8004;
pub(super) const SOFTWARE: u16 = 0x8022;
pub(super) const ALTERNATE_SERVER: u16 = 0x8023;
pub(super) const FINGERPRINT: u16 = 0x8028;
pub(super) const MOBILITY_TICKET: u16 = 0x8030;

/// A message being written.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    bytes: Vec<u8>,
}

impl Packet {
    /// A message of that type with a transaction id that no other one has.
    pub(super) fn new(kind: u16) -> Self {
        let mut id = [0; 12];
        getrandom::fill(&mut id).expect("the kernel has randomness");
        Self::with_id(kind, id)
    }

    /// A message with that transaction id.
    pub(super) fn with_id(kind: u16, id: [u8; 12]) -> Self {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(COOKIE);
        bytes.extend(id);
        Self { bytes }
    }

    /// Its transaction id.
    pub(super) fn id(&self) -> [u8; 12] {
        self.bytes[8..HEADER].try_into().expect("the header is there")
    }

    /// Adds an attribute, padded with zeros.
    pub(super) fn with(self, kind: u16, value: &[u8]) -> Self {
        self.padded(kind, value, 0)
    }

    /// Adds an attribute whose padding octets are `filler`.
    pub(super) fn padded(mut self, kind: u16, value: &[u8], filler: u8) -> Self {
        let length = u16::try_from(value.len()).expect("attributes are short");
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), filler);
        self.set_length(0);
        self
    }

    /// Adds an attribute of one 32-bit number.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_be_bytes())
    }

    /// Adds an address obscured as RFC 8489 §14.2 says.
    pub(super) fn address(self, kind: u16, address: SocketAddr) -> Self {
        let value = xor_address(address, self.id());
        self.with(kind, &value)
    }

    /// Adds MESSAGE-INTEGRITY.
    pub(super) fn integrity(mut self, key: &[u8]) -> Self {
        self.set_length(24);
        let mac = digest::hmac_sha1(key, &self.bytes);
        self.with(MESSAGE_INTEGRITY, &mac)
    }

    /// Adds MESSAGE-INTEGRITY-SHA256 cut to `length` octets.
    pub(super) fn integrity_sha256(mut self, key: &[u8], length: usize) -> Self {
        self.set_length(4 + length.next_multiple_of(4));
        let mac = digest::hmac_sha256(key, &self.bytes);
        self.with(MESSAGE_INTEGRITY_SHA256, &mac[..length])
    }

    /// Adds FINGERPRINT.
    pub(super) fn fingerprint(mut self) -> Self {
        self.set_length(8);
        let crc = digest::crc32(&self.bytes) ^ 0x5354_554E;
        self.number(FINGERPRINT, crc)
    }

    /// The octets.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn set_length(&mut self, more: usize) {
        let length = u16::try_from(self.bytes.len() - HEADER + more).expect("messages are short");
        self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
    }
}

/// The value of an XOR-…-ADDRESS.
pub(super) fn xor_address(address: SocketAddr, id: [u8; 12]) -> Vec<u8> {
    let mask: Vec<u8> = COOKIE.into_iter().chain(id).collect();
    let (family, octets) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend((address.port() ^ 0x2112).to_be_bytes());
    value.extend(octets.iter().zip(&mask).map(|(octet, mask)| octet ^ mask));
    value
}

/// A message that was received; reading it was strict.
#[derive(Clone)]
pub(super) struct Message {
    pub(super) kind: u16,
    pub(super) id: [u8; 12],
    /// Type, value and where the attribute begins.
    attributes: Vec<(u16, Vec<u8>, usize)>,
    bytes: Vec<u8>,
}

impl Message {
    /// Reads one whole message.
    ///
    /// # Errors
    ///
    /// Says which rule of RFC 8489 §5, §14 or §14.7 it breaks.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEADER || bytes[0] & 0xC0 != 0 {
            return Err("no STUN header".to_owned());
        }
        if bytes[4..8] != COOKIE {
            return Err("no magic cookie".to_owned());
        }
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        if length % 4 != 0 || length != bytes.len() - HEADER {
            return Err(format!("length {length} in a message of {} octets", bytes.len()));
        }
        let mut attributes = Vec::new();
        let mut at = HEADER;
        while at < bytes.len() {
            let kind = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let length = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
            let value = bytes.get(at + 4..at + 4 + length);
            let value = value.ok_or_else(|| format!("attribute {kind:#06x} runs over the end"))?;
            attributes.push((kind, value.to_vec(), at));
            at += 4 + length.next_multiple_of(4);
        }
        let message = Self {
            kind: u16::from_be_bytes([bytes[0], bytes[1]]),
            id: bytes[8..HEADER].try_into().expect("the header is there"),
            attributes,
            bytes: bytes.to_vec(),
        };
        message.check_fingerprint()?;
        Ok(message)
    }

    fn check_fingerprint(&self) -> Result<(), String> {
        let Some((_, value, at)) = self.attributes.iter().find(|(kind, ..)| *kind == FINGERPRINT)
        else {
            return Ok(());
        };
        let crc = (digest::crc32(&self.bytes[..*at]) ^ 0x5354_554E).to_be_bytes();
        if at + 8 != self.bytes.len() {
            return Err("FINGERPRINT is not the last attribute".to_owned());
        }
        if value[..] != crc {
            return Err("FINGERPRINT is wrong".to_owned());
        }
        Ok(())
    }

    /// Whether its MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256 is made with `key`; `None` when
    /// it has none.
    pub(super) fn verify(&self, key: &[u8]) -> Option<bool> {
        let is_integrity = |kind: u16| matches!(kind, MESSAGE_INTEGRITY | MESSAGE_INTEGRITY_SHA256);
        let (kind, value, at) = self.attributes.iter().find(|(kind, ..)| is_integrity(*kind))?;
        let mut text = self.bytes[..*at].to_vec();
        let length = u16::try_from(at - HEADER + 4 + value.len()).ok()?;
        text[2..4].copy_from_slice(&length.to_be_bytes());
        let mac = match *kind {
            MESSAGE_INTEGRITY => digest::hmac_sha1(key, &text),
            _ => digest::hmac_sha256(key, &text),
        };
        Some(!value.is_empty() && mac.starts_with(value))
    }

    /// The first attribute of that type.
    pub(super) fn attribute(&self, kind: u16) -> Option<&[u8]> {
        self.all(kind).next()
    }

    /// Every attribute of that type.
    pub(super) fn all(&self, kind: u16) -> impl Iterator<Item = &[u8]> {
        self.attributes.iter().filter(move |(k, ..)| *k == kind).map(|(_, value, _)| &value[..])
    }

    /// Whether it has an attribute of that type.
    pub(super) fn has(&self, kind: u16) -> bool {
        self.attribute(kind).is_some()
    }

    /// An attribute of one 32-bit number.
    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.attribute(kind)?.try_into().ok()?))
    }

    /// The code in ERROR-CODE.
    pub(super) fn error_code(&self) -> Option<u16> {
        let value = self.attribute(ERROR_CODE)?;
        Some(u16::from(*value.get(2)? & 7) * 100 + u16::from(*value.get(3)?))
    }

    /// An obscured address.
    pub(super) fn address(&self, kind: u16) -> Option<SocketAddr> {
        self.attribute(kind).and_then(|value| read_xor_address(value, self.id))
    }

    /// Every obscured address of that type.
    pub(super) fn addresses(&self, kind: u16) -> Vec<SocketAddr> {
        self.all(kind).filter_map(|value| read_xor_address(value, self.id)).collect()
    }

    /// How many octets it has.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

fn read_xor_address(value: &[u8], id: [u8; 12]) -> Option<SocketAddr> {
    let mask = COOKIE.into_iter().chain(id);
    let port = u16::from_be_bytes([*value.get(2)?, *value.get(3)?]) ^ 0x2112;
    let octets: Vec<u8> = value[4..].iter().zip(mask).map(|(octet, mask)| octet ^ mask).collect();
    let ip = match value[1] {
        1 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
        2 => IpAddr::from(<[u8; 16]>::try_from(octets).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// An address that is not obscured (ALTERNATE-SERVER, MAPPED-ADDRESS).
pub(super) fn read_plain_address(value: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([*value.get(2)?, *value.get(3)?]);
    let ip = match *value.get(1)? {
        1 => IpAddr::from(<[u8; 4]>::try_from(value.get(4..)?).ok()?),
        2 => IpAddr::from(<[u8; 16]>::try_from(value.get(4..)?).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = match self.kind & 0x0110 {
            0 => "request",
            INDICATION => "indication",
            SUCCESS => "success",
            _ => "error",
        };
        let method = match self.kind & !0x0110 {
            BINDING => "Binding",
            ALLOCATE => "Allocate",
            REFRESH => "Refresh",
            SEND => "Send",
            DATA_METHOD => "Data",
            CREATE_PERMISSION => "CreatePermission",
            CHANNEL_BIND => "ChannelBind",
            CONNECT => "Connect",
            CONNECTION_BIND => "ConnectionBind",
            CONNECTION_ATTEMPT => "ConnectionAttempt",
            _ => "unknown method",
        };
        write!(f, "{method} {class}")?;
        if let Some(code) = self.error_code() {
            write!(f, " {code}")?;
        }
        let kinds: Vec<String> =
            self.attributes.iter().map(|(kind, ..)| format!("{kind:#06x}")).collect();
        write!(f, " [{}]", kinds.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::{BINDING, Message, Packet, SOFTWARE, XOR_MAPPED_ADDRESS};

    /// RFC 5769 §2.2.
    const RESPONSE: &[u8] = b"\x01\x01\x00\x3c\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\
        \xfa\x87\xdf\xae\x80\x22\x00\x0b\x74\x65\x73\x74\x20\x76\x65\x63\x74\x6f\x72\x20\x00\x20\
        \x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43\x00\x08\x00\x14\x2b\x91\xf5\x99\xfd\x9e\x90\xc3\
        \x8c\x74\x89\xf9\x2a\xf9\xba\x53\xf0\x6b\xe7\xd7\x80\x28\x00\x04\xc0\x7d\x4c\x96";
    const PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";

    #[test]
    fn the_sample_response_of_rfc_5769_is_read() {
        let message = Message::parse(RESPONSE).unwrap();

        assert_eq!(message.address(XOR_MAPPED_ADDRESS), "192.0.2.1:32853".parse().ok());
        assert_eq!(message.verify(PASSWORD), Some(true));
        assert_eq!(message.verify(b"another"), Some(false));
    }

    #[test]
    fn the_sample_response_of_rfc_5769_is_written() {
        let id = RESPONSE[8..20].try_into().unwrap();

        let written = Packet::with_id(BINDING | super::SUCCESS, id)
            .padded(SOFTWARE, b"test vector", b' ')
            .address(XOR_MAPPED_ADDRESS, "192.0.2.1:32853".parse().unwrap())
            .integrity(PASSWORD)
            .fingerprint();

        assert_eq!(written.bytes(), RESPONSE);
    }

    #[test]
    fn a_wrong_fingerprint_is_refused() {
        let mut bytes = RESPONSE.to_vec();
        bytes[30] ^= 1;

        assert!(Message::parse(&bytes).is_err());
    }
}
