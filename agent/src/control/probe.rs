//! What must hold before a generation is kept, judged from what the processes observe.
//!
//! Local invariants (the kernel has what the plan says) must always hold. Outside probes count
//! when the bundle requires them or when they passed before the change: a box whose upstream was
//! already dark keeps its new configuration.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::plan::Generation;

/// Outside probes that this agent can judge.
const KNOWN: [&str; 2] = ["gateway", "upstream"];

/// What `postern-net` sees of its generation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Local {
    /// All of it holds.
    Holds,
    /// These do not; some may be on their way (duplicate address detection).
    Broken(Vec<String>),
    /// Another generation is in force: the timer ran out, or somebody reverted.
    TakenBack,
}

/// Judges the local invariants of `generation`.
pub(crate) fn local(observed: &Value, generation: &Generation) -> Local {
    let in_force: Option<Generation> =
        observed.get("generation").and_then(|it| serde_json::from_value(it.clone()).ok());
    if in_force.as_ref() != Some(generation) {
        return Local::TakenBack;
    }
    let array = |key: &str| observed.get(key).and_then(Value::as_array).into_iter().flatten();
    let mut faults: Vec<String> =
        array("faults").map(|it| it.as_str().map_or_else(|| it.to_string(), Into::into)).collect();
    faults.extend(array("nics").filter_map(unsettled));
    if faults.is_empty() && observed.get("in-order").and_then(Value::as_bool) == Some(false) {
        faults.push("the kernel does not have what the plan says".to_owned());
    }
    if faults.is_empty() { Local::Holds } else { Local::Broken(faults) }
}

/// An address that duplicate address detection has not let pass yet; without carrier it never
/// will, and that is no fault.
fn unsettled(nic: &Value) -> Option<String> {
    if nic.get("carrier").and_then(Value::as_bool) == Some(false) {
        return None;
    }
    let name = nic.get("name").and_then(Value::as_str).unwrap_or("?");
    let address = nic.get("tentative")?.as_array()?.first()?.as_str()?;
    Some(format!("{name}: {address} is still being checked for duplicates"))
}

/// The names of the outside probes that pass now.
pub(crate) fn passing(net: Option<&Value>, proxy: Option<&Value>) -> BTreeSet<&'static str> {
    KNOWN.into_iter().filter(|probe| outside(probe, net, proxy).is_ok()).collect()
}

/// Whether the outside probe `name` passes.
///
/// # Errors
///
/// Returns what is wrong, in words for people.
pub(crate) fn outside(
    name: &str,
    net: Option<&Value>,
    proxy: Option<&Value>,
) -> Result<(), String> {
    match name {
        "gateway" => all_reachable(net, "gateways", "address", "gateway"),
        "upstream" => all_reachable(proxy, "upstreams", "url", "upstream"),
        other => Err(format!("this agent cannot probe `{other}` yet")),
    }
}

/// Every object of the array `member` must say `reachable: true`.
fn all_reachable(
    report: Option<&Value>,
    member: &str,
    label: &str,
    what: &str,
) -> Result<(), String> {
    let Some(report) = report else {
        return Err(format!("{what}: nobody reports on it"));
    };
    let Some(items) = report.get(member).and_then(Value::as_array) else {
        return Err(format!("{what}: nobody reports on it"));
    };
    for item in items {
        if item.get("reachable").and_then(Value::as_bool) == Some(true) {
            continue;
        }
        let name = [label, "url", "host"]
            .iter()
            .find_map(|key| item.get(*key).and_then(Value::as_str))
            .unwrap_or("?");
        let reason = item.get("reason").and_then(Value::as_str).unwrap_or("no answer yet");
        return Err(format!("{what} {name}: {reason}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Local, local, outside, passing};
    use crate::plan::Generation;

    fn generation() -> Generation {
        Generation { serial: 7, digest: "a".repeat(64) }
    }

    #[test]
    fn a_generation_in_order_holds() {
        let nic = json!({ "name": "lan1", "carrier": true, "tentative": [] });
        let observed = json!({
            "generation": generation(), "in-order": true, "faults": [], "nics": [nic],
        });

        assert_eq!(local(&observed, &generation()), Local::Holds);
    }

    #[test]
    fn every_fault_is_named() {
        let observed = json!({
            "generation": generation(),
            "in-order": false,
            "faults": ["lan1: lacks: route 192.0.2.0/24"],
            "nics": [{ "name": "lan2", "carrier": true, "tentative": ["2001:db8::1/64"] }],
        });

        let Local::Broken(faults) = local(&observed, &generation()) else {
            panic!("two faults");
        };

        let expected = [
            "lan1: lacks: route 192.0.2.0/24",
            "lan2: 2001:db8::1/64 is still being checked for duplicates",
        ];
        assert_eq!(faults, expected);
    }

    #[test]
    fn a_nic_without_carrier_breaks_nothing() {
        let nic = json!({ "name": "lan2", "carrier": false, "tentative": ["2001:db8::1/64"] });
        let observed = json!({ "generation": generation(), "nics": [nic] });

        assert_eq!(local(&observed, &generation()), Local::Holds);
    }

    #[test]
    fn another_generation_in_force_means_it_was_taken_back() {
        assert_eq!(local(&json!({ "generation": null }), &generation()), Local::TakenBack);
    }

    #[test]
    fn every_upstream_must_answer() {
        let proxy = json!({ "upstreams": [
            { "url": "https://a.example.org", "reachable": true },
            { "url": "https://b.example.org", "reachable": false, "reason": "connection refused" },
        ] });

        let error = outside("upstream", None, Some(&proxy)).unwrap_err();

        assert_eq!(error, "upstream https://b.example.org: connection refused");
    }

    #[test]
    fn what_nobody_reports_on_does_not_pass() {
        assert!(passing(None, None).is_empty());
        assert!(outside("upstream", None, None).is_err());
    }

    #[test]
    fn an_unknown_probe_never_passes() {
        let error = outside("moon", None, None).unwrap_err();

        assert_eq!(error, "this agent cannot probe `moon` yet");
    }
}
