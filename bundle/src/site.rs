//! The site file: what a person writes about one deployment, read once into types that cannot hold
//! a bad value.
//!
//! [`Site::parse`] reports every fault of the text in one run; [`check`] then looks at the files
//! and secrets that it names. What each key means is in `docs/site-file.md`.
//!
//! # Invariants
//!
//! 1. A [`Site`] has passed every rule that can be judged from its text alone.
//! 2. No input makes this module panic.
//! 3. No secret stands in a site file: it names secrets, and their values travel sealed.

mod boxes;
mod contents;
mod fault;
mod reader;
mod rules;
mod services;
mod subnet;
mod tree;
mod turn;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

pub use boxes::{
    Admin, Dns, HardwareMatch, Interface, InterfaceMatch, InterfaceName, Mtu, Role, Route, SiteBox,
    SplitDns,
};
pub use contents::check;
pub use fault::{Fault, Place, Severity};
pub use services::{Affinity, Guest, KeySource, Proxy, SiteCertificate, Upstream, UpstreamHost};
pub use subnet::{HttpsUrl, InterfaceAddress, Subnet, TimeServer};
pub use tree::MAX_BYTES;
pub use turn::{AlternateServer, Bandwidth, Quota, Told, Turn, TurnDrain, TurnQuotas, TurnUser};
pub use value::{
    DomainName, FilePath, HttpPath, MacAddress, Name, PciPath, PortRange, Realm, Serial,
    SerialNumber, UserName, Uuid,
};

use fault::Complaint;
use reader::{FromScalar, Reader, Sheet, Table, unknown};

/// One deployment.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Site {
    /// Its name.
    pub name: Name,
    /// The bundle's number.
    pub serial: Serial,
    /// How a box confirms a new configuration.
    pub confirm: Confirm,
    /// Its machines by name, at least one.
    pub boxes: BTreeMap<Name, SiteBox>,
    /// Certificates in the order of the file; the first answers clients that name no server.
    pub certificates: Vec<SiteCertificate>,
    /// The TURN relay of every edge.
    pub turn: Option<Turn>,
    /// The web proxy of every edge.
    pub proxy: Option<Proxy>,
    warnings: Vec<Fault>,
    sheet: Sheet,
}

/// How a box confirms a new configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Confirm {
    /// By itself or by a person.
    pub mode: ConfirmMode,
    /// How long it waits before it takes the configuration back, 10 s to 10 min.
    pub deadline: Duration,
    /// Outside probes that must pass.
    pub require: Vec<Probe>,
}

/// Who confirms.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConfirmMode {
    /// The box, once everything holds.
    Auto,
    /// A person.
    Manual,
}

impl fmt::Display for ConfirmMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
        })
    }
}

/// A look at the world outside the box.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum Probe {
    /// The default gateway answers.
    Gateway,
    /// The DNS servers answer by each NIC.
    Dns,
    /// The address that STUN sees is the static NAT address.
    Stun,
    /// Every upstream answers its health check.
    Upstream,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "gateway",
            Self::Dns => "dns",
            Self::Stun => "stun",
            Self::Upstream => "upstream",
        })
    }
}

/// What a secret is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum SecretKind {
    /// The password of the administration page.
    AdminPassword,
    /// The password of a TURN user.
    TurnPassword,
    /// The secret of time-limited TURN credentials.
    TurnRest,
    /// The private key of a certificate, PEM.
    PrivateKey,
}

impl fmt::Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdminPassword => "the admin password",
            Self::TurnPassword => "a TURN user's password",
            Self::TurnRest => "the secret of time-limited TURN credentials",
            Self::PrivateKey => "a certificate's key",
        })
    }
}

impl Site {
    /// Reads a site file; `file_name` is what faults call it.
    ///
    /// # Errors
    ///
    /// Returns every fault, warnings included, in the order of the file; at least one is an error.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, Vec<Fault>> {
        let mut reader = Reader::new(file_name, text);
        let root = match tree::parse(text) {
            Ok(root) => root,
            Err((place, complaint)) => {
                reader.wrong_at(place, complaint);
                return Err(reader.faults);
            }
        };
        let mut site = Self::read(&mut reader, &root);
        site.sheet = std::mem::take(&mut reader.sheet);
        let mut faults = std::mem::take(&mut reader.faults);
        faults.extend(rules::judge(&site));
        sort(&mut faults);
        if faults.iter().any(Fault::is_error) {
            return Err(faults);
        }
        site.warnings = faults;
        Ok(site)
    }

    /// What was found that does not refuse the file.
    #[must_use]
    pub fn warnings(&self) -> &[Fault] {
        &self.warnings
    }

    /// A box by its name.
    #[must_use]
    pub fn machine(&self, name: &str) -> Option<&SiteBox> {
        self.boxes.get(name)
    }

    /// The secrets that a box's part of the site refers to, with what each is for; empty for a box
    /// that is not in the site.
    #[must_use]
    pub fn secrets_of(&self, name: &str) -> BTreeMap<String, SecretKind> {
        let mut secrets = BTreeMap::new();
        let Some(machine) = self.machine(name) else { return secrets };
        secrets.insert(machine.admin.password.to_string(), SecretKind::AdminPassword);
        for (_, name, kind) in self.shared_secrets() {
            secrets.insert(name.to_string(), kind);
        }
        secrets
    }

    /// The certificate and trust files that the site names, as written there.
    #[must_use]
    pub fn files(&self) -> BTreeSet<String> {
        let chains = self.certificates.iter().map(|certificate| certificate.chain.to_string());
        let guests = self.proxy.iter().flat_map(|proxy| &proxy.guests);
        let trust =
            guests.filter_map(|guest| guest.upstream.trust.as_ref().map(FilePath::to_string));
        chains.chain(trust).collect()
    }

    /// Secrets that every edge needs: path, name, kind.
    fn shared_secrets(&self) -> Vec<(String, &Name, SecretKind)> {
        let mut secrets = Vec::new();
        for certificate in &self.certificates {
            if let KeySource::Secret(name) = &certificate.key {
                let path = format!("certificates.{}.key", certificate.name);
                secrets.push((path, name, SecretKind::PrivateKey));
            }
        }
        if let Some(turn) = &self.turn {
            for (index, user) in turn.users.iter().enumerate() {
                let path = format!("turn.users.{index}.password");
                secrets.push((path, &user.password, SecretKind::TurnPassword));
            }
            for (index, name) in turn.rest_secrets.iter().enumerate() {
                secrets.push((format!("turn.rest-secret.{index}"), name, SecretKind::TurnRest));
            }
        }
        secrets
    }

    /// Every reference to a secret: path, name, kind.
    fn secret_references(&self) -> Vec<(String, &Name, SecretKind)> {
        let mut secrets = Vec::new();
        for machine in self.boxes.values() {
            let path = format!("boxes.{}.admin.password", machine.name);
            secrets.push((path, &machine.admin.password, SecretKind::AdminPassword));
        }
        secrets.extend(self.shared_secrets());
        secrets
    }

    fn read(reader: &mut Reader, root: &tree::Node) -> Self {
        let known = ["site", "serial", "confirm", "boxes", "certificates", "turn", "proxy"];
        let table = reader.table("", root, &known);
        let mut boxes = BTreeMap::new();
        if let Some(node) = reader.need(&table, "boxes") {
            let all = reader.entries("boxes", node, "the boxes' names");
            for (key, node) in &all.entries {
                let path = format!("boxes.{key}");
                let name: Name = reader.key(&path, key);
                let machine = boxes::read_box(reader, &path, name.clone(), node);
                boxes.insert(name, machine);
            }
        }
        Self {
            name: reader.need_scalar(&table, "site"),
            serial: reader.need_scalar(&table, "serial"),
            confirm: Confirm::read(reader, &table),
            boxes,
            certificates: match table.get("certificates") {
                Some(node) => services::read_certificates(reader, "certificates", node),
                None => Vec::new(),
            },
            turn: table.get("turn").map(|node| turn::read_turn(reader, "turn", node)),
            proxy: table.get("proxy").map(|node| services::read_proxy(reader, "proxy", node)),
            warnings: Vec::new(),
            sheet: Sheet::default(),
        }
    }
}

/// A password without the newline that ends the file it came from.
#[must_use]
pub fn without_newline(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// Puts faults in the order of the file.
pub(crate) fn sort(faults: &mut Vec<Fault>) {
    faults
        .sort_by(|a, b| (a.place, a.severity, &a.message).cmp(&(b.place, b.severity, &b.message)));
    faults.dedup();
}

impl Confirm {
    fn read(reader: &mut Reader, parent: &Table<'_>) -> Self {
        let mut confirm = Self {
            mode: ConfirmMode::Auto,
            deadline: Duration::from_secs(120),
            require: Vec::new(),
        };
        let Some(node) = parent.get("confirm") else { return confirm };
        let table = reader.table("confirm", node, &["mode", "deadline", "require"]);
        confirm.mode = reader.may_scalar(&table, "mode").unwrap_or(ConfirmMode::Auto);
        if let Some(deadline) = reader.may_scalar(&table, "deadline") {
            confirm.deadline = deadline;
        }
        confirm.require = reader.may_scalars(&table, "require");
        confirm
    }
}

impl FromScalar for ConfirmMode {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        match text {
            "auto" => Ok(Self::Auto),
            "manual" => Ok(Self::Manual),
            _ => Err(unknown("mode", text, ["auto", "manual"].into_iter())),
        }
    }

    fn stand_in() -> Self {
        Self::Auto
    }
}

impl FromScalar for Probe {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        match text {
            "gateway" => Ok(Self::Gateway),
            "dns" => Ok(Self::Dns),
            "stun" => Ok(Self::Stun),
            "upstream" => Ok(Self::Upstream),
            _ => Err(unknown("probe", text, ["gateway", "dns", "stun", "upstream"].into_iter())),
        }
    }

    fn stand_in() -> Self {
        Self::Gateway
    }
}

#[cfg(test)]
mod tests;
