//! One machine of the site: how it is known, its NICs, DNS, time and administration.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::fault::Complaint;
use super::reader::{FromScalar, Reader, Table, unknown};
use super::subnet::{InterfaceAddress, Subnet, TimeServer};
use super::tree::Node;
use super::value::{
    DomainName, MacAddress, Name, PciPath, PortRange, SerialNumber, UserName, Uuid, short,
};

/// A machine that one bundle configures.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct SiteBox {
    /// The site's name for it.
    pub name: Name,
    /// What it does.
    pub role: Role,
    /// How the machine knows that it is meant.
    pub hardware: HardwareMatch,
    /// Host name, one label.
    pub host_name: Name,
    /// Domain; host name and domain make the FQDN.
    pub domain: DomainName,
    /// The internal NIC.
    pub lan1: Interface,
    /// The external NIC.
    pub lan2: Interface,
    /// Name resolution.
    pub dns: Dns,
    /// Time servers in order.
    pub time_servers: Vec<TimeServer>,
    /// Resolvers that are asked to prove what guests see.
    pub public_resolvers: Vec<IpAddr>,
    /// The administration page.
    pub admin: Admin,
}

impl SiteBox {
    /// Host name and domain.
    #[must_use]
    pub fn fqdn(&self) -> String {
        format!("{}.{}", self.host_name, self.domain)
    }

    /// One of its NICs.
    #[must_use]
    pub fn interface(&self, name: InterfaceName) -> &Interface {
        match name {
            InterfaceName::Lan1 => &self.lan1,
            InterfaceName::Lan2 => &self.lan2,
        }
    }
}

/// What a box does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Role {
    /// Two NICs, TURN relay and web proxy, in the DMZ.
    Edge,
}

/// How a machine knows that a box entry means it.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum HardwareMatch {
    /// SMBIOS type 1 serial number.
    SerialNumber(SerialNumber),
    /// SMBIOS type 1 UUID.
    Uuid(Uuid),
    /// Permanent MAC address of any of its NICs.
    Mac(MacAddress),
    /// Any machine; then no secrets may travel.
    Any,
}

/// A NIC by the site's name for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum InterfaceName {
    /// The internal one.
    Lan1,
    /// The external one.
    Lan2,
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lan1 => "lan1",
            Self::Lan2 => "lan2",
        })
    }
}

/// A NIC.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Interface {
    /// How it is found.
    pub hardware: InterfaceMatch,
    /// What it carries, at least one.
    pub addresses: Vec<InterfaceAddress>,
    /// Default gateways, at most one for each address family.
    pub gateways: Vec<IpAddr>,
    /// The addresses that a firewall maps 1:1 onto it, at most one for each address family; no
    /// NIC carries them.
    pub static_nat: Vec<IpAddr>,
    /// MTU in bytes.
    pub mtu: Option<Mtu>,
    /// Further routes.
    pub routes: Vec<Route>,
}

impl Interface {
    /// Whether an address is on the link or behind one of the routes (not the default gateway).
    #[must_use]
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.subnet().contains(&address))
            || self.routes.iter().any(|route| route.to.net().contains(&address))
    }

    /// The address that others know it by in a family: static NAT, else its first one.
    #[must_use]
    pub fn told(&self, v6: bool) -> Option<IpAddr> {
        let of_family = |address: &IpAddr| address.is_ipv6() == v6;
        self.static_nat.iter().copied().find(of_family).or_else(|| self.first_address(v6))
    }

    /// Its first address of a family.
    #[must_use]
    pub fn first_address(&self, v6: bool) -> Option<IpAddr> {
        let own = self.addresses.iter().map(|own| own.address());
        own.into_iter().find(|address| address.is_ipv6() == v6)
    }
}

/// How a NIC is found; never by the kernel's order.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum InterfaceMatch {
    /// Permanent MAC address.
    Mac(MacAddress),
    /// PCI path.
    Pci(PciPath),
}

/// An MTU, 1280 to 9216 bytes: 1280 is what IPv6 asks of a link (RFC 8200 section 5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mtu(u32);

impl Mtu {
    /// Bytes.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromScalar for Mtu {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        match text.parse() {
            Ok(bytes @ 1280..=9216) => Ok(Self(bytes)),
            _ => Err(Complaint::new(
                format!("`{}` is not an MTU", short(text)),
                "write a number from 1280 to 9216, mostly 1500",
            )),
        }
    }

    fn stand_in() -> Self {
        Self(1500)
    }
}

/// A route to a network behind a router on the link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Route {
    /// Where it leads.
    pub to: Subnet,
    /// The router.
    pub via: IpAddr,
}

/// Name resolution.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Dns {
    /// Servers for every name that no split entry covers, in order.
    pub servers: Vec<IpAddr>,
    /// Domains with servers of their own.
    pub split: Vec<SplitDns>,
    /// Source ports of requests; `None`: ephemeral.
    pub request_ports: Option<PortRange>,
}

/// A domain that is asked of its own servers.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct SplitDns {
    /// The domain and all below it.
    pub domain: DomainName,
    /// Servers in order.
    pub servers: Vec<IpAddr>,
    /// By which NIC.
    pub interface: InterfaceName,
}

impl SplitDns {
    /// Whether a name is in its domain.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        name.strip_suffix(self.domain.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

/// The administration page.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Admin {
    /// Where it listens.
    pub interface: InterfaceName,
    /// TCP port.
    pub port: NonZeroU16,
    /// User name.
    pub user: UserName,
    /// Name of the secret that holds the password.
    pub password: Name,
}

/// Reads one entry of `boxes`.
pub(crate) fn read_box(reader: &mut Reader, path: &str, name: Name, node: &Node) -> SiteBox {
    let known = [
        "role",
        "match",
        "host-name",
        "domain",
        "interfaces",
        "dns",
        "time",
        "public-resolvers",
        "admin",
    ];
    let table = reader.table(path, node, &known);
    SiteBox {
        name,
        role: reader.need_scalar(&table, "role"),
        hardware: read_match(reader, &table),
        host_name: reader.need_scalar(&table, "host-name"),
        domain: reader.need_scalar(&table, "domain"),
        lan1: read_interface(reader, &table, "lan1"),
        lan2: read_interface(reader, &table, "lan2"),
        dns: read_dns(reader, &table),
        time_servers: read_time(reader, &table),
        public_resolvers: reader.may_scalars(&table, "public-resolvers"),
        admin: read_admin(reader, &table),
    }
}

impl FromScalar for Role {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        match text {
            "edge" => Ok(Self::Edge),
            "inside" => {
                let help = "only `role: edge` is served so far; leave the inside box out";
                Err(Complaint::new("the inside role is not there yet", help))
            }
            _ => Err(unknown("role", text, ["edge"].into_iter())),
        }
    }

    fn stand_in() -> Self {
        Self::Edge
    }
}

impl FromScalar for InterfaceName {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        match text {
            "lan1" => Ok(Self::Lan1),
            "lan2" => Ok(Self::Lan2),
            _ => Err(unknown("interface", text, ["lan1", "lan2"].into_iter())),
        }
    }

    fn stand_in() -> Self {
        Self::Lan1
    }
}

fn read_match(reader: &mut Reader, parent: &Table<'_>) -> HardwareMatch {
    let Some(node) = reader.need(parent, "match") else { return HardwareMatch::Any };
    let path = parent.at("match");
    let table = reader.table(&path, node, &["serial-number", "uuid", "mac", "any"]);
    exactly_one(reader, &path, &table, "serial-number, uuid, mac or any: true");
    let at = |key: &str| table.at(key);
    for (key, value) in &table.entries {
        return match key.as_str() {
            "serial-number" => HardwareMatch::SerialNumber(reader.scalar(&at(key), value)),
            "uuid" => HardwareMatch::Uuid(reader.scalar(&at(key), value)),
            "mac" => HardwareMatch::Mac(reader.scalar(&at(key), value)),
            "any" => {
                let any: bool = reader.scalar(&at(key), value);
                if !any && !reader.sheet.is_wrong(&at(key)) {
                    let help = "write any: true, or serial-number, uuid or mac";
                    reader.wrong(&at(key), Complaint::new("any: false matches nothing", help));
                }
                HardwareMatch::Any
            }
            _ => continue,
        };
    }
    HardwareMatch::Any
}

fn exactly_one(reader: &mut Reader, path: &str, table: &Table<'_>, choice: &str) {
    if reader.sheet.is_wrong(path) || table.entries.len() == 1 {
        return;
    }
    let message = match table.entries.len() {
        0 => "says nothing to match",
        _ => "says more than one thing to match",
    };
    let message = format!("`{}` {message}", path.rsplit('.').next().unwrap_or(path));
    reader.wrong(path, Complaint::new(message, format!("write exactly one of {choice}")));
}

fn read_interface(reader: &mut Reader, parent: &Table<'_>, name: &str) -> Interface {
    let hollow = Interface {
        hardware: InterfaceMatch::Mac(MacAddress::stand_in()),
        addresses: Vec::new(),
        gateways: Vec::new(),
        static_nat: Vec::new(),
        mtu: None,
        routes: Vec::new(),
    };
    // Both NICs are below one key; its absence is one fault.
    let Some(node) = reader.need(parent, "interfaces") else { return hollow };
    let both = match name {
        "lan1" => reader.table(&parent.at("interfaces"), node, &["lan1", "lan2"]),
        _ => reader.reopen(&parent.at("interfaces"), node),
    };
    let Some(node) = reader.need(&both, name) else { return hollow };
    let path = both.at(name);
    let known = ["match", "address", "gateway", "static-nat", "mtu", "routes"];
    let table = reader.table(&path, node, &known);
    let routes = match table.get("routes") {
        Some(node) => reader.list(&table.at("routes"), node, read_route),
        None => Vec::new(),
    };
    Interface {
        hardware: read_interface_match(reader, &table),
        addresses: reader.need_scalars(&table, "address"),
        gateways: reader.may_scalars(&table, "gateway"),
        static_nat: reader.may_scalars(&table, "static-nat"),
        mtu: reader.may_scalar(&table, "mtu"),
        routes,
    }
}

fn read_interface_match(reader: &mut Reader, parent: &Table<'_>) -> InterfaceMatch {
    let stand_in = InterfaceMatch::Mac(MacAddress::stand_in());
    let Some(node) = reader.need(parent, "match") else { return stand_in };
    let path = parent.at("match");
    let table = reader.table(&path, node, &["mac", "pci"]);
    exactly_one(reader, &path, &table, "mac or pci");
    if let Some(mac) = reader.may_scalar(&table, "mac") {
        return InterfaceMatch::Mac(mac);
    }
    match reader.may_scalar(&table, "pci") {
        Some(pci) => InterfaceMatch::Pci(pci),
        None => stand_in,
    }
}

fn read_route(reader: &mut Reader, path: &str, node: &Node) -> Route {
    let table = reader.table(path, node, &["to", "via"]);
    Route { to: reader.need_scalar(&table, "to"), via: reader.need_scalar(&table, "via") }
}

fn read_dns(reader: &mut Reader, parent: &Table<'_>) -> Dns {
    let mut dns = Dns { servers: Vec::new(), split: Vec::new(), request_ports: None };
    let Some(node) = reader.need(parent, "dns") else { return dns };
    let table = reader.table(&parent.at("dns"), node, &["servers", "split", "request-ports"]);
    dns.servers = reader.need_scalars(&table, "servers");
    if let Some(node) = table.get("split") {
        dns.split = reader.list(&table.at("split"), node, |reader, path, node| {
            let table = reader.table(path, node, &["domain", "servers", "interface"]);
            SplitDns {
                domain: reader.need_scalar(&table, "domain"),
                servers: reader.need_scalars(&table, "servers"),
                interface: reader.need_scalar(&table, "interface"),
            }
        });
    }
    dns.request_ports =
        reader.may_scalar::<RequestPorts>(&table, "request-ports").and_then(|p| p.0);
    dns
}

struct RequestPorts(Option<PortRange>);

impl FromScalar for RequestPorts {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        if text == "ephemeral" {
            return Ok(Self(None));
        }
        PortRange::from_scalar(text).map(|range| Self(Some(range))).map_err(|complaint| {
            Complaint::new(complaint.message, "write ephemeral, or a range such as 40000-44999")
        })
    }

    fn stand_in() -> Self {
        Self(None)
    }
}

fn read_time(reader: &mut Reader, parent: &Table<'_>) -> Vec<TimeServer> {
    let Some(node) = reader.need(parent, "time") else { return Vec::new() };
    let table = reader.table(&parent.at("time"), node, &["servers"]);
    reader.need_scalars(&table, "servers")
}

fn read_admin(reader: &mut Reader, parent: &Table<'_>) -> Admin {
    let hollow = Admin {
        interface: InterfaceName::Lan1,
        port: NonZeroU16::stand_in(),
        user: UserName::stand_in(),
        password: Name::stand_in(),
    };
    let Some(node) = reader.need(parent, "admin") else { return hollow };
    let known = ["interface", "port", "user", "password"];
    let table = reader.table(&parent.at("admin"), node, &known);
    Admin {
        interface: reader.need_scalar(&table, "interface"),
        port: reader.need_scalar(&table, "port"),
        user: reader.need_scalar(&table, "user"),
        password: read_secret(reader, &table, "password"),
    }
}

/// Reads `{ secret: NAME }`.
pub(crate) fn read_secret(reader: &mut Reader, parent: &Table<'_>, key: &str) -> Name {
    match reader.need(parent, key) {
        Some(node) => secret_name(reader, &parent.at(key), node),
        None => Name::stand_in(),
    }
}

/// Reads `{ secret: NAME }` that stands at a path.
pub(crate) fn secret_name(reader: &mut Reader, path: &str, node: &Node) -> Name {
    if matches!(node.value, super::tree::Value::Scalar { .. }) {
        let help = "write { secret: NAME } here and the value under NAME in the secrets file";
        reader.wrong(path, Complaint::new("a secret never stands in the site file", help));
        return Name::stand_in();
    }
    let table = reader.table(path, node, &["secret"]);
    reader.need_scalar(&table, "secret")
}
