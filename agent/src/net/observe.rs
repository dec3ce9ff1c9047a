//! What is true now, for status: read from the kernel at the moment of asking, never from what
//! was intended.
//!
//! ```json
//! { "generation": {"serial": 7, "digest": "…"}, "rescue": false,
//!   "last-known-good": {"generation": {…}, "floor": 7},
//!   "pending": {"generation": {…}, "previous": {…}, "seconds-left": 93},
//!   "in-order": true, "faults": [],
//!   "nics": [{"name": "lan1", "kernel-name": "ens3", "mac": "52:54:…",
//!              "mac-source": "permanent", "current-mac": "52:54:…", "pci": "0000:00:03.0",
//!              "up": true, "carrier": true, "mtu": 1500, "addresses": ["192.0.2.1/24"],
//!              "tentative": [], "duplicate": [],
//!              "routes": ["0.0.0.0/0 via 192.0.2.254 table main metric 100"],
//!              "in-order": true, "problem": null}],
//!   "gateways": [{"address": "192.0.2.254", "interface": "lan1", "reachable": true,
//!                 "reason": null}],
//!   "rules": {"in-order": true, "found": ["from 192.0.2.1/32 table 101 priority 1000"]},
//!   "ruleset": {"in-order": true, "problem": null},
//!   "sysctls": {"in-order": true, "different": [], "unsettable": []},
//!   "listeners": [{"owner": "proxy", "address": "192.0.2.1:443", "transport": "tcp"}],
//!   "last-apply": {"serial": 7, "writes": 24, "micros": 21000}, "drift-repairs": 0 }
//! ```
//!
//! `generation` and `pending` are null when there is none; under the rescue plan NICs have no
//! `name`. `unsettable` settings are those that this kernel lacks or that belong to the machine
//! around this namespace. `faults` has a sentence for each local invariant that is broken; a NIC without carrier
//! breaks none. `reachable` is what the neighbour table says, null while it is being asked: asking
//! for status makes the kernel ask a gateway that it knows nothing of.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use super::desired::{MacSource, find, mac_source};
use super::engine::{Engine, desired, resolved_ruleset, resolved_sysctls};
use super::kernel::{Change, Link, MAIN, Route, Snapshot};
use super::sysctl;
use crate::plan::{LinkPlan, NetPlan};

/// How long a gateway that is not known yet is waited for.
const GATEWAY_WAIT: Duration = Duration::from_millis(100);

/// Reads the state.
///
/// # Errors
///
/// Says what could not be read.
pub(crate) async fn observe(engine: &Engine) -> anyhow::Result<Value> {
    let now = engine.kernel.snapshot().await?;
    let plan = engine.in_force.as_ref().map(|(_, plan)| plan);
    let wanted = desired(plan, &now);
    let changes = engine.network_changes(plan, &now);
    let nics = nics(plan, &now, &changes);
    let mut faults: Vec<String> = nics.iter().filter_map(fault_of_nic).collect();

    let rules: Vec<String> = now.rules.iter().map(ToString::to_string).collect();
    let wrong_rule =
        changes.iter().find(|c| matches!(c, Change::AddRule(_) | Change::DeleteRule(_)));
    faults.extend(wrong_rule.map(|change| format!("rules lack: {change}")));

    let ruleset = resolved_ruleset(plan, &wanted).and_then(|rules| engine.firewall.holds(&rules));
    let ruleset_in_order = matches!(ruleset, Ok(true));
    if !ruleset_in_order {
        faults.push("the firewall's rules are not the plan's".to_owned());
    }

    let settings = sysctl::differences(&resolved_sysctls(plan, &wanted))?;
    let (settings, unsettable): (Vec<_>, Vec<_>) =
        settings.into_iter().partition(|setting| setting.settable);
    let unsettable: Vec<String> = unsettable.into_iter().map(|setting| setting.path).collect();
    for setting in &settings {
        let found = setting.found.as_deref().unwrap_or_default();
        faults.push(format!("{} is {found}, not {}", setting.path, setting.wanted));
    }
    let different: Vec<Value> = settings
        .iter()
        .map(|d| json!({"path": d.path, "wanted": d.wanted, "found": d.found}))
        .collect();

    for listener in plan.map_or(&[][..], |plan| &plan.listeners) {
        if !engine.sockets.plans().any(|held| held == listener) {
            let (transport, address) = (listener.transport, listener.address);
            faults.push(format!("{transport:?} {address} is not open"));
        }
    }
    let settled = nics.iter().all(|link| {
        link["carrier"] != true || link["tentative"].as_array().is_none_or(Vec::is_empty)
    });
    let pending = engine.pending.as_ref().map(|pending| {
        json!({
            "generation": pending.generation,
            "previous": pending.previous,
            "seconds-left": engine.time_left().map(|left| left.as_secs()),
        })
    });
    let last_apply = engine.last_apply.as_ref().map(|last| {
        let serial = last.generation.as_ref().map(|generation| generation.serial);
        json!({"serial": serial, "writes": last.writes, "micros": last.micros})
    });
    Ok(json!({
        "generation": engine.generation(),
        "rescue": plan.is_none(),
        "last-known-good": engine.store.last_known_good()?,
        "pending": pending,
        "in-order": faults.is_empty() && changes.is_empty() && settled,
        "faults": faults,
        "gateways": gateways(engine, plan, &now).await?,
        "nics": nics,
        "rules": {"in-order": wrong_rule.is_none(), "found": rules},
        "ruleset": {
            "in-order": ruleset_in_order,
            "problem": ruleset.err().map(|error| error.to_string()),
        },
        "sysctls": {"in-order": different.is_empty(), "different": different, "unsettable": unsettable},
        "listeners": engine.sockets.plans().collect::<Vec<_>>(),
        "last-apply": last_apply,
        "drift-repairs": engine.repairs,
    }))
}

/// What is wrong with a NIC of the plan, unless it has no carrier: then that is not known.
fn fault_of_nic(link: &Value) -> Option<String> {
    let name = link["name"].as_str()?;
    if link["carrier"] == false {
        return None;
    }
    if let Some(problem) = link["problem"].as_str() {
        // A NIC that is not there is named in its own sentence already.
        let named = link["kernel-name"].is_null();
        return Some(if named { problem.to_owned() } else { format!("{name}: {problem}") });
    }
    let address = link["duplicate"].as_array()?.first()?.as_str()?;
    Some(format!("{name}: another host has {address}"))
}

async fn gateways(
    engine: &Engine,
    plan: Option<&NetPlan>,
    now: &Snapshot,
) -> anyhow::Result<Vec<Value>> {
    let mut wanted = BTreeSet::new();
    for link in plan.map_or(&[][..], |plan| &plan.links) {
        if let Ok(found) = find(&link.name, &link.select, &now.links) {
            let via = link.routes.iter().filter_map(|route| route.via);
            wanted.extend(via.map(|via| (link.name.as_str(), found.index, via)));
        }
    }
    let mut known = engine.kernel.neighbours().await?;
    let unknown = |(_, index, via): &&(&str, u32, IpAddr)| {
        !matches!(known.get(&(*index, *via)), Some(Some(true)))
    };
    let asked: Vec<IpAddr> = wanted.iter().filter(unknown).map(|(_, _, via)| *via).collect();
    if !asked.is_empty() {
        asked.into_iter().for_each(ask);
        tokio::time::sleep(GATEWAY_WAIT).await;
        known = engine.kernel.neighbours().await?;
    }
    Ok(wanted
        .into_iter()
        .map(|(interface, index, address)| {
            let reachable = known.get(&(index, address)).copied().flatten();
            let reason = (reachable == Some(false)).then_some("it does not answer ARP or ND");
            json!({
                "address": address,
                "interface": interface,
                "reachable": reachable,
                "reason": reason,
            })
        })
        .collect())
}

/// Makes the kernel look for a neighbour: an empty datagram to its discard port (RFC 863).
fn ask(gateway: IpAddr) {
    let any: IpAddr = match gateway {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let sent = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(&[], (gateway, 9))
    });
    if let Err(error) = sent {
        tracing::debug!(%gateway, %error, "Cannot ask for a gateway");
    }
}

fn nics(plan: Option<&NetPlan>, now: &Snapshot, changes: &[Change]) -> Vec<Value> {
    let Some(plan) = plan else {
        return now.links.iter().map(|link| nic(None, link, now, changes)).collect();
    };
    plan.links
        .iter()
        .map(|wanted| match find(&wanted.name, &wanted.select, &now.links) {
            Ok(link) => nic(Some(wanted), link, now, changes),
            Err(missing) => {
                json!({"name": wanted.name, "in-order": false, "problem": missing.to_string()})
            }
        })
        .collect()
}

fn nic(plan: Option<&LinkPlan>, link: &Link, now: &Snapshot, changes: &[Change]) -> Value {
    let addresses = || now.addresses.iter().filter(|(address, _)| address.index == link.index);
    let those = |pick: fn(&super::kernel::AddressState) -> bool| -> Vec<String> {
        addresses().filter(|(_, s)| pick(s)).map(|(a, _)| a.net.to_string()).collect()
    };
    let routes: Vec<String> =
        now.routes.iter().filter(|route| route.index == link.index).map(describe).collect();
    let problem = changes
        .iter()
        .find(|change| index_of(change) == Some(link.index))
        .map(|change| format!("lacks: {change}"));
    let duplicate = those(|state| state.duplicate);
    json!({
        "name": plan.map(|plan| &plan.name),
        "kernel-name": link.name,
        "mac": link.permanent_mac.as_ref().unwrap_or(&link.mac),
        "mac-source": match mac_source(link) {
            MacSource::Permanent => "permanent",
            MacSource::Current => "current",
        },
        "current-mac": link.mac,
        "pci": link.pci,
        "up": link.up,
        "carrier": link.carrier,
        "mtu": link.mtu,
        "addresses": those(|_| true),
        "tentative": those(|state| state.tentative),
        "duplicate": duplicate,
        "routes": routes,
        "in-order": problem.is_none() && duplicate.is_empty(),
        "problem": problem,
    })
}

fn describe(route: &Route) -> String {
    let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
    let table = if route.table == MAIN { "main".to_owned() } else { route.table.to_string() };
    format!("{}{via} table {table} metric {}", route.to, route.metric)
}

fn index_of(change: &Change) -> Option<u32> {
    match change {
        Change::Up(index) | Change::Mtu(index, _) => Some(*index),
        Change::AddAddress(address) | Change::DeleteAddress(address) => Some(address.index),
        Change::AddRoute(route) | Change::ReplaceRoute(route) | Change::DeleteRoute(route) => {
            Some(route.index)
        }
        Change::AddRule(_) | Change::DeleteRule(_) => None,
    }
}
