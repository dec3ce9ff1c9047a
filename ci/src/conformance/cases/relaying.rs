//! Send and Data indications, the two faces, and relay to relay (RFC 8656 §11; policy).

use std::net::{IpAddr, SocketAddr};

use crate::conformance::case::{Case, Outcome, expect, expect_equal};
use crate::conformance::client::{Client, allocate_request, permission_request, send_indication};
use crate::conformance::peer::Peer;
use crate::conformance::setting::{LAN1, LAN1_V6, LAN2, LAN2_V6, NAT, Place, Server, Stage};
use crate::conformance::stun::{
    ADDITIONAL_ADDRESS_FAMILY, DATA, DATA_METHOD, DONT_FRAGMENT, ICMP, INDICATION, Packet,
    REQUESTED_ADDRESS_FAMILY, SEND, XOR_PEER_ADDRESS,
};

const IPV6: u32 = 2 << 24;

pub(super) const CASES: &[Case] = &[
    Case::new("indications_carry_data_both_ways", "RFC 8656 §11", |stage| {
        let (mut client, peer, relay) = connected(stage, Place::Guest, Place::Media)?;
        peer.send(relay, b"to the client")?;
        client.expect_data(peer.address, b"to the client")
    }),
    Case::new("indications_carry_data_of_every_length", "RFC 8656 §11", |stage| {
        let (mut client, peer, relay) = connected(stage, Place::Guest, Place::Media)?;
        for length in [1_usize, 2, 3, 4, 5, 100, 1_200, 1_400] {
            let data = vec![0x3C; length];
            client.send_to(peer.address, &data)?;
            peer.expect(&data)?;
            peer.send(relay, &data)?;
            client.expect_data(peer.address, &data)?;
        }
        Ok(())
    }),
    Case::new(
        "a_send_indication_with_empty_data_becomes_an_empty_datagram",
        "RFC 8656 §11.1",
        |stage| {
            let (mut client, peer, _) = connected(stage, Place::Guest, Place::Media)?;
            client.send_to(peer.address, b"")?;
            peer.expect(b"").map(drop)
        },
    ),
    Case::new("an_empty_datagram_becomes_an_empty_data_indication", "RFC 8656 §11.3", |stage| {
        let (mut client, peer, relay) = connected(stage, Place::Guest, Place::Media)?;
        peer.send(relay, b"")?;
        client.expect_data(peer.address, b"")
    }),
    Case::new("a_send_indication_without_data_is_dropped", "RFC 8656 §11.2", |stage| {
        send_dropped(stage, |peer| Packet::new(SEND | INDICATION).address(XOR_PEER_ADDRESS, peer))
    }),
    Case::new("a_send_indication_without_peer_is_dropped", "RFC 8656 §11.2", |stage| {
        send_dropped(stage, |_| Packet::new(SEND | INDICATION).with(DATA, b"to nobody"))
    }),
    Case::new("a_send_request_is_not_relayed", "RFC 8656 §11.2", |stage| {
        let (mut client, peer, _) = connected(stage, Place::Guest, Place::Media)?;
        let request = Packet::new(SEND).address(XOR_PEER_ADDRESS, peer.address).with(DATA, b"no");
        client.send(request.bytes())?;
        client.send_to(peer.address, b"mark")?;
        peer.expect(b"mark").map(drop)
    }),
    Case::new("a_data_indication_from_a_client_is_dropped", "RFC 8656 §11.4", |stage| {
        send_dropped(stage, |peer| {
            let packet = Packet::new(DATA_METHOD | INDICATION);
            packet.address(XOR_PEER_ADDRESS, peer).with(DATA, b"no")
        })
    }),
    Case::new("a_send_indication_without_allocation_is_dropped", "RFC 8656 §11.2", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?;
        client.ignored(send_indication(peer.address, b"no").bytes())?;
        peer.hears_nothing()
    }),
    Case::new("a_signed_send_indication_gets_no_answer", "RFC 8656 §11.1", |stage| {
        let (mut client, peer, _) = connected(stage, Place::Guest, Place::Media)?;
        let signed = client.sign(send_indication(peer.address, b"signed"));
        client.send(signed.fingerprint().bytes())?;
        // Whether it is relayed is left open.
        client.hears_nothing()
    }),
    Case::new("padding_of_data_is_not_relayed", "RFC 8489 §14", |stage| {
        let (mut client, peer, _) = connected(stage, Place::Guest, Place::Media)?;
        let packet = Packet::new(SEND | INDICATION)
            .address(XOR_PEER_ADDRESS, peer.address)
            .padded(DATA, b"five!", 0xEE);
        client.send(packet.bytes())?;
        peer.expect(b"five!").map(drop)
    }),
    Case::new("data_may_come_before_the_peer", "RFC 8489 §14", |stage| {
        let (mut client, peer, _) = connected(stage, Place::Guest, Place::Media)?;
        let packet = Packet::new(SEND | INDICATION)
            .with(DATA, b"first")
            .address(XOR_PEER_ADDRESS, peer.address);
        client.send(packet.bytes())?;
        peer.expect(b"first").map(drop)
    }),
    Case::new("a_send_indication_with_dont_fragment_is_relayed", "RFC 8656 §15", |stage| {
        let (mut client, peer, _) = connected(stage, Place::Guest, Place::Media)?;
        let packet = send_indication(peer.address, b"in one piece").with(DONT_FRAGMENT, &[]);
        client.send(packet.bytes())?;
        peer.expect(b"in one piece").map(drop)
    }),
    Case::new("an_inside_peer_sees_lan1", "policy: two faces (Q51)", |stage| {
        face(stage, Place::Guest, Place::Media, LAN1)
    }),
    Case::new("an_outside_peer_sees_the_static_nat_address", "policy: two faces (Q51)", |stage| {
        face(stage, Place::Guest, Place::OuterMedia, NAT)
    }),
    Case::new("an_inside_clients_inside_peer_sees_lan1", "policy: two faces (Q51)", |stage| {
        face(stage, Place::Colleague, Place::Media, LAN1)
    }),
    Case::new(
        "an_inside_clients_outside_peer_sees_the_static_nat_address",
        "policy: two faces (Q51)",
        |stage| face(stage, Place::Colleague, Place::OuterMedia, NAT),
    ),
    Case::new("an_inside_ipv6_peer_sees_lan1", "policy: two faces (Q51)", |stage| {
        face(stage, Place::GuestV6, Place::MediaV6, LAN1_V6)
    }),
    Case::new("an_outside_ipv6_peer_sees_lan2", "policy: two faces (Q51)", |stage| {
        face(stage, Place::Guest, Place::OuterMediaV6, LAN2_V6)
    }),
    Case::new("both_faces_have_the_port_that_is_told", "policy: two faces", |stage| {
        let (inner, outer) = (stage.peer(Place::Media)?, stage.peer(Place::OuterMedia)?);
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[inner.address, outer.address])?;
        client.send_to(inner.address, b"in")?;
        client.send_to(outer.address, b"out")?;
        let port = client.relayed()?.port();
        expect_equal("port inside", port, inner.expect(b"in")?.port())?;
        expect_equal("port outside", port, outer.expect(b"out")?.port())
    }),
    Case::new(
        "a_datagram_from_an_inside_peer_at_the_outside_face_is_dropped",
        "policy: two faces",
        |stage| {
            let (mut client, peer, relay) = connected(stage, Place::Guest, Place::Media)?;
            peer.send(SocketAddr::new(LAN2, relay.port()), b"wrong face")?;
            peer.send(relay, b"right face")?;
            client.expect_data(peer.address, b"right face")?;
            client.hears_nothing()
        },
    ),
    Case::new(
        "a_datagram_with_our_own_address_as_source_is_dropped",
        "policy: two faces",
        |stage| {
            let impostor = stage.peer(Place::Impostor)?;
            let (mut client, peer, relay) = connected(stage, Place::Guest, Place::Media)?;
            client.permit(&[impostor.address])?;
            impostor.send(relay, b"I am your relay")?;
            peer.send(relay, b"mark")?;
            client.expect_data(peer.address, b"mark")?;
            client.hears_nothing()
        },
    ),
    Case::new("a_spoofed_relay_of_another_client_is_dropped", "policy: two faces", |stage| {
        let other = stage.guest()?.allocated()?.relayed()?;
        let impostor = stage.peer_at(Place::Impostor, other.port())?;
        let (mut client, peer, relay) = connected(stage, Place::Guest, Place::Media)?;
        client.permit(&[other])?;
        impostor.send(relay, b"I am the other client")?;
        peer.send(relay, b"mark")?;
        client.expect_data(peer.address, b"mark")?;
        client.hears_nothing()
    }),
    Case::new("relay_to_relay_by_the_static_nat_address", "policy: relay to relay", |stage| {
        between(stage, [Place::Guest, Place::Guest], NAT)
    }),
    Case::new("relay_to_relay_by_lan1", "policy: relay to relay", |stage| {
        between(stage, [Place::Guest, Place::Colleague], LAN1)
    }),
    Case::new("relay_to_relay_by_lan2", "policy: relay to relay", |stage| {
        between(stage, [Place::Guest, Place::Guest], LAN2)
    }),
    Case::new("relay_to_relay_from_inside_to_outside", "policy: relay to relay", |stage| {
        between(stage, [Place::Colleague, Place::Guest], NAT)
    }),
    Case::new("relay_to_relay_with_ipv6", "policy: relay to relay", |stage| {
        let v6 = || allocate_request().number(REQUESTED_ADDRESS_FAMILY, IPV6);
        let mut first = stage.client(Place::GuestV6)?.allocated_with(v6())?;
        let mut second = stage.client(Place::ColleagueV6)?.allocated_with(v6())?;
        exchange(&mut first, &mut second)
    }),
    Case::new("relay_to_relay_through_channels", "policy: relay to relay", |stage| {
        let mut first = stage.guest()?.allocated()?;
        let mut second = stage.colleague()?.allocated()?;
        first.bind(0x4000, second.relayed()?)?;
        second.bind(0x4010, first.relayed()?)?;
        for length in [1_usize, 5, 1_200] {
            let data = vec![7; length];
            first.send_channel(0x4000, &data)?;
            second.expect_channel(0x4010, &data)?;
            second.send_channel(0x4010, &data)?;
            first.expect_channel(0x4000, &data)?;
        }
        Ok(())
    }),
    Case::new("the_receiver_sees_the_form_it_permitted", "policy: relay to relay", |stage| {
        let mut first = stage.guest()?.allocated()?;
        let mut second = stage.colleague()?.allocated()?;
        let inner = SocketAddr::new(LAN1, first.relayed()?.port());
        first.permit(&[second.relayed()?])?;
        second.permit(&[inner])?;
        first.send_to(second.relayed()?, b"seen from inside")?;
        second.expect_data(inner, b"seen from inside")
    }),
    Case::new("relay_to_relay_needs_the_receivers_permission", "RFC 8656 §9", |stage| {
        let mut first = stage.guest()?.allocated()?;
        let mut second = stage.guest()?.allocated()?;
        first.permit(&[second.relayed()?])?;
        first.send_to(second.relayed()?, b"uninvited")?;
        first.hears_nothing()?;
        second.hears_nothing()
    }),
    Case::new("two_relays_of_two_users_meet", "policy: relay to relay", |stage| {
        let mut first = stage.guest()?.allocated()?;
        let mut second = stage.guest()?.of_user("bob", "bob-password").allocated()?;
        exchange(&mut first, &mut second)
    }),
    Case::new("a_dead_relay_port_swallows_what_is_sent", "policy: relay to relay", |stage| {
        let mut client = stage.guest()?.allocated()?;
        let dead = SocketAddr::new(NAT, stage.server.media_ports().1);
        client.permit(&[dead])?;
        client.send_to(dead, b"nobody")?;
        client.hears_nothing()
    }),
    Case::new("a_relay_may_send_to_itself", "policy: relay to relay", |stage| {
        let mut client = stage.guest()?.allocated()?;
        let own = client.relayed()?;
        client.permit(&[own])?;
        client.send_to(own, b"echo")?;
        client.expect_data(own, b"echo")
    }),
    Case::new(
        "a_client_told_lan1_meets_one_told_the_static_nat_address",
        "policy: relay to relay",
        |stage| {
            let mut first = stage.guest()?.allocated()?;
            let mut second = stage.colleague()?.allocated()?;
            expect_equal("inside", LAN1, second.relayed()?.ip())?;
            exchange(&mut first, &mut second)
        },
    )
    .on(Server::ToldLan1),
    Case::new("a_dual_allocation_relays_in_both_families", "RFC 8656 §7.2", |stage| {
        let (v4, v6) = (stage.peer(Place::Media)?, stage.peer(Place::MediaV6)?);
        let request = allocate_request().number(ADDITIONAL_ADDRESS_FAMILY, IPV6);
        let mut client = stage.guest()?.allocated_with(request)?;
        client.permit(&[v4.address, v6.address])?;
        for peer in [&v4, &v6] {
            client.send_to(peer.address, b"there")?;
            let relay = peer.expect(b"there")?;
            peer.send(relay, b"and back")?;
            client.expect_data(peer.address, b"and back")?;
        }
        Ok(())
    }),
    Case::new("an_ipv6_client_relays_to_an_ipv4_peer", "RFC 8656 §3.3", |stage| {
        let (mut client, peer, relay) = connected(stage, Place::GuestV6, Place::Media)?;
        peer.send(relay, b"back")?;
        client.expect_data(peer.address, b"back")
    }),
    Case::new("an_ipv4_client_relays_to_an_ipv6_peer", "RFC 8656 §3.3", |stage| {
        let (mut client, peer, relay) = connected(stage, Place::Guest, Place::MediaV6)?;
        peer.send(relay, b"back")?;
        client.expect_data(peer.address, b"back")
    }),
    Case::new("a_closed_port_comes_back_as_icmp", "RFC 8656 §11.5", |stage| {
        let closed = stage.peer(Place::Media)?.address;
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[closed])?;
        client.send_to(closed, b"anybody there")?;
        let message = client.expect_message(DATA_METHOD | INDICATION)?;
        expect_equal("peer", Some(closed.ip()), message.address(XOR_PEER_ADDRESS).map(|a| a.ip()))?;
        expect(!message.has(DATA), "no DATA", &message)?;
        // Two reserved octets, type 3 in seven bits, code 3 in nine, no error data.
        let value = message.attribute(ICMP).unwrap_or_default();
        expect_equal("ICMP", &[0, 0, 0x06, 0x03, 0, 0, 0, 0][..], value)
    }),
    Case::new("an_icmp_error_does_not_stop_the_next_packet", "policy: failures", |stage| {
        let closed = stage.peer(Place::Media)?.address;
        let open = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[closed])?;
        for _ in 0..10 {
            client.send_to(closed, b"closed")?;
            client.send_to(open.address, b"open")?;
            open.expect(b"open")?;
        }
        Ok(())
    }),
    Case::new("a_permission_may_be_refreshed_while_in_use", "RFC 8656 §9", |stage| {
        let (mut client, peer, relay) = connected(stage, Place::Guest, Place::Media)?;
        for _ in 0..5 {
            peer.send(relay, b"data")?;
            client.expect_data(peer.address, b"data")?;
            client.succeed(permission_request(&[peer.address]))?;
        }
        Ok(())
    }),
];

/// A client whose allocation and `peer` have met; the relay's address as the peer sees it.
fn connected(stage: &Stage<'_>, from: Place, to: Place) -> Outcome<(Client, Peer, SocketAddr)> {
    let peer = stage.peer(to)?;
    let family = if to.ip().is_ipv4() { 1 << 24 } else { IPV6 };
    let request = allocate_request().number(REQUESTED_ADDRESS_FAMILY, family);
    let mut client = stage.client(from)?.allocated_with(request)?;
    client.permit(&[peer.address])?;
    client.send_to(peer.address, b"hello")?;
    let relay = peer.expect(b"hello")?;
    Ok((client, peer, relay))
}

/// The peer sees the relay port of that address, and reaches the client through it.
fn face(stage: &Stage<'_>, from: Place, to: Place, expected: IpAddr) -> Outcome {
    let (mut client, peer, relay) = connected(stage, from, to)?;
    let expected = SocketAddr::new(expected, client.relayed()?.port());
    expect_equal("source at the peer", expected, relay)?;
    peer.send(relay, b"back")?;
    client.expect_data(peer.address, b"back")
}

/// An indication that is made wrong reaches nobody and gets no answer.
fn send_dropped(stage: &Stage<'_>, make: fn(SocketAddr) -> Packet) -> Outcome {
    let (mut client, peer, _) = connected(stage, Place::Guest, Place::Media)?;
    client.send(make(peer.address).bytes())?;
    client.send_to(peer.address, b"mark")?;
    peer.expect(b"mark")?;
    client.hears_nothing()?;
    peer.hears_nothing()
}

/// Two clients meet; the first one knows the second by `form`.
fn between(stage: &Stage<'_>, places: [Place; 2], form: IpAddr) -> Outcome {
    let mut first = stage.client(places[0])?.allocated()?;
    let mut second = stage.client(places[1])?.allocated()?;
    let known = SocketAddr::new(form, second.relayed()?.port());
    first.permit(&[known])?;
    second.permit(&[first.relayed()?])?;
    first.send_to(known, b"there")?;
    second.expect_data(first.relayed()?, b"there")?;
    second.send_to(first.relayed()?, b"and back")?;
    first.expect_data(known, b"and back")
}

/// Two clients know each other by what they were told.
fn exchange(first: &mut Client, second: &mut Client) -> Outcome {
    let addresses = (first.relayed()?, second.relayed()?);
    first.permit(&[addresses.1])?;
    second.permit(&[addresses.0])?;
    first.send_to(addresses.1, b"there")?;
    second.expect_data(addresses.0, b"there")?;
    second.send_to(addresses.0, b"and back")?;
    first.expect_data(addresses.1, b"and back")
}
