//! A certificate authority, an upstream, and a proxy that leads to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::super::{Proxy, certificate::provider};
use crate::plan::{Certificate, Generation, Guest, ProxySlice, Upstream};

pub(super) const GUEST: &str = "guest.example.org";
pub(super) const UPSTREAM: &str = "bridge.inside.example";

/// A certificate authority of the test's own.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "The test's authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// Chain and key, both PEM.
    pub(super) fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    pub(super) fn certificate(&self, name: &str, names: &[&str]) -> Certificate {
        let (chain, key) = self.issue(names);
        Certificate { name: name.to_owned(), chain, key }
    }
}

/// A web server that records the heads it gets. `/ws` becomes an echo, `/half` dies in its answer.
#[derive(Clone)]
pub(super) struct Bridge {
    pub(super) address: SocketAddr,
    pub(super) requests: Arc<Mutex<Vec<String>>>,
    pub(super) connections: Arc<Mutex<u32>>,
}

impl Bridge {
    pub(super) async fn start(authority: &Authority, name: &str) -> Self {
        let (chain, key) = authority.issue(&[name]);
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let bridge = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let running = bridge.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, running) = (acceptor.clone(), running.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        *running.connections.lock().unwrap() += 1;
                        running.serve(stream).await;
                    }
                });
            }
        });
        bridge
    }

    async fn serve(self, mut stream: server::TlsStream<TcpStream>) -> Option<()> {
        loop {
            let head = read_head(&mut stream).await?;
            let body = read_body(&mut stream, &head).await?;
            let path = head.split(' ').nth(1)?.to_owned();
            self.requests.lock().unwrap().push(head);
            let answer = match path.as_str() {
                "/ws" => {
                    let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello ";
                    stream.write_all(answer).await.ok()?;
                    return echo(stream).await;
                }
                "/half" => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-").await.ok()?;
                    return None;
                }
                "/health" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
                _ => format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nAlt-Svc: h3\r\nX-Kept: yes\r\nKeep-Alive: timeout=5\r\n\r\nguest page {body}",
                    "guest page ".len() + body.len()
                ),
            };
            stream.write_all(answer.as_bytes()).await.ok()?;
        }
    }

    pub(super) fn last_request(&self) -> String {
        self.requests.lock().unwrap().last().unwrap().clone()
    }
}

async fn echo(mut stream: server::TlsStream<TcpStream>) -> Option<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut buffer).await.ok().filter(|&length| length > 0)?;
        stream.write_all(&buffer[..length]).await.ok()?;
    }
}

pub(super) async fn read_head(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

async fn read_body(stream: &mut server::TlsStream<TcpStream>, head: &str) -> Option<String> {
    let head = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if let Some((_, rest)) = head.split_once("content-length: ") {
        body.resize(rest.split("\r\n").next()?.parse().ok()?, 0);
        stream.read_exact(&mut body).await.ok()?;
    } else if head.contains("transfer-encoding: chunked") {
        while !body.ends_with(b"0\r\n\r\n") {
            body.push(stream.read_u8().await.ok()?);
        }
    }
    String::from_utf8(body).ok()
}

/// The whole setting.
pub(super) struct Setting {
    pub(super) authority: Authority,
    pub(super) bridge: Bridge,
    pub(super) proxy: Proxy,
    pub(super) slice: ProxySlice,
}

impl Setting {
    /// One guest that leads to a bridge which is up.
    pub(super) async fn new() -> Self {
        let authority = Authority::new();
        let bridge = Bridge::start(&authority, UPSTREAM).await;
        let slice = ProxySlice {
            tls: vec![free_address()],
            turn_tls: Vec::new(),
            turn_shared: false,
            redirect: vec![free_address()],
            certificates: vec![authority.certificate("box", &[GUEST, "box.example.org"])],
            guests: vec![Guest {
                host: GUEST.to_owned(),
                url: format!("https://{GUEST}"),
                upstream: upstream(&authority, bridge.address),
            }],
            hsts: Some(Duration::from_secs(31_536_000)),
        };
        let setting = Self { authority, bridge, proxy: Proxy::new("/nonexistent/streams"), slice };
        setting.serve(1);
        setting
    }

    pub(super) fn serve(&self, serial: u64) {
        self.proxy.serve(generation(serial), &self.slice, BTreeMap::new()).unwrap();
    }

    pub(super) async fn connect(&self, name: &str) -> client::TlsStream<TcpStream> {
        self.try_connect(name).await.unwrap()
    }

    pub(super) async fn try_connect(
        &self,
        name: &str,
    ) -> std::io::Result<client::TlsStream<TcpStream>> {
        connect(&self.authority.pem, self.slice.tls[0], name).await
    }

    /// Sends bytes over a new connection and reads until the proxy closes it.
    pub(super) async fn send(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect(GUEST).await;
        stream.write_all(request.as_ref()).await.unwrap();
        read_to_end(&mut stream).await
    }

    /// A GET of `path` as a browser would send it, over a connection of its own.
    pub(super) async fn get(&self, path: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {GUEST}\r\nConnection: close\r\n\r\n"))
            .await
    }

    /// The state of the only address of the only guest's upstream.
    pub(super) fn state(&self) -> String {
        let report = self.proxy.report();
        report["guests"][0]["upstream"]["addresses"][0]["state"].as_str().unwrap().to_owned()
    }

    pub(super) async fn wait_for_state(&self, wanted: &str) {
        for _ in 0..200 {
            if self.state() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("upstream is {} and not {wanted}", self.state());
    }
}

pub(super) fn upstream(authority: &Authority, address: SocketAddr) -> Upstream {
    Upstream {
        host: UPSTREAM.to_owned(),
        port: address.port(),
        addresses: vec![address.ip()],
        trust: Some(authority.pem.clone()),
        health: Some("/health".to_owned()),
    }
}

pub(super) fn generation(serial: u64) -> Generation {
    Generation { serial, digest: "0".repeat(64) }
}

/// An address of loopback that nobody listens on.
pub(super) fn free_address() -> SocketAddr {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    std::net::TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

pub(super) async fn connect(
    root: &str,
    address: SocketAddr,
    name: &str,
) -> std::io::Result<client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

pub(super) async fn read_to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    read.unwrap_or_else(|_| panic!("the proxy did not close after {text:?}")).unwrap();
    text
}
