//! Clients over TCP (RFC 8489 §6.2.2, RFC 8656 §12.5).

use std::time::{Duration, Instant};

use crate::conformance::case::{Case, Fault, Outcome, expect, expect_equal};
use crate::conformance::client::{
    Client, allocate_request, channel_data, refresh_request, send_indication,
};
use crate::conformance::setting::{LAN1, NAT, Place, Server, Stage};
use crate::conformance::stun::{BINDING, Packet, SUCCESS, XOR_MAPPED_ADDRESS};

pub(super) const CASES: &[Case] = &[
    Case::new("a_tcp_client_gets_a_udp_allocation", "RFC 8656 §3.1", |stage| {
        let relayed = stage.tcp_client(Place::Guest)?.allocated()?.relayed()?;
        expect_equal("relayed address", NAT, relayed.ip())
    }),
    Case::new("an_inside_tcp_client_gets_a_udp_allocation", "RFC 8656 §3.1", |stage| {
        stage.tcp_client(Place::Colleague)?.allocated().map(drop)
    }),
    Case::new("an_ipv6_tcp_client_gets_a_udp_allocation", "RFC 8656 §3.1", |stage| {
        stage.tcp_client(Place::GuestV6)?.allocated().map(drop)
    }),
    Case::new("a_tcp_client_without_credentials_gets_401", "RFC 8489 §9.2.4", |stage| {
        stage.tcp_client(Place::Guest)?.challenge().map(drop)
    }),
    Case::new("a_tcp_client_relays_by_indications", "RFC 8656 §11", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.tcp_client(Place::Guest)?.allocated()?;
        client.permit(&[peer.address])?;
        for length in [0_usize, 1, 2, 3, 4, 1_200] {
            let data = vec![9; length];
            client.send_to(peer.address, &data)?;
            let relay = peer.expect(&data)?;
            peer.send(relay, &data)?;
            client.expect_data(peer.address, &data)?;
        }
        Ok(())
    }),
    Case::new("a_tcp_client_relays_by_channels_with_padding", "RFC 8656 §12.5", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.tcp_client(Place::Guest)?.allocated()?;
        client.bind(0x4000, peer.address)?;
        for length in [0_usize, 1, 2, 3, 4, 5, 1_199, 1_200] {
            let data = vec![9; length];
            client.send_channel(0x4000, &data)?;
            let relay = peer.expect(&data)?;
            peer.send(relay, &data)?;
            client.expect_channel(0x4000, &data)?;
        }
        client.hears_nothing()
    }),
    Case::new("the_peer_of_a_tcp_client_sees_lan1", "policy: two faces (Q51)", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.tcp_client(Place::Guest)?.allocated()?;
        client.permit(&[peer.address])?;
        client.send_to(peer.address, b"hello")?;
        expect_equal("source", LAN1, peer.expect(b"hello")?.ip())
    }),
    Case::new("messages_may_come_octet_by_octet", "RFC 8489 §6.2.2", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?.challenged()?;
        let signed = client.sign(allocate_request());
        for octet in signed.bytes() {
            client.send(&[*octet])?;
        }
        let answer = client.answer(signed.id())?;
        client.check_success(&answer)
    }),
    Case::new("messages_may_come_cut_anywhere", "RFC 8489 §6.2.2", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?;
        for cut in [1_usize, 2, 3, 4, 19] {
            let question = Packet::new(BINDING);
            let (first, second) = question.bytes().split_at(cut);
            client.send(first)?;
            std::thread::sleep(Duration::from_millis(10));
            client.send(second)?;
            let answer = client.answer(question.id())?;
            expect(answer.kind == BINDING | SUCCESS, "a success answer", &answer)?;
        }
        Ok(())
    }),
    Case::new("many_messages_may_come_at_once", "RFC 8489 §6.2.2", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?;
        let questions: Vec<Packet> = (0..20).map(|_| Packet::new(BINDING)).collect();
        let bytes: Vec<u8> = questions.iter().flat_map(|q| q.bytes().to_vec()).collect();
        client.send(&bytes)?;
        for question in questions {
            client.answer(question.id())?;
        }
        Ok(())
    }),
    Case::new("stun_and_channel_data_may_come_at_once", "RFC 8656 §12.5", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.tcp_client(Place::Guest)?.allocated()?;
        client.bind(0x4000, peer.address)?;
        let question = Packet::new(BINDING);
        let mut bytes = channel_data(0x4000, b"one", true);
        bytes.extend(send_indication(peer.address, b"two").bytes());
        bytes.extend(question.bytes());
        bytes.extend(channel_data(0x4000, b"three", true));
        client.send(&bytes)?;
        client.answer(question.id())?;
        for data in [&b"one"[..], b"two", b"three"] {
            peer.expect(data)?;
        }
        Ok(())
    }),
    Case::new("channel_data_on_an_unbound_channel_keeps_the_framing", "RFC 8656 §12.6", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?.allocated()?;
        client.ignored(&channel_data(0x4005, b"nobody", true))
    }),
    Case::new("a_message_with_a_wrong_fingerprint_keeps_the_framing", "RFC 8489 §6.3", |stage| {
        let mut bytes = Packet::new(BINDING).fingerprint().bytes().to_vec();
        bytes[27] ^= 1;
        stage.tcp_client(Place::Guest)?.ignored(&bytes)
    }),
    Case::new("what_cannot_be_framed_closes_the_connection", "RFC 8656 §12.5", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?;
        client.send(&[0xC0; 64])?;
        expect(client.is_closed(), "the end of the connection", "it stays open")
    }),
    Case::new("http_gets_no_answer", "policy: TURN port", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?;
        client.send(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")?;
        // "GE" reads as a channel number: the connection may wait for the rest.
        match client.hear(Duration::from_millis(200)) {
            Ok(None) | Err(Fault::Differs { .. }) => Ok(()),
            other => expect(false, "nothing", format!("{other:?}")),
        }
    }),
    Case::new("half_a_message_keeps_nobody_waiting", "policy: slow clients", |stage| {
        let question = Packet::new(BINDING);
        let mut slow: Vec<Client> = Vec::new();
        for _ in 0..10 {
            let mut client = stage.tcp_client(Place::Guest)?;
            client.send(&question.bytes()[..10])?;
            slow.push(client);
        }
        stage.tcp_client(Place::Guest)?.hears_nothing()?;
        for client in &mut slow {
            client.send(&question.bytes()[10..])?;
            client.answer(question.id())?;
        }
        Ok(())
    }),
    Case::new("a_tcp_and_a_udp_client_of_one_address_are_two", "RFC 8656 §3.2", |stage| {
        let mut first = stage.guest()?.allocated()?;
        let mut second = stage.tcp_client(Place::Guest)?.allocated()?;
        let answer = second.call(&Packet::new(BINDING))?;
        expect_equal("address", Some(second.local), answer.address(XOR_MAPPED_ADDRESS))?;
        second.succeed(refresh_request(0))?;
        first.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("relay_to_relay_between_tcp_and_udp", "policy: relay to relay", |stage| {
        let mut first = stage.tcp_client(Place::Guest)?.allocated()?;
        let mut second = stage.colleague()?.allocated()?;
        let addresses = (first.relayed()?, second.relayed()?);
        first.permit(&[addresses.1])?;
        second.permit(&[addresses.0])?;
        first.send_to(addresses.1, b"there")?;
        second.expect_data(addresses.0, b"there")?;
        second.send_to(addresses.0, b"and back")?;
        first.expect_data(addresses.1, b"and back")
    }),
    Case::new("relay_to_relay_between_two_tcp_clients", "policy: relay to relay", |stage| {
        let mut first = stage.tcp_client(Place::Guest)?.allocated()?;
        let mut second = stage.tcp_client(Place::Colleague)?.allocated()?;
        first.bind(0x4000, second.relayed()?)?;
        second.bind(0x4001, first.relayed()?)?;
        first.send_channel(0x4000, b"there")?;
        second.expect_channel(0x4001, b"there")?;
        second.send_channel(0x4001, b"and back")?;
        first.expect_channel(0x4000, b"and back")
    }),
    Case::new("the_end_of_its_connection_frees_an_allocation", "RFC 8656 §3.2", |stage| {
        let first = stage.tcp_client(Place::Guest)?.allocated()?;
        let second = stage.tcp_client(Place::Guest)?.allocated()?;
        stage.tcp_client(Place::Guest)?.challenged()?.refused(allocate_request(), 486)?;
        drop((first, second));
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let mut third = stage.tcp_client(Place::Guest)?.challenged()?;
            let answer = third.request(allocate_request())?;
            if answer.error_code().is_none() {
                return Ok(());
            }
            expect(Instant::now() < deadline, "room for another allocation", answer)?;
            std::thread::sleep(Duration::from_millis(50));
        }
    })
    .on(Server::Frugal),
    Case::new("a_client_that_ends_its_half_is_let_go", "RFC 8489 §6.2.2", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?;
        client.hears_nothing()?;
        client.shut_down()?;
        expect(client.is_closed(), "the end of the connection", "it stays open")
    }),
    Case::new("retransmitted_allocate_over_tcp_is_answered_alike", "RFC 8656 §7.2", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?.challenged()?;
        let signed = client.sign(allocate_request());
        for _ in 0..2 {
            let answer = client.call(&signed)?;
            client.check_success(&answer)?;
        }
        Ok(())
    }),
    Case::new("a_nonce_from_udp_serves_over_tcp", "policy: nonces", |stage| {
        let first = stage.guest()?.challenged()?;
        let mut second = stage.tcp_client(Place::Guest)?;
        second.realm.clone_from(&first.realm);
        second.nonce.clone_from(&first.nonce);
        second.succeed(allocate_request()).map(drop)
    }),
    Case::new("a_burst_to_a_tcp_client_keeps_the_framing", "policy: slow clients", burst),
];

/// More comes for a client than it reads: some is lost, the rest is whole.
fn burst(stage: &Stage<'_>) -> Outcome {
    let peer = stage.peer(Place::Media)?;
    let mut client = stage.tcp_client(Place::Guest)?.allocated()?;
    client.bind(0x4000, peer.address)?;
    client.send_channel(0x4000, b"where")?;
    let relay = peer.expect(b"where")?;
    for round in 0..200_u8 {
        peer.send(relay, &[round; 1_111])?;
    }
    let question = Packet::new(BINDING);
    client.send(question.bytes())?;
    client.answer(question.id())?;
    let mut heard = 0;
    while let Some(message) = client.hear(Duration::from_millis(100))? {
        heard += 1;
        let whole = matches!(&message, crate::conformance::client::Heard::Channel(0x4000, data)
            if data.len() == 1_111 && data.iter().all(|octet| *octet == data[0]));
        expect(whole, "whole ChannelData", message)?;
    }
    expect(heard > 0, "some of the data", heard)
}
