//! Refusals name their rule; quotas and bandwidth.

use std::time::Duration;

use postern_turn::stun::{AttributeType, ErrorCode, Method};
use postern_turn::{Event, Quotas, Rule, Settings, Side};

use crate::lab::{Lab, MEDIA_SERVER, NAT, at, guest, settings};

fn limited(allocation: Option<u64>, total: Option<u64>) -> Lab {
    let quotas = Quotas {
        allocation_bytes_per_second: allocation,
        total_bytes_per_second: total,
        ..Quotas::default()
    };
    Lab::sharded(Settings { quotas, ..settings() }, 2)
}

#[test]
fn every_refused_request_is_reported_with_user_peer_rule_and_code() {
    let quotas = Quotas { per_user: 1, per_allocation: 1, ..Quotas::default() };
    let mut lab = Lab::with(Settings { quotas, ..settings() });
    let (login, _) = lab.allocate(guest(1));
    let other = lab.alice(guest(2));
    lab.events.clear();

    lab.permit(guest(1), &login, &["203.0.113.77"]);
    lab.permit(guest(1), &login, &["127.0.0.1"]);
    lab.permit(guest(1), &login, &["192.0.2.62"]);
    lab.bind(guest(1), &login, 0x4000, at("198.51.100.180:80"));
    lab.bind(guest(1), &login, 0x4000, at("203.0.113.156:9999"));
    lab.permit(guest(1), &login, &["2001:db8:9::1"]);
    lab.permit(guest(1), &login, &["198.51.100.180", NAT]);
    let request = lab.begin_allocate();
    lab.ask(guest(2), &other, request);

    let told: Vec<_> = lab
        .events
        .iter()
        .map(|event| match event {
            Event::Refused { client, user, peer, rule, code } => {
                assert_eq!((&**user, client.client.ip()), ("alice", guest(1).client.ip()));
                (*rule, peer.map(|peer| peer.to_string()), code.0)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let peer = |text: &str| Some(text.to_owned());
    assert_eq!(
        told,
        [
            (Rule::NotAllowed, peer("203.0.113.77:0"), 403),
            (Rule::SpecialPurpose, peer("127.0.0.1:0"), 403),
            (Rule::OwnAddress, peer("192.0.2.62:0"), 403),
            (Rule::PrivilegedPort, peer("198.51.100.180:80"), 403),
            (Rule::NoSuchRelay, peer("203.0.113.156:9999"), 403),
            (Rule::AllocationQuota, None, 508),
            (Rule::UserQuota, None, 486),
        ]
    );
    assert_eq!(lab.server.counters().refused.total(), 7);
}

#[test]
fn a_refused_packet_is_counted_by_its_rule_and_reported_to_nobody() {
    let mut lab = Lab::new();
    let (login, relayed) = lab.allocate(guest(1));
    lab.permit(guest(1), &login, &["198.51.100.180", NAT]);
    lab.set_config(Settings { allow: Vec::new(), ..settings() });
    lab.events.clear();

    lab.indicate(guest(1), at(MEDIA_SERVER), b"x");
    lab.arrive(relayed.port(), Side::Inside, at(MEDIA_SERVER), b"x");
    lab.indicate(guest(1), at("198.51.100.180:80"), b"x");
    lab.indicate(guest(1), at("203.0.113.156:24031"), b"x");
    lab.arrive(relayed.port(), Side::Outside, at("203.0.113.156:24001"), b"x");
    lab.drain();

    let refused = lab.server.counters().refused;
    assert_eq!(refused.of(Rule::NotAllowed), 2);
    assert_eq!(refused.of(Rule::PrivilegedPort), 1);
    assert_eq!(refused.of(Rule::NoSuchRelay), 1);
    assert_eq!(refused.of(Rule::OwnAddress), 1);
    assert_eq!(lab.events, []);
}

#[test]
fn an_allocation_s_bandwidth_is_bounded_in_both_directions_together_and_said_once() {
    let mut lab = limited(Some(1_000_000), None);
    let (login, relayed) = lab.allocate(guest(1));
    lab.bind(guest(1), &login, 0x4000, at(MEDIA_SERVER));
    let (other, _) = lab.allocate(guest(2));
    lab.bind(guest(2), &other, 0x4000, at(MEDIA_SERVER));
    let mut passed = 0;
    lab.events.clear();

    // 2 MB in a second, half of it each way.
    for _ in 0..1000 {
        passed += usize::from(lab.channel(guest(1), 0x4000, &[1; 1000]).is_some());
        let peer = at(MEDIA_SERVER);
        let arrived = lab.arrive(relayed.port(), Side::Inside, peer, &[1; 1000]);
        passed += usize::from(arrived.is_some());
        lab.pass(Duration::from_millis(1));
    }

    // A second's worth and the burst.
    assert!((1240..=1264).contains(&passed), "{passed}");
    let dropped = u64::try_from(2000 - passed).unwrap();
    assert_eq!(lab.server.counters().refused.of(Rule::AllocationBandwidth), dropped);
    let limited =
        Event::Limited { client: guest(1), user: "alice".into(), rule: Rule::AllocationBandwidth };
    assert_eq!(lab.events, [limited]);
    assert!(lab.channel(guest(2), 0x4000, &[1; 1000]).is_some(), "the others go on");
}

#[test]
fn the_total_bandwidth_is_one_for_all_shards() {
    let mut lab = limited(None, Some(10_000_000));
    lab.homes.insert(guest(2), 1);
    for client in [guest(1), guest(2)] {
        let (login, _) = lab.allocate(client);
        lab.bind(client, &login, 0x4000, at(MEDIA_SERVER));
    }
    let mut passed = 0;

    // 40 MB in a second.
    for _ in 0..1000 {
        for _ in 0..20 {
            for client in [guest(1), guest(2)] {
                passed += usize::from(lab.channel(client, 0x4000, &[1; 1000]).is_some());
            }
        }
        lab.pass(Duration::from_millis(1));
    }

    assert!((12_300..=12_700).contains(&passed), "{passed} of 10 MB and a burst of 2.5 MB");
}

#[test]
fn new_limits_count_at_once_and_lose_no_packet_of_an_allocation_within_them() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));
    lab.bind(guest(1), &login, 0x4000, at(MEDIA_SERVER));

    for rate in [None, Some(10_000_000), Some(2_000_000), None] {
        let quotas = Quotas {
            total: 1,
            per_user: 1,
            per_source: 1,
            allocation_bytes_per_second: rate,
            total_bytes_per_second: rate,
            ..Quotas::default()
        };
        lab.set_config(Settings { quotas, ..settings() });
        for _ in 0..100 {
            assert!(lab.channel(guest(1), 0x4000, &[1; 1000]).is_some());
            lab.pass(Duration::from_millis(1));
        }
        let other = lab.bob(guest(2));
        let request = lab.begin_allocate();
        assert_eq!(lab.ask(guest(2), &other, request).code(), 508);
    }
}

#[test]
fn reservations_are_bounded() {
    let mut lab = Lab::with(Settings { media_ports: Some(24000..=30000), ..settings() });
    let mut codes = Vec::new();

    for port in 1..=300 {
        let login = lab.alice(guest(port));
        let request = lab.begin_allocate().attribute(AttributeType::EVEN_PORT, &[0x80]);
        codes.push(lab.ask(guest(port), &login, request).code());
    }

    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 256);
    assert_eq!(codes.last(), Some(&ErrorCode::INSUFFICIENT_CAPACITY.0));
    let login = lab.alice(guest(999));
    let request =
        lab.begin(Method::ALLOCATE).attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    assert_eq!(lab.ask(guest(999), &login, request).code(), 0);
}
