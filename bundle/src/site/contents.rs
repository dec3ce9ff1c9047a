//! Faults that show only beside the files and secrets that a site names.

mod certificate;
mod key;
mod password;

use std::collections::BTreeMap;
use std::time::SystemTime;

use certificate::Chain;

use super::fault::{Complaint, Severity};
use super::{Fault, KeySource, SecretKind, Site, sort};

/// Checks what a site refers to: certificates against the names that guests use, keys against
/// certificates, secrets against what an attacker tries first.
///
/// `certs` holds PEM text by path as written in the site file. Without `secrets` nothing is said
/// about them.
#[must_use]
pub fn check(
    site: &Site,
    certs: &BTreeMap<String, String>,
    secrets: Option<&BTreeMap<String, Vec<u8>>>,
    now: SystemTime,
) -> Vec<Fault> {
    let mut findings = Findings { site, faults: Vec::new() };
    let chains = read_chains(&mut findings, certs, now);
    names(&mut findings, &chains);
    trust(&mut findings, certs, now);
    if let Some(secrets) = secrets {
        keys(&mut findings, &chains, secrets);
        password::judge(&mut findings, secrets);
        complete(&mut findings, secrets);
    }
    sort(&mut findings.faults);
    findings.faults
}

/// Collects what is found.
struct Findings<'s> {
    site: &'s Site,
    faults: Vec<Fault>,
}

impl Findings<'_> {
    fn error(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.add(Severity::Error, path, Complaint::new(message, help));
    }

    fn warning(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.add(Severity::Warning, path, Complaint::new(message, help));
    }

    fn add(&mut self, severity: Severity, path: &str, complaint: Complaint) {
        self.faults.push(self.site.sheet.fault(severity, path, complaint));
    }
}

/// One chain for each certificate of the site, `None` where its file cannot be used.
fn read_chains(
    findings: &mut Findings<'_>,
    certs: &BTreeMap<String, String>,
    now: SystemTime,
) -> Vec<Option<Chain>> {
    let mut chains = Vec::new();
    for entry in &findings.site.certificates {
        let path = format!("certificates.{}.chain", entry.name);
        let Some(pem) = certs.get(entry.chain.as_str()) else {
            let message = format!("the file `{}` is missing", entry.chain);
            findings.error(&path, message, "put the PEM chain there, leaf first");
            chains.push(None);
            continue;
        };
        let chain = match Chain::parse(pem) {
            Ok(chain) => chain,
            Err(complaint) => {
                findings.add(Severity::Error, &path, complaint);
                chains.push(None);
                continue;
            }
        };
        for (severity, complaint) in chain.judge(now) {
            findings.add(severity, &path, complaint);
        }
        chains.push(Some(chain));
    }
    chains
}

/// Every name that a client opens is carried by some certificate, and the name of a box by the
/// first: that is what a TURN client is shown that names no server.
fn names(findings: &mut Findings<'_>, chains: &[Option<Chain>]) {
    let site = findings.site;
    // A chain that cannot be read might carry the name; its own fault is enough.
    if chains.iter().any(Option::is_none) || chains.is_empty() {
        return;
    }
    let carried: Vec<&str> =
        chains.iter().flatten().flat_map(|chain| &chain.names).map(String::as_str).collect();
    let list = match carried.is_empty() {
        true => "no name at all".to_owned(),
        false => carried.join(", "),
    };
    let covers = |name: &str| carried.iter().any(|carried| certificate::covers(carried, name));
    let guests = site.proxy.iter().flat_map(|proxy| &proxy.guests);
    for (index, guest) in guests.enumerate() {
        if !covers(guest.url.host()) {
            let message = format!("no certificate carries the guest name `{}`", guest.url.host());
            let help = format!("have it issued with this name; the certificates carry {list}");
            findings.error(&format!("proxy.guests.{index}.url"), message, help);
        }
    }
    for machine in site.boxes.values() {
        if !covers(&machine.fqdn()) {
            let message = format!("no certificate carries the box's name `{}`", machine.fqdn());
            let help = format!("have it issued with this name too; the certificates carry {list}");
            findings.error(&format!("boxes.{}.host-name", machine.name), message, help);
        } else if site.turn.iter().any(|turn| !turn.tls_ports.is_empty())
            && let (Some(first), Some(Some(chain))) = (site.certificates.first(), chains.first())
            && !chain.names.iter().any(|name| certificate::covers(name, &machine.fqdn()))
        {
            let message = format!(
                "TURN clients that name no server are shown `{}`, which does not carry `{}`",
                first.name,
                machine.fqdn()
            );
            let help = "put the certificate with the box's name first, or have this one carry it";
            findings.error(&format!("certificates.{}", first.name), message, help);
        }
    }
}

fn trust(findings: &mut Findings<'_>, certs: &BTreeMap<String, String>, now: SystemTime) {
    let site = findings.site;
    for (index, guest) in site.proxy.iter().flat_map(|proxy| &proxy.guests).enumerate() {
        let Some(file) = &guest.upstream.trust else { continue };
        let path = format!("proxy.guests.{index}.upstream.trust");
        let Some(pem) = certs.get(file.as_str()) else {
            let message = format!("the file `{file}` is missing");
            findings.error(&path, message, "put the PEM certificate of the upstream's CA there");
            continue;
        };
        match Chain::parse(pem) {
            Ok(roots) => {
                for (severity, complaint) in roots.judge_roots(now) {
                    findings.add(severity, &path, complaint);
                }
            }
            Err(complaint) => findings.add(Severity::Error, &path, complaint),
        }
    }
}

fn keys(
    findings: &mut Findings<'_>,
    chains: &[Option<Chain>],
    secrets: &BTreeMap<String, Vec<u8>>,
) {
    for (entry, chain) in findings.site.certificates.iter().zip(chains) {
        let KeySource::Secret(name) = &entry.key else { continue };
        let Some(bytes) = secrets.get(name.as_str()) else { continue };
        let path = format!("certificates.{}.key.secret", entry.name);
        let leaf = chain.as_ref().map(|chain| chain.public_key.as_slice());
        for complaint in key::judge(name, bytes, leaf) {
            findings.add(Severity::Error, &path, complaint);
        }
    }
}

/// Every secret that is named is there, and none that is not.
fn complete(findings: &mut Findings<'_>, secrets: &BTreeMap<String, Vec<u8>>) {
    let site = findings.site;
    let references = site.secret_references();
    for (path, name, kind) in &references {
        if !secrets.contains_key(name.as_str()) {
            let message = format!("the secret `{name}` ({kind}) has no value");
            let help = match kind {
                SecretKind::PrivateKey => {
                    format!("add `{name}: |` with the PEM text to the secrets file")
                }
                _ => format!("add `{name}: ...` to the secrets file"),
            };
            findings.error(&format!("{path}.secret"), message, help);
        }
    }
    for name in secrets.keys() {
        if !references.iter().any(|(_, used, _)| used.as_str() == name) {
            let message = format!("the secret `{name}` is given, but nothing refers to it");
            let help = "remove it, or refer to it as { secret: NAME }; it does not travel";
            findings.warning("site", message, help);
        }
    }
}
