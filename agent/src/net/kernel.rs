//! Links, addresses, routes and rules as the kernel has them, read and changed over rtnetlink(7).
//!
//! This is the only file that knows the netlink crates, whose interfaces change with most of their
//! releases. It holds no policy: [`super::desired`] says what should be, [`super::change`] how
//! to get there.
//!
//! What is ours carries [`PROTOCOL`] (`RTA_PROTOCOL`, `FRA_PROTOCOL`, `IFA_PROTO`); routes and
//! rules of anybody else are not even read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use futures_util::stream::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;

/// Marks the routes, rules and addresses that are ours.
pub(crate) const PROTOCOL: u8 = 84;

/// The main routing table.
pub(crate) const MAIN: u32 = 254;

/// A NIC.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Link {
    /// Kernel's index.
    pub(crate) index: u32,
    /// Kernel's name.
    pub(crate) name: String,
    /// MAC address in use, lower case with colons.
    pub(crate) mac: String,
    /// MAC address that the hardware came with; `None` for virtual links such as veth.
    pub(crate) permanent_mac: Option<String>,
    /// PCI address of the function it sits on.
    pub(crate) pci: Option<String>,
    /// Administratively up.
    pub(crate) up: bool,
    /// Whether the other end is there.
    pub(crate) carrier: bool,
    /// MTU in bytes.
    pub(crate) mtu: u32,
}

/// An address on a NIC.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct Address {
    /// Kernel's index of the NIC.
    pub(crate) index: u32,
    /// Address and prefix length.
    pub(crate) net: IpNet,
}

/// What the kernel says of an [`Address`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct AddressState {
    /// Carries our protocol number.
    pub(crate) ours: bool,
    /// Duplicate address detection has not finished (IPv6).
    pub(crate) tentative: bool,
    /// Another host has it (IPv6).
    pub(crate) duplicate: bool,
}

/// A route that carries our protocol number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct Route {
    /// Routing table.
    pub(crate) table: u32,
    /// Destination.
    pub(crate) to: IpNet,
    /// Metric.
    pub(crate) metric: u32,
    /// Next hop; `None` for a subnet on the link. On-link routes sort first, which is the order
    /// in which the kernel takes them.
    pub(crate) via: Option<IpAddr>,
    /// Kernel's index of the NIC.
    pub(crate) index: u32,
}

impl Route {
    /// What the kernel tells routes apart by: two routes with one key cannot both be there.
    pub(crate) fn key(&self) -> (u32, IpNet, u32) {
        (self.table, self.to, self.metric)
    }
}

/// A rule that carries our protocol number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct Rule {
    /// Source prefix.
    pub(crate) from: IpNet,
    /// Table to look in.
    pub(crate) table: u32,
    /// Place in the list; lower is asked first.
    pub(crate) priority: u32,
}

/// What the kernel has at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// All Ethernet links.
    pub(crate) links: Vec<Link>,
    /// All addresses of global scope that are not made by the kernel itself.
    pub(crate) addresses: BTreeMap<Address, AddressState>,
    /// Our routes.
    pub(crate) routes: BTreeSet<Route>,
    /// Our rules.
    pub(crate) rules: BTreeSet<Rule>,
}

/// One write to the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// Sets the link up.
    Up(u32),
    /// Sets the MTU of the link.
    Mtu(u32, u32),
    /// Adds an address.
    AddAddress(Address),
    /// Adds a route that has no rival.
    AddRoute(Route),
    /// Puts a route in the place of ours with the same key.
    ReplaceRoute(Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Deletes a rule.
    DeleteRule(Rule),
    /// Deletes a route.
    DeleteRoute(Route),
    /// Deletes an address.
    DeleteAddress(Address),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(index) => write!(f, "link {index} up"),
            Self::Mtu(index, mtu) => write!(f, "mtu of link {index} {mtu}"),
            Self::AddAddress(a) => write!(f, "add address {} on link {}", a.net, a.index),
            Self::DeleteAddress(a) => write!(f, "delete address {} on link {}", a.net, a.index),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::ReplaceRoute(route) => write!(f, "replace route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::DeleteRule(rule) => write!(f, "delete rule {rule}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        write!(f, " on link {} table {} metric {}", self.index, self.table, self.metric)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} table {} priority {}", self.from, self.table, self.priority)
    }
}

/// Why a request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// Reading did not work.
    #[error("cannot read {what} over rtnetlink: {source}")]
    Read { what: &'static str, source: rtnetlink::Error },
    /// The kernel refused a change.
    #[error("kernel refused to {change}: {reason}")]
    Refused { change: Change, reason: String },
}

/// A connection to the kernel's routing tables, in the network namespace of the thread that
/// opened it.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    handle: Handle,
}

impl Kernel {
    /// Opens a netlink socket; call it inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// Returns the error of socket(2) or bind(2).
    pub(crate) fn open() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        drop(tokio::spawn(connection));
        Ok(Self { handle })
    }

    /// Watches links, addresses, routes and rules: the value changes after each event, and after
    /// an overrun of the socket too, so whoever sees it change reads everything again.
    ///
    /// # Errors
    ///
    /// Returns the error of socket(2) or bind(2).
    pub(crate) fn watch() -> std::io::Result<watch::Receiver<u64>> {
        use MulticastGroup as Group;
        let (connection, _, mut events) = rtnetlink::new_multicast_connection(&[
            Group::Link,
            Group::Ipv4Ifaddr,
            Group::Ipv6Ifaddr,
            Group::Ipv4Route,
            Group::Ipv6Route,
            Group::Ipv4Rule,
            Group::Ipv6Rule,
        ])?;
        drop(tokio::spawn(connection));
        let (sender, receiver) = watch::channel(0);
        drop(tokio::spawn(async move {
            while events.next().await.is_some() {
                sender.send_modify(|count| *count += 1);
            }
        }));
        Ok(receiver)
    }

    /// Reads the links only.
    ///
    /// # Errors
    ///
    /// Returns [`KernelError::Read`].
    pub(crate) async fn links(&self) -> Result<Vec<Link>, KernelError> {
        let mut stream = self.handle.link().get().execute();
        let mut links = Vec::new();
        while let Some(message) = stream.try_next().await.map_err(|e| read("links", e))? {
            links.extend(link(&message));
        }
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// Reads everything.
    ///
    /// # Errors
    ///
    /// Returns [`KernelError::Read`].
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, KernelError> {
        let mut snapshot = Snapshot { links: self.links().await?, ..Snapshot::default() };
        let mut stream = self.handle.address().get().execute();
        while let Some(message) = stream.try_next().await.map_err(|e| read("addresses", e))? {
            snapshot.addresses.extend(address(&message));
        }
        let requests = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for request in requests {
            let mut stream = self.handle.route().get(request).execute();
            while let Some(message) = stream.try_next().await.map_err(|e| read("routes", e))? {
                snapshot.routes.extend(route(&message));
            }
        }
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut stream = self.handle.rule().get(version).execute();
            while let Some(message) = stream.try_next().await.map_err(|e| read("rules", e))? {
                snapshot.rules.extend(rule(&message));
            }
        }
        Ok(snapshot)
    }

    /// Whether the hosts next to us answer, by link and address: `None` while it is being asked.
    ///
    /// # Errors
    ///
    /// Returns [`KernelError::Read`].
    pub(crate) async fn neighbours(
        &self,
    ) -> Result<BTreeMap<(u32, IpAddr), Option<bool>>, KernelError> {
        let mut stream = self.handle.neighbours().get().execute();
        let mut neighbours = BTreeMap::new();
        while let Some(message) = stream.try_next().await.map_err(|e| read("neighbours", e))? {
            let answers = match message.header.state {
                NeighbourState::Failed => Some(false),
                NeighbourState::Incomplete | NeighbourState::None => None,
                _ => Some(true),
            };
            for attribute in &message.attributes {
                let ip = match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => (*ip).into(),
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => (*ip).into(),
                    _ => continue,
                };
                neighbours.insert((message.header.ifindex, ip), answers);
            }
        }
        Ok(neighbours)
    }

    /// Makes one change.
    ///
    /// # Errors
    ///
    /// Returns [`KernelError::Refused`] with the kernel's reason.
    pub(crate) async fn make(&self, change: Change) -> Result<(), KernelError> {
        let handle = &self.handle;
        let done = match change {
            Change::Up(index) => {
                let message = LinkUnspec::new_with_index(index).up().build();
                handle.link().set(message).execute().await
            }
            Change::Mtu(index, mtu) => {
                let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
                handle.link().set(message).execute().await
            }
            Change::AddAddress(Address { index, net }) => {
                let mut request = handle.address().add(index, net.addr(), net.prefix_len());
                let protocol = AddressProtocol::Other(PROTOCOL);
                request.message_mut().attributes.push(AddressAttribute::Protocol(protocol));
                request.execute().await
            }
            Change::DeleteAddress(Address { index, net }) => {
                let mut request = handle.address().add(index, net.addr(), net.prefix_len());
                let message = std::mem::take(request.message_mut());
                handle.address().del(message).execute().await
            }
            Change::AddRoute(route) => handle.route().add(route_message(&route)).execute().await,
            Change::ReplaceRoute(route) => {
                handle.route().add(route_message(&route)).replace().execute().await
            }
            Change::DeleteRoute(route) => handle.route().del(route_message(&route)).execute().await,
            Change::AddRule(rule) => {
                let mut request = handle.rule().add();
                *request.message_mut() = rule_message(&rule);
                request.execute().await
            }
            Change::DeleteRule(rule) => handle.rule().del(rule_message(&rule)).execute().await,
        };
        done.map_err(|source| KernelError::Refused { change, reason: reason(source) })
    }
}

fn read(what: &'static str, source: rtnetlink::Error) -> KernelError {
    KernelError::Read { what, source }
}

fn reason(error: rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    if message.header.link_layer_type != LinkLayerType::Ether {
        return None;
    }
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: String::new(),
        permanent_mac: None,
        pci: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mtu: 0,
    };
    let (mut bus, mut device) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::PermAddress(bytes) => link.permanent_mac = Some(mac(bytes)),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::ParentDevName(name) => device = Some(name.as_str()),
            LinkAttribute::ParentDevBusName(name) => bus = Some(name.as_str()),
            _ => {}
        }
    }
    link.pci = bus.zip(device).and_then(|(bus, device)| pci(bus, device));
    Some(link)
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The PCI function that a device sits on: itself, or, for virtio, the one above it.
fn pci(bus: &str, device: &str) -> Option<String> {
    if bus == "pci" {
        return Some(device.to_owned());
    }
    let path = std::fs::canonicalize(format!("/sys/bus/{bus}/devices/{device}")).ok()?;
    let above = path.parent()?;
    let subsystem = std::fs::canonicalize(above.join("subsystem")).ok()?;
    (subsystem.file_name()? == "pci").then(|| above.file_name()?.to_str().map(str::to_owned))?
}

fn address(message: &AddressMessage) -> Option<(Address, AddressState)> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let mut state = AddressState::default();
    let (mut local, mut any) = (None, None);
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => any = Some(*ip),
            AddressAttribute::Flags(value) => flags = *value,
            AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)) => state.ours = true,
            AddressAttribute::Protocol(AddressProtocol::Other(_)) => {}
            // The kernel made it: from a router advertisement, say. Not ours to judge.
            AddressAttribute::Protocol(_) => return None,
            _ => {}
        }
    }
    if !flags.contains(AddressFlags::Permanent) {
        return None;
    }
    state.tentative = flags.contains(AddressFlags::Tentative);
    state.duplicate = flags.contains(AddressFlags::Dadfailed);
    let net = IpNet::new(local.or(any)?, message.header.prefix_len).ok()?;
    Some((Address { index: message.header.index, net }, state))
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.protocol != RouteProtocol::Other(PROTOCOL) || header.kind != RouteType::Unicast {
        return None;
    }
    let (mut table, mut to, mut via, mut index, mut metric) =
        (u32::from(header.table), None, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(value) => to = ip(value),
            RouteAttribute::Gateway(value) => via = ip(value),
            RouteAttribute::Oif(value) => index = Some(*value),
            RouteAttribute::Priority(value) => metric = *value,
            _ => {}
        }
    }
    let to = to.unwrap_or_else(|| match header.address_family {
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv4Addr::UNSPECIFIED.into(),
    });
    let to = IpNet::new(to, header.destination_prefix_length).ok()?;
    Some(Route { table, to, metric, via, index: index? })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.to.addr());
    message.header.destination_prefix_length = route.to.prefix_len();
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match (route.via, route.to) {
        (None, IpNet::V4(_)) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    let attributes = &mut message.attributes;
    if route.to.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(route.to.network().into()));
    }
    if let Some(via) = route.via {
        attributes.push(RouteAttribute::Gateway(via.into()));
    }
    attributes.push(RouteAttribute::Oif(route.index));
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Priority(route.metric));
    message
}

fn rule(message: &RuleMessage) -> Option<Rule> {
    if message.header.action != RuleAction::ToTable {
        return None;
    }
    let (mut table, mut from, mut priority, mut ours) =
        (u32::from(message.header.table), None, 0, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Source(ip) => from = Some(*ip),
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Protocol(protocol) => {
                ours = *protocol == RouteProtocol::Other(PROTOCOL);
            }
            _ => {}
        }
    }
    let from = IpNet::new(from?, message.header.src_len).ok()?;
    ours.then_some(Rule { from, table, priority })
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.from.addr());
    message.header.src_len = rule.from.prefix_len();
    // Without an action the kernel takes the rule and fails all traffic that matches it.
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(rule.from.addr()),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
