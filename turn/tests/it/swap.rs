//! Another configuration, live.

use std::sync::Arc;

use postern_turn::stun::AttributeType;
use postern_turn::{Config, ConfigError, Face, Settings, Side};

use crate::lab::{Lab, MEDIA_SERVER, NAT, OUTSIDE_PEER, at, guest, insider, ip, settings};

fn swap(lab: &mut Lab, settings: Settings) {
    lab.server.set_config(Arc::new(Config::new(settings).unwrap()), lab.now);
    lab.drain();
}

#[test]
fn a_new_password_counts_at_once_and_allocations_stay() {
    let mut lab = Lab::new();
    let (old, relayed) = lab.allocate(guest(1));
    lab.bind(guest(1), &old, 0x4000, at(MEDIA_SERVER));

    swap(&mut lab, Settings { users: vec![("alice".into(), "new".into())], ..settings() });

    assert!(lab.channel(guest(1), 0x4000, b"x").is_some());
    assert!(lab.arrive(relayed.port(), Side::Inside, at(MEDIA_SERVER), b"x").is_some());
    assert_eq!(lab.refresh(guest(1), &old, 600).code(), 401);
    let new = lab.login(guest(1), "alice", "new");
    assert_eq!(lab.refresh(guest(1), &new, 600).code(), 0);
}

#[test]
fn a_peer_that_is_no_longer_declared_is_cut_off_both_ways_at_once() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(guest(1));
    lab.bind(guest(1), &login, 0x4000, at(MEDIA_SERVER));

    swap(&mut lab, Settings { allow: Vec::new(), ..settings() });

    assert_eq!(lab.channel(guest(1), 0x4000, b"x"), None);
    assert_eq!(lab.indicate(guest(1), at(MEDIA_SERVER), b"x"), None);
    assert_eq!(lab.arrive(relayed.port(), Side::Inside, at(MEDIA_SERVER), b"x"), None);
    assert_eq!(lab.server.counters().denied, 3);
}

#[test]
fn a_new_media_range_is_used_from_now_on() {
    let mut lab = Lab::new();
    let (_, old) = lab.allocate(guest(1));

    swap(&mut lab, Settings { media_ports: Some(30000..=30001), ..settings() });

    let (login, new) = lab.allocate(guest(2));
    assert!((30000..=30001).contains(&new.port()));
    assert_eq!(lab.open.len(), 2);
    assert_eq!(lab.bind(guest(2), &login, 0x4000, old).code(), 0, "the old port is live");
}

#[test]
fn allocations_on_an_address_that_is_gone_end() {
    let mut lab = Lab::new();
    lab.allocate(guest(1));
    let login = lab.alice(guest(2));
    let request =
        lab.begin_allocate().attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    lab.ask(guest(2), &login, request);
    let mut outside = settings().outside;
    outside[0] = Face { local: ip("192.0.2.99"), told: ip(NAT) };

    swap(&mut lab, Settings { outside, ..settings() });

    assert_eq!(lab.open.len(), 1);
    assert_eq!(lab.refresh(guest(2), &login, 600).code(), 0);
}

#[test]
fn a_new_realm_makes_old_nonces_stale() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));

    swap(&mut lab, Settings { realm: "example.com".into(), ..settings() });

    let reply = lab.refresh(guest(1), &login, 600);
    assert_eq!(reply.code(), 438);
    assert_eq!(reply.message().attribute(AttributeType::REALM), Some(&b"example.com"[..]));
    assert_eq!(lab.server.counters().refused_credentials, 0);
}

#[test]
fn settings_that_make_no_sense_make_no_configuration() {
    let face = |local: &str, told: &str| Face { local: ip(local), told: ip(told) };
    for (settings, expected) in [
        (Settings { realm: String::new(), ..settings() }, ConfigError::Realm),
        (
            Settings {
                users: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
                ..settings()
            },
            ConfigError::User("a".into()),
        ),
        (
            Settings { media_ports: Some(1023..=2000), ..settings() },
            ConfigError::MediaPorts { first: 1023, last: 2000 },
        ),
        (Settings { outside: Vec::new(), inside: Vec::new(), ..settings() }, ConfigError::NoFace),
        (
            Settings { outside: vec![face("0.0.0.0", NAT)], ..settings() },
            ConfigError::Face { local: ip("0.0.0.0"), told: ip(NAT) },
        ),
        (
            Settings { outside: vec![face("192.0.2.61", "2001:db8::1")], ..settings() },
            ConfigError::Face { local: ip("192.0.2.61"), told: ip("2001:db8::1") },
        ),
        (
            Settings { inside: Vec::new(), inside_clients_are_told_inside: true, ..settings() },
            ConfigError::NoInsideFace,
        ),
    ] {
        assert_eq!(Config::new(settings).unwrap_err(), expected);
    }
}

#[test]
fn neither_settings_nor_a_configuration_show_passwords_or_secrets() {
    let secret = Settings {
        users: vec![("alice".into(), "hunter2".into())],
        rest_secrets: vec!["hunter2".into()],
        ..settings()
    };

    let shown = format!("{secret:?} {:?}", Config::new(secret.clone()).unwrap());

    assert!(shown.contains("example.org"));
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_listener_that_is_no_longer_an_inside_one_makes_its_clients_outside_ones() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(insider(1));
    lab.permit(insider(1), &login, &["203.0.113.77"]);
    assert!(lab.indicate(insider(1), at(OUTSIDE_PEER), b"x").is_some());

    swap(&mut lab, Settings { inside_listeners: Vec::new(), ..settings() });

    assert_eq!(lab.indicate(insider(1), at(OUTSIDE_PEER), b"x"), None);
    assert_eq!(lab.arrive(relayed.port(), Side::Outside, at(OUTSIDE_PEER), b"x"), None);
    assert_eq!(lab.permit(insider(1), &login, &["203.0.113.77"]).code(), 403);
}
