//! Writes STUN messages.

use std::net::SocketAddr;

use crate::stun::attribute::{AttributeType, ErrorCode, xor_address_bytes};
use crate::stun::integrity::{self, Integrity, Key};
use crate::stun::message::{
    Class, HEADER_LENGTH, MAGIC_COOKIE, Message, Method, TransactionId, encode_type,
};

/// A message in the making; its length field is right after every call.
#[derive(Clone, Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    transaction: TransactionId,
}

impl Writer {
    /// Starts a message.
    #[must_use]
    pub fn new(class: Class, method: Method, transaction: TransactionId) -> Self {
        let mut bytes = Vec::with_capacity(160);
        bytes.extend(encode_type(class, method).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(MAGIC_COOKIE);
        bytes.extend(transaction.0);
        Self { bytes, transaction }
    }

    /// Starts the answer to `request`.
    #[must_use]
    pub fn answer(class: Class, request: &Message<'_>) -> Self {
        Self::new(class, request.method(), request.transaction())
    }

    /// Appends an attribute.
    ///
    /// # Panics
    ///
    /// Panics when the message would grow beyond 64 KiB.
    #[must_use]
    pub fn attribute(mut self, kind: AttributeType, value: &[u8]) -> Self {
        let length = u16::try_from(value.len()).expect("an attribute is below 64 KiB");
        self.bytes.extend(kind.0.to_be_bytes());
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let length = u16::try_from(self.bytes.len() - HEADER_LENGTH);
        let length = length.expect("a STUN message is below 64 KiB");
        self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
        self
    }

    /// Appends an XOR-...-ADDRESS attribute.
    #[must_use]
    pub fn xor_address(self, kind: AttributeType, address: SocketAddr) -> Self {
        let (bytes, length) = xor_address_bytes(address, self.transaction);
        self.attribute(kind, &bytes[..length])
    }

    /// Appends ERROR-CODE with its reason phrase (RFC 8489 §14.8).
    #[must_use]
    pub fn error(self, code: ErrorCode) -> Self {
        self.error_with(code, code.reason())
    }

    /// Appends ERROR-CODE without one, for who may get as few octets as possible.
    #[must_use]
    pub fn terse_error(self, code: ErrorCode) -> Self {
        self.error_with(code, "")
    }

    fn error_with(self, code: ErrorCode, reason: &str) -> Self {
        let [_, hundreds] = (code.0 / 100).to_be_bytes();
        let [_, number] = (code.0 % 100).to_be_bytes();
        let mut value = vec![0, 0, hundreds, number];
        value.extend(reason.as_bytes());
        self.attribute(AttributeType::ERROR_CODE, &value)
    }

    /// Appends the integrity attribute of `key` over what is there.
    #[must_use]
    pub fn integrity(self, key: &Key) -> Self {
        let octets = match key.integrity() {
            Integrity::Sha1 => 20,
            Integrity::Sha256 => 32,
        };
        self.truncated_integrity(key, octets)
    }

    /// Appends as many octets of it; the other end decides whether that is enough.
    #[must_use]
    pub fn truncated_integrity(self, key: &Key, octets: usize) -> Self {
        let integrity = key.integrity();
        let value = integrity::sign(key, integrity, &self.bytes, octets);
        self.attribute(integrity.attribute(), &value)
    }

    /// Appends FINGERPRINT over what is there.
    #[must_use]
    pub fn fingerprint(self) -> Self {
        let value = integrity::fingerprint(&self.bytes);
        self.attribute(AttributeType::FINGERPRINT, &value.to_be_bytes())
    }

    /// The message.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
