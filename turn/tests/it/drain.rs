//! Draining: no new allocations, the others go on (RFC 8489 §10, RFC 8656 §7.2).

use postern_turn::stun::AttributeType;
use postern_turn::{Config, ConfigError, Drain, Event, FiveTuple, Rule, Settings, Side};

use crate::lab::{Lab, MEDIA_SERVER, at, guest, settings};

fn draining(alternate: &[&str]) -> Settings {
    let alternate = alternate.iter().map(|address| at(address)).collect();
    Settings { drain: Some(Drain { alternate }), ..settings() }
}

#[test]
fn a_new_client_is_told_300_and_the_alternate_server_of_its_family() {
    let guest_v6 = FiveTuple {
        client: at("[2001:db8:77::7]:5000"),
        server: at("[2001:db8:2::61]:3478"),
        ..guest(1)
    };
    let mut lab = Lab::with(draining(&["192.0.2.99:3478", "[2001:db8::99]:3479"]));
    let v6 = "2001:0db8::99".parse::<std::net::Ipv6Addr>().unwrap();
    let mut value_v6 = vec![0, 2, 0x0D, 0x97];
    value_v6.extend(v6.octets());

    for (client, value) in [(guest(1), vec![0, 1, 0x0D, 0x96, 192, 0, 2, 99]), (guest_v6, value_v6)]
    {
        let login = lab.alice(client);
        let request = lab.begin_allocate();
        let reply = lab.ask(client, &login, request);

        assert_eq!(reply.code(), 300);
        assert!(reply.message().verify(&login.key));
        assert_eq!(reply.value(AttributeType::ALTERNATE_SERVER), value);
    }
    assert_eq!(lab.server.counters().refused.of(Rule::Drain), 2);
    assert!(matches!(&lab.events[..], [Event::Refused { rule: Rule::Drain, .. }, ..]));
}

#[test]
fn without_an_alternate_of_its_family_a_new_client_is_told_508() {
    for alternate in [&[][..], &["[2001:db8::99]:3478"]] {
        let mut lab = Lab::with(draining(alternate));
        let login = lab.alice(guest(1));
        let request = lab.begin_allocate();
        let reply = lab.ask(guest(1), &login, request);

        assert_eq!(reply.code(), 508);
        assert_eq!(reply.message().attribute(AttributeType::ALTERNATE_SERVER), None);
    }
}

#[test]
fn allocations_that_are_there_go_on_and_lose_no_packet() {
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));
    let allocate = lab.begin_allocate();
    let allocate = login.sign(allocate);
    let first = lab.send(guest(1), &allocate).unwrap();
    lab.bind(guest(1), &login, 0x4000, at(MEDIA_SERVER));

    lab.set_config(draining(&["192.0.2.99:3478"]));

    assert!(lab.channel(guest(1), 0x4000, b"x").is_some());
    let relayed = crate::lab::Reply::new(first.clone()).relayed();
    assert!(lab.arrive(relayed.port(), Side::Inside, at(MEDIA_SERVER), b"x").is_some());
    assert_eq!(lab.send(guest(1), &allocate).unwrap(), first, "a retransmission");
    assert_eq!(lab.refresh(guest(1), &login, 600).code(), 0);
    assert_eq!(lab.permit(guest(1), &login, &["198.51.100.180"]).code(), 0);
    assert_eq!(lab.bind(guest(1), &login, 0x4000, at(MEDIA_SERVER)).code(), 0);
    lab.set_config(settings());
    lab.allocate(guest(2));
}

#[test]
fn two_alternates_of_one_family_are_no_configuration() {
    let settings = draining(&["192.0.2.99:3478", "192.0.2.98:3478"]);

    let error = Config::new(settings).unwrap_err();

    assert_eq!(error, ConfigError::Alternate(at("192.0.2.98:3478")));
}
