//! The message format and Binding.

use crate::conformance::case::{Case, Outcome, expect, expect_equal};
use crate::conformance::client::{expect_error, refresh_request};
use crate::conformance::setting::{Place, Stage};
use crate::conformance::stun::{
    BINDING, CHANNEL_NUMBER, ERROR, ERROR_CODE, FINGERPRINT, INDICATION, LIFETIME, MAPPED_ADDRESS,
    MESSAGE_INTEGRITY, Packet, SOFTWARE, SUCCESS, UNKNOWN_ATTRIBUTES, USERNAME, XOR_MAPPED_ADDRESS,
};

pub(super) const CASES: &[Case] = &[
    Case::new("binding_tells_the_source_address", "RFC 8489 §7.3.1, §14.2", |stage| {
        mapped(stage, Place::Guest)
    }),
    Case::new("binding_tells_the_source_address_inside", "RFC 8489 §7.3.1, §14.2", |stage| {
        mapped(stage, Place::Colleague)
    }),
    Case::new("binding_tells_an_ipv6_source_address", "RFC 8489 §14.2", |stage| {
        mapped(stage, Place::GuestV6)
    }),
    Case::new("binding_tells_the_source_address_over_tcp", "RFC 8489 §6.2.2", |stage| {
        let mut client = stage.tcp_client(Place::Guest)?;
        let answer = client.call(&Packet::new(BINDING))?;
        expect_equal("address", Some(client.local), answer.address(XOR_MAPPED_ADDRESS))
    }),
    Case::new("binding_answer_says_nothing_more_than_asked", "policy: no amplification", |stage| {
        let answer = stage.guest()?.call(&Packet::new(BINDING))?;
        expect(!answer.has(MAPPED_ADDRESS), "no MAPPED-ADDRESS", &answer)?;
        expect_equal("octets", 32, answer.len())
    }),
    Case::new("no_answer_names_the_software", "policy: no amplification", |stage| {
        let mut client = stage.guest()?;
        let answer = client.call(&Packet::new(BINDING))?;
        expect(!answer.has(SOFTWARE), "no SOFTWARE", &answer)?;
        let answer = client.challenge()?;
        expect(!answer.has(SOFTWARE), "no SOFTWARE", &answer)
    }),
    Case::new("a_challenge_is_no_amplifier", "policy: no amplification", |stage| {
        let request = crate::conformance::client::allocate_request();
        let mut client = stage.guest()?;
        let answer = client.call(&request)?;
        let octets = request.bytes().len() + 28;
        let factor = (answer.len() + 28) / octets;
        expect(factor < 4, "an answer below four times the request", (octets, answer.len() + 28))
    }),
    Case::new("another_magic_cookie_gets_no_answer", "RFC 8489 §6.3", |stage| {
        altered(stage, |bytes| bytes[7] ^= 1)
    }),
    Case::new("a_length_of_no_whole_words_gets_no_answer", "RFC 8489 §5", |stage| {
        altered(stage, |bytes| {
            bytes.extend([0, 0]);
            bytes[3] = 2;
        })
    }),
    Case::new("a_length_beyond_the_datagram_gets_no_answer", "RFC 8489 §6.3", |stage| {
        altered(stage, |bytes| bytes[3] = 8)
    }),
    Case::new("octets_after_the_message_get_no_answer", "RFC 8489 §6.3", |stage| {
        altered(stage, |bytes| bytes.extend([0; 8]))
    }),
    Case::new("a_header_cut_short_gets_no_answer", "RFC 8489 §5", |stage| {
        altered(stage, |bytes| bytes.truncate(19))
    }),
    Case::new("an_empty_datagram_gets_no_answer", "RFC 8489 §5", |stage| {
        altered(stage, Vec::clear)
    }),
    Case::new("a_first_octet_of_0x80_and_more_gets_no_answer", "RFC 7983 §7", |stage| {
        altered(stage, |bytes| bytes[0] |= 0x80)
    }),
    Case::new("an_attribute_beyond_the_message_gets_no_success", "RFC 8489 §14", |stage| {
        let packet = Packet::new(BINDING).with(SOFTWARE, b"abcd");
        let mut bytes = packet.bytes().to_vec();
        bytes[23] = 200;
        let mut client = stage.guest()?;
        client.send(&bytes)?;
        let next = Packet::new(BINDING);
        client.send(next.bytes())?;
        match client.hear(std::time::Duration::from_secs(2))? {
            Some(crate::conformance::client::Heard::Stun(answer)) if answer.id == packet.id() => {
                expect_error(&answer, 400)
            }
            Some(crate::conformance::client::Heard::Stun(answer)) => {
                expect_equal("answer", next.id(), answer.id)
            }
            other => expect(false, "an answer to the next request", other),
        }
    }),
    Case::new("an_unknown_method_gets_no_success", "RFC 8489 §6.3", |stage| {
        let packet = Packet::new(0x00FF & !0x0110);
        let mut client = stage.guest()?;
        client.send(packet.bytes())?;
        let next = Packet::new(BINDING);
        client.send(next.bytes())?;
        match client.hear(std::time::Duration::from_secs(2))? {
            Some(crate::conformance::client::Heard::Stun(answer)) if answer.id == packet.id() => {
                expect(answer.kind & ERROR == ERROR, "an error or nothing", answer)
            }
            Some(crate::conformance::client::Heard::Stun(answer)) => {
                expect_equal("answer", next.id(), answer.id)
            }
            other => expect(false, "an answer to the next request", other),
        }
    }),
    Case::new("a_binding_indication_gets_no_answer", "RFC 8489 §6.3.2", |stage| {
        stage.guest()?.ignored(Packet::new(BINDING | INDICATION).bytes())
    }),
    Case::new("a_success_answer_gets_no_answer", "RFC 8489 §6.3.3", |stage| {
        stage.guest()?.ignored(Packet::new(BINDING | SUCCESS).bytes())
    }),
    Case::new("an_error_answer_gets_no_answer", "RFC 8489 §6.3.4", |stage| {
        let packet = Packet::new(BINDING | ERROR).with(ERROR_CODE, &[0, 0, 4, 0]);
        stage.guest()?.ignored(packet.bytes())
    }),
    Case::new("a_right_fingerprint_is_accepted", "RFC 8489 §14.7", |stage| {
        let packet = Packet::new(BINDING).fingerprint();
        let answer = stage.guest()?.call(&packet)?;
        expect(answer.kind == BINDING | SUCCESS, "a success answer", &answer)
    }),
    Case::new("a_request_with_fingerprint_is_answered_with_one", "RFC 8489 §6.3.1.1", |stage| {
        let answer = stage.guest()?.call(&Packet::new(BINDING).fingerprint())?;
        expect(answer.has(FINGERPRINT), "FINGERPRINT", &answer)
    }),
    Case::new("a_wrong_fingerprint_gets_no_answer", "RFC 8489 §6.3", |stage| {
        let mut bytes = Packet::new(BINDING).fingerprint().bytes().to_vec();
        bytes[27] ^= 1;
        stage.guest()?.ignored(&bytes)
    }),
    Case::new("an_unknown_required_attribute_gets_420_with_its_type", "RFC 8489 §6.3.1", |stage| {
        let packet = Packet::new(BINDING).with(0x7ABC, b"what");
        let answer = stage.guest()?.call(&packet)?;
        expect_error(&answer, 420)?;
        let unknown = answer.attribute(UNKNOWN_ATTRIBUTES);
        expect_equal("UNKNOWN-ATTRIBUTES", Some(&[0x7A, 0xBC][..]), unknown)
    }),
    Case::new("every_unknown_required_attribute_is_listed", "RFC 8489 §14.13", |stage| {
        let packet = Packet::new(BINDING).with(0x7ABC, b"what").with(0x0FFE, b"and what");
        let answer = stage.guest()?.call(&packet)?;
        expect_error(&answer, 420)?;
        let value = answer.attribute(UNKNOWN_ATTRIBUTES).unwrap_or_default();
        let mut listed: Vec<_> = value.chunks(2).map(<[u8]>::to_vec).collect();
        listed.sort();
        expect_equal("UNKNOWN-ATTRIBUTES", vec![vec![0x0F, 0xFE], vec![0x7A, 0xBC]], listed)
    }),
    Case::new("an_unknown_optional_attribute_is_ignored", "RFC 8489 §6.3.1", |stage| {
        let packet = Packet::new(BINDING).with(0xFABC, b"what");
        let answer = stage.guest()?.call(&packet)?;
        expect(answer.kind == BINDING | SUCCESS, "a success answer", &answer)
    }),
    Case::new("an_unknown_required_attribute_of_allocate_gets_420", "RFC 8489 §6.3.1", |stage| {
        let packet = crate::conformance::client::allocate_request().with(0x7ABC, b"what");
        let answer = stage.guest()?.challenged()?.refused(packet, 420)?;
        let unknown = answer.attribute(UNKNOWN_ATTRIBUTES);
        expect_equal("UNKNOWN-ATTRIBUTES", Some(&[0x7A, 0xBC][..]), unknown)
    }),
    Case::new(
        "an_unknown_required_attribute_makes_an_indication_void",
        "RFC 8489 §6.3.2",
        |stage| {
            let peer = stage.peer(Place::Media)?;
            let mut client = stage.guest()?.allocated()?;
            client.permit(&[peer.address])?;
            let void = crate::conformance::client::send_indication(peer.address, b"void")
                .with(0x7ABC, b"");
            client.send(void.bytes())?;
            client.send_to(peer.address, b"good")?;
            peer.expect(b"good")?;
            peer.hears_nothing()
        },
    ),
    Case::new("padding_may_have_any_value", "RFC 8489 §14", |stage| {
        let packet = Packet::new(BINDING).padded(SOFTWARE, b"a", 0xFF);
        let answer = stage.guest()?.call(&packet)?;
        expect(answer.kind == BINDING | SUCCESS, "a success answer", &answer)
    }),
    Case::new("the_first_of_two_equal_attributes_counts", "RFC 8489 §14", |stage| {
        let mut client = stage.guest()?.allocated()?;
        let answer = client.succeed(refresh_request(1_200).number(LIFETIME, 0))?;
        expect_equal("LIFETIME", Some(1_200), answer.number(LIFETIME))?;
        let answer = client.succeed(refresh_request(600))?;
        expect_equal("LIFETIME", Some(600), answer.number(LIFETIME))
    }),
    Case::new(
        "binding_with_foreign_credentials_is_answered",
        "RFC 8656 §5, RFC 8489 §12",
        |stage| {
            let packet = Packet::new(BINDING).with(USERNAME, b"nobody").integrity(b"nothing");
            let answer = stage.guest()?.call(&packet)?;
            expect(answer.kind == BINDING | SUCCESS, "a success answer", &answer)?;
            expect(!answer.has(MESSAGE_INTEGRITY), "no MESSAGE-INTEGRITY", &answer)
        },
    ),
    Case::new("an_attribute_of_another_method_is_understood", "RFC 8489 §6.3.1", |stage| {
        let packet = crate::conformance::client::allocate_request();
        let packet = packet.number(CHANNEL_NUMBER, 0x4000_0000);
        stage.guest()?.challenged()?.succeed(packet).map(drop)
    }),
    Case::new("garbage_gets_no_answer", "RFC 8489 §6.3", |stage| {
        let mut client = stage.guest()?;
        for length in [1_usize, 3, 4, 20, 21, 548, 1_472] {
            for first in [0x00_u8, 0x01, 0x3F, 0x80, 0xFF] {
                let mut bytes = vec![0xA5; length];
                bytes[0] = first;
                client.send(&bytes)?;
            }
        }
        client.hears_nothing()
    }),
];

fn mapped(stage: &Stage<'_>, place: Place) -> Outcome {
    let mut client = stage.client(place)?;
    let answer = client.call(&Packet::new(BINDING))?;
    expect(answer.kind == BINDING | SUCCESS, "a success answer", &answer)?;
    expect_equal("XOR-MAPPED-ADDRESS", Some(client.local), answer.address(XOR_MAPPED_ADDRESS))
}

/// A Binding request that was made wrong must get no answer.
fn altered(stage: &Stage<'_>, alter: fn(&mut Vec<u8>)) -> Outcome {
    let mut bytes = Packet::new(BINDING).bytes().to_vec();
    alter(&mut bytes);
    stage.guest()?.ignored(&bytes)
}
