//! Frames as the packet socket sends them: `virtio_net_hdr`, Ethernet, IPv4, UDP, payload.

use std::net::SocketAddrV4;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the receiver completes or skips the checksum, as with a veth.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: a run of datagrams of equal size.
const MERGED_UDP: u8 = 5;
/// Ethernet and IPv4.
const UDP_OFFSET: u16 = 14 + 20;
/// Where UDP's checksum is.
const CHECKSUM_OFFSET: u16 = 6;

/// Link-layer addresses of a link's two ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) source: [u8; 6],
    pub(super) target: [u8; 6],
}

/// A frame with `count` datagrams of that payload: one packet, or one merged run.
///
/// # Panics
///
/// Panics when the run is longer than an IPv4 packet.
pub(super) fn udp(
    link: Link,
    source: SocketAddrV4,
    target: SocketAddrV4,
    payload: &[u8],
    count: usize,
) -> Box<[u8]> {
    let udp_length = u16::try_from(8 + payload.len() * count).expect("a run fits one packet");
    let segment = u16::try_from(payload.len()).expect("a part of the run");
    let mut frame = Vec::with_capacity(10 + 14 + 20 + usize::from(udp_length));
    let merged = count > 1;
    frame.extend([NEEDS_CHECKSUM, if merged { MERGED_UDP } else { 0 }]);
    for field in [UDP_OFFSET + 8, if merged { segment } else { 0 }, UDP_OFFSET, CHECKSUM_OFFSET] {
        frame.extend(field.to_le_bytes());
    }
    frame.extend(link.target);
    frame.extend(link.source);
    frame.extend([0x08, 0x00]);

    let mut ip = [0; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(20 + udp_length).to_be_bytes());
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&source.ip().octets());
    ip[16..20].copy_from_slice(&target.ip().octets());
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(ip);

    // The kernel adds the rest of the checksum to that of the pseudo-header.
    let mut pseudo = [0; 12];
    pseudo[..8].copy_from_slice(&ip[12..20]);
    pseudo[9] = 17;
    pseudo[10..].copy_from_slice(&udp_length.to_be_bytes());
    for field in [source.port(), target.port(), udp_length, sum(&pseudo)] {
        frame.extend(field.to_be_bytes());
    }
    for _ in 0..count {
        frame.extend(payload);
    }
    frame.into()
}

/// The one's complement sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded into 16 bits")
}

#[cfg(test)]
mod tests {
    use super::{Link, sum, udp};

    #[test]
    fn lengths_and_checksums_are_those_of_the_packet() {
        let link = Link { source: [2; 6], target: [4; 6] };
        let source = "192.0.2.1:4000".parse().unwrap();
        let target = "198.51.100.1:3478".parse().unwrap();

        let single = udp(link, source, target, &[7; 100], 1);
        let merged = udp(link, source, target, &[7; 100], 4);

        assert_eq!((single.len(), merged.len()), (10 + 42 + 100, 10 + 42 + 400));
        assert_eq!((single[1], merged[1]), (0, 5));
        assert_eq!(merged[4..6], 100_u16.to_le_bytes());
        for (frame, length) in [(&single, 128_u16), (&merged, 428)] {
            let ip = &frame[24..44];
            assert_eq!(sum(ip), 0xFFFF, "a header with its checksum sums up to all ones");
            assert_eq!(ip[2..4], length.to_be_bytes());
            assert_eq!(frame[48..50], (length - 20).to_be_bytes());
        }
    }
}
