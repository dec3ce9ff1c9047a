//! TCP allocations (RFC 6062).

use std::net::SocketAddr;
use std::time::Duration;

use postern_turn::stun::{AttributeType, Class, Message, Method};
use postern_turn::{
    ConnectError, ConnectionId, FiveTuple, Output, RelayPort, RelayTransport, Rule, Settings, Side,
    Status,
};

use crate::lab::{
    LAN1, Lab, Login, MEDIA_SERVER, NAT, OUTSIDE_PEER, Reply, at, guest, ip, settings, tcp,
};

const TRANSPORT: AttributeType = AttributeType::REQUESTED_TRANSPORT;

fn tcp_relay() -> Settings {
    Settings { tcp_relay: true, ..settings() }
}

fn allocate(lab: &mut Lab, client: FiveTuple) -> (Login, Reply) {
    let login = lab.alice(client);
    let request = lab.begin(Method::ALLOCATE).attribute(TRANSPORT, &[6, 0, 0, 0]);
    let reply = lab.ask(client, &login, request);
    (login, reply)
}

/// Sends Connect; the reply comes when the connection is there.
fn connect(lab: &mut Lab, client: FiveTuple, login: &Login, peer: SocketAddr) -> Option<Reply> {
    let request = lab.begin(Method::CONNECT).xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
    lab.send(client, &login.sign(request)).map(Reply::new)
}

/// The connection that the server wanted last.
fn wanted(lab: &mut Lab) -> ConnectionId {
    match lab.wanted.pop() {
        Some(Output::Connect { connection, .. } | Output::ConnectInside { connection, .. }) => {
            connection
        }
        other => panic!("{other:?}"),
    }
}

fn connected(lab: &mut Lab, client: FiveTuple, login: &Login, peer: SocketAddr) -> ConnectionId {
    assert!(connect(lab, client, login, peer).is_none());
    let connection = wanted(lab);
    lab.server.handle_connected(connection, Ok(()), lab.now);
    let said = lab.said();
    let [(_, reply)] = &said[..] else { panic!("{said:?}") };
    let id = Reply::new(reply.clone()).value(AttributeType::CONNECTION_ID);
    assert_eq!(id, connection.0.to_be_bytes());
    connection
}

fn bind(lab: &mut Lab, client: FiveTuple, login: &Login, connection: ConnectionId) -> Reply {
    let request = lab
        .begin(Method::CONNECTION_BIND)
        .attribute(AttributeType::CONNECTION_ID, &connection.0.to_be_bytes());
    lab.ask(client, login, request)
}

#[test]
fn a_site_without_tcp_relay_answers_442() {
    let mut lab = Lab::new();

    assert_eq!(allocate(&mut lab, tcp(guest(1))).1.code(), 442);
    assert_eq!(lab.server.counters().refused.of(Rule::TcpRelay), 1);
}

#[test]
fn a_tcp_allocation_needs_a_client_over_tcp_and_no_attribute_about_datagrams() {
    let mut lab = Lab::with(tcp_relay());
    assert_eq!(allocate(&mut lab, guest(1)).1.code(), 400);
    let login = lab.alice(tcp(guest(1)));

    for (kind, value) in [
        (AttributeType::EVEN_PORT, &[0][..]),
        (AttributeType::EVEN_PORT, &[0x80]),
        (AttributeType::DONT_FRAGMENT, &[]),
        (AttributeType::RESERVATION_TOKEN, &[1; 8]),
    ] {
        let request =
            lab.begin(Method::ALLOCATE).attribute(TRANSPORT, &[6, 0, 0, 0]).attribute(kind, value);
        assert_eq!(lab.ask(tcp(guest(1)), &login, request).code(), 400, "{kind:?}");
    }
    let (_, reply) = allocate(&mut lab, tcp(guest(1)));
    assert_eq!(reply.relayed().ip(), ip(NAT));
    let status = lab.server.allocations(lab.now, 1);
    assert_eq!(status[0].transport, RelayTransport::Tcp);
}

#[test]
fn connect_opens_a_connection_from_the_relay_port_and_connection_bind_joins_a_stream_to_it() {
    let mut lab = Lab::with(tcp_relay());
    let (login, reply) = allocate(&mut lab, tcp(guest(1)));
    let port = reply.relayed().port();

    assert!(connect(&mut lab, tcp(guest(1)), &login, at(MEDIA_SERVER)).is_none());
    let Some(Output::Connect { connection, relay, side, local, peer }) = lab.wanted.pop() else {
        panic!("no Connect");
    };
    assert_eq!((relay, side, peer), (RelayPort(port), Side::Inside, at(MEDIA_SERVER)));
    assert_eq!(local, SocketAddr::new(ip(LAN1), port));
    lab.server.handle_connected(connection, Ok(()), lab.now);
    let said = lab.said();
    assert_eq!(said[0].0, tcp(guest(1)));
    let success = Reply::new(said[0].1.clone());
    assert!(success.message().verify(&login.key));
    assert_eq!(success.message().method(), Method::CONNECT);
    assert_eq!(success.value(AttributeType::CONNECTION_ID), connection.0.to_be_bytes());

    let data = tcp(guest(2));
    let data_login = lab.alice(data);
    assert_eq!(bind(&mut lab, data, &data_login, connection).code(), 0);

    assert_eq!(lab.wanted, [Output::Join { client: data, connection }]);
    let status = lab.server.status();
    assert_eq!((status.active_clients, status.connections), (1, 1));
    lab.pass(Duration::from_secs(31));
    assert_eq!(lab.wanted.len(), 1, "a bound connection has time");
    lab.server.handle_connection_closed(connection, lab.now);
    assert_eq!(lab.server.status().connections, 0);
    connected(&mut lab, tcp(guest(1)), &login, at(MEDIA_SERVER));
}

#[test]
fn connect_is_refused_by_the_policy_the_family_and_the_kind_of_allocation() {
    let mut lab = Lab::with(tcp_relay());
    let (login, _) = allocate(&mut lab, tcp(guest(1)));
    let client = tcp(guest(1));

    for (peer, code) in [
        (OUTSIDE_PEER, 403),
        ("127.0.0.1:5000", 403),
        ("192.0.2.62:5000", 403),
        ("198.51.100.180:80", 403),
        ("203.0.113.156:9999", 403),
        ("203.0.113.156:24001", 447),
        ("[2001:db8:9::1]:5000", 443),
    ] {
        let code_is = connect(&mut lab, client, &login, at(peer)).unwrap().code();
        assert_eq!(code_is, code, "{peer}");
    }
    let request = lab.begin(Method::CONNECT);
    assert_eq!(lab.ask(client, &login, request).code(), 400);
    let (udp, _) = lab.allocate(tcp(guest(3)));
    let refused = connect(&mut lab, tcp(guest(3)), &udp, at(MEDIA_SERVER)).unwrap();
    assert_eq!(refused.code(), 437);
    let nobody = lab.alice(tcp(guest(4)));
    let refused = connect(&mut lab, tcp(guest(4)), &nobody, at(MEDIA_SERVER)).unwrap();
    assert_eq!(refused.code(), 437);
    assert_eq!(lab.wanted, []);
    assert_eq!(lab.server.status().connections, 0);
}

#[test]
fn a_second_connection_to_a_peer_gives_446_until_the_first_has_ended() {
    let mut lab = Lab::with(tcp_relay());
    let (login, _) = allocate(&mut lab, tcp(guest(1)));
    let client = tcp(guest(1));
    let peer = at(MEDIA_SERVER);
    assert!(connect(&mut lab, client, &login, peer).is_none());
    let first = wanted(&mut lab);

    assert_eq!(connect(&mut lab, client, &login, peer).unwrap().code(), 446, "in the making");
    lab.server.handle_connected(first, Ok(()), lab.now);
    lab.forget_replies();
    assert_eq!(connect(&mut lab, client, &login, peer).unwrap().code(), 446, "not bound");
    let data_login = lab.alice(tcp(guest(2)));
    bind(&mut lab, tcp(guest(2)), &data_login, first);
    assert_eq!(connect(&mut lab, client, &login, peer).unwrap().code(), 446, "bound");
    assert!(connect(&mut lab, client, &login, at("198.51.100.180:40001")).is_none());

    lab.server.handle_connection_closed(first, lab.now);
    assert!(connect(&mut lab, client, &login, peer).is_none());
}

#[test]
fn a_connection_that_fails_or_takes_thirty_seconds_gives_447() {
    let mut lab = Lab::with(tcp_relay());
    let (login, _) = allocate(&mut lab, tcp(guest(1)));
    let client = tcp(guest(1));

    assert!(connect(&mut lab, client, &login, at(MEDIA_SERVER)).is_none());
    let first = wanted(&mut lab);
    lab.server.handle_connected(first, Err(ConnectError), lab.now);
    assert_eq!(Reply::new(lab.said()[0].1.clone()).code(), 447);

    assert!(connect(&mut lab, client, &login, at(MEDIA_SERVER)).is_none());
    let second = wanted(&mut lab);
    lab.pass(Duration::from_secs(29));
    assert_eq!(lab.said(), []);
    lab.pass(Duration::from_secs(1));
    assert_eq!(Reply::new(lab.said()[0].1.clone()).code(), 447);
    assert_eq!(lab.wanted, [Output::CloseConnection(second)]);
    lab.server.handle_connected(second, Ok(()), lab.now);
    assert_eq!(lab.said(), []);
    assert_eq!(lab.wanted.len(), 2, "a connection that comes too late is closed again");
}

#[test]
fn a_connection_that_nobody_binds_is_closed_thirty_seconds_after_it_was_made() {
    let mut lab = Lab::with(tcp_relay());
    let (login, _) = allocate(&mut lab, tcp(guest(1)));
    assert!(connect(&mut lab, tcp(guest(1)), &login, at(MEDIA_SERVER)).is_none());
    let connection = wanted(&mut lab);
    lab.pass(Duration::from_secs(20));
    lab.server.handle_connected(connection, Ok(()), lab.now);
    lab.forget_replies();

    lab.pass(Duration::from_secs(29));
    assert_eq!(lab.wanted, []);
    lab.pass(Duration::from_secs(1));

    assert_eq!(lab.wanted, [Output::CloseConnection(connection)]);
    let data_login = lab.alice(tcp(guest(2)));
    assert_eq!(bind(&mut lab, tcp(guest(2)), &data_login, connection).code(), 400);
}

#[test]
fn connection_bind_needs_a_waiting_connection_its_user_and_a_stream_of_its_own() {
    let mut lab = Lab::with(tcp_relay());
    let (login, _) = allocate(&mut lab, tcp(guest(1)));
    let connection = connected(&mut lab, tcp(guest(1)), &login, at(MEDIA_SERVER));
    let data = tcp(guest(2));
    let data_login = lab.alice(data);
    let bob = lab.bob(data);

    let request = lab.begin(Method::CONNECTION_BIND);
    assert_eq!(lab.ask(data, &data_login, request).code(), 400, "no CONNECTION-ID");
    let wrong = ConnectionId(connection.0 ^ 0x10);
    assert_eq!(bind(&mut lab, data, &data_login, wrong).code(), 400);
    let no_shard = ConnectionId(connection.0 ^ 5);
    assert_eq!(bind(&mut lab, data, &data_login, no_shard).code(), 400);
    assert_eq!(bind(&mut lab, data, &bob, connection).code(), 441);
    assert_eq!(bind(&mut lab, guest(2), &data_login, connection).code(), 400, "over UDP");
    assert_eq!(bind(&mut lab, tcp(guest(1)), &login, connection).code(), 400, "on the control one");
    assert_eq!(bind(&mut lab, data, &data_login, connection).code(), 0);
    let again = lab.alice(tcp(guest(3)));
    assert_eq!(bind(&mut lab, tcp(guest(3)), &again, connection).code(), 400, "bound already");
}

#[test]
fn a_peer_with_a_permission_may_connect_and_the_client_hears_of_it() {
    let mut lab = Lab::with(tcp_relay());
    let (login, reply) = allocate(&mut lab, tcp(guest(1)));
    let relay = RelayPort(reply.relayed().port());
    let (peer, now) = (at(MEDIA_SERVER), lab.now);

    assert_eq!(lab.server.handle_peer_connected(relay, Side::Inside, peer, now), None);
    lab.permit(tcp(guest(1)), &login, &["198.51.100.180"]);
    assert_eq!(lab.server.handle_peer_connected(relay, Side::Outside, peer, now), None);
    let connection = lab.server.handle_peer_connected(relay, Side::Inside, peer, now).unwrap();

    let said = lab.said();
    let [(to, bytes)] = &said[..] else { panic!("{said:?}") };
    let attempt = Message::parse(bytes).unwrap();
    assert_eq!(*to, tcp(guest(1)));
    assert_eq!((attempt.class(), attempt.method()), (Class::Indication, Method(0x00C)));
    assert_eq!(attempt.xor_address(AttributeType::XOR_PEER_ADDRESS), Some(peer));
    let id = attempt.attribute(AttributeType::CONNECTION_ID).unwrap();
    assert_eq!(id, connection.0.to_be_bytes());
    let data_login = lab.alice(tcp(guest(2)));
    assert_eq!(bind(&mut lab, tcp(guest(2)), &data_login, connection).code(), 0);
}

#[test]
fn connections_that_nobody_binds_are_bounded_per_allocation_and_per_source() {
    let mut lab = Lab::with(tcp_relay());
    let mut accepted = Vec::new();
    for client in 1..=6 {
        let (login, reply) = allocate(&mut lab, tcp(guest(client)));
        let relay = RelayPort(reply.relayed().port());
        lab.permit(tcp(guest(client)), &login, &["198.51.100.180"]);
        let accept = |port: u16| {
            let peer = SocketAddr::new(ip("198.51.100.180"), 2000 + port);
            lab.server.handle_peer_connected(relay, Side::Inside, peer, lab.now)
        };
        accepted.push((0..1000_u16).filter_map(accept).count());
        lab.forget_replies();
    }

    assert_eq!(accepted, [16, 16, 16, 16, 0, 0]);
    assert!(lab.server.counters().refused.of(Rule::AllocationQuota) > 5000);
    lab.pass(Duration::from_secs(30));
    assert_eq!(lab.wanted.len(), 64);
    assert_eq!(lab.server.status().connections, 0);
    let (login, _) = allocate(&mut lab, tcp(guest(9)));
    connected(&mut lab, tcp(guest(9)), &login, at(MEDIA_SERVER));
}

#[test]
fn the_end_of_the_control_connection_ends_the_allocation_and_its_connections() {
    let mut lab = Lab::with(tcp_relay());
    let (login, _) = allocate(&mut lab, tcp(guest(1)));
    let bound = connected(&mut lab, tcp(guest(1)), &login, at(MEDIA_SERVER));
    let data_login = lab.alice(tcp(guest(2)));
    bind(&mut lab, tcp(guest(2)), &data_login, bound);
    lab.wanted.clear();
    let unbound = connected(&mut lab, tcp(guest(1)), &login, at("198.51.100.180:40001"));

    lab.server.handle_client_gone(tcp(guest(1)), lab.now);
    lab.drain();

    assert_eq!(lab.wanted, [Output::CloseConnection(bound), Output::CloseConnection(unbound)]);
    assert_eq!(lab.server.status(), Status::default());
    assert!(lab.open.is_empty());
    assert_eq!(lab.timeout, None);
}

#[test]
fn a_tcp_allocation_relays_no_datagrams() {
    let mut lab = Lab::with(tcp_relay());
    let (login, reply) = allocate(&mut lab, tcp(guest(1)));
    let client = tcp(guest(1));
    lab.permit(client, &login, &["198.51.100.180", NAT]);

    assert_eq!(lab.bind(client, &login, 0x4000, at(MEDIA_SERVER)).code(), 400);
    assert_eq!(lab.indicate(client, at(MEDIA_SERVER), b"x"), None);
    let (udp, _) = lab.allocate(guest(2));
    lab.permit(guest(2), &udp, &[NAT]);
    assert_eq!(lab.indicate(guest(2), reply.relayed(), b"x"), None);
}

#[test]
fn two_tcp_relays_of_the_box_are_connected_in_the_process_on_whatever_shards_they_are() {
    let mut lab = Lab::sharded(tcp_relay(), 2);
    lab.homes.insert(tcp(guest(2)), 1);
    let (a, relay_a) = allocate(&mut lab, tcp(guest(1)));
    let (b, relay_b) = allocate(&mut lab, tcp(guest(2)));
    let (relay_a, relay_b) = (relay_a.relayed(), relay_b.relayed());
    let client_a = tcp(guest(1));

    assert!(connect(&mut lab, client_a, &a, relay_b).is_none());
    let Some(Output::ConnectInside { connection, shard, origin, target }) = lab.wanted.pop() else {
        panic!("no ConnectInside");
    };
    assert_eq!((shard.0, target), (1, relay_b));
    let now = lab.now;
    assert_eq!(lab.shard(1).handle_relay_connected(origin, target, now), None, "no permission");
    lab.permit(tcp(guest(2)), &b, &[NAT]);
    let other_end = lab.shard(1).handle_relay_connected(origin, target, now).unwrap();
    lab.server.handle_connected(connection, Ok(()), now);

    let said = lab.said();
    assert_eq!(said.len(), 2);
    let attempt = Message::parse(&said[1].1).unwrap();
    assert_eq!(said[1].0, tcp(guest(2)));
    assert_eq!(attempt.xor_address(AttributeType::XOR_PEER_ADDRESS), Some(relay_a));

    // The client data connection comes in on the other shard and moves to the connection's.
    let data = tcp(guest(3));
    let data_login = lab.alice(data);
    assert_eq!(bind(&mut lab, data, &data_login, other_end).code(), 0);
    assert_eq!(lab.homes[&data], 1);
    assert_eq!(lab.wanted, [Output::Join { client: data, connection: other_end }]);
    let data = tcp(guest(4));
    lab.homes.insert(data, 1);
    let data_login = lab.alice(data);
    assert_eq!(bind(&mut lab, data, &data_login, connection).code(), 0);
    assert_eq!(lab.homes[&data], 0);
}
