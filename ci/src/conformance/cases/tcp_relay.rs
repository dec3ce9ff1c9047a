//! TCP allocations (RFC 6062).

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::conformance::case::{Case, Fault, Outcome, expect, expect_equal};
use crate::conformance::client::{
    Client, TCP, bind_request, expect_error, refresh_request, send_indication,
};
use crate::conformance::setting::{LAN1, NAT, Place, Stage};
use crate::conformance::stun::{
    ALLOCATE, CONNECT, CONNECTION_ATTEMPT, CONNECTION_BIND, CONNECTION_ID, DONT_FRAGMENT,
    EVEN_PORT, INDICATION, Packet, REQUESTED_TRANSPORT, RESERVATION_TOKEN, XOR_PEER_ADDRESS,
};

const PATIENCE: Duration = Duration::from_secs(4);

pub(super) const CASES: &[Case] = &[
    Case::new("a_tcp_allocation_is_granted", "RFC 6062 §5.1", |stage| {
        let relayed = control(stage)?.relayed()?;
        expect_equal("relayed address", NAT, relayed.ip())?;
        let (first, last) = stage.server.media_ports();
        expect((first..=last).contains(&relayed.port()), "a port of the media range", relayed)
    }),
    Case::new("a_tcp_allocation_over_udp_gets_400", "RFC 6062 §5.1", |stage| {
        stage.guest()?.challenged()?.refused(tcp_request(), 400).map(drop)
    }),
    Case::new("a_tcp_allocation_with_dont_fragment_gets_400", "RFC 6062 §5.1", |stage| {
        refused(stage, tcp_request().with(DONT_FRAGMENT, &[]))
    }),
    Case::new("a_tcp_allocation_with_even_port_gets_400", "RFC 6062 §5.1", |stage| {
        refused(stage, tcp_request().with(EVEN_PORT, &[0]))
    }),
    Case::new("a_tcp_allocation_with_a_reservation_token_gets_400", "RFC 6062 §5.1", |stage| {
        refused(stage, tcp_request().with(RESERVATION_TOKEN, &[3; 8]))
    }),
    Case::new("connect_reaches_the_peer_and_names_a_connection", "RFC 6062 §5.2", |stage| {
        let listener = stage.listener(Place::Media)?;
        let mut client = control(stage)?;
        let answer = client.succeed(connect_request(listener.local_addr()?))?;
        expect_equal(
            "octets of CONNECTION-ID",
            Some(4),
            answer.attribute(CONNECTION_ID).map(<[u8]>::len),
        )?;
        accept(&listener).map(drop)
    }),
    Case::new(
        "an_inside_tcp_peer_sees_lan1_and_the_relayed_port",
        "RFC 6062 §5.2, policy",
        |stage| {
            let listener = stage.listener(Place::Media)?;
            let mut client = control(stage)?;
            client.succeed(connect_request(listener.local_addr()?))?;
            let (_, source) = accept(&listener)?;
            let expected = SocketAddr::new(LAN1, client.relayed()?.port());
            expect_equal("source at the peer", expected, source)
        },
    ),
    Case::new(
        "an_outside_tcp_peer_sees_the_static_nat_address",
        "RFC 6062 §5.2, policy",
        |stage| {
            let listener = stage.listener(Place::OuterMedia)?;
            let mut client = control(stage)?;
            client.succeed(connect_request(listener.local_addr()?))?;
            let (_, source) = accept(&listener)?;
            expect_equal("source at the peer", client.relayed()?, source)
        },
    ),
    Case::new("a_bound_connection_carries_octets_both_ways", "RFC 6062 §5.4", |stage| {
        let (_client, mut data, mut peer) = joined(stage)?;
        pass(&mut data, &mut peer, b"to the peer")?;
        pass(&mut peer, &mut data, b"to the client")
    }),
    Case::new("a_bound_connection_carries_a_megabyte_both_ways", "RFC 6062 §5.4", |stage| {
        let (_client, mut data, mut peer) = joined(stage)?;
        flood(&mut data, &mut peer)?;
        flood(&mut peer, &mut data)
    }),
    Case::new("what_the_peer_says_before_the_binding_is_kept", "RFC 6062 §5.2", |stage| {
        let listener = stage.listener(Place::Media)?;
        let mut client = control(stage)?;
        let id = connection(&mut client, listener.local_addr()?)?;
        let (mut peer, _) = accept(&listener)?;
        peer.write_all(b"early")?;
        std::thread::sleep(Duration::from_millis(50));
        let (mut data, mut received) = bind_early(stage, &client, &id)?;
        data.set_read_timeout(Some(PATIENCE))?;
        let mut room = [0; 5];
        while received.len() < 5 {
            let length = data.read(&mut room)?;
            expect(length > 0, "what the peer said", "the end of the connection")?;
            received.extend(&room[..length]);
        }
        expect_equal("octets", &b"early"[..], &received[..])
    }),
    Case::new("a_half_closed_connection_still_carries_the_other_way", "RFC 6062 §5.5", |stage| {
        let (_client, mut data, mut peer) = joined(stage)?;
        data.write_all(b"the last")?;
        data.shutdown(Shutdown::Write)?;
        read_exactly(&mut peer, b"the last")?;
        expect_end(&mut peer)?;
        pass(&mut peer, &mut data, b"the answer")
    }),
    Case::new("the_end_of_the_peer_ends_the_data_connection", "RFC 6062 §5.5", |stage| {
        let (_client, mut data, peer) = joined(stage)?;
        drop(peer);
        expect_end(&mut data)
    }),
    Case::new("the_end_of_the_allocation_ends_its_connections", "RFC 6062 §5.5", |stage| {
        let (mut client, mut data, mut peer) = joined(stage)?;
        client.succeed(refresh_request(0))?;
        expect_end(&mut peer)?;
        expect_end(&mut data)
    }),
    Case::new("the_end_of_the_control_connection_ends_the_others", "RFC 6062 §5.5", |stage| {
        let (client, mut data, mut peer) = joined(stage)?;
        drop(client);
        expect_end(&mut peer)?;
        expect_end(&mut data)
    }),
    Case::new("connect_to_a_peer_again_gets_446", "RFC 6062 §5.2", |stage| {
        let listener = stage.listener(Place::Media)?;
        let mut client = control(stage)?;
        client.succeed(connect_request(listener.local_addr()?))?;
        client.refused(connect_request(listener.local_addr()?), 446).map(drop)
    }),
    Case::new("connect_to_a_closed_port_gets_447", "RFC 6062 §5.2", |stage| {
        let closed = stage.listener(Place::Media)?.local_addr()?;
        control(stage)?.refused(connect_request(closed), 447).map(drop)
    }),
    Case::new("connect_may_be_tried_again_after_447", "RFC 6062 §5.2", |stage| {
        let closed = stage.listener(Place::Media)?.local_addr()?;
        let mut client = control(stage)?;
        client.refused(connect_request(closed), 447)?;
        client.refused(connect_request(closed), 447).map(drop)
    }),
    Case::new("connect_to_several_peers_at_once", "RFC 6062 §4.3", |stage| {
        let listeners = [
            stage.listener(Place::Media)?,
            stage.listener(Place::Media)?,
            stage.listener(Place::SecondMedia)?,
        ];
        let mut client = control(stage)?;
        let mut ids = std::collections::BTreeSet::new();
        for listener in &listeners {
            ids.insert(connection(&mut client, listener.local_addr()?)?);
            accept(listener)?;
        }
        expect_equal("connection ids", 3, ids.len())
    }),
    Case::new("connect_without_a_peer_gets_400", "RFC 6062 §5.2", |stage| {
        control(stage)?.refused(Packet::new(CONNECT), 400).map(drop)
    }),
    Case::new("connect_without_an_allocation_gets_437", "RFC 6062 §5.2", |stage| {
        let peer = stage.listener(Place::Media)?.local_addr()?;
        let mut client = stage.tcp_client(Place::Guest)?.challenged()?;
        client.refused(connect_request(peer), 437).map(drop)
    }),
    Case::new("connect_on_a_udp_allocation_is_refused", "RFC 6062 §5.2", |stage| {
        let peer = stage.listener(Place::Media)?.local_addr()?;
        let mut client = stage.tcp_client(Place::Guest)?.allocated()?;
        let answer = client.request(connect_request(peer))?;
        expect(answer.error_code().is_some(), "an error", &answer)
    }),
    Case::new("connect_without_credentials_gets_401", "RFC 8489 §9.2.4", |stage| {
        let peer = stage.listener(Place::Media)?.local_addr()?;
        let answer = control(stage)?.call(&connect_request(peer))?;
        expect_error(&answer, 401)
    }),
    Case::new("connect_of_another_user_gets_441", "RFC 8656 §5", |stage| {
        let peer = stage.listener(Place::Media)?.local_addr()?;
        let mut client = control(stage)?.of_user("bob", "bob-password");
        client.refused(connect_request(peer), 441).map(drop)
    }),
    Case::new("connect_to_a_forbidden_peer_gets_403", "RFC 6062 §5.2, policy", |stage| {
        let mut client = control(stage)?;
        for peer in
            ["127.0.0.1:8080", "169.254.169.254:8080", "172.16.85.190:8080", "10.88.246.30:8080"]
        {
            client.refused(connect_request(peer.parse()?), 403)?;
        }
        Ok(())
    }),
    Case::new("connect_to_a_port_below_1024_gets_403", "policy: peers", |stage| {
        let peer = SocketAddr::new(Place::Media.ip(), 443);
        control(stage)?.refused(connect_request(peer), 403).map(drop)
    }),
    Case::new("connect_to_our_own_listener_gets_403", "policy: peers", |stage| {
        let mut client = control(stage)?;
        for ip in [NAT, LAN1] {
            let listener = SocketAddr::new(ip, stage.server.port());
            client.refused(connect_request(listener), 403)?;
        }
        Ok(())
    }),
    Case::new("connection_bind_with_an_unknown_id_gets_400", "RFC 6062 §5.4", |stage| {
        let mut data = stage.tcp_client(Place::Guest)?.challenged()?;
        data.refused(bind_packet(&[1, 2, 3, 4]), 400).map(drop)
    }),
    Case::new("connection_bind_without_an_id_gets_400", "RFC 6062 §5.4", |stage| {
        let mut data = stage.tcp_client(Place::Guest)?.challenged()?;
        data.refused(Packet::new(CONNECTION_BIND), 400).map(drop)
    }),
    Case::new("connection_bind_over_udp_gets_400", "RFC 6062 §5.4", |stage| {
        let listener = stage.listener(Place::Media)?;
        let mut client = control(stage)?;
        let id = connection(&mut client, listener.local_addr()?)?;
        stage.guest()?.challenged()?.refused(bind_packet(&id), 400).map(drop)
    }),
    Case::new("connection_bind_twice_gets_400", "RFC 6062 §5.4", |stage| {
        let listener = stage.listener(Place::Media)?;
        let mut client = control(stage)?;
        let id = connection(&mut client, listener.local_addr()?)?;
        let _data = bind(stage, &client, &id)?;
        let mut again = stage.tcp_client(Place::Guest)?.challenged()?;
        again.refused(bind_packet(&id), 400).map(drop)
    }),
    Case::new("connection_bind_without_credentials_gets_401", "RFC 8489 §9.2.4", |stage| {
        let listener = stage.listener(Place::Media)?;
        let mut client = control(stage)?;
        let id = connection(&mut client, listener.local_addr()?)?;
        let answer = stage.tcp_client(Place::Guest)?.call(&bind_packet(&id))?;
        expect_error(&answer, 401)
    }),
    Case::new("connection_bind_of_another_user_is_refused", "RFC 8656 §5", |stage| {
        let listener = stage.listener(Place::Media)?;
        let mut client = control(stage)?;
        let id = connection(&mut client, listener.local_addr()?)?;
        let (mut peer, _) = accept(&listener)?;
        let thief = stage.tcp_client(Place::Guest)?.of_user("bob", "bob-password");
        let answer = thief.challenged()?.request(bind_packet(&id))?;
        expect(matches!(answer.error_code(), Some(400 | 441)), "error 441 or 400", &answer)?;
        let mut data = bind(stage, &client, &id)?;
        pass(&mut data, &mut peer, b"still ours")
    }),
    Case::new("a_permitted_peer_that_connects_is_announced", "RFC 6062 §5.3", |stage| {
        let (client, id, mut peer) = attempted(stage, Place::OuterMedia, NAT)?;
        let mut data = bind(stage, &client, &id)?;
        pass(&mut peer, &mut data, b"to the client")?;
        pass(&mut data, &mut peer, b"to the peer")
    }),
    Case::new("a_permitted_inside_peer_connects_to_lan1", "RFC 6062 §5.3, policy", |stage| {
        let (client, id, mut peer) = attempted(stage, Place::Media, LAN1)?;
        let mut data = bind(stage, &client, &id)?;
        pass(&mut peer, &mut data, b"to the client")
    }),
    Case::new("a_peer_without_permission_is_closed", "RFC 6062 §5.3", |stage| {
        let mut client = control(stage)?;
        let mut peer = stage.stream(Place::OuterMedia, client.relayed()?)?;
        expect_end(&mut peer)?;
        client.hears_nothing()
    }),
    Case::new("channel_bind_on_a_tcp_allocation_gets_403", "RFC 6062 §5", |stage| {
        let peer = SocketAddr::new(Place::Media.ip(), 40_000);
        let mut client = control(stage)?;
        let answer = client.request(bind_request(0x4000, peer))?;
        expect(matches!(answer.error_code(), Some(400 | 403)), "error 403 or 400", &answer)
    }),
    Case::new("a_send_indication_on_a_tcp_allocation_is_ignored", "RFC 6062 §5", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = control(stage)?;
        client.permit(&[peer.address])?;
        client.send(send_indication(peer.address, b"no").bytes())?;
        client.hears_nothing()?;
        peer.hears_nothing()
    }),
    Case::new("two_tcp_relays_meet_in_the_process", "policy: relay to relay", |stage| {
        let mut first = control(stage)?;
        let mut second = control(stage)?;
        second.permit(&[first.relayed()?])?;
        let id = connection(&mut first, second.relayed()?)?;
        let attempt = second.expect_message(CONNECTION_ATTEMPT | INDICATION)?;
        expect_equal("peer", Some(first.relayed()?), attempt.address(XOR_PEER_ADDRESS))?;
        let other = attempt.attribute(CONNECTION_ID).unwrap_or_default().to_vec();
        let mut one = bind(stage, &first, &id)?;
        let mut two = bind(stage, &second, &other)?;
        pass(&mut one, &mut two, b"there")?;
        pass(&mut two, &mut one, b"and back")
    }),
    Case::new("refresh_keeps_a_tcp_allocation", "RFC 8656 §8", |stage| {
        let mut client = control(stage)?;
        client.succeed(refresh_request(600))?;
        client.refused(tcp_request(), 437).map(drop)
    }),
];

fn tcp_request() -> Packet {
    Packet::new(ALLOCATE).number(REQUESTED_TRANSPORT, TCP)
}

fn connect_request(peer: SocketAddr) -> Packet {
    Packet::new(CONNECT).address(XOR_PEER_ADDRESS, peer)
}

fn bind_packet(id: &[u8]) -> Packet {
    Packet::new(CONNECTION_BIND).with(CONNECTION_ID, id)
}

fn refused(stage: &Stage<'_>, request: Packet) -> Outcome {
    let mut client = stage.tcp_client(Place::Guest)?.challenged()?;
    client.refused(request, 400).map(drop)
}

/// A client with a TCP allocation.
fn control(stage: &Stage<'_>) -> Outcome<Client> {
    stage.tcp_client(Place::Guest)?.allocated_with(tcp_request())
}

/// The id of a new connection to `peer`.
fn connection(client: &mut Client, peer: SocketAddr) -> Outcome<Vec<u8>> {
    let answer = client.succeed(connect_request(peer))?;
    let id = answer.attribute(CONNECTION_ID).unwrap_or_default().to_vec();
    expect_equal("octets of CONNECTION-ID", 4, id.len())?;
    Ok(id)
}

/// A data connection bound to that id, by the user of `client`.
fn bind(stage: &Stage<'_>, client: &Client, id: &[u8]) -> Outcome<TcpStream> {
    let (stream, rest) = bind_early(stage, client, id)?;
    expect_equal("octets behind the answer", 0, rest.len())?;
    Ok(stream)
}

/// The same, with what came right behind the answer.
fn bind_early(stage: &Stage<'_>, client: &Client, id: &[u8]) -> Outcome<(TcpStream, Vec<u8>)> {
    let mut data = stage.tcp_client(Place::Guest)?.of_user(&client.user, &client.password);
    // As a client does that has just been talking to this server.
    data.realm.clone_from(&client.realm);
    data.nonce.clone_from(&client.nonce);
    let mut answer = data.request(bind_packet(id))?;
    if matches!(answer.error_code(), Some(401 | 438)) {
        data.learn(&answer);
        answer = data.request(bind_packet(id))?;
    }
    data.check_success(&answer)?;
    data.into_stream()
}

/// A client, its data connection, and the peer's end of it.
fn joined(stage: &Stage<'_>) -> Outcome<(Client, TcpStream, TcpStream)> {
    let listener = stage.listener(Place::Media)?;
    let mut client = control(stage)?;
    let id = connection(&mut client, listener.local_addr()?)?;
    let (peer, _) = accept(&listener)?;
    let data = bind(stage, &client, &id)?;
    Ok((client, data, peer))
}

/// A client, the id of what was announced to it, and the peer that connected.
fn attempted(
    stage: &Stage<'_>,
    place: Place,
    face: IpAddr,
) -> Outcome<(Client, Vec<u8>, TcpStream)> {
    let mut client = control(stage)?;
    client.permit(&[SocketAddr::new(place.ip(), 0)])?;
    let relay = SocketAddr::new(face, client.relayed()?.port());
    let peer = stage.stream(place, relay)?;
    let attempt = client.expect_message(CONNECTION_ATTEMPT | INDICATION)?;
    let address = attempt.address(XOR_PEER_ADDRESS);
    expect_equal("peer", Some(peer.local_addr()?), address)?;
    let id = attempt.attribute(CONNECTION_ID).unwrap_or_default().to_vec();
    expect_equal("octets of CONNECTION-ID", 4, id.len())?;
    Ok((client, id, peer))
}

fn accept(listener: &TcpListener) -> Outcome<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, source)) => {
                stream.set_nonblocking(false)?;
                return Ok((stream, source));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                expect(Instant::now() < deadline, "a connection at the peer", "none")?;
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, octets: &[u8]) -> Outcome {
    if let Err(error) = from.write_all(octets) {
        return Err(Fault::differs("an open connection", error.to_string()));
    }
    read_exactly(to, octets)
}

fn read_exactly(stream: &mut TcpStream, octets: &[u8]) -> Outcome {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut room = vec![0; octets.len()];
    match stream.read_exact(&mut room) {
        Ok(()) => expect_equal("octets", octets, &room[..]),
        Err(error) => Err(Fault::differs(format!("{} octets", octets.len()), error.to_string())),
    }
}

/// A megabyte passes unchanged.
fn flood(from: &mut TcpStream, to: &mut TcpStream) -> Outcome {
    let octets: Vec<u8> =
        (0..1_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| from.write_all(&octets));
        let mut room = vec![0; octets.len()];
        to.set_read_timeout(Some(PATIENCE))?;
        let read = to.read_exact(&mut room);
        if let Err(error) = read {
            return Err(Fault::differs("a megabyte", error.to_string()));
        }
        writer.join().expect("writing does not panic")?;
        expect(room == octets, "the same octets", "others")
    })
}

/// The other side ends this connection.
fn expect_end(stream: &mut TcpStream) -> Outcome {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut room = [0; 64];
    match stream.read(&mut room) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => Err(Fault::differs("the end of the connection", format!("{other:?}"))),
    }
}
