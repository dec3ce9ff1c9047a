//! Where one message ends and the next one begins on a stream (TCP, or TLS over it).
//!
//! Both kinds of message say how long they are: STUN in its header, ChannelData in its own four
//! octets, where over a stream the padding to a multiple of four is part of the wire format.
//!
//! # Specifications
//!
//! - [RFC 8489 §6.2.2](https://www.rfc-editor.org/rfc/rfc8489#section-6.2.2): STUN over TCP; no
//!   framing beyond the length in the header, which is a multiple of four (§5).
//! - [RFC 8656 §12.5](https://www.rfc-editor.org/rfc/rfc8656#section-12.5): ChannelData over TCP
//!   is padded, and its length field leaves the padding out.
//!
//! # Invariants
//!
//! 1. A stream that is neither is refused at the first octet that shows it, never waited for.
//! 2. The length of a message is never longer than the limit, nor than the buffer.

use crate::channel::CHANNEL_HEADER_LENGTH;
use crate::stun::{HEADER_LENGTH, MAGIC_COOKIE};

/// The longest message there can be: a STUN header whose length field is at its largest.
pub const MAX_MESSAGE: usize = HEADER_LENGTH + 0xFFFC;

/// Why a stream cannot be read any further; its connection is to be closed, because nobody knows
/// where the next message would begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FramingError {
    /// The first octet belongs to neither kind.
    #[error("neither STUN nor ChannelData: the first octet is {first:#04x}")]
    Unknown {
        /// That octet.
        first: u8,
    },
    /// The magic cookie is missing.
    #[error("not STUN: no magic cookie")]
    NoCookie,
    /// A STUN message's length is no multiple of four.
    #[error("a STUN message says it has {said} octets, which is no multiple of four")]
    Unaligned {
        /// What its header says.
        said: usize,
    },
    /// The message is longer than the reader is ready to keep.
    #[error("a message of {length} octets, {limit} are allowed")]
    TooLong {
        /// All of it, padding included.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// The length of the first message of `buffer`, header and padding included; `None` while its end
/// has not come.
///
/// # Errors
///
/// Returns a [`FramingError`] as soon as it is clear that there is no message of at most `limit`
/// octets.
pub fn next(buffer: &[u8], limit: usize) -> Result<Option<usize>, FramingError> {
    let Some(&first) = buffer.first() else {
        return Ok(None);
    };
    let is_stun = match first >> 6 {
        0b00 => true,
        0b01 => false,
        _ => return Err(FramingError::Unknown { first }),
    };
    if is_stun {
        let cookie = buffer.get(4..buffer.len().min(8)).unwrap_or_default();
        if !MAGIC_COOKIE.starts_with(cookie) {
            return Err(FramingError::NoCookie);
        }
    }
    let Some(&[_, _, high, low]) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let said = usize::from(u16::from_be_bytes([high, low]));
    let length = if is_stun {
        if said % 4 != 0 {
            return Err(FramingError::Unaligned { said });
        }
        HEADER_LENGTH + said
    } else {
        CHANNEL_HEADER_LENGTH + said.next_multiple_of(4)
    };
    if length > limit {
        return Err(FramingError::TooLong { length, limit });
    }
    Ok((length <= buffer.len()).then_some(length))
}

#[cfg(test)]
mod tests;
