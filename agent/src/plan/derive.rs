//! The planner: from a site to what each process of one box has to make true.
//!
//! Pure: the same site, files, secrets and facts give the same plans, so that equal bundles mean
//! nothing to do. Runs in `postern-unseal`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bundle::site::{
    Bandwidth, ConfirmMode, Interface, InterfaceMatch, InterfaceName, KeySource, Quota, Site,
    SiteBox, Told, Turn, TurnQuotas,
};
use ipnet::IpNet;

use super::{
    Certificate, Drain, Face, Guest, HostPlan, LinkDns, LinkPlan, LinkSelector, ListenerPlan,
    NetPlan, ProxySlice, RelayListener, RelayQuotas, RelaySlice, RelayUser, RestSecret, RoutePlan,
    Service, Transport, Upstream, ruleset, sysctls,
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
    /// For `postern-proxy`; `None`: the site has neither a web proxy nor TURN over TLS.
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

/// Sockets that `postern-net` holds: those below port 1024, which only it may open, and every TCP
/// listener of the proxy.
fn held_listeners(site: &Site, machine: &SiteBox) -> Vec<ListenerPlan> {
    let plan =
        |owner, transport| move |address: SocketAddr| ListenerPlan { owner, address, transport };
    let proxy = ProxyListeners::of(site, machine);
    let web = [proxy.tls, proxy.redirect, proxy.turn_tls].concat();
    let mut held: Vec<ListenerPlan> =
        web.into_iter().map(plan(Service::Proxy, Transport::Tcp)).collect();
    for listener in relay_listeners(site, machine) {
        if listener.address.port() < 1024 {
            held.push(plan(Service::Relay, listener.transport)(listener.address));
        }
    }
    held
}

/// Where the proxy listens.
#[derive(Default)]
struct ProxyListeners {
    tls: Vec<SocketAddr>,
    redirect: Vec<SocketAddr>,
    turn_tls: Vec<SocketAddr>,
    turn_shared: bool,
}

impl ProxyListeners {
    /// Port 443 of a NIC is shared where both guests and TURN are served there; everywhere else a
    /// TLS port of TURN is TURN's alone.
    fn of(site: &Site, machine: &SiteBox) -> Self {
        let mut listeners = Self::default();
        if let Some(proxy) = &site.proxy {
            listeners.tls = sockets(machine, &proxy.listen, 443);
            if proxy.redirect_http {
                listeners.redirect = sockets(machine, &proxy.listen, 80);
            }
        }
        if let Some(turn) = &site.turn {
            for port in &turn.tls_ports {
                let all = sockets(machine, &turn.listen, port.get()).into_iter();
                let (shared, alone): (Vec<_>, Vec<_>) =
                    all.partition(|address| listeners.tls.contains(address));
                listeners.turn_shared |= !shared.is_empty();
                listeners.turn_tls.extend(alone);
            }
        }
        listeners
    }
}

/// Where the relay itself listens: UDP and TCP on TURN's port, and UDP 443 if the site says so.
fn relay_listeners(site: &Site, machine: &SiteBox) -> Vec<RelayListener> {
    let Some(turn) = &site.turn else { return Vec::new() };
    let mut listeners = Vec::new();
    for name in &turn.listen {
        let inside = *name == InterfaceName::Lan1;
        let mut listen = |transport, port| {
            let addresses = sockets(machine, &[*name], port).into_iter();
            listeners.extend(addresses.map(|address| RelayListener { address, transport, inside }));
        };
        for port in udp_ports(turn) {
            listen(Transport::Udp, port);
        }
        listen(Transport::Tcp, turn.port.get());
    }
    listeners
}

/// The UDP ports on which TURN is served.
pub(super) fn udp_ports(turn: &Turn) -> Vec<u16> {
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

/// Every address that is ours, the static NAT addresses included.
pub(super) fn own_addresses(machine: &SiteBox) -> Vec<IpAddr> {
    let nics = [&machine.lan1, &machine.lan2];
    let carried = nics.into_iter().flat_map(|nic| nic.addresses.iter().map(|a| a.address()));
    let mut own: Vec<IpAddr> =
        carried.chain(nics.into_iter().flat_map(|n| n.static_nat.clone())).collect();
    own.sort();
    own.dedup();
    own
}

/// Whether allocations of a family have a port on LAN1 too: for inside peers, or because inside
/// clients are told it.
pub(super) fn has_inside_face(turn: &Turn, machine: &SiteBox, v6: bool) -> bool {
    let inside = routed(&machine.lan1);
    let peers = turn.allow.iter().map(|subnet| subnet.net());
    let mut peers = peers.filter(|peer| peer.addr().is_ipv6() == v6);
    let wanted = turn.inside_clients_are_told == Told::Lan1
        || peers.any(|peer| inside.iter().any(|net| net.contains(&peer) || peer.contains(net)));
    wanted && machine.lan1.first_address(v6).is_some() && machine.lan2.first_address(v6).is_some()
}

/// The faces of allocations, IPv4 before IPv6: outside, inside.
fn faces(turn: &Turn, machine: &SiteBox) -> (Vec<Face>, Vec<Face>) {
    let (mut outside, mut inside) = (Vec::new(), Vec::new());
    for v6 in [false, true] {
        if let Some(local) = machine.lan2.first_address(v6) {
            outside.push(Face { local, told: machine.lan2.told(v6).unwrap_or(local) });
        }
        if let Some(local) = machine.lan1.first_address(v6)
            && has_inside_face(turn, machine, v6)
        {
            inside.push(Face { local, told: local });
        }
    }
    (outside, inside)
}

fn relay(
    site: &Site,
    machine: &SiteBox,
    material: &Material<'_>,
) -> Result<Option<RelaySlice>, DeriveError> {
    let Some(turn) = &site.turn else { return Ok(None) };
    let (outside, inside) = faces(turn, machine);
    if outside.is_empty() {
        return Err(DeriveError::Address(machine.name.to_string()));
    }
    let inside_routes = routed(&machine.lan1);
    let mut users = Vec::new();
    for user in &turn.users {
        let password = material.password(&user.password)?;
        users.push(RelayUser { name: user.name.to_string(), password });
    }
    let secrets = turn.rest_secrets.iter().map(|name| material.password(name).map(RestSecret));
    Ok(Some(RelaySlice {
        realm: turn.realm.to_string(),
        users,
        rest_secrets: secrets.collect::<Result<_, _>>()?,
        listeners: relay_listeners(site, machine),
        inside_addresses: machine.lan1.addresses.iter().map(|own| own.address()).collect(),
        media_ports: (turn.media_ports.first(), turn.media_ports.last()),
        outside,
        inside,
        inside_clients_are_told_lan1: turn.inside_clients_are_told == Told::Lan1,
        outside_routes: routed(&machine.lan2)
            .into_iter()
            .filter(|net| inside_routes.iter().any(|inside| inside.contains(net)))
            .collect(),
        inside_routes,
        allow: turn.allow.iter().map(|subnet| subnet.net()).collect(),
        allow_outside: turn.allow_outside.iter().map(|subnet| subnet.net()).collect(),
        own_addresses: own_addresses(machine),
        tcp_relay: turn.tcp_relay,
        mobility: turn.mobility,
        quotas: quotas(&turn.quotas),
        drain: turn.drain.as_ref().filter(|drain| drain.covers(&machine.name)).map(|drain| Drain {
            alternate: drain
                .alternate_servers
                .iter()
                .map(|server| {
                    SocketAddr::new(server.address, server.port.unwrap_or(turn.port).get())
                })
                .collect(),
        }),
    }))
}

fn quotas(site: &TurnQuotas) -> RelayQuotas {
    let usual = RelayQuotas::default();
    let count = |quota: Option<Quota>, usual: usize| {
        quota.and_then(|quota| usize::try_from(quota.get()).ok()).unwrap_or(usual)
    };
    RelayQuotas {
        total: count(site.total, usual.total),
        per_user: count(site.per_user, usual.per_user),
        per_source: count(site.per_source, usual.per_source),
        per_allocation: count(site.per_allocation, usual.per_allocation),
        allocation_bytes_per_second: site.allocation_bandwidth.map(Bandwidth::bytes_per_second),
        total_bytes_per_second: site.total_bandwidth.map(Bandwidth::bytes_per_second),
    }
}

fn proxy(
    site: &Site,
    machine: &SiteBox,
    material: &Material<'_>,
) -> Result<Option<ProxySlice>, DeriveError> {
    let listeners = ProxyListeners::of(site, machine);
    if listeners.tls.is_empty() && listeners.turn_tls.is_empty() {
        return Ok(None);
    }
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
    for guest in site.proxy.iter().flat_map(|proxy| &proxy.guests) {
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
        tls: listeners.tls,
        turn_tls: listeners.turn_tls,
        turn_shared: listeners.turn_shared,
        redirect: listeners.redirect,
        certificates,
        guests,
        hsts: site.proxy.as_ref().and_then(|proxy| proxy.hsts),
    }))
}

#[cfg(test)]
mod tests;
