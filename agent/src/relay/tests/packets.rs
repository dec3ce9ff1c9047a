//! What the data path does to packets: runs, fragments, other shards.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};
use turn::stun::{AttributeType, Class, Message, Method};

use super::{Guest, SHARDS, run, start};

const SERVER: &str = "198.51.100.180:5000";

impl Guest {
    /// Binds channel 0x4000 to a peer.
    fn bind_channel(&self, peer: &str) {
        let request = Self::begin(Class::Request, Method::CHANNEL_BIND)
            .attribute(AttributeType::CHANNEL_NUMBER, &[0x40, 0, 0, 0])
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer.parse().unwrap());
        let reply = self.ask(self.sign(request));
        assert_eq!(Message::parse(&reply).unwrap().class(), Class::Success);
    }
}

fn channel_data(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x40, 0][..], &length, payload].concat()
}

fn server() -> UdpSocket {
    let server = UdpSocket::bind(SERVER).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    server
}

/// What each run is made of: its own payload in each packet, so that a mix-up shows.
fn payload(run: u8, packet: u8, length: usize) -> Vec<u8> {
    (0..length).map(|octet| run ^ packet.rotate_left(3) ^ octet.to_le_bytes()[0]).collect()
}

#[test]
fn merged_runs_pass_both_ways_packet_by_packet() {
    for shards in SHARDS {
        let (handle, _) = start(shards);
        let guest = Guest::new();
        guest.allocate("correct horse").unwrap();
        let server = server();
        guest.bind_channel(SERVER);

        for (run, length, last) in [(1, 1000, 1000), (2, 160, 7), (3, 1, 1), (4, 1400, 3)] {
            let lengths = [length, length, length, length, last];
            let payloads: Vec<_> =
                (0..).zip(lengths).map(|(packet, length)| payload(run, packet, length)).collect();
            let messages: Vec<_> = payloads.iter().map(|payload| channel_data(payload)).collect();
            setsockopt(&guest.socket, sockopt::UdpGsoSegment, &segment(length + 4)).unwrap();
            guest.socket.send(&messages.concat()).unwrap();
            let mut relay = None;
            for expected in &payloads {
                let mut buffer = [0; 1500];
                let (received, from) = server.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..received], expected, "run {run} to the peer");
                relay = Some(from);
            }

            setsockopt(&server, sockopt::UdpGsoSegment, &segment(length)).unwrap();
            server.send_to(&payloads.concat(), relay.unwrap()).unwrap();
            for expected in &messages {
                let mut buffer = [0; 1500];
                let received = guest.socket.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..received], expected, "run {run} to the client");
            }
        }
        let snapshot = handle.snapshot().unwrap();
        assert_eq!(snapshot.counters.relayed_packets, 4 * 5 * 2);
        assert_eq!(snapshot.losses, Default::default());
    }
}

#[test]
fn a_merged_run_without_a_channel_becomes_one_indication_per_packet() {
    for shards in SHARDS {
        let (_handle, _) = start(shards);
        let guest = Guest::new();
        guest.allocate("correct horse").unwrap();
        let server = server();
        guest.permit(SERVER);
        guest.indicate(SERVER, b"where from?");
        let (_, relay) = server.recv_from(&mut [0; 64]).unwrap();
        // Not a multiple of four: there is padding between payload and what follows in memory.
        let payloads: Vec<_> = (0..20).map(|packet| payload(9, packet, 333)).collect();

        setsockopt(&server, sockopt::UdpGsoSegment, &333).unwrap();
        server.send_to(&payloads.concat(), relay).unwrap();

        for expected in payloads {
            let mut buffer = [0; 1500];
            let length = guest.socket.recv(&mut buffer).unwrap();
            let message = Message::parse(&buffer[..length]).unwrap();
            assert_eq!(message.attribute(AttributeType::DATA), Some(&expected[..]));
            assert_eq!(length % 4, 0);
        }
    }
}

#[test]
fn a_run_whose_packets_are_longer_than_the_path_allows_leaves_packet_by_packet() {
    for shards in SHARDS {
        let (handle, _) = start(shards);
        let guest = Guest::new();
        guest.allocate("correct horse").unwrap();
        let server = server();
        guest.bind_channel(SERVER);
        let payloads: Vec<_> = (0..3).map(|packet| payload(5, packet, 1400)).collect();
        let messages: Vec<_> = payloads.iter().map(|payload| channel_data(payload)).collect();
        setsockopt(&guest.socket, sockopt::UdpGsoSegment, &1404).unwrap();
        guest.socket.send(&messages.concat()).unwrap();
        for _ in 0..3 {
            server.recv(&mut [0; 1500]).unwrap();
        }

        let route = "route replace local 198.51.100.180 dev lo table local proto kernel scope host \
                     src 198.51.100.180 mtu 1200";
        run("ip", &route.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>());
        guest.socket.send(&messages.concat()).unwrap();

        for expected in payloads {
            let mut buffer = [0; 1500];
            let length = server.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected);
        }
        let losses = handle.snapshot().unwrap().losses;
        assert_eq!((losses.not_sent, losses.unsegmented), (0, 1));
    }
}

#[test]
fn long_datagrams_pass_between_clients_on_any_shards() {
    for shards in SHARDS {
        let (handle, _) = start(shards);
        let guests: Vec<_> = (0..8)
            .map(|_| {
                let guest = Guest::new();
                let relayed = guest.allocate("correct horse").unwrap();
                (guest, relayed)
            })
            .collect();
        for (guest, _) in &guests {
            guest.permit("203.0.113.156:0");
        }

        let mut crossed = BTreeMap::new();
        for (from, (sender, source)) in guests.iter().enumerate() {
            for (to, (receiver, target)) in guests.iter().enumerate() {
                for length in [1, 1200, 9000, 60_000] {
                    let data = payload(u8::try_from(from * 8 + to).unwrap(), 1, length);
                    sender.indicate(&target.to_string(), &data);

                    let mut buffer = vec![0; 65_536];
                    let received = receiver.socket.recv(&mut buffer).unwrap();
                    let message = Message::parse(&buffer[..received]).unwrap();
                    assert_eq!(message.attribute(AttributeType::DATA), Some(&data[..]));
                    let peer = message.xor_address(AttributeType::XOR_PEER_ADDRESS);
                    assert_eq!(peer, Some(*source));
                    *crossed.entry(from).or_insert(0) += 1;
                }
            }
        }
        let snapshot = handle.snapshot().unwrap();
        assert_eq!(snapshot.counters.relayed_in_process, 8 * 8 * 4);
        assert_eq!(snapshot.losses, Default::default());
        assert_eq!(snapshot.status.active_clients, 8);
    }
}

#[test]
fn only_a_packet_that_must_not_be_fragmented_says_so_to_routers() {
    for shards in SHARDS {
        let (_handle, _) = start(shards);
        let guest = Guest::new();
        guest.allocate("correct horse").unwrap();
        let _server = server();
        guest.permit(SERVER);
        // Sees whole IP packets.
        let wire =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp)
                .unwrap();
        let wire = UdpSocket::from(wire);
        wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();

        // More than it takes for a socket of the peer's own.
        for number in 0..200_u8 {
            let dont_fragment = number % 3 == 1;
            let indication = Guest::begin(Class::Indication, Method::SEND)
                .xor_address(AttributeType::XOR_PEER_ADDRESS, SERVER.parse().unwrap())
                .attribute(AttributeType::DATA, &[number]);
            let indication = if dont_fragment {
                indication.attribute(AttributeType::DONT_FRAGMENT, &[])
            } else {
                indication
            };
            guest.socket.send(&indication.finish()).unwrap();

            let mut packet = [0; 1500];
            loop {
                let length = wire.recv(&mut packet).unwrap();
                // To the server's port: with UDP's header, 28 octets before the payload.
                if packet[22..24] == 5000_u16.to_be_bytes() {
                    assert_eq!((length, packet[28]), (29, number));
                    break;
                }
            }
            assert_eq!(packet[6] & 0x40 != 0, dont_fragment, "packet {number}");
        }
    }
}

#[test]
fn a_client_hears_of_a_port_where_nobody_listens() {
    for shards in SHARDS {
        let (handle, _) = start(shards);
        let guest = Guest::new();
        guest.allocate("correct horse").unwrap();
        guest.permit(SERVER);

        guest.indicate(SERVER, b"anybody there?");

        let mut buffer = [0; 1500];
        let length = guest.socket.recv(&mut buffer).unwrap();
        let message = Message::parse(&buffer[..length]).unwrap();
        assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
        // Type 3 in 7 bits, code 3 in 9 (RFC 8656 section 18.13).
        let icmp = message.attribute(AttributeType::ICMP);
        assert_eq!(icmp, Some(&[0, 0, 3 << 1, 3, 0, 0, 0, 0][..]));
        let peer = message.xor_address(AttributeType::XOR_PEER_ADDRESS);
        assert_eq!(peer, Some(SERVER.parse().unwrap()));
        assert_eq!(handle.snapshot().unwrap().counters.icmp, 1);
    }
}

fn segment(length: usize) -> i32 {
    i32::try_from(length).unwrap()
}
