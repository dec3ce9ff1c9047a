//! Clients over TCP, over TLS through the proxy, and TCP relays (RFC 6062).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use turn::stun::{AttributeType, Class, ErrorCode, Key, Message, Method, Writer};
use turn::{ProxyHeader, framing};

use super::{
    Control, GUEST, Guest, INSIDER, LAN1, LAN2, Log, NAT, assert_none_lost, enter_network, slice,
    start_peer, start_shards, uclient,
};
use crate::plan::{Certificate, Generation, ProxySlice, RelayListener, RelaySlice, Transport};
use crate::proxy::Proxy;
use crate::relay::shard::Handle;

/// A relay in a network of its own that also serves TCP, and takes joined streams at a path.
struct Relay {
    handle: Handle,
    streams: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

fn start(shards: u8) -> Relay {
    enter_network();
    let handle = start_shards(shards, &Log::default());
    let folder = tempfile::tempdir().unwrap();
    let streams = folder.path().join("streams");
    Control::new(&handle).joined_at(streams.clone()).swap(&with_tcp()).unwrap();
    Relay { handle, streams, _folder: folder }
}

fn with_tcp() -> RelaySlice {
    let mut slice = slice();
    let tcp = slice.listeners.clone().into_iter();
    slice.listeners.extend(tcp.map(|udp| RelayListener { transport: Transport::Tcp, ..udp }));
    slice.tcp_relay = true;
    slice
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A client that speaks just enough TURN over a stream.
struct Client<S> {
    stream: S,
    received: Vec<u8>,
    nonce: Vec<u8>,
    key: Key,
}

impl<S: Read + Write> Client<S> {
    fn new(stream: S) -> Self {
        let key = Key::long_term("turnuser", "turnuser", "correct horse");
        Self { stream, received: Vec::new(), nonce: Vec::new(), key }
    }

    /// The next message, whole.
    fn receive(&mut self) -> Vec<u8> {
        let mut piece = [0; 4096];
        loop {
            if let Some(length) = framing::next(&self.received, framing::MAX_MESSAGE).unwrap() {
                return self.received.drain(..length).collect();
            }
            let length = self.stream.read(&mut piece).unwrap();
            assert!(length > 0, "the relay hung up");
            self.received.extend_from_slice(&piece[..length]);
        }
    }

    fn ask(&mut self, request: Writer) -> Vec<u8> {
        self.stream.write_all(&request.finish()).unwrap();
        self.receive()
    }

    fn sign(&self, request: Writer) -> Writer {
        request
            .attribute(AttributeType::USERNAME, b"turnuser")
            .attribute(AttributeType::REALM, b"turnuser")
            .attribute(AttributeType::NONCE, &self.nonce)
            .integrity(&self.key)
    }

    fn ask_signed(&mut self, request: Writer) -> Vec<u8> {
        let request = self.sign(request);
        let reply = self.ask(request);
        let message = Message::parse(&reply).unwrap();
        assert_eq!(message.class(), Class::Success, "{:?}", message.error_code());
        reply
    }

    /// Allocates; 17 is UDP and 6 is TCP. Returns the relayed and the mapped address.
    fn allocate(&mut self, transport: u8) -> (SocketAddr, SocketAddr) {
        let request = || {
            Guest::begin(Class::Request, Method::ALLOCATE)
                .attribute(AttributeType::REQUESTED_TRANSPORT, &[transport, 0, 0, 0])
        };
        let challenge = self.ask(request());
        let challenge = Message::parse(&challenge).unwrap();
        assert_eq!(challenge.error_code(), Some(ErrorCode::UNAUTHENTICATED));
        self.nonce = challenge.attribute(AttributeType::NONCE).unwrap().to_vec();
        let reply = self.ask_signed(request());
        let reply = Message::parse(&reply).unwrap();
        let address = |kind| reply.xor_address(kind).unwrap();
        (address(AttributeType::XOR_RELAYED_ADDRESS), address(AttributeType::XOR_MAPPED_ADDRESS))
    }

    fn permit(&mut self, peer: &str) {
        let request = Guest::begin(Class::Request, Method::CREATE_PERMISSION)
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer.parse().unwrap());
        self.ask_signed(request);
    }

    fn bind_channel(&mut self, peer: SocketAddr) {
        let request = Guest::begin(Class::Request, Method::CHANNEL_BIND)
            .attribute(AttributeType::CHANNEL_NUMBER, &[0x40, 0, 0, 0])
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
        self.ask_signed(request);
    }

    fn send_on_channel(&mut self, data: &[u8]) {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        let mut message = [&[0x40, 0][..], &length, data].concat();
        message.resize(message.len().next_multiple_of(4), 0);
        self.stream.write_all(&message).unwrap();
    }
}

fn connect(server: &str) -> Client<TcpStream> {
    let stream = TcpStream::connect((server, 3478)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    Client::new(stream)
}

/// Whether the relay has closed the stream.
fn is_closed(stream: &mut impl Read) -> bool {
    matches!(stream.read(&mut [0; 64]), Ok(0))
        || stream.read(&mut [0; 64]).is_err_and(|it| it.kind() != std::io::ErrorKind::WouldBlock)
}

#[test]
fn coturns_clients_over_tcp_lose_nothing() {
    for shards in [1, 2] {
        let relay = start(shards);
        let _peer = start_peer();
        for (from, server, arguments) in [
            (GUEST, LAN2, &["-y"][..]),
            (GUEST, LAN2, &["-y", "-s", "-l", "1201"]),
            (INSIDER, LAN1, &["-y", "-c"]),
            (GUEST, LAN2, &["-e", "198.51.100.180"]),
            (INSIDER, LAN1, &["-e", "198.51.100.180", "-s"]),
        ] {
            let arguments = [&["-t", "-m", "4", "-n", "50"], arguments].concat();
            assert_none_lost(&uclient(from, server, &arguments));
        }
        let snapshot = relay.handle.snapshot().unwrap();
        assert_eq!((snapshot.streams.cut_off, snapshot.losses.not_sent), (0, 0));
        assert!(snapshot.streams.clients_total >= 5 * 4);
    }
}

#[test]
fn the_end_of_a_stream_is_the_end_of_its_allocation() {
    let relay = start(1);
    let mut client = connect(LAN2);
    let (relayed, mapped) = client.allocate(17);
    assert_eq!(relayed.ip(), NAT.parse::<std::net::IpAddr>().unwrap());
    assert_eq!(mapped, client.stream.local_addr().unwrap());
    assert_eq!(relay.handle.snapshot().unwrap().status.active_relays_tcp, 1);

    drop(client);

    wait_until("freed", || relay.handle.snapshot().unwrap().status.active_clients == 0);
    assert_eq!(relay.handle.snapshot().unwrap().streams.clients, 0);
}

#[test]
fn a_client_that_sends_octet_by_octet_is_understood() {
    /// Sends every octet in a packet of its own.
    struct Slowly(TcpStream);
    impl Read for Slowly {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Slowly {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            std::thread::sleep(Duration::from_micros(200));
            self.0.write(&bytes[..1])
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let _relay = start(1);
    let server = UdpSocket::bind("198.51.100.180:5000").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut client = Client::new(Slowly(connect(LAN2).stream));
    client.allocate(17);
    client.bind_channel("198.51.100.180:5000".parse().unwrap());

    for data in [&b""[..], b"1", b"four", b"seven..", &[9; 1200]] {
        client.send_on_channel(data);
        let mut buffer = [0; 1500];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], data);
        server.send_to(data, from).unwrap();
        let answer = client.receive();
        assert_eq!(&answer[4..4 + data.len()], data);
        assert_eq!(answer.len() % 4, 0, "padded");
    }
}

#[test]
fn what_is_no_message_ends_the_stream_and_what_it_had() {
    let relay = start(1);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 2, 0, 1, 0, 1], &[0xFF; 100]] {
        let mut stream = connect(LAN2).stream;
        stream.write_all(garbage).unwrap();
        assert!(is_closed(&mut stream), "{garbage:?}");
    }
    let mut stranger = connect(LAN2).stream;
    stranger.write_all(&[0, 3, 0x10, 0, 0x21, 0x12, 0xA4, 0x42]).unwrap();
    assert!(is_closed(&mut stranger), "a stranger's message of 4 KiB");

    let mut client = connect(LAN2);
    client.allocate(17);
    client.stream.write_all(&[0x80]).unwrap();

    assert!(is_closed(&mut client.stream));
    let snapshot = relay.handle.snapshot().unwrap();
    assert_eq!((snapshot.streams.cut_off, snapshot.streams.clients), (5, 0));
    assert_eq!(snapshot.status.active_clients, 0);
}

/// 60 MB come for a client that reads none of it; another one is served meanwhile.
#[test]
fn for_a_client_that_does_not_read_data_is_dropped_and_answers_are_kept() {
    let relay = start(1);
    let server = UdpSocket::bind("198.51.100.180:5000").unwrap();
    let mut client = connect(LAN2);
    let (relayed, _) = client.allocate(17);
    client.permit("198.51.100.180:0");
    client.bind_channel("198.51.100.180:5000".parse().unwrap());
    let guest = Guest::new();
    let face = SocketAddr::new(LAN1.parse().unwrap(), relayed.port());

    for round in 0..50_000_u32 {
        let mut data = [7; 1200];
        data[..4].copy_from_slice(&round.to_be_bytes());
        server.send_to(&data, face).unwrap();
        if round % 64 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if round == 25_000 {
            guest.allocate("correct horse").expect("others are served");
        }
    }
    wait_until("dropped", || relay.handle.snapshot().unwrap().losses.not_sent > 1000);
    let request = client.sign(Guest::begin(Class::Request, Method::REFRESH));
    client.stream.write_all(&request.finish()).unwrap();

    let mut data = 0;
    let mut last = None;
    loop {
        let message = client.receive();
        if message[0] == 0x40 {
            assert_eq!(message.len(), 1204, "whole messages only");
            let round = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
            assert!(last.is_none_or(|last| last < round));
            last = Some(round);
            data += 1;
        } else {
            assert_eq!(Message::parse(&message).unwrap().class(), Class::Success);
            break;
        }
    }
    assert!((100..50_000).contains(&data), "{data}");
}

#[test]
fn a_joined_stream_is_from_whom_its_header_says() {
    let relay = start(2);
    let source: SocketAddr = "203.0.113.77:50001".parse().unwrap();
    let header = ProxyHeader::new(source, "192.0.2.61:443".parse().unwrap()).unwrap();
    let join = || {
        let stream = UnixStream::connect(&relay.streams).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    };
    let mut stream = join();
    for octet in header.to_bytes() {
        stream.write_all(&[octet]).unwrap();
    }
    let mut client = Client::new(stream);

    assert_eq!(client.allocate(17).1, source);

    // A new stream of the same 5-tuple takes the old one's place.
    let mut stream = join();
    stream.write_all(&header.to_bytes()).unwrap();
    let mut again = Client::new(stream);
    again.allocate(17);
    let mut local = header.to_bytes();
    local[12] = 0x20;
    for bad in [&local[..], b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", &[0, 1, 0, 0]] {
        let mut stream = join();
        stream.write_all(bad).unwrap();
        assert!(is_closed(&mut stream), "{bad:?}");
    }
}

#[test]
fn a_swap_keeps_streams_and_a_stop_closes_them() {
    let relay = start(1);
    let mut client = connect(LAN2);
    client.allocate(17);
    let mut control = Control::new(&relay.handle).joined_at(relay.streams.clone());
    let without = RelaySlice { tcp_relay: false, ..slice() };

    control.swap(&without).unwrap();
    wait_until("closed", || TcpStream::connect((LAN2, 3478)).is_err());
    client.permit("198.51.100.180:0");
    control.swap(&with_tcp()).unwrap();
    wait_until("open", || TcpStream::connect((LAN2, 3478)).is_ok());
    assert_eq!(control.report()["tcp-listening-addresses"][1], "192.0.2.61:3478");
    client.permit("198.51.100.180:0");
    control.stop();

    assert!(is_closed(&mut client.stream));
    assert!(!relay.streams.exists());
}

/// A peer that takes one connection and does with it what is asked.
fn start_tcp_peer(
    address: &str,
    serve: impl FnOnce(TcpStream) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || serve(listener.accept().unwrap().0))
}

fn connection_id(message: &[u8]) -> Vec<u8> {
    let message = Message::parse(message).unwrap();
    message.attribute(AttributeType::CONNECTION_ID).unwrap().to_vec()
}

/// Binds a connection to a new stream of its own, as RFC 6062 §4.3 asks.
fn bind_connection(control: &Client<TcpStream>, id: &[u8]) -> Client<TcpStream> {
    let mut data = connect(LAN2);
    data.nonce.clone_from(&control.nonce);
    let request = Guest::begin(Class::Request, Method::CONNECTION_BIND)
        .attribute(AttributeType::CONNECTION_ID, id);
    data.ask_signed(request);
    data
}

#[test]
fn a_connection_to_a_peer_carries_both_directions_and_ends_them_one_by_one() {
    for shards in [1, 2] {
        let relay = start(shards);
        // With two shards some of the streams begin on the wrong one and move.
        for round in 0..4_u8 {
            let peer = start_tcp_peer("198.51.100.180:7000", move |mut stream| {
                let mut question = Vec::new();
                stream.read_to_end(&mut question).unwrap();
                assert_eq!(question, vec![round; 300_000]);
                stream.write_all(&vec![round; 1_000_000]).unwrap();
            });
            let mut client = connect(LAN2);
            client.allocate(6);
            client.permit("198.51.100.180:0");
            let request = Guest::begin(Class::Request, Method::CONNECT).xor_address(
                AttributeType::XOR_PEER_ADDRESS,
                "198.51.100.180:7000".parse().unwrap(),
            );
            let reply = client.ask_signed(request);
            let mut data = bind_connection(&client, &connection_id(&reply));

            data.stream.write_all(&vec![round; 300_000]).unwrap();
            data.stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = std::mem::take(&mut data.received);
            data.stream.read_to_end(&mut answer).unwrap();

            assert_eq!(answer, vec![round; 1_000_000]);
            peer.join().unwrap();
        }
        wait_until("all closed", || {
            let snapshot = relay.handle.snapshot().unwrap();
            snapshot.streams.peers == 0 && snapshot.streams.clients == 0
        });
        assert_eq!(relay.handle.snapshot().unwrap().streams.peers_total, 4);
    }
}

#[test]
fn a_client_that_is_cut_off_while_it_is_joined_takes_the_connection_with_it() {
    let relay = start(1);
    let peer = start_tcp_peer("198.51.100.180:7002", |mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert!(is_closed(&mut stream), "the peer waits for nobody");
    });
    let mut client = connect(LAN2);
    client.allocate(6);
    client.permit("198.51.100.180:0");
    let request = Guest::begin(Class::Request, Method::CONNECT)
        .xor_address(AttributeType::XOR_PEER_ADDRESS, "198.51.100.180:7002".parse().unwrap());
    let reply = client.ask_signed(request);
    let mut data = connect(LAN2);
    data.nonce.clone_from(&client.nonce);
    let bind = Guest::begin(Class::Request, Method::CONNECTION_BIND)
        .attribute(AttributeType::CONNECTION_ID, &connection_id(&reply));

    // No message may follow at once, and this is none.
    data.stream.write_all(&[data.sign(bind).finish(), vec![0xff; 8]].concat()).unwrap();

    peer.join().unwrap();
    assert_eq!(relay.handle.snapshot().unwrap().streams.peers, 0);
}

#[test]
fn a_peer_that_nobody_hears_is_a_failure_and_one_that_connects_is_announced() {
    let _relay = start(1);
    let mut client = connect(LAN2);
    let (relayed, _) = client.allocate(6);
    client.permit("198.51.100.180:0");

    let request = Guest::begin(Class::Request, Method::CONNECT)
        .xor_address(AttributeType::XOR_PEER_ADDRESS, "198.51.100.180:7001".parse().unwrap());
    let request = client.sign(request);
    let reply = client.ask(request);
    assert_eq!(Message::parse(&reply).unwrap().error_code(), Some(ErrorCode(447)));

    let face = SocketAddr::new(LAN1.parse().unwrap(), relayed.port());
    let peer = std::thread::spawn(move || {
        // From the address that the permission is for.
        let socket = std::process::Command::new("curl")
            .args(["--silent", "--interface", "198.51.100.180", "--max-time", "10"])
            .arg(format!("http://{face}/before-it-is-bound"))
            .output()
            .expect("curl is needed for this test");
        String::from_utf8(socket.stdout).unwrap()
    });
    let attempt = client.receive();
    let mut data = bind_connection(&client, &connection_id(&attempt));
    let mut question = std::mem::take(&mut data.received);
    while !question.ends_with(b"\r\n\r\n") {
        let mut piece = [0; 1024];
        let length = data.stream.read(&mut piece).unwrap();
        question.extend_from_slice(&piece[..length]);
    }
    data.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nheard").unwrap();

    assert!(question.starts_with(b"GET /before-it-is-bound "));
    assert_eq!(peer.join().unwrap(), "heard");
    drop(client);
    assert!(is_closed(&mut data.stream), "the connection goes with its allocation");
}

#[test]
fn coturns_tcp_relays_reach_each_other_in_the_process() {
    for shards in [1, 2] {
        let relay = start(shards);
        assert_none_lost(&uclient(GUEST, LAN2, &["-T", "-m", "2", "-n", "20"]));
        assert!(relay.handle.snapshot().unwrap().streams.peers_total >= 2);
    }
}

/// A client over TLS to a port of the proxy.
fn connect_over_tls(
    port: u16,
    root: &str,
) -> Client<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("edge.example.org").unwrap();
    let connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    let stream = TcpStream::connect((LAN2, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    Client::new(rustls::StreamOwned::new(connection, stream))
}

/// The whole way: TLS in the proxy, the relay behind its socket.
#[test]
fn clients_over_tls_lose_nothing_on_a_shared_port_and_on_one_of_their_own() {
    let relay = start(2);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["edge.example.org".to_owned()]).unwrap();
    let chain = params.self_signed(&key).unwrap().pem();
    let root = chain.clone();
    let certificate = Certificate { name: "edge".to_owned(), chain, key: key.serialize_pem() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    let proxy = Proxy::new(&relay.streams);
    let slice = ProxySlice {
        tls: vec!["192.0.2.61:443".parse().unwrap()],
        turn_tls: vec!["192.0.2.61:5349".parse().unwrap()],
        turn_shared: true,
        redirect: Vec::new(),
        certificates: vec![certificate],
        guests: Vec::new(),
        hsts: None,
    };
    let context = handle.enter();
    let generation = Generation { serial: 1, digest: "0".repeat(64) };
    proxy.serve(generation, &slice, BTreeMap::new()).unwrap();
    drop(context);

    let server = UdpSocket::bind("198.51.100.180:5000").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for port in [443, 5349] {
        let mut client = connect_over_tls(port, &root);
        client.allocate(17);
        client.bind_channel("198.51.100.180:5000".parse().unwrap());
        for round in 0..50_u8 {
            // In bursts, so that several messages come in one record.
            let mut buffer = [0; 1500];
            for octet in 0..10 {
                client.send_on_channel(&[round, octet, 7]);
            }
            for octet in 0..10 {
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..length], [round, octet, 7]);
                server.send_to(&buffer[..length], from).unwrap();
            }
            for octet in 0..10 {
                assert_eq!(client.receive()[4..7], [round, octet, 7]);
            }
        }
    }
    // coturn's client takes one message of each TLS record and loses count of the others, so here
    // it is the relay that is asked whether it lost any.
    for arguments in [
        &["-S", "-t", "-p", "5349", "-y"][..],
        &["-S", "-t", "-p", "443", "-y", "-s"],
        &["-t", "-p", "443", "-y"],
    ] {
        let arguments = [&["-m", "1", "-c", "-n", "20"], arguments].concat();
        let before = relay.handle.snapshot().unwrap().counters.relayed_packets;
        uclient(GUEST, LAN2, &arguments);
        let relayed = relay.handle.snapshot().unwrap().counters.relayed_packets - before;
        assert!(relayed >= 2 * 20, "{arguments:?}: {relayed}");
    }

    let joined = proxy.report()["turn-streams"]["total"].as_u64().unwrap();
    assert!(joined >= 2 + 3 * 2, "{joined}");
    let snapshot = relay.handle.snapshot().unwrap();
    assert_eq!(snapshot.streams.clients_total, joined);
    assert_eq!((snapshot.losses.not_sent, snapshot.streams.cut_off), (0, 0));
}
