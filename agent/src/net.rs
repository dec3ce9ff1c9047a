//! `postern-agent net`: makes a generation's network plan true, and keeps it so.
//!
//! Desired -> plan -> apply -> verify over rtnetlink and nftables, in the only process that holds
//! CAP_NET_ADMIN. It reads no bundle: plans come from `postern-unseal`, generation numbers from
//! `postern-agent`, peers are known by uid. It owns the dead-man timer and the commit point
//! ([`LKG_FILE`]), and it holds every listening socket below 1024.
//!
//! | file | what |
//! |---|---|
//! | `kernel` | rtnetlink: read a snapshot, make one change |
//! | `desired`, `change` | pure: plan + links -> what should be -> list of changes |
//! | `ruleset`, `sysctl`, `sockets` | the rest of a plan |
//! | `store` | plans, `pending`, `lkg` on disk |
//! | `engine` | which generation is in force |
//! | `observe` | status |
//!
//! # Invariants
//!
//! 1. At the start last known good is applied before anything else can fail.
//! 2. A re-apply of what is in force writes nothing.
//! 3. Only routes, rules and addresses with our protocol number and the addresses of the plan's
//!    own NICs are touched.
//! 4. An unconfirmed generation is taken back at its deadline, also after a restart of this
//!    process, and after a reboot at once.
//!
//! Left out: DHCP in the rescue plan, and settings below /proc/sys that a former generation made
//! and the new one does not name (they stay until the next boot).

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::unistd::User;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::ipc::serve::{Call, serve};
use crate::ipc::{Listener, read_sealed};
use crate::message::{LKG_FILE, NET_SOCKET, NetReply, NetRequest};
use crate::notify::notify;
use crate::plan::{NetPlan, Service};

mod change;
pub(crate) mod desired;
mod engine;
pub(crate) mod kernel;
mod observe;
mod ruleset;
mod sockets;
mod store;
mod sysctl;

use engine::Engine;

/// How long to wait after a netlink event for those that come with it.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How long to wait when the last repair was just before: somebody works against us.
const BACK_OFF: Duration = Duration::from_secs(1);
/// How often firewall and settings, which send no event, are looked at.
const THOROUGH: Duration = Duration::from_secs(60);
/// The longest plan.
const LONGEST_PLAN: usize = 4 * 1024 * 1024;

/// Who may ask what.
#[derive(Clone, Copy, Debug)]
struct Peers {
    unseal: Option<u32>,
    agent: Option<u32>,
    relay: Option<u32>,
    proxy: Option<u32>,
}

/// Where things are.
#[derive(Clone, Debug)]
struct Paths {
    /// Survives reboots.
    state: PathBuf,
    /// Does not.
    run: PathBuf,
    socket: PathBuf,
}

/// Runs until it is told to stop; then the network stays as it is.
pub(crate) fn run() -> anyhow::Result<()> {
    let folder = |path: &str| Path::new(path).parent().map(Path::to_owned).unwrap_or_default();
    let paths = Paths {
        state: folder(LKG_FILE),
        run: folder(NET_SOCKET),
        socket: PathBuf::from(NET_SOCKET),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = serve_at(&paths, Peers::of_this_box()) => ended,
            _ = terminate.recv() => Ok(()),
        }
    })
}

impl Peers {
    fn of_this_box() -> Self {
        let uid = |name: &str| match User::from_name(name) {
            Ok(Some(user)) => Some(user.uid.as_raw()),
            _ => {
                tracing::warn!(user = name, "No such user: nobody can be it");
                None
            }
        };
        Self {
            unseal: uid("postern-unseal"),
            agent: uid("postern-agent"),
            relay: uid("postern-relay"),
            proxy: uid("postern-proxy"),
        }
    }

    fn may_talk(&self, uid: u32) -> bool {
        let known = [self.unseal, self.agent, self.relay, self.proxy];
        uid == 0 || known.contains(&Some(uid))
    }

    /// Whether `uid` may make `request`.
    fn may(&self, uid: u32, request: &NetRequest) -> bool {
        match request {
            NetRequest::Plan(_) => self.unseal == Some(uid),
            NetRequest::Apply(_) | NetRequest::Confirm(_) | NetRequest::Revert => {
                self.agent == Some(uid)
            }
            NetRequest::Observe => uid == 0 || self.agent == Some(uid),
            NetRequest::Listeners => !self.services(uid).is_empty(),
        }
    }

    fn services(&self, uid: u32) -> Vec<Service> {
        let both = [(self.relay, Service::Relay), (self.proxy, Service::Proxy)];
        both.into_iter().filter(|(of, _)| *of == Some(uid)).map(|(_, service)| service).collect()
    }
}

async fn serve_at(paths: &Paths, peers: Peers) -> anyhow::Result<()> {
    std::fs::create_dir_all(&paths.run)
        .with_context(|| format!("cannot make {}", paths.run.display()))?;
    let mut engine = Engine::open(&paths.state, &paths.run)?;
    let mut events = kernel::Kernel::watch().context("cannot watch netlink")?;
    engine.start().await;
    let listener = Listener::bind(&paths.socket)
        .with_context(|| format!("cannot listen at {}", paths.socket.display()))?;
    let (sender, mut calls) = mpsc::channel::<Call<NetRequest, NetReply>>(16);
    serve(listener, move |uid| peers.may_talk(uid), sender)?;
    tracing::info!(socket = %paths.socket.display(), "Ready");
    notify("READY=1");

    let mut look_at: Option<Instant> = None;
    let mut thorough_at = Instant::now() + THOROUGH;
    let mut repaired_at: Option<Instant> = None;
    loop {
        // Sleeping goes by another clock than the deadline, which also runs while the machine is
        // suspended, so the deadline is looked at every second.
        let left = engine.time_left().map(|left| left.min(Duration::from_secs(1)));
        tokio::select! {
            call = calls.recv() => {
                let Call { peer, request, fds, answer } = call.context("the socket is gone")?;
                let reply = answer_to(&mut engine, &peers, peer, request, fds).await;
                drop(answer.send(reply));
            }
            changed = events.changed() => {
                changed.context("the netlink watch has ended")?;
                let now = Instant::now();
                let recent = repaired_at.is_some_and(|at| now - at < BACK_OFF);
                look_at.get_or_insert(now + if recent { BACK_OFF } else { DEBOUNCE });
            }
            () = sleep_until(look_at.unwrap_or(thorough_at)) => {
                let thorough = Instant::now() >= thorough_at;
                look_at = None;
                if thorough {
                    thorough_at = Instant::now() + THOROUGH;
                }
                if engine.repair(thorough).await > 0 {
                    repaired_at = Some(Instant::now());
                }
            }
            () = sleep(left.unwrap_or_default()), if left.is_some() => {
                if engine.time_left().is_some_and(|left| left.is_zero()) {
                    tracing::warn!("Nobody confirmed in time");
                    engine.revert().await;
                }
            }
        }
    }
}

async fn answer_to(
    engine: &mut Engine,
    peers: &Peers,
    peer: u32,
    request: NetRequest,
    mut fds: Vec<OwnedFd>,
) -> (NetReply, Vec<OwnedFd>) {
    if !peers.may(peer, &request) {
        tracing::warn!(uid = peer, "Request refused");
        return (NetReply::Failed(format!("uid {peer} may not ask this")), Vec::new());
    }
    let failed = |error: &dyn std::fmt::Display| NetReply::Failed(error.to_string());
    let reply = match request {
        NetRequest::Plan(generation) => {
            let stored = fds
                .pop()
                .context("no memfd with the plan came along")
                .and_then(|fd| Ok(read_sealed(fd, LONGEST_PLAN)?))
                .and_then(|bytes| Ok(serde_json::from_slice::<NetPlan>(&bytes)?))
                .and_then(|plan| Ok(engine.put_plan(&generation, &plan)?));
            stored.map_or_else(|error| failed(&format!("{error:#}")), |()| NetReply::Done)
        }
        NetRequest::Apply(generation) => match engine.apply(&generation).await {
            Ok(engine::Applied { before, writes, micros }) => {
                NetReply::Applied { before, now: engine.generation().cloned(), writes, micros }
            }
            Err(error) => failed(&error),
        },
        NetRequest::Confirm(generation) => {
            engine.confirm(&generation).map_or_else(|error| failed(&error), |()| NetReply::Done)
        }
        NetRequest::Revert => {
            let engine::Applied { before, writes, micros } = engine.revert().await;
            NetReply::Applied { before, now: engine.generation().cloned(), writes, micros }
        }
        NetRequest::Observe => match observe::observe(engine).await {
            Ok(value) => NetReply::Observed(value),
            Err(error) => failed(&error),
        },
        NetRequest::Listeners => {
            let (plans, held) = engine.sockets_of(&peers.services(peer));
            let duplicates: Result<Vec<OwnedFd>, _> =
                held.iter().map(|fd| fd.try_clone_to_owned()).collect();
            return match duplicates {
                Ok(fds) => (NetReply::Listeners(plans), fds),
                Err(error) => (failed(&error), Vec::new()),
            };
        }
    };
    (reply, Vec::new())
}

#[cfg(test)]
mod tests;
