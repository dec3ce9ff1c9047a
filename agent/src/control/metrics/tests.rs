use std::collections::BTreeSet;

use serde_json::json;

use super::*;

/// A status as the box gives it, with everything that is counted.
fn full() -> Value {
    json!({
        "version": "0.1.0",
        "bundle": { "serial": 7 },
        "network": { "nics": [] },
        "host": null,
        "relay": {
            "status": "active",
            "realm": "example.org",
            "users": ["conference"],
            "listening-addresses": ["192.0.2.10:3478", "10.0.1.10:3478"],
            "active-clients": 3, "active-relays-tcp": 1, "active-relays-udp": 2,
            "allocations-total": 9, "relayed-packets": 1000, "relayed-bytes": 160_000,
            "relayed-in-process": 12, "unauthenticated": 9, "refused-credentials": 1,
            "refused": { "exhausted": 1, "quota-reached": 2, "forbidden-peer": 3 },
            "dropped": { "malformed": 4, "no-permission": 5 },
            "icmp-errors": 2, "moved-allocations": 1, "kernel-receive-drops": 6, "ring-overflows": 7,
            "ports": { "used": 3, "free": 5997 },
            "quotas": { "total": 16_384, "per-user": 16_384, "per-source": 2048, "per-allocation": 256 },
            "shards": 2, "draining": false, "alarms": ["ports-exhausted"],
            "tcp-listening-addresses": ["192.0.2.10:3478"],
            "tcp-connections": { "open": 1, "total": 2, "refused": 0, "cut-off": 0 },
            "peer-connections": { "open": 0, "total": 1 },
            "allocations": [{ "client": "198.51.100.7:40000", "user": "conference" }],
        },
        "proxy": {
            "listeners": [{ "address": "192.0.2.10:443", "kind": "tls" }],
            "connections": { "open": 1, "total": 5 }, "connections-refused": 0,
            "handshakes-failed": 0, "handshakes-unknown-name": 0, "requests": 4,
            "requests-refused": 0, "websockets": { "open": 1, "total": 1 },
            "turn-streams": { "open": 1, "total": 2 }, "turn-streams-refused": 0,
            "upstreams": [{ "guest": "meet.example.org", "host": "bridge.example.internal", "reachable": true },
                          { "guest": "new.example.org", "host": "bridge.example.internal", "reachable": null }],
            "certificates": [{ "name": "edge", "seconds-left": 864_000 }],
        },
        "uptime-seconds": 60,
        "memory": { "total": 1_000_000, "used": 500_000, "processes": { "relay": 20_000 } },
    })
}

/// Asserts what the format asks for and returns the samples.
fn judged(text: &str) -> BTreeSet<String> {
    let (mut samples, mut families) = (BTreeSet::new(), BTreeSet::new());
    let mut family = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && families.insert(name.to_owned()), "{line}");
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert_eq!(name, family, "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            assert!(samples.insert(line.to_owned()), "twice: {line}");
        }
    }
    samples
}

#[test]
fn everything_that_is_counted_is_shown_in_the_format() {
    let text = render(&full());
    let samples = judged(&text);

    for expected in [
        "postern_agent_info{version=\"0.1.0\"} 1",
        "postern_up{part=\"relay\"} 1",
        "postern_up{part=\"host\"} 0",
        "postern_turn_listeners 2",
        "postern_turn_active_relays{client_transport=\"tcp\"} 1",
        "postern_turn_relayed_bytes_total 160000",
        "postern_turn_refused_total{rule=\"quota-reached\"} 2",
        "postern_turn_dropped_packets_total{reason=\"no-permission\"} 5",
        "postern_turn_kernel_receive_drops_total 6",
        "postern_turn_ring_overflows_total 7",
        "postern_turn_media_ports{state=\"free\"} 5997",
        "postern_turn_quota_allocations{scope=\"source\"} 2048",
        "postern_turn_draining 0",
        "postern_turn_alarm{alarm=\"ports-exhausted\"} 1",
        "postern_proxy_turn_streams 1",
        "postern_proxy_upstream_reachable{guest=\"meet.example.org\"} 1",
        "postern_certificate_remaining_seconds{certificate=\"edge\"} 864000",
    ] {
        assert!(samples.contains(expected), "{expected}\nnot in\n{text}");
    }
    for field in BOX.iter().chain(RELAY).chain(PROXY) {
        assert!(text.contains(&format!("# TYPE {} ", field.name)), "{} has no sample", field.name);
    }
}

#[test]
fn what_is_not_reported_is_not_shown() {
    let text = render(&json!({ "version": "0.1.0", "relay": { "active-clients": 0 } }));

    let expected = [
        "postern_agent_info{version=\"0.1.0\"} 1",
        "postern_turn_active_clients 0",
        "postern_up{part=\"host\"} 0",
        "postern_up{part=\"network\"} 0",
        "postern_up{part=\"proxy\"} 0",
        "postern_up{part=\"relay\"} 1",
    ];
    assert_eq!(judged(&text), expected.map(str::to_owned).into());
}

#[test]
fn no_client_and_no_user_is_shown() {
    let text = render(&full());

    assert!(!text.contains("198.51.100.7") && !text.contains("conference"), "{text}");
}

#[test]
fn a_family_stays_small_and_a_label_stays_in_its_quotes() {
    let many: serde_json::Map<String, Value> =
        (0..1000).map(|number| (format!("reason-{number}"), number.into())).collect();
    let odd = json!({ "a\"b\\c\nd": 1 });

    let text = render(&json!({ "relay": { "dropped": many, "refused": odd } }));

    let samples = judged(&text);
    let dropped = samples.iter().filter(|line| line.contains("dropped_packets_total{")).count();
    assert_eq!(dropped, MOST_SAMPLES);
    assert!(samples.contains("postern_turn_refused_total{rule=\"a\\\"b\\\\c\\nd\"} 1"), "{text}");
}
