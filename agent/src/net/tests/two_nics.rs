//! What the reference site's rules do to real packets: one test for each rule of a box with two
//! NICs. Linux alone takes a packet for any of its addresses on any NIC (the weak host model).

use std::net::{TcpStream, UdpSocket};
use std::sync::mpsc;

use nix::unistd::gettid;

use super::*;

const LAN1: &str = "172.16.85.168:443";
const LAN2: &str = "192.168.245.61:443";
const SOON: Duration = Duration::from_millis(500);

/// The host at the far end of a veth pair, in a namespace of its own.
struct Far {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Far {
    /// Moves the far end of `near` there and gives it `address`.
    fn start(near: &'static str, address: &'static str) -> Self {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (sender, thread) = mpsc::channel();
        drop(thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            sender.send(gettid()).unwrap();
            queue.into_iter().for_each(|job| job());
        }));
        ip(&format!("link set {near}p netns {}", thread.recv().unwrap()));
        let far = Self { jobs };
        far.run(move || {
            ip("link set lo up");
            ip(&format!("addr add {address} dev {near}p"));
            ip(&format!("link set {near}p up"));
        });
        far
    }

    /// Runs `job` there.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = mpsc::channel();
        self.jobs.send(Box::new(move || sender.send(job()).unwrap())).unwrap();
        result.recv().expect("the far end does what it is told")
    }

    /// Sends a datagram from `source` there to `target`.
    fn send(&self, source: &'static str, target: &'static str) {
        self.run(move || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            drop(socket.send_to(source.as_bytes(), target));
        });
    }
}

/// The edge between an inside and an outside host.
struct Edge {
    engine: Engine,
    inside: Far,
    outside: Far,
}

impl Edge {
    /// From whom the socket at `address`, one of those that the edge holds, gets a datagram.
    fn heard(&self, address: &str) -> Option<String> {
        let (plans, fds) = self.engine.sockets_of(&[Service::Relay]);
        let at = plans.iter().position(|plan| plan.address.to_string() == address).unwrap();
        let socket = UdpSocket::from(fds[at].try_clone_to_owned().unwrap());
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 64]).ok()?;
        Some(from.ip().to_string())
    }
}

fn edge_test(test: impl FnOnce(Edge) + Send + 'static) {
    engine_test(async |mut engine| {
        let plan = reference_plan();
        let inside = Far::start("near1", "172.16.85.1/24");
        let outside = Far::start("near2", "192.168.245.1/24");
        applied(&mut engine, 7, &plan).await;
        test(Edge { engine, inside, outside });
    });
}

#[test]
fn a_service_answers_on_its_own_nic() {
    edge_test(|edge| {
        let address: SocketAddr = LAN2.parse().unwrap();
        assert!(edge.outside.run(move || TcpStream::connect_timeout(&address, SOON).is_ok()));
        edge.outside.send("192.168.245.1", LAN2);
        assert_eq!(edge.heard(LAN2).as_deref(), Some("192.168.245.1"));
        edge.inside.send("172.16.85.1", LAN1);
        assert_eq!(edge.heard(LAN1).as_deref(), Some("172.16.85.1"));
    });
}

#[test]
fn a_port_that_the_site_does_not_name_is_silent() {
    edge_test(|edge| {
        for address in ["192.168.245.61:22", "192.168.245.61:445", "172.16.85.168:22"] {
            let far = if address.starts_with("192") { &edge.outside } else { &edge.inside };
            let address: SocketAddr = address.parse().unwrap();
            let error = far.run(move || TcpStream::connect_timeout(&address, SOON).unwrap_err());
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{address}");
        }
    });
}

#[test]
fn an_address_is_not_reached_through_the_other_nic() {
    edge_test(|edge| {
        edge.outside.run(|| ip("route add 172.16.85.168 via 192.168.245.61"));
        edge.outside.send("192.168.245.1", LAN1);
        assert_eq!(edge.heard(LAN1), None);

        edge.inside.run(|| ip("route add 192.168.245.61 via 172.16.85.168"));
        edge.inside.send("172.16.85.1", LAN2);
        assert_eq!(edge.heard(LAN2), None);
    });
}

#[test]
fn an_inside_source_that_comes_from_outside_is_dropped() {
    edge_test(|edge| {
        // Of LAN1's subnet, of LAN1's routes, and our own static NAT address.
        for source in ["172.16.85.77", "172.16.84.9", "10.88.246.156"] {
            edge.outside.run(move || ip(&format!("addr add {source}/32 dev lo")));
            edge.outside.send(source, LAN2);
            assert_eq!(edge.heard(LAN2), None, "{source}");
        }
        edge.inside.run(|| ip("addr add 10.88.246.156/32 dev lo"));
        edge.inside.send("10.88.246.156", LAN1);
        assert_eq!(edge.heard(LAN1), None);
    });
}

#[test]
fn nothing_is_forwarded() {
    edge_test(|edge| {
        edge.outside.run(|| ip("route add 172.16.85.0/24 via 192.168.245.61"));
        edge.inside.run(|| ip("route add 192.168.245.0/24 via 172.16.85.168"));
        let socket = edge.outside.run(|| {
            let socket = UdpSocket::bind("192.168.245.1:9999").unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            socket
        });
        // Even when somebody turns forwarding on.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        edge.inside.send("172.16.85.1", "192.168.245.1:9999");
        assert!(socket.recv_from(&mut [0; 64]).is_err());
    });
}

#[test]
fn arp_answers_only_for_the_nics_own_address() {
    edge_test(|edge| {
        let answers = edge.outside.run(|| {
            ip("route add 172.16.85.168 dev near2p");
            let socket = UdpSocket::bind("192.168.245.1:0").unwrap();
            for target in ["172.16.85.168:9", "192.168.245.61:9"] {
                drop(socket.send_to(b"x", target));
            }
            thread::sleep(SOON);
            ip_json("neigh show dev near2p")
        });
        let answers = answers.as_array().unwrap();
        let answered = |address: &str| {
            answers.iter().any(|one| one["dst"] == address && one["lladdr"].is_string())
        };
        assert!(answered("192.168.245.61"), "{answers:?}");
        assert!(!answered("172.16.85.168"), "{answers:?}");
    });
}

#[test]
fn a_reply_leaves_by_the_nic_that_the_request_came_in_on() {
    edge_test(|edge| {
        // A host on the Internet, and one behind LAN1's router.
        for (far, address, target) in
            [(&edge.outside, "10.88.246.5", LAN2), (&edge.inside, "172.16.84.7", LAN1)]
        {
            let client = far.run(move || {
                ip(&format!("addr add {address}/32 dev lo"));
                let client = UdpSocket::bind((address, 0)).unwrap();
                client.set_read_timeout(Some(SOON)).unwrap();
                client.send_to(b"hello", target).unwrap();
                client
            });
            assert_eq!(edge.heard(target).as_deref(), Some(address));
            let (plans, fds) = edge.engine.sockets_of(&[Service::Relay]);
            let at = plans.iter().position(|plan| plan.address.to_string() == target).unwrap();
            let server = UdpSocket::from(fds[at].try_clone_to_owned().unwrap());
            server.send_to(b"reply", client.local_addr().unwrap()).unwrap();
            assert!(client.recv_from(&mut [0; 64]).is_ok(), "{address}");
        }
    });
}
