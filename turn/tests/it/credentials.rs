//! Long-term credentials of RFC 5389: 401, 400, 438, 441 and what they give away.

use std::time::Duration;

use postern_turn::stun::{AttributeType, Key, Message, Method};
use postern_turn::{Event, FiveTuple, Refusal, Settings};

use crate::lab::{Lab, Login, REALM, Reply, at, guest, settings};

#[test]
fn a_first_request_without_credentials_is_challenged_and_no_failure() {
    let mut lab = Lab::new();

    lab.alice(guest(1));

    assert_eq!(lab.server.counters().refused_credentials, 0);
    assert_eq!(lab.events, []);
}

#[test]
fn a_wrong_password_gives_401_and_names_user_and_source() {
    let mut lab = Lab::new();
    let login = lab.login(guest(40000), "alice", "wrong");

    let request = lab.begin_allocate();
    let reply = lab.ask(guest(40000), &login, request);

    assert_eq!(reply.code(), 401);
    assert!(!reply.message().has_integrity());
    assert!(reply.message().attribute(AttributeType::NONCE).is_some());
    assert_eq!(lab.server.counters().refused_credentials, 1);
    let event = Event::RefusedCredentials {
        user: "alice".into(),
        source: guest(40000).client,
        reason: Refusal::WrongPassword,
    };
    assert_eq!(lab.events, [event]);
}

#[test]
fn an_unknown_user_looks_like_a_wrong_password() {
    let mut lab = Lab::new();
    let login = lab.login(guest(1), "mallory", "wonder");

    let request = lab.begin_allocate();
    let reply = lab.ask(guest(1), &login, request);

    assert_eq!(reply.code(), 401);
    assert_eq!(lab.server.counters().refused_credentials, 1);
    let event = Event::RefusedCredentials {
        user: "mallory".into(),
        source: guest(1).client,
        reason: Refusal::UnknownUser,
    };
    assert_eq!(lab.events, [event]);
}

#[test]
fn another_realm_gives_401_with_ours_and_says_so() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));
    let request = lab
        .begin_allocate()
        .attribute(AttributeType::USERNAME, b"alice")
        .attribute(AttributeType::REALM, b"example.net")
        .attribute(AttributeType::NONCE, &login.nonce)
        .integrity(&login.key)
        .finish();

    let reply = Reply::new(lab.send(guest(1), &request).unwrap());

    assert_eq!(reply.code(), 401);
    assert_eq!(reply.message().attribute(AttributeType::REALM), Some(REALM.as_bytes()));
    assert!(matches!(lab.events[..], [Event::RefusedCredentials { reason: Refusal::Realm, .. }]));
}

#[test]
fn an_unknown_attribute_that_may_be_ignored_is() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));

    let request = lab.begin_allocate().attribute(AttributeType(0xC057), &[0, 0, 0, 1]);

    assert_eq!(lab.ask(guest(1), &login, request).code(), 0);
}

#[test]
fn missing_user_realm_or_nonce_beside_integrity_gives_400() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));
    for missing in [AttributeType::USERNAME, AttributeType::REALM, AttributeType::NONCE] {
        let mut request = lab.begin_allocate();
        for (kind, value) in [
            (AttributeType::USERNAME, &b"alice"[..]),
            (AttributeType::REALM, REALM.as_bytes()),
            (AttributeType::NONCE, &login.nonce),
        ] {
            if kind != missing {
                request = request.attribute(kind, value);
            }
        }

        let reply = lab.send(guest(1), &request.integrity(&login.key).finish()).unwrap();

        assert_eq!(Reply::new(reply).code(), 400, "{missing:?}");
    }
}

#[test]
fn a_foreign_nonce_gives_438_and_is_no_failure() {
    let mut lab = Lab::new();
    let login = lab.login(guest(1), "alice", "wrong");
    let changed = {
        let mut nonce = login.nonce.clone();
        nonce[20] = if nonce[20] == b'A' { b'B' } else { b'A' };
        nonce
    };

    for nonce in [b"never issued".to_vec(), Vec::new(), vec![0xFF; 40], changed] {
        let request = lab.begin_allocate();
        let reply = lab.ask(guest(1), &Login { nonce, ..login.clone() }, request);

        assert_eq!(reply.code(), 438);
        assert!(reply.message().attribute(AttributeType::NONCE).is_some());
    }
    assert_eq!(lab.server.counters().refused_credentials, 0);
}

#[test]
fn a_nonce_is_bound_to_the_source_address_but_not_to_its_port() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));
    let elsewhere = FiveTuple { client: at("203.0.113.8:1"), ..guest(1) };

    let request = lab.begin_allocate();
    let other_port = lab.ask(guest(2), &login, request);
    let request = lab.begin_allocate();
    let other_address = lab.ask(elsewhere, &login, request);

    assert_eq!((other_port.code(), other_address.code()), (0, 438));
}

#[test]
fn two_sockets_never_get_the_same_nonce() {
    let mut lab = Lab::new();

    let [one, two] = [1, 2].map(|port| lab.alice(guest(port)).nonce);

    assert_ne!(one, two);
}

#[test]
fn an_ipv6_nonce_is_bound_to_the_64() {
    let mut lab = Lab::new();
    let from = |client: &str| FiveTuple { client: at(client), ..guest(1) };
    let login = lab.alice(from("[2001:db8:5:5::1]:1"));

    let request = lab.begin_allocate();
    let same = lab.ask(from("[2001:db8:5:5:ffff::2]:1"), &login, request);
    let request = lab.begin_allocate();
    let other = lab.ask(from("[2001:db8:5:6::1]:1"), &login, request);

    assert_eq!((same.code(), other.code()), (0, 438));
}

#[test]
fn a_nonce_ends_after_an_hour_and_the_new_one_works() {
    let mut lab = Lab::new();
    let (mut login, _) = lab.allocate(guest(1));
    for _ in 0..6 {
        lab.pass(Duration::from_secs(599));
        assert_eq!(lab.refresh(guest(1), &login, 600).code(), 0);
    }
    lab.pass(Duration::from_secs(30));

    let stale = lab.refresh(guest(1), &login, 600);
    login.nonce = stale.message().attribute(AttributeType::NONCE).unwrap().to_vec();
    let fresh = lab.refresh(guest(1), &login, 600);

    assert_eq!((stale.code(), fresh.code()), (438, 0));
}

#[test]
fn a_nonce_of_the_last_hours_key_is_valid_until_its_own_hour_is_over() {
    let mut lab = Lab::new();
    lab.pass(Duration::from_secs(3590));
    let login = lab.alice(guest(1));

    lab.pass(Duration::from_secs(3590));
    let request = lab.begin_allocate();
    let young = lab.ask(guest(1), &login, request);
    lab.pass(Duration::from_secs(20));
    let old = lab.refresh(guest(1), &login, 600);
    lab.pass(Duration::from_secs(2 * 3600));
    let request = lab.begin_allocate();
    let ancient = lab.ask(guest(1), &login, request);

    assert_eq!([young.code(), old.code(), ancient.code()], [0, 438, 438]);
}

#[test]
fn a_challenge_is_at_most_three_times_the_request_on_the_wire() {
    let mut lab =
        Lab::with(Settings { realm: "a-realm-of-28-octets.example".into(), ..settings() });
    let on_the_wire = |message: &[u8]| 20 + 8 + message.len();
    for begin in [Lab::begin_allocate, |lab: &mut Lab| lab.begin(Method::REFRESH)] {
        for fingerprint in [false, true] {
            let request = begin(&mut lab);
            let request = if fingerprint { request.fingerprint() } else { request }.finish();

            let reply = lab.send(guest(1), &request).unwrap();

            let nonce = Message::parse(&reply).unwrap().attribute(AttributeType::NONCE).unwrap();
            assert_eq!(nonce.len(), 37);
            assert!(on_the_wire(&reply) <= 3 * on_the_wire(&request), "{}", reply.len());
        }
    }
}

#[test]
fn another_users_valid_credentials_give_441() {
    let mut lab = Lab::new();
    lab.allocate(guest(1));
    let bob = lab.bob(guest(1));

    let refresh = lab.refresh(guest(1), &bob, 0);
    let permission = lab.permit(guest(1), &bob, &["198.51.100.180"]);
    let channel = lab.bind(guest(1), &bob, 0x4000, at("198.51.100.180:4000"));

    assert_eq!([refresh.code(), permission.code(), channel.code()], [441; 3]);
    assert_eq!(lab.server.status().active_clients, 1);
}

#[test]
fn lifetime_zero_appended_after_message_integrity_frees_nothing() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));
    let request = lab
        .begin(Method::REFRESH)
        .attribute(AttributeType::USERNAME, b"alice")
        .attribute(AttributeType::REALM, REALM.as_bytes())
        .attribute(AttributeType::NONCE, &login.nonce)
        .integrity(&login.key)
        .attribute(AttributeType::LIFETIME, &[0; 4])
        .finish();

    let reply = Reply::new(lab.send(guest(1), &request).unwrap());

    assert_eq!((reply.code(), reply.lifetime()), (0, 600));
    assert_eq!(lab.server.status().active_clients, 1);
}

#[test]
fn replies_to_authenticated_requests_carry_integrity_errors_included() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));

    let forbidden = lab.permit(guest(1), &login, &["198.51.100.1"]);
    let granted = lab.permit(guest(1), &login, &["198.51.100.180"]);

    assert_eq!((forbidden.code(), granted.code()), (403, 0));
    assert!(forbidden.message().verify(&login.key));
    assert!(granted.message().verify(&login.key));
    assert!(!granted.message().verify(&Key::long_term("alice", REALM, "wrong")));
}
