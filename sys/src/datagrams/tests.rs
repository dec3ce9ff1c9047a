use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::{Inbox, Layout, Message, Outbox, Piece, Received};

const LAYOUT: Layout = Layout { slots: 8, before: 16, longest: 2048, behind: 8, scratch: 32 };

fn socket(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// What arrives within a second, at least `least` datagrams of it.
fn receive(inbox: &mut Inbox, socket: &UdpSocket, least: usize) -> Vec<(Received, Vec<u8>)> {
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut all = Vec::new();
    while all.len() < least && Instant::now() < deadline {
        match inbox.receive(socket, 0..LAYOUT.slots) {
            Ok(count) => all.extend((0..count).map(|slot| {
                let received = inbox.received(slot);
                let octets = &inbox.bytes()[received.start..received.start + received.length];
                (received, octets.to_vec())
            })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
    all
}

#[test]
fn datagrams_of_both_families_come_with_their_senders() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (receiver, to) = socket(address);
        let (one, first) = socket(address);
        let (other, second) = socket(address);
        one.send_to(b"one", to).unwrap();
        other.send_to(b"other", to).unwrap();
        one.send_to(b"", to).unwrap();

        let all = receive(&mut Inbox::new(LAYOUT), &receiver, 3);

        let seen: Vec<_> = all.iter().map(|(one, octets)| (one.from, &octets[..])).collect();
        assert_eq!(seen, [(first, &b"one"[..]), (second, b"other"), (first, b"")]);
        assert!(all.iter().all(|(one, _)| one.segment == one.length && !one.truncated));
    }
}

#[test]
fn only_the_given_slots_are_filled_and_the_rest_waits() {
    let (receiver, to) = socket("127.0.0.1:0");
    let (sender, _) = socket("127.0.0.1:0");
    let mut inbox = Inbox::new(LAYOUT);
    for number in 0..4_u8 {
        sender.send_to(&[number; 3], to).unwrap();
    }

    assert_eq!(inbox.receive(&receiver, 5..6).unwrap(), 1);
    assert_eq!(inbox.receive(&receiver, 6..8).unwrap(), 2);

    for (slot, number) in [(5, 0), (6, 1), (7, 2)] {
        let one = inbox.received(slot);
        assert_eq!(one.start, slot * (16 + 2048 + 8) + 16);
        assert_eq!(inbox.bytes()[one.start..one.start + one.length], [number; 3]);
    }
    assert_eq!(inbox.receive(&receiver, 0..8).unwrap(), 1);
    let nothing = inbox.receive(&receiver, 0..8).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_datagram_that_is_too_long_says_so() {
    let (receiver, to) = socket("127.0.0.1:0");
    socket("127.0.0.1:0").0.send_to(&[7; 3000], to).unwrap();

    let all = receive(&mut Inbox::new(LAYOUT), &receiver, 1);

    assert!(all[0].0.truncated);
    assert_eq!(all[0].1, [7; 2048]);
}

#[test]
fn pieces_go_to_several_receivers_in_one_call() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (one, first) = socket(address);
        let (other, second) = socket(address);
        let (sender, from) = socket(address);
        let pieces = [(0, 2), (4, 2), (2, 2)].map(|(start, length)| Piece { start, length });
        let messages = [(first, 0..2), (second, 2..3)].map(|(to, pieces)| Message {
            to: Some(to),
            pieces,
            segment: None,
        });

        let sent = Outbox::new(8).send(&sender, b"aabbcc", &messages, &pieces).unwrap();

        assert_eq!(sent, 2);
        for (socket, expected) in [(one, "aacc"), (other, "bb")] {
            let mut buffer = [0; 16];
            let received = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(received, (expected.len(), from));
            assert_eq!(&buffer[..expected.len()], expected.as_bytes());
        }
    }
}

#[test]
fn a_connected_socket_needs_no_address() {
    let (receiver, to) = socket("127.0.0.1:0");
    let (sender, from) = socket("127.0.0.1:0");
    sender.connect(to).unwrap();
    let message = Message { to: None, pieces: 0..1, segment: None };

    let sent = Outbox::new(2)
        .send(&sender, b"xy", &vec![message; 2], &[Piece { start: 0, length: 2 }])
        .unwrap();

    assert_eq!(sent, 2);
    assert_eq!(receiver.recv_from(&mut [0; 4]).unwrap(), (2, from));
}

#[test]
fn an_outbox_sends_as_many_as_it_has_room_for() {
    let (_receiver, to) = socket("127.0.0.1:0");
    let (sender, _) = socket("127.0.0.1:0");
    let message = Message { to: Some(to), pieces: 0..1, segment: None };

    let sent = Outbox::new(2)
        .send(&sender, b"x", &vec![message; 5], &[Piece { start: 0, length: 1 }])
        .unwrap();

    assert_eq!(sent, 2);
}

#[test]
fn a_run_is_split_for_one_receiver_and_stays_merged_for_another() {
    let (merging, merging_at) = socket("127.0.0.1:0");
    let (single, single_at) = socket("127.0.0.1:0");
    let (sender, _) = socket("127.0.0.1:0");
    setsockopt(&merging, sockopt::UdpGroSegment, &true).unwrap();
    let memory: Vec<u8> = (0..=250).collect();
    // Every tenth octet is left out, as a header would be; the last datagram is shorter.
    let pieces: Vec<_> = [0, 10, 20]
        .map(|start| Piece { start: start + 1, length: if start == 20 { 4 } else { 9 } })
        .into();
    let run = |to| Message { to: Some(to), pieces: 0..3, segment: Some(9) };
    let whole: Vec<u8> = (1..10).chain(11..20).chain(21..25).collect();

    let sent =
        Outbox::new(8).send(&sender, &memory, &[run(merging_at), run(single_at)], &pieces).unwrap();
    let merged = receive(&mut Inbox::new(LAYOUT), &merging, 1);
    let singles = receive(&mut Inbox::new(LAYOUT), &single, 3);

    assert_eq!(sent, 2);
    assert_eq!((merged[0].0.segment, &merged[0].1), (9, &whole));
    assert_eq!(singles.iter().map(|(_, octets)| octets.len()).collect::<Vec<_>>(), [9, 9, 4]);
    assert_eq!(singles.into_iter().flat_map(|(_, octets)| octets).collect::<Vec<_>>(), whole);
}

#[test]
#[should_panic(expected = "out of range")]
fn a_piece_outside_of_the_memory_is_never_sent() {
    let (sender, to) = socket("127.0.0.1:0");
    let message = Message { to: Some(to), pieces: 0..1, segment: None };

    drop(Outbox::new(1).send(&sender, b"abc", &[message], &[Piece { start: 2, length: 2 }]));
}
