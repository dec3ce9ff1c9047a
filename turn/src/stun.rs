//! STUN messages: parsing, writing, integrity ([RFC 8489]).
//!
//! Nothing here knows about TURN's rules; the same code reads and writes both ends' messages, so
//! tests and probes use it as clients.
//!
//! # Specifications
//!
//! - [RFC 8489]: header (§5), attributes (§14), MESSAGE-INTEGRITY (§14.5),
//!   MESSAGE-INTEGRITY-SHA256 (§14.6), FINGERPRINT (§14.7), password
//!   algorithms (§18.5).
//! - [RFC 8656]: methods (§17), attributes (§18), error codes (§19).
//!
//! Left out: the header of RFC 3489, which has no magic cookie. OpaqueString (RFC 8265): names and
//! passwords are taken octet by octet, as browsers send them; in ASCII there is no difference.
//!
//! # Invariants
//!
//! 1. A parsed [`Message`] has no attribute that reaches beyond its end.
//! 2. What follows MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256 is never seen by a caller, but for
//!    the latter after the former, and FINGERPRINT (RFC 8489 §9).
//!
//! [RFC 8489]: https://www.rfc-editor.org/rfc/rfc8489
//! [RFC 8656]: https://www.rfc-editor.org/rfc/rfc8656

mod attribute;
mod integrity;
mod message;
mod writer;

pub use self::attribute::{AttributeType, Attributes, ErrorCode};
pub use self::integrity::{Integrity, Key, PasswordAlgorithm, userhash};
pub use self::message::{Class, HEADER_LENGTH, Message, Method, ParseError, TransactionId};
pub use self::writer::Writer;

pub(crate) use self::attribute::{decode_xor_address, xor_address_bytes};
pub(crate) use self::message::{MAGIC_COOKIE, encode_type};

#[cfg(test)]
mod tests;
