//! Long-term credentials (RFC 8489 §9.2).

use crate::conformance::case::{Case, Outcome, expect, expect_equal};
use crate::conformance::client::{
    Client, Scheme, allocate_request, bind_request, expect_error, permission_request,
    refresh_request,
};
use crate::conformance::setting::{Place, REALM as OUR_REALM, Stage};
use crate::conformance::stun::{
    ALLOCATE, LIFETIME, MESSAGE_INTEGRITY, Message, NONCE, PASSWORD_ALGORITHMS, Packet, REALM,
    USERNAME, XOR_PEER_ADDRESS,
};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "allocate_without_credentials_gets_401_with_realm_and_nonce",
        "RFC 8489 §9.2.4",
        |stage| {
            let answer = stage.guest()?.call(&allocate_request())?;
            expect_error(&answer, 401)?;
            expect_equal("REALM", Some(OUR_REALM.as_bytes()), answer.attribute(REALM))?;
            expect(answer.has(NONCE), "NONCE", &answer)?;
            expect(!answer.has(MESSAGE_INTEGRITY), "no MESSAGE-INTEGRITY", &answer)
        },
    ),
    Case::new("refresh_without_credentials_gets_401", "RFC 8489 §9.2.4", |stage| {
        unsigned(stage, refresh_request(600))
    }),
    Case::new("create_permission_without_credentials_gets_401", "RFC 8489 §9.2.4", |stage| {
        unsigned(stage, permission_request(&[peer()]))
    }),
    Case::new("channel_bind_without_credentials_gets_401", "RFC 8489 §9.2.4", |stage| {
        unsigned(stage, bind_request(0x4000, peer()))
    }),
    Case::new("right_credentials_are_accepted", "RFC 8489 §9.2.4", |stage| {
        stage.guest()?.allocated().map(drop)
    }),
    Case::new("a_wrong_password_gets_401", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?.of_user("alice", "guess");
        let answer = client.refused(allocate_request(), 401)?;
        expect(answer.has(NONCE) && answer.has(REALM), "REALM and NONCE", &answer)
    }),
    Case::new("an_unknown_user_gets_what_a_wrong_password_gets", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        client = client.of_user("alice", "guess");
        let known = client.refused(allocate_request(), 401)?;
        client = client.of_user("mallory", "guess");
        let unknown = client.refused(allocate_request(), 401)?;
        expect_equal("answer", format!("{known:?}"), format!("{unknown:?}"))
    }),
    Case::new("a_wrong_password_after_allocating_gets_401", "RFC 8489 §9.2.4", |stage| {
        let client = stage.guest()?.allocated()?;
        let mut client = client.of_user("alice", "guess");
        client.refused(refresh_request(0), 401)?;
        let mut client = client.of_user("alice", "alice-password");
        client.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("a_request_without_username_gets_400", "RFC 8489 §9.2.4", |stage| {
        lacking(stage, USERNAME)
    }),
    Case::new("a_request_without_realm_gets_400", "RFC 8489 §9.2.4", |stage| {
        lacking(stage, REALM)
    }),
    Case::new("a_request_without_nonce_gets_400", "RFC 8489 §9.2.4", |stage| {
        lacking(stage, NONCE)
    }),
    Case::new("a_nonce_never_issued_gets_438_with_another", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        client.nonce = b"obMatJos2AAAA0123456789abcdef".to_vec();
        stale(&mut client)
    }),
    Case::new("a_nonce_changed_in_one_octet_gets_438", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let last = client.nonce.len() - 1;
        client.nonce[last] ^= 1;
        stale(&mut client)
    }),
    Case::new("a_nonce_cut_short_gets_438", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        client.nonce.pop();
        stale(&mut client)
    }),
    Case::new("a_nonce_of_another_source_address_gets_438", "policy: nonces", |stage| {
        let guest = stage.guest()?.challenged()?;
        let mut other = stage.client(Place::Stranger)?;
        other.realm.clone_from(&guest.realm);
        other.nonce.clone_from(&guest.nonce);
        stale(&mut other)
    }),
    Case::new("the_nonce_of_a_438_is_accepted", "RFC 8489 §9.2.5", |stage| {
        let mut client = stage.guest()?.challenged()?;
        client.nonce = b"foreign".to_vec();
        let answer = client.refused(allocate_request(), 438)?;
        client.learn(&answer);
        client.succeed(allocate_request()).map(drop)
    }),
    Case::new("a_nonce_serves_many_requests", "RFC 8489 §9.2.3.2", |stage| {
        let mut client = stage.guest()?.allocated()?;
        for _ in 0..20 {
            client.succeed(refresh_request(600))?;
        }
        Ok(())
    }),
    Case::new("a_request_signed_for_another_realm_gets_no_success", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        client.realm = "elsewhere.example.org".to_owned();
        let answer = client.request(allocate_request())?;
        let code = answer.error_code();
        expect(matches!(code, Some(400 | 401 | 438)), "error 400, 401 or 438", &answer)
    }),
    Case::new("a_request_changed_after_signing_gets_401", "RFC 8489 §14.5", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let signed = client.sign(allocate_request().number(LIFETIME, 600));
        let mut bytes = signed.bytes().to_vec();
        bytes[35] ^= 1;
        client.send(&bytes)?;
        expect_error(&client.answer(signed.id())?, 401)
    }),
    Case::new("errors_after_authentication_have_integrity", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let answer = client.refused(refresh_request(600), 437)?;
        expect_equal("integrity", Some(true), answer.verify(&client.key()))
    }),
    Case::new("a_420_after_authentication_has_integrity", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let answer = client.refused(allocate_request().with(0x7ABC, b""), 420)?;
        expect_equal("integrity", Some(true), answer.verify(&client.key()))
    }),
    Case::new("another_user_gets_441", "RFC 8656 §5", |stage| {
        let mut client = stage.guest()?.allocated()?.of_user("bob", "bob-password");
        client.refused(refresh_request(0), 441)?;
        client.refused(permission_request(&[peer()]), 441)?;
        client.refused(bind_request(0x4000, peer()), 441)?;
        let mut client = client.of_user("alice", "alice-password");
        client.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("an_appended_lifetime_of_0_frees_nothing", "RFC 8489 §14.5", |stage| {
        let mut client = stage.guest()?.allocated()?;
        let signed = client.sign(Packet::new(crate::conformance::stun::REFRESH));
        let answer = client.call(&signed.number(LIFETIME, 0))?;
        client.check_success(&answer)?;
        expect_equal("LIFETIME", Some(600), answer.number(LIFETIME))?;
        client.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("an_appended_peer_gets_no_permission", "RFC 8489 §14.5", |stage| {
        let (first, second) = (stage.peer(Place::Media)?, stage.peer(Place::SecondMedia)?);
        let mut client = stage.guest()?.allocated()?;
        let signed = client.sign(permission_request(&[first.address]));
        let answer = client.call(&signed.address(XOR_PEER_ADDRESS, second.address))?;
        client.check_success(&answer)?;
        client.send_to(second.address, b"appended")?;
        client.send_to(first.address, b"signed")?;
        first.expect(b"signed")?;
        second.hears_nothing()
    }),
    Case::new("an_appended_unknown_attribute_is_ignored", "RFC 8489 §14.5", |stage| {
        let mut client = stage.guest()?.allocated()?;
        let signed = client.sign(refresh_request(600)).with(0x7ABC, b"what");
        let answer = client.call(&signed)?;
        client.check_success(&answer)
    }),
    Case::new("an_appended_username_is_ignored", "RFC 8489 §14.5", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let signed = client.credentials(allocate_request()).integrity(&client.key());
        let answer = client.call(&signed.with(USERNAME, b"alice"))?;
        expect_error(&answer, 400)
    }),
    Case::new("fingerprint_after_integrity_is_accepted", "RFC 8489 §14.7", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let answer = client.call(&client.sign(allocate_request()).fingerprint())?;
        client.check_success(&answer)
    }),
    Case::new("a_wrong_fingerprint_on_a_signed_request_gets_no_answer", "RFC 8489 §6.3", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let mut bytes = client.sign(allocate_request()).fingerprint().bytes().to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        client.ignored(&bytes)
    }),
    Case::new("a_request_without_algorithms_is_taken_as_md5", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        expect_equal("scheme", Scheme::Sha1, client.scheme)?;
        let answer = client.succeed(allocate_request())?;
        expect(!answer.has(PASSWORD_ALGORITHMS), "no PASSWORD-ALGORITHMS", &answer)
    }),
    Case::new("a_user_name_of_509_octets_gets_an_error", "RFC 8489 §14.3", |stage| {
        let name = "x".repeat(509);
        let mut client = stage.guest()?.challenged()?.of_user(&name, "guess");
        let answer = client.request(allocate_request())?;
        expect(matches!(answer.error_code(), Some(400 | 401)), "error 400 or 401", &answer)
    }),
    Case::new("an_integrity_of_wrong_length_gets_no_success", "RFC 8489 §14.5", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let packet = client.credentials(allocate_request().with(USERNAME, b"alice"));
        let packet = packet.with(MESSAGE_INTEGRITY, &[0; 16]);
        client.send(packet.bytes())?;
        match client.answer(packet.id()) {
            Ok(answer) => expect(answer.error_code().is_some(), "an error or nothing", &answer),
            Err(_) => client.hears_nothing(),
        }
    }),
];

fn peer() -> std::net::SocketAddr {
    std::net::SocketAddr::new(Place::Media.ip(), 40_000)
}

fn unsigned(stage: &Stage<'_>, packet: Packet) -> Outcome {
    let answer = stage.guest()?.call(&packet)?;
    expect_error(&answer, 401)?;
    expect(answer.has(NONCE) && answer.has(REALM), "REALM and NONCE", &answer)
}

/// An otherwise right Allocate request without that attribute gets 400.
fn lacking(stage: &Stage<'_>, kind: u16) -> Outcome {
    let mut client = stage.guest()?.challenged()?;
    let mut packet = Packet::new(ALLOCATE);
    let request = allocate_request();
    packet = packet.with(crate::conformance::stun::REQUESTED_TRANSPORT, &request.bytes()[24..28]);
    let parts = [
        (USERNAME, client.user.clone().into_bytes()),
        (REALM, client.realm.clone().into_bytes()),
        (NONCE, client.nonce.clone()),
    ];
    for (name, value) in parts.iter().filter(|(name, _)| *name != kind) {
        packet = packet.with(*name, value);
    }
    let signed = client.integrity(packet);
    expect_error(&client.call(&signed)?, 400)
}

/// The next request gets 438 with realm and a nonce that differs.
fn stale(client: &mut Client) -> Outcome {
    let answer: Message = client.refused(allocate_request(), 438)?;
    expect(answer.has(REALM), "REALM", &answer)?;
    let fresh = answer.attribute(NONCE);
    expect(fresh.is_some_and(|nonce| nonce != client.nonce), "another NONCE", &answer)
}
