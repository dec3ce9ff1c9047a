//! The data path: faces, sides and relay to relay inside the process.

use std::time::Duration;

use postern_turn::stun::{AttributeType, Class, Method, Writer};
use postern_turn::{Destination, Settings, Side};

use crate::lab::{
    LAN1, LAN2, Lab, MEDIA_SERVER, NAT, OUTSIDE_PEER, at, channel_data, data_indication, guest,
    insider, ip, settings, to_peer, wire,
};

#[test]
fn send_and_data_indications_carry_packets_of_every_length_both_ways() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(guest(1));
    lab.permit(guest(1), &login, &["198.51.100.180"]);

    for length in [0, 1, 2, 3, 4, 1200] {
        let data = vec![0xA5; length];

        let sent = lab.indicate(guest(1), at(MEDIA_SERVER), &data).unwrap();
        let (to, bytes) =
            lab.arrive(relayed.port(), Side::Inside, at(MEDIA_SERVER), &data).unwrap();

        assert_eq!(sent, (to_peer(relayed, Side::Inside, MEDIA_SERVER), data.clone()));
        assert_eq!(to, Destination::Client(guest(1)));
        assert_eq!(data_indication(&bytes), (at(MEDIA_SERVER), data));
    }
    assert_eq!(lab.server.counters().relayed_packets, 12);
    assert_eq!(lab.server.counters().relayed_octets, 2 * 1210);
}

#[test]
fn channels_carry_packets_both_ways() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(insider(1));
    lab.bind(insider(1), &login, 0x4001, at(OUTSIDE_PEER));

    let sent = lab.channel(insider(1), 0x4001, b"hello").unwrap();
    let (to, bytes) = lab.arrive(relayed.port(), Side::Outside, at(OUTSIDE_PEER), b"hi").unwrap();

    assert_eq!(sent, (to_peer(relayed, Side::Outside, OUTSIDE_PEER), b"hello".to_vec()));
    assert_eq!(to, Destination::Client(insider(1)));
    assert_eq!(bytes, channel_data(0x4001, b"hi"));
}

#[test]
fn the_side_of_a_peer_is_that_of_the_longest_route() {
    let allow = vec!["198.51.100.0/24".parse().unwrap()];
    let mut lab = Lab::with(Settings { allow, ..settings() });
    let (login, relayed) = lab.allocate(guest(1));
    lab.permit(guest(1), &login, &["198.51.100.191", "198.51.100.192"]);

    for (peer, side) in
        [("198.51.100.191:2000", Side::Inside), ("198.51.100.192:2000", Side::Outside)]
    {
        let (to, _) = lab.indicate(guest(1), at(peer), b"x").unwrap();
        assert_eq!(to, to_peer(relayed, side, peer));
    }
}

#[test]
fn a_peer_counts_on_its_own_face_only() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(insider(1));
    lab.permit(insider(1), &login, &["198.51.100.180", "203.0.113.77"]);

    for (peer, face, arrives) in [
        (MEDIA_SERVER, Side::Inside, true),
        (MEDIA_SERVER, Side::Outside, false),
        (OUTSIDE_PEER, Side::Inside, false),
        (OUTSIDE_PEER, Side::Outside, true),
    ] {
        let packet = lab.arrive(relayed.port(), face, at(peer), b"x");
        assert_eq!(packet.is_some(), arrives, "{peer} {face:?}");
    }
    assert_eq!(lab.server.counters().wrong_face, 2);
}

#[test]
fn packets_without_permission_channel_or_allocation_are_counted_and_dropped() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(guest(1));
    lab.permit(guest(1), &login, &["198.51.100.180"]);

    assert_eq!(lab.arrive(relayed.port(), Side::Outside, at(OUTSIDE_PEER), b"x"), None);
    assert_eq!(lab.indicate(guest(1), at(OUTSIDE_PEER), b"x"), None);
    assert_eq!(lab.channel(guest(1), 0x4000, b"x"), None);
    assert_eq!(lab.server.counters().no_permission, 3);
    assert_eq!(lab.channel(guest(2), 0x4000, b"x"), None);
    assert_eq!(lab.indicate(guest(2), at(MEDIA_SERVER), b"x"), None);
    assert_eq!(lab.arrive(1, Side::Outside, at(OUTSIDE_PEER), b"x"), None);
    assert_eq!(lab.server.counters().no_allocation, 3);
    assert_eq!(lab.server.counters().relayed_packets, 0);
}

#[test]
fn a_send_indication_with_dont_fragment_leaves_with_that_bit_and_no_other_packet_does() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));
    lab.permit(guest(1), &login, &["198.51.100.180"]);
    let transaction = lab.transaction();
    let datagram = Writer::new(Class::Indication, Method::SEND, transaction)
        .xor_address(AttributeType::XOR_PEER_ADDRESS, at(MEDIA_SERVER))
        .attribute(AttributeType::DONT_FRAGMENT, &[])
        .attribute(AttributeType::DATA, b"x")
        .finish();

    let relayed = lab.server.handle_client(guest(1), &datagram, lab.now).unwrap();
    assert!(relayed.dont_fragment);
    assert_eq!(wire(&relayed, &datagram).1, b"x");

    let plain = Writer::new(Class::Indication, Method::SEND, transaction)
        .xor_address(AttributeType::XOR_PEER_ADDRESS, at(MEDIA_SERVER))
        .attribute(AttributeType::DATA, b"x")
        .finish();
    assert!(!lab.server.handle_client(guest(1), &plain, lab.now).unwrap().dont_fragment);
}

#[test]
fn channel_data_shorter_than_it_says_is_dropped() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));
    lab.bind(guest(1), &login, 0x4000, at(MEDIA_SERVER));
    let mut datagram = channel_data(0x4000, b"hello");
    datagram.pop();

    for datagram in [&datagram[..], &datagram[..3], &datagram[..1]] {
        assert_eq!(lab.server.handle_client(guest(1), datagram, lab.now), None);
    }
    assert_eq!(lab.server.counters().malformed, 3);
}

#[test]
fn relay_to_relay_stays_in_the_process_in_every_form_of_the_address() {
    let mut lab = Lab::new();
    let (a, relay_a) = lab.allocate(guest(1));
    let (b, relay_b) = lab.allocate(insider(1));
    lab.permit(guest(1), &a, &[NAT, LAN1, LAN2]);

    for named in [NAT, LAN1, LAN2] {
        for held in [NAT, LAN1, LAN2] {
            lab.pass(Duration::from_secs(301));
            lab.refresh(guest(1), &a, 3600);
            lab.refresh(insider(1), &b, 3600);
            lab.permit(guest(1), &a, &[NAT, LAN1, LAN2]);
            let target = format!("{named}:{}", relay_b.port());

            let before = lab.indicate(guest(1), at(&target), b"x");
            lab.permit(insider(1), &b, &[held]);
            let (to, bytes) = lab.indicate(guest(1), at(&target), b"hello").unwrap();

            assert_eq!(before, None, "the receiver holds no permission yet");
            assert_eq!(to, Destination::Client(insider(1)));
            let peer = at(&format!("{held}:{}", relay_a.port()));
            assert_eq!(data_indication(&bytes), (peer, b"hello".to_vec()));
        }
    }
    assert_eq!(lab.server.counters().relayed_in_process, 9);
}

#[test]
fn relay_to_relay_shows_the_form_with_a_channel_before_one_with_a_permission() {
    let mut lab = Lab::new();
    let (a, relay_a) = lab.allocate(guest(1));
    let (b, relay_b) = lab.allocate(guest(2));
    lab.permit(guest(2), &b, &[NAT]);
    lab.bind(guest(2), &b, 0x4007, at(&format!("{LAN1}:{}", relay_a.port())));
    lab.bind(guest(1), &a, 0x4000, relay_b);

    let (to, bytes) = lab.channel(guest(1), 0x4000, b"hello").unwrap();

    assert_eq!(to, Destination::Client(guest(2)));
    assert_eq!(bytes, channel_data(0x4007, b"hello"));
}

#[test]
fn relay_to_relay_shows_the_told_form_when_several_are_permitted() {
    let told = Settings { inside_clients_are_told_inside: true, ..settings() };
    let mut lab = Lab::with(told);
    let (a, relay_a) = lab.allocate(insider(1));
    let (b, relay_b) = lab.allocate(guest(2));
    lab.permit(guest(2), &b, &[NAT, LAN1, LAN2]);
    lab.permit(insider(1), &a, &[NAT]);

    let (_, bytes) = lab.indicate(insider(1), relay_b, b"x").unwrap();

    assert_eq!(relay_a.ip(), ip(LAN1));
    assert_eq!(data_indication(&bytes).0, relay_a);
}

#[test]
fn a_channel_whose_permission_is_over_receives_nothing_from_a_relay_either() {
    let mut lab = Lab::new();
    let (a, relay_a) = lab.allocate(guest(1));
    let (b, relay_b) = lab.allocate(guest(2));
    lab.bind(guest(2), &b, 0x4000, relay_a);
    lab.pass(Duration::from_secs(301));
    lab.permit(guest(1), &a, &[NAT]);

    assert_eq!(lab.indicate(guest(1), relay_b, b"x"), None);
    assert_eq!(lab.server.counters().no_permission, 1);
}

#[test]
fn an_own_address_without_live_allocation_never_reaches_the_kernel() {
    let mut lab = Lab::new();
    let (a, relay_a) = lab.allocate(guest(1));
    let (b, relay_b) = lab.allocate(guest(2));
    lab.permit(guest(1), &a, &[NAT, LAN1, LAN2]);
    lab.permit(guest(2), &b, &[NAT, LAN1, LAN2]);
    lab.bind(guest(1), &a, 0x4000, relay_b);
    lab.refresh(guest(2), &b, 0);

    assert_eq!(lab.channel(guest(1), 0x4000, b"x"), None);
    for own in [NAT, LAN1, LAN2] {
        for port in [3478, relay_b.port(), 65535] {
            assert_eq!(lab.indicate(guest(1), at(&format!("{own}:{port}")), b"x"), None);
        }
    }

    assert_eq!(lab.server.counters().dead_own_address, 10);
    assert_ne!(relay_a.port(), relay_b.port());
}

#[test]
fn a_network_packet_from_one_of_our_own_addresses_is_dropped() {
    let mut lab = Lab::new();
    let (a, relay_a) = lab.allocate(guest(1));
    let (_, relay_b) = lab.allocate(guest(2));
    lab.permit(guest(1), &a, &[NAT, LAN1, LAN2]);

    for own in [NAT, LAN1, LAN2] {
        for face in [Side::Inside, Side::Outside] {
            let from = at(&format!("{own}:{}", relay_b.port()));
            assert_eq!(lab.arrive(relay_a.port(), face, from, b"x"), None, "{own}");
        }
    }
    assert_eq!(lab.server.counters().denied, 6);
}

#[test]
fn without_an_inside_face_no_inside_peer_is_reached() {
    let mut lab = Lab::with(Settings { inside: Vec::new(), ..settings() });
    let (login, relayed) = lab.allocate(guest(1));

    assert_eq!(lab.last_opened.len(), 1);
    assert_eq!(lab.permit(guest(1), &login, &["198.51.100.180"]).code(), 403);
    assert_eq!(lab.permit(guest(1), &login, &[LAN1]).code(), 403);
    assert_eq!(lab.permit(guest(1), &login, &[NAT]).code(), 0);
    assert_eq!(relayed.ip(), ip(NAT));
}
