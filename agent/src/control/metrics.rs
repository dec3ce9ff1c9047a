//! What `postern-agent metrics` shows: the status in the text format of Prometheus.
//!
//! Specification: Prometheus exposition format, version 0.0.4. Names follow Prometheus' own rules:
//! base units, `_total` for what only grows since the process started.
//!
//! # Invariants
//!
//! 1. Only what was observed is shown: a field that a process does not report is left out, and so
//!    is everything of a process that does not answer; `postern_up` says which.
//! 2. Label values come from the site file or from fixed words, never from clients, and a family
//!    has at most [`MOST_SAMPLES`] samples: what reads this must not drown in a flood.
//! 3. No secret, client address or user name.

use std::fmt::Write as _;

use serde_json::Value;

/// Samples of one family.
const MOST_SAMPLES: usize = 64;

/// Writes what `status` holds.
pub(crate) fn render(status: &Value) -> String {
    let mut page = Page::default();
    let version = status["version"].as_str().unwrap_or("?");
    let one = Sample { label: Some(("version", version.to_owned())), value: "1".to_owned() };
    page.family("postern_agent_info", Gauge, "The agent's version.", [one]);
    let parts = ["network", "host", "relay", "proxy"];
    let up = parts.map(|part| Sample::labelled("part", part, flag(!status[part].is_null())));
    page.family("postern_up", Gauge, "Whether a process of the box answers.", up);
    for field in BOX {
        page.field(status, field);
    }
    for field in RELAY {
        page.field(&status["relay"], field);
    }
    for field in PROXY {
        page.field(&status["proxy"], field);
    }
    page.0
}

/// A family made of one part of the status.
struct Field {
    /// JSON pointers of the samples; of each the first that is there counts.
    samples: Samples,
    name: &'static str,
    kind: Kind,
    help: &'static str,
}

/// Where samples come from.
enum Samples {
    /// One number or boolean.
    One(&'static str),
    /// One for each of these, with the label's name.
    Named(&'static str, &'static [(&'static str, &'static str)]),
    /// One for each member of an object, with the label's name: every member is a fixed word.
    Members(&'static str, &'static str),
    /// One for each word of a list, with the label's name: each is 1.
    Words(&'static str, &'static str),
    /// One for each object of a list: label's name, member that is its value, member that counts.
    Items(&'static str, &'static str, &'static str, &'static str),
    /// How long a list is.
    Length(&'static str),
}

use Kind::{Counter, Gauge};
use Samples::{Items, Length, Members, Named, One, Words};

const fn field(samples: Samples, name: &'static str, kind: Kind, help: &'static str) -> Field {
    Field { samples, name, kind, help }
}

const BOX: &[Field] = &[
    field(One("/bundle/serial"), "postern_bundle_serial", Gauge, "Serial of the bundle in force."),
    field(
        One("/uptime-seconds"),
        "postern_box_uptime_seconds",
        Gauge,
        "How long the machine has been running.",
    ),
    field(
        Named("use", &[("total", "/memory/total"), ("used", "/memory/used")]),
        "postern_box_memory_bytes",
        Gauge,
        "The machine's memory.",
    ),
    field(
        Members("/memory/processes", "process"),
        "postern_process_resident_memory_bytes",
        Gauge,
        "Resident memory of the box's processes.",
    ),
];

const RELAY: &[Field] = &[
    field(
        Length("/listening-addresses"),
        "postern_turn_listeners",
        Gauge,
        "Addresses that the relay listens on over UDP; 0 when it serves nothing.",
    ),
    field(
        One("/active-clients"),
        "postern_turn_active_clients",
        Gauge,
        "Clients that have an allocation.",
    ),
    field(
        Named("client_transport", &[("tcp", "/active-relays-tcp"), ("udp", "/active-relays-udp")]),
        "postern_turn_active_relays",
        Gauge,
        "Allocations by the transport that their client uses.",
    ),
    field(
        One("/allocations-total"),
        "postern_turn_allocations_total",
        Counter,
        "Allocations made.",
    ),
    field(
        One("/relayed-packets"),
        "postern_turn_relayed_packets_total",
        Counter,
        "Packets relayed, both ways.",
    ),
    field(
        One("/relayed-bytes"),
        "postern_turn_relayed_bytes_total",
        Counter,
        "Octets of payload relayed, both ways.",
    ),
    field(
        One("/relayed-in-process"),
        "postern_turn_relayed_in_process_packets_total",
        Counter,
        "Packets from one of the relay's allocations to another; none of them met the network.",
    ),
    field(
        One("/unauthenticated"),
        "postern_turn_unauthenticated_total",
        Counter,
        "Requests answered with 401 or 438; each client's first one is among them.",
    ),
    field(
        One("/refused-credentials"),
        "postern_turn_refused_credentials_total",
        Counter,
        "Requests with a valid nonce and a wrong password or an unknown user.",
    ),
    field(
        Members("/refused", "rule"),
        "postern_turn_refused_total",
        Counter,
        "What was refused, requests and packets together, by the rule that refused it.",
    ),
    field(
        Members("/dropped", "reason"),
        "postern_turn_dropped_packets_total",
        Counter,
        "Packets dropped, by reason.",
    ),
    field(
        One("/moved-allocations"),
        "postern_turn_moved_allocations_total",
        Counter,
        "Allocations that followed their client to another address (RFC 8016).",
    ),
    field(
        One("/icmp-errors"),
        "postern_turn_icmp_errors_total",
        Counter,
        "ICMP errors about packets to peers.",
    ),
    field(
        One("/kernel-receive-drops"),
        "postern_turn_kernel_receive_drops_total",
        Counter,
        "Datagrams that the kernel dropped because a receive buffer was full.",
    ),
    field(
        One("/ring-overflows"),
        "postern_turn_ring_overflows_total",
        Counter,
        "Packets dropped between two shards because a ring was full.",
    ),
    field(
        Members("/ports", "state"),
        "postern_turn_media_ports",
        Gauge,
        "Ports of the media range.",
    ),
    field(
        Named(
            "scope",
            &[
                ("total", "/quotas/total"),
                ("user", "/quotas/per-user"),
                ("source", "/quotas/per-source"),
            ],
        ),
        "postern_turn_quota_allocations",
        Gauge,
        "How many allocations there may be: in all, of one user, of one source.",
    ),
    field(One("/shards"), "postern_turn_shards", Gauge, "Threads that relay."),
    field(
        One("/draining"),
        "postern_turn_draining",
        Gauge,
        "Whether the relay makes no new allocation.",
    ),
    field(
        Words("/alarms", "alarm"),
        "postern_turn_alarm",
        Gauge,
        "Alarms that are raised; none is shown when all is well.",
    ),
    field(
        One("/tcp-connections/open"),
        "postern_turn_client_connections",
        Gauge,
        "TCP and TLS connections of TURN clients.",
    ),
    field(
        Length("/tcp-listening-addresses"),
        "postern_turn_tcp_listeners",
        Gauge,
        "Addresses that the relay itself listens on over TCP; TLS is the proxy's.",
    ),
    field(
        One("/tcp-connections/refused"),
        "postern_turn_refused_client_connections_total",
        Counter,
        "TCP and TLS connections of TURN clients above a limit.",
    ),
    field(
        One("/tcp-connections/cut-off"),
        "postern_turn_cut_off_client_connections_total",
        Counter,
        "Connections of TURN clients that were ended from here.",
    ),
    field(
        One("/tcp-connections/total"),
        "postern_turn_client_connections_total",
        Counter,
        "TCP and TLS connections of TURN clients that were taken.",
    ),
    field(
        One("/peer-connections/open"),
        "postern_turn_peer_connections",
        Gauge,
        "TCP connections with peers (RFC 6062).",
    ),
    field(
        One("/peer-connections/total"),
        "postern_turn_peer_connections_total",
        Counter,
        "TCP connections with peers (RFC 6062) that were made.",
    ),
];

const PROXY: &[Field] = &[
    field(
        Length("/listeners"),
        "postern_proxy_listeners",
        Gauge,
        "Addresses that the proxy listens on; 0 when it serves nothing.",
    ),
    field(
        One("/connections/open"),
        "postern_proxy_connections",
        Gauge,
        "TCP connections of guests and of TURN clients over TLS.",
    ),
    field(
        One("/connections/total"),
        "postern_proxy_connections_total",
        Counter,
        "TCP connections that were taken.",
    ),
    field(
        One("/connections-refused"),
        "postern_proxy_refused_connections_total",
        Counter,
        "TCP connections above a limit.",
    ),
    field(
        One("/handshakes-failed"),
        "postern_proxy_failed_handshakes_total",
        Counter,
        "TLS handshakes that broke off.",
    ),
    field(
        One("/handshakes-unknown-name"),
        "postern_proxy_unknown_names_total",
        Counter,
        "TLS handshakes for a name that is not served.",
    ),
    field(
        One("/requests"),
        "postern_proxy_requests_total",
        Counter,
        "Requests, refused ones included.",
    ),
    field(
        One("/requests-refused"),
        "postern_proxy_refused_requests_total",
        Counter,
        "Requests that the proxy refused.",
    ),
    field(One("/websockets/open"), "postern_proxy_websockets", Gauge, "WebSockets."),
    field(
        One("/websockets/total"),
        "postern_proxy_websockets_total",
        Counter,
        "WebSockets that were opened.",
    ),
    field(
        One("/turn-streams/open"),
        "postern_proxy_turn_streams",
        Gauge,
        "Connections handed on to the relay.",
    ),
    field(
        One("/turn-streams/total"),
        "postern_proxy_turn_streams_total",
        Counter,
        "Connections that were handed on to the relay.",
    ),
    field(
        One("/turn-streams-refused"),
        "postern_proxy_refused_turn_streams_total",
        Counter,
        "Connections for TURN that the relay did not take.",
    ),
    field(
        Items("/upstreams", "guest", "guest", "reachable"),
        "postern_proxy_upstream_reachable",
        Gauge,
        "Whether the web bridge of a guest URL answers; absent until it was asked.",
    ),
    field(
        Items("/certificates", "certificate", "name", "seconds-left"),
        "postern_certificate_remaining_seconds",
        Gauge,
        "How long until a certificate ends.",
    ),
];

/// Prometheus' kind of a family.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
}

/// One line: label and value.
#[derive(Debug)]
struct Sample {
    label: Option<(&'static str, String)>,
    value: String,
}

impl Sample {
    fn labelled(name: &'static str, label: &str, value: String) -> Self {
        Self { label: Some((name, label.to_owned())), value }
    }
}

/// The text so far.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    fn field(&mut self, part: &Value, field: &Field) {
        let at = |pointer: &str| part.pointer(pointer);
        let list = |pointer: &str| at(pointer).and_then(Value::as_array);
        let samples: Vec<Sample> = match field.samples {
            One(pointer) => {
                let value = at(pointer).and_then(number);
                value.map(|value| Sample { label: None, value }).into_iter().collect()
            }
            Named(label, all) => all
                .iter()
                .filter_map(|(word, pointer)| {
                    Some(Sample::labelled(label, word, at(pointer).and_then(number)?))
                })
                .collect(),
            Members(pointer, label) => {
                let members = at(pointer).and_then(Value::as_object).into_iter().flatten();
                members
                    .filter_map(|(word, value)| Some(Sample::labelled(label, word, number(value)?)))
                    .collect()
            }
            Words(pointer, label) => {
                let words = list(pointer).into_iter().flatten().filter_map(Value::as_str);
                words.map(|word| Sample::labelled(label, word, flag(true))).collect()
            }
            Items(pointer, label, name, value) => list(pointer)
                .into_iter()
                .flatten()
                .filter_map(|item| {
                    Some(Sample::labelled(label, item[name].as_str()?, number(&item[value])?))
                })
                .collect(),
            Length(pointer) => {
                let length = list(pointer).map(|list| list.len().to_string());
                length.map(|value| Sample { label: None, value }).into_iter().collect()
            }
        };
        self.family(field.name, field.kind, field.help, samples);
    }

    fn family(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = Sample>,
    ) {
        let mut samples = samples.into_iter().take(MOST_SAMPLES).peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = match kind {
            Counter => "counter",
            Gauge => "gauge",
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
        for Sample { label, value } in samples {
            match label {
                None => self.line(format_args!("{name} {value}")),
                Some((label, word)) => {
                    let word = escaped(&word);
                    self.line(format_args!("{name}{{{label}=\"{word}\"}} {value}"));
                }
            }
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a String takes every text");
    }
}

/// A label's value as the format wants it.
fn escaped(word: &str) -> String {
    word.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn number(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(it) => Some(flag(*it)),
        _ => None,
    }
}

fn flag(it: bool) -> String {
    u8::from(it).to_string()
}

#[cfg(test)]
mod tests;
