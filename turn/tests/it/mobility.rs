//! Allocations that move between 5-tuples (RFC 8016), on one shard and across shards.

use std::time::Duration;

use postern_turn::stun::{AttributeType, Method};
use postern_turn::{Destination, Event, FiveTuple, Output, Quotas, Rule, Settings, Side, Status};

use crate::lab::{
    Lab, Login, MEDIA_SERVER, NAT, OUTSIDE_PEER, Reply, at, channel_data, guest, insider, settings,
    tcp,
};

const TICKET: AttributeType = AttributeType::MOBILITY_TICKET;

fn mobile() -> Settings {
    Settings { mobility: true, ..settings() }
}

/// A guest at another address.
fn abroad(port: u16) -> FiveTuple {
    let client = format!("203.0.113.200:{port}");
    FiveTuple { client: at(&client), ..guest(port) }
}

/// Allocates with a ticket and binds channel 0x4000 to the media server.
fn allocate(lab: &mut Lab, client: FiveTuple) -> (Login, Reply) {
    let login = lab.alice(client);
    let request = lab.begin_allocate().attribute(TICKET, &[]);
    let reply = lab.ask(client, &login, request);
    if reply.code() == 0 {
        assert_eq!(lab.bind(client, &login, 0x4000, at(MEDIA_SERVER)).code(), 0);
    }
    (login, reply)
}

/// Logs in from a new 5-tuple and sends a Refresh with the ticket.
fn resume(lab: &mut Lab, client: FiveTuple, ticket: &[u8]) -> Reply {
    let login = lab.alice(client);
    let request = lab.begin(Method::REFRESH).attribute(TICKET, ticket);
    lab.ask(client, &login, request)
}

fn to_client(sent: Option<(Destination, Vec<u8>)>) -> FiveTuple {
    match sent {
        Some((Destination::Client(client), _)) => client,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_mobility_a_ticket_gives_405_and_the_rule_is_named() {
    let mut lab = Lab::new();

    let (login, reply) = allocate(&mut lab, guest(1));
    let request = lab.begin(Method::REFRESH).attribute(TICKET, &[1; 27]);
    let refresh = lab.ask(guest(1), &login, request);

    assert_eq!((reply.code(), refresh.code()), (405, 405));
    assert_eq!(lab.server.counters().refused.of(Rule::Mobility), 2);
    let (_, plain) = lab.allocate(guest(1));
    assert_eq!(plain.ip().to_string(), NAT);
}

#[test]
fn an_allocate_without_ticket_gets_none_and_one_with_a_ticket_that_is_not_empty_gets_400() {
    let mut lab = Lab::with(mobile());
    let login = lab.alice(guest(1));

    let request = lab.begin_allocate().attribute(TICKET, &[1]);
    assert_eq!(lab.ask(guest(1), &login, request).code(), 400);
    let request = lab.begin_allocate();
    let reply = lab.ask(guest(1), &login, request);

    assert_eq!(reply.message().attribute(TICKET), None);
}

#[test]
fn a_client_that_moves_is_served_on_both_5_tuples_until_it_sends_from_the_new_one() {
    let mut lab = Lab::with(mobile());
    let (login, reply) = allocate(&mut lab, guest(1));
    let port = reply.relayed().port();

    let moved = resume(&mut lab, abroad(9), &reply.value(TICKET));

    assert_eq!(moved.lifetime(), 600);
    assert_ne!(moved.value(TICKET), reply.value(TICKET));
    let peer = at(MEDIA_SERVER);
    assert_eq!(to_client(lab.arrive(port, Side::Inside, peer, b"x")), guest(1));
    assert!(lab.channel(guest(1), 0x4000, b"x").is_some(), "the old one still sends");
    assert_eq!(lab.server.status().active_clients, 1);

    assert!(lab.channel(abroad(9), 0x4000, b"x").is_some(), "channels come along");
    lab.drain();
    assert_eq!(to_client(lab.arrive(port, Side::Inside, peer, b"x")), abroad(9));
    assert_eq!(lab.channel(guest(1), 0x4000, b"x"), None, "the old one is gone");
    assert_eq!(lab.refresh(guest(1), &login, 600).code(), 437);
    let event = Event::Moved { from: guest(1), to: abroad(9), user: "alice".into() };
    assert_eq!(lab.events.last(), Some(&event));
    let abroad_login = lab.alice(abroad(9));
    assert_eq!(lab.refresh(abroad(9), &abroad_login, 0).lifetime(), 0);
    assert_eq!(lab.server.status(), Status::default());
}

#[test]
fn a_retransmitted_move_is_answered_alike_and_a_ticket_without_a_move_gets_400() {
    let mut lab = Lab::with(mobile());
    let (login, reply) = allocate(&mut lab, guest(1));
    let ticket = reply.value(TICKET);
    let there = lab.alice(abroad(9));
    let request = lab.begin(Method::REFRESH).attribute(TICKET, &ticket);
    let request = there.sign(request);

    let first = lab.send(abroad(9), &request).unwrap();
    let again = lab.send(abroad(9), &request).unwrap();
    lab.channel(abroad(9), 0x4000, b"x");
    let third = lab.send(abroad(9), &request).unwrap();

    assert_eq!(first, again);
    assert_eq!(first, third);
    assert_eq!(lab.server.counters().moved, 1);
    let stay = lab.begin(Method::REFRESH).attribute(TICKET, &Reply::new(first).value(TICKET));
    assert_eq!(lab.ask(abroad(9), &there, stay).code(), 400);
    let stay = lab.begin(Method::REFRESH).attribute(TICKET, &ticket);
    assert_eq!(lab.ask(guest(1), &login, stay).code(), 437, "the old 5-tuple and ticket are gone");
}

#[test]
fn the_old_ticket_moves_again_until_data_comes_and_then_only_the_new_one_does() {
    let mut lab = Lab::with(mobile());
    let (_, reply) = allocate(&mut lab, guest(1));
    let old = reply.value(TICKET);

    assert_eq!(resume(&mut lab, abroad(9), &old).code(), 0);
    let second = resume(&mut lab, abroad(10), &old);
    assert_eq!(second.code(), 0);
    assert_eq!(lab.channel(abroad(9), 0x4000, b"x"), None, "the first move was taken back");
    assert!(lab.channel(abroad(10), 0x4000, b"x").is_some());

    assert_eq!(resume(&mut lab, abroad(11), &old).code(), 437);
    assert_eq!(resume(&mut lab, abroad(11), &second.value(TICKET)).code(), 0);
}

#[test]
fn another_user_and_forged_tickets_move_nothing() {
    let mut lab = Lab::with(mobile());
    let (_, reply) = allocate(&mut lab, guest(1));
    let ticket = reply.value(TICKET);
    let bob = lab.bob(abroad(9));
    let mut forged = ticket.clone();
    *forged.last_mut().unwrap() ^= 1;

    for (ticket, code) in
        [(ticket, 441), (forged, 400), (vec![], 400), (vec![0; 27], 400), (vec![7; 500], 400)]
    {
        let request = lab.begin(Method::REFRESH).attribute(TICKET, &ticket);
        assert_eq!(lab.ask(abroad(9), &bob, request).code(), code);
    }
    assert_eq!(lab.channel(abroad(9), 0x4000, b"x"), None);
    assert!(lab.channel(guest(1), 0x4000, b"x").is_some());
}

#[test]
fn a_ticket_of_an_allocation_that_ended_gives_437_even_when_its_port_is_in_use_again() {
    let mut lab = Lab::with(Settings { media_ports: Some(24000..=24000), ..mobile() });
    let (login, reply) = allocate(&mut lab, guest(1));
    lab.refresh(guest(1), &login, 0);
    let (_, next) = allocate(&mut lab, guest(2));

    let resumed = resume(&mut lab, abroad(9), &reply.value(TICKET));

    assert_eq!(next.relayed().port(), reply.relayed().port());
    assert_eq!(resumed.code(), 437);
    assert_eq!(lab.server.counters().bad_tickets, 1);
}

#[test]
fn a_move_may_end_the_allocation_at_once() {
    let mut lab = Lab::with(mobile());
    let (_, reply) = allocate(&mut lab, guest(1));
    let there = lab.alice(abroad(9));
    let request = lab
        .begin(Method::REFRESH)
        .attribute(TICKET, &reply.value(TICKET))
        .attribute(AttributeType::LIFETIME, &[0; 4]);
    let request = there.sign(request);

    let first = lab.send(abroad(9), &request).unwrap();
    let again = lab.send(abroad(9), &request).unwrap();

    assert_eq!(first, again);
    assert_eq!(Reply::new(first).lifetime(), 0);
    assert!(lab.open.is_empty());
    assert_eq!(lab.server.status(), Status::default());
    lab.allocate(guest(1));
    lab.allocate(abroad(9));
}

#[test]
fn a_refused_move_moves_nothing() {
    let mut lab = Lab::with(mobile());
    let (_, reply) = allocate(&mut lab, guest(1));
    let there = lab.alice(abroad(9));
    let request = lab
        .begin(Method::REFRESH)
        .attribute(TICKET, &reply.value(TICKET))
        .attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);

    assert_eq!(lab.ask(abroad(9), &there, request).code(), 443);

    assert_eq!(lab.channel(abroad(9), 0x4000, b"x"), None);
    assert!(lab.channel(guest(1), 0x4000, b"x").is_some());
    assert_eq!(resume(&mut lab, abroad(9), &reply.value(TICKET)).code(), 0);
}

#[test]
fn moving_makes_no_room_under_the_quota_of_a_source_and_needs_room_where_it_goes() {
    let quotas = Quotas { per_source: 1, ..Quotas::default() };
    let mut lab = Lab::with(Settings { quotas, ..mobile() });
    let (_, first) = allocate(&mut lab, guest(1));
    let moved = resume(&mut lab, abroad(9), &first.value(TICKET));
    assert_eq!(moved.code(), 0);

    // Both sources are taken until the move is over.
    assert_eq!(allocate(&mut lab, guest(2)).1.code(), 486);
    assert_eq!(allocate(&mut lab, abroad(10)).1.code(), 486);
    lab.channel(abroad(9), 0x4000, b"x");
    assert_eq!(allocate(&mut lab, abroad(10)).1.code(), 486);
    let (_, second) = allocate(&mut lab, guest(2));
    assert_eq!(second.code(), 0);

    // Nothing moves to where there is no room.
    let refused = resume(&mut lab, abroad(11), &second.value(TICKET));
    assert_eq!(refused.code(), 486);
    assert_eq!(lab.channel(abroad(11), 0x4000, b"x"), None);
    assert!(lab.channel(guest(2), 0x4000, b"x").is_some());
}

#[test]
fn moving_a_thousand_times_leaves_no_usage_and_no_port_behind() {
    let quotas = Quotas { per_source: 2, per_user: 2, ..Quotas::default() };
    let mut lab = Lab::with(Settings { quotas, ..mobile() });
    let (_, reply) = allocate(&mut lab, guest(1));
    let mut ticket = reply.value(TICKET);
    for step in 0..1000 {
        lab.pass(Duration::from_millis(10));
        let client = if step % 2 == 0 { abroad(step + 9) } else { guest(step + 9) };
        let reply = resume(&mut lab, client, &ticket);
        assert_eq!(reply.code(), 0, "{step}");
        ticket = reply.value(TICKET);
        if step % 3 == 0 {
            assert!(lab.channel(client, 0x4000, b"x").is_some());
        }
    }

    lab.pass(Duration::from_secs(600));

    assert_eq!(lab.server.status(), Status::default());
    assert!(lab.open.is_empty());
    for client in [guest(1), guest(2)] {
        lab.allocate(client);
    }
    let other = lab.bob(abroad(1));
    let request = lab.begin_allocate();
    assert_eq!(lab.ask(abroad(1), &other, request).code(), 0);
}

#[test]
fn a_client_that_changes_sides_is_judged_by_its_new_side() {
    let mut lab = Lab::with(mobile());
    let (login, reply) = allocate(&mut lab, insider(1));
    lab.permit(insider(1), &login, &["203.0.113.77"]);
    assert!(lab.indicate(insider(1), at(OUTSIDE_PEER), b"x").is_some());

    resume(&mut lab, abroad(9), &reply.value(TICKET));
    let there = lab.alice(abroad(9));
    assert_eq!(lab.permit(abroad(9), &there, &["203.0.113.77"]).code(), 403);

    assert_eq!(lab.indicate(abroad(9), at(OUTSIDE_PEER), b"x"), None);
    assert!(lab.channel(abroad(9), 0x4000, b"x").is_some());
    let port = reply.relayed().port();
    assert_eq!(lab.arrive(port, Side::Outside, at(OUTSIDE_PEER), b"x"), None);
}

#[test]
fn an_allocation_outlives_the_connection_of_a_client_that_may_move() {
    let mut lab = Lab::with(mobile());
    let (_, mobile) = allocate(&mut lab, tcp(guest(1)));
    lab.allocate(tcp(guest(2)));

    for client in [tcp(guest(1)), tcp(guest(2))] {
        lab.server.handle_client_gone(client, lab.now);
    }
    lab.drain();

    assert_eq!(lab.open.len(), 1, "the one that may not move ended");
    assert_eq!(resume(&mut lab, abroad(9), &mobile.value(TICKET)).code(), 0);
    lab.server.handle_client_gone(tcp(guest(1)), lab.now);
    let port = mobile.relayed().port();
    let peer = at(MEDIA_SERVER);
    assert_eq!(to_client(lab.arrive(port, Side::Inside, peer, b"x")), abroad(9));
    assert_eq!(lab.server.status().active_relays_tcp, 0);
}

#[test]
fn a_new_connection_that_ends_before_it_sent_data_takes_the_move_back() {
    let mut lab = Lab::with(mobile());
    let (_, reply) = allocate(&mut lab, guest(1));
    let moved = resume(&mut lab, tcp(abroad(9)), &reply.value(TICKET));
    assert_eq!(moved.code(), 0);

    lab.server.handle_client_gone(tcp(abroad(9)), lab.now);

    assert_eq!(lab.channel(tcp(abroad(9)), 0x4000, b"x"), None);
    assert!(lab.channel(guest(1), 0x4000, b"x").is_some());
    assert_eq!(resume(&mut lab, abroad(10), &moved.value(TICKET)).code(), 0);
}

#[test]
fn a_move_that_was_taken_back_leaves_the_ticket_good_that_it_was_made_with() {
    let mut lab = Lab::with(mobile());
    let (_, reply) = allocate(&mut lab, guest(1));
    let old = reply.value(TICKET);
    for port in 9..12 {
        // The connection breaks before the answer with the new ticket arrives.
        assert_eq!(resume(&mut lab, tcp(abroad(port)), &old).code(), 0);
        lab.server.handle_client_gone(tcp(abroad(port)), lab.now);
    }

    let moved = resume(&mut lab, abroad(20), &old);
    assert_eq!(moved.code(), 0);
    assert!(lab.channel(abroad(20), 0x4000, b"x").is_some());

    assert_eq!(resume(&mut lab, abroad(21), &old).code(), 437, "a move that is over ends it");
    assert_eq!(resume(&mut lab, abroad(21), &moved.value(TICKET)).code(), 0);
}

#[test]
fn a_flood_of_bad_tickets_leaves_nothing_behind() {
    let mut lab = Lab::sharded(mobile(), 2);
    let (_, reply) = allocate(&mut lab, guest(1));
    let ticket = reply.value(TICKET);
    let login = lab.alice(abroad(9));

    for round in 0..20_000_u32 {
        let mut bad = ticket.clone();
        bad[usize::try_from(round).unwrap() % ticket.len()] ^= 1 << (round % 8);
        let client = abroad(u16::try_from(1024 + round % 60_000).unwrap());
        let request = lab.begin(Method::REFRESH).attribute(TICKET, &bad);
        assert_eq!(lab.ask(client, &login, request).code(), 400);
    }

    assert_eq!(lab.server.counters().bad_tickets, 20_000);
    assert_eq!(lab.server.counters().to_other_shard, 0);
    assert_eq!(lab.timeout, Some(lab.now + Duration::from_secs(600)), "only the allocation's");
    assert!(lab.channel(guest(1), 0x4000, b"x").is_some());
}

#[test]
fn a_client_that_comes_in_on_another_shard_keeps_its_allocation() {
    let mut lab = Lab::sharded(mobile(), 2);
    let (_, reply) = allocate(&mut lab, guest(1));
    let port = reply.relayed().port();
    lab.homes.insert(abroad(9), 1);

    let moved = resume(&mut lab, abroad(9), &reply.value(TICKET));

    assert_eq!(moved.code(), 0);
    let (to, bytes) = lab.channel(abroad(9), 0x4000, b"x").unwrap();
    assert_eq!(bytes, b"x");
    assert!(matches!(to, Destination::Peer { .. }));
    let peer = at(MEDIA_SERVER);
    assert_eq!(to_client(lab.arrive(port, Side::Inside, peer, b"x")), abroad(9));
    let there = lab.alice(abroad(9));
    assert_eq!(lab.refresh(abroad(9), &there, 600).code(), 0, "later requests follow");
    assert_eq!(lab.others[0].status().active_clients, 0);
    assert_eq!(lab.server.status().active_clients, 1);
    assert!(lab.others[0].counters().to_other_shard >= 3);

    // It moves on with the new ticket and comes in on the first shard again.
    assert_eq!(resume(&mut lab, abroad(10), &moved.value(TICKET)).code(), 0);
    assert!(lab.channel(abroad(10), 0x4000, b"x").is_some());
}

#[test]
fn a_tcp_client_that_moves_to_another_shard_takes_its_stream_along() {
    let mut lab = Lab::sharded(mobile(), 2);
    let (_, reply) = allocate(&mut lab, tcp(guest(1)));
    lab.homes.insert(tcp(abroad(9)), 1);

    assert_eq!(resume(&mut lab, tcp(abroad(9)), &reply.value(TICKET)).code(), 0);

    assert_eq!(lab.homes[&tcp(abroad(9))], 0, "the stream moved");
    assert!(lab.channel(tcp(abroad(9)), 0x4000, b"x").is_some());
}

#[test]
fn routes_between_shards_are_bounded_for_one_source() {
    let mut lab = Lab::sharded(mobile(), 2);
    let (_, reply) = allocate(&mut lab, guest(1));
    let ticket = reply.value(TICKET);
    let login = lab.alice(abroad(1));
    let mut codes = Vec::new();

    for port in 0..100 {
        let client = abroad(2000 + port);
        lab.homes.insert(client, 1);
        let request = lab.begin(Method::REFRESH).attribute(TICKET, &ticket);
        codes.push(lab.ask(client, &login, request).code());
    }

    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 64);
    assert!(codes[64..].iter().all(|code| *code == 508), "{codes:?}");
}

#[test]
fn a_client_with_a_route_that_comes_back_to_the_first_shard_s_ticket_is_not_sent_round() {
    let mut lab = Lab::sharded(mobile(), 2);
    let (_, on_first) = allocate(&mut lab, guest(1));
    lab.homes.insert(guest(2), 1);
    let (_, on_second) = allocate(&mut lab, guest(2));
    lab.homes.insert(abroad(9), 1);

    // First to the allocation on shard 0, then, that one gone, to the one on shard 1.
    assert_eq!(resume(&mut lab, abroad(9), &on_first.value(TICKET)).code(), 0);
    let there = lab.alice(abroad(9));
    assert_eq!(lab.refresh(abroad(9), &there, 0).code(), 0);
    assert_eq!(resume(&mut lab, abroad(9), &on_second.value(TICKET)).code(), 0);

    assert_eq!(lab.channel(abroad(9), 0x4000, b"x").unwrap().1, b"x");
    let datagram = channel_data(0x4000, b"x");
    assert!(lab.others[0].handle_client(abroad(9), &datagram, lab.now).is_some());
    assert_eq!(lab.wanted, Vec::<Output>::new());
}
