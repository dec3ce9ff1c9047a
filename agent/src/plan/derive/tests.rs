use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

const OCTAVIO: &str = include_str!("../../../../docs/octavio.site.yaml");
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/plan/octavio.plan.json");

fn files() -> BTreeMap<String, String> {
    ["certs/vcse.pem", "certs/inside-ca.pem"]
        .map(|path| (path.to_owned(), format!("(PEM of {path})\n")))
        .into()
}

fn secrets() -> BTreeMap<String, Vec<u8>> {
    [
        ("admin-password", "test-only admin password\n"),
        ("turn-password", "test-only turn password\n"),
        ("vcse-key", "(PEM of the key)\n"),
    ]
    .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
    .into()
}

fn parse(text: &str) -> Site {
    Site::parse(text, "octavio.site.yaml").unwrap_or_else(|faults| {
        panic!("{}", faults.iter().map(|fault| format!("{fault}\n")).collect::<String>())
    })
}

fn octavio(change: impl Fn(String) -> String) -> Derived {
    let facts = Facts { created_at: 1_790_000_000, ..Facts::default() };
    let site = parse(&change(OCTAVIO.to_owned()));
    derive(&site, "vcse", &files(), &secrets(), &facts).unwrap()
}

/// Asks the real nft in a network namespace of its own; needs root, as the agent's tests do.
fn nft_takes(ruleset: &serde_json::Value) {
    let text = ruleset.to_string().replace("@lan1", "eth0").replace("@lan2", "eth1");
    let mut nft = Command::new("unshare")
        .args(["--net", "/usr/sbin/nft", "-c", "-j", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare (util-linux) is installed");
    nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = nft.wait_with_output().unwrap();

    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft (root and nftables are needed) says: {words}");
}

#[test]
fn the_reference_site_gives_the_golden_plan() {
    let plan = serde_json::to_string_pretty(&octavio(|text| text)).unwrap() + "\n";

    if std::env::var_os("POSTERN_BLESS").is_some() {
        std::fs::write(GOLDEN, &plan).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap();
    assert!(plan == golden, "the plan has changed; look at it, then run with POSTERN_BLESS=1");
}

#[test]
fn nft_takes_the_ruleset_of_the_reference_site() {
    nft_takes(&octavio(|text| text).net.ruleset);
}

#[test]
fn nft_takes_a_ruleset_with_ipv6_and_fixed_request_ports() {
    let plan = octavio(|text| {
        text.replace("[192.168.245.61/24]", "[192.168.245.61/24, 2001:db8::61/64]")
            .replace("gateway: 192.168.245.1", "gateway: [192.168.245.1, 2001:db8::1]")
            .replace("request-ports: ephemeral", "request-ports: 40000-44999")
    });

    nft_takes(&plan.net.ruleset);
    let text = plan.net.ruleset.to_string();
    assert!(text.contains("masquerade") && text.contains("nd-neighbor-solicit"), "{text}");
}

#[test]
fn a_missing_file_or_secret_is_named() {
    let site = parse(OCTAVIO);
    let derive = |files, secrets| derive(&site, "vcse", &files, &secrets, &Facts::default());

    let no_files = derive(BTreeMap::new(), secrets()).unwrap_err();
    let no_secrets = derive(files(), BTreeMap::new()).unwrap_err();

    assert_eq!(no_files, DeriveError::File("certs/vcse.pem".to_owned()));
    assert_eq!(no_secrets, DeriveError::Secret("turn-password".to_owned()));
}

#[test]
fn a_password_loses_the_newline_of_its_file() {
    let relay = octavio(|text| text).relay.unwrap();

    assert_eq!(relay.users[0].password, "test-only turn password");
}

#[test]
fn without_inside_peers_the_relay_has_one_face() {
    let relay =
        octavio(|text| text.replace("allow: [172.16.85.180/32]", "allow: []")).relay.unwrap();

    assert_eq!(relay.inside, []);
    assert_eq!(relay.outside[0].told, "10.88.246.156".parse::<IpAddr>().unwrap());
}
