//! The status for people: short lines, what is wrong first.

use std::fmt::Write as _;

use serde_json::Value;

/// The whole status.
pub(crate) fn status(status: &Value) -> String {
    let mut out = Lines::default();
    head(&mut out, status);
    network(&mut out, status);
    services(&mut out, status);
    machine(&mut out, status);
    out.0
}

/// What became of a bundle.
pub(crate) fn outcome(outcome: &Value) -> String {
    let serial = number(outcome, "/generation/serial");
    let reason = word(outcome, "/reason");
    match outcome["verdict"].as_str() {
        Some("confirmed") => format!(
            "confirmed: serial {serial} in {} ms ({} writes, network {} us)\n",
            number(outcome, "/total-millis"),
            number(outcome, "/writes"),
            number(outcome, "/net-micros"),
        ),
        Some("unchanged") => format!("unchanged: serial {serial} was in force already\n"),
        Some("refused") => format!("refused ({}): {reason}\n", word(outcome, "/code")),
        Some("rolled-back") => format!("rolled back: serial {serial}: {reason}\n"),
        _ => format!("{outcome}\n"),
    }
}

/// Label and text in two columns.
#[derive(Debug, Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, label: &str, text: &str) {
        let text = text.trim();
        if !text.is_empty() && writeln!(self.0, "{label:<12}{text}").is_err() {
            self.0.clear();
        }
    }
}

fn head(out: &mut Lines, status: &Value) {
    let bundle = &status["bundle"];
    let waiting = word(status, "/change/waiting-for");
    let state = word(status, "/state");
    let state = if waiting == "-" { state } else { format!("{state}, waiting for {waiting}") };
    out.line("state", &state);
    if bundle.is_null() {
        out.line("bundle", "none: this box waits for one");
    } else {
        out.line(
            "bundle",
            &format!(
                "{}/{} serial {} digest {:.16}",
                word(bundle, "/site"),
                word(bundle, "/box"),
                number(bundle, "/serial"),
                word(bundle, "/digest"),
            ),
        );
        for signer in list(bundle, "/signers") {
            out.line("  signed by", &scalar(signer));
        }
    }
    for (key, label) in [("last-refusal", "refused"), ("last-roll-back", "rolled back")] {
        let last = &status[key];
        if last.is_null() {
            continue;
        }
        let what = last["code"].as_str().map_or_else(
            || format!("serial {}", number(last, "/serial")),
            |code| format!("({code})"),
        );
        let ago = number(last, "/seconds-ago");
        out.line(label, &format!("{what}: {} ({ago} s ago)", word(last, "/reason")));
    }
}

fn network(out: &mut Lines, status: &Value) {
    let net = &status["network"];
    if net.is_null() {
        out.line("network", "postern-net does not answer");
    }
    for nic in list(net, "/nics") {
        let name = nic["name"].as_str().or_else(|| nic["kernel-name"].as_str()).unwrap_or("?");
        let carrier = match nic["carrier"].as_bool() {
            Some(true) => "up",
            Some(false) => "no carrier",
            None => "missing",
        };
        let problem = nic["problem"].as_str().map(|it| format!(": {it}")).unwrap_or_default();
        let addresses = joined(nic, "/addresses");
        out.line(name, &format!("{} {addresses} {carrier}{problem}", word(nic, "/mac")));
    }
    for part in ["rules", "ruleset", "sysctls"] {
        if net.pointer(&format!("/{part}/in-order")).and_then(Value::as_bool) == Some(false) {
            let problem = word(net, &format!("/{part}/problem"));
            out.line(part, &format!("not what the plan says: {problem}"));
        }
    }
    let host = &status["host"];
    if host.is_null() {
        out.line("host", "postern-host does not answer");
    } else if let Some(name) = host["host-name"].as_str() {
        out.line("host name", name);
    }
}

fn services(out: &mut Lines, status: &Value) {
    turn(out, &status["relay"], &status["proxy"]);
    proxy(out, &status["proxy"]);
}

/// The relay; its listeners with TLS are the proxy's.
fn turn(out: &mut Lines, turn: &Value, proxy: &Value) {
    if turn.is_null() {
        return out.line("turn", "postern-relay does not answer");
    }
    out.line("turn", &format!("{} {}", word(turn, "/status"), listening(turn)));
    let shared = proxy["turn-shared"].as_bool() == Some(true);
    let tls = list(proxy, "/listeners").filter(|it| match it["kind"].as_str() {
        Some("turn-tls") => true,
        Some("tls") => shared,
        _ => false,
    });
    let tls: Vec<String> = tls.map(|it| word(it, "/address")).collect();
    if !tls.is_empty() {
        out.line("  tls", &tls.join(" "));
    }
    for alarm in list(turn, "/alarms").filter_map(Value::as_str) {
        out.line("  ALARM", alarm);
    }
    if turn["draining"].as_bool() == Some(true) {
        out.line("  draining", "no new allocation is made; what is there goes on");
    }
    out.line(
        "  clients",
        &format!(
            "{} active, relays {} tcp {} udp, {} refused credentials",
            number(turn, "/active-clients"),
            number(turn, "/active-relays-tcp"),
            number(turn, "/active-relays-udp"),
            number(turn, "/refused-credentials"),
        ),
    );
    if turn["ports"].is_object() {
        let (used, free) = (number(turn, "/ports/used"), number(turn, "/ports/free"));
        out.line("  ports", &format!("{used} in use, {free} free"));
    }
    for key in ["refused", "dropped"] {
        let counts = turn[key].as_object().into_iter().flatten();
        let counts = counts.filter(|(_, count)| count.as_u64().is_some_and(|count| count > 0));
        let counts: Vec<String> = counts.map(|(rule, count)| format!("{rule} {count}")).collect();
        if !counts.is_empty() {
            out.line(&format!("  {key}"), &counts.join(", "));
        }
    }
    for (key, what) in [
        ("kernel-receive-drops", "datagrams lost in full receive buffers"),
        ("ring-overflows", "packets lost between shards"),
    ] {
        if number(turn, &format!("/{key}")) > 0 {
            out.line("  lost", &format!("{} {what}", number(turn, &format!("/{key}"))));
        }
    }
    out.line("  realm", &format!("{}, users {}", word(turn, "/realm"), joined(turn, "/users")));
}

/// Addresses of the relay by transport.
fn listening(turn: &Value) -> String {
    let mut text = Vec::new();
    for (transport, path) in [("udp", "/listening-addresses"), ("tcp", "/tcp-listening-addresses")]
    {
        let addresses = joined(turn, path);
        if !addresses.is_empty() {
            text.push(format!("{transport} {addresses}"));
        }
    }
    text.join(", ")
}

fn proxy(out: &mut Lines, proxy: &Value) {
    if proxy.is_null() {
        return out.line("proxy", "postern-proxy does not answer");
    }
    let listeners: Vec<String> = list(proxy, "/listeners").map(|it| word(it, "/address")).collect();
    let serving = if listeners.is_empty() { "inactive" } else { "active" };
    out.line("proxy", &format!("{serving} {}", listeners.join(" ")));
    for guest in list(proxy, "/guests") {
        out.line("  guest", &word(guest, "/url"));
    }
    for upstream in list(proxy, "/upstreams") {
        let name = ["url", "host"].iter().find_map(|key| upstream[*key].as_str()).unwrap_or("?");
        let state = match upstream["reachable"].as_bool() {
            Some(true) => "reachable".to_owned(),
            Some(false) => format!("NOT reachable: {}", word(upstream, "/reason")),
            None => "not asked yet".to_owned(),
        };
        out.line("  upstream", &format!("{name} {state}"));
    }
    for certificate in list(proxy, "/certificates") {
        let days = number(certificate, "/days-left");
        out.line(
            "  cert",
            &format!(
                "{} {} ({days} days left)",
                word(certificate, "/name"),
                joined(certificate, "/sans")
            ),
        );
    }
}

fn machine(out: &mut Lines, status: &Value) {
    let device = &status["device"];
    if device.is_null() {
        out.line("device", "no keys yet");
    } else if let Some(problem) = device["problem"].as_str() {
        out.line("device", problem);
    } else {
        out.line("device", &format!("identity: {}", word(device, "/identity")));
        out.line("  seal key", &word(device, "/seal-fingerprint"));
        out.line("  identity", &word(device, "/identity-fingerprint"));
    }
    let data = &status["data"];
    let kept = data["kept"].as_bool() == Some(true);
    let encrypted = data["encrypted"].as_bool() == Some(true);
    out.line(
        "data",
        &format!(
            "{}, {}, {}",
            word(data, "/file-system"),
            if kept { "kept" } else { "LOST at the next start" },
            if encrypted { "encrypted" } else { "not encrypted" },
        ),
    );
    let mebibytes =
        |path: &str| status.pointer(path).and_then(Value::as_u64).map_or(0, |bytes| bytes >> 20);
    let mut processes = String::new();
    for (role, bytes) in status["memory"]["processes"].as_object().into_iter().flatten() {
        let mebi = bytes.as_u64().unwrap_or(0) >> 20;
        processes.push_str(&format!(" {role} {mebi}"));
    }
    let used = mebibytes("/memory/used");
    let total = mebibytes("/memory/total");
    out.line("memory", &format!("{used} of {total} MiB;{processes}"));
    out.line("uptime", &format!("{} s", number(status, "/uptime-seconds")));
}

fn list<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

fn joined(value: &Value, path: &str) -> String {
    list(value, path).map(scalar).collect::<Vec<_>>().join(" ")
}

/// One word, or the members of an object in one word each.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(_) => flat(value),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// `key value, key value` of an object; empty members are left out.
fn flat(value: &Value) -> String {
    let Some(object) = value.as_object() else {
        return scalar(value);
    };
    let mut parts = Vec::new();
    for (key, value) in object {
        let text = match value {
            Value::Null => continue,
            Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(" "),
            other => scalar(other),
        };
        parts.push(format!("{} {text}", key.replace('-', " ")));
    }
    parts.join(", ")
}

fn word(value: &Value, path: &str) -> String {
    value.pointer(path).map_or_else(|| "-".to_owned(), scalar)
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{outcome, status};

    #[test]
    fn a_box_without_a_bundle_says_so() {
        let text = status(&json!({ "state": "idle", "bundle": null }));

        assert!(text.contains("none: this box waits for one"), "{text}");
        assert!(text.contains("postern-net does not answer"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = status(&json!({
            "state": "probing",
            "change": { "serial": 8, "waiting-for": "upstream https://a.example.org: refused" },
            "bundle": { "site": "s", "box": "b", "serial": 7, "digest": "ab", "signers": ["SHA256:x"] },
            "last-refusal": { "code": "serial", "reason": "serial 6 is below 7", "seconds-ago": 3 },
            "network": { "nics": [{ "name": "lan1", "mac": "52:54:00:00:00:01", "carrier": false,
                                "addresses": ["192.0.2.1/24"] }] },
            "proxy": { "upstreams": [{ "url": "https://a.example.org", "reachable": false,
                                       "reason": "refused" }] },
        }));

        for expected in [
            "state       probing, waiting for upstream https://a.example.org: refused",
            "refused     (serial): serial 6 is below 7 (3 s ago)",
            "lan1        52:54:00:00:00:01 192.0.2.1/24 no carrier",
            "  upstream  https://a.example.org NOT reachable: refused",
        ] {
            assert!(text.contains(expected), "{expected}\nnot in\n{text}");
        }
    }

    #[test]
    fn turn_shows_each_transport_and_what_is_wrong() {
        let text = status(&json!({
            "relay": {
                "status": "active", "realm": "example.org", "users": ["conference"],
                "listening-addresses": ["192.0.2.10:3478", "10.0.1.10:3478"],
                "tcp-listening-addresses": ["192.0.2.10:3478"],
                "active-clients": 3, "active-relays-tcp": 1, "active-relays-udp": 2,
                "ports": { "used": 3, "free": 0 }, "alarms": ["ports-exhausted"],
                "draining": true, "refused": { "exhausted": 4, "quota-reached": 0 },
                "dropped": { "malformed": 0 }, "kernel-receive-drops": 5, "ring-overflows": 0,
            },
            "proxy": { "turn-shared": true,
                       "listeners": [{ "address": "192.0.2.10:443", "kind": "tls" },
                                     { "address": "192.0.2.10:5349", "kind": "turn-tls" },
                                     { "address": "192.0.2.10:80", "kind": "redirect" }] },
        }));

        for expected in [
            "turn        active udp 192.0.2.10:3478 10.0.1.10:3478, tcp 192.0.2.10:3478\n",
            "  tls       192.0.2.10:443 192.0.2.10:5349\n",
            "  ALARM     ports-exhausted\n",
            "  draining  no new allocation",
            "  clients   3 active, relays 1 tcp 2 udp, 0 refused credentials\n",
            "  ports     3 in use, 0 free\n",
            "  refused   exhausted 4\n",
            "  lost      5 datagrams lost in full receive buffers\n",
        ] {
            assert!(text.contains(expected), "{expected}\nnot in\n{text}");
        }
        assert!(!text.contains("  dropped"), "{text}");
    }

    #[test]
    fn a_refusal_shows_code_and_reason() {
        let refused = json!({ "verdict": "refused", "code": "signature", "reason": "no key" });

        assert_eq!(outcome(&refused), "refused (signature): no key\n");
    }
}
