//! Mobility (RFC 8016).

use crate::conformance::case::{Case, Outcome, expect, expect_equal};
use crate::conformance::client::{Client, allocate_request, permission_request, refresh_request};
use crate::conformance::setting::{Place, Server, Stage};
use crate::conformance::stun::{MOBILITY_TICKET, Packet};

pub(super) const CASES: &[Case] = &[
    Case::new("an_allocation_that_asks_gets_a_ticket", "RFC 8016 §3.1.2", |stage| {
        ticketed(stage).map(drop)
    }),
    Case::new("an_allocation_that_does_not_ask_gets_no_ticket", "RFC 8016 §3.1.2", |stage| {
        let answer = stage.guest()?.challenged()?.succeed(allocate_request())?;
        expect(!answer.has(MOBILITY_TICKET), "no MOBILITY-TICKET", &answer)
    }),
    Case::new("a_ticket_in_allocate_gets_400", "RFC 8016 §3.1.2", |stage| {
        let request = allocate_request().with(MOBILITY_TICKET, b"a ticket");
        stage.guest()?.challenged()?.refused(request, 400).map(drop)
    }),
    Case::new("mobility_gets_405_where_it_is_off", "RFC 8016 §3.1.2", |stage| {
        let request = allocate_request().with(MOBILITY_TICKET, b"");
        stage.guest()?.challenged()?.refused(request, 405).map(drop)
    })
    .on(Server::Frugal),
    Case::new("a_moved_client_keeps_its_relayed_address", "RFC 8016 §3.2.2", |stage| {
        let (first, ticket) = ticketed(stage)?;
        let peer = stage.peer(Place::Media)?;
        let mut second = moved(stage, &first, &ticket, Place::Stranger)?.0;
        second.permit(&[peer.address])?;
        second.send_to(peer.address, b"from elsewhere")?;
        let port = peer.expect(b"from elsewhere")?.port();
        expect_equal("port", first.relayed()?.port(), port)
    }),
    Case::new("a_moved_client_keeps_permissions_and_channels", "RFC 8016 §3.2.2", |stage| {
        let (mut first, ticket) = ticketed(stage)?;
        let peer = stage.peer(Place::Media)?;
        first.bind(0x4000, peer.address)?;
        let (mut second, _) = moved(stage, &first, &ticket, Place::Guest)?;
        second.send_channel(0x4000, b"by the old channel")?;
        let relay = peer.expect(b"by the old channel")?;
        peer.send(relay, b"to the new place")?;
        second.expect_channel(0x4000, b"to the new place")?;
        first.hears_nothing()
    }),
    Case::new("moving_gives_another_ticket", "RFC 8016 §3.2.2", |stage| {
        let (first, ticket) = ticketed(stage)?;
        let (_, another) = moved(stage, &first, &ticket, Place::Guest)?;
        expect(another != ticket, "another ticket", "the same")
    }),
    Case::new("a_client_may_move_again_and_again", "RFC 8016 §3.2", |stage| {
        let (first, mut ticket) = ticketed(stage)?;
        let peer = stage.peer(Place::Media)?;
        let mut client = first;
        for place in [Place::Stranger, Place::Guest, Place::Stranger, Place::Guest] {
            let (next, another) = moved(stage, &client, &ticket, place)?;
            ticket = another;
            client = next;
            client.permit(&[peer.address])?;
            client.send_to(peer.address, b"here")?;
            peer.expect(b"here")?;
        }
        Ok(())
    }),
    Case::new("a_used_ticket_is_refused", "RFC 8016 §3.2.2", |stage| {
        let (first, ticket) = ticketed(stage)?;
        let peer = stage.peer(Place::Media)?;
        let (mut second, _) = moved(stage, &first, &ticket, Place::Guest)?;
        second.permit(&[peer.address])?;
        second.send_to(peer.address, b"here now")?;
        peer.expect(b"here now")?;
        let mut third = elsewhere(stage, &first, Place::Guest)?;
        let answer = third.request(refresh_request(600).with(MOBILITY_TICKET, &ticket))?;
        expect(answer.error_code().is_some(), "an error", &answer)?;
        second.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("a_made_up_ticket_gets_400", "RFC 8016 §3.2.2", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let request = refresh_request(600).with(MOBILITY_TICKET, &[0x5A; 48]);
        let answer = client.request(request)?;
        expect(matches!(answer.error_code(), Some(400 | 437)), "error 400", &answer)
    }),
    Case::new("a_ticket_changed_in_one_octet_is_refused", "RFC 8016 §3.2.2", |stage| {
        let (first, mut ticket) = ticketed(stage)?;
        let last = ticket.len() - 1;
        ticket[last] ^= 1;
        let mut thief = elsewhere(stage, &first, Place::Guest)?;
        let answer = thief.request(refresh_request(600).with(MOBILITY_TICKET, &ticket))?;
        expect(answer.error_code().is_some(), "an error", &answer)
    }),
    Case::new("another_user_does_not_move_an_allocation", "RFC 8016 §5", |stage| {
        let (mut first, ticket) = ticketed(stage)?;
        let thief = stage.guest()?.of_user("bob", "bob-password");
        let answer =
            thief.challenged()?.request(refresh_request(600).with(MOBILITY_TICKET, &ticket))?;
        expect(answer.error_code().is_some(), "an error", &answer)?;
        first.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("after_moving_the_old_place_has_no_allocation", "RFC 8016 §3.2.2", |stage| {
        let (mut first, ticket) = ticketed(stage)?;
        let peer = stage.peer(Place::Media)?;
        let (mut second, _) = moved(stage, &first, &ticket, Place::Guest)?;
        second.permit(&[peer.address])?;
        second.send_to(peer.address, b"here now")?;
        peer.expect(b"here now")?;
        first.refused(permission_request(&[peer.address]), 437).map(drop)
    }),
    Case::new("a_client_moves_from_udp_to_tcp", "RFC 8016 §3.2", |stage| {
        let (first, ticket) = ticketed(stage)?;
        let peer = stage.peer(Place::Media)?;
        let mut second = stage.tcp_client(Place::Guest)?.challenged()?;
        second.succeed(refresh_request(600).with(MOBILITY_TICKET, &ticket))?;
        second.permit(&[peer.address])?;
        second.send_to(peer.address, b"over a stream")?;
        let relay = peer.expect(b"over a stream")?;
        expect_equal("port", first.relayed()?.port(), relay.port())?;
        peer.send(relay, b"back")?;
        second.expect_data(peer.address, b"back")
    }),
    Case::new("a_ticket_from_where_the_client_is_gets_400", "RFC 8016 §3.2.2", |stage| {
        let (mut client, ticket) = ticketed(stage)?;
        client.refused(refresh_request(600).with(MOBILITY_TICKET, &ticket), 400)?;
        client.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("a_moved_allocation_may_be_freed", "RFC 8016 §3.2", |stage| {
        let (first, ticket) = ticketed(stage)?;
        let (mut second, _) = moved(stage, &first, &ticket, Place::Guest)?;
        second.succeed(refresh_request(0))?;
        second.refused(refresh_request(600), 437).map(drop)
    }),
    Case::new("a_flood_of_made_up_tickets_moves_nothing", "RFC 8016 §5", |stage| {
        let (first, ticket) = ticketed(stage)?;
        let mut flooder = stage.guest()?.challenged()?;
        for n in 0..300_u32 {
            let made_up = [&n.to_be_bytes()[..], &[0xA5; 44]].concat();
            let answer = flooder.request(refresh_request(600).with(MOBILITY_TICKET, &made_up))?;
            expect(answer.error_code().is_some(), "an error", &answer)?;
        }
        moved(stage, &first, &ticket, Place::Stranger).map(drop)
    }),
];

/// A guest with an allocation and its ticket.
fn ticketed(stage: &Stage<'_>) -> Outcome<(Client, Vec<u8>)> {
    let mut client = stage.guest()?.challenged()?;
    let answer = client.succeed(allocate_request().with(MOBILITY_TICKET, b""))?;
    client.relayed = answer.address(crate::conformance::stun::XOR_RELAYED_ADDRESS);
    let ticket = answer.attribute(MOBILITY_TICKET).unwrap_or_default().to_vec();
    expect(!ticket.is_empty(), "MOBILITY-TICKET with a ticket", &answer)?;
    Ok((client, ticket))
}

/// The same user at another place, challenged.
fn elsewhere(stage: &Stage<'_>, client: &Client, place: Place) -> Outcome<Client> {
    stage.client(place)?.of_user(&client.user, &client.password).challenged()
}

/// The client after it has moved, with its next ticket.
fn moved(
    stage: &Stage<'_>,
    client: &Client,
    ticket: &[u8],
    place: Place,
) -> Outcome<(Client, Vec<u8>)> {
    let mut next = elsewhere(stage, client, place)?;
    next.relayed = client.relayed;
    let request = || -> Packet { refresh_request(600).with(MOBILITY_TICKET, ticket) };
    let mut answer = next.request(request())?;
    if answer.error_code() == Some(438) {
        next.learn(&answer);
        answer = next.request(request())?;
    }
    next.check_success(&answer)?;
    let ticket = answer.attribute(MOBILITY_TICKET).unwrap_or_default().to_vec();
    expect(!ticket.is_empty(), "the next MOBILITY-TICKET", &answer)?;
    Ok((next, ticket))
}
