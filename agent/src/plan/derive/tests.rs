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

fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn port_443_is_shared_where_guests_and_turn_meet_and_turns_alone_elsewhere() {
    let proxy = octavio(|text| text).proxy.unwrap();

    assert!(proxy.turn_shared);
    assert_eq!(proxy.tls, addresses(&["192.168.245.61:443"]));
    assert_eq!(
        proxy.turn_tls,
        addresses(&["172.16.85.168:443", "172.16.85.168:5349", "192.168.245.61:5349"])
    );
}

#[test]
fn turn_over_tls_is_served_without_a_web_proxy_too() {
    let proxy = octavio(|text| {
        let (before, _) = text.split_once("\nproxy:").unwrap();
        before.replace("require: [upstream]", "require: []")
    });
    let (net, proxy) = (proxy.net, proxy.proxy.unwrap());

    assert!(!proxy.turn_shared && proxy.guests.is_empty() && proxy.redirect.is_empty());
    assert_eq!(proxy.tls, []);
    assert_eq!(proxy.turn_tls.len(), 4);
    assert_eq!(proxy.certificates[0].name, "vcse");
    let held: Vec<SocketAddr> = net
        .listeners
        .iter()
        .filter(|listener| listener.owner == Service::Proxy)
        .map(|listener| listener.address)
        .collect();
    assert_eq!(held, proxy.turn_tls);
}

#[test]
fn postern_net_holds_every_tcp_listener_of_the_proxy_and_what_is_privileged() {
    let held = octavio(|text| text).net.listeners;

    let of = |owner, transport| -> Vec<SocketAddr> {
        let of = held.iter().filter(|it| it.owner == owner && it.transport == transport);
        of.map(|listener| listener.address).collect()
    };
    assert_eq!(
        of(Service::Proxy, Transport::Tcp),
        addresses(&[
            "192.168.245.61:443",
            "192.168.245.61:80",
            "172.16.85.168:443",
            "172.16.85.168:5349",
            "192.168.245.61:5349",
        ])
    );
    assert_eq!(
        of(Service::Relay, Transport::Udp),
        addresses(&["172.16.85.168:443", "192.168.245.61:443"])
    );
    assert_eq!(held.len(), 7);
}

#[test]
fn each_family_has_faces_and_a_static_nat_address_of_its_own() {
    let relay = octavio(|text| {
        text.replace("[172.16.85.168/24]", "[172.16.85.168/24, 2001:db8:1::168/64]")
            .replace("[192.168.245.61/24]", "[2001:db8:2::61/64, 192.168.245.61/24]")
            .replace("gateway: 192.168.245.1", "gateway: [192.168.245.1, 2001:db8:2::1]")
            .replace("static-nat: 10.88.246.156", "static-nat: [10.88.246.156, 2001:db8:3::156]")
            .replace("allow: [172.16.85.180/32]", "allow: [2001:db8:1::180/128]")
    })
    .relay
    .unwrap();

    let face = |local: &str, told: &str| Face {
        local: local.parse().unwrap(),
        told: told.parse().unwrap(),
    };
    assert_eq!(
        relay.outside,
        [face("192.168.245.61", "10.88.246.156"), face("2001:db8:2::61", "2001:db8:3::156")]
    );
    assert_eq!(relay.inside, [face("2001:db8:1::168", "2001:db8:1::168")]);
    assert_eq!(relay.inside_addresses.len(), 2);
    assert!(relay.own_addresses.contains(&"2001:db8:3::156".parse().unwrap()));
}

#[test]
fn quotas_secrets_and_draining_reach_the_relay() {
    let change = |text: String| {
        text.replace(
            "  udp-443: true",
            "  udp-443: true\n  tcp-relay: true\n  mobility: true\n  \
             rest-secret: [{ secret: rest-old }, { secret: rest-new }]\n  \
             quotas: { total: 500, per-source: 20, allocation-bandwidth: 20Mbit/s }\n  \
             drain: { alternate-server: [198.51.100.7, \"[2001:db8::7]:3479\"] }",
        )
    };
    let site = parse(&change(OCTAVIO.to_owned()));
    let mut secrets = secrets();
    for name in ["rest-old", "rest-new"] {
        secrets.insert(name.to_owned(), format!("{name} of this test\n").into_bytes());
    }

    let relay = derive(&site, "vcse", &files(), &secrets, &Facts::default()).unwrap().relay;

    let relay = relay.unwrap();
    assert!(relay.tcp_relay && relay.mobility);
    assert_eq!(
        relay.rest_secrets,
        ["rest-old of this test", "rest-new of this test"].map(|text| RestSecret(text.to_owned()))
    );
    assert_eq!(
        relay.quotas,
        RelayQuotas {
            total: 500,
            per_source: 20,
            allocation_bytes_per_second: Some(2_500_000),
            ..RelayQuotas::default()
        }
    );
    let alternate = addresses(&["198.51.100.7:3478", "[2001:db8::7]:3479"]);
    assert_eq!(relay.drain, Some(Drain { alternate }));
}

#[test]
fn only_the_named_boxes_drain() {
    let drains = |boxes: &str| {
        octavio(|text| {
            text.replace("  udp-443: true", &format!("  udp-443: true\n  drain: {boxes}"))
        })
        .relay
        .unwrap()
        .drain
    };

    assert_eq!(drains("true"), Some(Drain { alternate: Vec::new() }));
    assert_eq!(drains("{ boxes: [vcse] }"), Some(Drain { alternate: Vec::new() }));
    assert_eq!(drains("false"), None);
}
