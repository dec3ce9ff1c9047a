//! Our nftables table, loaded through `nft -j -f -` (libnftables-json(5)).
//!
//! The plan's commands replace the whole table `inet postern` in one transaction; no other table
//! is looked at. A load is skipped when the same commands were loaded last *and* the kernel still
//! lists what it listed right after that load; both hashes are kept in a file below /run, because
//! nft 1.0.6 drops a table's comment from its JSON and changing the rules leaves a comment as it
//! is anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where Debian has it; PATH is not asked by a process that holds a capability.
const NFT: &str = "/usr/sbin/nft";
/// The family of our table.
const FAMILY: &str = "inet";
/// The name of our table.
pub(crate) const TABLE: &str = "postern";

/// Why a ruleset was not loaded. What was loaded before is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RulesetError {
    /// Not a list of nft commands about our table.
    #[error("ruleset of the plan: {0}")]
    Shape(String),
    /// nft could not be run.
    #[error("cannot run {NFT}: {0}; the image needs the package nftables")]
    Run(std::io::Error),
    /// nft or the kernel said no.
    #[error("nft refused the ruleset: {0}")]
    Refused(String),
}

/// Hashes of what was loaded last and of what the kernel listed then.
#[derive(Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
struct Record {
    commands: String,
    listing: String,
}

/// A ruleset with its placeholders replaced, ready to be loaded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Ruleset {
    batch: String,
}

impl Ruleset {
    /// Takes the commands of a plan: `{"nftables": [...]}` or the list alone. A string that is
    /// `@NAME` for a NIC of the plan becomes that NIC's name, or one that no NIC has when it is
    /// absent (nft reads a leading `@` as a set's name, so it cannot stay).
    ///
    /// # Errors
    ///
    /// Returns [`RulesetError::Shape`] for commands about another table than ours.
    pub(crate) fn new(
        commands: &Value,
        nics: &BTreeSet<String>,
        names: &BTreeMap<String, String>,
    ) -> Result<Self, RulesetError> {
        let list = commands.get("nftables").unwrap_or(commands);
        let list = list.as_array().ok_or_else(|| RulesetError::Shape("not a list".to_owned()))?;
        let table = json!({"table": {"family": FAMILY, "name": TABLE}});
        let mut batch =
            vec![json!({"add": table}), json!({"delete": table}), json!({"add": table})];
        for command in list {
            let object = object_of(command)
                .ok_or_else(|| RulesetError::Shape(format!("not a command: {command}")))?;
            let (kind, body) = object;
            if kind == "metainfo" {
                continue;
            }
            let named = if kind == "table" { &body["name"] } else { &body["table"] };
            if body["family"] != FAMILY || named != TABLE {
                let text = format!("only the table {FAMILY} {TABLE} is ours, not {command}");
                return Err(RulesetError::Shape(text));
            }
            if kind != "table" {
                let mut command = command.clone();
                replace(&mut command, nics, names);
                batch.push(command);
            }
        }
        Ok(Self { batch: json!({"nftables": batch}).to_string() })
    }

    fn hash(&self) -> String {
        hex(&self.batch)
    }
}

/// The command's object: its kind and its body.
fn object_of(command: &Value) -> Option<(&str, &Value)> {
    let (verb, inner) = command.as_object()?.iter().next()?;
    if verb == "metainfo" {
        return Some((verb, inner));
    }
    let (kind, body) = inner.as_object()?.iter().next()?;
    Some((kind, body))
}

fn replace(value: &mut Value, nics: &BTreeSet<String>, names: &BTreeMap<String, String>) {
    match value {
        Value::String(text) => {
            if let Some(nic) = text.strip_prefix('@').filter(|nic| nics.contains(*nic)) {
                *text = names.get(nic).cloned().unwrap_or_else(|| format!("{nic}-absent"));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, nics, names)),
        Value::Object(map) => map.values_mut().for_each(|item| replace(item, nics, names)),
        _ => {}
    }
}

/// The kernel's copy of our table, and what we remember of it.
#[derive(Clone, Debug)]
pub(crate) struct Firewall {
    record: PathBuf,
}

impl Firewall {
    /// Remembers in `directory`, which must not outlive the boot.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { record: directory.join("ruleset") }
    }

    /// Whether `ruleset` is what the kernel has.
    ///
    /// # Errors
    ///
    /// Returns [`RulesetError::Run`] when nft cannot be run.
    pub(crate) fn holds(&self, ruleset: &Ruleset) -> Result<bool, RulesetError> {
        let record: Record = std::fs::read(&self.record)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Ok(record.commands == ruleset.hash() && Some(record.listing) == listing()?)
    }

    /// Asks nft and the kernel whether they would take it, changing nothing.
    ///
    /// # Errors
    ///
    /// Returns [`RulesetError::Refused`] with nft's own words.
    pub(crate) fn check(&self, ruleset: &Ruleset) -> Result<(), RulesetError> {
        nft(&["-j", "-c", "-f", "-"], &ruleset.batch).map(drop)
    }

    /// Replaces our table in one transaction.
    ///
    /// # Errors
    ///
    /// Returns [`RulesetError::Refused`] with nft's own words.
    pub(crate) fn load(&self, ruleset: &Ruleset) -> Result<(), RulesetError> {
        nft(&["-j", "-f", "-"], &ruleset.batch)?;
        let record = Record { commands: ruleset.hash(), listing: listing()?.unwrap_or_default() };
        let text = serde_json::to_string(&record).unwrap_or_default();
        if let Err(error) = std::fs::write(&self.record, text) {
            tracing::warn!(path = %self.record.display(), %error, "Cannot remember the ruleset");
        }
        Ok(())
    }
}

/// Hash of our table as the kernel lists it; `None` when there is none.
fn listing() -> Result<Option<String>, RulesetError> {
    let text = match nft(&["-j", "list", "table", FAMILY, TABLE], "") {
        Ok(text) => text,
        Err(RulesetError::Refused(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut value: Value = serde_json::from_str(&text)
        .map_err(|error| RulesetError::Refused(format!("its listing is not JSON: {error}")))?;
    steady(&mut value);
    Ok(Some(hex(&value.to_string())))
}

/// Leaves only what does not change by itself: no handles, counters or learned set elements.
fn steady(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(steady),
        Value::Object(map) => {
            map.remove("handle");
            map.remove("metainfo");
            if let Some(Value::Object(counter)) = map.get_mut("counter") {
                counter.remove("packets");
                counter.remove("bytes");
            }
            let learns = map.get("flags").is_some_and(|flags| {
                let text = flags.to_string();
                text.contains("dynamic") || text.contains("timeout")
            });
            if learns {
                map.remove("elem");
            }
            map.values_mut().for_each(steady);
        }
        _ => {}
    }
}

fn nft(arguments: &[&str], input: &str) -> Result<String, RulesetError> {
    let mut child = Command::new(NFT)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(RulesetError::Run)?;
    // nft reads all of its input before it writes, so this cannot block on a full pipe; when it
    // has ended early its own words, read below, say more than the broken pipe.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    drop(written);
    let output = child.wait_with_output().map_err(RulesetError::Run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words: Vec<&str> = words.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    Err(RulesetError::Refused(format!("{} ({})", words.join("; "), output.status)))
}

fn hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The rescue plan's ruleset: nothing comes in but replies and what keeps a link working.
pub(crate) fn rescue() -> Value {
    let object = |kind: &str, mut body: Value| {
        body["family"] = FAMILY.into();
        body["table"] = TABLE.into();
        json!({"add": {kind: body}})
    };
    let chain = |name: &str, policy: &str| {
        object(
            "chain",
            json!({"name": name, "type": "filter", "hook": name, "prio": 0, "policy": policy}),
        )
    };
    let rule = |matches: Value| {
        let expression = json!([matches, {"accept": null}]);
        object("rule", json!({"chain": "input", "expr": expression}))
    };
    let is =
        |left: Value, right: Value| json!({"match": {"op": "in", "left": left, "right": right}});
    let equals =
        |left: Value, right: Value| json!({"match": {"op": "==", "left": left, "right": right}});
    let icmp6 = json!([
        "nd-neighbor-solicit",
        "nd-neighbor-advert",
        "nd-router-advert",
        "packet-too-big",
        "destination-unreachable",
        "time-exceeded",
        "parameter-problem"
    ]);
    json!([
        chain("input", "drop"),
        chain("forward", "drop"),
        chain("output", "accept"),
        rule(equals(json!({"meta": {"key": "iif"}}), "lo".into())),
        rule(is(json!({"ct": {"key": "state"}}), json!(["established", "related"]))),
        rule(equals(
            json!({"payload": {"protocol": "icmpv6", "field": "type"}}),
            json!({"set": icmp6})
        )),
    ])
}
