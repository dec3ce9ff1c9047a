//! The reference topology: Internet, firewall with 1:1 NAT, edge with two NICs, inside.
//!
//! ```text
//!  inet                     firewall                    edge                 inside
//!  10.88.246.10  guest      10.88.246.1                                      172.16.85.180  conference
//!  10.88.246.210 DNS   ---- 10.88.246.156 -1:1-> ------ lan2      lan1 ----- 172.16.85.162  DNS
//!                           192.168.245.1         .61 192.168.245 172.16.85.168
//!                                                                            172.16.85.1    router
//!                                                                            172.16.84.124  client PC
//! ```
//!
//! The firewall forwards nothing that is not listed, and reflects nothing: a packet from the edge
//! to its own public address gets no answer.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use super::host::Host;

/// The address of the guest's computer.
pub const GUEST: &str = "10.88.246.10";
/// The external name server.
pub const EXTERNAL_DNS: &str = "10.88.246.210";
/// The static NAT address in front of LAN2.
pub const STATIC_NAT: &str = "10.88.246.156";
/// The edge's LAN1 address.
pub const LAN1: &str = "172.16.85.168";
/// The edge's LAN2 address.
pub const LAN2: &str = "192.168.245.61";
/// The conference server.
pub const CONFERENCE: &str = "172.16.85.180";
/// The internal name server.
pub const INTERNAL_DNS: &str = "172.16.85.162";
/// MAC address of LAN1, as the reference site file matches it.
pub const LAN1_MAC: &str = "52:54:00:00:01:68";
/// MAC address of LAN2.
pub const LAN2_MAC: &str = "52:54:00:00:02:61";

/// Whether the inner firewall lets the edge's media ports and the conference talk directly.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InnerPath {
    /// The conference is a declared peer: media range open both ways.
    DeclaredPeer,
    /// Only the TURN port of LAN1 is open; media must go from relay to relay.
    TurnOnly,
}

/// What the edge's two NICs are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Nics {
    /// veth links named `lan1` and `lan2` in the edge's namespace.
    Veth,
    /// Tap devices `tap1` and `tap2` for a virtual machine, bridged to the two networks.
    Tap,
}

/// The four hosts.
#[derive(Debug)]
pub struct Topology {
    /// The Internet: guest and external DNS.
    pub inet: Host,
    /// The outer firewall.
    pub firewall: Host,
    /// The edge, or the place where its virtual machine runs.
    pub edge: Arc<Host>,
    /// The internal network: conference and internal DNS.
    pub inside: Host,
}

impl Topology {
    /// Builds hosts, links, addresses and firewall rules.
    ///
    /// # Errors
    ///
    /// Says which command failed on which host.
    pub fn start(directory: &Path, nics: Nics, inner: InnerPath) -> Result<Self> {
        let topology = Self {
            inet: Host::start("inet", directory)?,
            firewall: Host::start("firewall", directory)?,
            edge: Arc::new(Host::start("edge", directory)?),
            inside: Host::start("inside", directory)?,
        };
        topology.connect(nics)?;
        topology.firewall.run(&format!("nft -f - <<'RULES'\n{}\nRULES", firewall_rules()))?;
        topology.set_inner_path(inner)?;
        Ok(topology)
    }

    fn connect(&self, nics: Nics) -> Result<()> {
        let Self { inet, firewall, edge, inside } = self;
        link(inet, "eth0", firewall, "outside")?;
        inet.run(&format!(
            "ip addr add {GUEST}/24 dev eth0; ip addr add {EXTERNAL_DNS}/24 dev eth0
             ip link set eth0 up"
        ))?;
        let (lan1, lan2) = match nics {
            Nics::Veth => ("lan1", "lan2"),
            Nics::Tap => ("port1", "port2"),
        };
        link(edge, lan2, firewall, "dmz")?;
        link(edge, lan1, inside, "eth0")?;
        firewall.run(&format!(
            "ip addr add 10.88.246.1/24 dev outside; ip addr add {STATIC_NAT}/32 dev outside
             ip addr add 192.168.245.1/24 dev dmz
             ip link set outside up; ip link set dmz up
             sysctl -qw net.ipv4.ip_forward=1"
        ))?;
        inside.run(&format!(
            "ip addr add {CONFERENCE}/24 dev eth0; ip addr add {INTERNAL_DNS}/24 dev eth0
             ip addr add 172.16.85.1/24 dev eth0; ip addr add 172.16.84.124/32 dev lo
             ip link set eth0 up"
        ))?;
        match nics {
            Nics::Veth => edge.run(&format!(
                "ip link set lan1 address {LAN1_MAC}; ip link set lan2 address {LAN2_MAC}"
            ))?,
            Nics::Tap => edge.run(
                "for n in 1 2; do
                   ip link add br$n type bridge; ip tuntap add dev tap$n mode tap
                   ip link set port$n master br$n; ip link set tap$n master br$n
                   ip link set port$n up; ip link set tap$n up; ip link set br$n up
                 done",
            )?,
        };
        Ok(())
    }

    /// Opens or closes the path between the edge's media range and the conference.
    ///
    /// # Errors
    ///
    /// Returns what nft(8) said.
    pub fn set_inner_path(&self, inner: InnerPath) -> Result<()> {
        let media = match inner {
            InnerPath::DeclaredPeer => "",
            InnerPath::TurnOnly => {
                "udp sport 24000-29999 counter drop; udp dport 24000-29999 counter drop"
            }
        };
        let rules = format!(
            "add table inet inner
             delete table inet inner
             table inet inner {{
               chain input {{ type filter hook input priority 0;
                 ip saddr {LAN1} meta l4proto udp jump media
               }}
               chain output {{ type filter hook output priority 0;
                 ip daddr {LAN1} meta l4proto udp jump media
               }}
               chain media {{
                 {media}
               }}
             }}"
        );
        self.inside.run(&format!("nft -f - <<'RULES'\n{rules}\nRULES"))?;
        Ok(())
    }
}

/// Joins two hosts by a pair of virtual Ethernet links.
///
/// # Errors
///
/// Says which command failed.
pub fn link(a: &Host, a_name: &str, b: &Host, b_name: &str) -> Result<()> {
    // A host's own PID namespace does not know the other's PID, so ip(8) is entered by --net only.
    let a_pid = a.init().to_string();
    let b_pid = b.init().to_string();
    let status = std::process::Command::new("nsenter")
        .args(["--target", &a_pid, "--net", "ip", "link", "add", a_name, "type", "veth"])
        .args(["peer", "name", b_name, "netns", &b_pid])
        .status()?;
    anyhow::ensure!(status.success(), "ip link add {a_name} peer {b_name}: {status}");
    // Checksums are filled in by hardware that is not there; a virtual machine's driver minds.
    a.run(&format!("ethtool -K {a_name} tx off >/dev/null 2>&1 || true"))?;
    b.run(&format!("ethtool -K {b_name} tx off >/dev/null 2>&1 || true"))?;
    Ok(())
}

fn firewall_rules() -> String {
    format!(
        "table inet outer {{
           chain prerouting {{ type nat hook prerouting priority dstnat;
             iifname outside ip daddr {STATIC_NAT} dnat ip to {LAN2}
           }}
           chain postrouting {{ type nat hook postrouting priority srcnat;
             oifname outside ip saddr {LAN2} snat ip to {STATIC_NAT}
           }}
           chain forward {{ type filter hook forward priority 0; policy drop;
             ct state established,related accept
             iifname outside oifname dmz tcp dport {{ 80, 443, 3478, 5349, 24000-29999 }} accept
             iifname outside oifname dmz udp dport {{ 443, 3478, 24000-29999 }} accept
             iifname dmz oifname outside udp sport 24000-29999 accept
             iifname dmz oifname outside tcp sport 24000-29999 accept
             iifname dmz oifname outside udp dport {{ 53, 123 }} accept
             iifname dmz oifname outside tcp dport 53 accept
             meta l4proto icmp accept
             counter
           }}
           chain input {{ type filter hook input priority 0; policy drop;
             meta l4proto icmp accept
             ct state established,related accept
           }}
         }}"
    )
}
