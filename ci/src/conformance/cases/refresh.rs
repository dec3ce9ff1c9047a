//! Refresh (RFC 8656 §8).

use crate::conformance::case::{Case, expect_equal};
use crate::conformance::client::{allocate_request, permission_request, refresh_request};
use crate::conformance::setting::Place;
use crate::conformance::stun::{
    ADDITIONAL_ADDRESS_FAMILY, LIFETIME, Packet, REFRESH, REQUESTED_ADDRESS_FAMILY,
};

const IPV4: u32 = 1 << 24;
const IPV6: u32 = 2 << 24;

pub(super) const CASES: &[Case] = &[
    Case::new("refresh_without_lifetime_gets_the_default", "RFC 8656 §8.2", |stage| {
        let answer = stage.guest()?.allocated()?.succeed(Packet::new(REFRESH))?;
        expect_equal("LIFETIME", Some(600), answer.number(LIFETIME))
    }),
    Case::new("refresh_with_a_lifetime_gets_it", "RFC 8656 §8.2", |stage| {
        let answer = stage.guest()?.allocated()?.succeed(refresh_request(900))?;
        expect_equal("LIFETIME", Some(900), answer.number(LIFETIME))
    }),
    Case::new("refresh_below_the_default_gets_the_default", "RFC 8656 §8.2", |stage| {
        let answer = stage.guest()?.allocated()?.succeed(refresh_request(5))?;
        expect_equal("LIFETIME", Some(600), answer.number(LIFETIME))
    }),
    Case::new("refresh_above_the_maximum_gets_the_maximum", "RFC 8656 §8.2", |stage| {
        let answer = stage.guest()?.allocated()?.succeed(refresh_request(1_000_000))?;
        expect_equal("LIFETIME", Some(3_600), answer.number(LIFETIME))
    }),
    Case::new("refresh_with_0_frees_the_allocation", "RFC 8656 §8.2", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        let answer = client.succeed(refresh_request(0))?;
        expect_equal("LIFETIME", Some(0), answer.number(LIFETIME))?;
        client.refused(permission_request(&[peer.address]), 437).map(drop)
    }),
    Case::new("refresh_of_nothing_gets_437", "RFC 8656 §8.2", |stage| {
        stage.guest()?.challenged()?.refused(refresh_request(600), 437).map(drop)
    }),
    Case::new("another_refresh_with_0_after_freeing_gets_437", "RFC 8656 §8.2", |stage| {
        let mut client = stage.guest()?.allocated()?;
        client.succeed(refresh_request(0))?;
        client.refused(refresh_request(0), 437).map(drop)
    }),
    Case::new("a_retransmitted_refresh_with_0_succeeds_again", "RFC 8656 §8.2", |stage| {
        let mut client = stage.guest()?.allocated()?;
        let signed = client.sign(refresh_request(0));
        let first = client.call(&signed)?;
        client.check_success(&first)?;
        let again = client.call(&signed)?;
        client.check_success(&again)?;
        expect_equal("LIFETIME", Some(0), again.number(LIFETIME))
    }),
    Case::new("refresh_of_the_other_family_gets_443", "RFC 8656 §8.2", |stage| {
        let request = refresh_request(0).number(REQUESTED_ADDRESS_FAMILY, IPV6);
        let mut client = stage.guest()?.allocated()?;
        client.refused(request, 443)?;
        client.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("refresh_of_the_own_family_is_accepted", "RFC 8656 §8.2", |stage| {
        let request = refresh_request(700).number(REQUESTED_ADDRESS_FAMILY, IPV4);
        let answer = stage.guest()?.allocated()?.succeed(request)?;
        expect_equal("LIFETIME", Some(700), answer.number(LIFETIME))
    }),
    Case::new("a_malformed_lifetime_in_refresh_gets_400", "RFC 8656 §18.2", |stage| {
        let request = Packet::new(REFRESH).with(LIFETIME, &[0]);
        stage.guest()?.allocated()?.refused(request, 400).map(drop)
    }),
    Case::new("one_family_of_a_dual_allocation_may_be_freed_alone", "RFC 8656 §8.2", |stage| {
        let v4 = stage.peer(Place::Media)?;
        let v6 = stage.peer(Place::MediaV6)?;
        let request = allocate_request().number(ADDITIONAL_ADDRESS_FAMILY, IPV6);
        let mut client = stage.guest()?.allocated_with(request)?;
        client.permit(&[v4.address, v6.address])?;
        client.succeed(refresh_request(0).number(REQUESTED_ADDRESS_FAMILY, IPV6))?;
        client.send_to(v6.address, b"gone")?;
        client.send_to(v4.address, b"there")?;
        v4.expect(b"there")?;
        v6.hears_nothing()?;
        client.refused(permission_request(&[v6.address]), 443).map(drop)
    }),
    Case::new("a_dual_allocation_is_refreshed_whole", "RFC 8656 §8.2", |stage| {
        let request = allocate_request().number(ADDITIONAL_ADDRESS_FAMILY, IPV6);
        let mut client = stage.guest()?.allocated_with(request)?;
        client.succeed(refresh_request(0))?;
        client.refused(refresh_request(600), 437).map(drop)
    }),
];
