//! Which peers a client may name: permissions, channels and the policy behind them.

use std::net::SocketAddr;
use std::time::Duration;

use postern_turn::stun::{AttributeType, Method};
use postern_turn::{Quotas, Settings, Side};

use crate::lab::{
    LAN1, LAN2, Lab, MEDIA_SERVER, NAT, OUTSIDE_PEER, at, guest, insider, settings, to_peer,
};

#[test]
fn a_guest_may_name_declared_servers_and_own_relays_only() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));

    for (peer, code) in [
        ("198.51.100.180", 0),
        (NAT, 0),
        (LAN1, 0),
        (LAN2, 0),
        // Undeclared inside, outside, the Internet, the box itself.
        ("198.51.100.1", 403),
        ("203.0.113.77", 403),
        ("9.9.9.9", 403),
        ("192.0.2.62", 403),
        ("127.0.0.1", 403),
        ("169.254.169.254", 403),
        ("0.0.0.0", 403),
        ("224.0.0.1", 403),
        ("255.255.255.255", 403),
        ("2001:db8:9::1", 443),
        ("::ffff:198.51.100.180", 443),
    ] {
        assert_eq!(lab.permit(guest(1), &login, &[peer]).code(), code, "{peer}");
    }
}

#[test]
fn an_insider_may_also_name_the_world_but_no_undeclared_inside_host() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(insider(1));

    for (peer, code) in [
        ("198.51.100.180", 0),
        ("203.0.113.77", 0),
        ("9.9.9.9", 0),
        (NAT, 0),
        ("198.51.100.1", 403),
        ("10.0.0.1", 403),
        ("192.0.2.62", 403),
        ("127.0.0.1", 403),
    ] {
        assert_eq!(lab.permit(insider(1), &login, &[peer]).code(), code, "{peer}");
    }
}

#[test]
fn ipv6_disguises_of_ipv4_addresses_are_refused() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));
    let request =
        lab.begin_allocate().attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    assert_eq!(lab.ask(guest(1), &login, request).code(), 0);

    for peer in [
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:198.51.100.180",
        "64:ff9b::7f00:1",
        "64:ff9b::c633:64b4",
        "2002:7f00:1::1",
        "2002:c633:64b4::1",
        "2001:0:4136:e378:8000:63bf:39cc:9b4b",
        "fe80::1",
        "ff02::1",
    ] {
        assert_eq!(lab.permit(guest(1), &login, &[peer]).code(), 403, "{peer}");
    }
}

#[test]
fn one_forbidden_address_refuses_a_whole_create_permission() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));

    let reply = lab.permit(guest(1), &login, &["198.51.100.180", "198.51.100.1"]);

    assert_eq!(reply.code(), 403);
    assert_eq!(lab.indicate(guest(1), at(MEDIA_SERVER), b"x"), None);
    assert_eq!(lab.server.counters().no_permission, 1);
    assert_eq!(lab.server.counters().forbidden, 1);
}

#[test]
fn create_permission_without_a_peer_gives_400() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));

    assert_eq!(lab.permit(guest(1), &login, &[]).code(), 400);
}

#[test]
fn ports_below_1024_are_refused_at_channel_bind_and_dropped_at_send() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(guest(1));
    lab.permit(guest(1), &login, &["198.51.100.180"]);

    assert_eq!(lab.bind(guest(1), &login, 0x4000, at("198.51.100.180:1023")).code(), 403);
    assert_eq!(lab.bind(guest(1), &login, 0x4000, at("198.51.100.180:1024")).code(), 0);
    assert_eq!(lab.indicate(guest(1), at("198.51.100.180:53"), b"x"), None);

    assert_eq!(lab.server.counters().privileged_port, 1);
    let sent = lab.indicate(guest(1), at("198.51.100.180:1024"), b"x").unwrap();
    assert_eq!(sent, (to_peer(relayed, Side::Inside, "198.51.100.180:1024"), b"x".to_vec()));
}

#[test]
fn own_addresses_take_channels_to_relay_ports_only() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));

    for own in [NAT, LAN1, LAN2] {
        for port in [3478, 1024, 23999, 24032, 65535] {
            let peer = at(&format!("{own}:{port}"));
            assert_eq!(lab.bind(guest(1), &login, 0x4000, peer).code(), 403, "{peer}");
        }
    }
    assert_eq!(lab.bind(guest(1), &login, 0x4000, at(&format!("{NAT}:24000"))).code(), 0);
}

#[test]
fn channel_numbers_and_peers_pair_up_once() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(insider(1));
    let mut bind = |number, peer: &str| lab.bind(insider(1), &login, number, at(peer)).code();

    assert_eq!(bind(0x3FFF, OUTSIDE_PEER), 400);
    assert_eq!(bind(0x8000, OUTSIDE_PEER), 400);
    assert_eq!(bind(0x4000, OUTSIDE_PEER), 0);
    assert_eq!(bind(0x4000, OUTSIDE_PEER), 0);
    assert_eq!(bind(0x4000, "203.0.113.77:5001"), 400);
    assert_eq!(bind(0x4001, OUTSIDE_PEER), 400);
    assert_eq!(bind(0x4FFF, "203.0.113.77:5001"), 0);
    // RFC 5766 allows it.
    assert_eq!(bind(0x7FFF, "203.0.113.77:5002"), 0);
}

#[test]
fn permissions_last_five_minutes_and_channels_ten() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(guest(1));
    lab.refresh(guest(1), &login, 3600);
    lab.bind(guest(1), &login, 0x4000, at(MEDIA_SERVER));
    let arrives =
        |lab: &mut Lab| lab.arrive(relayed.port(), Side::Inside, at(MEDIA_SERVER), b"x").is_some();

    lab.pass(Duration::from_secs(299));
    assert!(arrives(&mut lab));
    lab.pass(Duration::from_secs(1));
    assert!(!arrives(&mut lab));
    assert!(lab.channel(guest(1), 0x4000, b"x").is_some());
    lab.permit(guest(1), &login, &["198.51.100.180"]);
    assert!(arrives(&mut lab));
    lab.pass(Duration::from_secs(300));
    assert!(lab.channel(guest(1), 0x4000, b"x").is_none());
}

#[test]
fn permissions_and_channels_of_one_allocation_are_bounded() {
    let quotas = Quotas { per_allocation: 2, ..Quotas::default() };
    let mut lab = Lab::with(Settings { quotas, ..settings() });
    let (login, _) = lab.allocate(insider(1));

    let two = ["203.0.113.1", "203.0.113.2"];
    assert_eq!(lab.permit(insider(1), &login, &two).code(), 0);
    assert_eq!(lab.permit(insider(1), &login, &two).code(), 0);
    assert_eq!(lab.permit(insider(1), &login, &["203.0.113.3"]).code(), 508);
    assert_eq!(lab.bind(insider(1), &login, 0x4000, at("203.0.113.1:2000")).code(), 0);
    assert_eq!(lab.bind(insider(1), &login, 0x4001, at("203.0.113.1:2001")).code(), 0);
    assert_eq!(lab.bind(insider(1), &login, 0x4002, at("203.0.113.1:2002")).code(), 508);
}

#[test]
fn more_peers_than_an_allocation_may_have_are_refused_before_all_are_looked_at() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(insider(1));
    let mut request = lab.begin(Method::CREATE_PERMISSION);
    for peer in 0..5_000_u16 {
        let [high, low] = peer.to_be_bytes();
        let peer = SocketAddr::from(([9, 9, high, low], 0));
        request = request.xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
    }
    let forbidden = at("127.0.0.1:0");
    request = request.xor_address(AttributeType::XOR_PEER_ADDRESS, forbidden);

    assert_eq!(lab.ask(insider(1), &login, request).code(), 508);

    assert_eq!(lab.indicate(insider(1), at("9.9.0.0:5000"), b"x"), None);
}
