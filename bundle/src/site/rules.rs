//! Rules of a site that are judged from its text alone.
//!
//! A rule cites the paths that it looks at. When one of them already has a fault, what stands
//! there is a stand-in and the rule stays silent: one mistake, one fault.

mod network;
mod ports;
mod secrets;
mod services;
mod turn;

use super::boxes::{HardwareMatch, SiteBox};
use super::fault::{Complaint, Fault, Severity};
use super::{ConfirmMode, Probe, Site};

/// Every breach of a rule.
pub(crate) fn judge(site: &Site) -> Vec<Fault> {
    let mut breaches = Breaches { site, faults: Vec::new() };
    boxes(&mut breaches);
    confirm(&mut breaches);
    for machine in site.boxes.values() {
        network::judge(&mut breaches, machine);
        network::judge_names(&mut breaches, machine);
        services::judge_admin(&mut breaches, machine);
        turn::judge_box(&mut breaches, machine);
        services::judge_proxy(&mut breaches, machine);
    }
    services::judge_site(&mut breaches);
    turn::judge_site(&mut breaches);
    secrets::judge(&mut breaches);
    breaches.faults
}

/// Collects breaches.
struct Breaches<'s> {
    site: &'s Site,
    faults: Vec<Fault>,
}

impl Breaches<'_> {
    /// An error at a path, unless it or something else that the rule cites is wrong already.
    fn error(
        &mut self,
        path: &str,
        cites: &[&str],
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Error, path, cites, Complaint::new(message, help));
    }

    /// A warning, likewise.
    fn warning(
        &mut self,
        path: &str,
        cites: &[&str],
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Severity::Warning, path, cites, Complaint::new(message, help));
    }

    fn add(&mut self, severity: Severity, path: &str, cites: &[&str], complaint: Complaint) {
        let sheet = &self.site.sheet;
        if !cites.iter().chain([&path]).any(|path| sheet.is_wrong(path)) {
            self.faults.push(sheet.fault(severity, path, complaint));
        }
    }
}

/// The path of a box.
fn at(machine: &SiteBox, rest: &str) -> String {
    format!("boxes.{}.{rest}", machine.name)
}

fn boxes(breaches: &mut Breaches<'_>) {
    let site = breaches.site;
    if site.boxes.is_empty() {
        breaches.error("boxes", &[], "the site has no box", "describe at least one box");
    }
    let mut seen: Vec<&SiteBox> = Vec::new();
    for machine in site.boxes.values() {
        let path = at(machine, "match");
        for other in &seen {
            let cited = at(other, "match");
            let any = HardwareMatch::Any;
            if machine.hardware == other.hardware
                || [&machine.hardware, &other.hardware].contains(&&any)
            {
                let message =
                    format!("one machine can be both `{}` and `{}`", other.name, machine.name);
                breaches.error(
                    &path,
                    &[&cited],
                    message,
                    "match each box by a serial number, uuid or mac of its own",
                );
            }
            if machine.fqdn() == other.fqdn() {
                let path = at(machine, "host-name");
                let cites =
                    [&*at(machine, "domain"), &*at(other, "host-name"), &*at(other, "domain")];
                let message = format!("`{}` is also the name of `{}`", machine.fqdn(), other.name);
                breaches.error(&path, &cites, message, "give each box a host name of its own");
            }
        }
        if machine.hardware == HardwareMatch::Any {
            let secrets: Vec<String> = site.secrets_of(&machine.name).into_keys().collect();
            let message = format!("any machine would be given secrets: {}", secrets.join(", "));
            let help = "match the box by serial-number, uuid or mac; secrets travel to a known machine only";
            let path = format!("{path}.any");
            breaches.error(&path, &[], message, help);
        }
        seen.push(machine);
    }
}

fn confirm(breaches: &mut Breaches<'_>) {
    let site = breaches.site;
    if !(10..=600).contains(&site.confirm.deadline.as_secs()) {
        let message = format!("a deadline of {} s", site.confirm.deadline.as_secs());
        breaches.error("confirm.deadline", &[], message, "write a time from 10s to 10m");
    }
    if site.confirm.mode == ConfirmMode::Manual {
        let message = "a box of the image has no way yet to be told by a person";
        let help = "write auto, or confirm from a shell in the lab before the deadline";
        breaches.warning("confirm.mode", &[], message, help);
    }
    for (index, probe) in site.confirm.require.iter().enumerate() {
        let path = format!("confirm.require.{index}");
        let needs = match probe {
            Probe::Upstream if site.proxy.is_none() => "proxy",
            Probe::Dns | Probe::Stun => {
                let message = format!("no box probes `{probe}` yet: it would always go back");
                breaches.error(&path, &[], message, "require gateway, upstream or both");
                continue;
            }
            _ => continue,
        };
        let message = format!("the probe `{probe}` has nothing to ask: the site has no `{needs}`");
        breaches.error(&path, &[needs], message, format!("remove `{probe}`, or add `{needs}`"));
    }
    let mut seen = Vec::new();
    for (index, probe) in site.confirm.require.iter().enumerate() {
        if seen.contains(&probe) {
            let path = format!("confirm.require.{index}");
            breaches.error(&path, &[], format!("`{probe}` is required twice"), "name it once");
        }
        seen.push(probe);
    }
}
