//! Time-limited credentials, as the web service that knows a secret hands them out.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use postern_turn::stun::{AttributeType, Key, Method, PasswordAlgorithm, userhash};
use postern_turn::{Config, Event, FiveTuple, Quotas, Refusal, Settings};
use sha1::Sha1;
use sha2::Sha256;

use crate::lab::{Lab, REALM, Reply, guest, settings};

/// 2026-11-26 00:00:00 UTC.
const NOW: u64 = 1_795_651_200;

fn with(secrets: &[&str]) -> Settings {
    let rest_secrets = secrets.iter().map(|secret| (*secret).to_owned()).collect();
    Settings { rest_secrets, ..settings() }
}

fn lab(settings: Settings) -> Lab {
    let mut lab = Lab::with(settings);
    lab.server.set_wall_clock(Duration::from_secs(NOW), lab.now);
    lab
}

fn swap(lab: &mut Lab, settings: Settings) {
    lab.server.set_config(Arc::new(Config::new(settings).unwrap()), lab.now);
    lab.drain();
}

fn sha1(secret: &str, name: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(name.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

fn sha256(secret: &str, name: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(name.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

fn name(seconds: u64, userid: &str) -> String {
    format!("{}:{userid}", NOW + seconds)
}

/// Sends a request with that name and password, and a fresh nonce.
fn ask(lab: &mut Lab, client: FiveTuple, method: Method, name: &str, password: &str) -> Reply {
    let nonce = lab.alice(client).nonce;
    let request = lab
        .begin(method)
        .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(AttributeType::USERNAME, name.as_bytes())
        .attribute(AttributeType::REALM, REALM.as_bytes())
        .attribute(AttributeType::NONCE, &nonce)
        .integrity(&Key::long_term(name, REALM, password))
        .finish();
    Reply::new(lab.send(client, &request).unwrap())
}

fn allocate(lab: &mut Lab, port: u16, name: &str, password: &str) -> u16 {
    ask(lab, guest(port), Method::ALLOCATE, name, password).code()
}

fn reasons(lab: &Lab) -> Vec<Refusal> {
    let reason = |event: &Event| match event {
        Event::RefusedCredentials { reason, .. } => Some(*reason),
        _ => None,
    };
    lab.events.iter().filter_map(reason).collect()
}

/// The password of a known program: `echo -n 1795737600:guest | openssl dgst -sha1 -hmac north
/// -binary | base64`, and the same with `-sha256`.
#[test]
fn passwords_are_what_openssl_makes_of_name_and_secret() {
    let name = name(86_400, "guest");

    assert_eq!(sha1("north", &name), "59gIFDRmkhYpxscgQd2Ztza1POk=");
    assert_eq!(sha256("north", &name), "qD2q9l0KVn6Yj+0wnbcjU1OxPU3CPe/0kBanz0G8VS8=");
}

#[test]
fn sha1_and_sha256_passwords_of_every_secret_work() {
    let mut lab = lab(with(&["old", "north"]));
    let mut port = 0;
    for secret in ["old", "north"] {
        for password in [sha1, sha256] {
            for name in [name(60, "guest"), (NOW + 60).to_string(), name(60, "a:b@example.org")] {
                port += 1;

                let code = allocate(&mut lab, port, &name, &password(secret, &name));

                assert_eq!(code, 0, "{secret} {name}");
            }
        }
    }
    assert_eq!(lab.server.counters().refused_credentials, 0);
}

#[test]
fn the_response_can_be_checked_with_the_password() {
    let mut lab = lab(with(&["north"]));
    let name = name(60, "guest");
    let password = sha256("north", &name);
    let nonce = lab.alice(guest(1)).nonce;
    let key = Key::long_term_with(PasswordAlgorithm::Sha256, &name, REALM, &password);
    // Twice: the second time the key is kept already.
    for port in [1, 2] {
        let request = lab
            .begin_allocate()
            .attribute(AttributeType::USERNAME, name.as_bytes())
            .attribute(AttributeType::REALM, REALM.as_bytes())
            .attribute(AttributeType::NONCE, &nonce)
            .attribute(AttributeType::PASSWORD_ALGORITHMS, &[0, 2, 0, 0, 0, 1, 0, 0])
            .attribute(AttributeType::PASSWORD_ALGORITHM, &[0, 2, 0, 0])
            .integrity(&key)
            .finish();

        let reply = Reply::new(lab.send(guest(port), &request).unwrap());

        assert_eq!(reply.code(), 0);
        assert!(reply.message().verify(&key));
    }
}

#[test]
fn it_works_until_its_second_and_the_event_says_for_how_long_it_is_over() {
    let mut lab = lab(with(&["north"]));
    let name = name(60, "guest");
    let password = sha1("north", &name);
    lab.pass(Duration::from_millis(59_999));
    assert_eq!(allocate(&mut lab, 1, &name, &password), 0);
    lab.pass(Duration::from_millis(5_001));

    let code = allocate(&mut lab, 2, &name, &password);

    assert_eq!(code, 401);
    assert_eq!(reasons(&lab), [Refusal::Expired { since: Duration::from_secs(5) }]);
    assert_eq!(lab.server.counters().refused_credentials, 1);
}

#[test]
fn the_wall_clock_may_be_set() {
    let mut lab = lab(with(&["north"]));
    let name = name(60, "guest");
    let password = sha1("north", &name);

    lab.server.set_wall_clock(Duration::from_secs(NOW + 3600), lab.now);
    let ahead = allocate(&mut lab, 1, &name, &password);
    lab.server.set_wall_clock(Duration::from_secs(NOW), lab.now);
    let right = allocate(&mut lab, 2, &name, &password);

    assert_eq!((ahead, right), (401, 0));
}

#[test]
fn without_a_wall_clock_nothing_time_limited_begins() {
    let mut lab = Lab::with(with(&["north"]));
    let name = name(60, "guest");

    let code = allocate(&mut lab, 1, &name, &sha1("north", &name));

    assert_eq!(code, 401);
    assert_eq!(reasons(&lab), [Refusal::NoClock]);
}

#[test]
fn a_password_of_another_secret_or_name_is_wrong_even_when_it_is_over() {
    let mut lab = lab(with(&["north"]));
    let name = name(60, "guest");
    let over = format!("{}:guest", NOW - 1);
    for (name, password) in [
        (&name, sha1("south", &name)),
        (&name, sha1("north", "other")),
        (&name, String::new()),
        (&over, sha1("south", &over)),
    ] {
        assert_eq!(allocate(&mut lab, 1, name, &password), 401);
    }
    assert_eq!(reasons(&lab), [Refusal::WrongPassword; 4]);
}

#[test]
fn a_later_time_cannot_be_written_into_the_name() {
    let mut lab = lab(with(&["north"]));
    let over = format!("{}:guest", NOW - 1);
    let password = sha1("north", &over);

    assert_eq!(allocate(&mut lab, 1, &name(60, "guest"), &password), 401);
    assert_eq!(reasons(&lab), [Refusal::WrongPassword]);
}

#[test]
fn names_that_begin_with_no_time_are_unknown_users() {
    let mut lab = lab(with(&["north"]));
    let huge = format!("{}:guest", "9".repeat(30));
    for name in ["guest", ":guest", "-1:guest", "12a:guest", "+99999999999:guest", &huge] {
        assert_eq!(allocate(&mut lab, 1, name, &sha1("north", name)), 401, "{name}");
    }
    assert_eq!(reasons(&lab), [Refusal::UnknownUser; 6]);
}

#[test]
fn users_work_beside_secrets_by_name_and_by_hash() {
    let mut lab = lab(with(&["north"]));
    assert_eq!(allocate(&mut lab, 1, "alice", "wonder"), 0);
    let nonce = lab.alice(guest(2)).nonce;
    // A client of RFC 8489 must not send the hash of a time-limited name: nobody could find it.
    assert_eq!(&nonce[..13], b"obMatJos2gAAA");
    let request = lab
        .begin_allocate()
        .attribute(AttributeType::USERHASH, &userhash("bob", REALM))
        .attribute(AttributeType::REALM, REALM.as_bytes())
        .attribute(AttributeType::NONCE, &nonce)
        .integrity(&Key::long_term("bob", REALM, "builder"))
        .finish();

    assert_eq!(Reply::new(lab.send(guest(2), &request).unwrap()).code(), 0);
}

#[test]
fn a_fresh_timestamp_is_no_fresh_quota() {
    let quotas = Quotas { per_user: 2, ..Quotas::default() };
    let mut lab = lab(Settings { quotas, ..with(&["north"]) });
    let mut allocate = |port, seconds, userid: &str| {
        let name = name(seconds, userid);
        allocate(&mut lab, port, &name, &sha1("north", &name))
    };

    let codes = [(1, 60), (2, 61), (3, 62)].map(|(port, seconds)| allocate(port, seconds, "guest"));
    let other = allocate(4, 60, "other");
    // Nobody in particular is one user too.
    let nobody = [(5, 60), (6, 61), (7, 62)].map(|(port, seconds)| allocate(port, seconds, ""));

    assert_eq!(codes, [0, 0, 486]);
    assert_eq!(other, 0);
    assert_eq!(nobody, [0, 0, 486]);
}

#[test]
fn a_userid_that_is_a_users_name_is_another_user() {
    let quotas = Quotas { per_user: 1, ..Quotas::default() };
    let mut lab = lab(Settings { quotas, ..with(&["north"]) });
    let name = name(60, "alice");

    let rest = allocate(&mut lab, 1, &name, &sha1("north", &name));
    let user = allocate(&mut lab, 2, "alice", "wonder");
    let refresh = ask(&mut lab, guest(2), Method::REFRESH, &name, &sha1("north", &name));

    assert_eq!((rest, user, refresh.code()), (0, 0, 441));
}

#[test]
fn an_allocation_outlives_the_credential_that_made_it() {
    let mut lab = lab(with(&["north"]));
    let name = name(60, "guest");
    let password = sha1("north", &name);
    allocate(&mut lab, 1, &name, &password);
    for _ in 0..10 {
        lab.pass(Duration::from_secs(590));

        let refresh = ask(&mut lab, guest(1), Method::REFRESH, &name, &password);

        assert_eq!((refresh.code(), refresh.lifetime()), (0, 600));
    }
    assert_eq!(allocate(&mut lab, 2, &name, &password), 401);
}

#[test]
fn a_credential_that_replaces_another_refreshes_its_allocation_and_anothers_does_not() {
    let mut lab = lab(with(&["north"]));
    let [first, second, other] = [name(60, "guest"), name(600, "guest"), name(600, "other")];
    allocate(&mut lab, 1, &first, &sha1("north", &first));

    let refresh = ask(&mut lab, guest(1), Method::REFRESH, &second, &sha1("north", &second));
    let stranger = ask(&mut lab, guest(1), Method::REFRESH, &other, &sha1("north", &other));

    assert_eq!((refresh.code(), stranger.code()), (0, 441));
}

#[test]
fn secrets_swap_live_and_one_that_is_gone_ends_what_it_made() {
    let mut lab = lab(with(&["old"]));
    let name = name(3600, "guest");
    let password = sha1("old", &name);
    allocate(&mut lab, 1, &name, &password);

    swap(&mut lab, with(&["old", "new"]));
    let rotating = ask(&mut lab, guest(1), Method::REFRESH, &name, &password).code();
    swap(&mut lab, with(&["new"]));
    let gone = ask(&mut lab, guest(1), Method::REFRESH, &name, &password).code();
    let fresh = allocate(&mut lab, 2, &name, &sha1("new", &name));

    assert_eq!((rotating, gone, fresh), (0, 401, 0));
}

#[test]
fn ambiguous_users_and_empty_secrets_are_no_configuration() {
    let user = |name: &str, secrets: &[&str]| {
        let users = vec![(name.into(), "password".into())];
        Config::new(Settings { users, ..with(secrets) }).is_ok()
    };
    assert!(user("1795651200:guest", &[]));
    assert!(!user("1795651200:guest", &["north"]));
    assert!(!user("1795651200", &["north"]));
    assert!(!user("rest:guest", &["north"]));
    assert!(user("guest", &["north"]));
    assert!(!user("guest", &[""]));
    assert!(!user("guest", &["s"; 9]));
}
