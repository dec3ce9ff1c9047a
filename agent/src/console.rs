//! `postern-agent console`: what a person in front of the box wants to know, on its screen, again
//! at each change. There is nothing to type: the box has no shell.

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::client;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(3);

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut shown = String::new();
    let mut told = String::new();
    loop {
        match client::fetch_status() {
            Ok(status) => {
                let text = screen(&status);
                if text != shown {
                    client::print(&text)?;
                    shown = text;
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                if error != told {
                    tracing::info!("no status yet: {error}");
                    told = error;
                }
            }
        }
        sleep(PAUSE);
    }
}

/// Only what changes seldom: name, bundle, state, addresses, keys.
fn screen(status: &Value) -> String {
    let word = |path: &str| status.pointer(path).and_then(Value::as_str).unwrap_or("-").to_owned();
    let mut text = String::from("\n");
    let name = status.pointer("/host/host-name").and_then(Value::as_str).unwrap_or("postern");
    let mut line = |label: &str, value: &str| {
        if writeln!(text, "postern: {label:<10} {value}").is_err() {
            text.clear();
        }
    };
    line("name", name);
    line("state", &word("/state"));
    match status.pointer("/bundle/serial").and_then(Value::as_u64) {
        Some(serial) => {
            line("serial", &format!("{serial} (site {})", word("/bundle/site")));
        }
        None => line("serial", "none: this box waits for a bundle"),
    }
    for (path, label) in [("/last-refusal", "refused"), ("/last-roll-back", "taken back")] {
        if let Some(reason) = status.pointer(&format!("{path}/reason")).and_then(Value::as_str) {
            line(label, reason);
        }
    }
    for nic in status.pointer("/network/nics").and_then(Value::as_array).into_iter().flatten() {
        let name = nic["name"].as_str().or_else(|| nic["kernel-name"].as_str()).unwrap_or("?");
        let addresses: Vec<&str> =
            nic["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        line(name, &format!("{} {}", nic["mac"].as_str().unwrap_or("-"), addresses.join(" ")));
    }
    line("device key", &word("/device/seal"));
    line("identity", &word("/device/identity"));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::screen;

    #[test]
    fn the_screen_names_box_state_serial_addresses_and_keys() {
        let text = screen(&json!({
            "state": "confirmed",
            "bundle": { "serial": 7, "site": "example" },
            "host": { "host-name": "edge" },
            "network": { "nics": [{ "name": "lan1", "mac": "52:54:00:00:00:01",
                                "addresses": ["192.0.2.1/24"] }] },
            "device": { "seal": "age1abc", "identity": "flashed" },
        }));

        for expected in [
            "postern: name       edge",
            "postern: state      confirmed",
            "postern: serial     7 (site example)",
            "postern: lan1       52:54:00:00:00:01 192.0.2.1/24",
            "postern: device key age1abc",
            "postern: identity   flashed",
        ] {
            assert!(text.contains(expected), "{expected}\nnot in\n{text}");
        }
    }

    #[test]
    fn time_passing_changes_nothing_on_the_screen() {
        let at = |uptime: u64| screen(&json!({ "state": "idle", "uptime-seconds": uptime }));

        assert_eq!(at(1), at(2));
    }
}
