//! Binding and the rules for all requests.

use std::time::Duration;

use postern_turn::stun::{AttributeType, Class, Message, Method};
use postern_turn::{ReplyRate, Settings};

use crate::lab::{Lab, Reply, guest, settings};

#[test]
fn binding_tells_the_source_and_nothing_else() {
    let mut lab = Lab::new();
    let request = lab.begin(Method::BINDING).fingerprint().finish();

    let reply = Reply::new(lab.send(guest(40000), &request).unwrap());

    let message = reply.message();
    assert_eq!(message.xor_address(AttributeType::XOR_MAPPED_ADDRESS), Some(guest(40000).client));
    assert!(message.has_fingerprint());
    assert_eq!(message.attributes().count(), 1);
    assert!(reply.0.len() <= request.len() + 12, "no amplifier");
}

#[test]
fn unknown_comprehension_required_attributes_are_listed_in_420() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));
    let odd = AttributeType(0x0099);
    let optional = AttributeType(0x8099);

    let binding = lab.begin(Method::BINDING).attribute(odd, &[]).finish();
    let binding = Reply::new(lab.send(guest(1), &binding).unwrap());
    let allocate = lab
        .begin_allocate()
        .attribute(AttributeType::DONT_FRAGMENT, &[])
        .attribute(AttributeType(0x009A), &[])
        .attribute(odd, &[1])
        .attribute(optional, &[1]);
    let allocate = lab.ask(guest(1), &login, allocate);

    assert_eq!((binding.code(), allocate.code()), (420, 420));
    let listed = |reply: &Reply| {
        reply.message().attribute(AttributeType::UNKNOWN_ATTRIBUTES).unwrap().to_vec()
    };
    assert_eq!(listed(&binding), [0x00, 0x99]);
    assert_eq!(listed(&allocate), [0x00, 0x99, 0x00, 0x9A]);
}

#[test]
fn responses_unknown_methods_and_other_protocols_are_dropped() {
    let mut lab = Lab::new();
    let transaction = lab.transaction();
    let success = postern_turn::stun::Writer::new(Class::Success, Method::BINDING, transaction);
    let unknown = lab.begin(Method(0x00D)).finish();

    for datagram in [&success.finish(), &unknown, &vec![0x80; 40], &vec![0x16, 3, 1], &vec![]] {
        assert_eq!(lab.send(guest(1), datagram), None);
    }

    assert_eq!(lab.server.counters().malformed, 5);
}

#[test]
fn strangers_are_answered_a_limited_number_of_times_and_a_valid_nonce_lifts_it() {
    let reply_rate = ReplyRate { per_second: 10, burst: 20 };
    let mut lab = Lab::with(Settings { reply_rate, ..settings() });
    let login = lab.alice(guest(1));
    let mut answered = 0;

    for port in 0..100 {
        let request = match port % 2 {
            0 => lab.begin(Method::BINDING).finish(),
            _ => lab.begin_allocate().finish(),
        };
        answered += usize::from(lab.send(guest(1000 + port), &request).is_some());
    }
    let request = lab.begin_allocate();
    let with_nonce = lab.ask(guest(1), &login, request);

    assert_eq!(answered, 19);
    assert_eq!(lab.server.counters().limited_replies, 81);
    assert_eq!(with_nonce.code(), 0);
    lab.pass(Duration::from_secs(1));
    let request = lab.begin(Method::BINDING).finish();
    assert!(lab.send(guest(1), &request).is_some());
}

#[test]
fn a_reply_has_no_software_attribute() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));

    let reply = lab.refresh(guest(1), &login, 600);

    assert_eq!(Message::parse(&reply.0).unwrap().attribute(AttributeType::SOFTWARE), None);
    assert!(reply.message().verify(&login.key));
}

#[test]
fn a_flood_faster_than_a_thousand_a_second_does_not_stop_all_replies() {
    let reply_rate = ReplyRate { per_second: 10, burst: 20 };
    let mut lab = Lab::with(Settings { reply_rate, ..settings() });
    let request = lab.begin(Method::BINDING).finish();

    let mut answered = 0;
    for _ in 0..100_000 {
        answered += usize::from(lab.send(guest(1), &request).is_some());
        lab.pass(Duration::from_micros(100));
    }

    assert!((119..=120).contains(&answered), "{answered} in ten seconds");
}
