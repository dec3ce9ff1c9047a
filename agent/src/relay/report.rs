//! The relay's part of `postern-agent status --json`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use turn::{AllocationStatus, Counters, RelayTransport, Rule, Transport};

use crate::plan::{RelaySlice, RelayUser};
use crate::relay::acceptor::Acceptor;
use crate::relay::shard::Snapshot;

/// What this relay can do; there is no key to buy for any of it.
const CAPABILITIES: [&str; 14] = [
    "stun",
    "turn-udp",
    "turn-tcp",
    "tcp-allocations",
    "ipv4",
    "ipv6",
    "both-families-at-once",
    "static-nat",
    "two-faces",
    "relay-to-relay",
    "long-term-credentials",
    "sha-256-credentials",
    "time-limited-credentials",
    "mobility",
];

/// Octets of allocations that are listed, as JSON; of more, only how many there are is told. The
/// report is one message to the agent, of at most [`ipc::MAX_MESSAGE`](crate::ipc::MAX_MESSAGE).
const LISTED_OCTETS: usize = 32 * 1024;

/// How long the alarm stays after the last request that found no port.
const ALARM_STAYS: Duration = Duration::from_secs(300);

/// The status object: the five fields that administrators know, then what explains them.
/// `served` is the slice in force.
pub(super) fn report(served: Option<&RelaySlice>, snapshot: &Snapshot, now: Instant) -> Value {
    let listening: Vec<_> = snapshot.listeners.iter().map(ToString::to_string).collect();
    let users: Vec<&RelayUser> = served.iter().flat_map(|slice| &slice.users).collect();
    let counters = &snapshot.counters;
    let listed = listed(&snapshot.allocations);
    let mut report = json!({
        "status": if listening.is_empty() { "inactive" } else { "active" },
        "realm": served.map_or("", |slice| &slice.realm),
        "users": users.iter().map(|user| &user.name).collect::<Vec<_>>(),
        "listening-addresses": listening,
        "active-clients": snapshot.status.active_clients,
        "active-relays-tcp": snapshot.status.active_relays_tcp,
        "active-relays-udp": snapshot.status.active_relays_udp,
        "refused-credentials": counters.refused_credentials,
        "allocations-total": counters.allocations,
        "alarms": alarms(served, snapshot, now),
        "capabilities": CAPABILITIES,
        "relayed-packets": counters.relayed_packets,
        "relayed-bytes": counters.relayed_octets,
        "relayed-in-process": counters.relayed_in_process,
        "icmp-errors": counters.icmp,
        "moved-allocations": counters.moved,
        "refused": refusals(counters),
        "dropped": {
            "malformed": counters.malformed,
            "no-allocation": counters.no_allocation,
            "no-permission": counters.no_permission,
            "denied": counters.denied,
            "privileged-port": counters.privileged_port,
            "wrong-face": counters.wrong_face,
            "dead-own-address": counters.dead_own_address,
            "not-sent": snapshot.losses.not_sent,
        },
        "kernel-receive-drops": snapshot.losses.listener_overflows + snapshot.losses.relay_overflows,
        "ring-overflows": snapshot.losses.ring_overflows,
        "unsegmented-runs": snapshot.losses.unsegmented,
        "shards": snapshot.shards,
        "allocations-are-all": snapshot.allocations.len() == listed.len(),
        "allocations": listed,
    });
    if let (Some(slice), Some(report)) = (served, report.as_object_mut()) {
        report.extend(settings(slice, snapshot));
    }
    report
}

/// How often each rule refused something; a rule that never did is there with 0.
fn refusals(counters: &Counters) -> BTreeMap<&'static str, u64> {
    let rules = Rule::ALL.map(|rule| (rule.name(), counters.refused.of(rule)));
    let others =
        [("limited-replies", counters.limited_replies), ("bad-ticket", counters.bad_tickets)];
    rules.into_iter().chain(others).collect()
}

/// What the slice says, beside what there is of it.
fn settings(slice: &RelaySlice, snapshot: &Snapshot) -> BTreeMap<String, Value> {
    let used = snapshot.status.active_clients;
    let quotas = &slice.quotas;
    let entries = [
        ("draining", json!(slice.drain.is_some())),
        ("ports", json!({ "used": used, "free": ports(slice).saturating_sub(used) })),
        (
            "quotas",
            json!({
                "total": quotas.total,
                "per-user": quotas.per_user,
                "per-source": quotas.per_source,
                "per-allocation": quotas.per_allocation,
            }),
        ),
    ];
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What somebody should look at; empty when all is well.
fn alarms(served: Option<&RelaySlice>, snapshot: &Snapshot, now: Instant) -> Vec<&'static str> {
    let recent = |at: Instant| now.saturating_duration_since(at) < ALARM_STAYS;
    if !snapshot.exhausted_at.is_some_and(recent) {
        return Vec::new();
    }
    let quota = served.map_or(usize::MAX, |slice| slice.quotas.total);
    let is_quota = snapshot.status.active_clients >= quota;
    vec![if is_quota { "total-quota-reached" } else { "ports-exhausted" }]
}

/// Ports of the media range.
fn ports(slice: &RelaySlice) -> usize {
    let (first, last) = slice.media_ports;
    usize::from(last.saturating_sub(first)) + 1
}

/// The first allocations, as many as fit.
fn listed(allocations: &[AllocationStatus]) -> Vec<Value> {
    let mut room = LISTED_OCTETS;
    let mut listed = Vec::new();
    for allocation in allocations.iter().map(allocation) {
        let Some(left) = room.checked_sub(allocation.to_string().len()) else { break };
        room = left;
        listed.push(allocation);
    }
    listed
}

fn allocation(allocation: &AllocationStatus) -> Value {
    json!({
        "client": allocation.client.client.to_string(),
        "server": allocation.client.server.to_string(),
        "transport": match allocation.client.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        },
        "user": &*allocation.user,
        "relayed": allocation.relayed.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "relayed-transport": match allocation.transport {
            RelayTransport::Udp => "udp",
            RelayTransport::Tcp => "tcp",
        },
        "expires-in": allocation.expires_in.as_secs(),
        "permissions": allocation.permissions,
        "channels": allocation.channels,
        "from-client": {
            "packets": allocation.packets_from_client,
            "bytes": allocation.octets_from_client,
        },
        "to-client": {
            "packets": allocation.packets_to_client,
            "bytes": allocation.octets_to_client,
        },
    })
}

/// Adds what there is of connections: of clients, and with peers (RFC 6062).
pub(super) fn add_streams(report: &mut Value, snapshot: &Snapshot, acceptor: &Acceptor) {
    let streams = &snapshot.streams;
    let tcp: Vec<_> = acceptor.open().iter().map(ToString::to_string).collect();
    report["tcp-listening-addresses"] = json!(tcp);
    report["tcp-connections"] = json!({
        "open": streams.clients,
        "total": streams.clients_total,
        "refused": acceptor.refused(),
        "cut-off": streams.cut_off,
    });
    report["peer-connections"] = json!({ "open": streams.peers, "total": streams.peers_total });
}

#[cfg(test)]
mod tests {
    use turn::FiveTuple;

    use super::*;
    use crate::ipc::MAX_MESSAGE;

    #[test]
    fn the_report_of_a_full_relay_fits_into_one_message() {
        let allocation = AllocationStatus {
            client: FiveTuple {
                transport: Transport::Udp,
                client: "[2001:db8::7]:40000".parse().unwrap(),
                server: "[2001:db8::61]:3478".parse().unwrap(),
            },
            user: "rest:somebody".into(),
            relayed: vec!["192.0.2.61:24000".parse().unwrap()],
            transport: RelayTransport::Udp,
            expires_in: Duration::from_secs(600),
            permissions: 1,
            channels: 1,
            connections: 0,
            packets_from_client: 1,
            octets_from_client: 160,
            packets_to_client: 1,
            octets_to_client: 160,
        };
        let full = Snapshot { allocations: vec![allocation.clone(); 6_000], ..Snapshot::default() };
        let few = Snapshot { allocations: vec![allocation; 20], ..Snapshot::default() };

        let (full, few) = (report(None, &full, Instant::now()), report(None, &few, Instant::now()));

        assert!(full.to_string().len() < MAX_MESSAGE);
        assert_eq!(full["allocations-are-all"], false);
        assert_eq!(few["allocations"].as_array().map(Vec::len), Some(20));
        assert_eq!(few["allocations-are-all"], true);
    }
}
