//! The planner: from a site to what each process of one box has to make true.
//!
//! Pure: the same site, files, secrets and facts give the same plans, so that equal bundles mean
//! nothing to do. Runs in `postern-unseal`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bundle::site::{
    ConfirmMode, Interface, InterfaceMatch, InterfaceName, KeySource, Site, SiteBox, Told, Turn,
};
use ipnet::IpNet;

use super::{
    Certificate, Face, Guest, HostPlan, LinkDns, LinkPlan, LinkSelector, ListenerPlan, NetPlan,
    ProxySlice, RelayListener, RelaySlice, RelayUser, RoutePlan, Service, Transport, Upstream,
    ruleset, sysctls,
};

/// What the planner needs to know and the site file does not say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// When the bundle was made, in seconds since the epoch: the clock is never earlier.
    pub(crate) created_at: u64,
    /// PEM keys that were made on this box, by the certificate's name.
    pub(crate) box_keys: BTreeMap<String, String>,
}

/// The plans of one box.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
pub(crate) struct Derived {
    /// For `postern-net`.
    pub(crate) net: NetPlan,
    /// For `postern-host`.
    pub(crate) host: HostPlan,
    /// For `postern-relay`; `None`: the site has no TURN relay.
    pub(crate) relay: Option<RelaySlice>,
    /// For `postern-proxy`; `None`: the site has no web proxy.
    pub(crate) proxy: Option<ProxySlice>,
    /// Probes that must pass before it is confirmed.
    pub(crate) require: Vec<String>,
    /// Whether the agent may confirm by itself.
    pub(crate) auto_confirm: bool,
}

/// Why a box cannot be planned: the bundle does not carry what its site file names. Final; a new
/// bundle is needed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum DeriveError {
    /// The site has no such box.
    #[error("the site has no box `{0}`")]
    Box(String),
    /// A certificate or trust file is missing.
    #[error("the bundle does not carry the file `{0}` that the site names")]
    File(String),
    /// A secret is missing.
    #[error("the bundle does not carry the secret `{0}` that the site names")]
    Secret(String),
    /// A secret is not text.
    #[error("the secret `{0}` is not UTF-8 text")]
    Text(String),
    /// A key that should be on the box is not.
    #[error("certificate `{0}` says `key: on-box`, but this box has made no key for it")]
    BoxKey(String),
    /// No address to serve the outside from.
    #[error("box `{0}` has no address on lan2")]
    Address(String),
}

/// Plans one box.
///
/// `certs` holds PEM text by path as written in the site file, `secrets` the decrypted values.
///
/// # Errors
///
/// Returns [`DeriveError`] when something that the site names is not there.
pub(crate) fn derive(
    site: &Site,
    box_name: &str,
    certs: &BTreeMap<String, String>,
    secrets: &BTreeMap<String, Vec<u8>>,
    facts: &Facts,
) -> Result<Derived, DeriveError> {
    let machine = site.machine(box_name).ok_or_else(|| DeriveError::Box(box_name.to_owned()))?;
    let material = Material { certs, secrets, facts };
    Ok(Derived {
        net: net(site, machine),
        host: host(machine, facts),
        relay: relay(site, machine, &material)?,
        proxy: proxy(site, machine, &material)?,
        require: site.confirm.require.iter().map(ToString::to_string).collect(),
        auto_confirm: site.confirm.mode == ConfirmMode::Auto,
    })
}

struct Material<'a> {
    certs: &'a BTreeMap<String, String>,
    secrets: &'a BTreeMap<String, Vec<u8>>,
    facts: &'a Facts,
}

impl Material<'_> {
    fn file(&self, path: &str) -> Result<String, DeriveError> {
        self.certs.get(path).cloned().ok_or_else(|| DeriveError::File(path.to_owned()))
    }

    fn text(&self, name: &str) -> Result<String, DeriveError> {
        let bytes = self.secrets.get(name).ok_or_else(|| DeriveError::Secret(name.to_owned()))?;
        let text = std::str::from_utf8(bytes).map_err(|_| DeriveError::Text(name.to_owned()))?;
        Ok(text.to_owned())
    }

    fn password(&self, name: &str) -> Result<String, DeriveError> {
        Ok(bundle::site::without_newline(&self.text(name)?).to_owned())
    }
}

/// The routing tables of replies; the site's names are fixed, so the numbers are.
fn table(name: InterfaceName) -> u32 {
    match name {
        InterfaceName::Lan1 => 101,
        InterfaceName::Lan2 => 102,
    }
}

/// Metric of every route of ours in the main table.
const METRIC: u32 = 100;

fn net(site: &Site, machine: &SiteBox) -> NetPlan {
    let listeners = held_listeners(site, machine);
    NetPlan {
        links: [InterfaceName::Lan1, InterfaceName::Lan2]
            .map(|name| link(name, machine.interface(name)))
            .into(),
        ruleset: ruleset::ruleset(site, machine),
        sysctls: sysctls::sysctls(site, machine),
        listeners,
        deadline: site.confirm.deadline,
    }
}

fn link(name: InterfaceName, nic: &Interface) -> LinkPlan {
    let mut routes: Vec<RoutePlan> = nic
        .routes
        .iter()
        .map(|route| RoutePlan { to: route.to.net(), via: Some(route.via), metric: METRIC })
        .collect();
    for gateway in &nic.gateways {
        let to = match gateway {
            IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        routes.push(RoutePlan { to, via: Some(*gateway), metric: METRIC });
    }
    LinkPlan {
        name: name.to_string(),
        select: select(nic),
        addresses: nic.addresses.iter().map(|address| address.with_prefix()).collect(),
        mtu: nic.mtu.map(bundle::site::Mtu::get),
        routes,
        table: table(name),
    }
}

fn select(nic: &Interface) -> LinkSelector {
    match &nic.hardware {
        InterfaceMatch::Mac(mac) => LinkSelector::Mac(mac.to_string()),
        InterfaceMatch::Pci(path) => LinkSelector::Pci(path.to_string()),
    }
}

/// Every address of a NIC with one port.
fn sockets(machine: &SiteBox, listen: &[InterfaceName], port: u16) -> Vec<SocketAddr> {
    let nics = listen.iter().map(|name| machine.interface(*name));
    nics.flat_map(|nic| &nic.addresses)
        .map(|address| SocketAddr::new(address.address(), port))
        .collect()
}

/// Sockets below port 1024, which only `postern-net` may open.
fn held_listeners(site: &Site, machine: &SiteBox) -> Vec<ListenerPlan> {
    let mut held = Vec::new();
    let mut hold = |owner, transport, addresses: Vec<SocketAddr>| {
        let plans = addresses.into_iter().filter(|address| address.port() < 1024);
        held.extend(plans.map(|address| ListenerPlan { owner, address, transport }));
    };
    if let Some(proxy) = &site.proxy {
        hold(Service::Proxy, Transport::Tcp, sockets(machine, &proxy.listen, 443));
        if proxy.redirect_http {
            hold(Service::Proxy, Transport::Tcp, sockets(machine, &proxy.listen, 80));
        }
    }
    if let Some(turn) = &site.turn {
        for port in turn_ports(turn) {
            hold(Service::Relay, Transport::Udp, sockets(machine, &turn.listen, port));
        }
    }
    held
}

/// The UDP ports on which TURN is served.
pub(super) fn turn_ports(turn: &Turn) -> Vec<u16> {
    let mut ports = vec![turn.port.get()];
    if turn.udp_443 && turn.port.get() != 443 {
        ports.push(443);
    }
    ports
}

fn host(machine: &SiteBox, facts: &Facts) -> HostPlan {
    let mut dns = Vec::new();
    for name in [InterfaceName::Lan1, InterfaceName::Lan2] {
        let nic = machine.interface(name);
        // A server that LAN1 reaches is asked by LAN1; every other one is behind the gateway.
        let by = |server: &IpAddr| match machine.lan1.reaches(*server) {
            true => InterfaceName::Lan1,
            false => InterfaceName::Lan2,
        };
        let mut servers: Vec<IpAddr> =
            machine.dns.servers.iter().filter(|server| by(server) == name).copied().collect();
        let default_route = !servers.is_empty();
        let mut domains = Vec::new();
        for split in machine.dns.split.iter().filter(|split| split.interface == name) {
            domains.push((split.domain.to_string(), true));
            let new = split.servers.iter().filter(|server| !servers.contains(server));
            let new: Vec<IpAddr> = new.copied().collect();
            servers.extend(new);
        }
        if default_route {
            domains.push((".".to_owned(), true));
        }
        dns.push(LinkDns { select: select(nic), servers, domains, default_route });
    }
    HostPlan {
        host_name: machine.host_name.to_string(),
        dns,
        ntp: machine.time_servers.iter().map(ToString::to_string).collect(),
        clock_floor: facts.created_at,
    }
}

/// Destinations that leave by a NIC, the default gateway's aside.
pub(super) fn routed(nic: &Interface) -> Vec<IpNet> {
    let links = nic.addresses.iter().map(|address| address.subnet());
    let mut nets: Vec<IpNet> = links.chain(nic.routes.iter().map(|route| route.to.net())).collect();
    nets.sort_by_key(|net| (std::cmp::Reverse(net.prefix_len()), *net));
    nets.dedup();
    nets
}

/// Every address that is ours, the static NAT address included.
pub(super) fn own_addresses(machine: &SiteBox) -> Vec<IpAddr> {
    let nics = [&machine.lan1, &machine.lan2];
    let carried = nics.into_iter().flat_map(|nic| nic.addresses.iter().map(|a| a.address()));
    let mut own: Vec<IpAddr> =
        carried.chain(nics.into_iter().filter_map(|n| n.static_nat)).collect();
    own.sort();
    own.dedup();
    own
}

/// The first address of a NIC, IPv4 before IPv6.
fn first_address(nic: &Interface) -> Option<IpAddr> {
    nic.addresses.iter().map(|address| address.address()).min_by_key(IpAddr::is_ipv6)
}

/// Whether allocations have a port on LAN1 too: for inside peers, or because inside clients are
/// told it.
pub(super) fn has_inside_face(turn: &Turn, machine: &SiteBox) -> bool {
    let inside = routed(&machine.lan1);
    let peers = turn.allow.iter().map(|subnet| subnet.net());
    turn.inside_clients_are_told == Told::Lan1
        || peers
            .into_iter()
            .any(|peer| inside.iter().any(|route| route.contains(&peer) || peer.contains(route)))
}

fn relay(
    site: &Site,
    machine: &SiteBox,
    material: &Material<'_>,
) -> Result<Option<RelaySlice>, DeriveError> {
    let Some(turn) = &site.turn else { return Ok(None) };
    let local = first_address(&machine.lan2)
        .ok_or_else(|| DeriveError::Address(machine.name.to_string()))?;
    let told = machine.lan2.told(local.is_ipv6()).unwrap_or(local);
    let allow: Vec<IpNet> = turn.allow.iter().map(|subnet| subnet.net()).collect();
    let inside_routes = routed(&machine.lan1);
    let told_lan1 = turn.inside_clients_are_told == Told::Lan1;
    let inside = match has_inside_face(turn, machine) {
        true => first_address(&machine.lan1).map(|local| Face { local, told: local }),
        false => None,
    };
    let mut listeners = Vec::new();
    for name in &turn.listen {
        for port in turn_ports(turn) {
            for address in sockets(machine, &[*name], port) {
                let inside = *name == InterfaceName::Lan1;
                listeners.push(RelayListener { address, transport: Transport::Udp, inside });
            }
        }
    }
    let mut users = Vec::new();
    for user in &turn.users {
        let password = material.password(&user.password)?;
        users.push(RelayUser { name: user.name.to_string(), password });
    }
    Ok(Some(RelaySlice {
        realm: turn.realm.to_string(),
        users,
        listeners,
        media_ports: (turn.media_ports.first(), turn.media_ports.last()),
        outside: Face { local, told },
        inside,
        inside_clients_are_told_lan1: told_lan1,
        outside_routes: routed(&machine.lan2)
            .into_iter()
            .filter(|net| inside_routes.iter().any(|inside| inside.contains(net)))
            .collect(),
        inside_routes,
        allow,
        allow_outside: turn.allow_outside.iter().map(|subnet| subnet.net()).collect(),
        own_addresses: own_addresses(machine),
    }))
}

fn proxy(
    site: &Site,
    machine: &SiteBox,
    material: &Material<'_>,
) -> Result<Option<ProxySlice>, DeriveError> {
    let Some(proxy) = &site.proxy else { return Ok(None) };
    let mut certificates = Vec::new();
    for certificate in &site.certificates {
        let name = certificate.name.to_string();
        let key = match &certificate.key {
            KeySource::Secret(secret) => material.text(secret)?,
            KeySource::OnBox => match material.facts.box_keys.get(&name) {
                Some(key) => key.clone(),
                None => return Err(DeriveError::BoxKey(name)),
            },
        };
        certificates.push(Certificate { name, chain: material.file(&certificate.chain)?, key });
    }
    let mut guests = Vec::new();
    for guest in &proxy.guests {
        let upstream = &guest.upstream;
        guests.push(Guest {
            host: guest.url.host().to_string(),
            url: guest.url.to_string(),
            upstream: Upstream {
                host: upstream.url.host().to_string(),
                port: upstream.url.port(),
                addresses: upstream.addresses.clone(),
                trust: match &upstream.trust {
                    Some(path) => Some(material.file(path)?),
                    None => None,
                },
                health: upstream.health.as_ref().map(ToString::to_string),
            },
        });
    }
    Ok(Some(ProxySlice {
        tls: sockets(machine, &proxy.listen, 443),
        redirect: match proxy.redirect_http {
            true => sockets(machine, &proxy.listen, 80),
            false => Vec::new(),
        },
        certificates,
        guests,
        hsts: proxy.hsts,
    }))
}

#[cfg(test)]
mod tests;
