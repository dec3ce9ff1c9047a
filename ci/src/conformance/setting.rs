//! Where the suite plays: three hosts, and the servers under test on the middle one.
//!
//! ```text
//!  outside                                         edge                       inside
//!  10.88.246.10 guest    192.168.245.1 ------ lan2      lan1 ------ 172.16.85.180 media server
//!  10.88.246.20 media server                  .61       .168        172.16.85.190 colleague
//!  10.88.246.30 stranger     1:1 NAT, 10.88.246.156 is lan2
//! ```
//!
//! The static NAT is stateless: the outside host rewrites addresses of packets on its link, so
//! nothing but the server decides what passes. IPv6 has no NAT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Peer as Tested;
use super::case::{Fault, Outcome};
use super::client::Client;
use super::coturn;
use super::peer::Peer;
use crate::lab::host::{Daemon, Host};
use crate::lab::topology::link;
use crate::relay_server::RelaySettings;

/// The static NAT address in front of LAN2.
pub(super) const NAT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 246, 156));
/// The edge's outside address.
pub(super) const LAN2: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 245, 61));
/// The edge's inside address.
pub(super) const LAN1: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 16, 85, 168));
/// The edge's IPv6 addresses.
pub(super) const LAN2_V6: IpAddr =
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xDB8, 0x245, 0, 0, 0, 0, 0x61));
pub(super) const LAN1_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xFD00, 0x85, 0, 0, 0, 0, 0, 0x168));

/// A server under test; they differ in their settings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Server {
    /// Everything on, room for everybody.
    Main,
    /// RFC 6062 and RFC 8016 off; a user has two allocations, an allocation three peers.
    Frugal,
    /// Four ports.
    Tiny,
    /// Takes no new allocations.
    Draining,
    /// Time-limited credentials.
    Rest,
    /// Inside clients are told LAN1.
    ToldLan1,
    /// Relays IPv4 only.
    OneFamily,
}

impl Server {
    pub(super) const ALL: [Self; 7] = [
        Self::Main,
        Self::Frugal,
        Self::Tiny,
        Self::Draining,
        Self::Rest,
        Self::ToldLan1,
        Self::OneFamily,
    ];

    /// Where it listens, on every address of the edge.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Main => 3478,
            Self::Frugal => 3578,
            Self::Tiny => 3678,
            Self::Draining => 3778,
            Self::Rest => 3878,
            Self::ToldLan1 => 3978,
            Self::OneFamily => 4078,
        }
    }

    /// The ports of its allocations.
    pub(super) fn media_ports(self) -> (u16, u16) {
        match self {
            Self::Main => (24_000, 26_999),
            Self::Frugal => (27_000, 27_499),
            Self::Tiny => (27_500, 27_503),
            Self::Draining => (27_600, 27_699),
            Self::Rest => (27_700, 27_799),
            Self::ToldLan1 => (27_800, 27_899),
            Self::OneFamily => (27_900, 27_999),
        }
    }

    /// Whether each case has one of its own: they count allocations.
    pub(super) fn is_exclusive(self) -> bool {
        matches!(self, Self::Frugal | Self::Tiny)
    }
}

/// Allocations of one user of [`Server::Frugal`].
pub(super) const FRUGAL_PER_USER: usize = 2;
/// Allocations of one source address at [`Server::Frugal`].
pub(super) const FRUGAL_PER_SOURCE: usize = 4;
/// Permissions, and channels, of one allocation of [`Server::Frugal`].
pub(super) const FRUGAL_PER_ALLOCATION: usize = 3;
/// The shared secrets of time-limited credentials.
pub(super) const REST_SECRETS: [&str; 2] = ["this-years-secret", "last-years-secret"];
/// Where [`Server::Draining`] sends new clients.
pub(super) const ALTERNATE: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 3478);
/// Who has accounts, with their passwords.
pub(super) const USERS: [(&str, &str); 3] =
    [("alice", "alice-password"), ("bob", "bob-password"), ("carol", "carol-password")];
/// REALM.
pub(super) const REALM: &str = "example.org";
/// Peers that every client may reach.
pub(super) const ALLOWED: [&str; 4] =
    ["172.16.85.180/31", "10.88.246.20/32", "fd00:85::180/128", "2001:db8:246::20/128"];

/// An address that something of the suite has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// A client outside.
    Guest,
    /// A declared peer outside.
    OuterMedia,
    /// An undeclared peer outside.
    Stranger,
    /// An undeclared peer outside whose address is a global one.
    Global,
    /// A declared peer inside.
    Media,
    /// Another one.
    SecondMedia,
    /// A client inside, no declared peer.
    Colleague,
    /// Somebody inside who claims the static NAT address.
    Impostor,
    /// The same with IPv6.
    GuestV6,
    OuterMediaV6,
    MediaV6,
    ColleagueV6,
}

impl Place {
    pub(super) fn ip(self) -> IpAddr {
        let text = match self {
            Self::Guest => "10.88.246.10",
            Self::OuterMedia => "10.88.246.20",
            Self::Stranger => "10.88.246.30",
            Self::Global => "11.0.0.20",
            Self::Media => "172.16.85.180",
            Self::SecondMedia => "172.16.85.181",
            Self::Colleague => "172.16.85.190",
            Self::Impostor => return NAT,
            Self::GuestV6 => "2001:db8:246::10",
            Self::OuterMediaV6 => "2001:db8:246::20",
            Self::MediaV6 => "fd00:85::180",
            Self::ColleagueV6 => "fd00:85::190",
        };
        text.parse().expect("an address")
    }

    fn is_inside(self) -> bool {
        let inside =
            [Self::Media, Self::SecondMedia, Self::Colleague, Self::Impostor, Self::MediaV6];
        inside.contains(&self) || self == Self::ColleagueV6
    }

    /// The address at which a client here finds the servers.
    fn server(self) -> IpAddr {
        match (self.is_inside(), self.ip().is_ipv4()) {
            (true, true) => LAN1,
            (true, false) => LAN1_V6,
            (false, true) => NAT,
            (false, false) => LAN2_V6,
        }
    }
}

/// Hosts and servers, running.
#[derive(Debug)]
pub(super) struct Setting {
    // Dropped in this order: servers before the hosts they run on, files last.
    servers: Vec<Daemon>,
    tested: Tested,
    outside: Host,
    inside: Host,
    edge: Host,
    /// The next local port of a client, below those that the kernel picks.
    ports: AtomicU16,
    _directory: tempfile::TempDir,
}

impl Setting {
    /// Builds the hosts and starts the servers `wanted` of `tested`.
    pub(super) fn start(tested: &Tested, wanted: &[Server]) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the suite makes network namespaces, which takes root: run it with sudo"
        );
        let directory = tempfile::Builder::new().prefix("postern-conformance-").tempdir()?;
        let path = directory.path();
        let outside = Host::start("outside", path)?;
        let inside = Host::start("inside", path)?;
        let edge = Host::start("edge", path)?;
        connect(&outside, &edge, &inside)?;
        let (servers, tested) = (Vec::new(), tested.clone());
        let ports = AtomicU16::new(10_000);
        let mut setting =
            Self { servers, tested, outside, inside, edge, ports, _directory: directory };
        for server in wanted {
            let started = setting.launch(*server)?;
            setting.servers.push(started);
        }
        for server in wanted {
            setting.wait_for(*server).with_context(|| setting.logs())?;
        }
        Ok(setting)
    }

    /// A server for one case, which ends with the value.
    pub(super) fn fresh(&self, server: Server) -> Result<Daemon> {
        let started = self.launch(server)?;
        self.wait_for(server).with_context(|| started.log())?;
        Ok(started)
    }

    fn launch(&self, server: Server) -> Result<Daemon> {
        match &self.tested {
            Tested::Ours { agent, shards } => start_ours(&self.edge, agent, *shards, server),
            Tested::Coturn => coturn::start(&self.edge, server),
        }
        .with_context(|| format!("{server:?} of {}", self.tested))
    }

    /// Waits until a server answers on every way to it.
    fn wait_for(&self, server: Server) -> Result<()> {
        let stage = Stage { setting: self, server };
        crate::lab::host::eventually(Duration::from_secs(10), || {
            // The NAT swallows the ICMP error that says "not yet", so it comes last.
            for place in [Place::ColleagueV6, Place::GuestV6, Place::Colleague, Place::Guest] {
                let answered = stage.client(place).and_then(|mut client| client.hears_nothing());
                answered.map_err(|fault| anyhow::anyhow!("{place:?}: {fault:?}"))?;
            }
            Ok(())
        })
        .with_context(|| format!("{server:?} does not answer"))
    }

    /// What the servers have printed.
    pub(super) fn logs(&self) -> String {
        let logs: Vec<String> = self.servers.iter().map(Daemon::log).collect();
        logs.join("\n")
    }

    /// Whether every server still runs.
    pub(super) fn is_alive(&mut self) -> bool {
        self.servers.iter_mut().all(Daemon::is_running)
    }

    fn host(&self, place: Place) -> &Host {
        if place.is_inside() { &self.inside } else { &self.outside }
    }
}

/// What a case sees: the hosts, and one server.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) setting: &'a Setting,
    pub(super) server: Server,
}

impl Stage<'_> {
    /// A client over UDP.
    pub(super) fn client(&self, place: Place) -> Outcome<Client> {
        let server = SocketAddr::new(place.server(), self.server.port());
        let socket = self.setting.host(place).in_network(|| {
            let socket = UdpSocket::bind((place.ip(), self.fresh_port()))?;
            socket.connect(server)?;
            std::io::Result::Ok(socket)
        })??;
        Client::udp(socket)
    }

    /// A client over TCP.
    pub(super) fn tcp_client(&self, place: Place) -> Outcome<Client> {
        let server = SocketAddr::new(place.server(), self.server.port());
        Client::tcp(self.stream(place, server)?)
    }

    /// A local port that nobody had before: a 5-tuple whose allocation still lives is not fresh.
    fn fresh_port(&self) -> u16 {
        self.setting.ports.fetch_add(1, Ordering::Relaxed)
    }

    /// A guest's client over UDP.
    pub(super) fn guest(&self) -> Outcome<Client> {
        self.client(Place::Guest)
    }

    /// An inside client over UDP.
    pub(super) fn colleague(&self) -> Outcome<Client> {
        self.client(Place::Colleague)
    }

    /// A UDP socket of a peer.
    pub(super) fn peer(&self, place: Place) -> Outcome<Peer> {
        self.peer_at(place, 0)
    }

    /// A UDP socket of a peer on that port.
    pub(super) fn peer_at(&self, place: Place, port: u16) -> Outcome<Peer> {
        let bind = || UdpSocket::bind((place.ip(), port));
        Peer::new(self.setting.host(place).in_network(bind)??)
    }

    /// A TCP connection from that place, with a local port of its own.
    pub(super) fn stream(&self, place: Place, to: SocketAddr) -> Outcome<TcpStream> {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket,
        };
        use std::os::fd::AsRawFd;
        let host = self.setting.host(place);
        let stream = host.in_network(|| {
            let family =
                if place.ip().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            let local = SocketAddr::new(place.ip(), self.fresh_port());
            bind(fd.as_raw_fd(), &SockaddrStorage::from(local))?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
            Ok::<_, nix::Error>(TcpStream::from(fd))
        })?;
        match stream {
            Err(nix::Error::ECONNREFUSED) => {
                Err(Fault::differs(format!("a TCP connection to {to}"), "refused"))
            }
            other => Ok(other?),
        }
    }

    /// A TCP listener of a peer.
    pub(super) fn listener(&self, place: Place) -> Outcome<std::net::TcpListener> {
        let bind = || std::net::TcpListener::bind((place.ip(), 0));
        Ok(self.setting.host(place).in_network(bind)??)
    }
}

fn start_ours(edge: &Host, agent: &Path, shards: usize, server: Server) -> Result<Daemon> {
    let users = USERS.map(|(name, password)| (name.to_owned(), password.to_owned()));
    let listeners = [LAN1, LAN2, LAN1_V6, LAN2_V6].map(|ip| SocketAddr::new(ip, server.port()));
    let frugal = server == Server::Frugal;
    let defaults = RelaySettings::default();
    let mut settings = RelaySettings {
        realm: REALM.to_owned(),
        users: users.to_vec(),
        rest_secrets: if server == Server::Rest {
            REST_SECRETS.map(str::to_owned).to_vec()
        } else {
            Vec::new()
        },
        udp: listeners.to_vec(),
        tcp: listeners.to_vec(),
        inside_addresses: vec![LAN1, LAN1_V6],
        media_ports: server.media_ports(),
        outside: vec![(LAN2, NAT), (LAN2_V6, LAN2_V6)],
        inside: vec![(LAN1, LAN1), (LAN1_V6, LAN1_V6)],
        inside_clients_are_told_lan1: server == Server::ToldLan1,
        inside_routes: vec!["172.16.85.0/24".to_owned(), "fd00:85::/64".to_owned()],
        allow: ALLOWED.map(str::to_owned).to_vec(),
        own_addresses: vec![LAN1, LAN2, NAT, LAN1_V6, LAN2_V6],
        tcp_relay: !frugal,
        mobility: !frugal,
        per_user: if frugal { FRUGAL_PER_USER } else { defaults.per_user },
        per_source: if frugal { FRUGAL_PER_SOURCE } else { defaults.per_source },
        per_allocation: if frugal { FRUGAL_PER_ALLOCATION } else { defaults.per_allocation },
        drain: (server == Server::Draining).then(|| vec![ALTERNATE]),
        ..defaults
    };
    if server == Server::OneFamily {
        settings.outside.truncate(1);
        settings.inside.truncate(1);
    }
    let options = ["--shards".to_owned(), shards.to_string()];
    settings.start(edge, agent, &format!("{server:?}"), &options)
}

fn connect(outside: &Host, edge: &Host, inside: &Host) -> Result<()> {
    link(edge, "lan2", outside, "eth0")?;
    link(edge, "lan1", inside, "eth0")?;
    let quiet = "for n in all default eth0 lan1 lan2; do
           f=/proc/sys/net/ipv4/conf/$n/rp_filter; test ! -e $f || echo 0 > $f
           f=/proc/sys/net/ipv6/conf/$n/accept_dad; test ! -e $f || echo 0 > $f
         done";
    for host in [outside, edge, inside] {
        host.run(quiet)?;
        // One case's closed ports must not use up the ICMP errors of another's.
        host.run("echo 0 > /proc/sys/net/ipv4/icmp_ratelimit")?;
    }
    edge.run(&format!(
        "ip addr add {LAN2}/24 dev lan2; ip addr add {LAN2_V6}/64 dev lan2 nodad
         ip addr add {LAN1}/24 dev lan1; ip addr add {LAN1_V6}/64 dev lan1 nodad
         ip link set lan1 up; ip link set lan2 up
         ip route add default via 192.168.245.1; ip route add default via 2001:db8:245::1"
    ))?;
    outside.run(&format!(
        "ip addr add 192.168.245.1/24 dev eth0; ip addr add 2001:db8:245::1/64 dev eth0 nodad
         for a in 10.88.246.10 10.88.246.20 10.88.246.30 11.0.0.20; do
           ip addr add $a/32 dev lo
         done
         for n in 10 20; do ip addr add 2001:db8:246::$n/128 dev lo nodad; done
         ip link set eth0 up; ip route add {NAT} via {LAN2} dev eth0"
    ))?;
    let nat = format!(
        "table ip nat11 {{
           chain in {{ type filter hook prerouting priority -300;
             iifname eth0 ip saddr {LAN2} ip saddr set {NAT}
           }}
           chain out {{ type route hook output priority -300;
             ip daddr {NAT} ip daddr set {LAN2}
           }}
         }}"
    );
    outside.run(&format!("nft -f - <<'RULES'\n{nat}\nRULES"))?;
    inside.run(&format!(
        "ip addr add 172.16.85.180/24 dev eth0; ip addr add 172.16.85.181/24 dev eth0
         ip addr add 172.16.85.190/24 dev eth0; ip addr add {NAT}/32 dev lo
         for n in 180 190; do ip addr add fd00:85::$n/64 dev eth0 nodad; done
         ip link set eth0 up
         ip route add default via {LAN1}; ip route add default via {LAN1_V6}"
    ))?;
    Ok(())
}
