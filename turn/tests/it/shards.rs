//! Several shards of one relay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postern_turn::stun::AttributeType;
use postern_turn::{Config, Destination, Quotas, Settings, Shared};

use crate::lab::{Lab, NAT, data_indication, guest, settings};

/// Guests with even ports come in on shard 0, the others on shard 1.
fn lab(settings: Settings) -> Lab {
    let mut lab = Lab::sharded(settings, 2);
    for port in (1..=99).step_by(2) {
        lab.homes.insert(guest(port), 1);
    }
    lab
}

#[test]
fn a_port_is_handed_out_by_one_shard_only_and_the_range_is_used_up_together() {
    let mut lab = lab(settings());

    let ports: BTreeSet<_> = (1..=32).map(|port| lab.allocate(guest(port)).1.port()).collect();

    assert_eq!(ports, (24000..=24031).collect());
    for client in [guest(33), guest(34)] {
        let login = lab.alice(client);
        let request = lab.begin_allocate();
        assert_eq!(lab.ask(client, &login, request).code(), 508);
    }
    lab.pass(Duration::from_secs(600));
    assert!(lab.open.is_empty());
    for port in 1..=32 {
        lab.allocate(guest(port));
    }
}

#[test]
fn quotas_count_the_allocations_of_all_shards() {
    let quotas = Quotas { per_user: 2, ..Quotas::default() };
    let mut lab = lab(Settings { quotas, ..settings() });
    let (first, _) = lab.allocate(guest(1));
    lab.allocate(guest(2));

    for client in [guest(3), guest(4)] {
        let login = lab.alice(client);
        let request = lab.begin_allocate();
        assert_eq!(lab.ask(client, &login, request).code(), 486);
    }
    lab.refresh(guest(1), &first, 0);
    lab.allocate(guest(4));
}

#[test]
fn a_nonce_of_one_shard_is_valid_at_the_other() {
    let mut lab = lab(settings());
    let login = lab.alice(guest(1));

    let request = lab.begin_allocate();

    assert_eq!(lab.ask(guest(2), &login, request).code(), 0);
}

#[test]
fn a_reservation_of_one_shard_is_taken_at_the_other() {
    let mut lab = lab(settings());
    let login = lab.alice(guest(1));
    let request = lab.begin_allocate().attribute(AttributeType::EVEN_PORT, &[0x80]);
    let first = lab.ask(guest(1), &login, request);
    let token = first.value(AttributeType::RESERVATION_TOKEN);

    let request = lab.begin_allocate().attribute(AttributeType::RESERVATION_TOKEN, &token);
    let second = lab.ask(guest(2), &login, request);

    assert_eq!(second.relayed().port(), first.relayed().port() + 1);
    lab.pass(Duration::from_secs(31));
    assert_eq!(lab.refresh(guest(2), &login, 600).code(), 0);
    assert_eq!(lab.open.len(), 2);
}

#[test]
fn a_packet_from_relay_to_relay_goes_by_the_shard_that_has_the_target() {
    let mut lab = lab(settings());
    let (a, relay_a) = lab.allocate(guest(1));
    let (b, relay_b) = lab.allocate(guest(2));
    lab.permit(guest(1), &a, &[NAT]);

    assert_eq!(lab.indicate(guest(1), relay_b, b"x"), None, "no permission on the other end");
    lab.permit(guest(2), &b, &[NAT]);
    let (to, bytes) = lab.indicate(guest(1), relay_b, b"hello").unwrap();
    assert_eq!(to, Destination::Client(guest(2)));
    assert_eq!(data_indication(&bytes), (relay_a, b"hello".to_vec()));
    lab.bind(guest(2), &b, 0x4001, relay_a);
    let (to, bytes) = lab.indicate(guest(1), relay_b, b"hello").unwrap();
    assert_eq!(to, Destination::Client(guest(2)));
    assert_eq!(bytes, [&[0x40, 1, 0, 5][..], b"hello"].concat());

    lab.refresh(guest(2), &b, 0);
    assert_eq!(lab.indicate(guest(1), relay_b, b"x"), None);
    let now = lab.now;
    let status = lab.shard(1).allocations(now, 1);
    assert!(lab.shard(1).allocations(now, 0).is_empty());
    assert_eq!((status[0].packets_from_client, status[0].packets_to_client), (4, 0));
}

#[test]
fn threads_that_allocate_and_free_at_once_never_share_a_port_and_use_up_the_range() {
    let media_ports = Some(24000..=24255);
    let config = Arc::new(Config::new(Settings { media_ports, ..settings() }).unwrap());
    let shared = Shared::new(&config, [7; 32]);
    let work = |shard: u8| {
        let mut lab = Lab::of(&shared, &config, shard..shard + 1);
        let first = 1000 * (u16::from(shard) + 1);
        let mut ports = BTreeSet::new();
        for round in 0..20 {
            let login = lab.alice(guest(first));
            for port in first..first + 300 {
                let request = lab.begin_allocate();
                let reply = lab.ask(guest(port), &login, request);
                match reply.code() {
                    0 => assert!(ports.insert(reply.relayed().port())),
                    508 => break,
                    other => panic!("{other}"),
                }
            }
            if round < 19 {
                lab.pass(Duration::from_secs(600));
                ports.clear();
            }
        }
        (lab, ports)
    };

    let [mut a, b] = std::thread::scope(|scope| {
        let work = &work;
        let threads = [0, 1].map(|shard| scope.spawn(move || work(shard)));
        threads.map(|thread| thread.join().unwrap())
    });

    assert!(a.1.is_disjoint(&b.1));
    let login = a.0.alice(guest(1));
    for port in 1..=u16::try_from(256 - a.1.len() - b.1.len()).unwrap() {
        let request = a.0.begin_allocate();
        assert_eq!(a.0.ask(guest(port), &login, request).code(), 0);
    }
    let request = a.0.begin_allocate();
    assert_eq!(a.0.ask(guest(999), &login, request).code(), 508);
}
