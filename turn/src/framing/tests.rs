//! Streams cut at every octet.

use super::{FramingError, MAX_MESSAGE, next};
use crate::stun::{AttributeType, Class, Message, Method, TransactionId, Writer};

fn binding() -> Vec<u8> {
    Writer::new(Class::Request, Method::BINDING, TransactionId([7; 12])).finish()
}

fn allocate() -> Vec<u8> {
    Writer::new(Class::Request, Method::ALLOCATE, TransactionId([8; 12]))
        .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .finish()
}

/// As a client of RFC 8656 §12.5 sends it.
fn channel_data(number: u16, data: &[u8]) -> Vec<u8> {
    let mut message = number.to_be_bytes().to_vec();
    message.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
    message.extend_from_slice(data);
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

/// What the reader of a stream makes of it when it comes in pieces of these lengths.
fn read(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut buffer = Vec::new();
    let mut messages = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(length) = next(&buffer, MAX_MESSAGE).unwrap() {
            messages.push(buffer.drain(..length).collect());
        }
    }
    assert_eq!(buffer, [], "left over");
    messages
}

#[test]
fn messages_come_out_whole_wherever_the_stream_is_cut() {
    let messages = vec![
        binding(),
        channel_data(0x4000, b""),
        channel_data(0x4001, b"1"),
        channel_data(0x4FFF, b"1234"),
        allocate(),
        channel_data(0x7FFF, b"12345"),
    ];
    let stream = messages.concat();

    for first in 0..=stream.len() {
        for second in first..=stream.len() {
            let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
            assert_eq!(read(&pieces), messages, "cut at {first} and {second}");
        }
    }
    let octets: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(read(&octets), messages);
}

#[test]
fn a_message_is_not_there_before_its_last_octet_of_padding() {
    for message in [binding(), allocate(), channel_data(0x4000, b"12345")] {
        for length in 0..message.len() {
            assert_eq!(next(&message[..length], MAX_MESSAGE), Ok(None), "{length} octets");
        }
        assert_eq!(next(&message, MAX_MESSAGE), Ok(Some(message.len())));
    }
}

#[test]
fn a_framed_stun_message_is_one_that_parses() {
    let stream = [allocate(), binding()].concat();

    let length = next(&stream, MAX_MESSAGE).unwrap().unwrap();

    assert_eq!(Message::parse(&stream[..length]).unwrap().method(), Method::ALLOCATE);
}

#[test]
fn what_is_neither_is_refused_at_the_octet_that_shows_it() {
    for (stream, shown_at, error) in [
        (&b"\x80"[..], 1, FramingError::Unknown { first: 0x80 }),
        (&[0xFF; 64], 1, FramingError::Unknown { first: 0xFF }),
        (&[0, 1, 0, 0, 0x21, 0x12, 0xA5], 7, FramingError::NoCookie),
        (b"\x00\x01\x00\x00GET ", 5, FramingError::NoCookie),
        (&[0, 1, 0, 3, 0x21, 0x12, 0xA4, 0x42], 4, FramingError::Unaligned { said: 3 }),
    ] {
        for length in 0..shown_at {
            assert_eq!(next(&stream[..length], MAX_MESSAGE), Ok(None), "{stream:?} {length}");
        }
        for length in shown_at..=stream.len() {
            assert_eq!(next(&stream[..length], MAX_MESSAGE), Err(error), "{stream:?} {length}");
        }
    }
}

#[test]
fn a_message_above_the_limit_is_refused_before_any_of_it_is_kept() {
    let stun = [0, 3, 0x10, 0];
    let channel_data = [0x40, 0, 0x0F, 0xFD];

    assert_eq!(next(&stun, 4116), Ok(None));
    assert_eq!(next(&stun, 4115), Err(FramingError::TooLong { length: 4116, limit: 4115 }));
    assert_eq!(next(&channel_data, 4100), Ok(None));
    assert_eq!(next(&channel_data, 4099), Err(FramingError::TooLong { length: 4100, limit: 4099 }));
}

#[test]
fn the_longest_of_both_kinds_fit() {
    let mut stun = [0; MAX_MESSAGE];
    stun[..8].copy_from_slice(&[0, 3, 0xFF, 0xFC, 0x21, 0x12, 0xA4, 0x42]);
    let longest = channel_data(0x4000, &[1; 0xFFFF]);

    assert_eq!(next(&stun, MAX_MESSAGE), Ok(Some(MAX_MESSAGE)));
    assert_eq!(next(&longest, MAX_MESSAGE), Ok(Some(4 + 0x10000)));
}

/// Every stream of up to three octets, and each of those before a cookie.
#[test]
fn no_stream_makes_it_panic_or_count_beyond_the_buffer() {
    for first in 0..=255_u8 {
        for second in 0..=255_u8 {
            for third in [0, 1, 0x40, 0xFF] {
                for tail in [&[][..], &[0], &[3, 0x21, 0x12, 0xA4, 0x42], &[0; 32]] {
                    let stream = [&[first, second, third], tail].concat();
                    if let Ok(Some(length)) = next(&stream, MAX_MESSAGE) {
                        assert!((4..=stream.len()).contains(&length), "{stream:?}");
                    }
                }
            }
        }
    }
}
