//! What a generation asks of each process on the box: the contract between the planner, which
//! sees the site file, and the processes, which never do.
//!
//! `postern-unseal` makes these from a verified bundle. [`NetPlan`] goes to `postern-net`,
//! [`HostPlan`] to `postern-host`, each slice to the one serving process it is for. Only slices
//! carry secrets. All of them are values: equal plans mean nothing to do.
//!
//! A plan is made before anybody has looked at the machine, so it does not know what the kernel
//! calls a NIC. Where a name is needed, in a match of the ruleset or as a component of a sysctl's
//! path, it says `@lan1` or `@lan2`, and `postern-net` puts the kernel's name in.

pub(crate) mod derive;
mod ruleset;
mod sysctls;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Which accepted bundle: its serial and the SHA-256 of its payload in lower-case hex.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
pub(crate) struct Generation {
    /// The bundle's number; it only grows.
    pub(crate) serial: u64,
    /// SHA-256 over the bundle's payload, 64 hex digits.
    pub(crate) digest: String,
}

/// Everything `postern-net` makes true in the kernel.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetPlan {
    /// One per NIC of the site, LAN1 first.
    pub(crate) links: Vec<LinkPlan>,
    /// The whole ruleset of our own nftables table as `nft -j` commands (libnftables-json(5)).
    pub(crate) ruleset: serde_json::Value,
    /// Kernel settings below /proc/sys, path relative to it and value; sorted by path.
    pub(crate) sysctls: Vec<(String, String)>,
    /// Sockets to open and hold for serving processes.
    pub(crate) listeners: Vec<ListenerPlan>,
    /// Seconds until an unconfirmed generation is taken back, 10..=600.
    pub(crate) deadline: Duration,
}

/// One NIC: how to find it and what it carries.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinkPlan {
    /// The site's name for it, `lan1` or `lan2`; status speaks of it by this name.
    pub(crate) name: String,
    /// How to find it.
    pub(crate) select: LinkSelector,
    /// Addresses with prefix length.
    pub(crate) addresses: Vec<IpNet>,
    /// MTU in bytes; `None` leaves the driver's.
    pub(crate) mtu: Option<u32>,
    /// Routes, for the main table and for this NIC's own table.
    pub(crate) routes: Vec<RoutePlan>,
    /// Routing table for replies that leave by this NIC; a `from ADDRESS` rule per address leads
    /// there.
    pub(crate) table: u32,
}

/// How a NIC is found; never by the kernel's name or order.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LinkSelector {
    /// Permanent MAC address, lower case with colons.
    Mac(String),
    /// PCI path as below /sys/devices, such as `0000:00:03.0`.
    Pci(String),
}

/// A route; `to` is 0.0.0.0/0 or ::/0 for the default route.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct RoutePlan {
    /// Destination.
    pub(crate) to: IpNet,
    /// Next hop; `None` for a subnet on the link.
    pub(crate) via: Option<IpAddr>,
    /// Metric in the main table.
    pub(crate) metric: u32,
}

/// A listening or bound socket that `postern-net` opens and holds: every one below port 1024, and
/// every TCP listener of the proxy, so that no restart of it loses a connection attempt.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListenerPlan {
    /// Which unit may fetch it.
    pub(crate) owner: Service,
    /// Concrete address, never a wildcard.
    pub(crate) address: SocketAddr,
    /// TCP (listening) or UDP (bound).
    pub(crate) transport: Transport,
}

/// A serving process.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Service {
    /// `postern-relay`.
    Relay,
    /// `postern-proxy`.
    Proxy,
}

/// Transport protocol of a listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// What `postern-host` makes true.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct HostPlan {
    /// Transient host name, one label.
    pub(crate) host_name: String,
    /// DNS per NIC, by permanent MAC or PCI path.
    pub(crate) dns: Vec<LinkDns>,
    /// NTP servers, names or addresses.
    pub(crate) ntp: Vec<String>,
    /// Seconds since the epoch: the clock is never earlier than this.
    pub(crate) clock_floor: u64,
}

/// systemd-resolved's settings of one link (org.freedesktop.resolve1).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinkDns {
    /// Which NIC.
    pub(crate) select: LinkSelector,
    /// Servers in order.
    pub(crate) servers: Vec<IpAddr>,
    /// Search domain (false) or routing-only domain (true); `.` routes everything.
    pub(crate) domains: Vec<(String, bool)>,
    /// Whether names that match no domain are asked here.
    pub(crate) default_route: bool,
}

/// What `postern-relay` serves.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct RelaySlice {
    /// Realm of the long-term credentials (RFC 8489 section 9.2).
    pub(crate) realm: String,
    /// Long-term credentials.
    pub(crate) users: Vec<RelayUser>,
    /// Secrets of time-limited credentials; each of them counts, so that one can follow another.
    pub(crate) rest_secrets: Vec<RestSecret>,
    /// Where clients are served in plain; clients over TLS come through the proxy.
    pub(crate) listeners: Vec<RelayListener>,
    /// LAN1's addresses: who talks to one of these is an inside client.
    pub(crate) inside_addresses: Vec<IpAddr>,
    /// First and last port handed to allocations.
    pub(crate) media_ports: (u16, u16),
    /// The outside faces, at most one for each address family: LAN2's address and what guests are
    /// told (the static NAT address).
    pub(crate) outside: Vec<Face>,
    /// The inside faces, where inside peers of that family are declared: LAN1's address, told as
    /// it is. Each has an outside face of its family.
    pub(crate) inside: Vec<Face>,
    /// Whether inside clients are told the inside face in XOR-RELAYED-ADDRESS.
    pub(crate) inside_clients_are_told_lan1: bool,
    /// Destinations that leave by LAN1, longest prefix first; all else leaves by LAN2.
    pub(crate) inside_routes: Vec<IpNet>,
    /// Destinations that leave by LAN2 although a shorter prefix above covers them.
    pub(crate) outside_routes: Vec<IpNet>,
    /// Declared media servers.
    pub(crate) allow: Vec<IpNet>,
    /// Further outside peers that clients on an inside listener may reach.
    pub(crate) allow_outside: Vec<IpNet>,
    /// Every address of the box, the static NAT addresses included.
    pub(crate) own_addresses: Vec<IpAddr>,
    /// Whether TCP allocations are made (RFC 6062).
    pub(crate) tcp_relay: bool,
    /// Whether an allocation may follow its client to another address (RFC 8016).
    pub(crate) mobility: bool,
    /// How much of everything.
    pub(crate) quotas: RelayQuotas,
    /// Makes no new allocation; what is there goes on. `None`: the usual service.
    pub(crate) drain: Option<Drain>,
}

/// How much clients may have at once; `Default` is what a site gets that says nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct RelayQuotas {
    /// Allocations in all.
    pub(crate) total: usize,
    /// Allocations of one user name.
    pub(crate) per_user: usize,
    /// Allocations of one IPv4 address or IPv6 /64.
    pub(crate) per_source: usize,
    /// Permissions, and channels, of one allocation.
    pub(crate) per_allocation: usize,
    /// Octets per second that one allocation relays, each way; `None`: no limit.
    pub(crate) allocation_bytes_per_second: Option<u64>,
    /// Octets per second that all allocations together relay, each way; `None`: no limit.
    pub(crate) total_bytes_per_second: Option<u64>,
}

impl Default for RelayQuotas {
    fn default() -> Self {
        let quotas = turn::Quotas::default();
        Self {
            total: quotas.total,
            per_user: quotas.per_user,
            per_source: quotas.per_source,
            per_allocation: quotas.per_allocation,
            allocation_bytes_per_second: None,
            total_bytes_per_second: None,
        }
    }
}

/// New clients are to go elsewhere.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drain {
    /// ALTERNATE-SERVER (RFC 8489 section 10), at most one for each address family; empty: clients
    /// are refused without being sent anywhere.
    pub(crate) alternate: Vec<SocketAddr>,
}

/// A secret of time-limited credentials, which `Debug` leaves out.
#[derive(Clone, Eq, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct RestSecret(pub(crate) String);

impl fmt::Debug for RestSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestSecret").finish_non_exhaustive()
    }
}

/// A user name and its password, which `Debug` leaves out.
#[derive(Clone, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct RelayUser {
    /// USERNAME.
    pub(crate) name: String,
    /// The password in clear: TURN's key is derived from it.
    pub(crate) password: String,
}

impl fmt::Debug for RelayUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A TURN listener.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct RelayListener {
    /// Concrete local address and port.
    pub(crate) address: SocketAddr,
    /// UDP, or TCP in plain.
    pub(crate) transport: Transport,
    /// Whether its clients are inside ones (LAN1).
    pub(crate) inside: bool,
}

/// One address that an allocation's relay port has.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Face {
    /// The address that sockets bind.
    pub(crate) local: IpAddr,
    /// The address that the other end is told.
    pub(crate) told: IpAddr,
}

/// What `postern-proxy` serves.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProxySlice {
    /// TLS listeners of the guests' pages; `postern-net` holds these and all others below.
    pub(crate) tls: Vec<SocketAddr>,
    /// TLS listeners on which there is nothing but TURN.
    pub(crate) turn_tls: Vec<SocketAddr>,
    /// Whether the listeners in `tls` serve TURN too: each of them is on a NIC of TURN's then.
    pub(crate) turn_shared: bool,
    /// Plain listeners that only redirect; empty when the site says no redirect.
    pub(crate) redirect: Vec<SocketAddr>,
    /// Certificates, at least one; the first one answers a client that sends no SNI.
    pub(crate) certificates: Vec<Certificate>,
    /// Guest URLs and where each leads; empty when only TURN is served.
    pub(crate) guests: Vec<Guest>,
    /// `max-age` of Strict-Transport-Security; `None` sends no header.
    pub(crate) hsts: Option<Duration>,
}

/// A chain with its key, which `Debug` leaves out.
#[derive(Clone, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Certificate {
    /// The site's name for it.
    pub(crate) name: String,
    /// PEM, leaf first.
    pub(crate) chain: String,
    /// PEM, PKCS#8, PKCS#1 or SEC1.
    pub(crate) key: String,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A guest URL.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// Host name in lower case; what Host or :authority must be.
    pub(crate) host: String,
    /// The whole guest URL as configured, without a trailing slash.
    pub(crate) url: String,
    /// Where it leads.
    pub(crate) upstream: Upstream,
}

/// The web bridge behind a guest URL.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Upstream {
    /// The name that its certificate must carry.
    pub(crate) host: String,
    /// Port, 443 unless the URL says another.
    pub(crate) port: u16,
    /// Pinned addresses; empty: ask the resolver for `host`.
    pub(crate) addresses: Vec<IpAddr>,
    /// PEM roots it must chain to; `None`: the system's.
    pub(crate) trust: Option<String>,
    /// Path of the health check.
    pub(crate) health: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{Certificate, RelayUser, RestSecret};

    #[test]
    fn debug_shows_no_secret() {
        let user = RelayUser { name: "guest".to_owned(), password: "hush-1".to_owned() };
        let certificate =
            Certificate { name: "edge".to_owned(), chain: String::new(), key: "hush-2".to_owned() };

        let shown = format!("{user:?} {certificate:?} {:?}", RestSecret("hush-3".to_owned()));

        assert!(shown.contains("guest") && shown.contains("edge"), "{shown}");
        assert!(!shown.contains("hush"), "{shown}");
    }
}
