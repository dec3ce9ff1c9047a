//! What RFC 8489 added to long-term credentials: SHA-256, password algorithms, USERHASH.

use std::sync::Arc;
use std::time::Duration;

use postern_turn::stun::{
    AttributeType, Integrity, Key, Method, PasswordAlgorithm, Writer, userhash,
};
use postern_turn::{Config, Event, FiveTuple, Refusal, Server, ShardId, Shared};

use crate::lab::{Lab, REALM, Reply, epoch, guest, settings};

/// SHA-256 preferred, then MD5.
const OFFERED: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

fn key(algorithm: PasswordAlgorithm, password: &str) -> Key {
    Key::long_term_with(algorithm, "alice", REALM, password)
}

/// Asks for a challenge and appends what a client of RFC 8489 appends to its requests, but for the
/// algorithms and the integrity.
fn named(lab: &mut Lab, client: FiveTuple, request: Writer) -> Writer {
    let nonce = lab.alice(client).nonce;
    request
        .attribute(AttributeType::USERHASH, &userhash("alice", REALM))
        .attribute(AttributeType::REALM, REALM.as_bytes())
        .attribute(AttributeType::NONCE, &nonce)
}

fn choosing(request: Writer, algorithm: PasswordAlgorithm) -> Writer {
    request
        .attribute(AttributeType::PASSWORD_ALGORITHMS, &OFFERED)
        .attribute(AttributeType::PASSWORD_ALGORITHM, &algorithm.value())
}

fn send(lab: &mut Lab, request: Writer) -> Reply {
    Reply::new(lab.send(guest(1), &request.finish()).unwrap())
}

#[test]
fn a_challenge_offers_sha256_before_md5_and_says_so_in_the_nonce() {
    let mut lab = Lab::new();
    let request = lab.begin_allocate();

    let reply = send(&mut lab, request);

    assert_eq!(reply.code(), 401);
    let nonce = reply.message().attribute(AttributeType::NONCE).unwrap();
    // Bits 0 and 1 of 24: password algorithms, user name anonymity.
    assert_eq!(&nonce[..13], b"obMatJos2wAAA");
    assert_eq!(reply.message().attribute(AttributeType::PASSWORD_ALGORITHMS), Some(&OFFERED[..]));
}

#[test]
fn stale_nonces_and_wrong_passwords_are_told_the_algorithms_too() {
    let mut lab = Lab::new();
    let stale = lab
        .begin_allocate()
        .attribute(AttributeType::USERNAME, b"alice")
        .attribute(AttributeType::REALM, REALM.as_bytes())
        .attribute(AttributeType::NONCE, b"obMatJos2wAAAnever-issued")
        .integrity(&key(PasswordAlgorithm::Md5, "wonder"));
    let wrong = lab.begin_allocate();
    let wrong = choosing(named(&mut lab, guest(1), wrong), PasswordAlgorithm::Sha256)
        .integrity(&key(PasswordAlgorithm::Sha256, "wrong"));

    for (request, code) in [(stale, 438), (wrong, 401)] {
        let reply = send(&mut lab, request);

        assert_eq!(reply.code(), code);
        let offered = reply.message().attribute(AttributeType::PASSWORD_ALGORITHMS);
        assert_eq!(offered, Some(&OFFERED[..]));
        assert_eq!(reply.message().attribute(AttributeType::REALM), Some(REALM.as_bytes()));
        assert!(reply.message().attribute(AttributeType::NONCE).is_some());
        assert!(!reply.message().has_integrity());
    }
}

#[test]
fn a_nonce_of_one_shard_is_valid_at_every_other() {
    let now = epoch();
    let config = Arc::new(Config::new(settings()).unwrap());
    let shared = Shared::new(&config, [7; 32]);
    let mut lab = Lab::new();
    let mut nonces = Vec::new();
    // Shards start one after the other.
    for (shard, after) in [(0, 0), (1, 250), (2, 900)] {
        let now = now + Duration::from_millis(after);
        let config = Arc::clone(&config);
        lab.server = Server::new(Arc::clone(&shared), ShardId(shard), config, now);
        lab.now = now + Duration::from_secs(1);
        nonces.push(lab.alice(guest(1)));

        for (port, login) in (1..).zip(&nonces) {
            let request = lab.begin(Method::REFRESH);

            assert_eq!(lab.ask(guest(port), login, request).code(), 437, "shard {shard}");
        }
    }
    let request = lab.begin(Method::REFRESH);
    lab.server = Server::new(Shared::new(&config, [8; 32]), ShardId(0), config, now);
    assert_eq!(lab.ask(guest(1), &nonces[0], request).code(), 438);
}

#[test]
fn each_password_algorithm_is_answered_with_sha256_integrity() {
    for algorithm in [PasswordAlgorithm::Sha256, PasswordAlgorithm::Md5] {
        for integrity in [Integrity::Sha256, Integrity::Sha1] {
            let mut lab = Lab::new();
            let key = key(algorithm, "wonder");
            let request = lab.begin_allocate();
            let request = choosing(named(&mut lab, guest(1), request), algorithm);

            let reply = send(&mut lab, request.integrity(&key.clone().signing(integrity)));

            assert_eq!(reply.code(), 0, "{algorithm:?} {integrity:?}");
            assert_eq!(reply.message().integrity(), Some(Integrity::Sha256));
            assert!(reply.message().verify(&key));
            for absent in [AttributeType::REALM, AttributeType::NONCE, AttributeType::USERHASH] {
                assert_eq!(reply.message().attribute(absent), None);
            }
        }
    }
}

#[test]
fn who_negotiates_nothing_means_md5_and_is_answered_with_sha1_integrity() {
    for integrity in [Integrity::Sha256, Integrity::Sha1] {
        let mut lab = Lab::new();
        let key = key(PasswordAlgorithm::Md5, "wonder");
        let request = lab.begin_allocate();
        let request = named(&mut lab, guest(1), request);

        let reply = send(&mut lab, request.integrity(&key.clone().signing(integrity)));

        assert_eq!(reply.code(), 0);
        assert_eq!(reply.message().integrity(), Some(Integrity::Sha1));
        assert!(reply.message().verify(&key));
    }
}

#[test]
fn errors_of_authenticated_requests_carry_the_same_integrity() {
    let mut lab = Lab::new();
    let key = key(PasswordAlgorithm::Sha256, "wonder");
    let request = lab.begin(Method::REFRESH);
    let request = choosing(named(&mut lab, guest(1), request), PasswordAlgorithm::Sha256);

    let reply = send(&mut lab, request.integrity(&key));

    assert_eq!(reply.code(), 437);
    assert_eq!(reply.message().integrity(), Some(Integrity::Sha256));
    assert!(reply.message().verify(&key));
}

#[test]
fn a_weakened_offer_gives_400_and_is_no_failure() {
    type Value = Option<&'static [u8]>;
    const SHA256: [u8; 4] = [0, 2, 0, 0];
    const MD5: [u8; 4] = [0, 1, 0, 0];
    let mut lab = Lab::new();
    let cases: [(&str, Value, Value); 7] = [
        ("no list", None, Some(&MD5)),
        ("no choice", Some(&OFFERED), None),
        ("SHA-256 taken off the list", Some(&MD5), Some(&MD5)),
        ("another order", Some(&[0, 1, 0, 0, 0, 2, 0, 0]), Some(&MD5)),
        ("a choice that is not on the list", Some(&OFFERED), Some(&[0, 3, 0, 0])),
        ("a choice with parameters", Some(&OFFERED), Some(&[0, 2, 0, 4, 1, 2, 3, 4])),
        ("empty lists", Some(&[]), Some(&SHA256)),
    ];
    for (case, offered, chosen) in cases {
        let mut request = lab.begin_allocate();
        request = named(&mut lab, guest(1), request);
        for (kind, value) in [
            (AttributeType::PASSWORD_ALGORITHMS, offered),
            (AttributeType::PASSWORD_ALGORITHM, chosen),
        ] {
            if let Some(value) = value {
                request = request.attribute(kind, value);
            }
        }

        let reply = send(&mut lab, request.integrity(&key(PasswordAlgorithm::Md5, "wonder")));

        assert_eq!(reply.code(), 400, "{case}");
        for absent in [AttributeType::REALM, AttributeType::NONCE] {
            assert_eq!(reply.message().attribute(absent), None, "{case}");
        }
    }
    assert_eq!(lab.server.counters().refused_credentials, 0);
    assert_eq!(lab.server.status().active_clients, 0);
}

#[test]
fn a_nonce_whose_features_were_taken_away_is_foreign() {
    let mut lab = Lab::new();
    let mut login = lab.alice(guest(1));
    login.nonce[9..13].copy_from_slice(b"AAAA");

    let request = lab.begin_allocate();

    assert_eq!(lab.ask(guest(1), &login, request).code(), 438);
}

#[test]
fn the_key_of_the_other_algorithm_is_a_wrong_password() {
    let mut lab = Lab::new();
    let request = lab.begin_allocate();
    let request = choosing(named(&mut lab, guest(1), request), PasswordAlgorithm::Sha256);

    let reply = send(&mut lab, request.integrity(&key(PasswordAlgorithm::Md5, "wonder")));

    assert_eq!(reply.code(), 401);
    assert!(matches!(
        &lab.events[..],
        [Event::RefusedCredentials { user, reason: Refusal::WrongPassword, .. }] if user == "alice"
    ));
}

#[test]
fn an_unknown_userhash_looks_like_a_wrong_password() {
    let mut lab = Lab::new();
    let nonce = lab.alice(guest(1)).nonce;
    for hash in [&[0xAB; 32][..], &[0xAB; 31], &[]] {
        let request = lab
            .begin_allocate()
            .attribute(AttributeType::USERHASH, hash)
            .attribute(AttributeType::REALM, REALM.as_bytes())
            .attribute(AttributeType::NONCE, &nonce)
            .integrity(&key(PasswordAlgorithm::Md5, "wonder"));

        assert_eq!(send(&mut lab, request).code(), 401);
    }
    assert!(matches!(
        &lab.events[0],
        Event::RefusedCredentials { user, reason: Refusal::UnknownUser, .. }
            if user == "userhash:abababababababab"
    ));
}

#[test]
fn a_name_beside_its_hash_gives_400() {
    let mut lab = Lab::new();
    let request = lab.begin_allocate().attribute(AttributeType::USERNAME, b"alice");
    let request = named(&mut lab, guest(1), request);

    let reply = send(&mut lab, request.integrity(&key(PasswordAlgorithm::Md5, "wonder")));

    assert_eq!(reply.code(), 400);
}

#[test]
fn a_truncated_integrity_is_refused() {
    let mut lab = Lab::new();
    let key = key(PasswordAlgorithm::Sha256, "wonder");
    for (octets, code) in [(32, 437), (28, 400), (16, 400), (12, 400), (18, 400), (0, 400)] {
        let request = lab.begin(Method::REFRESH);
        let request = choosing(named(&mut lab, guest(1), request), PasswordAlgorithm::Sha256);

        let reply = send(&mut lab, request.truncated_integrity(&key, octets));

        assert_eq!(reply.code(), code, "{octets}");
    }
}

#[test]
fn lifetime_zero_appended_after_sha256_integrity_frees_nothing() {
    let mut lab = Lab::new();
    lab.allocate(guest(1));
    let sha256 = key(PasswordAlgorithm::Sha256, "wonder");
    let sha1 = sha256.clone().signing(Integrity::Sha1);
    let zero = |writer: Writer| writer.attribute(AttributeType::LIFETIME, &[0; 4]);
    for sign in [
        |request: Writer, _: &Key, sha256: &Key| request.integrity(sha256),
        |request: Writer, sha1: &Key, sha256: &Key| {
            // Between the two it is covered by the second one, and does not count either.
            request.integrity(sha1).attribute(AttributeType::LIFETIME, &[0; 4]).integrity(sha256)
        },
    ] {
        let request = lab.begin(Method::REFRESH);
        let request = choosing(named(&mut lab, guest(1), request), PasswordAlgorithm::Sha256);

        let reply = send(&mut lab, zero(sign(request, &sha1, &sha256)));

        assert_eq!((reply.code(), reply.lifetime()), (0, 600));
        assert_eq!(lab.server.status().active_clients, 1);
    }
}
