//! ICMP errors to the client (RFC 8656 §11.5).

use std::time::Duration;

use postern_turn::stun::{AttributeType, Class, Message, Method};
use postern_turn::{IcmpError, RelayPort, Settings, Side};

use crate::lab::{Lab, MEDIA_SERVER, at, guest, settings};

const UNREACHABLE: IcmpError = IcmpError { kind: 3, code: 3, mtu: 0 };

fn lab() -> (Lab, RelayPort) {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(guest(1));
    lab.permit(guest(1), &login, &["198.51.100.180"]);
    (lab, RelayPort(relayed.port()))
}

#[test]
fn an_error_about_a_permitted_peer_reaches_the_client_as_a_data_indication_without_data() {
    let (mut lab, relay) = lab();
    let too_big = IcmpError { kind: 3, code: 4, mtu: 1400 };

    lab.server.handle_icmp(relay, Side::Inside, at(MEDIA_SERVER), too_big, lab.now);

    let said = lab.said();
    let [(to, bytes)] = &said[..] else { panic!("{said:?}") };
    let message = Message::parse(bytes).unwrap();
    assert_eq!(*to, guest(1));
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
    assert_eq!(message.xor_address(AttributeType::XOR_PEER_ADDRESS), Some(at(MEDIA_SERVER)));
    assert_eq!(message.attribute(AttributeType::DATA), None);
    let icmp = [0, 0, 0x06, 4, 0, 0, 0x05, 0x78];
    assert_eq!(message.attribute(AttributeType::ICMP), Some(&icmp[..]));
}

#[test]
fn errors_about_strangers_wrong_faces_and_other_types_are_dropped() {
    let (mut lab, relay) = lab();
    let peer = at(MEDIA_SERVER);
    let echo = IcmpError { kind: 8, ..UNREACHABLE };

    for (relay, face, peer, error) in [
        (relay, Side::Inside, at("198.51.100.181:40000"), UNREACHABLE),
        (relay, Side::Outside, peer, UNREACHABLE),
        (RelayPort(relay.0 ^ 1), Side::Inside, peer, UNREACHABLE),
        (relay, Side::Inside, peer, echo),
        (relay, Side::Outside, at("[2001:db8:9::1]:1024"), UNREACHABLE),
    ] {
        lab.server.handle_icmp(relay, face, peer, error, lab.now);
    }

    assert_eq!(lab.said(), []);
    assert_eq!(lab.server.counters().icmp_dropped, 5);
}

#[test]
fn a_policy_that_changed_hides_errors_about_the_peer_too() {
    let (mut lab, relay) = lab();

    lab.set_config(Settings { allow: Vec::new(), ..settings() });
    lab.server.handle_icmp(relay, Side::Inside, at(MEDIA_SERVER), UNREACHABLE, lab.now);

    assert_eq!(lab.said(), []);
}

#[test]
fn a_flood_of_errors_is_thinned_to_ten_a_second() {
    let (mut lab, relay) = lab();

    for _ in 0..1000 {
        lab.server.handle_icmp(relay, Side::Inside, at(MEDIA_SERVER), UNREACHABLE, lab.now);
    }
    let at_once = lab.said().len();
    lab.pass(Duration::from_secs(1));
    for _ in 0..1000 {
        lab.server.handle_icmp(relay, Side::Inside, at(MEDIA_SERVER), UNREACHABLE, lab.now);
    }

    assert_eq!(at_once, 20);
    assert_eq!(lab.said().len(), 10);
    assert_eq!(lab.server.counters().icmp, 30);
}
