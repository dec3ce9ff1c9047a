//! The STUN header and the walk over its attributes (RFC 8489 §5, §14).

use std::net::SocketAddr;

use crate::stun::attribute::{AttributeType, Attributes, ErrorCode, decode_xor_address};
use crate::stun::integrity::{self, Integrity, Key};

/// Octets before the first attribute.
pub const HEADER_LENGTH: usize = 20;

/// RFC 8489 §5.
pub(crate) const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];

/// Octets of a whole FINGERPRINT attribute.
pub(crate) const FINGERPRINT_LENGTH: usize = 8;

/// Pairs a response with its request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// What a message is (RFC 8489 §5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// Wants an answer.
    Request,
    /// Wants none.
    Indication,
    /// The answer when it worked.
    Success,
    /// The answer when it did not.
    Error,
}

/// What a message is about; 12 bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Method(pub u16);

impl Method {
    /// Binding (RFC 8489 §18.2).
    pub const BINDING: Self = Self(0x001);
    /// Allocate (RFC 8656 §17).
    pub const ALLOCATE: Self = Self(0x003);
    /// Refresh.
    pub const REFRESH: Self = Self(0x004);
    /// Send indication.
    pub const SEND: Self = Self(0x006);
    /// Data indication.
    pub const DATA: Self = Self(0x007);
    /// CreatePermission.
    pub const CREATE_PERMISSION: Self = Self(0x008);
    /// ChannelBind.
    pub const CHANNEL_BIND: Self = Self(0x009);
    /// Connect (RFC 6062).
    pub const CONNECT: Self = Self(0x00A);
    /// ConnectionBind.
    pub const CONNECTION_BIND: Self = Self(0x00B);
    /// ConnectionAttempt indication.
    pub const CONNECTION_ATTEMPT: Self = Self(0x00C);
}

/// Why a datagram is no STUN message; it is counted and dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParseError {
    /// Shorter than a header.
    #[error("shorter than a STUN header")]
    Short,
    /// The first two bits are not zero, or the magic cookie is missing.
    #[error("not STUN: no magic cookie")]
    NotStun,
    /// The length field disagrees with the datagram or is no multiple of four.
    #[error("length field says {said} octets, the datagram holds {held}")]
    Length {
        /// What the header says.
        said: usize,
        /// What came.
        held: usize,
    },
    /// An attribute reaches beyond the end.
    #[error("attribute at offset {offset} reaches beyond the end")]
    Attribute {
        /// Where it starts.
        offset: usize,
    },
    /// FINGERPRINT is there and wrong.
    #[error("FINGERPRINT is wrong")]
    Fingerprint,
}

/// A well-formed STUN message that borrows its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    class: Class,
    method: Method,
    transaction: TransactionId,
    /// Where the attributes that count end: at the first MESSAGE-INTEGRITY, at
    /// MESSAGE-INTEGRITY-SHA256, at FINGERPRINT or at the end.
    honoured: usize,
    sha1: Option<Signature>,
    sha256: Option<Signature>,
    fingerprint: bool,
}

/// Where an integrity attribute is.
#[derive(Clone, Copy, Debug)]
struct Signature {
    offset: usize,
    length: usize,
}

impl<'a> Message<'a> {
    /// Parses one datagram.
    ///
    /// # Errors
    ///
    /// Returns a [`ParseError`] for anything that is not exactly one STUN message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_LENGTH>() else {
            return Err(ParseError::Short);
        };
        if header[0] & 0xC0 != 0 || header[4..8] != MAGIC_COOKIE {
            return Err(ParseError::NotStun);
        }
        let said = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let held = bytes.len() - HEADER_LENGTH;
        if said != held || said % 4 != 0 {
            return Err(ParseError::Length { said, held });
        }
        let (class, method) = decode_type(u16::from_be_bytes([header[0], header[1]]));
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&header[8..]);
        let mut message = Self {
            bytes,
            class,
            method,
            transaction: TransactionId(transaction),
            honoured: bytes.len(),
            sha1: None,
            sha256: None,
            fingerprint: false,
        };
        message.walk()?;
        Ok(message)
    }

    /// Finds the end of what counts, the integrity attributes and FINGERPRINT.
    fn walk(&mut self) -> Result<(), ParseError> {
        let mut offset = HEADER_LENGTH;
        let mut fingerprint = false;
        while offset < self.bytes.len() {
            let Some(head) = self.bytes[offset..].first_chunk::<4>() else {
                return Err(ParseError::Attribute { offset });
            };
            let kind = AttributeType(u16::from_be_bytes([head[0], head[1]]));
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let next = offset + 4 + length.next_multiple_of(4);
            if next > self.bytes.len() {
                return Err(ParseError::Attribute { offset });
            }
            if kind == AttributeType::FINGERPRINT && length == 4 && next == self.bytes.len() {
                let crc = integrity::fingerprint(&self.bytes[..offset]);
                if self.bytes[offset + 4..next] != crc.to_be_bytes() {
                    return Err(ParseError::Fingerprint);
                }
                self.fingerprint = true;
            }
            let signature = Signature { offset, length };
            let open = !fingerprint && self.sha256.is_none();
            match kind {
                AttributeType::MESSAGE_INTEGRITY if open && self.sha1.is_none() => {
                    self.honoured = offset;
                    self.sha1 = Some(signature);
                }
                // It counts after MESSAGE-INTEGRITY too, but opens nothing again.
                AttributeType::MESSAGE_INTEGRITY_SHA256 if open => {
                    self.honoured = self.honoured.min(offset);
                    self.sha256 = Some(signature);
                }
                AttributeType::FINGERPRINT => {
                    self.honoured = self.honoured.min(offset);
                    fingerprint = true;
                }
                _ => {}
            }
            offset = next;
        }
        Ok(())
    }

    /// Request, indication or response.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.class
    }

    /// What it is about.
    #[must_use]
    pub const fn method(&self) -> Method {
        self.method
    }

    /// Pairs a response with its request.
    #[must_use]
    pub const fn transaction(&self) -> TransactionId {
        self.transaction
    }

    /// Whether it carries a (correct) FINGERPRINT.
    #[must_use]
    pub const fn has_fingerprint(&self) -> bool {
        self.fingerprint
    }

    /// Whether it carries MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256.
    #[must_use]
    pub const fn has_integrity(&self) -> bool {
        self.sha1.is_some() || self.sha256.is_some()
    }

    /// Which attribute protects it: the stronger one of those it has (RFC 8489 §9.2.4); `None`
    /// also when that one's length is wrong.
    #[must_use]
    pub fn integrity(&self) -> Option<Integrity> {
        let (integrity, signature) = self.signature()?;
        integrity.may_have(signature.length).then_some(integrity)
    }

    /// Whether it was signed with `key`, in the attribute of [`Self::integrity`]; compares in
    /// constant time.
    #[must_use]
    pub fn verify(&self, key: &Key) -> bool {
        let Some((integrity, Signature { offset, length })) = self.signature() else {
            return false;
        };
        let value = &self.bytes[offset + 4..offset + 4 + length];
        integrity::verify(key, integrity, &self.bytes[..offset], value)
    }

    fn signature(&self) -> Option<(Integrity, Signature)> {
        let sha256 = self.sha256.map(|signature| (Integrity::Sha256, signature));
        sha256.or_else(|| self.sha1.map(|signature| (Integrity::Sha1, signature)))
    }

    /// The attributes that count, in order.
    #[must_use]
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(&self.bytes[HEADER_LENGTH..self.honoured])
    }

    /// The value of the first attribute of this type (RFC 8489 §14: only the first counts).
    #[must_use]
    pub fn attribute(&self, kind: AttributeType) -> Option<&'a [u8]> {
        self.attributes().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The address in the first XOR-...-ADDRESS attribute of this type.
    #[must_use]
    pub fn xor_address(&self, kind: AttributeType) -> Option<SocketAddr> {
        decode_xor_address(self.attribute(kind)?, self.transaction)
    }

    /// The code of an error response.
    #[must_use]
    pub fn error_code(&self) -> Option<ErrorCode> {
        let value = self.attribute(AttributeType::ERROR_CODE)?.first_chunk::<4>()?;
        Some(ErrorCode(u16::from(value[2] & 7) * 100 + u16::from(value[3])))
    }

    /// Where the value of the first attribute of this type is in the datagram.
    pub(crate) fn attribute_range(&self, kind: AttributeType) -> Option<std::ops::Range<usize>> {
        let mut attributes = self.attributes();
        loop {
            let before = attributes.remaining();
            let (found, value) = attributes.next()?;
            if found == kind {
                let start = self.honoured - before + 4;
                return Some(start..start + value.len());
            }
        }
    }
}

/// RFC 8489 §5, figure 3: the class bits sit inside the method.
fn decode_type(bits: u16) -> (Class, Method) {
    let class = match (bits & 0x0100 != 0, bits & 0x0010 != 0) {
        (false, false) => Class::Request,
        (false, true) => Class::Indication,
        (true, false) => Class::Success,
        (true, true) => Class::Error,
    };
    (class, Method(bits & 0x000F | (bits & 0x00E0) >> 1 | (bits & 0x3E00) >> 2))
}

/// The inverse of [`decode_type`].
pub(crate) fn encode_type(class: Class, method: Method) -> u16 {
    let class = match class {
        Class::Request => 0,
        Class::Indication => 0x0010,
        Class::Success => 0x0100,
        Class::Error => 0x0110,
    };
    class | method.0 & 0x000F | (method.0 & 0x0070) << 1 | (method.0 & 0x0F80) << 2
}
