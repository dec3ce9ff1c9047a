//! CreatePermission, and whom a client may reach (RFC 8656 §9, §10, §21; our peer policy).

use std::net::{IpAddr, SocketAddr};

use crate::conformance::case::{Case, Outcome, expect_equal};
use crate::conformance::client::{
    allocate_request, bind_request, permission_request, refresh_request,
};
use crate::conformance::setting::{
    FRUGAL_PER_ALLOCATION, LAN1, LAN1_V6, LAN2, LAN2_V6, NAT, Place, Server, Stage,
};
use crate::conformance::stun::{
    CREATE_PERMISSION, Packet, REQUESTED_ADDRESS_FAMILY, XOR_PEER_ADDRESS,
};

pub(super) const CASES: &[Case] = &[
    Case::new("a_permission_opens_the_way_to_its_peer", "RFC 8656 §10", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[peer.address])?;
        client.send_to(peer.address, b"hello")?;
        peer.expect(b"hello").map(drop)
    }),
    Case::new("without_a_permission_nothing_goes_out", "RFC 8656 §11.2", |stage| {
        let (first, second) = (stage.peer(Place::Media)?, stage.peer(Place::SecondMedia)?);
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[second.address])?;
        client.send_to(first.address, b"closed")?;
        client.send_to(second.address, b"open")?;
        second.expect(b"open")?;
        first.hears_nothing()
    }),
    Case::new("without_a_permission_nothing_comes_in", "RFC 8656 §11.3", |stage| {
        let (first, second) = (stage.peer(Place::Media)?, stage.peer(Place::SecondMedia)?);
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[second.address])?;
        client.send_to(second.address, b"who is there")?;
        let relay = second.expect(b"who is there")?;
        first.send(relay, b"stranger")?;
        second.send(relay, b"friend")?;
        client.expect_data(second.address, b"friend")?;
        client.hears_nothing()
    }),
    Case::new("a_permission_is_for_every_port_of_its_address", "RFC 8656 §9", |stage| {
        let (first, second) = (stage.peer(Place::Media)?, stage.peer(Place::Media)?);
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[first.address])?;
        client.send_to(second.address, b"another port")?;
        let relay = second.expect(b"another port")?;
        second.send(relay, b"back")?;
        client.expect_data(second.address, b"back")
    }),
    Case::new("one_request_installs_several_permissions", "RFC 8656 §10.1", |stage| {
        let (first, second) = (stage.peer(Place::Media)?, stage.peer(Place::SecondMedia)?);
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[first.address, second.address])?;
        client.send_to(first.address, b"one")?;
        client.send_to(second.address, b"two")?;
        first.expect(b"one")?;
        second.expect(b"two").map(drop)
    }),
    Case::new("a_permission_may_be_installed_again", "RFC 8656 §10.2", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[peer.address])?;
        client.permit(&[peer.address])?;
        client.permit(&[peer.address, peer.address])
    }),
    Case::new("create_permission_without_a_peer_gets_400", "RFC 8656 §10.2", |stage| {
        stage.guest()?.allocated()?.refused(permission_request(&[]), 400).map(drop)
    }),
    Case::new("create_permission_with_a_malformed_peer_gets_400", "RFC 8656 §10.2", |stage| {
        let request = Packet::new(CREATE_PERMISSION).with(XOR_PEER_ADDRESS, &[0, 1, 2, 3]);
        stage.guest()?.allocated()?.refused(request, 400).map(drop)
    }),
    Case::new("create_permission_without_allocation_gets_437", "RFC 8656 §5", |stage| {
        let request = permission_request(&[at(Place::Media.ip())]);
        stage.guest()?.challenged()?.refused(request, 437).map(drop)
    }),
    Case::new("an_ipv6_peer_of_an_ipv4_allocation_gets_443", "RFC 8656 §10.2", |stage| {
        let request = permission_request(&[at(Place::MediaV6.ip())]);
        stage.guest()?.allocated()?.refused(request, 443).map(drop)
    }),
    Case::new("an_ipv4_peer_of_an_ipv6_allocation_gets_443", "RFC 8656 §10.2", |stage| {
        let v6 = allocate_request().number(REQUESTED_ADDRESS_FAMILY, 2 << 24);
        let request = permission_request(&[at(Place::Media.ip())]);
        stage.guest()?.allocated_with(v6)?.refused(request, 443).map(drop)
    }),
    Case::new("one_forbidden_peer_refuses_the_whole_request", "policy: peers", |stage| {
        let peer = stage.peer(Place::Media)?;
        let other = stage.peer(Place::SecondMedia)?;
        let mut client = stage.guest()?.allocated()?;
        let forbidden = at("127.0.0.1".parse()?);
        client.refused(permission_request(&[peer.address, forbidden]), 403)?;
        client.permit(&[other.address])?;
        client.send_to(peer.address, b"refused with it")?;
        client.send_to(other.address, b"mark")?;
        other.expect(b"mark")?;
        peer.hears_nothing()
    }),
    Case::new("loopback_gets_403", "RFC 8656 §21.1.5, policy", |s| forbidden(s, "127.0.0.1")),
    Case::new("loopback_of_another_octet_gets_403", "policy: peers", |s| forbidden(s, "127.8.8.8")),
    Case::new("this_network_gets_403", "policy: peers", |s| forbidden(s, "0.0.0.0")),
    Case::new("link_local_gets_403", "policy: peers", |s| forbidden(s, "169.254.1.1")),
    Case::new("the_metadata_address_gets_403", "policy: peers", |s| {
        forbidden(s, "169.254.169.254")
    }),
    Case::new("a_group_gets_403", "policy: peers", |s| forbidden(s, "224.0.0.251")),
    Case::new("broadcast_gets_403", "policy: peers", |s| forbidden(s, "255.255.255.255")),
    Case::new("an_undeclared_inside_host_gets_403", "policy: peers", |s| {
        forbidden(s, "172.16.85.190")
    }),
    Case::new("an_undeclared_outside_host_gets_403", "policy: peers", |s| {
        forbidden(s, "10.88.246.30")
    }),
    Case::new("a_global_address_gets_403_for_a_guest", "policy: peers", |s| {
        forbidden(s, "11.0.0.20")
    }),
    Case::new("ipv6_loopback_gets_403", "policy: peers", |s| forbidden(s, "::1")),
    Case::new("ipv6_unspecified_gets_403", "policy: peers", |s| forbidden(s, "::")),
    Case::new("ipv6_link_local_gets_403", "policy: peers", |s| forbidden(s, "fe80::1")),
    Case::new("an_ipv6_group_gets_403", "policy: peers", |s| forbidden(s, "ff02::1")),
    Case::new("an_undeclared_unique_local_address_gets_403", "policy: peers", |s| {
        forbidden(s, "fd00:85::190")
    }),
    Case::new("loopback_mapped_into_ipv6_gets_403", "policy: peers", |s| {
        forbidden(s, "::ffff:127.0.0.1")
    }),
    Case::new("a_declared_peer_mapped_into_ipv6_gets_403", "policy: peers", |s| {
        forbidden(s, "::ffff:172.16.85.180")
    }),
    Case::new("loopback_as_an_ipv4_compatible_address_gets_403", "policy: peers", |s| {
        forbidden(s, "::127.0.0.1")
    }),
    Case::new("loopback_through_6to4_gets_403", "policy: peers", |s| forbidden(s, "2002:7f00:1::")),
    Case::new("metadata_through_nat64_gets_403", "policy: peers", |s| {
        forbidden(s, "64:ff9b::169.254.169.254")
    }),
    Case::new("an_inside_host_through_nat64_gets_403", "policy: peers", |s| {
        forbidden(s, "64:ff9b::172.16.85.190")
    }),
    Case::new("loopback_through_teredo_gets_403", "policy: peers", |s| {
        forbidden(s, "2001:0:4136:e378:8000:63bf:80ff:fffe")
    }),
    Case::new("an_ipv6_own_address_without_relays_gets_no_way", "policy: peers", |stage| {
        listener_is_closed(stage, LAN1_V6)
    }),
    Case::new("the_listener_at_the_static_nat_address_is_no_peer", "policy: peers", |stage| {
        listener_is_closed(stage, NAT)
    }),
    Case::new("the_listener_of_lan2_is_no_peer", "policy: peers", |stage| {
        listener_is_closed(stage, LAN2)
    }),
    Case::new("the_listener_of_lan1_is_no_peer", "policy: peers", |stage| {
        listener_is_closed(stage, LAN1)
    }),
    Case::new("the_ipv6_listener_of_lan2_is_no_peer", "policy: peers", |stage| {
        listener_is_closed(stage, LAN2_V6)
    }),
    Case::new(
        "the_static_nat_address_itself_may_be_permitted",
        "policy: relay to relay",
        |stage| stage.guest()?.allocated()?.permit(&[at(NAT)]),
    ),
    Case::new("a_declared_outside_peer_may_be_permitted", "policy: peers", |stage| {
        stage.guest()?.allocated()?.permit(&[at(Place::OuterMedia.ip())])
    }),
    Case::new("a_declared_ipv6_peer_may_be_permitted", "policy: peers", |stage| {
        let v6 = allocate_request().number(REQUESTED_ADDRESS_FAMILY, 2 << 24);
        let mut client = stage.guest()?.allocated_with(v6)?;
        client.permit(&[at(Place::MediaV6.ip()), at(Place::OuterMediaV6.ip())])
    }),
    Case::new("a_global_address_may_be_permitted_for_an_inside_client", "policy: peers", |stage| {
        let peer = stage.peer(Place::Global)?;
        let mut client = stage.colleague()?.allocated()?;
        client.permit(&[peer.address])?;
        client.send_to(peer.address, b"out")?;
        peer.expect(b"out").map(drop)
    }),
    Case::new(
        "an_undeclared_private_host_gets_403_for_an_inside_client",
        "policy: peers",
        |stage| {
            let mut client = stage.colleague()?.allocated()?;
            client.refused(permission_request(&[at("10.88.246.30".parse()?)]), 403)?;
            client.refused(permission_request(&[at("172.16.85.191".parse()?)]), 403)?;
            client.refused(permission_request(&[at("127.0.0.1".parse()?)]), 403).map(drop)
        },
    ),
    Case::new("channel_bind_to_a_port_below_1024_gets_403", "policy: peers", |stage| {
        let peer = SocketAddr::new(Place::Media.ip(), 53);
        stage.guest()?.allocated()?.refused(bind_request(0x4000, peer), 403).map(drop)
    }),
    Case::new("a_send_to_a_port_below_1024_is_dropped", "policy: peers", |stage| {
        let low = stage.peer_at(Place::Media, 1_000)?;
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[peer.address])?;
        client.send_to(low.address, b"low")?;
        client.send_to(peer.address, b"high")?;
        peer.expect(b"high")?;
        low.hears_nothing()
    }),
    Case::new("permissions_beyond_the_quota_get_508", "RFC 8656 §10.2", |stage| {
        // Own relays, declared peers: more than the quota has room for.
        let peers = ["172.16.85.180", "172.16.85.181", "10.88.246.20", "10.88.246.156"];
        let mut client = stage.guest()?.allocated()?;
        expect_equal("quota", FRUGAL_PER_ALLOCATION, peers.len() - 1)?;
        let refused = peers.map(|peer| peer.parse().map(at));
        for peer in &refused[..FRUGAL_PER_ALLOCATION] {
            client.permit(&[peer.clone()?])?;
        }
        client.refused(permission_request(&[refused[3].clone()?]), 508)?;
        client.permit(&[refused[0].clone()?])?;
        client.succeed(refresh_request(0)).map(drop)
    })
    .on(Server::Frugal),
    Case::new("permissions_end_with_the_allocation", "RFC 8656 §9", |stage| {
        let peer = stage.peer(Place::Media)?;
        let other = stage.peer(Place::SecondMedia)?;
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[peer.address])?;
        client.succeed(refresh_request(0))?;
        let mut client = client.allocated()?;
        client.permit(&[other.address])?;
        client.send_to(peer.address, b"of the last allocation")?;
        client.send_to(other.address, b"mark")?;
        other.expect(b"mark")?;
        peer.hears_nothing()
    }),
];

fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 40_000)
}

/// CreatePermission and ChannelBind for that address get 403.
fn forbidden(stage: &Stage<'_>, address: &str) -> Outcome {
    let peer = at(address.parse()?);
    let family = if peer.is_ipv4() { 1 << 24 } else { 2 << 24 };
    let request = allocate_request().number(REQUESTED_ADDRESS_FAMILY, family);
    let mut client = stage.guest()?.allocated_with(request)?;
    client.refused(permission_request(&[peer]), 403)?;
    client.refused(bind_request(0x4001, peer), 403).map(drop)
}

/// A relay never reaches the server's own TURN port: neither by channel nor by Send.
fn listener_is_closed(stage: &Stage<'_>, ip: IpAddr) -> Outcome {
    let listener = SocketAddr::new(ip, stage.server.port());
    let family = if ip.is_ipv4() { 1 << 24 } else { 2 << 24 };
    let request = allocate_request().number(REQUESTED_ADDRESS_FAMILY, family);
    let mut client = stage.guest()?.allocated_with(request)?;
    client.refused(bind_request(0x4000, listener), 403)?;
    // The address may be permitted for its relays' sake.
    client.request(permission_request(&[listener]))?;
    let question = Packet::new(crate::conformance::stun::BINDING);
    client.send_to(listener, question.bytes())?;
    client.hears_nothing()
}
