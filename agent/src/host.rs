//! `postern-agent host`: host name, DNS, time servers and the clock's floor, for the agent alone.
//!
//! It is uid 0 because systemd-resolved and systemd-hostnamed refuse every other caller when there
//! is no polkit (seen with systemd 257: "Permission denied" for another uid, and yes to uid 0 with
//! no other capability than this process keeps, CAP_SYS_TIME). It reads nothing but typed verbs
//! from the agent and answers from the system bus.
//!
//! | what | how |
//! |---|---|
//! | DNS per NIC | org.freedesktop.resolve1 |
//! | host name | org.freedesktop.hostname1; /etc/hostname must not exist, a static name wins |
//! | time servers | /run/systemd/timesyncd.conf.d/postern.conf, then a restart by org.freedesktop.systemd1 |
//! | clock floor | clock_settime(2), forward only |
//! | reboot | reboot.target by org.freedesktop.systemd1 |
//!
//! Where the service manager is not on the bus (a namespace), host name and time are somebody
//! else's: they are left as they are and shown as `not managed here`.
//!
//! # Invariants
//!
//! 1. What is already so is not set again: applying a plan twice makes no change.
//! 2. One part that fails does not keep the others from being set; the reply names all that did.
//!
//! Left out: taking DNS away from a NIC that a former plan named and this one does not; the next
//! boot does.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use nix::unistd::User;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use zbus::Connection;
use zbus::names::BusName;

use crate::ipc::Listener;
use crate::ipc::serve::{Call, serve};
use crate::message::{HOST_SOCKET, HostReply, HostRequest};
use crate::net::kernel::Kernel;
use crate::notify::notify;
use crate::plan::HostPlan;

mod dns;
mod name;
mod time;

/// The system bus; not below /var/run, which may not be there yet.
const BUS: &str = "unix:path=/run/dbus/system_bus_socket";

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    let agent = match User::from_name("postern-agent") {
        Ok(Some(user)) => Some(user.uid.as_raw()),
        _ => {
            tracing::warn!("There is no user postern-agent: nobody can ask for a change");
            None
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = serve_at(Path::new(HOST_SOCKET), agent, Host::new()?) => ended,
            _ = terminate.recv() => Ok(()),
        }
    })
}

async fn serve_at(socket: &Path, agent: Option<u32>, mut host: Host) -> anyhow::Result<()> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let listener =
        Listener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    let (sender, mut calls) = mpsc::channel::<Call<HostRequest, HostReply>>(16);
    serve(listener, move |uid| uid == 0 || Some(uid) == agent, sender)?;
    tracing::info!(socket = %socket.display(), "Ready");
    notify("READY=1");
    while let Some(Call { peer, request, answer, .. }) = calls.recv().await {
        let allowed = Some(peer) == agent || matches!(request, HostRequest::Observe);
        let reply = if allowed {
            host.answer(request).await
        } else {
            tracing::warn!(uid = peer, "Request refused");
            HostReply::Failed(format!("uid {peer} may not ask this"))
        };
        drop(answer.send((reply, Vec::new())));
    }
    anyhow::bail!("the socket is gone")
}

/// The state of `postern-host`: none but its connections.
#[derive(Debug)]
struct Host {
    kernel: Kernel,
    bus: Option<Connection>,
    address: String,
    /// Where timesyncd's configuration is.
    timesyncd: PathBuf,
}

impl Host {
    /// Opens netlink; the bus is opened when it is first needed. Call it inside a tokio runtime.
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            kernel: Kernel::open().context("cannot open a netlink socket")?,
            bus: None,
            address: BUS.to_owned(),
            timesyncd: PathBuf::from(time::CONFIGURATION),
        })
    }

    async fn answer(&mut self, request: HostRequest) -> HostReply {
        let bus = match self.bus().await {
            Ok(bus) => bus,
            Err(error) => {
                return HostReply::Failed(format!(
                    "cannot reach D-Bus at {}: {error}",
                    self.address
                ));
            }
        };
        let done = match request {
            HostRequest::Apply(plan) => self.apply(&bus, &plan).await,
            HostRequest::Observe => self.observe(&bus).await.map(HostReply::Observed),
            HostRequest::Reboot => reboot(&bus).await,
        };
        done.unwrap_or_else(|error| {
            // Perhaps the bus was restarted: the next request connects anew.
            self.bus = None;
            tracing::warn!("{error:#}");
            HostReply::Failed(format!("{error:#}"))
        })
    }

    async fn bus(&mut self) -> zbus::Result<Connection> {
        if let Some(bus) = &self.bus {
            return Ok(bus.clone());
        }
        let bus = zbus::connection::Builder::address(self.address.as_str()).build().await?;
        self.bus = Some(bus.clone());
        Ok(bus)
    }

    async fn apply(&self, bus: &Connection, plan: &HostPlan) -> anyhow::Result<HostReply> {
        let started = Instant::now();
        let managed = has_manager(bus).await?;
        let mut failures = Vec::new();
        let mut writes = 0;
        let mut add = |what: &str, done: anyhow::Result<u32>| match done {
            Ok(count) => writes += count,
            Err(error) => failures.push(format!("{what}: {error:#}")),
        };
        // The clock first: everything after it may look at certificates and leases.
        add("clock", time::raise_clock(plan.clock_floor));
        add("host name", name::apply(bus, &plan.host_name, managed).await);
        add("DNS", dns::apply(bus, &self.kernel, &plan.dns).await);
        add("time servers", time::apply(bus, &self.timesyncd, &plan.ntp, managed).await);
        if !failures.is_empty() {
            anyhow::bail!(failures.join("; "));
        }
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(writes, micros, "Applied");
        Ok(HostReply::Applied { writes, micros })
    }

    async fn observe(&self, bus: &Connection) -> anyhow::Result<Value> {
        let managed = has_manager(bus).await?;
        let dns = dns::observe(bus, &self.kernel).await;
        Ok(json!({
            "host-name": name::current()?,
            "host-name-managed": name::is_managed(bus, managed).await?,
            "dns": dns.as_ref().ok(),
            "dns-problem": dns.as_ref().err().map(|error| format!("{error:#}")),
            "time": time::observe(&self.timesyncd, managed),
        }))
    }
}

/// Whether the service manager is on the bus.
async fn has_manager(bus: &Connection) -> anyhow::Result<bool> {
    has_owner(bus, "org.freedesktop.systemd1").await
}

async fn has_owner(bus: &Connection, name: &'static str) -> anyhow::Result<bool> {
    let daemon = zbus::fdo::DBusProxy::new(bus).await?;
    Ok(daemon.name_has_owner(BusName::try_from(name)?).await?)
}

/// org.freedesktop.systemd1(5).
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait ServiceManager {
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<zbus::OwnedObjectPath>;
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<zbus::OwnedObjectPath>;
}

async fn reboot(bus: &Connection) -> anyhow::Result<HostReply> {
    let manager = ServiceManagerProxy::new(bus).await?;
    // Not the method Reboot, which asks for CAP_SYS_BOOT.
    manager.start_unit("reboot.target", "replace-irreversibly").await?;
    Ok(HostReply::Applied { writes: 1, micros: 0 })
}

#[cfg(test)]
mod tests;
