//! The relay on real sockets, in a network namespace that each test makes for itself, against
//! coturn's client and peer.
//!
//! ```text
//! 203.0.113.7 guest ── LAN2 192.0.2.61 (told: 203.0.113.156, which nobody has)
//! 198.51.100.20 insider, 198.51.100.180 media server ── LAN1 198.51.100.168
//! ```

mod live_change;
mod packets;
mod status;

use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tracing_subscriber::fmt::MakeWriter;
use turn::stun::{AttributeType, Class, Key, Message, Method, TransactionId, Writer};

use super::control::{self, Control};
use super::listener::fetch;
use super::shard::{self, Handle};
use crate::ipc::{self, Channel};
use crate::message::{
    AGENT_SOCKET, NetReply, NetRequest, STREAMS_SOCKET, SliceReply, SliceRequest,
};
use crate::plan::{
    Face, Generation, ListenerPlan, RelayListener, RelayQuotas, RelaySlice, RelayUser, Service,
    Transport,
};

mod streams;

const NAT: &str = "203.0.113.156";
const GUEST: &str = "203.0.113.7";
const INSIDER: &str = "198.51.100.20";
const LAN1: &str = "198.51.100.168";
const LAN2: &str = "192.0.2.61";

/// Lines of the relay's log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Gives this thread, and what it starts, a network of its own.
fn enter_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
    run("ip", &["link", "set", "lo", "up"]);
    for address in
        ["192.0.2.61", "198.51.100.168", "203.0.113.7", "198.51.100.20", "198.51.100.180"]
    {
        run("ip", &["address", "add", &format!("{address}/32"), "dev", "lo"]);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

/// Ends a program when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// coturn's echo server as the media server.
fn start_peer() -> Running {
    let mut command = Command::new("turnutils_peer");
    command.args(["-L", "198.51.100.180", "-p", "3480"]).stdout(Stdio::null());
    Running(command.spawn().expect("turnutils_peer of the package coturn"))
}

fn start_shards(count: u8, log: &Log) -> Handle {
    let (shards, handle) = shard::new(count).unwrap();
    for mut shard in shards {
        let log = log.clone();
        std::thread::spawn(move || {
            let lines =
                tracing_subscriber::fmt().with_writer(log).without_time().with_ansi(false).finish();
            tracing::subscriber::with_default(lines, || shard.run().unwrap());
        });
    }
    handle
}

fn slice() -> RelaySlice {
    let listener = |address: &str, inside| RelayListener {
        address: address.parse().unwrap(),
        transport: Transport::Udp,
        inside,
    };
    let face = |local: &str, told: &str| Face {
        local: local.parse().unwrap(),
        told: told.parse().unwrap(),
    };
    RelaySlice {
        realm: "turnuser".into(),
        users: vec![RelayUser { name: "turnuser".into(), password: "correct horse".into() }],
        rest_secrets: Vec::new(),
        listeners: vec![listener("198.51.100.168:3478", true), listener("192.0.2.61:3478", false)],
        inside_addresses: vec!["198.51.100.168".parse().unwrap()],
        media_ports: (24000, 24999),
        outside: vec![face("192.0.2.61", NAT)],
        inside: vec![face("198.51.100.168", "198.51.100.168")],
        inside_clients_are_told_lan1: false,
        inside_routes: vec!["198.51.100.0/24".parse().unwrap()],
        outside_routes: Vec::new(),
        allow: vec!["198.51.100.180/32".parse().unwrap()],
        allow_outside: Vec::new(),
        own_addresses: ["192.0.2.61", "198.51.100.168", NAT].map(|ip| ip.parse().unwrap()).into(),
        tcp_relay: false,
        mobility: false,
        quotas: RelayQuotas::default(),
        drain: None,
    }
}

/// Every test of the data path runs with one shard and with two.
const SHARDS: [u8; 2] = [1, 2];

/// A relay that serves [`slice`] in a network of its own.
fn start(shards: u8) -> (Handle, Log) {
    enter_network();
    let log = Log::default();
    let handle = start_shards(shards, &log);
    Control::new(&handle).swap(&slice()).unwrap();
    (handle, log)
}

fn uclient(from: &str, server: &str, arguments: &[&str]) -> String {
    let login = ["-u", "turnuser", "-w", "correct horse", "-L", from, "-z", "5"];
    run("turnutils_uclient", &[&login[..], arguments, &[server]].concat())
}

fn assert_none_lost(text: &str) {
    let lost = text.lines().rfind(|line| line.contains("lost packets"));
    assert!(lost.is_some_and(|line| line.contains("Total lost packets 0 ")), "{text}");
}

#[test]
fn coturns_clients_reach_each_other_through_two_relays_without_loss() {
    for shards in SHARDS {
        let (handle, _) = start(shards);

        for (from, server, arguments) in [
            (GUEST, LAN2, &["-y"][..]),
            (GUEST, LAN2, &["-y", "-s", "-l", "1200"]),
            (INSIDER, LAN1, &["-y", "-c"]),
        ] {
            let arguments = [&["-m", "4", "-n", "50"], arguments].concat();
            assert_none_lost(&uclient(from, server, &arguments));
        }

        let snapshot = handle.snapshot().unwrap();
        assert!(snapshot.counters.relayed_in_process >= 3 * 4 * 50, "{snapshot:?}");
        assert_eq!((snapshot.counters.dead_own_address, snapshot.losses.not_sent), (0, 0));
    }
}

#[test]
fn coturns_client_reaches_a_declared_media_server_from_both_sides_without_loss() {
    for shards in SHARDS {
        let (handle, _) = start(shards);
        let _peer = start_peer();

        for (from, server, send) in [(GUEST, LAN2, &[][..]), (INSIDER, LAN1, &["-s"])] {
            let arguments = [&["-e", "198.51.100.180", "-m", "4", "-n", "50"], send].concat();
            assert_none_lost(&uclient(from, server, &arguments));
        }

        let snapshot = handle.snapshot().unwrap();
        assert_eq!(snapshot.counters.relayed_in_process, 0);
        assert_eq!((snapshot.counters.wrong_face, snapshot.losses.not_sent), (0, 0));
    }
}

#[test]
fn a_wrong_password_is_logged_with_user_and_source() {
    for shards in SHARDS {
        let (handle, log) = start(shards);
        let guest = Guest::new();

        let reply = guest.allocate("wrong");

        assert_eq!(reply, Err(401));
        assert_eq!(handle.snapshot().unwrap().counters.refused_credentials, 1);
        let source = guest.socket.local_addr().unwrap();
        let line = format!(
            "WARN postern_agent::relay::security_log: refused credentials user=\"turnuser\" source={source} reason=WrongPassword\n"
        );
        assert_eq!(log.text().trim_start(), line);
    }
}

#[test]
fn an_icmp_error_about_one_packet_does_not_cost_the_next_one() {
    for shards in SHARDS {
        let (handle, _) = start(shards);
        let guest = Guest::new();
        guest.allocate("correct horse").unwrap();
        let server = UdpSocket::bind("198.51.100.180:5000").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        guest.permit("198.51.100.180:0");

        for round in 0..50_u8 {
            // Nobody listens there.
            guest.indicate("198.51.100.180:5001", b"lost");
            guest.indicate("198.51.100.180:5000", &[round]);

            let mut buffer = [0; 16];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..length], from.ip()),
                (&[round][..], "198.51.100.168".parse().unwrap())
            );
        }
        assert_eq!(handle.snapshot().unwrap().losses.not_sent, 0);
    }
}

#[test]
fn a_relay_port_that_is_taken_on_one_face_is_passed_over() {
    for shards in SHARDS {
        enter_network();
        let handle = start_shards(shards, &Log::default());
        let narrow = RelaySlice { media_ports: (24000, 24001), ..slice() };
        Control::new(&handle).swap(&narrow).unwrap();
        let _taken = UdpSocket::bind("198.51.100.168:24000").unwrap();

        let relayed = Guest::new().allocate("correct horse").unwrap();

        assert_eq!(relayed, format!("{NAT}:24001").parse().unwrap());
        assert_eq!(Guest::new().allocate("correct horse"), Err(508));
        UdpSocket::bind("192.0.2.61:24000").expect("the other face was let go");
    }
}

#[test]
fn a_swap_keeps_allocations_and_a_bad_slice_changes_nothing() {
    for shards in SHARDS {
        let (handle, _) = start(shards);
        let mut control = Control::new(&handle);
        let guest = Guest::new();
        guest.allocate("correct horse").unwrap();
        let mut changed = slice();
        changed.users[0].password = "another".into();
        changed.listeners.remove(0);
        changed.listeners.push(RelayListener {
            address: "192.0.2.61:3479".parse().unwrap(),
            transport: Transport::Udp,
            inside: false,
        });
        let nowhere = RelaySlice {
            listeners: vec![RelayListener {
                address: "192.0.2.99:3478".parse().unwrap(),
                transport: Transport::Udp,
                inside: false,
            }],
            ..slice()
        };

        control.swap(&changed).unwrap();
        let started = Instant::now();
        let error = control.swap(&nowhere).unwrap_err();

        assert!(error.to_string().starts_with("cannot bind UDP 192.0.2.99:3478"), "{error}");
        assert!(started.elapsed() >= Duration::from_secs(4), "an address may take a while to come");
        let report = control.report();
        assert_eq!(
            report["listening-addresses"],
            serde_json::json!(["192.0.2.61:3478", "192.0.2.61:3479"])
        );
        assert_eq!(report["active-relays-udp"], 1);
        assert_eq!(guest.allocate("another"), Err(437), "the allocation is still there");
        assert_eq!(Guest::new().allocate("correct horse"), Err(401));
    }
}

#[test]
fn the_agent_is_answered_ready_report_failed_and_stopped() {
    for shards in SHARDS {
        enter_network();
        let handle = start_shards(shards, &Log::default());
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        std::thread::spawn(move || Control::new(&handle).serve(&Channel::from_fd(theirs)));
        let agent = Channel::from_fd(ours);
        let ask = |request: &SliceRequest, slice: Option<&[u8]>| {
            let sealed = slice.map(|bytes| ipc::seal("slice", bytes).unwrap());
            let fds: Vec<_> = sealed.iter().map(AsFd::as_fd).collect();
            agent.send(request, &fds).unwrap();
            agent.receive::<SliceReply>().unwrap().unwrap().0
        };
        let generation = Generation { serial: 7, digest: "ab".repeat(32) };
        let bytes = serde_json::to_vec(&slice()).unwrap();
        let serve = SliceRequest::Serve(generation.clone());
        let status = || match ask(&SliceRequest::Report, None) {
            SliceReply::Report(report) => report,
            other => panic!("{other:?}"),
        };

        assert_eq!(status()["status"], "inactive");
        assert!(
            matches!(ask(&serve, Some(&bytes)), SliceReply::Ready(ready) if ready == generation)
        );
        let report = status();
        assert_eq!(report["status"], "active");
        assert_eq!(report["realm"], "turnuser");
        assert_eq!(report["users"], serde_json::json!(["turnuser"]));
        let listening = serde_json::json!(["198.51.100.168:3478", "192.0.2.61:3478"]);
        assert_eq!(report["listening-addresses"], listening);
        for field in
            ["active-clients", "active-relays-tcp", "active-relays-udp", "refused-credentials"]
        {
            assert_eq!(report[field], 0, "{field}");
        }
        assert!(!report.to_string().contains("correct horse"));
        assert!(matches!(ask(&serve, Some(b"{}")), SliceReply::Failed(..)));
        assert!(matches!(ask(&serve, None), SliceReply::Failed(..)));
        assert_eq!(status()["status"], "active");
        assert!(matches!(ask(&SliceRequest::Stop, None), SliceReply::Stopped));
        assert_eq!(status()["status"], "inactive");
        UdpSocket::bind("192.0.2.61:3478").expect("the listener is closed");
    }
}

#[test]
fn the_agent_may_come_late_and_go_and_the_relay_goes_on_serving() {
    for shards in SHARDS {
        enter_network();
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace needs root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        for socket in [AGENT_SOCKET, STREAMS_SOCKET] {
            std::fs::create_dir_all(Path::new(socket).parent().unwrap()).unwrap();
        }
        let handle = start_shards(shards, &Log::default());
        std::thread::spawn(move || control::run(&handle));
        std::thread::sleep(Duration::from_millis(200));

        for serial in 1..=2 {
            let listener = ipc::Listener::bind(Path::new(AGENT_SOCKET)).unwrap();
            let agent = listener.accept().unwrap();
            let generation = Generation { serial, digest: "ab".repeat(32) };
            let sealed = ipc::seal("slice", &serde_json::to_vec(&slice()).unwrap()).unwrap();
            agent.send(&SliceRequest::Serve(generation), &[sealed.as_fd()]).unwrap();
            let (reply, _) = agent.receive::<SliceReply>().unwrap().unwrap();
            assert!(matches!(reply, SliceReply::Ready(ready) if ready.serial == serial));
            drop((agent, listener));

            Guest::new().allocate("correct horse").unwrap();
        }
    }
}

#[test]
fn sockets_below_1024_come_from_postern_net() {
    enter_network();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let listener = ipc::Listener::bind(&path).unwrap();
    let address: SocketAddr = "192.0.2.61:443".parse().unwrap();
    let held = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        for _ in 0..2 {
            let channel = listener.accept().unwrap();
            let (request, _) = channel.receive::<NetRequest>().unwrap().unwrap();
            assert!(matches!(request, NetRequest::Listeners));
            let plan = ListenerPlan { owner: Service::Relay, address, transport: Transport::Udp };
            channel.send(&NetReply::Listeners(vec![plan]), &[held.as_fd()]).unwrap();
        }
    });

    let sockets = fetch(&path, &[address], Transport::Udp).unwrap();
    let missing = fetch(&path, &[address], Transport::Tcp).unwrap_err();

    let sockets: Vec<_> = sockets.into_iter().map(UdpSocket::from).collect();
    assert_eq!(sockets[0].local_addr().unwrap(), address);
    assert_eq!(missing.to_string(), "postern-net holds no socket for 192.0.2.61:443");
}

/// A client on the Internet that speaks just enough TURN.
struct Guest {
    socket: UdpSocket,
    key: std::cell::RefCell<(Vec<u8>, Key)>,
}

impl Guest {
    fn new() -> Self {
        let socket = UdpSocket::bind("203.0.113.7:0").unwrap();
        socket.connect("192.0.2.61:3478").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self { socket, key: (Vec::new(), Key::short_term("")).into() }
    }

    fn begin(class: Class, method: Method) -> Writer {
        let mut transaction = [0; 12];
        getrandom::fill(&mut transaction).unwrap();
        Writer::new(class, method, TransactionId(transaction))
    }

    fn ask(&self, request: Writer) -> Vec<u8> {
        self.socket.send(&request.finish()).unwrap();
        let mut buffer = [0; 1500];
        let length = self.socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    fn sign(&self, request: Writer) -> Writer {
        let (nonce, key) = &*self.key.borrow();
        request
            .attribute(AttributeType::USERNAME, b"turnuser")
            .attribute(AttributeType::REALM, b"turnuser")
            .attribute(AttributeType::NONCE, nonce)
            .integrity(key)
    }

    /// Asks for an allocation; the error is the code of the response.
    fn allocate(&self, password: &str) -> Result<SocketAddr, u16> {
        let request = || {
            Self::begin(Class::Request, Method::ALLOCATE)
                .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        };
        let challenge = self.ask(request());
        let nonce = Message::parse(&challenge).unwrap().attribute(AttributeType::NONCE).unwrap();
        let key = Key::long_term("turnuser", "turnuser", password);
        self.key.replace((nonce.to_vec(), key));
        let reply = self.ask(self.sign(request()));
        let reply = Message::parse(&reply).unwrap();
        match reply.error_code() {
            Some(code) => Err(code.0),
            None => Ok(reply.xor_address(AttributeType::XOR_RELAYED_ADDRESS).unwrap()),
        }
    }

    fn permit(&self, peer: &str) {
        let request = Self::begin(Class::Request, Method::CREATE_PERMISSION)
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer.parse().unwrap());
        let reply = self.ask(self.sign(request));
        assert_eq!(Message::parse(&reply).unwrap().class(), Class::Success);
    }

    fn indicate(&self, peer: &str, data: &[u8]) {
        let indication = Self::begin(Class::Indication, Method::SEND)
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer.parse().unwrap())
            .attribute(AttributeType::DATA, data);
        self.socket.send(&indication.finish()).unwrap();
    }
}
