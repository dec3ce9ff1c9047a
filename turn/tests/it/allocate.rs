//! Allocate, Refresh, lifetimes, ports and quotas.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use postern_turn::stun::{AttributeType, ErrorCode, Method};
use postern_turn::{Event, FiveTuple, Quotas, RelaySocket, Rule, Settings, Side, Status};

use crate::lab::{LAN1, LAN2, Lab, NAT, Reply, at, guest, insider, ip, settings, tcp};

#[test]
fn everybody_is_told_the_static_nat_address_and_a_port_of_the_range() {
    let mut lab = Lab::new();

    for client in [guest(1), insider(1)] {
        let (_, relayed) = lab.allocate(client);

        assert_eq!(relayed.ip(), ip(NAT));
        assert!((24000..=24031).contains(&relayed.port()));
        let socket =
            |side, local| RelaySocket { side, address: SocketAddr::new(ip(local), relayed.port()) };
        let expected = [socket(Side::Outside, LAN2), socket(Side::Inside, LAN1)];
        assert_eq!(lab.last_opened, expected);
    }
}

#[test]
fn inside_clients_are_told_lan1_when_the_site_says_so() {
    let mut lab = Lab::with(Settings { inside_clients_are_told_inside: true, ..settings() });

    assert_eq!(lab.allocate(insider(1)).1.ip(), ip(LAN1));
    assert_eq!(lab.allocate(guest(1)).1.ip(), ip(NAT));
}

#[test]
fn an_ipv6_relayed_address_comes_when_asked_for() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));

    let request =
        lab.begin_allocate().attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    let relayed = lab.ask(guest(1), &login, request).relayed();

    assert_eq!(relayed.ip(), ip("2001:db8:2::61"));
    assert_eq!(lab.permit(guest(1), &login, &["198.51.100.180"]).code(), 443);
    assert_eq!(lab.permit(guest(1), &login, &["2001:db8:9::1"]).code(), 0);
}

#[test]
fn malformed_and_unsupported_allocations_have_their_own_codes() {
    let mut lab = Lab::with(Settings { outside: settings().outside[..1].into(), ..settings() });
    let login = lab.alice(guest(1));
    let transport = AttributeType::REQUESTED_TRANSPORT;
    let family = AttributeType::REQUESTED_ADDRESS_FAMILY;

    for (attributes, code) in [
        (vec![], 400),
        (vec![(transport, vec![17])], 400),
        (vec![(transport, vec![6, 0, 0, 0])], 442),
        (vec![(transport, vec![17, 0, 0, 0]), (family, vec![2, 0, 0, 0])], 440),
        (vec![(transport, vec![17, 0, 0, 0]), (family, vec![9, 0, 0, 0])], 440),
        (vec![(transport, vec![17, 0, 0, 0]), (family, vec![1])], 400),
        (vec![(transport, vec![17, 0, 0, 0]), (AttributeType::LIFETIME, vec![1])], 400),
        (vec![(transport, vec![17, 0, 0, 0]), (AttributeType::EVEN_PORT, vec![])], 400),
        (vec![(transport, vec![17, 0, 0, 0]), (AttributeType::RESERVATION_TOKEN, vec![1])], 400),
        (vec![(transport, vec![17, 0, 0, 0]), (AttributeType::RESERVATION_TOKEN, vec![1; 8])], 508),
    ] {
        let mut request = lab.begin(Method::ALLOCATE);
        for (kind, value) in &attributes {
            request = request.attribute(*kind, value);
        }
        assert_eq!(lab.ask(guest(1), &login, request).code(), code, "{attributes:?}");
    }
    assert_eq!(lab.server.status(), Status::default());
}

#[test]
fn a_retransmitted_allocate_is_answered_alike_and_a_second_one_gives_437() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));
    let request = lab.begin_allocate();
    let request = login.sign(request);

    let first = lab.send(guest(1), &request).unwrap();
    let again = lab.send(guest(1), &request).unwrap();
    let second = lab.begin_allocate();
    let second = lab.ask(guest(1), &login, second);

    assert_eq!(first, again);
    assert_eq!(second.code(), 437);
    assert_eq!(lab.open.len(), 1);
}

#[test]
fn a_retransmitted_refresh_to_zero_is_answered_alike() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));
    let request = lab.begin(Method::REFRESH).attribute(AttributeType::LIFETIME, &[0; 4]);
    let request = login.sign(request);

    let first = lab.send(guest(1), &request).unwrap();
    let again = lab.send(guest(1), &request).unwrap();

    assert_eq!(first, again);
    assert_eq!(Reply::new(first).lifetime(), 0);
    assert!(lab.open.is_empty());
    assert_eq!(lab.refresh(guest(1), &login, 0).code(), 437);
}

#[test]
fn lifetimes_are_ten_minutes_to_one_hour() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));

    for (asked, granted) in [(1, 600), (600, 600), (1800, 1800), (3600, 3600), (u32::MAX, 3600)] {
        assert_eq!(lab.refresh(guest(1), &login, asked).lifetime(), granted);
    }
}

#[test]
fn when_not_refreshed_in_time_an_allocation_expires_and_its_port_closes() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(guest(1));
    assert_eq!(lab.timeout, Some(lab.now + Duration::from_secs(600)));

    lab.pass(Duration::from_secs(599));
    assert_eq!(lab.open.len(), 1);
    lab.pass(Duration::from_secs(1));

    assert!(lab.open.is_empty());
    assert_eq!(lab.server.status(), Status::default());
    assert_eq!(lab.events.last(), Some(&Event::Freed { client: guest(1), relayed }));
    assert_eq!(lab.timeout, None);
    assert_eq!(lab.refresh(guest(1), &login, 600).code(), 437);
    assert_eq!(lab.permit(guest(1), &login, &["198.51.100.180"]).code(), 437);
}

#[test]
fn the_range_is_never_left_and_its_end_gives_508_and_an_event() {
    let mut lab = Lab::new();
    let mut ports = BTreeSet::new();
    for port in 1..=32 {
        ports.insert(lab.allocate(guest(port)).1.port());
    }
    lab.events.clear();

    let login = lab.alice(guest(33));
    let request = lab.begin_allocate();
    let reply = lab.ask(guest(33), &login, request);

    assert_eq!(ports, (24000..=24031).collect());
    assert_eq!(reply.code(), 508);
    let refused = Event::Refused {
        client: guest(33),
        user: "alice".into(),
        peer: None,
        rule: Rule::MediaPorts,
        code: ErrorCode::INSUFFICIENT_CAPACITY,
    };
    assert_eq!(lab.events, [Event::Exhausted, refused]);
    assert_eq!(lab.server.counters().exhausted, 1);
    let alice = lab.alice(guest(5));
    lab.refresh(guest(5), &alice, 0);
    let request = lab.begin_allocate();
    assert_eq!(lab.ask(guest(33), &login, request).code(), 0);
}

#[test]
fn ports_that_another_program_holds_are_passed_over() {
    let mut lab = Lab::new();
    lab.held = (24000..=24030).collect();

    let (login, relayed) = lab.allocate(guest(1));
    assert_eq!(relayed.port(), 24031);
    let bob = lab.bob(guest(2));
    let request = lab.begin_allocate();
    let reply = lab.ask(guest(2), &bob, request);

    assert_eq!(reply.code(), 508);
    assert!(reply.message().verify(&bob.key));
    assert_eq!(lab.server.status().active_clients, 1);
    lab.held.clear();
    lab.refresh(guest(1), &login, 0);
    for port in 1..=32 {
        lab.allocate(guest(100 + port));
    }
}

#[test]
fn even_port_with_reservation_gives_the_next_port_to_who_has_the_token() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));
    let request = lab.begin_allocate().attribute(AttributeType::EVEN_PORT, &[0x80]);
    let reply = lab.ask(guest(1), &login, request);
    let token = reply.message().attribute(AttributeType::RESERVATION_TOKEN).unwrap().to_vec();
    let bob = lab.bob(guest(2));

    let request = lab.begin_allocate().attribute(AttributeType::RESERVATION_TOKEN, &token);
    let stolen = lab.ask(guest(2), &bob, request);
    let request = lab.begin_allocate().attribute(AttributeType::RESERVATION_TOKEN, &token);
    let second = lab.ask(guest(3), &login, request);

    assert_eq!(reply.relayed().port() % 2, 0);
    assert_eq!(stolen.code(), 508);
    assert_eq!(second.relayed().port(), reply.relayed().port() + 1);
}

#[test]
fn an_unused_reservation_ends_after_thirty_seconds() {
    let mut lab = Lab::with(Settings { media_ports: Some(24000..=24001), ..settings() });
    let login = lab.alice(guest(1));
    let request = lab.begin_allocate().attribute(AttributeType::EVEN_PORT, &[0x80]);
    let token = {
        let reply = lab.ask(guest(1), &login, request);
        reply.message().attribute(AttributeType::RESERVATION_TOKEN).unwrap().to_vec()
    };
    let request = lab.begin_allocate();
    assert_eq!(lab.ask(guest(2), &login, request).code(), 508);

    lab.pass(Duration::from_secs(30));

    let request = lab.begin_allocate().attribute(AttributeType::RESERVATION_TOKEN, &token);
    assert_eq!(lab.ask(guest(2), &login, request).code(), 508);
    let request = lab.begin_allocate();
    assert_eq!(lab.ask(guest(2), &login, request).relayed().port(), 24001);
}

#[test]
fn quotas_per_user_and_source_give_486_and_the_total_gives_508() {
    let quotas = |total, per_user, per_source| {
        let quotas = Quotas { total, per_user, per_source, ..Quotas::default() };
        Lab::with(Settings { quotas, ..settings() })
    };
    let other_source = FiveTuple { client: at("203.0.113.99:1"), ..guest(1) };

    for (mut lab, client, code) in [
        (quotas(9, 1, 9), other_source, 486),
        (quotas(9, 9, 1), guest(2), 486),
        (quotas(1, 9, 9), guest(2), 508),
    ] {
        let (first, _) = lab.allocate(guest(1));
        let login = lab.alice(client);
        let request = lab.begin_allocate();
        assert_eq!(lab.ask(client, &login, request).code(), code);

        lab.refresh(guest(1), &first, 0);
        let request = lab.begin_allocate();
        assert_eq!(lab.ask(client, &login, request).code(), 0);
    }
}

#[test]
fn status_counts_clients_and_relays() {
    let mut lab = Lab::new();
    lab.allocate(guest(1));
    lab.allocate(guest(2));

    let expected = Status { active_clients: 2, active_relays_udp: 2, ..Status::default() };
    assert_eq!(lab.server.status(), expected);
    assert_eq!(lab.server.counters().allocations, 2);
}

#[test]
fn a_client_that_goes_while_its_port_is_opened_gives_back_the_reserved_port_too() {
    let mut lab = Lab::with(Settings { media_ports: Some(24000..=24001), ..settings() });
    let client = tcp(guest(1));
    let login = lab.alice(client);
    let request = lab.begin_allocate().attribute(AttributeType::EVEN_PORT, &[0x80]);
    let request = login.sign(request);

    assert_eq!(lab.server.handle_client(client, &request, lab.now), None);
    lab.server.handle_client_gone(client, lab.now);
    lab.drain();

    for port in 1..=2 {
        lab.allocate(guest(port));
    }
}

#[test]
fn a_late_copy_of_a_refresh_to_zero_does_not_end_the_next_allocation() {
    let mut lab = Lab::with(Settings { media_ports: Some(24000..=30000), ..settings() });
    let (login, _) = lab.allocate(guest(1));
    let request = lab.begin(Method::REFRESH).attribute(AttributeType::LIFETIME, &[0; 4]);
    let request = login.sign(request);
    let first = lab.send(guest(1), &request).unwrap();
    // Meanwhile a conference ends.
    for port in 1000..2000 {
        let request = lab.begin_allocate();
        assert_eq!(lab.ask(guest(port), &login, request).code(), 0);
        assert_eq!(lab.refresh(guest(port), &login, 0).code(), 0);
    }
    let again = lab.begin_allocate();
    assert_eq!(lab.ask(guest(1), &login, again).code(), 0);

    let late = lab.send(guest(1), &request).unwrap();

    assert_eq!(late, first);
    assert_eq!(lab.refresh(guest(1), &login, 600).code(), 0);
}

#[test]
fn another_user_s_request_with_the_same_transaction_id_is_no_retransmission() {
    let mut lab = Lab::new();
    let (alice, bob) = (lab.alice(guest(1)), lab.bob(guest(1)));
    let allocate = lab.begin_allocate();
    let end = lab.begin(Method::REFRESH).attribute(AttributeType::LIFETIME, &[0; 4]);

    assert_eq!(lab.ask(guest(1), &alice, allocate.clone()).code(), 0);
    assert_eq!(lab.ask(guest(1), &bob, allocate).code(), 437);
    assert_eq!(lab.ask(guest(1), &alice, end.clone()).code(), 0);
    assert_eq!(lab.ask(guest(1), &bob, end).code(), 437);
}

#[test]
fn of_even_ports_that_another_program_holds_the_next_ones_are_given_back() {
    let mut lab = Lab::with(Settings { media_ports: Some(24000..=24003), ..settings() });
    lab.held = BTreeSet::from([24000, 24002]);
    let login = lab.alice(guest(1));
    let request = lab.begin_allocate().attribute(AttributeType::EVEN_PORT, &[0x80]);

    assert_eq!(lab.ask(guest(1), &login, request).code(), 508);

    lab.held.clear();
    for port in 1..=4 {
        lab.allocate(guest(port));
    }
}
