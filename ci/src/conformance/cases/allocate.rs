//! Allocate (RFC 8656 §7).

use crate::conformance::case::{Case, Outcome, expect, expect_equal};
use crate::conformance::client::{TCP, UDP, allocate_request, expect_error, refresh_request};
use crate::conformance::setting::{
    ALTERNATE, FRUGAL_PER_USER, LAN1, LAN2_V6, NAT, Place, Server, Stage, USERS,
};
use crate::conformance::stun::{
    ADDITIONAL_ADDRESS_FAMILY, ADDRESS_ERROR_CODE, ALLOCATE, ALTERNATE_SERVER, DONT_FRAGMENT,
    EVEN_PORT, LIFETIME, Message, Packet, REQUESTED_ADDRESS_FAMILY, REQUESTED_TRANSPORT,
    RESERVATION_TOKEN, XOR_MAPPED_ADDRESS, XOR_RELAYED_ADDRESS, read_plain_address,
};

/// Values of the address family attributes.
const IPV4: u32 = 1 << 24;
const IPV6: u32 = 2 << 24;

pub(super) const CASES: &[Case] = &[
    Case::new("allocate_tells_relayed_and_mapped_address_and_lifetime", "RFC 8656 §7.2", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let answer = client.succeed(allocate_request())?;
        expect(answer.address(XOR_RELAYED_ADDRESS).is_some(), "XOR-RELAYED-ADDRESS", &answer)?;
        expect_equal("mapped", Some(client.local), answer.address(XOR_MAPPED_ADDRESS))?;
        expect_equal("LIFETIME", Some(600), answer.number(LIFETIME))
    }),
    Case::new("a_guest_is_told_the_static_nat_address", "policy: two faces", |stage| {
        let relayed = stage.guest()?.allocated()?.relayed()?;
        expect_equal("relayed address", NAT, relayed.ip())
    }),
    Case::new("an_inside_client_is_told_the_static_nat_address", "policy: two faces", |stage| {
        let relayed = stage.colleague()?.allocated()?.relayed()?;
        expect_equal("relayed address", NAT, relayed.ip())
    }),
    Case::new(
        "an_inside_client_is_told_lan1_where_the_site_says_so",
        "policy: two faces",
        |stage| {
            let relayed = stage.colleague()?.allocated()?.relayed()?;
            expect_equal("relayed address", LAN1, relayed.ip())
        },
    )
    .on(Server::ToldLan1),
    Case::new(
        "a_guest_is_told_the_static_nat_address_all_the_same",
        "policy: two faces",
        |stage| {
            let relayed = stage.guest()?.allocated()?.relayed()?;
            expect_equal("relayed address", NAT, relayed.ip())
        },
    )
    .on(Server::ToldLan1),
    Case::new("relayed_ports_are_in_the_media_range", "policy: media ports", |stage| {
        let (first, last) = stage.server.media_ports();
        for _ in 0..20 {
            let port = stage.guest()?.allocated()?.relayed()?.port();
            expect((first..=last).contains(&port), &format!("{first}-{last}"), port)?;
        }
        Ok(())
    }),
    Case::new("relayed_ports_are_not_guessable_from_the_last_one", "RFC 8656 §7.2", |stage| {
        let mut ports = Vec::new();
        for _ in 0..6 {
            ports.push(i32::from(stage.guest()?.allocated()?.relayed()?.port()));
        }
        let steps: std::collections::BTreeSet<i32> =
            ports.windows(2).map(|pair| pair[1] - pair[0]).collect();
        expect(steps.len() > 2, "ports without a pattern", ports)
    }),
    Case::new("allocate_without_requested_transport_gets_400", "RFC 8656 §7.2", |stage| {
        let mut client = stage.guest()?.challenged()?;
        client.refused(Packet::new(ALLOCATE), 400).map(drop)
    }),
    Case::new(
        "allocate_with_a_malformed_requested_transport_gets_400",
        "RFC 8656 §18.8",
        |stage| {
            let mut client = stage.guest()?.challenged()?;
            client.refused(Packet::new(ALLOCATE).with(REQUESTED_TRANSPORT, &[17]), 400).map(drop)
        },
    ),
    Case::new("allocate_for_an_unknown_transport_gets_442", "RFC 8656 §7.2", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let request = Packet::new(ALLOCATE).number(REQUESTED_TRANSPORT, 132 << 24);
        client.refused(request, 442).map(drop)
    }),
    Case::new("allocate_for_tcp_gets_442_where_it_is_off", "RFC 8656 §7.2", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?.challenged()?;
        let request = Packet::new(ALLOCATE).number(REQUESTED_TRANSPORT, TCP);
        client.refused(request, 442).map(drop)
    })
    .on(Server::Frugal),
    Case::new(
        "the_reserved_octets_of_requested_transport_are_ignored",
        "RFC 8656 §18.8",
        |stage| {
            let request = Packet::new(ALLOCATE).number(REQUESTED_TRANSPORT, UDP | 0x00AB_CDEF);
            stage.guest()?.challenged()?.succeed(request).map(drop)
        },
    ),
    Case::new("without_lifetime_an_allocation_gets_the_default", "RFC 8656 §7.2", |stage| {
        granted(stage, None, 600)
    }),
    Case::new("a_lifetime_below_the_default_is_raised_to_it", "RFC 8656 §7.2", |stage| {
        granted(stage, Some(1), 600)
    }),
    Case::new("a_lifetime_of_0_in_allocate_gets_the_default", "RFC 8656 §7.2", |stage| {
        granted(stage, Some(0), 600)
    }),
    Case::new("a_lifetime_between_default_and_maximum_is_granted", "RFC 8656 §7.2", |stage| {
        granted(stage, Some(1_800), 1_800)
    }),
    Case::new("a_lifetime_above_the_maximum_is_cut_to_it", "RFC 8656 §7.2", |stage| {
        granted(stage, Some(u32::MAX), 3_600)
    }),
    Case::new("a_malformed_lifetime_gets_400", "RFC 8656 §18.2", |stage| {
        let request = allocate_request().with(LIFETIME, &[0, 1]);
        stage.guest()?.challenged()?.refused(request, 400).map(drop)
    }),
    Case::new("allocate_again_gets_437", "RFC 8656 §7.2", |stage| {
        let mut client = stage.guest()?.allocated()?;
        client.refused(allocate_request(), 437).map(drop)
    }),
    Case::new("a_437_leaves_the_allocation_as_it_is", "RFC 8656 §7.2", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.permit(&[peer.address])?;
        client.refused(allocate_request(), 437)?;
        client.send_to(peer.address, b"still")?;
        peer.expect(b"still").map(drop)
    }),
    Case::new("a_retransmitted_allocate_is_answered_alike", "RFC 8656 §7.2", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let signed = client.sign(allocate_request());
        let first = client.call(&signed)?;
        client.check_success(&first)?;
        for _ in 0..3 {
            let again = client.call(&signed)?;
            client.check_success(&again)?;
            let relayed = |answer: &Message| answer.address(XOR_RELAYED_ADDRESS);
            expect_equal("relayed address", relayed(&first), relayed(&again))?;
            expect_equal("LIFETIME", first.number(LIFETIME), again.number(LIFETIME))?;
        }
        Ok(())
    }),
    Case::new("two_copies_of_allocate_at_once_make_one_allocation", "RFC 8656 §7.2", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let signed = client.sign(allocate_request());
        client.send(signed.bytes())?;
        client.send(signed.bytes())?;
        let first = client.answer(signed.id())?;
        let second = client.answer(signed.id());
        client.check_success(&first)?;
        // The second one may come before the first is answered, and may then be left out.
        if let Ok(second) = second {
            client.check_success(&second)?;
            let relayed = |answer: &Message| answer.address(XOR_RELAYED_ADDRESS);
            expect_equal("relayed address", relayed(&first), relayed(&second))?;
        }
        client.refused(allocate_request(), 437).map(drop)
    }),
    Case::new("each_5_tuple_has_an_allocation_of_its_own", "RFC 8656 §3.2", |stage| {
        let first = stage.guest()?.allocated()?.relayed()?;
        let second = stage.guest()?.allocated()?.relayed()?;
        expect(first != second, "two relayed addresses", (first, second))
    }),
    Case::new("after_freeing_a_client_may_allocate_again", "RFC 8656 §8.2", |stage| {
        let mut client = stage.guest()?.allocated()?;
        client.succeed(refresh_request(0))?;
        client.succeed(allocate_request()).map(drop)
    }),
    Case::new("requested_family_ipv4_gets_an_ipv4_address", "RFC 8656 §7.2", |stage| {
        let relayed = stage.guest()?.allocated_with(family(IPV4))?.relayed()?;
        expect(relayed.is_ipv4(), "an IPv4 address", relayed)
    }),
    Case::new("requested_family_ipv6_gets_an_ipv6_address", "RFC 8656 §7.2", |stage| {
        let relayed = stage.guest()?.allocated_with(family(IPV6))?.relayed()?;
        expect_equal("relayed address", LAN2_V6, relayed.ip())
    }),
    Case::new("without_a_family_an_ipv6_client_gets_an_ipv4_address", "RFC 8656 §7.2", |stage| {
        let relayed = stage.client(Place::GuestV6)?.allocated()?.relayed()?;
        expect_equal("relayed address", NAT, relayed.ip())
    }),
    Case::new("an_unknown_requested_family_gets_440", "RFC 8656 §7.2", |stage| {
        stage.guest()?.challenged()?.refused(family(9 << 24), 440).map(drop)
    }),
    Case::new("a_malformed_requested_family_gets_400", "RFC 8656 §18.6", |stage| {
        let request = allocate_request().with(REQUESTED_ADDRESS_FAMILY, &[1]);
        stage.guest()?.challenged()?.refused(request, 400).map(drop)
    }),
    Case::new("additional_family_ipv6_gets_both_addresses", "RFC 8656 §7.2", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let answer = client.succeed(additional(IPV6))?;
        let relayed = answer.addresses(XOR_RELAYED_ADDRESS);
        let both = relayed.iter().any(std::net::SocketAddr::is_ipv4)
            && relayed.iter().any(std::net::SocketAddr::is_ipv6);
        expect(both && relayed.len() == 2, "an address of each family", relayed)?;
        expect(!answer.has(ADDRESS_ERROR_CODE), "no ADDRESS-ERROR-CODE", &answer)
    }),
    Case::new("additional_family_ipv4_gets_400", "RFC 8656 §7.2", |stage| {
        stage.guest()?.challenged()?.refused(additional(IPV4), 400).map(drop)
    }),
    Case::new("requested_and_additional_family_together_get_400", "RFC 8656 §7.2", |stage| {
        let request = family(IPV4).number(ADDITIONAL_ADDRESS_FAMILY, IPV6);
        stage.guest()?.challenged()?.refused(request, 400).map(drop)
    }),
    Case::new("additional_family_with_reservation_token_gets_400", "RFC 8656 §7.2", |stage| {
        let request = additional(IPV6).with(RESERVATION_TOKEN, &[1; 8]);
        stage.guest()?.challenged()?.refused(request, 400).map(drop)
    }),
    Case::new("additional_family_with_the_next_port_gets_400", "RFC 8656 §7.2", |stage| {
        let request = additional(IPV6).with(EVEN_PORT, &[0x80]);
        stage.guest()?.challenged()?.refused(request, 400).map(drop)
    }),
    Case::new("even_port_gets_an_even_port", "RFC 8656 §7.2", |stage| {
        for _ in 0..8 {
            let request = allocate_request().with(EVEN_PORT, &[0]);
            let port = stage.guest()?.allocated_with(request)?.relayed()?.port();
            expect(port % 2 == 0, "an even port", port)?;
        }
        Ok(())
    }),
    Case::new("even_port_alone_gets_no_reservation", "RFC 8656 §7.2", |stage| {
        let request = allocate_request().with(EVEN_PORT, &[0]);
        let answer = stage.guest()?.challenged()?.succeed(request)?;
        expect(!answer.has(RESERVATION_TOKEN), "no RESERVATION-TOKEN", &answer)
    }),
    Case::new("the_next_port_is_reserved_under_a_token", "RFC 8656 §7.2", |stage| {
        let mut first = stage.guest()?.challenged()?;
        let answer = first.succeed(allocate_request().with(EVEN_PORT, &[0x80]))?;
        let token = answer.attribute(RESERVATION_TOKEN).unwrap_or_default().to_vec();
        expect_equal("octets of RESERVATION-TOKEN", 8, token.len())?;
        let even = answer.address(XOR_RELAYED_ADDRESS).map_or(0, |address| address.port());
        expect(even > 0 && even % 2 == 0, "an even port", even)?;
        let request = allocate_request().with(RESERVATION_TOKEN, &token);
        let next = stage.guest()?.allocated_with(request)?.relayed()?.port();
        expect_equal("the reserved port", even + 1, next)
    }),
    Case::new("a_reservation_token_serves_once", "RFC 8656 §7.2", |stage| {
        let mut first = stage.guest()?.challenged()?;
        let answer = first.succeed(allocate_request().with(EVEN_PORT, &[0x80]))?;
        let token = answer.attribute(RESERVATION_TOKEN).unwrap_or_default().to_vec();
        let request = || allocate_request().with(RESERVATION_TOKEN, &token);
        stage.guest()?.challenged()?.succeed(request())?;
        stage.guest()?.challenged()?.refused(request(), 508).map(drop)
    }),
    Case::new("a_token_never_issued_gets_508", "RFC 8656 §7.2", |stage| {
        let request = allocate_request().with(RESERVATION_TOKEN, &[7; 8]);
        stage.guest()?.challenged()?.refused(request, 508).map(drop)
    }),
    Case::new("a_token_of_wrong_length_gets_400", "RFC 8656 §18.10", |stage| {
        let request = allocate_request().with(RESERVATION_TOKEN, &[7; 4]);
        stage.guest()?.challenged()?.refused(request, 400).map(drop)
    }),
    Case::new("even_port_with_reservation_token_gets_400", "RFC 8656 §7.2", |stage| {
        let request = allocate_request().with(EVEN_PORT, &[0]).with(RESERVATION_TOKEN, &[7; 8]);
        stage.guest()?.challenged()?.refused(request, 400).map(drop)
    }),
    Case::new("requested_family_with_reservation_token_gets_400", "RFC 8656 §7.2", |stage| {
        let request = family(IPV4).with(RESERVATION_TOKEN, &[7; 8]);
        stage.guest()?.challenged()?.refused(request, 400).map(drop)
    }),
    Case::new("allocate_with_dont_fragment_is_accepted", "RFC 8656 §7.2", |stage| {
        let request = allocate_request().with(DONT_FRAGMENT, &[]);
        stage.guest()?.challenged()?.succeed(request).map(drop)
    }),
    Case::new("a_user_beyond_its_quota_gets_486", "RFC 8656 §7.2", |stage| {
        let first = stage.guest()?.allocated()?;
        let second = stage.guest()?.allocated()?;
        stage.guest()?.challenged()?.refused(allocate_request(), 486)?;
        free([first, second])
    })
    .on(Server::Frugal),
    Case::new("the_quota_of_one_user_is_not_that_of_another", "RFC 8656 §7.2", |stage| {
        let first = stage.guest()?.allocated()?;
        let second = stage.guest()?.allocated()?;
        let bob = stage.guest()?.of_user("bob", "bob-password").allocated()?;
        free([first, second, bob])
    })
    .on(Server::Frugal),
    Case::new("a_source_beyond_its_quota_gets_486", "policy: quotas", |stage| {
        let mut clients = Vec::new();
        for (user, password) in [USERS[0], USERS[1]] {
            for _ in 0..FRUGAL_PER_USER {
                clients.push(stage.guest()?.of_user(user, password).allocated()?);
            }
        }
        let (user, password) = USERS[2];
        let fifth = stage.guest()?.of_user(user, password);
        fifth.challenged()?.refused(allocate_request(), 486)?;
        clients.push(stage.client(Place::Stranger)?.of_user(user, password).allocated()?);
        free(clients)
    })
    .on(Server::Frugal),
    Case::new("a_family_that_the_server_lacks_gets_440", "RFC 8656 §7.2", |stage| {
        stage.guest()?.challenged()?.refused(family(IPV6), 440).map(drop)
    })
    .on(Server::OneFamily),
    Case::new(
        "of_two_families_the_missing_one_is_told_by_address_error_code",
        "RFC 8656 §7.2",
        |stage| {
            let answer = stage.guest()?.challenged()?.succeed(additional(IPV6))?;
            let relayed = answer.addresses(XOR_RELAYED_ADDRESS);
            expect(relayed.len() == 1 && relayed[0].is_ipv4(), "one IPv4 address", &relayed)?;
            // Family, two reserved octets with the class, the number (RFC 8656 §18.12).
            let value = answer.attribute(ADDRESS_ERROR_CODE).unwrap_or_default();
            let head = value.get(..4).unwrap_or_default();
            expect(head.first() == Some(&2), "IPv6 in ADDRESS-ERROR-CODE", value)?;
            expect(head.get(2..) == Some(&[4, 40][..]), "440 in ADDRESS-ERROR-CODE", value)
        },
    )
    .on(Server::OneFamily),
    Case::new("a_freed_allocation_counts_no_longer", "RFC 8656 §7.2", |stage| {
        for _ in 0..3 {
            let first = stage.guest()?.allocated()?;
            let second = stage.guest()?.allocated()?;
            free([first, second])?;
        }
        Ok(())
    })
    .on(Server::Frugal),
    Case::new("without_a_free_port_allocate_gets_508", "RFC 8656 §7.2", |stage| {
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(stage.guest()?.allocated()?);
        }
        stage.guest()?.challenged()?.refused(allocate_request(), 508)?;
        free(clients)?;
        free([stage.guest()?.allocated()?])
    })
    .on(Server::Tiny),
    Case::new("even_port_without_r_takes_one_port_only", "RFC 8656 §7.2", |stage| {
        let even = || allocate_request().with(EVEN_PORT, &[0]);
        let first = stage.guest()?.allocated_with(even())?;
        let second = stage.guest()?.allocated_with(even())?;
        stage.guest()?.challenged()?.refused(even(), 508)?;
        let third = stage.guest()?.allocated()?;
        let fourth = stage.guest()?.allocated()?;
        free([first, second, third, fourth])
    })
    .on(Server::Tiny),
    Case::new("a_reserved_port_is_given_to_nobody_else", "RFC 8656 §7.2", |stage| {
        let next = || allocate_request().with(EVEN_PORT, &[0x80]);
        let mut first = stage.guest()?.challenged()?;
        let answer = first.succeed(next())?;
        let token = answer.attribute(RESERVATION_TOKEN).unwrap_or_default().to_vec();
        let second = stage.guest()?.allocated()?;
        let third = stage.guest()?.allocated()?;
        stage.guest()?.challenged()?.refused(allocate_request(), 508)?;
        let request = allocate_request().with(RESERVATION_TOKEN, &token);
        let reserved = stage.guest()?.allocated_with(request)?;
        free([first, second, third, reserved])
    })
    .on(Server::Tiny),
    Case::new("a_draining_server_names_another_with_300", "RFC 8489 §10", |stage| {
        // Before the credentials or after them, as RFC 8489 §10 leaves open.
        let mut client = stage.guest()?;
        let mut answer = client.call(&allocate_request())?;
        if answer.error_code() == Some(401) {
            client.learn(&answer);
            answer = client.request(allocate_request())?;
        }
        expect_error(&answer, 300)?;
        let named = answer.attribute(ALTERNATE_SERVER).and_then(read_plain_address);
        expect_equal("ALTERNATE-SERVER", Some(ALTERNATE), named)
    })
    .on(Server::Draining),
    Case::new("a_draining_server_signs_its_300", "RFC 8489 §10", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let answer = client.refused(allocate_request(), 300)?;
        expect_equal("integrity", Some(true), answer.verify(&client.key()))
    })
    .on(Server::Draining),
    Case::new("a_draining_server_still_answers_binding", "policy: draining", |stage| {
        stage.guest()?.hears_nothing()
    })
    .on(Server::Draining),
    Case::new("a_draining_server_still_refuses_wrong_passwords", "RFC 8489 §9.2.4", |stage| {
        let client = stage.guest()?.challenged()?;
        client.of_user("alice", "guess").refused(allocate_request(), 401).map(drop)
    })
    .on(Server::Draining),
];

fn family(value: u32) -> Packet {
    allocate_request().number(REQUESTED_ADDRESS_FAMILY, value)
}

fn additional(value: u32) -> Packet {
    allocate_request().number(ADDITIONAL_ADDRESS_FAMILY, value)
}

fn granted(stage: &Stage<'_>, asked: Option<u32>, expected: u32) -> Outcome {
    let mut request = allocate_request();
    if let Some(asked) = asked {
        request = request.number(LIFETIME, asked);
    }
    let answer = stage.guest()?.challenged()?.succeed(request)?;
    expect_equal("LIFETIME", Some(expected), answer.number(LIFETIME))
}

/// Frees what these clients hold, for the next case to find room.
fn free(clients: impl IntoIterator<Item = crate::conformance::client::Client>) -> Outcome {
    for mut client in clients {
        client.succeed(refresh_request(0))?;
    }
    Ok(())
}
