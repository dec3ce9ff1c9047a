//! The ruleset against real packets, in three network namespaces: inside - edge - outside. Needs
//! root, `unshare`, `nsenter`, `ip` and `nft`.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bundle::site::Site;
use nix::sched::{CloneFlags, setns};

use super::super::sysctls::sysctls;
use super::*;

const OCTAVIO: &str = include_str!("../../../../docs/octavio.site.yaml");
const SOON: Duration = Duration::from_millis(400);

/// A network namespace, kept by a sleeping process of ours.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "120"]).spawn().unwrap();
        let namespace = Self(child);
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        let begun = Instant::now();
        while std::fs::read_link(namespace.path()).is_ok_and(|theirs| theirs == ours) {
            assert!(begun.elapsed() < Duration::from_secs(20), "no namespace: is this root?");
            std::thread::sleep(Duration::from_millis(5));
        }
        namespace.run("ip", "link set lo up", "");
        namespace
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Runs a program in it.
    fn run(&self, program: &str, arguments: &str, input: &str) {
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.path()))
            .arg(program)
            .args(arguments.split_whitespace())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{program} {arguments}");
    }

    /// Runs code in it, on a thread of its own.
    fn within<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                code()
            });
            thread.join().unwrap()
        })
    }

    fn udp(&self, address: &str) -> UdpSocket {
        let socket = self.within(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    }

    fn tcp(&self, address: &str) -> TcpListener {
        self.within(|| TcpListener::bind(address).unwrap())
    }

    fn connects(&self, address: &str) -> bool {
        let address: SocketAddr = address.parse().unwrap();
        self.within(|| TcpStream::connect_timeout(&address, SOON).is_ok())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

struct Lab {
    inside: Namespace,
    edge: Namespace,
    outside: Namespace,
}

/// The reference site's addresses, ruleset and settings.
fn lab() -> Lab {
    lab_of(OCTAVIO)
}

/// The same for a changed site.
fn lab_of(site: &str) -> Lab {
    let lab = Lab { inside: Namespace::new(), edge: Namespace::new(), outside: Namespace::new() };
    for (nic, own, far, theirs) in [
        ("eth0", "172.16.85.168/24", &lab.inside, "172.16.85.180/24"),
        ("eth1", "192.168.245.61/24", &lab.outside, "192.168.245.1/24"),
    ] {
        let pid = far.0.id();
        lab.edge.run("ip", &format!("link add {nic} type veth peer name eth0 netns {pid}"), "");
        lab.edge.run("ip", &format!("address add {own} dev {nic}"), "");
        lab.edge.run("ip", &format!("link set {nic} up"), "");
        far.run("ip", &format!("address add {theirs} dev eth0"), "");
        far.run("ip", "link set eth0 up", "");
    }
    lab.edge.run("ip", "route add default via 192.168.245.1", "");
    lab.inside.run("ip", "route add default via 172.16.85.168", "");
    lab.outside.run("ip", "route add 172.16.85.0/24 via 192.168.245.61", "");
    // What a forger would put in front of LAN2, and a guest from afar.
    lab.outside.run("ip", "address add 172.16.84.9/32 dev eth0", "");
    lab.outside.run("ip", "address add 198.51.100.9/32 dev eth0", "");

    let site = Site::parse(site, "octavio.site.yaml").unwrap();
    let machine = site.machine("vcse").unwrap();
    let real = |text: &str| text.replace("@lan1", "eth0").replace("@lan2", "eth1");
    lab.edge.within(|| {
        for (path, value) in sysctls(&site, machine) {
            // The sizes of socket buffers belong to the machine, not to a namespace.
            if !path.starts_with("net/core/") {
                std::fs::write(format!("/proc/sys/{}", real(&path)), value).unwrap();
            }
        }
    });
    lab.edge.run("/usr/sbin/nft", "-j -f -", &real(&ruleset(&site, machine).to_string()));
    lab
}

fn arrives(from: &UdpSocket, to: &str, at: &UdpSocket) -> bool {
    from.send_to(b"hello", to).unwrap();
    match at.recv_from(&mut [0; 16]) {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn datagrams_pass_to_turn_and_media_ports_only_and_are_never_tracked() {
    let lab = lab();
    let guest = lab.outside.udp("192.168.245.1:5000");
    let afar = lab.outside.udp("198.51.100.9:5000");
    for (port, open) in [
        (3478, true),
        (443, true),
        (24000, true),
        (29999, true),
        (23999, false),
        (30000, false),
        (53, false),
    ] {
        let address = format!("192.168.245.61:{port}");
        let socket = lab.edge.udp(&address);

        assert_eq!(arrives(&guest, &address, &socket), open, "{port}");
        assert_eq!(arrives(&afar, &address, &socket), open, "{port} from afar");
        if open {
            assert!(arrives(&socket, "192.168.245.1:5000", &guest), "{port}: no answer");
        }
    }

    let tracked = lab
        .edge
        .within(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap());
    assert_eq!(tracked.trim(), "0");
}

#[test]
fn nothing_from_outside_has_an_inside_source() {
    let lab = lab();
    let forger = lab.outside.udp("172.16.84.9:5000");
    let socket = lab.edge.udp("192.168.245.61:3478");

    assert!(!arrives(&forger, "192.168.245.61:3478", &socket));
}

#[test]
fn a_nic_takes_only_what_is_for_its_own_address() {
    let lab = lab();
    let guest = lab.outside.udp("192.168.245.1:5000");
    let server = lab.inside.udp("172.16.85.180:5000");
    let lan1 = lab.edge.udp("172.16.85.168:3478");
    let lan2 = lab.edge.udp("192.168.245.61:3478");

    assert!(!arrives(&guest, "172.16.85.168:3478", &lan1));
    assert!(!arrives(&server, "192.168.245.61:3478", &lan2));
    assert!(arrives(&server, "172.16.85.168:3478", &lan1));
}

#[test]
fn the_box_forwards_nothing() {
    let lab = lab();
    let server = lab.inside.udp("172.16.85.180:5000");
    let guest = lab.outside.udp("192.168.245.1:5000");
    lab.edge.within(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());

    assert!(!arrives(&server, "192.168.245.1:5000", &guest));
    assert!(!arrives(&guest, "172.16.85.180:5000", &server));
}

#[test]
fn connections_are_taken_where_the_site_serves() {
    let lab = lab();
    let ports = [80, 443, 445, 3478, 5349, 8443, 24000];
    let listeners = |address: &str| ports.map(|port| lab.edge.tcp(&format!("{address}:{port}")));
    let held = (listeners("172.16.85.168"), listeners("192.168.245.61"));

    let outside = ports.map(|port| lab.outside.connects(&format!("192.168.245.61:{port}")));
    let inside = ports.map(|port| lab.inside.connects(&format!("172.16.85.168:{port}")));

    assert_eq!(outside, [true, true, false, true, true, false, false]);
    assert_eq!(inside, [false, true, true, true, true, false, false]);
    drop(held);
}

#[test]
fn peers_of_tcp_allocations_connect_on_either_face_and_are_connected_to() {
    let lab = lab_of(&OCTAVIO.replace("  udp-443: true", "  udp-443: true\n  tcp-relay: true"));
    let ports = [23999, 24000, 29999, 30000];
    let listeners = |address: &str| ports.map(|port| lab.edge.tcp(&format!("{address}:{port}")));
    let held = (listeners("172.16.85.168"), listeners("192.168.245.61"));
    let peer = lab.outside.tcp("192.168.245.1:5000");

    let outside = ports.map(|port| lab.outside.connects(&format!("192.168.245.61:{port}")));
    let inside = ports.map(|port| lab.inside.connects(&format!("172.16.85.168:{port}")));

    assert_eq!(outside, [false, true, true, false]);
    assert_eq!(inside, [false, true, true, false]);
    assert!(lab.edge.connects("192.168.245.1:5000"));
    drop((held, peer));
}

#[test]
fn without_inside_peers_no_media_port_is_open_on_lan1() {
    let site = OCTAVIO.replace("allow: [172.16.85.180/32]", "allow: []");
    let lab = lab_of(&site.replace("  udp-443: true", "  udp-443: true\n  tcp-relay: true"));
    let server = lab.inside.udp("172.16.85.180:5000");
    let socket = lab.edge.udp("172.16.85.168:24000");
    let listener = lab.edge.tcp("172.16.85.168:24000");

    assert!(!arrives(&server, "172.16.85.168:24000", &socket));
    assert!(!lab.inside.connects("172.16.85.168:24000"));
    drop(listener);
}

#[test]
fn turn_is_served_over_ipv6_as_over_ipv4() {
    let site = OCTAVIO
        .replace("[192.168.245.61/24]", "[192.168.245.61/24, 2001:db8::61/64]")
        .replace("gateway: 192.168.245.1", "gateway: [192.168.245.1, 2001:db8::1]");
    let lab = lab_of(&site);
    // Without duplicate address detection, which would take a second.
    lab.edge.run("ip", "address add 2001:db8::61/64 dev eth1 nodad", "");
    lab.outside.run("ip", "address add 2001:db8::1/64 dev eth0 nodad", "");
    let guest = lab.outside.udp("[2001:db8::1]:5000");
    let ports = [3478, 5349, 443, 24000];
    let held = ports.map(|port| lab.edge.tcp(&format!("[2001:db8::61]:{port}")));

    let connects = ports.map(|port| lab.outside.connects(&format!("[2001:db8::61]:{port}")));

    assert_eq!(connects, [true, true, true, false]);
    for port in [3478, 443, 24000] {
        let address = format!("[2001:db8::61]:{port}");
        assert!(arrives(&guest, &address, &lab.edge.udp(&address)), "{port}");
    }
    drop(held);
}

#[test]
fn an_icmp_error_reaches_the_untracked_socket_that_it_is_about() {
    let lab = lab();
    let socket = lab.edge.udp("192.168.245.61:24001");
    socket.connect("192.168.245.1:9").unwrap();

    socket.send(b"anybody?").unwrap();

    assert_eq!(socket.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
