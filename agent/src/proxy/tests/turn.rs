//! TURN clients on the proxy's listeners, with a stand-in for the relay behind its socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client};
use turn::ProxyHeader;

use super::super::Proxy;
use super::super::certificate::provider;
use super::setting::{GUEST, Setting, free_address, generation, read_to_end};

/// The head of an Allocate request; the stand-in does not look at it.
const STUN: &[u8] = &[0, 3, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: guest.example.org\r\nConnection: close\r\n\r\n";

/// A proxy that shares its port with TURN, has another for TURN alone, and joins to `relay`.
struct Shared {
    setting: Setting,
    relay: UnixListener,
    _folder: tempfile::TempDir,
}

impl Shared {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("streams");
        let relay = UnixListener::bind(&path).unwrap();
        let mut setting = Setting::new().await;
        setting.proxy = Proxy::new(path);
        setting.slice.tls = vec![free_address()];
        setting.slice.redirect = Vec::new();
        setting.slice.turn_shared = true;
        setting.slice.turn_tls = vec![free_address()];
        setting.serve(1);
        Self { setting, relay, _folder: folder }
    }

    fn shared(&self) -> SocketAddr {
        self.setting.slice.tls[0]
    }

    fn turn_only(&self) -> SocketAddr {
        self.setting.slice.turn_tls[0]
    }

    /// The next stream that was joined, and who it says it is from.
    async fn joined(&self) -> (ProxyHeader, UnixStream) {
        let accepted = timeout(Duration::from_secs(10), self.relay.accept()).await;
        let (mut stream, _) = accepted.expect("no stream was joined").unwrap();
        let mut begin = Vec::new();
        loop {
            begin.push(stream.read_u8().await.unwrap());
            if let Some((header, length)) = ProxyHeader::parse(&begin).unwrap() {
                assert_eq!(length, begin.len());
                return (header, stream);
            }
        }
    }

    async fn connect(
        &self,
        address: SocketAddr,
        alpn: &[&str],
        sni: bool,
    ) -> client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let pem = self.setting.authority.pem.as_bytes();
        roots.add(CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|it| it.as_bytes().to_vec()).collect();
        config.enable_sni = sni;
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(GUEST).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    fn streams(&self) -> u64 {
        self.setting.proxy.report()["turn-streams"]["total"].as_u64().unwrap()
    }
}

#[tokio::test]
async fn what_is_said_inside_tls_decides_and_alpn_alone_does_not() {
    let shared = Shared::new().await;

    for alpn in [&[][..], &["stun.turn"], &["http/1.1"], &["h2", "http/1.1"]] {
        for sni in [true, false] {
            let mut stream = shared.connect(shared.shared(), alpn, sni).await;
            stream.write_all(STUN).await.unwrap();
            let (header, mut relay) = shared.joined().await;
            let mut request = [0; 20];
            relay.read_exact(&mut request).await.unwrap();
            relay.write_all(b"answer").await.unwrap();
            let mut answer = [0; 6];
            stream.read_exact(&mut answer).await.unwrap();

            assert_eq!((&request[..], &answer), (STUN, b"answer"), "{alpn:?}");
            assert_eq!(header.source(), stream.get_ref().0.local_addr().unwrap());
            assert_eq!(header.destination(), shared.shared());
        }
    }
    let joined = shared.streams();
    for alpn in [&[][..], &["http/1.1"], &["h2", "http/1.1"]] {
        for sni in [true, false] {
            let mut stream = shared.connect(shared.shared(), alpn, sni).await;
            stream.write_all(GET).await.unwrap();
            let answer = read_to_end(&mut stream).await;

            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{alpn:?}: {answer}");
        }
    }
    assert_eq!((joined, shared.streams()), (8, 8));
}

#[tokio::test]
async fn stun_without_tls_shares_the_port_too() {
    let shared = Shared::new().await;
    for address in [shared.shared(), shared.turn_only()] {
        let mut stream = TcpStream::connect(address).await.unwrap();

        stream.write_all(STUN).await.unwrap();

        let (header, mut relay) = shared.joined().await;
        let mut request = [0; 20];
        relay.read_exact(&mut request).await.unwrap();
        assert_eq!(request, STUN);
        assert_eq!(header.source(), stream.local_addr().unwrap());
    }
}

#[tokio::test]
async fn a_listener_for_turn_alone_serves_it_whatever_alpn_offers_and_without_guests() {
    let mut shared = Shared::new().await;
    shared.setting.slice.tls.clear();
    shared.setting.slice.guests.clear();
    shared.setting.serve(2);

    for (alpn, chosen) in [
        (&[][..], None),
        (&["stun.turn"], Some(&b"stun.turn"[..])),
        (&["h2", "http/1.1"], None),
        (&["http/1.1", "stun.turn"], Some(b"stun.turn")),
    ] {
        for (first, sni) in [(STUN, false), (GET, true)] {
            let mut stream = shared.connect(shared.turn_only(), alpn, sni).await;
            stream.write_all(first).await.unwrap();
            let (header, mut relay) = shared.joined().await;
            let mut begin = vec![0; first.len()];
            relay.read_exact(&mut begin).await.unwrap();

            assert_eq!(begin, first);
            assert_eq!(header.destination(), shared.turn_only());
            assert_eq!(stream.get_ref().1.alpn_protocol(), chosen, "{alpn:?}");
        }
    }
    let report = shared.setting.proxy.report();
    assert_eq!(report["listeners"][0]["kind"], "turn-tls");
    assert_eq!(report["turn-streams"]["total"], 8);
}

#[tokio::test]
async fn where_nothing_is_shared_stun_is_a_bad_request() {
    let mut shared = Shared::new().await;
    shared.setting.slice.turn_shared = false;
    shared.setting.serve(2);

    let mut stream = shared.connect(shared.shared(), &[], true).await;
    stream.write_all(STUN).await.unwrap();
    let answer = read_to_end(&mut stream).await;

    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(shared.streams(), 0);
}

#[tokio::test]
async fn without_a_relay_the_client_is_let_go_and_counted() {
    let Shared { setting, relay, _folder } = Shared::new().await;
    drop(relay);
    let mut stream = TcpStream::connect(setting.slice.tls[0]).await.unwrap();

    stream.write_all(STUN).await.unwrap();
    let mut rest = Vec::new();
    // The request may be unread when the proxy closes, which resets the connection.
    let ended = timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;

    assert!(ended.is_ok() && rest.is_empty(), "{ended:?}");
    assert_eq!(setting.proxy.report()["turn-streams-refused"], 1);
    assert_eq!(setting.proxy.report()["turn-streams"]["total"], 0);
}

#[tokio::test]
async fn a_stream_ends_one_direction_at_a_time_and_outlives_a_new_slice() {
    let mut shared = Shared::new().await;
    let mut stream = shared.connect(shared.shared(), &[], true).await;
    stream.write_all(STUN).await.unwrap();
    let (_, mut relay) = shared.joined().await;
    let mut request = [0; 20];
    relay.read_exact(&mut request).await.unwrap();

    shared.setting.slice.turn_shared = false;
    shared.setting.slice.turn_tls.clear();
    shared.setting.proxy.serve(generation(2), &shared.setting.slice, BTreeMap::new()).unwrap();
    stream.write_all(b"last words").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    relay.read_to_end(&mut rest).await.unwrap();
    relay.write_all(&[7; 1_000_000]).await.unwrap();
    drop(relay);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();

    assert_eq!(rest, b"last words");
    assert_eq!(answer, [7; 1_000_000]);
}

/// The bytes that a client does not take stay with the relay, but for what sockets hold.
#[tokio::test]
async fn a_client_that_reads_nothing_holds_the_relay_back() {
    let shared = Shared::new().await;
    let mut stream = shared.connect(shared.turn_only(), &[], true).await;
    stream.write_all(STUN).await.unwrap();
    let (_, relay) = shared.joined().await;
    let piece = [7; 64 * 1024];

    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_secs(1), async {
        relay.writable().await.unwrap();
        relay.try_write(&piece)
    })
    .await
    {
        sent += written.unwrap_or_default();
        assert!(sent < 64 << 20, "somebody keeps all of it");
    }

    let mut rest = vec![0; sent];
    stream.read_exact(&mut rest).await.unwrap();
    assert!(sent > 0 && rest.iter().all(|octet| *octet == 7));
}

#[tokio::test]
async fn openssl_reaches_the_relay_with_each_alpn_and_without_a_name() {
    let shared = Shared::new().await;

    for (address, arguments) in [
        (shared.shared(), &["-servername", GUEST][..]),
        (shared.shared(), &["-noservername"]),
        (shared.shared(), &["-noservername", "-tls1_2"]),
        (shared.shared(), &["-servername", GUEST, "-alpn", "stun.turn"]),
        (shared.shared(), &["-servername", GUEST, "-alpn", "http/1.1"]),
        (shared.shared(), &["-noservername", "-alpn", "stun.turn"]),
        (shared.turn_only(), &["-noservername"]),
        (shared.turn_only(), &["-noservername", "-alpn", "h2"]),
    ] {
        let address = address.to_string();
        let mut openssl = tokio::process::Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &address])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl is needed for this test");
        let mut to_relay = openssl.stdin.take().unwrap();
        to_relay.write_all(STUN).await.unwrap();
        let (_, mut relay) = shared.joined().await;
        let mut request = [0; 20];
        relay.read_exact(&mut request).await.unwrap();
        relay.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        openssl.stdout.as_mut().unwrap().read_exact(&mut answer).await.unwrap();

        assert_eq!((&request[..], &answer), (STUN, b"answer"), "{arguments:?}");
    }
}
