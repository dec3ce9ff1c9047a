//! The D-Bus interface `org.postern.Agent1`: `Status`, `Metrics`, `Apply`, `Confirm`,
//! `StateChanged`.
//!
//! Everybody on the box may ask for status and metrics; only uid 0 may change anything. The bus policy
//! says so, and so do we. Without a bus the agent does its work all the same and tries again each
//! second.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, fdo, interface};

use super::apply::{Event, Shared};
use super::{MAX_BUNDLE, metrics, status};
use crate::ipc::read_sealed;

/// Well-known name and interface.
pub(crate) const NAME: &str = "org.postern.Agent1";
/// Where the object is.
pub(crate) const PATH: &str = "/org/postern/Agent1";
/// The system bus; not /var/run, which may not be there yet.
const BUS: &str = "unix:path=/run/dbus/system_bus_socket";

/// The address of the system bus.
pub(crate) fn address() -> String {
    std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|_| BUS.to_owned())
}

/// Serves the interface for ever.
pub(crate) fn serve(
    shared: Arc<Shared>,
    events: Sender<Event>,
    progress: UnboundedReceiver<(String, String)>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(shared, events, progress)),
        Err(error) => tracing::error!("no D-Bus: {error}"),
    }
}

async fn run(
    shared: Arc<Shared>,
    events: Sender<Event>,
    mut progress: UnboundedReceiver<(String, String)>,
) {
    let mut said = false;
    loop {
        match connect(&shared, &events).await {
            Ok(connection) => {
                tracing::info!("on the bus as {NAME}");
                said = false;
                emit(&connection, &mut progress).await;
                tracing::warn!("the bus went away");
            }
            Err(error) => {
                if !said {
                    tracing::warn!("no bus yet: {error}");
                    said = true;
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn connect(shared: &Arc<Shared>, events: &Sender<Event>) -> zbus::Result<Connection> {
    let agent = Agent1 { shared: Arc::clone(shared), events: events.clone() };
    zbus::connection::Builder::address(address().as_str())
        .serve_at(PATH, agent)
        .name(NAME)
        .build()
        .await
}

/// Sends each step as a signal, until the bus is gone.
async fn emit(connection: &Connection, progress: &mut UnboundedReceiver<(String, String)>) {
    let emitter = match SignalEmitter::new(connection, PATH) {
        Ok(emitter) => emitter,
        Err(error) => return tracing::error!("{PATH}: {error}"),
    };
    loop {
        tokio::select! {
            () = connection.closed() => return,
            step = progress.recv() => {
                let Some((state, detail)) = step else { return };
                if let Err(error) = Agent1::state_changed(&emitter, &state, &detail).await {
                    tracing::warn!("StateChanged: {error}");
                }
            }
        }
    }
}

/// The object.
#[derive(Debug)]
struct Agent1 {
    shared: Arc<Shared>,
    events: Sender<Event>,
}

#[interface(name = "org.postern.Agent1")]
impl Agent1 {
    /// What is observed now, as one JSON object.
    async fn status(&self) -> fdo::Result<String> {
        let shared = Arc::clone(&self.shared);
        let observed = tokio::task::spawn_blocking(move || status::observe(&shared).to_string());
        observed.await.map_err(|error| fdo::Error::Failed(error.to_string()))
    }

    /// The numbers of the status in the text format of Prometheus.
    async fn metrics(&self) -> fdo::Result<String> {
        let shared = Arc::clone(&self.shared);
        let rendered =
            tokio::task::spawn_blocking(move || metrics::render(&status::observe(&shared)));
        rendered.await.map_err(|error| fdo::Error::Failed(error.to_string()))
    }

    /// Takes a bundle, a sealed memfd, all the way; returns what became of it as JSON.
    async fn apply(
        &self,
        bundle: zbus::OwnedFd,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        only_root(&header, connection).await?;
        let bytes = read_sealed(OwnedFd::from(bundle), MAX_BUNDLE)
            .map_err(|error| fdo::Error::InvalidArgs(format!("bundle: {error}")))?;
        let (reply, outcome) = oneshot::channel();
        self.events.send(Event::Offer(bytes, reply)).map_err(|_| stopping())?;
        let outcome = outcome.await.map_err(|_| stopping())?;
        serde_json::to_string(&outcome).map_err(|error| fdo::Error::Failed(error.to_string()))
    }

    /// Keeps what waits for a confirmation by hand; returns its serial.
    async fn confirm(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<u64> {
        only_root(&header, connection).await?;
        let (reply, confirmed) = oneshot::channel();
        self.events.send(Event::Confirm(reply)).map_err(|_| stopping())?;
        match confirmed.await.map_err(|_| {
            fdo::Error::Failed("it was taken back before it could be confirmed".to_owned())
        })? {
            Ok(generation) => Ok(generation.serial),
            Err(reason) => Err(fdo::Error::Failed(reason)),
        }
    }

    /// A bundle has moved on.
    #[zbus(signal)]
    async fn state_changed(
        emitter: &SignalEmitter<'_>,
        state: &str,
        detail: &str,
    ) -> zbus::Result<()>;
}

fn stopping() -> fdo::Error {
    fdo::Error::Failed("the agent is stopping".to_owned())
}

/// Asks the bus, not the caller, who is calling.
async fn only_root(header: &Header<'_>, connection: &Connection) -> fdo::Result<()> {
    let sender = header
        .sender()
        .ok_or_else(|| fdo::Error::AccessDenied("a caller without a name".to_owned()))?;
    let bus = fdo::DBusProxy::new(connection).await?;
    match bus.get_connection_unix_user(sender.to_owned().into()).await? {
        0 => Ok(()),
        uid => Err(fdo::Error::AccessDenied(format!("uid {uid} may only ask for the status"))),
    }
}
