//! DNS per NIC in systemd-resolved (org.freedesktop.resolve1(5)).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use zbus::Connection;
use zbus::OwnedObjectPath;
use zbus::fdo::DBusProxy;
use zbus::names::WellKnownName;
use zbus::proxy::CacheProperties;

use super::has_owner;
use crate::net::desired::find;
use crate::net::kernel::{Kernel, Link};
use crate::plan::LinkDns;

/// resolved's name on the bus.
const NAME: &str = "org.freedesktop.resolve1";
/// How long it may take to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// AF_INET and AF_INET6 as resolved wants them.
const INET: i32 = nix::libc::AF_INET;
const INET6: i32 = nix::libc::AF_INET6;

#[zbus::proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Resolver {
    fn get_link(&self, index: i32) -> zbus::Result<OwnedObjectPath>;
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, index: i32, servers: &[(i32, Vec<u8>)]) -> zbus::Result<()>;
    fn set_link_domains(&self, index: i32, domains: &[(String, bool)]) -> zbus::Result<()>;
    fn set_link_default_route(&self, index: i32, enable: bool) -> zbus::Result<()>;
    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, index: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, index: i32, mode: &str) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.resolve1.Link",
    default_service = "org.freedesktop.resolve1"
)]
trait ResolverLink {
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> zbus::Result<Vec<(i32, Vec<u8>)>>;
    #[zbus(property)]
    fn domains(&self) -> zbus::Result<Vec<(String, bool)>>;
    #[zbus(property)]
    fn default_route(&self) -> zbus::Result<bool>;
    #[zbus(property, name = "LLMNR")]
    fn llmnr(&self) -> zbus::Result<String>;
    #[zbus(property, name = "MulticastDNS")]
    fn multicast_dns(&self) -> zbus::Result<String>;
}

/// A link's settings, as resolved has them.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Settings {
    servers: Vec<(i32, Vec<u8>)>,
    domains: Vec<(String, bool)>,
    default_route: bool,
    llmnr: String,
    multicast_dns: String,
}

/// Sets what differs and returns how many calls that took.
pub(super) async fn apply(
    bus: &Connection,
    kernel: &Kernel,
    plan: &[LinkDns],
) -> anyhow::Result<u32> {
    if !plan.is_empty() {
        wait_for_resolver(bus).await?;
    }
    let links = kernel.links().await?;
    let resolver = ResolverProxy::new(bus).await?;
    let mut writes = 0;
    for wanted in plan {
        let link = find("DNS", &wanted.select, &links)?;
        let name = &link.name;
        writes += apply_link(bus, &resolver, link, wanted)
            .await
            .with_context(|| format!("systemd-resolved did not take the settings of {name}"))?;
    }
    Ok(writes)
}

/// Early in a boot the agent may be there before resolved is: has the bus start it, or waits for
/// whoever starts it.
async fn wait_for_resolver(bus: &Connection) -> anyhow::Result<()> {
    let daemon = DBusProxy::new(bus).await?;
    let started = Instant::now();
    // Not by asking the bus to start it first: for a name that has an owner and no service file
    // that is an error too.
    while !has_owner(bus, NAME).await? {
        match daemon.start_service_by_name(WellKnownName::try_from(NAME)?, 0).await {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(error).context("systemd-resolved is not there");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    Ok(())
}

async fn apply_link(
    bus: &Connection,
    resolver: &ResolverProxy<'_>,
    link: &Link,
    wanted: &LinkDns,
) -> anyhow::Result<u32> {
    let index = i32::try_from(link.index)?;
    let now = settings(bus, resolver, index).await?;
    let servers: Vec<(i32, Vec<u8>)> = wanted.servers.iter().map(bytes).collect();
    let mut writes = 0;
    let name = &link.name;
    if now.servers != servers {
        tracing::info!(link = name, "Setting DNS servers");
        resolver.set_link_dns(index, &servers).await?;
        writes += 1;
    }
    if now.domains != wanted.domains {
        tracing::info!(link = name, "Setting DNS domains");
        resolver.set_link_domains(index, &wanted.domains).await?;
        writes += 1;
    }
    if now.default_route != wanted.default_route {
        tracing::info!(link = name, default_route = wanted.default_route, "Setting DNS route");
        resolver.set_link_default_route(index, wanted.default_route).await?;
        writes += 1;
    }
    if now.llmnr != "no" {
        resolver.set_link_llmnr(index, "no").await?;
        writes += 1;
    }
    if now.multicast_dns != "no" {
        resolver.set_link_multicast_dns(index, "no").await?;
        writes += 1;
    }
    Ok(writes)
}

/// What resolved has for each Ethernet link now.
pub(super) async fn observe(bus: &Connection, kernel: &Kernel) -> anyhow::Result<Value> {
    let resolver = ResolverProxy::new(bus).await?;
    let mut found = Vec::new();
    for link in kernel.links().await? {
        let now = settings(bus, &resolver, i32::try_from(link.index)?).await?;
        let servers: Vec<Option<IpAddr>> = now.servers.iter().map(address).collect();
        let domain = |(name, route_only): &(String, bool)| {
            if *route_only { format!("~{name}") } else { name.clone() }
        };
        found.push(json!({
            "kernel-name": link.name,
            "servers": servers,
            "domains": now.domains.iter().map(domain).collect::<Vec<_>>(),
            "default-route": now.default_route,
            "llmnr": now.llmnr,
            "multicast-dns": now.multicast_dns,
        }));
    }
    Ok(Value::Array(found))
}

async fn settings(
    bus: &Connection,
    resolver: &ResolverProxy<'_>,
    index: i32,
) -> anyhow::Result<Settings> {
    let path = resolver.get_link(index).await?;
    let link = ResolverLinkProxy::builder(bus)
        .path(path)
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    Ok(Settings {
        servers: link.dns().await?,
        domains: link.domains().await?,
        default_route: link.default_route().await?,
        llmnr: link.llmnr().await?,
        multicast_dns: link.multicast_dns().await?,
    })
}

fn bytes(address: &IpAddr) -> (i32, Vec<u8>) {
    match address {
        IpAddr::V4(ip) => (INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (INET6, ip.octets().to_vec()),
    }
}

fn address((_, bytes): &(i32, Vec<u8>)) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok()
}
