//! `postern-agent proxy`: the web proxy that guests meet, without any privilege.
//!
//! It terminates TLS for the guest URLs, admits what is for one of them, and passes it to that
//! guest's upstream. It learns what to serve from the agent ([`SliceRequest`]) and gets the
//! sockets below port 1024 from `postern-net`.
//!
//! ```text
//! accept -> limits -> ClientHello: known name? -> TLS -> guard: strict head -> hyper
//!                  \                            \      -> exchange: guest? certificate?
//!                   `--- TURN without TLS ----- TURN    -> upstream pool -> answer, or 101
//!                                                \                          and a tunnel
//!                                                 `-> relay (local socket)
//! ```
//!
//! # Specifications
//!
//! - [RFC 9110](https://www.rfc-editor.org/rfc/rfc9110), [RFC 9112](https://www.rfc-editor.org/rfc/rfc9112)
//!   (HTTP/1.1), [RFC 6455](https://www.rfc-editor.org/rfc/rfc6455) (WebSocket, as a tunnel),
//!   [RFC 6797](https://www.rfc-editor.org/rfc/rfc6797) (HSTS),
//!   [RFC 9525](https://www.rfc-editor.org/rfc/rfc9525) (names in certificates).
//! - TURN over TLS, and how it shares port 443: [`turn_stream`].
//!
//! Left out: HTTP/2, ACME.
//!
//! # Invariants
//!
//! 1. What is served is one value behind one pointer; a new slice replaces it whole or not at
//!    all.
//! 2. A swap ends no connection: listeners are exchanged, connections and tunnels go on.
//! 3. No slice, no listener.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use arc_swap::ArcSwapOption;
use http_body_util::combinators::BoxBody;
use hyper::body::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::connection_limit::ConnectionLimit;
use crate::ipc::{Channel, read_sealed};
use crate::message::{
    AGENT_SOCKET, NET_SOCKET, NetReply, NetRequest, STREAMS_SOCKET, SliceReply, SliceRequest,
};
use crate::plan::{Generation, ProxySlice, Service, Transport};

mod certificate;
mod chunked;
mod counters;
mod exchange;
mod forward;
mod guard;
mod head;
mod health;
mod listener;
mod name;
mod page;
mod redirect;
mod serving;
mod trust;
mod tunnel;
mod turn_stream;
mod upstream;

use counters::{Counters, LogLimit};
use listener::{Kind, MAX_CONNECTIONS, MAX_PER_SOURCE};
use serving::{Serving, SliceError};
use upstream::State;

/// Bodies in both directions.
type Body = BoxBody<Bytes, hyper::Error>;

/// Longest slice; a bundle is at most 1 MiB.
const MAX_SLICE: usize = 4 * 1024 * 1024;
/// Between two attempts to reach the agent.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let proxy = Proxy::new(STREAMS_SOCKET);
    std::thread::Builder::new().name("slices".into()).spawn(move || {
        let _context = handle.enter();
        loop {
            let ended = Channel::connect(Path::new(AGENT_SOCKET))
                .and_then(|agent| attend(&agent, &proxy, Path::new(NET_SOCKET)));
            if let Err(error) = ended {
                tracing::debug!(%error, "No agent");
            }
            std::thread::sleep(RETRY);
        }
    })?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate())?.recv().await;
        Ok(())
    })
}

/// A connection takes a descriptor, a passed-on one two: as many as the unit file allows.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "The limit of open files stays");
    }
}

/// Does what the agent asks, until it hangs up. Needs the context of a running runtime.
///
/// # Errors
///
/// Returns the error of the connection to the agent.
fn attend(agent: &Channel, proxy: &Proxy, net: &Path) -> std::io::Result<()> {
    while let Some((request, fds)) = agent.receive::<SliceRequest>()? {
        let reply = match request {
            SliceRequest::Report => SliceReply::Report(proxy.report()),
            SliceRequest::Stop => {
                proxy.stop();
                tracing::info!("Serving nothing");
                SliceReply::Stopped
            }
            SliceRequest::Serve(generation) => {
                match accept_slice(proxy, generation.clone(), fds, net) {
                    Ok(()) => {
                        tracing::info!(serial = generation.serial, "Serving");
                        SliceReply::Ready(generation)
                    }
                    Err(error) => {
                        let reason = format!("{error:#}");
                        tracing::warn!(serial = generation.serial, reason, "Slice refused");
                        SliceReply::Failed(generation, reason)
                    }
                }
            }
        };
        agent.send(&reply, &[])?;
    }
    Ok(())
}

fn accept_slice(
    proxy: &Proxy,
    generation: Generation,
    fds: Vec<std::os::fd::OwnedFd>,
    net: &Path,
) -> anyhow::Result<()> {
    let memfd = fds.into_iter().next().context("no slice came with the request")?;
    let bytes = read_sealed(memfd, MAX_SLICE).context("cannot read the slice")?;
    let slice: ProxySlice = serde_json::from_slice(&bytes).context("cannot read the slice")?;
    let privileged = slice.tls.iter().chain(&slice.redirect).any(|address| address.port() < 1024);
    let held = privileged || !slice.turn_tls.is_empty();
    let listeners = if held { fetch_listeners(net)? } else { BTreeMap::new() };
    proxy.serve(generation, &slice, listeners)?;
    Ok(())
}

/// Asks `postern-net` for the sockets that the generation in force gives to the proxy.
fn fetch_listeners(net: &Path) -> anyhow::Result<BTreeMap<SocketAddr, TcpListener>> {
    let net = Channel::connect(net).context("cannot reach postern-net for the listeners")?;
    net.send(&NetRequest::Listeners, &[])?;
    let (reply, fds) = net.receive()?.context("postern-net hung up")?;
    match reply {
        NetReply::Listeners(plans) => Ok(plans
            .into_iter()
            .zip(fds)
            .filter(|(plan, _)| plan.owner == Service::Proxy && plan.transport == Transport::Tcp)
            .map(|(plan, fd)| (plan.address, TcpListener::from(fd)))
            .collect()),
        NetReply::Failed(reason) => anyhow::bail!("postern-net gives no listeners: {reason}"),
        other => anyhow::bail!("postern-net gave an unexpected answer: {other:?}"),
    }
}

/// What connections share.
#[derive(Debug)]
struct Shared {
    serving: ArcSwapOption<Serving>,
    counters: Counters,
    refusals: LogLimit,
    limit: Arc<ConnectionLimit>,
    /// The relay's socket for TURN streams.
    streams: PathBuf,
    /// How often it is logged that nobody answers there.
    relay_faults: LogLimit,
}

/// A listener and the task that accepts on it.
#[derive(Debug)]
struct Accepting {
    kind: Kind,
    listener: Arc<tokio::net::TcpListener>,
    task: AbortHandle,
}

/// The proxy; all its methods need the context of a running tokio runtime.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    accepting: Mutex<BTreeMap<SocketAddr, Accepting>>,
}

impl Proxy {
    /// Serves nothing yet; TURN clients will be joined to the relay at `streams`.
    pub(crate) fn new(streams: impl Into<PathBuf>) -> Self {
        let shared = Shared {
            serving: ArcSwapOption::default(),
            counters: Counters::default(),
            refusals: LogLimit::default(),
            limit: ConnectionLimit::new(MAX_CONNECTIONS, MAX_PER_SOURCE),
            streams: streams.into(),
            relay_faults: LogLimit::default(),
        };
        Self { shared: Arc::new(shared), accepting: Mutex::default() }
    }

    /// Serves a slice in place of what was served before, on `provided` sockets; addresses that
    /// are not among them go on being listened on, or are bound.
    ///
    /// # Errors
    ///
    /// Returns why the slice cannot be served; then nothing has changed.
    pub(crate) fn serve(
        &self,
        generation: Generation,
        slice: &ProxySlice,
        mut provided: BTreeMap<SocketAddr, TcpListener>,
    ) -> Result<(), SliceError> {
        let before = self.shared.serving.load_full();
        let serving = Serving::new(generation, slice, before.as_deref())?;
        let mut accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner);
        let tls = slice.tls.iter().map(|address| (*address, Kind::Tls));
        let turn_tls = slice.turn_tls.iter().map(|address| (*address, Kind::TurnTls));
        let redirect = slice.redirect.iter().map(|address| (*address, Kind::Redirect));
        let mut ready = BTreeMap::new();
        for (address, kind) in redirect.chain(turn_tls).chain(tls) {
            let known = accepting.get(&address).map(|known| Arc::clone(&known.listener));
            let listener = match (provided.remove(&address), known) {
                (Some(listener), _) => into_tokio(listener).map(Arc::new),
                (None, Some(known)) => Ok(known),
                (None, None) => TcpListener::bind(address).and_then(into_tokio).map(Arc::new),
            };
            let listener = listener.map_err(|source| SliceError::Listen { address, source })?;
            ready.insert(address, (kind, listener));
        }
        self.shared.serving.store(Some(Arc::new(serving)));
        for known in accepting.values() {
            known.task.abort();
        }
        *accepting = ready
            .into_iter()
            .map(|(address, (kind, listener))| {
                let accept =
                    listener::accept(Arc::clone(&self.shared), Arc::clone(&listener), kind);
                let task = tokio::spawn(accept).abort_handle();
                (address, Accepting { kind, listener, task })
            })
            .collect();
        Ok(())
    }

    /// Closes every listener and forgets the slice; a connection that is still there gets no
    /// further request through.
    pub(crate) fn stop(&self) {
        self.shared.serving.store(None);
        let mut accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner);
        for known in std::mem::take(&mut *accepting).into_values() {
            known.task.abort();
        }
    }

    /// The status object: what is observed, not what was asked for.
    pub(crate) fn report(&self) -> Value {
        let accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner);
        let listeners: Vec<Value> = accepting
            .iter()
            .map(|(address, it)| json!({ "address": address, "kind": it.kind.word() }))
            .collect();
        drop(accepting);
        let serving = self.shared.serving.load_full();
        let mut report = json!({ "serving": serving.is_some(), "listeners": listeners });
        if let (Some(serving), Value::Object(report)) = (serving, &mut report) {
            report.insert("generation".into(), json!(serving.generation));
            report.insert("turn-shared".into(), json!(serving.turn_shared));
            report.insert("guests".into(), serving.guests.values().map(guest_report).collect());
            report
                .insert("upstreams".into(), serving.guests.values().map(upstream_report).collect());
            let now = unix_seconds(SystemTime::now());
            let certificates = serving.certificates.iter().map(|it| it.report(now)).collect();
            report.insert("certificates".into(), certificates);
        }
        if let (Value::Object(report), Value::Object(counters)) =
            (&mut report, self.shared.counters.report())
        {
            report.extend(counters);
        }
        report
    }
}

fn guest_report(guest: &serving::Guest) -> Value {
    let endpoints = guest.upstream.endpoints().into_iter();
    let addresses: Vec<Value> = endpoints
        .map(|endpoint| {
            let seen = endpoint.seen();
            json!({
                "address": endpoint.address,
                "state": seen.state.word(),
                "detail": seen.detail,
                "last-change": certificate::rfc3339(unix_seconds(seen.since)),
                "rtt-micros": seen.rtt.map(|rtt| rtt.as_micros()),
            })
        })
        .collect();
    let plan = &guest.upstream.plan;
    json!({
        "host": guest.host,
        "url": guest.url,
        "upstream": { "host": plan.host, "port": plan.port, "addresses": addresses },
    })
}

/// The verdict on a guest's upstream: reachable when one of its addresses is, unknown until one
/// was looked at.
fn upstream_report(guest: &serving::Guest) -> Value {
    let seen: Vec<_> = guest.upstream.endpoints().iter().map(|it| it.seen()).collect();
    let reachable = if seen.iter().any(|seen| seen.state == State::Up) {
        Some(true)
    } else if seen.iter().all(|seen| seen.state == State::Unchecked) && !seen.is_empty() {
        None
    } else {
        guest.upstream.is_resolved().then_some(false)
    };
    let faults = seen.iter().filter(|seen| seen.state != State::Up);
    let mut reason: Vec<String> =
        faults.map(|seen| format!("{}: {}", seen.state.word(), seen.detail)).collect();
    if let Some(fault) = guest.upstream.look_up_fault() {
        reason.push(format!("its name is not found: {fault}"));
    }
    json!({
        "guest": guest.host,
        "host": guest.upstream.plan.host,
        "reachable": reachable,
        "reason": reason.join("; "),
    })
}

fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn into_tokio(listener: TcpListener) -> std::io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

#[cfg(test)]
mod tests;
