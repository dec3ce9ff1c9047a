//! Certificates, keys and secrets beside the site file that names them: real ones, made here.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_bundle::site::{Site, check};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

const SITE: &str = include_str!("../site/good.yaml");

/// What a test changes; everything else is as it should be.
struct Material {
    certs: BTreeMap<String, String>,
    secrets: BTreeMap<String, Vec<u8>>,
    now: SystemTime,
    ca: Issuer<'static, KeyPair>,
}

fn params(names: &[&str]) -> CertificateParams {
    let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "edge");
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

impl Material {
    fn new() -> Self {
        let mut ca_params = params(&[]);
        ca_params.distinguished_name.push(DnType::CommonName, "CA");
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca_pem = ca_params.self_signed(&ca_key).unwrap().pem();
        let mut material = Self {
            certs: BTreeMap::from([("certs/inside-ca.pem".to_owned(), ca_pem)]),
            secrets: BTreeMap::new(),
            now: UNIX_EPOCH + Duration::from_secs(1_795_305_600),
            ca: Issuer::new(ca_params, ca_key),
        };
        material.issue(&params(&["edge.example.org", "meet.example.org"]));
        material.secret("admin-password", "correct horse battery");
        material.secret("turn-password", "staple of another kind");
        material
    }

    fn issue(&mut self, params: &CertificateParams) {
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.ca).unwrap().pem();
        self.certs.insert("certs/edge.pem".to_owned(), chain);
        self.secret("edge-key", &key.serialize_pem());
    }

    fn secret(&mut self, name: &str, value: &str) {
        self.secrets.insert(name.to_owned(), value.as_bytes().to_vec());
    }

    /// Severity, line:column and message of every fault.
    fn faults(&self) -> Vec<String> {
        self.faults_of(SITE)
    }

    fn faults_of(&self, site: &str) -> Vec<String> {
        let site = Site::parse(site, "good.yaml").unwrap();
        let faults = check(&site, &self.certs, Some(&self.secrets), self.now);
        let show = |fault: &postern_bundle::site::Fault| {
            assert!(!fault.help.is_empty(), "{fault}");
            let place = fault.place;
            format!("{} {}:{} {}", fault.severity, place.line, place.column, fault.message)
        };
        faults.iter().map(show).collect()
    }
}

#[test]
fn what_is_as_it_should_be_has_no_fault() {
    assert_eq!(Material::new().faults(), [""; 0]);
}

#[test]
fn a_guest_name_that_no_certificate_carries_is_refused() {
    let mut material = Material::new();
    material.issue(&params(&["edge.example.org", "other.example.org"]));

    assert_eq!(
        material.faults(),
        ["error 50:12 no certificate carries the guest name `meet.example.org`"]
    );
}

#[test]
fn a_wildcard_carries_the_guest_name() {
    let mut material = Material::new();
    material.issue(&params(&["*.example.org"]));

    assert_eq!(material.faults(), [""; 0]);
}

#[test]
fn the_box_name_must_be_in_a_certificate_too() {
    let mut material = Material::new();
    material.issue(&params(&["meet.example.org"]));

    assert_eq!(
        material.faults(),
        ["error 9:16 no certificate carries the box's name `edge.example.org`"]
    );
}

#[test]
fn a_turn_client_that_names_no_server_sees_a_certificate_with_the_boxs_name() {
    let two = SITE.replace(
        "    key: { secret: edge-key }\n",
        "    key: { secret: edge-key }\n  meet:\n    chain: certs/meet.pem\n    key: { secret: meet-key }\n",
    );
    let mut material = Material::new();
    let key = KeyPair::generate().unwrap();
    let meet = params(&["meet.example.org"]).signed_by(&key, &material.ca).unwrap();
    material.certs.insert("certs/meet.pem".to_owned(), meet.pem());
    material.secret("meet-key", &key.serialize_pem());
    let swapped = two
        .replace("certs/edge.pem", "certs/x.pem")
        .replace("certs/meet.pem", "certs/edge.pem")
        .replace("certs/x.pem", "certs/meet.pem")
        .replace("secret: edge-key", "secret: x-key")
        .replace("secret: meet-key", "secret: edge-key")
        .replace("secret: x-key", "secret: meet-key");

    assert_eq!(material.faults_of(&two), [""; 0]);
    assert_eq!(
        material.faults_of(&swapped),
        ["error 30:3 TURN clients that name no server are shown `edge`, which does not carry \
          `edge.example.org`"]
    );
    let without_tls = swapped.replace("tls-ports: [443, 5349]", "tls-ports: []");
    assert_eq!(material.faults_of(&without_tls), [""; 0]);
}

#[test]
fn a_secret_of_time_limited_credentials_is_judged_as_no_person_types_it() {
    let site = SITE.replace(
        "  udp-443: true",
        "  udp-443: true\n  rest-secret: [{ secret: rest-1 }, { secret: rest-2 }]",
    );
    let mut material = Material::new();
    material.secret("rest-1", "fifteen of them");
    material.secret("rest-2", "staple of another kind");

    assert_eq!(
        material.faults_of(&site),
        [
            "warning 40:27 the secret `rest-1` has only 15 characters",
            "error 40:47 the secret `rest-2` is the same as `turn-password`",
        ]
    );
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let mut material = Material::new();
    material.secret("edge-key", &KeyPair::generate().unwrap().serialize_pem());

    assert_eq!(
        material.faults(),
        ["error 32:20 the key `edge-key` does not belong to this certificate"]
    );
}

#[test]
fn a_key_without_final_newline_is_refused() {
    let mut material = Material::new();
    assert_eq!(material.secrets.get_mut("edge-key").unwrap().pop(), Some(b'\n'));

    assert_eq!(material.faults(), ["error 32:20 the key `edge-key` ends without a newline"]);
}

#[test]
fn an_encrypted_or_broken_key_is_refused() {
    for (pem, message) in [
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n", "is encrypted with a passphrase"),
        ("hello\n", "is not a PEM private key"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "is of a kind"),
    ] {
        let mut material = Material::new();
        material.secret("edge-key", pem);

        let faults = material.faults();

        assert!(faults.len() == 1 && faults[0].contains(message), "{faults:?}");
    }
}

#[test]
fn an_expired_certificate_is_refused_and_a_late_one_warned_of() {
    let mut material = Material::new();

    material.now = UNIX_EPOCH + Duration::from_secs(1_798_900_000);
    assert!(
        material.faults()[0].starts_with("error 31:12 the certificate of edge ended on 2027-01-01")
    );

    material.now = UNIX_EPOCH + Duration::from_secs(1_798_000_000);
    assert!(
        material.faults()[0]
            .starts_with("warning 31:12 the certificate of edge ends on 2027-01-01")
    );
}

#[test]
fn a_certificate_of_the_future_is_refused() {
    let mut material = Material::new();
    let mut params = params(&["edge.example.org", "meet.example.org"]);
    params.not_before = date_time_ymd(2026, 12, 24);
    material.issue(&params);

    assert_eq!(
        material.faults(),
        ["error 31:12 the certificate of edge begins on 2026-12-24 only"]
    );
}

#[test]
fn an_8192_bit_key_is_refused() {
    // The certificate alone is enough: its key was made once, with
    // `openssl req -x509 -newkey rsa:8192`.
    let mut material = Material::new();
    let pem = include_str!("../site/rsa-8192.pem");
    material.certs.insert("certs/edge.pem".to_owned(), pem.to_owned());

    let faults = material.faults();

    assert!(
        faults.contains(&"error 31:12 the certificate's RSA key has 8192 bits".to_owned()),
        "{faults:?}"
    );
}

#[test]
fn weak_and_reused_secrets_are_found() {
    for (value, message) in [
        ("conference", "error 41:51 the secret `turn-password` is equal to a user name"),
        ("Example.org", "error 41:51 the secret `turn-password` is equal to the realm"),
        ("edge", "error 41:51 the secret `turn-password` is equal to a name of the site"),
        ("cisco", "error 41:51 the secret `turn-password` is in every list of passwords"),
        ("x7!kQ", "error 41:51 the secret `turn-password` has only 5 characters"),
        ("x7!kQpp90", "warning 41:51 the secret `turn-password` has only 9 characters"),
        ("abababababababab", "error 41:51 the secret `turn-password` repeats a few characters"),
        (
            "correct horse battery",
            "error 41:51 the secret `turn-password` is the same as `admin-password`",
        ),
        (
            "two lines\nof a password",
            "error 41:51 the secret `turn-password` has more than one line or a control character",
        ),
    ] {
        let mut material = Material::new();
        material.secret("turn-password", value);

        assert_eq!(material.faults(), [message], "{value}");
    }
}

#[test]
fn missing_and_unused_things_are_named() {
    let mut material = Material::new();
    material.secrets.remove("turn-password");
    material.secret("forgotten", "something else entirely");
    material.certs.remove("certs/inside-ca.pem");

    assert_eq!(
        material.faults(),
        [
            "warning 1:7 the secret `forgotten` is given, but nothing refers to it",
            "error 41:51 the secret `turn-password` (a TURN user's password) has no value",
            "error 54:16 the file `certs/inside-ca.pem` is missing",
        ]
    );
}

#[test]
fn a_missing_chain_gives_one_fault() {
    let mut material = Material::new();
    material.certs.remove("certs/edge.pem");

    assert_eq!(material.faults(), ["error 31:12 the file `certs/edge.pem` is missing"]);
}

#[test]
fn chains_that_browsers_would_refuse_are_refused() {
    let mut material = Material::new();
    let leaf = material.certs["certs/edge.pem"].clone();
    let ca = material.certs["certs/inside-ca.pem"].clone();
    let key = String::from_utf8(material.secrets["edge-key"].clone()).unwrap();
    for (pem, message) in [
        ("hello\n".to_owned(), "holds no certificate"),
        (format!("{leaf}{key}"), "holds a private key"),
        (format!("{leaf}{leaf}"), "after edge comes edge, not its issuer"),
        (ca, "is a CA's"),
        (leaf.trim_end().to_owned(), "ends without a newline"),
    ] {
        material.certs.insert("certs/edge.pem".to_owned(), pem);

        let faults = material.faults();

        assert!(faults.iter().any(|fault| fault.contains(message)), "{message}: {faults:?}");
    }
}

#[test]
fn the_same_faults_are_found_without_secrets_except_those_about_them() {
    let mut material = Material::new();
    material.secret("turn-password", "cisco");
    let site = Site::parse(SITE, "good.yaml").unwrap();

    assert_eq!(check(&site, &material.certs, None, material.now), []);
}
