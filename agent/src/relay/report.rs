//! The relay's part of `postern-agent status --json`.

use serde_json::{Value, json};

use crate::relay::shard::Snapshot;

/// What this relay can do; there is no key to buy for any of it.
const CAPABILITIES: [&str; 8] = [
    "stun",
    "turn-udp",
    "ipv4",
    "ipv6",
    "static-nat",
    "two-faces",
    "relay-to-relay",
    "long-term-credentials",
];

/// The status object: the five fields that administrators know, then what explains them.
pub(super) fn report(realm: &str, users: &[String], snapshot: &Snapshot) -> Value {
    let listening: Vec<_> = snapshot.listeners.iter().map(ToString::to_string).collect();
    let counters = &snapshot.counters;
    json!({
        "status": if listening.is_empty() { "inactive" } else { "active" },
        "realm": realm,
        "users": users,
        "listening-addresses": listening,
        "active-clients": snapshot.status.active_clients,
        "active-relays-tcp": snapshot.status.active_relays_tcp,
        "active-relays-udp": snapshot.status.active_relays_udp,
        "refused-credentials": counters.refused_credentials,
        "allocations-total": counters.allocations,
        "capabilities": CAPABILITIES,
        "relayed-packets": counters.relayed_packets,
        "relayed-bytes": counters.relayed_octets,
        "relayed-in-process": counters.relayed_in_process,
        "refused": {
            "exhausted": counters.exhausted,
            "quota-reached": counters.quota_reached,
            "forbidden-peer": counters.forbidden,
            "limited-replies": counters.limited_replies,
        },
        "dropped": {
            "malformed": counters.malformed,
            "no-allocation": counters.no_allocation,
            "no-permission": counters.no_permission,
            "denied": counters.denied,
            "privileged-port": counters.privileged_port,
            "wrong-face": counters.wrong_face,
            "dead-own-address": counters.dead_own_address,
            "not-sent": snapshot.losses.not_sent,
            "listener-buffer-full": snapshot.losses.listener_overflows,
            "relay-buffer-full": snapshot.losses.relay_overflows,
            "shard-queue-full": snapshot.losses.ring_overflows,
        },
    })
}
