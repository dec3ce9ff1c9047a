//! The nftables ruleset of a box, as the commands of libnftables-json(5).
//!
//! It opens exactly what the site needs and nothing else, in one table of ours, `inet postern`,
//! that is replaced as a whole in one transaction.
//!
//! # Invariants
//!
//! 1. Input and forward drop what no rule names, for IPv4 and IPv6 alike.
//! 2. A packet is taken only at the NIC that carries its destination (Linux would take it at any).
//! 3. No packet from outside has an inside source or one of our own addresses.
//! 4. TURN's datagrams are never tracked: a table of connections is a limit that media must not
//!    meet. Their ICMP errors are therefore taken by rule. TURN's TCP connections are tracked, as
//!    all of TCP is: what is not the first segment of one to an open port belongs to one.
//!
//! NICs are named `@lan1` and `@lan2`; `postern-net` puts the kernel's names in.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bundle::site::{InterfaceName, Site, SiteBox, Turn};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::derive::{has_inside_face, own_addresses, routed, udp_ports};

const TABLE: &str = "postern";
const NICS: [InterfaceName; 2] = [InterfaceName::Lan1, InterfaceName::Lan2];

/// The whole ruleset of a box.
pub(super) fn ruleset(site: &Site, machine: &SiteBox) -> Value {
    let mut commands = vec![
        json!({"add": {"table": table()}}),
        json!({"delete": {"table": table()}}),
        json!({"add": {"table": table()}}),
    ];
    commands.extend(prerouting(site, machine));
    commands.extend(output(site, machine));
    commands.extend(input(site, machine));
    commands.push(chain("forward", "forward", 0, "drop"));
    commands.extend(request_ports(machine));
    json!({"nftables": commands})
}

/// What arrives is judged before the connection table sees it.
fn prerouting(site: &Site, machine: &SiteBox) -> Vec<Value> {
    const CHAIN: &str = "arrival";
    let mut commands = vec![chain(CHAIN, "prerouting", RAW, "accept")];
    let mut inside = routed(&machine.lan1);
    inside.extend(own_addresses(machine).into_iter().map(IpNet::from));
    let own: Vec<IpNet> = own_addresses(machine).into_iter().map(IpNet::from).collect();
    for (nic, forged) in [(InterfaceName::Lan2, &inside), (InterfaceName::Lan1, &own)] {
        for family in FAMILIES {
            if let Some(forged) = addresses(family, forged) {
                let forged = is("==", payload(family.protocol, "saddr"), forged);
                commands.push(rule(CHAIN, vec![arrives(nic), forged, counter(), discard()]));
            }
        }
    }
    for nic in NICS {
        let carried = machine.interface(nic).addresses.iter().map(|own| own.address().into());
        let carried: Vec<IpNet> = carried.chain(neighbour_discovery()).collect();
        for family in FAMILIES {
            let mine = match addresses(family, &carried) {
                Some(mine) => vec![is("!=", payload(family.protocol, "daddr"), mine)],
                None => vec![is("==", meta("nfproto"), family.name.into())],
            };
            let mut expression = vec![arrives(nic)];
            expression.extend(mine);
            expression.extend([counter(), discard()]);
            commands.push(rule(CHAIN, expression));
        }
    }
    for (nic, ports) in untracked(site, machine) {
        let media = is("==", payload("udp", "dport"), ports);
        commands.push(rule(CHAIN, vec![arrives(nic), media, json!({"notrack": null})]));
    }
    commands
}

/// What leaves untracked, so that both ways of TURN stay out of the connection table.
fn output(site: &Site, machine: &SiteBox) -> Vec<Value> {
    const CHAIN: &str = "departure";
    let mut commands = vec![chain(CHAIN, "output", RAW, "accept")];
    for (nic, ports) in untracked(site, machine) {
        let leaves = is("==", meta("oifname"), format!("@{nic}").into());
        let media = is("==", payload("udp", "sport"), ports);
        commands.push(rule(CHAIN, vec![leaves, media, json!({"notrack": null})]));
    }
    commands
}

fn input(site: &Site, machine: &SiteBox) -> Vec<Value> {
    const CHAIN: &str = "input";
    let mut commands = vec![chain(CHAIN, "input", 0, "drop")];
    let mut accept = |mut expression: Vec<Value>| {
        expression.push(json!({"accept": null}));
        commands.push(rule(CHAIN, expression));
    };
    accept(vec![is("==", meta("iifname"), "lo".into())]);
    accept(vec![is("in", json!({"ct": {"key": "state"}}), json!(["established", "related"]))]);
    // An error about an untracked datagram belongs to no connection, so it is taken as such.
    let errors = ["destination-unreachable", "time-exceeded", "parameter-problem"];
    accept(vec![is("==", payload("icmp", "type"), set(errors.map(Value::from).into()))]);
    accept(vec![is("==", payload("icmp", "type"), "echo-request".into()), echo_limit()]);
    if has_v6(machine) {
        let errors =
            ["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"];
        accept(vec![is("==", payload("icmpv6", "type"), set(errors.map(Value::from).into()))]);
        accept(vec![is("==", payload("icmpv6", "type"), "echo-request".into()), echo_limit()]);
        // A neighbour on the link sends with hop limit 255 (RFC 4861 section 7.1).
        let neighbours = ["nd-neighbor-solicit", "nd-neighbor-advert"];
        accept(vec![
            is("==", payload("icmpv6", "type"), set(neighbours.map(Value::from).into())),
            is("==", payload("ip6", "hoplimit"), 255.into()),
        ]);
    }
    for (nic, ports) in untracked(site, machine) {
        accept(vec![arrives(nic), is("==", payload("udp", "dport"), ports)]);
    }
    for nic in NICS {
        let ports = connected(site, machine, nic);
        if !ports.is_empty() {
            accept(new_connection(nic, set(ports)));
        }
    }
    commands.push(rule(CHAIN, vec![counter(), discard()]));
    commands
}

/// The first segment of a connection to these ports.
fn new_connection(nic: InterfaceName, ports: Value) -> Vec<Value> {
    let flags = json!({"&": [payload("tcp", "flags"), FIN | SYN | RST | ACK]});
    vec![
        arrives(nic),
        is("==", payload("tcp", "dport"), ports),
        is("==", flags, SYN.into()),
        is("in", json!({"ct": {"key": "state"}}), "new".into()),
    ]
}

/// A fixed range for the source ports of DNS requests: resolved itself knows none.
fn request_ports(machine: &SiteBox) -> Vec<Value> {
    const CHAIN: &str = "requests";
    let Some(range) = machine.dns.request_ports else { return Vec::new() };
    let mut requests = chain(CHAIN, "postrouting", SRCNAT, "accept");
    requests["add"]["chain"]["type"] = "nat".into();
    let mut commands = vec![requests];
    for transport in ["udp", "tcp"] {
        let leaves = set(vec!["@lan1".into(), "@lan2".into()]);
        commands.push(rule(
            CHAIN,
            vec![
                is("==", meta("oifname"), leaves),
                is("==", payload(transport, "dport"), 53.into()),
                json!({"masquerade": {"port": {"range": [range.first(), range.last()]}}}),
            ],
        ));
    }
    commands
}

/// TCP ports of a NIC that take connections: pages, TURN, the administration and, where there are
/// TCP allocations, their peers (RFC 6062 section 5.3).
fn connected(site: &Site, machine: &SiteBox, nic: InterfaceName) -> Vec<Value> {
    let mut single = BTreeSet::new();
    let mut ports = Vec::new();
    if let Some(proxy) = site.proxy.as_ref().filter(|proxy| proxy.listen.contains(&nic)) {
        single.insert(443);
        if proxy.redirect_http {
            single.insert(80);
        }
    }
    if let Some(turn) = &site.turn {
        if turn.listen.contains(&nic) {
            single.insert(turn.port.get());
            single.extend(turn.tls_ports.iter().map(|port| port.get()));
        }
        if turn.tcp_relay && has_face(turn, machine, nic) {
            ports.push(media_ports(turn));
        }
    }
    if machine.admin.interface == nic {
        single.insert(machine.admin.port.get());
    }
    ports.extend(single.into_iter().map(Value::from));
    ports
}

/// Whether allocations have a port on a NIC.
fn has_face(turn: &Turn, machine: &SiteBox, nic: InterfaceName) -> bool {
    match nic {
        InterfaceName::Lan2 => true,
        InterfaceName::Lan1 => [false, true].iter().any(|v6| has_inside_face(turn, machine, *v6)),
    }
}

fn media_ports(turn: &Turn) -> Value {
    json!({"range": [turn.media_ports.first(), turn.media_ports.last()]})
}

/// UDP ports of TURN on each NIC that has any: its listeners and the ports of allocations.
fn untracked(site: &Site, machine: &SiteBox) -> Vec<(InterfaceName, Value)> {
    let Some(turn) = &site.turn else { return Vec::new() };
    let mut nics = Vec::new();
    for nic in NICS {
        let mut ports = Vec::new();
        if has_face(turn, machine, nic) {
            ports.push(media_ports(turn));
        }
        if turn.listen.contains(&nic) {
            ports.extend(udp_ports(turn).into_iter().map(Value::from));
        }
        if !ports.is_empty() {
            nics.push((nic, set(ports)));
        }
    }
    nics
}

/// Flags of TCP (RFC 9293 section 3.1).
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Priorities of the hooks (netfilter's `raw` and `srcnat`).
const RAW: i32 = -300;
const SRCNAT: i32 = 100;

/// An address family in nft's words.
#[derive(Clone, Copy)]
struct Family {
    name: &'static str,
    protocol: &'static str,
    v6: bool,
}

const FAMILIES: [Family; 2] = [
    Family { name: "ipv4", protocol: "ip", v6: false },
    Family { name: "ipv6", protocol: "ip6", v6: true },
];

fn has_v6(machine: &SiteBox) -> bool {
    [&machine.lan1, &machine.lan2]
        .iter()
        .any(|nic| nic.addresses.iter().any(|own| own.address().is_ipv6()))
}

/// Where neighbours send to: our link-local address and the solicited-node groups.
fn neighbour_discovery() -> [IpNet; 2] {
    let net = |segment, length| {
        let address = std::net::Ipv6Addr::new(segment, 0, 0, 0, 0, 0, 0, 0);
        IpNet::new_assert(IpAddr::V6(address), length)
    };
    [net(0xfe80, 10), net(0xff02, 16)]
}

/// The addresses of one family as a set; nft refuses an empty one and one that overlaps itself.
fn addresses(family: Family, nets: &[IpNet]) -> Option<Value> {
    let nets: Vec<IpNet> =
        nets.iter().filter(|net| net.addr().is_ipv6() == family.v6).copied().collect();
    let nets = IpNet::aggregate(&nets);
    let element = |net: &IpNet| match net.prefix_len() == net.max_prefix_len() {
        true => Value::from(net.addr().to_string()),
        false => json!({"prefix": {"addr": net.network().to_string(), "len": net.prefix_len()}}),
    };
    (!nets.is_empty()).then(|| set(nets.iter().map(element).collect()))
}

fn table() -> Value {
    json!({"family": "inet", "name": TABLE})
}

fn chain(name: &str, hook: &str, priority: i32, policy: &str) -> Value {
    json!({"add": {"chain": {
        "family": "inet", "table": TABLE, "name": name,
        "type": "filter", "hook": hook, "prio": priority, "policy": policy,
    }}})
}

fn rule(chain: &str, expression: Vec<Value>) -> Value {
    json!({"add": {"rule": {
        "family": "inet", "table": TABLE, "chain": chain, "expr": expression,
    }}})
}

fn is(operator: &str, left: Value, right: Value) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right}})
}

fn arrives(nic: InterfaceName) -> Value {
    is("==", meta("iifname"), format!("@{nic}").into())
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn set(elements: Vec<Value>) -> Value {
    json!({"set": elements})
}

fn counter() -> Value {
    json!({"counter": null})
}

fn discard() -> Value {
    json!({"drop": null})
}

fn echo_limit() -> Value {
    json!({"limit": {"rate": 10, "burst": 20, "per": "second"}})
}

#[cfg(test)]
mod tests;
