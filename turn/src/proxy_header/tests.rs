//! Headers by hand, from the specification's figures.

use std::net::SocketAddr;

use super::{ProxyHeader, ProxyHeaderError};

const MAX_LENGTH: usize = ProxyHeader::MAX_LENGTH;
const SIGNATURE: [u8; 12] = [0x0D, 0x0A, 0x0D, 0x0A, 0, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A];

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn over_v4() -> (ProxyHeader, Vec<u8>) {
    let header = ProxyHeader::new(socket("192.0.2.7:50000"), socket("198.51.100.2:443")).unwrap();
    let rest = [0x21, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100, 2, 0xC3, 0x50, 0x01, 0xBB];
    (header, [&SIGNATURE[..], &rest].concat())
}

fn over_v6() -> (ProxyHeader, Vec<u8>) {
    let header =
        ProxyHeader::new(socket("[2001:db8::7]:50000"), socket("[2001:db8::2]:5349")).unwrap();
    let mut bytes = [&SIGNATURE[..], &[0x21, 0x21, 0, 36]].concat();
    for last in [7, 2] {
        bytes.extend_from_slice(&[0x20, 0x01, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    bytes.extend_from_slice(&[0xC3, 0x50, 0x14, 0xE5]);
    (header, bytes)
}

#[test]
fn both_families_are_written_and_read_as_the_specification_draws_them() {
    for (header, bytes) in [over_v4(), over_v6()] {
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(ProxyHeader::parse(&bytes), Ok(Some((header, bytes.len()))));
    }
    assert_eq!(over_v6().0.source(), socket("[2001:db8::7]:50000"));
    assert_eq!(over_v6().0.destination(), socket("[2001:db8::2]:5349"));
}

#[test]
fn a_header_is_not_there_before_its_last_octet() {
    for (header, bytes) in [over_v4(), over_v6()] {
        for length in 0..bytes.len() {
            assert_eq!(ProxyHeader::parse(&bytes[..length]), Ok(None), "{length} octets");
        }
        let stream = [&bytes[..], b"what the client sent"].concat();
        assert_eq!(ProxyHeader::parse(&stream), Ok(Some((header, bytes.len()))));
    }
}

#[test]
fn tlvs_are_skipped_up_to_the_bound() {
    let (header, mut bytes) = over_v4();
    let tlvs = MAX_LENGTH - bytes.len();
    bytes.resize(MAX_LENGTH, 4);
    bytes[14..16].copy_from_slice(&u16::try_from(12 + tlvs).unwrap().to_be_bytes());

    assert_eq!(ProxyHeader::parse(&bytes[..MAX_LENGTH - 1]), Ok(None));
    assert_eq!(ProxyHeader::parse(&bytes), Ok(Some((header, MAX_LENGTH))));

    bytes[14..16].copy_from_slice(&u16::try_from(13 + tlvs).unwrap().to_be_bytes());
    assert_eq!(ProxyHeader::parse(&bytes[..16]), Err(ProxyHeaderError::Length { said: 13 + tlvs }));
}

#[test]
fn what_is_no_header_of_use_is_refused_at_the_octet_that_shows_it() {
    let (_, good) = over_v4();
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    for (bytes, shown_at, error) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), 1, ProxyHeaderError::Signature),
        (b"PROXY TCP4 192.0.2.7".to_vec(), 1, ProxyHeaderError::Signature),
        (changed(11, 0), 12, ProxyHeaderError::Signature),
        // LOCAL, version 1, a command of the future.
        (changed(12, 0x20), 13, ProxyHeaderError::Command { said: 0x20 }),
        (changed(12, 0x11), 13, ProxyHeaderError::Command { said: 0x11 }),
        (changed(12, 0x22), 13, ProxyHeaderError::Command { said: 0x22 }),
        // Unspecified, UDP, a Unix stream.
        (changed(13, 0x00), 14, ProxyHeaderError::Family { said: 0x00 }),
        (changed(13, 0x12), 14, ProxyHeaderError::Family { said: 0x12 }),
        (changed(13, 0x31), 14, ProxyHeaderError::Family { said: 0x31 }),
        (changed(15, 11), 16, ProxyHeaderError::Length { said: 11 }),
        (changed(14, 0xFF), 16, ProxyHeaderError::Length { said: 0xFF0C }),
    ] {
        for length in 0..shown_at {
            assert_eq!(ProxyHeader::parse(&bytes[..length]), Ok(None), "{bytes:?} {length}");
        }
        for length in shown_at..=bytes.len() {
            assert_eq!(ProxyHeader::parse(&bytes[..length]), Err(error), "{bytes:?} {length}");
        }
    }
}

#[test]
fn a_header_with_one_family_per_end_cannot_be_made() {
    assert_eq!(ProxyHeader::new(socket("192.0.2.7:1"), socket("[2001:db8::2]:1")), None);
}
