//! One request over TLS: who may ask, where it goes, what comes back.
//!
//! # Invariants
//!
//! 1. A request is passed on only when its one Host is a guest's and a name of the certificate
//!    that this very connection was served with; else 421 with a page that names both sides.
//! 2. A tunnel exists only after the upstream's 101; after any other answer to an Upgrade both
//!    connections are closed, so that no byte behind it can be taken for a request.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::certificate::Loaded;
use super::forward;
use super::guard::{Guard, Verdicts};
use super::head::{Head, Refusal};
use super::name::{Authority, canonical};
use super::page;
use super::serving::{Guest, Serving};
use super::tunnel::Tunnel;
use super::upstream::SendError;
use super::{Body, Shared};

/// What hyper's server reads from on port 443.
type ClientStream = TokioIo<Guard<tokio_rustls::server::TlsStream<TcpStream>>>;
/// What hyper's client reads from.
type UpstreamStream = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

/// What all requests of one connection have in common.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) client: std::net::SocketAddr,
    /// The certificate that the client saw.
    pub(super) certificate: Arc<Loaded>,
    pub(super) verdicts: Verdicts,
}

/// Answers one request; never fails, because a failure has a page too.
pub(super) async fn answer(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Body> {
    let start = Instant::now();
    connection.shared.counters.requests.add();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = match (connection.verdicts.take(), connection.shared.serving.load_full()) {
        (Some(Ok(head)), Some(serving)) => {
            let mut response = admit(&connection, &serving, head, request).await;
            if let Some(hsts) = &serving.hsts {
                response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
            }
            response
        }
        (Some(Err(refusal)), serving) => {
            let mut response = refuse(&connection.shared, connection.client, refusal);
            if let Some(hsts) = serving.and_then(|serving| serving.hsts.clone()) {
                response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, hsts);
            }
            response
        }
        _ => page::refused(StatusCode::SERVICE_UNAVAILABLE, "nothing is served yet"),
    };
    if response.status() == StatusCode::MISDIRECTED_REQUEST {
        close(&mut response);
    }
    tracing::debug!(
        client = %connection.client,
        %method,
        path,
        status = response.status().as_u16(),
        micros = start.elapsed().as_micros(),
        "Request"
    );
    response
}

/// The answer to a head that was refused; counted, and logged at a bounded rate.
pub(super) fn refuse(
    shared: &Shared,
    client: std::net::SocketAddr,
    refusal: Refusal,
) -> Response<Body> {
    shared.counters.refused_requests.add();
    if let Some(suppressed) = shared.refusals.admit() {
        tracing::warn!(%client, reason = refusal.reason, suppressed, "Request refused");
    }
    let mut response = page::refused(refusal.status, refusal.reason);
    close(&mut response);
    response
}

/// The guest that a request is for, by its Host.
pub(super) fn guest_of<'a>(
    serving: &'a Serving,
    request: &Request<Incoming>,
    default_port: u16,
) -> Option<&'a Guest> {
    let host = request.headers().get(header::HOST)?;
    let authority = Authority::parse(host.as_bytes())?;
    let guest = serving.guests.get(&canonical(authority.host))?;
    // On port 80 a guest has no port of its own.
    let expected = if default_port == 443 { guest.port } else { default_port };
    (authority.port.unwrap_or(default_port) == expected).then_some(guest)
}

/// The page and the log line for a Host that is not served.
pub(super) fn misdirected(
    shared: &Shared,
    serving: &Serving,
    request: &Request<Incoming>,
) -> Response<Body> {
    shared.counters.refused_requests.add();
    let host = request.headers().get(header::HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let received = host[..host.len().min(255)].escape_ascii().to_string();
    let expected = serving.guest_names();
    if let Some(suppressed) = shared.refusals.admit() {
        let expected = expected.join(", ");
        tracing::warn!(received, expected, suppressed, "Request for a name that is not served");
    }
    page::misdirected(&received, &expected)
}

async fn admit(
    connection: &Connection,
    serving: &Serving,
    head: Head,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(guest) = guest_of(serving, &request, 443) else {
        return misdirected(&connection.shared, serving, &request);
    };
    if !connection.certificate.covers(&guest.host) {
        connection.shared.counters.refused_requests.add();
        return page::other_certificate(&guest.host, &connection.certificate.names);
    }
    pass_on(connection, guest, head, request).await
}

async fn pass_on(
    connection: &Connection,
    guest: &Guest,
    head: Head,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let client_end = head.websocket.then(|| hyper::upgrade::on(&mut request));
    let Ok(request) = outgoing(guest, connection.client.ip(), head, request) else {
        return page::refused(StatusCode::BAD_REQUEST, "the target");
    };
    let sent = guest.upstream.send(connection.client.ip(), request, !head.websocket).await;
    let (response, address) = match sent {
        Ok(answered) => answered,
        Err(error) => {
            tracing::debug!(guest = guest.host, %error, "No answer from the upstream");
            return match error {
                SendError::Unreachable => page::unavailable(&guest.host),
                SendError::Broken(_) => page::broken(&guest.host, StatusCode::BAD_GATEWAY),
                SendError::Timeout => page::broken(&guest.host, StatusCode::GATEWAY_TIMEOUT),
            };
        }
    };
    tracing::debug!(guest = guest.host, %address, "Answered by the upstream");
    match (response.status(), client_end) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(client_end)) => {
            switch(connection, guest, client_end, response)
        }
        (StatusCode::SWITCHING_PROTOCOLS, None) => {
            page::broken(&guest.host, StatusCode::BAD_GATEWAY)
        }
        (_, client_end) => {
            let mut response = response.map(BodyExt::boxed);
            forward::clean_response(response.headers_mut());
            if let Some(client_end) = client_end {
                close(&mut response);
                tokio::spawn(hang_up(client_end));
            }
            response
        }
    }
}

/// The request as the upstream gets it.
fn outgoing(
    guest: &Guest,
    client: std::net::IpAddr,
    head: Head,
    request: Request<Incoming>,
) -> Result<Request<Body>, http::Error> {
    let (parts, body) = request.into_parts();
    let body = if body.is_end_stream() { empty() } else { body.boxed() };
    let mut headers = parts.headers;
    forward::clean_request(&mut headers);
    forward::add_forwarded(&mut headers, client, &guest.authority);
    headers.insert(header::HOST, guest.authority.clone());
    if head.websocket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    let uri = parts.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    let mut request = Request::builder().method(parts.method).uri(uri).body(body)?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Joins both ends once hyper has let go of them.
fn switch(
    connection: &Connection,
    guest: &Guest,
    client_end: OnUpgrade,
    mut response: Response<Incoming>,
) -> Response<Body> {
    let websocket = response.headers().get(header::UPGRADE);
    if !websocket.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return page::broken(&guest.host, StatusCode::BAD_GATEWAY);
    }
    let upstream_end = hyper::upgrade::on(&mut response);
    let shared = Arc::clone(&connection.shared);
    let host = guest.host.clone();
    tokio::spawn(async move {
        let open = shared.counters.websockets.enter();
        let start = Instant::now();
        let result = join(client_end, upstream_end).await;
        let seconds = start.elapsed().as_secs();
        tracing::debug!(guest = host, seconds, ?result, "WebSocket ended");
        drop(open);
    });
    forward::clean_response(response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response.map(|_| empty())
}

async fn join(client_end: OnUpgrade, upstream_end: OnUpgrade) -> anyhow::Result<()> {
    let (client, upstream) = tokio::try_join!(client_end, upstream_end)?;
    let foreign = |_| anyhow::anyhow!("hyper returned another stream than it was given");
    let client = client.downcast::<ClientStream>().map_err(foreign)?;
    let upstream = upstream.downcast::<UpstreamStream>().map_err(foreign)?;
    let (stream, rest) = client.io.into_inner().into_parts();
    let read = [client.read_buf.as_ref(), &rest].concat();
    let upstream_read = upstream.read_buf.to_vec();
    Tunnel::new((stream, read), (upstream.io.into_inner(), upstream_read)).await?;
    Ok(())
}

/// hyper hands the stream over after a refused Upgrade too; it is then ours to close.
async fn hang_up(client_end: OnUpgrade) {
    if let Ok(stream) = client_end.await
        && let Err(error) = TokioIo::new(stream).shutdown().await
    {
        tracing::debug!(%error, "Connection ended");
    }
}

fn close(response: &mut Response<Body>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}
