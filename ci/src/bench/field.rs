//! Three namespaces in a row: clients, the relay under test, peers.
//!
//! ```text
//! clients 10.9.0.0/16 ── c0 10.8.1.2 ── s0 10.8.1.1 │ s1 10.8.2.1 ── p0 10.8.2.2 peers
//! ```
//!
//! Every address of 10.9.0.0/16 is the client namespace's own, so that each client can have one;
//! those of 10.10.0.0/16 and ports below 16384 are nobody's, and answers to them are dropped.
//! Neighbours are permanent and IPv6 is off: nothing but the load crosses a link. What the relay
//! sends is dropped where it arrives, before the namespace's network stack costs the relay's core
//! anything; the counters of the link say how much came.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::lab::host::Host;

/// Where clients ask.
pub(crate) const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(OUTSIDE), 3478);
/// The relay's address toward clients.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 8, 1, 1);
/// The relay's address toward peers.
pub(crate) const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 8, 2, 1);
/// Where peers are.
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 8, 2, 2);
/// Ports that a relay may hand out: a whole range as sites have it.
pub(crate) const MEDIA_PORTS: (u16, u16) = (20_000, 64_999);

/// Link-layer addresses of `c0`, `s0`, `s1` and `p0`.
pub(super) const LINKS: [[u8; 6]; 4] =
    [[2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 2, 2]];

/// The namespaces; they go away with this value, whatever runs in them.
#[derive(Debug)]
pub(crate) struct Field {
    /// Where clients are.
    pub(crate) clients: Host,
    /// Where the relay is.
    pub(crate) server: Host,
    /// Where peers are.
    pub(crate) peers: Host,
}

impl Field {
    /// Makes the namespaces and their links; files go below `folder`.
    ///
    /// # Errors
    ///
    /// Shows which command failed; all of this takes root.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let field = Self {
            clients: Host::start("clients", folder)?,
            server: Host::start("server", folder)?,
            peers: Host::start("peers", folder)?,
        };
        for host in [&field.clients, &field.server, &field.peers] {
            host.run("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")?;
            host.run("echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter")?;
            host.run("echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter")?;
        }
        let [c0, s0, s1, p0] = LINKS.map(text);
        link(("c0", &c0, &field.clients), ("s0", &s0, &field.server))?;
        link(("p0", &p0, &field.peers), ("s1", &s1, &field.server))?;
        field.clients.run(&format!(
            "ip address add 10.8.1.2/24 dev c0; ip link set c0 up
             ip neighbour replace {OUTSIDE} lladdr {s0} nud permanent dev c0
             ip route add local 10.9.0.0/16 dev lo; ip route add 10.8.2.0/24 via {OUTSIDE}"
        ))?;
        field.server.run(&format!(
            "ip address add {OUTSIDE}/24 dev s0; ip link set s0 up
             ip neighbour replace 10.8.1.2 lladdr {c0} nud permanent dev s0
             ip route add 10.9.0.0/16 via 10.8.1.2; ip route add 10.10.0.0/16 via 10.8.1.2
             ip address add {INSIDE}/24 dev s1; ip link set s1 up
             ip neighbour replace {PEER} lladdr {p0} nud permanent dev s1"
        ))?;
        field.peers.run(&format!(
            "ip address add {PEER}/24 dev p0; ip link set p0 up
             ip neighbour replace {INSIDE} lladdr {s1} nud permanent dev p0"
        ))?;
        // ChannelData begins with the bits 01; replies to clients begin with 00 and pass.
        let media = "udp sport 3478 @th,64,8 & 0xc0 == 0x40 drop";
        let nobodys = "udp sport 3478 udp dport 0-16383 drop\nip daddr 10.10.0.0/16 drop";
        sink(&field.clients, "c0", &format!("{media}\n{nobodys}"))?;
        sink(&field.peers, "p0", "meta l4proto udp drop")?;
        Ok(field)
    }
}

fn link(one: (&str, &str, &Host), other: (&str, &str, &Host)) -> Result<()> {
    let end = |(name, address, host): (&str, &str, &Host)| {
        let init = host.init().to_string();
        ["name", name, "address", address, "netns", &init].map(str::to_owned)
    };
    let status = Command::new("ip")
        .args(["link", "add"])
        .args(end(one))
        .args(["type", "veth", "peer"])
        .args(end(other))
        .status()
        .context("cannot run ip(8)")?;
    ensure!(status.success(), "ip link add {}: {status}", one.0);
    Ok(())
}

fn sink(host: &Host, interface: &str, rule: &str) -> Result<()> {
    let file = host.directory().join("sink.nft");
    let hook = format!("type filter hook ingress device {interface} priority 0");
    fs::write(&file, format!("table netdev sink {{\nchain in {{\n{hook}\n{rule}\n}}\n}}\n"))?;
    host.run(&format!("nft -f '{}'", file.display()))?;
    Ok(())
}

fn text(address: [u8; 6]) -> String {
    address.map(|octet| format!("{octet:02x}")).join(":")
}
