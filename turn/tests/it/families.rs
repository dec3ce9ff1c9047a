//! Two address families in one allocation (RFC 8656 §7.2, §8.2).

use std::time::Duration;

use postern_turn::stun::{AttributeType, Method};
use postern_turn::{Family, Output, RelayPort, Settings, Side};

use crate::lab::{Lab, Login, MEDIA_SERVER, NAT, Reply, at, guest, ip, settings, to_peer};

const PEER_V6: &str = "[2001:db8:9::1]:5000";
const RELAY_V6: &str = "2001:db8:2::61";
const ADDITIONAL: AttributeType = AttributeType::ADDITIONAL_ADDRESS_FAMILY;
const REQUESTED: AttributeType = AttributeType::REQUESTED_ADDRESS_FAMILY;

fn allocate_both(lab: &mut Lab) -> (Login, Reply) {
    let login = lab.alice(guest(1));
    let request = lab.begin_allocate().attribute(ADDITIONAL, &[2, 0, 0, 0]);
    let reply = lab.ask(guest(1), &login, request);
    (login, reply)
}

fn refresh_family(lab: &mut Lab, login: &Login, lifetime: u32, family: u8) -> Reply {
    let request = lab
        .begin(Method::REFRESH)
        .attribute(AttributeType::LIFETIME, &lifetime.to_be_bytes())
        .attribute(REQUESTED, &[family, 0, 0, 0]);
    lab.ask(guest(1), login, request)
}

#[test]
fn additional_address_family_gives_one_port_on_both_families() {
    let mut lab = Lab::new();

    let (login, reply) = allocate_both(&mut lab);

    let relayed = reply.all_relayed();
    assert_eq!(relayed.len(), 2);
    assert_eq!(relayed[0].ip(), ip(NAT));
    assert_eq!(relayed[1].ip(), ip(RELAY_V6));
    assert_eq!(relayed[0].port(), relayed[1].port());
    assert_eq!(lab.last_opened.len(), 3, "outside twice, inside in IPv4");
    assert_eq!(lab.permit(guest(1), &login, &["198.51.100.180", "2001:db8:9::1"]).code(), 0);
    let there = lab.indicate(guest(1), at(PEER_V6), b"x").unwrap().0;
    assert_eq!(there, to_peer(relayed[1], Side::Outside, PEER_V6));
    let there = lab.indicate(guest(1), at(MEDIA_SERVER), b"x").unwrap().0;
    assert_eq!(there, to_peer(relayed[0], Side::Inside, MEDIA_SERVER));
    let port = relayed[0].port();
    assert!(lab.arrive(port, Side::Outside, at(PEER_V6), b"x").is_some());
    assert!(lab.arrive(port, Side::Inside, at(MEDIA_SERVER), b"x").is_some());
}

#[test]
fn a_family_that_the_site_lacks_gives_address_error_code_440_and_the_other_family() {
    let mut lab = Lab::with(Settings { outside: settings().outside[..1].into(), ..settings() });

    let (_, reply) = allocate_both(&mut lab);

    assert_eq!(reply.all_relayed().len(), 1);
    let error = reply.value(AttributeType::ADDRESS_ERROR_CODE);
    assert_eq!(error[..4], [2, 0, 4, 40]);
    assert_eq!(&error[4..], b"Address Family not Supported");
}

#[test]
fn a_family_whose_port_cannot_be_opened_gives_address_error_code_508_after_other_ports() {
    let mut lab = Lab::new();
    lab.held_v6 = (24000..=24031).collect();

    let (login, reply) = allocate_both(&mut lab);

    assert_eq!(reply.all_relayed().len(), 1);
    assert_eq!(reply.value(AttributeType::ADDRESS_ERROR_CODE)[..4], [2, 0, 5, 8]);
    assert_eq!(lab.open.len(), 1);
    lab.refresh(guest(1), &login, 0);
    for port in 101..=132 {
        lab.allocate(guest(port));
    }
}

#[test]
fn another_port_is_tried_when_one_family_of_a_port_is_held() {
    let mut lab = Lab::new();
    lab.held_v6 = (24000..=24030).collect();

    let (_, reply) = allocate_both(&mut lab);

    assert_eq!(reply.all_relayed().len(), 2);
    assert_eq!(reply.relayed().port(), 24031);
}

#[test]
fn combinations_that_rfc8656_forbids_give_400() {
    let even = AttributeType::EVEN_PORT;
    let token = AttributeType::RESERVATION_TOKEN;
    let mut lab = Lab::new();
    let login = lab.alice(guest(1));

    for attributes in [
        vec![(ADDITIONAL, vec![1, 0, 0, 0])],
        vec![(ADDITIONAL, vec![9, 0, 0, 0])],
        vec![(ADDITIONAL, vec![2])],
        vec![(ADDITIONAL, vec![2, 0, 0, 0]), (REQUESTED, vec![1, 0, 0, 0])],
        vec![(ADDITIONAL, vec![2, 0, 0, 0]), (even, vec![0x80])],
        vec![(token, vec![1; 8]), (ADDITIONAL, vec![2, 0, 0, 0])],
        vec![(token, vec![1; 8]), (REQUESTED, vec![1, 0, 0, 0])],
        vec![(token, vec![1; 8]), (even, vec![0])],
    ] {
        let mut request = lab.begin_allocate();
        for (kind, value) in &attributes {
            request = request.attribute(*kind, value);
        }
        assert_eq!(lab.ask(guest(1), &login, request).code(), 400, "{attributes:?}");
    }
    let request = lab.begin_allocate().attribute(ADDITIONAL, &[2, 0, 0, 0]).attribute(even, &[0]);
    let reply = lab.ask(guest(1), &login, request);
    assert_eq!(reply.all_relayed().len(), 2);
    assert_eq!(reply.relayed().port() % 2, 0);
}

#[test]
fn a_refresh_without_family_is_about_both_and_one_with_it_about_that_one() {
    let mut lab = Lab::new();
    let (login, reply) = allocate_both(&mut lab);
    let port = RelayPort(reply.relayed().port());
    lab.permit(guest(1), &login, &["198.51.100.180", "2001:db8:9::1"]);

    assert_eq!(refresh_family(&mut lab, &login, 1800, 1).lifetime(), 1800);
    lab.pass(Duration::from_secs(299));
    lab.permit(guest(1), &login, &["198.51.100.180", "2001:db8:9::1"]);
    lab.pass(Duration::from_secs(301));

    assert_eq!(lab.wanted, [Output::CloseFamily(port, Family::V6)], "IPv6 ended after 600 s");
    assert_eq!(lab.permit(guest(1), &login, &["2001:db8:9::1"]).code(), 443);
    assert_eq!(lab.permit(guest(1), &login, &["198.51.100.180"]).code(), 0);
    assert!(lab.indicate(guest(1), at(MEDIA_SERVER), b"x").is_some());
    assert_eq!(lab.arrive(port.0, Side::Outside, at(PEER_V6), b"x"), None);
    assert_eq!(refresh_family(&mut lab, &login, 600, 2).code(), 443);
    assert_eq!(lab.refresh(guest(1), &login, 600).lifetime(), 600);
    assert!(lab.open.contains(&port));
}

#[test]
fn a_refresh_to_zero_of_one_family_ends_it_alone_and_is_answered_alike_again() {
    let mut lab = Lab::new();
    let (login, reply) = allocate_both(&mut lab);
    let port = RelayPort(reply.relayed().port());
    let request = lab
        .begin(Method::REFRESH)
        .attribute(AttributeType::LIFETIME, &[0; 4])
        .attribute(REQUESTED, &[1, 0, 0, 0]);
    let request = login.sign(request);

    let first = lab.send(guest(1), &request).unwrap();
    let again = lab.send(guest(1), &request).unwrap();

    assert_eq!(first, again);
    assert_eq!(Reply::new(first).lifetime(), 0);
    assert_eq!(lab.wanted, [Output::CloseFamily(port, Family::V4)]);
    assert_eq!(lab.permit(guest(1), &login, &["2001:db8:9::1"]).code(), 0);
    assert_eq!(refresh_family(&mut lab, &login, 0, 2).lifetime(), 0);
    assert!(lab.open.is_empty());
    assert_eq!(lab.refresh(guest(1), &login, 600).code(), 437);
}

#[test]
fn a_refresh_of_a_family_that_the_allocation_lacks_gives_443() {
    let mut lab = Lab::new();
    let (login, _) = lab.allocate(guest(1));

    assert_eq!(refresh_family(&mut lab, &login, 600, 2).code(), 443);
    assert_eq!(refresh_family(&mut lab, &login, 0, 2).code(), 443);
    assert_eq!(refresh_family(&mut lab, &login, 600, 1).code(), 0);
}

#[test]
fn a_configuration_without_one_family_ends_that_family_alone() {
    let mut lab = Lab::new();
    let (login, reply) = allocate_both(&mut lab);
    let port = RelayPort(reply.relayed().port());

    lab.set_config(Settings { outside: settings().outside[..1].into(), ..settings() });

    assert_eq!(lab.wanted, [Output::CloseFamily(port, Family::V6)]);
    assert_eq!(lab.refresh(guest(1), &login, 600).code(), 0);
}

#[test]
fn relay_to_relay_works_in_each_family_of_a_dual_allocation() {
    let mut lab = Lab::new();
    let (login, reply) = allocate_both(&mut lab);
    let (other, relay_v4) = lab.allocate(guest(2));
    let bob = lab.alice(guest(3));
    let request = lab.begin_allocate().attribute(REQUESTED, &[2, 0, 0, 0]);
    let relay_v6 = lab.ask(guest(3), &bob, request).relayed();
    let own = reply.all_relayed();
    lab.permit(guest(1), &login, &[NAT, RELAY_V6]);
    lab.permit(guest(2), &other, &[NAT]);
    lab.permit(guest(3), &bob, &[RELAY_V6]);

    let (_, bytes) = lab.indicate(guest(1), relay_v4, b"four").unwrap();
    assert_eq!(crate::lab::data_indication(&bytes), (own[0], b"four".to_vec()));
    let (_, bytes) = lab.indicate(guest(1), relay_v6, b"six").unwrap();
    assert_eq!(crate::lab::data_indication(&bytes), (own[1], b"six".to_vec()));
}
