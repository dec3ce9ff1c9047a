//! The web server behind a guest URL: where it is, whether it answers, connections to it.
//!
//! Its certificate must carry the upstream's own name and chain to the site's roots, whatever
//! name the guest used. A connection is reused after its answer is complete; a request is tried
//! on another one only while no byte of it was sent.
//!
//! # Invariants
//!
//! 1. A request goes out over a connection whose TLS handshake has proved the upstream's name.
//! 2. A guest goes to the same address of several as long as that address is up.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::{Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Body;
use super::trust::{TrustError, client_config};
use crate::plan;

/// TCP and TLS handshakes together, to one address.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// From the request to the head of the answer.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// The same when a body goes with the request: it may take its time, the guard watches that it
/// moves at all.
const UPLOAD_TIME: Duration = Duration::from_secs(3600);
/// Reuse of an idle connection; below the 60 to 75 s after which web servers close theirs.
const REUSE_TIME: Duration = Duration::from_secs(20);
/// Idle connections kept per address.
const MAX_IDLE: usize = 32;

/// What is known of one address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// Nothing yet.
    Unchecked,
    /// It answers as it should.
    Up,
    /// Nothing listens there.
    Refused,
    /// No answer in time.
    Timeout,
    /// There is no way to the address, or it hung up.
    Unreachable,
    /// Its certificate chains to none of the roots.
    UnknownCa,
    /// Its certificate does not carry the upstream's name.
    WrongName,
    /// Any other fault of its certificate or of TLS.
    TlsError,
    /// TLS is fine, the health path is not.
    HttpError,
}

impl State {
    /// The word that status shows.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Up => "up",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::UnknownCa => "unknown-ca",
            Self::WrongName => "wrong-name",
            Self::TlsError => "tls-error",
            Self::HttpError => "http-error",
        }
    }
}

/// An address of an upstream and what was last seen there.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    seen: Mutex<Seen>,
    idle: Mutex<Vec<(SendRequest<Body>, Instant)>>,
}

/// The last observation.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) state: State,
    /// In words, for status and the log.
    pub(super) detail: String,
    /// When `state` became what it is.
    pub(super) since: SystemTime,
    /// Time of the TCP handshake.
    pub(super) rtt: Option<Duration>,
}

impl Endpoint {
    fn new(address: SocketAddr) -> Self {
        let seen = Seen {
            state: State::Unchecked,
            detail: String::new(),
            since: SystemTime::now(),
            rtt: None,
        };
        Self { address, seen: Mutex::new(seen), idle: Mutex::new(Vec::new()) }
    }

    pub(super) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Notes an observation; logs it when it is news.
    pub(super) fn note(&self, host: &str, state: State, detail: String, rtt: Option<Duration>) {
        let mut seen = lock(&self.seen);
        if seen.state != state {
            let address = self.address;
            match state {
                State::Up => tracing::info!(upstream = host, %address, "Upstream is up"),
                _ => tracing::warn!(
                    upstream = host, %address, state = state.word(), detail, "Upstream is down"
                ),
            }
            seen.since = SystemTime::now();
        }
        seen.state = state;
        seen.detail = detail;
        seen.rtt = rtt.or(seen.rtt);
    }

    fn take_idle(&self) -> Option<SendRequest<Body>> {
        let mut idle = lock(&self.idle);
        while let Some((sender, since)) = idle.pop() {
            if since.elapsed() < REUSE_TIME && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Closes connections that have been idle for too long.
    pub(super) fn prune(&self) {
        lock(&self.idle)
            .retain(|(sender, since)| since.elapsed() < REUSE_TIME && !sender.is_closed());
    }

    /// Keeps a connection for the next request once the answer on it is complete.
    fn keep(self: &Arc<Self>, mut sender: SendRequest<Body>) {
        let endpoint = Arc::downgrade(self);
        tokio::spawn(async move {
            if sender.ready().await.is_ok()
                && let Some(endpoint) = endpoint.upgrade()
            {
                let mut idle = lock(&endpoint.idle);
                if idle.len() < MAX_IDLE {
                    idle.push((sender, Instant::now()));
                }
            }
        });
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// Nothing was sent: no address takes connections.
    #[error("no upstream address takes connections")]
    Unreachable,
    /// Something was sent; it is not tried again.
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
    /// Something was sent and no answer came.
    #[error("no answer in time")]
    Timeout,
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(super) struct ConnectError {
    pub(super) state: State,
    pub(super) detail: String,
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let state = match tls {
            Some(rustls::Error::InvalidCertificate(fault)) => match fault {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    State::UnknownCa
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => State::WrongName,
                _ => State::TlsError,
            },
            Some(_) => State::TlsError,
            None => match error.kind() {
                io::ErrorKind::ConnectionRefused => State::Refused,
                io::ErrorKind::TimedOut => State::Timeout,
                _ => State::Unreachable,
            },
        };
        Self { state, detail: error.to_string() }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Upstream {
    /// The slice's words; equal ones share the running upstream across a swap.
    pub(super) plan: plan::Upstream,
    /// The guest's Host, also for the health check.
    pub(super) guest: String,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    /// Whether the resolver was asked, or need not be.
    resolved: AtomicBool,
    /// Why the last look-up found nothing.
    look_up_fault: Mutex<Option<String>>,
    endpoints: Mutex<Vec<Arc<Endpoint>>>,
}

impl Upstream {
    /// Makes it ready; connects to nothing.
    ///
    /// # Errors
    ///
    /// Returns why the name or the roots cannot be used.
    pub(super) fn new(plan: &plan::Upstream, guest: &str) -> Result<Self, TrustError> {
        let name = ServerName::try_from(plan.host.clone())
            .map_err(|_| TrustError::Name { host: plan.host.clone() })?;
        let tls = client_config(&plan.host, plan.trust.as_deref())?;
        let addresses = plan.addresses.iter().map(|ip| SocketAddr::new(*ip, plan.port));
        let endpoints = addresses.map(|address| Arc::new(Endpoint::new(address))).collect();
        Ok(Self {
            plan: plan.clone(),
            guest: guest.to_owned(),
            name,
            tls,
            resolved: AtomicBool::new(!plan.addresses.is_empty()),
            look_up_fault: Mutex::new(None),
            endpoints: Mutex::new(endpoints),
        })
    }

    /// Whether its addresses are known, or known to be unknown.
    pub(super) fn is_resolved(&self) -> bool {
        self.resolved.load(Ordering::Relaxed)
    }

    /// Its addresses, pinned or found.
    pub(super) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        lock(&self.endpoints).clone()
    }

    /// Asks the resolver again, when no address is pinned; known addresses keep their state.
    pub(super) async fn resolve(&self) {
        if !self.plan.addresses.is_empty() {
            return;
        }
        let look_up = tokio::net::lookup_host((self.plan.host.as_str(), self.plan.port));
        let found = timeout(CONNECT_TIME, look_up).await;
        self.resolved.store(true, Ordering::Relaxed);
        match found {
            Ok(Ok(found)) => {
                let mut endpoints = lock(&self.endpoints);
                let mut next: Vec<Arc<Endpoint>> = Vec::new();
                for address in found {
                    if next.iter().any(|known| known.address == address) {
                        continue;
                    }
                    let known = endpoints.iter().find(|known| known.address == address);
                    next.push(known.cloned().unwrap_or_else(|| Arc::new(Endpoint::new(address))));
                }
                *endpoints = next;
                drop(endpoints);
                self.note_look_up(None);
            }
            Ok(Err(error)) => self.note_look_up(Some(error.to_string())),
            Err(_) => self.note_look_up(Some("no DNS server answers".to_owned())),
        }
    }

    /// Why its name was not found, when it was looked up last.
    pub(super) fn look_up_fault(&self) -> Option<String> {
        lock(&self.look_up_fault).clone()
    }

    /// Notes the outcome of a look-up; logs it when it is news.
    fn note_look_up(&self, fault: Option<String>) {
        let mut known = lock(&self.look_up_fault);
        if *known == fault {
            return;
        }
        let upstream = &self.plan.host;
        match &fault {
            Some(reason) => tracing::warn!(upstream, reason, "Upstream's name is not found"),
            None => tracing::info!(upstream, "Upstream's name is found again"),
        }
        *known = fault;
    }

    /// Opens a connection to one address, with TLS, and says how long its TCP handshake took.
    ///
    /// # Errors
    ///
    /// Returns what went wrong, sorted for status.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(SendRequest<Body>, Duration), ConnectError> {
        let connect = async {
            let start = Instant::now();
            let tcp = TcpStream::connect(endpoint.address).await?;
            let rtt = start.elapsed();
            tcp.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::clone(&self.tls));
            let tls = connector.connect(self.name.clone(), tcp).await?;
            Ok::<_, ConnectError>((tls, rtt))
        };
        let (tls, rtt) = timeout(CONNECT_TIME, connect).await.map_err(|_| ConnectError {
            state: State::Timeout,
            detail: format!("no connection within {} s", CONNECT_TIME.as_secs()),
        })??;
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(64 * 1024)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|error| ConnectError { state: State::HttpError, detail: error.to_string() })?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "Upstream connection ended");
            }
        });
        Ok((sender, rtt))
    }

    /// Sends a request to the address that is `client`'s, or to another that is up; `reuse` says
    /// whether the connection may serve another request afterwards.
    ///
    /// # Errors
    ///
    /// Returns why there is no answer; the upstream's states are noted on the way.
    pub(super) async fn send(
        &self,
        client: IpAddr,
        mut request: Request<Body>,
        reuse: bool,
    ) -> Result<(Response<Incoming>, SocketAddr), SendError> {
        let limit = if request.body().is_end_stream() { ANSWER_TIME } else { UPLOAD_TIME };
        for endpoint in self.in_order(client) {
            let mut fresh = false;
            while !fresh {
                let mut sender = match endpoint.take_idle() {
                    Some(sender) => sender,
                    None => {
                        fresh = true;
                        match self.connect(&endpoint).await {
                            Ok((sender, rtt)) => {
                                if endpoint.seen().state != State::HttpError {
                                    let host = &self.plan.host;
                                    endpoint.note(host, State::Up, String::new(), Some(rtt));
                                }
                                sender
                            }
                            Err(error) => {
                                endpoint.note(&self.plan.host, error.state, error.detail, None);
                                break;
                            }
                        }
                    }
                };
                match timeout(limit, sender.try_send_request(request)).await {
                    Err(_) => return Err(SendError::Timeout),
                    Ok(Ok(response)) => {
                        if reuse {
                            endpoint.keep(sender);
                        }
                        return Ok((response, endpoint.address));
                    }
                    Ok(Err(mut error)) => match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(SendError::Broken(error.into_error())),
                    },
                }
            }
        }
        Err(SendError::Unreachable)
    }

    /// The addresses as `client` tries them: those that are up first, among them by rendezvous
    /// hashing, so that a guest stays with one and only the guests of a lost one move.
    fn in_order(&self, client: IpAddr) -> Vec<Arc<Endpoint>> {
        let mut endpoints = self.endpoints();
        endpoints.sort_by_cached_key(|endpoint| {
            let mut hasher = DefaultHasher::new();
            (client, endpoint.address).hash(&mut hasher);
            let up = matches!(endpoint.seen().state, State::Up | State::Unchecked);
            (!up, hasher.finish())
        });
        endpoints
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
