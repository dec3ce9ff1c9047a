//! SHA-256, USERHASH and the nonce's security features (RFC 8489 §9.2, §14.4, §14.6, §18.1), and
//! time-limited credentials.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::conformance::case::{Case, Fault, Outcome, expect, expect_equal};
use crate::conformance::client::{Client, Scheme, allocate_request, refresh_request};
use crate::conformance::digest;
use crate::conformance::setting::{REST_SECRETS, Server, Stage};
use crate::conformance::stun::{
    LIFETIME, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, NONCE, PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS, Packet, REALM, REFRESH, USERHASH, USERNAME,
};

/// Values of PASSWORD-ALGORITHM.
const MD5: [u8; 4] = [0, 1, 0, 0];
const SHA256: [u8; 4] = [0, 2, 0, 0];

pub(super) const CASES: &[Case] = &[
    Case::new("a_nonce_begins_with_the_cookie_of_security_features", "RFC 8489 §9.2", |stage| {
        let client = stage.guest()?.challenged()?;
        expect(client.nonce.starts_with(b"obMatJos2"), "obMatJos2…", ascii(&client.nonce))?;
        expect(client.nonce.len() <= 128, "at most 128 octets", client.nonce.len())
    }),
    Case::new("a_nonce_tells_of_password_algorithms", "RFC 8489 §18.1", |stage| {
        let client = stage.guest()?.challenged()?;
        expect(features(&client.nonce) & 0x20 != 0, "bit 0 set", ascii(&client.nonce))
    }),
    Case::new("a_nonce_tells_of_username_anonymity", "RFC 8489 §18.1", |stage| {
        let client = stage.guest()?.challenged()?;
        expect(features(&client.nonce) & 0x10 != 0, "bit 1 set", ascii(&client.nonce))
    }),
    Case::new("a_401_lists_password_algorithms", "RFC 8489 §9.2.4", |stage| {
        let client = stage.guest()?.challenged()?;
        let listed: Vec<&[u8]> = client.algorithms.chunks(4).collect();
        expect(listed.contains(&&SHA256[..]), "SHA-256 in PASSWORD-ALGORITHMS", &listed)?;
        expect(listed.contains(&&MD5[..]), "MD5 in PASSWORD-ALGORITHMS", &listed)
    }),
    Case::new("a_438_lists_password_algorithms", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        client.nonce = b"foreign".to_vec();
        let answer = client.refused(allocate_request(), 438)?;
        expect(answer.has(PASSWORD_ALGORITHMS), "PASSWORD-ALGORITHMS", &answer)
    }),
    Case::new("sha256_credentials_are_accepted_and_answered_alike", "RFC 8489 §9.2.4", |stage| {
        sha256(stage)?.allocated().map(drop)
    }),
    Case::new("sha256_answers_have_no_message_integrity", "RFC 8489 §9.2.4", |stage| {
        let answer = sha256(stage)?.succeed(allocate_request())?;
        expect(!answer.has(MESSAGE_INTEGRITY), "no MESSAGE-INTEGRITY", &answer)
    }),
    Case::new("a_wrong_password_under_sha256_gets_401", "RFC 8489 §9.2.4", |stage| {
        sha256(stage)?.of_user("alice", "guess").refused(allocate_request(), 401).map(drop)
    }),
    Case::new("md5_chosen_by_name_is_accepted", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let packet = chosen(&client, &client.algorithms, MD5);
        let answer = client.call(&packet.integrity_sha256(&client.key(), 32))?;
        expect_equal("error", None, answer.error_code())?;
        expect(answer.has(MESSAGE_INTEGRITY_SHA256), "MESSAGE-INTEGRITY-SHA256", &answer)?;
        expect_equal("integrity", Some(true), answer.verify(&client.key()))
    }),
    Case::new("sha256_integrity_under_the_md5_key_is_accepted", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let packet = client.credentials(allocate_request().with(USERNAME, b"alice"));
        let answer = client.call(&packet.integrity_sha256(&client.key(), 32))?;
        expect_equal("error", None, answer.error_code())?;
        expect_equal("integrity", Some(true), answer.verify(&client.key()))
    }),
    Case::new("an_algorithm_without_the_list_gets_400", "RFC 8489 §9.2.4", |stage| {
        let client = sha256(stage)?;
        let packet = allocate_request()
            .with(USERNAME, b"alice")
            .with(REALM, client.realm.as_bytes())
            .with(NONCE, &client.nonce)
            .with(PASSWORD_ALGORITHM, &SHA256);
        bad(client, packet)
    }),
    Case::new("the_list_without_an_algorithm_gets_400", "RFC 8489 §9.2.4", |stage| {
        let client = sha256(stage)?;
        let packet = allocate_request()
            .with(USERNAME, b"alice")
            .with(REALM, client.realm.as_bytes())
            .with(NONCE, &client.nonce)
            .with(PASSWORD_ALGORITHMS, &client.algorithms);
        bad(client, packet)
    }),
    Case::new("a_list_cut_by_a_bid_down_gets_400", "RFC 8489 §9.2.4", |stage| {
        let client = sha256(stage)?;
        let packet = chosen(&client, &MD5, MD5);
        bad(client, packet)
    }),
    Case::new("a_list_in_another_order_gets_400", "RFC 8489 §9.2.4", |stage| {
        let client = sha256(stage)?;
        let words: Vec<&[u8]> = client.algorithms.chunks(4).rev().collect();
        let packet = chosen(&client, &words.concat(), SHA256);
        bad(client, packet)
    }),
    Case::new("an_algorithm_that_is_not_listed_gets_400", "RFC 8489 §9.2.4", |stage| {
        let client = sha256(stage)?;
        let packet = chosen(&client, &client.algorithms, [0, 9, 0, 0]);
        bad(client, packet)
    }),
    Case::new("a_sha256_integrity_cut_short_is_refused", "RFC 8489 §14.6", |stage| {
        for length in [4, 12, 16, 20, 28] {
            let mut client = sha256(stage)?;
            let packet = client.credentials(allocate_request().with(USERNAME, b"alice"));
            let answer = client.call(&packet.integrity_sha256(&client.key(), length))?;
            let code = answer.error_code();
            expect(matches!(code, Some(400 | 401)), "error 400 or 401", (length, &answer))?;
        }
        Ok(())
    }),
    Case::new("after_sha256_integrity_nothing_counts", "RFC 8489 §14.6", |stage| {
        let mut client = sha256(stage)?.allocated()?;
        let signed = client.sign(Packet::new(REFRESH)).number(LIFETIME, 0);
        let answer = client.call(&signed)?;
        client.check_success(&answer)?;
        expect_equal("LIFETIME", Some(600), answer.number(LIFETIME))?;
        client.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("a_user_hash_is_accepted_for_a_user_name", "RFC 8489 §9.2.4", |stage| {
        let mut client = sha256(stage)?;
        let hash = digest::user_hash("alice", &client.realm);
        let packet = client.credentials(allocate_request().with(USERHASH, &hash));
        let answer = client.call(&client.integrity(packet))?;
        client.check_success(&answer)
    }),
    Case::new("a_user_hash_under_sha1_is_accepted", "RFC 8489 §9.2.4", |stage| {
        let mut client = stage.guest()?.challenged()?;
        let hash = digest::user_hash("alice", &client.realm);
        let packet = client.credentials(allocate_request().with(USERHASH, &hash));
        let answer = client.call(&client.integrity(packet))?;
        client.check_success(&answer)
    }),
    Case::new("the_user_behind_a_hash_is_the_user_by_name", "RFC 8656 §5", |stage| {
        let mut client = sha256(stage)?.allocated()?;
        let hash = digest::user_hash("alice", &client.realm);
        let packet = client.credentials(refresh_request(600).with(USERHASH, &hash));
        let answer = client.call(&client.integrity(packet))?;
        client.check_success(&answer)
    }),
    Case::new("the_hash_of_nobody_gets_401", "RFC 8489 §9.2.4", |stage| {
        let mut client = sha256(stage)?;
        let packet = client.credentials(allocate_request().with(USERHASH, &[0x5A; 32]));
        let answer = client.call(&client.integrity(packet))?;
        expect_equal("error", Some(401), answer.error_code())
    }),
    Case::new("a_user_hash_of_wrong_length_gets_an_error", "RFC 8489 §14.4", |stage| {
        let mut client = sha256(stage)?;
        let packet = client.credentials(allocate_request().with(USERHASH, &[0x5A; 16]));
        let answer = client.call(&client.integrity(packet))?;
        expect(matches!(answer.error_code(), Some(400 | 401)), "error 400 or 401", &answer)
    }),
    Case::new("sha256_and_sha1_clients_share_a_server", "RFC 8489 §9.2.4", |stage| {
        let mut first = sha256(stage)?.allocated()?;
        let mut second = stage.guest()?.allocated()?;
        first.succeed(refresh_request(600))?;
        second.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("one_allocation_may_be_used_with_both_algorithms", "RFC 8489 §9.2.4", |stage| {
        let mut client = sha256(stage)?.allocated()?;
        client.scheme = Scheme::Sha1;
        client.succeed(refresh_request(600)).map(drop)
    }),
    Case::new("time_limited_credentials_are_accepted", "REST draft §2.2", |stage| {
        rest(stage, 3_600, REST_SECRETS[0], digest::hmac_sha1)?.allocated().map(drop)
    })
    .on(Server::Rest),
    Case::new(
        "time_limited_credentials_of_the_last_secret_are_accepted",
        "policy: rotation",
        |stage| rest(stage, 3_600, REST_SECRETS[1], digest::hmac_sha1)?.allocated().map(drop),
    )
    .on(Server::Rest),
    Case::new(
        "time_limited_credentials_with_sha256_are_accepted",
        "policy: REST SHA-256",
        |stage| rest(stage, 3_600, REST_SECRETS[0], digest::hmac_sha256)?.allocated().map(drop),
    )
    .on(Server::Rest),
    Case::new(
        "time_limited_credentials_under_sha256_integrity_are_accepted",
        "RFC 8489 §9.2.4",
        |stage| {
            let mut client =
                rest(stage, 3_600, REST_SECRETS[0], digest::hmac_sha256)?.challenged()?;
            client.scheme = Scheme::Sha256;
            client.allocated().map(drop)
        },
    )
    .on(Server::Rest),
    Case::new("expired_time_limited_credentials_get_401", "REST draft §2.2", |stage| {
        let client = rest(stage, -10, REST_SECRETS[0], digest::hmac_sha1)?.challenged()?;
        refused_401(client)
    })
    .on(Server::Rest),
    Case::new("time_limited_credentials_of_another_secret_get_401", "REST draft §2.2", |stage| {
        let client = rest(stage, 3_600, "another-secret", digest::hmac_sha1)?.challenged()?;
        refused_401(client)
    })
    .on(Server::Rest),
    Case::new("time_limited_credentials_without_a_time_get_401", "REST draft §2.2", |stage| {
        let password = digest::base64(&digest::hmac_sha1(REST_SECRETS[0].as_bytes(), b"guest"));
        let client = stage.guest()?.of_user("guest", &password).challenged()?;
        refused_401(client)
    })
    .on(Server::Rest),
    Case::new("a_time_alone_is_a_user_name", "REST draft §2.2", |stage| {
        let name = now(3_600)?.to_string();
        let password =
            digest::base64(&digest::hmac_sha1(REST_SECRETS[0].as_bytes(), name.as_bytes()));
        stage.guest()?.of_user(&name, &password).allocated().map(drop)
    })
    .on(Server::Rest),
    Case::new("a_call_outlasts_its_time_limited_credentials", "policy: REST", |stage| {
        let mut client = rest(stage, 4, REST_SECRETS[0], digest::hmac_sha1)?.allocated()?;
        std::thread::sleep(Duration::from_millis(5_500));
        client.succeed(refresh_request(600))?;
        client.succeed(refresh_request(0))?;
        client.refused(allocate_request(), 401).map(drop)
    })
    .on(Server::Rest),
    Case::new(
        "fresh_credentials_of_one_guest_refresh_the_old_allocation",
        "policy: REST",
        |stage| {
            let client = rest(stage, 3_600, REST_SECRETS[0], digest::hmac_sha1)?.allocated()?;
            let (name, password) = rest_credentials(7_200, REST_SECRETS[0], digest::hmac_sha1)?;
            client.of_user(&name, &password).succeed(refresh_request(600)).map(drop)
        },
    )
    .on(Server::Rest),
];

fn sha256(stage: &Stage<'_>) -> Outcome<Client> {
    let mut client = stage.guest()?.challenged()?;
    client.scheme = Scheme::Sha256;
    Ok(client)
}

/// Allocate with that list and that algorithm, without integrity.
fn chosen(client: &Client, list: &[u8], algorithm: [u8; 4]) -> Packet {
    allocate_request()
        .with(USERNAME, client.user.as_bytes())
        .with(REALM, client.realm.as_bytes())
        .with(NONCE, &client.nonce)
        .with(PASSWORD_ALGORITHMS, list)
        .with(PASSWORD_ALGORITHM, &algorithm)
}

/// A request that breaks the rules on algorithms gets 400, however it is signed.
fn bad(mut client: Client, packet: Packet) -> Outcome {
    let answer = client.call(&client.integrity(packet))?;
    expect(
        !answer.has(MESSAGE_INTEGRITY_SHA256) || answer.error_code() == Some(400),
        "error 400",
        &answer,
    )?;
    expect_equal("error", Some(400), answer.error_code())
}

fn refused_401(mut client: Client) -> Outcome {
    client.refused(allocate_request(), 401).map(drop)
}

/// A guest with credentials that end that many seconds from now.
fn rest(
    stage: &Stage<'_>,
    seconds: i64,
    secret: &str,
    mac: fn(&[u8], &[u8]) -> Vec<u8>,
) -> Outcome<Client> {
    let (name, password) = rest_credentials(seconds, secret, mac)?;
    Ok(stage.guest()?.of_user(&name, &password))
}

/// User name and password of a guest, which end that many seconds from now.
fn rest_credentials(
    seconds: i64,
    secret: &str,
    mac: fn(&[u8], &[u8]) -> Vec<u8>,
) -> Outcome<(String, String)> {
    let name = format!("{}:guest", now(seconds)?);
    let password = digest::base64(&mac(secret.as_bytes(), name.as_bytes()));
    Ok((name, password))
}

fn now(plus: i64) -> Result<i64, Fault> {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(i64::try_from(unix)? + plus)
}

/// The first six of a nonce's 24 security feature bits, the first one highest; none of them without
/// the cookie.
fn features(nonce: &[u8]) -> u8 {
    let digit = nonce.strip_prefix(b"obMatJos2").and_then(|rest| rest.first().copied());
    match digit {
        Some(digit @ b'A'..=b'Z') => digit - b'A',
        Some(digit @ b'a'..=b'z') => digit - b'a' + 26,
        Some(digit @ b'0'..=b'9') => digit - b'0' + 52,
        Some(b'+') => 62,
        Some(b'/') => 63,
        _ => 0,
    }
}

fn ascii(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
