//! From an accepted connection to hyper, or to the relay: limits, TLS, and the guard in between.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::{Acceptor, ClientHello};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::Shared;
use super::certificate::{Loaded, Protocols};
use super::exchange::{self, Connection};
use super::guard::{Guard, HEAD_TIME, Verdicts};
use super::head::MAX_FIELDS;
use super::redirect;
use super::turn_stream::{self, Ends};

/// From accept to the end of the TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long closing a connection may take.
const GOODBYE_TIME: Duration = Duration::from_secs(1);
/// How long a kept-alive connection waits for its next request.
const KEEP_ALIVE_TIME: Duration = Duration::from_secs(75);
/// Connections at a time, all told; each costs 20 to 60 kB.
pub(super) const MAX_CONNECTIONS: usize = 4096;
/// The same from one source (IPv6: /64), wide enough for an office behind one address.
pub(super) const MAX_PER_SOURCE: usize = 512;
/// A fatal alert `unrecognized_name` (RFC 8446 section 6, RFC 6066 section 3) as a record.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What a listener does with its connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// Guests over TLS; TURN clients too, when the slice says so.
    Tls,
    /// TURN clients over TLS.
    TurnTls,
    /// Redirects.
    Redirect,
}

impl Kind {
    /// The word that status shows.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::TurnTls => "turn-tls",
            Self::Redirect => "redirect",
        }
    }
}

/// Accepts until the task is aborted; connections live on.
pub(super) async fn accept(shared: Arc<Shared>, listener: Arc<TcpListener>, kind: Kind) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => admit(&shared, stream, client, kind),
            Err(error) => {
                // Out of descriptors or memory: the backlog waits while connections end.
                tracing::debug!(%error, "Cannot accept");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, stream: TcpStream, client: SocketAddr, kind: Kind) {
    let Some(place) = shared.limit.enter(Some(client.ip())) else {
        shared.counters.refused_connections.add();
        if let Some(suppressed) = shared.refusals.admit() {
            tracing::warn!(%client, suppressed, "Connection refused: too many at a time");
        }
        return;
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let open = shared.counters.connections.enter();
        if stream.set_nodelay(true).is_ok() {
            match kind {
                Kind::Tls | Kind::TurnTls => serve_tls(&shared, stream, client, kind).await,
                Kind::Redirect => serve_redirect(&shared, stream, client).await,
            }
        }
        drop(open);
        drop(place);
    });
}

async fn serve_tls(shared: &Arc<Shared>, stream: TcpStream, client: SocketAddr, kind: Kind) {
    let Ok(local) = stream.local_addr() else { return };
    let ends = Ends { client, local };
    let deadline = Instant::now() + HANDSHAKE_TIME;
    let serves = match (kind, shared.serving.load().as_deref()) {
        (_, None) => return,
        (Kind::TurnTls, _) => Serves::Turn,
        (_, Some(serving)) if serving.turn_shared => Serves::Both,
        _ => Serves::Web,
    };
    if serves != Serves::Web {
        let mut first = [0];
        match timeout_at(deadline, stream.peek(&mut first)).await {
            Ok(Ok(1)) if turn_stream::is_stun_on_the_wire(first[0]) => {
                return turn_stream::join(shared, stream, Vec::new(), ends).await;
            }
            Ok(Ok(1)) => {}
            _ => return shared.counters.failed_handshakes.add(),
        }
    }
    let Some((mut stream, certificate)) = handshake(shared, stream, ends, serves, deadline).await
    else {
        return;
    };
    let mut read = Vec::new();
    if serves != Serves::Web {
        let first = turn_stream::first_piece(&mut stream);
        read = match timeout_at(Instant::now() + HEAD_TIME, first).await {
            Ok(Ok(first)) if !first.is_empty() => first,
            ended => {
                tracing::debug!(%client, ?ended, "Client said nothing");
                return say_goodbye(stream).await;
            }
        };
        let alpn = stream.get_ref().1.alpn_protocol();
        if serves == Serves::Turn || turn_stream::is_turn(alpn, &read) {
            return turn_stream::join(shared, stream, read, ends).await;
        }
    }
    serve_web(shared, stream, read, client, certificate).await;
}

/// Who is served on a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Serves {
    Web,
    Turn,
    Both,
}

impl Serves {
    /// What may be chosen with ALPN.
    fn protocols(self, hello: &ClientHello<'_>) -> Protocols {
        match self {
            Self::Web => Protocols::Web,
            Self::Both => Protocols::WebAndTurn,
            Self::Turn => {
                let offers = hello.alpn().into_iter().flatten().any(|it| it == turn_stream::ALPN);
                if offers { Protocols::Turn } else { Protocols::Unsaid }
            }
        }
    }
}

/// From ClientHello to the end of the handshake; `None` when there is nothing to serve, which is
/// counted then.
async fn handshake(
    shared: &Shared,
    stream: TcpStream,
    ends: Ends,
    serves: Serves,
    deadline: Instant,
) -> Option<(TlsStream<TcpStream>, Arc<Loaded>)> {
    let client = ends.client;
    let acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let Ok(Ok(mut start)) = timeout_at(deadline, acceptor).await else {
        shared.counters.failed_handshakes.add();
        return None;
    };
    let serving = shared.serving.load_full()?;
    let hello = start.client_hello();
    let protocols = serves.protocols(&hello);
    let Some(certificate) = serving.certificate(hello.server_name()).map(Arc::clone) else {
        shared.counters.unknown_names.add();
        if let Some(suppressed) = shared.refusals.admit() {
            let name = hello.server_name().unwrap_or_default();
            tracing::info!(name, suppressed, "TLS for a name that is not served");
        }
        let goodbye = async {
            start.io.write_all(&UNRECOGNIZED_NAME).await?;
            start.io.shutdown().await
        };
        if let Ok(Err(error)) = timeout_at(deadline, goodbye).await {
            tracing::debug!(%error, "Client did not wait for the alert");
        }
        return None;
    };
    drop(serving);
    let handshake = start.into_stream(Arc::clone(certificate.config(protocols)));
    match timeout_at(deadline, handshake).await {
        Ok(Ok(stream)) => Some((stream, certificate)),
        Ok(Err(error)) => {
            shared.counters.failed_handshakes.add();
            tracing::debug!(%client, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            shared.counters.failed_handshakes.add();
            None
        }
    }
}

/// Ends a stream that nobody will be served on.
async fn say_goodbye(mut stream: TlsStream<TcpStream>) {
    if let Ok(Err(error)) = timeout(GOODBYE_TIME, stream.shutdown()).await {
        tracing::debug!(%error, "Client was gone already");
    }
}

async fn serve_web(
    shared: &Arc<Shared>,
    stream: TlsStream<TcpStream>,
    read: Vec<u8>,
    client: SocketAddr,
    certificate: Arc<Loaded>,
) {
    let verdicts = Verdicts::default();
    let guard = Guard::new(stream, read, verdicts.clone());
    let connection =
        Arc::new(Connection { shared: Arc::clone(shared), client, certificate, verdicts });
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(exchange::answer(connection, request).await) }
    });
    // One protocol so far; with HTTP/2 the builder is chosen by ALPN here.
    let served = http1().serve_connection(TokioIo::new(guard), service).with_upgrades().await;
    if let Err(error) = served {
        tracing::debug!(%client, %error, "Connection ended");
    }
}

async fn serve_redirect(shared: &Arc<Shared>, stream: TcpStream, client: SocketAddr) {
    let verdicts = Verdicts::default();
    let guard = Guard::new(stream, Vec::new(), verdicts.clone());
    let service = service_fn(|request| {
        let response = redirect::answer(shared, client, &verdicts, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    if let Err(error) = http1().serve_connection(TokioIo::new(guard), service).await {
        tracing::debug!(%client, %error, "Connection ended");
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE_TIME)
        .max_buf_size(32 * 1024)
        .max_headers(MAX_FIELDS);
    builder
}
