//! What `postern-agent status` shows: what is observed at the moment of asking, part by part from
//! the process that can see it. A part that does not answer is null, never guessed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use bundle::device_key::DevicePublic;
use serde_json::{Map, Value, json};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System, UpdateKind};

use super::apply::Shared;
use super::store::Store;
use crate::plan::Service;

/// Where the device process keeps the public halves of the keys and says where they come from.
const DEVICE: &str = "/var/lib/postern/device";

/// Asks everybody. Blocks for as long as the slowest answer.
pub(crate) fn observe(shared: &Shared) -> Value {
    let view = shared.view().clone();
    let lkg = shared.places.last_known_good();
    let quarantine = Store::open(&shared.places.state).map(|it| it.quarantine()).ok();
    let (generation, bundle) = view.in_force.unzip();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": view.state.name(),
        "bundle": bundle_object(generation.as_ref(), bundle),
        "change": change(&view.state, view.waiting.as_deref()),
        "serial-floor": lkg.as_ref().map(|it| it.floor),
        "last-known-good": lkg.map(|it| it.generation),
        "last-change": view.cost,
        "last-refusal": view.refusal.map(|(code, reason, at)| {
            json!({ "code": code, "reason": reason, "seconds-ago": ago(at) })
        }),
        "last-roll-back": view.roll_back.map(|(generation, reason, at)| {
            json!({ "serial": generation.serial, "digest": generation.digest, "reason": reason,
                    "seconds-ago": ago(at) })
        }),
        "quarantine": quarantine,
        "network": shared.places.net_observe().ok(),
        "host": shared.places.host_observe().ok(),
        "relay": shared.serving.report(Service::Relay),
        "proxy": shared.serving.report(Service::Proxy),
        "device": device(Path::new(DEVICE)),
        "data": data(),
        "uptime-seconds": System::uptime(),
        "memory": memory(),
    })
}

fn ago(at: Instant) -> u64 {
    at.elapsed().as_secs()
}

/// Serial, digest and what the bundle says of itself, in one object.
fn bundle_object(
    generation: Option<&crate::plan::Generation>,
    summary: Option<BTreeMap<String, Value>>,
) -> Value {
    let Some(generation) = generation else {
        return Value::Null;
    };
    let mut object: Map<String, Value> = summary.into_iter().flatten().collect();
    object.insert("serial".to_owned(), generation.serial.into());
    object.insert("digest".to_owned(), generation.digest.clone().into());
    object.into()
}

/// The bundle under way, if there is one.
fn change(state: &super::state::State, waiting: Option<&str>) -> Value {
    use super::state::State;
    match state {
        State::Idle | State::Confirmed { .. } | State::RolledBack { .. } => Value::Null,
        other => json!({
            "serial": other.generation().map(|it| it.serial),
            "digest": other.generation().map(|it| &it.digest),
            "waiting-for": waiting,
        }),
    }
}

/// The device's public keys and where they come from; null before the first boot has made them.
fn device(folder: &Path) -> Value {
    let Ok(text) = std::fs::read_to_string(folder.join("device.pub")) else {
        return Value::Null;
    };
    let origin = std::fs::read_to_string(folder.join("origin")).ok();
    match text.parse::<DevicePublic>() {
        Ok(keys) => json!({
            "seal": keys.seal.to_string(),
            "seal-fingerprint": keys.seal.fingerprint().to_string(),
            "identity-fingerprint": keys.identity_fingerprint().to_string(),
            "identity": origin.as_deref().map(str::trim),
        }),
        Err(error) => json!({ "problem": error.to_string() }),
    }
}

/// What /var/lib/postern lives on (proc_pid_mountinfo(5)).
fn data() -> Value {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else {
        return Value::Null;
    };
    data_of(&mounts)
}

fn data_of(mountinfo: &str) -> Value {
    let mut best: Option<(&str, &str, &str)> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let (Some(kind), Some(source)) = (right.next(), right.next()) else { continue };
        let covers = "/var/lib/postern/agent"
            .strip_prefix(point)
            .is_some_and(|rest| point == "/" || rest.is_empty() || rest.starts_with('/'));
        if covers && best.is_none_or(|(longest, ..)| point.len() >= longest.len()) {
            best = Some((point, kind, source));
        }
    }
    let Some((_, kind, source)) = best else {
        return Value::Null;
    };
    json!({
        "file-system": kind,
        "kept": !matches!(kind, "tmpfs" | "overlay"),
        "encrypted": source.starts_with("/dev/mapper/") || source.starts_with("/dev/dm-"),
    })
}

/// The machine's memory and what each of our processes has of it, in bytes.
fn memory() -> Value {
    let mut system = System::new_with_specifics(RefreshKind::nothing());
    system.refresh_memory();
    let what = ProcessRefreshKind::nothing().with_memory().with_cmd(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let mut processes: BTreeMap<String, u64> = BTreeMap::new();
    for process in system.processes_by_exact_name("postern-agent".as_ref()) {
        // One that has just ended has no command line any more.
        let Some(role) = process.cmd().get(1) else { continue };
        let sum = processes.entry(role.to_string_lossy().into_owned()).or_default();
        *sum = sum.saturating_add(process.memory());
    }
    json!({
        "total": system.total_memory(),
        "used": system.used_memory(),
        "processes": processes,
    })
}

#[cfg(test)]
mod tests {
    use bundle::device_key::DeviceKeys;
    use serde_json::{Value, json};

    use super::{data_of, device};

    #[test]
    fn the_device_is_shown_by_fingerprints_and_origin() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(device(folder.path()), Value::Null);
        let public = DeviceKeys::generate("edge").unwrap().public();
        std::fs::write(folder.path().join("device.pub"), public.to_string()).unwrap();
        std::fs::write(folder.path().join("origin"), "flashed\n").unwrap();

        let shown = device(folder.path());

        assert_eq!(shown["identity"], "flashed");
        assert_eq!(shown["seal-fingerprint"], public.seal.fingerprint().to_string());
    }

    #[test]
    fn the_longest_mount_point_says_where_the_data_lives() {
        let mountinfo = "\
22 1 254:0 / / ro,relatime - squashfs /dev/dm-0 ro
30 22 254:3 / /var rw,nosuid - ext4 /dev/vda5 rw
31 22 0:30 / /var/lib/postern-other rw - tmpfs tmpfs rw
";
        let expected = json!({ "file-system": "ext4", "kept": true, "encrypted": false });

        assert_eq!(data_of(mountinfo), expected);
    }

    #[test]
    fn data_in_memory_is_said_to_be_lost() {
        let mountinfo =
            "22 1 0:1 / / ro - squashfs /dev/dm-0 ro\n30 22 0:2 / /var rw - tmpfs t rw\n";

        assert_eq!(data_of(mountinfo)["kept"], json!(false));
    }
}
