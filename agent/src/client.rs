//! What a person calls on the box: `status`, `metrics`, `apply`, `confirm`, over D-Bus to the
//! agent.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use serde_json::Value;
use zbus::DBusError as _;

use crate::control::{MAX_BUNDLE, bus};
use crate::ipc;

pub(crate) mod text;

/// The agent, as seen from outside.
#[zbus::proxy(
    interface = "org.postern.Agent1",
    default_service = "org.postern.Agent1",
    default_path = "/org/postern/Agent1"
)]
trait Agent1 {
    /// The status as JSON.
    fn status(&self) -> zbus::Result<String>;

    /// The metrics as text.
    fn metrics(&self) -> zbus::Result<String>;

    /// Takes a bundle; returns the outcome as JSON.
    fn apply(&self, bundle: zbus::OwnedFd) -> zbus::Result<String>;

    /// Confirms by hand.
    fn confirm(&self) -> zbus::Result<u64>;

    /// A bundle has moved on.
    #[zbus(signal)]
    fn state_changed(&self, state: String, detail: String);
}

/// Prints the status.
pub(crate) fn status(json: bool) -> anyhow::Result<()> {
    let status = fetch_status()?;
    let text = if json { format!("{status:#}\n") } else { text::status(&status) };
    print(&text)
}

/// Prints the metrics.
pub(crate) fn metrics() -> anyhow::Result<()> {
    let text = runtime()?.block_on(async {
        let connection = connect().await?;
        Agent1Proxy::new(&connection).await?.metrics().await.map_err(plain)
    })?;
    print(&text)
}

/// Asks the agent for its status.
///
/// # Errors
///
/// Says that there is no bus or no agent.
pub(crate) fn fetch_status() -> anyhow::Result<Value> {
    runtime()?.block_on(async {
        let connection = connect().await?;
        let agent = Agent1Proxy::new(&connection).await?;
        let status = agent.status().await.map_err(plain)?;
        serde_json::from_str(&status).context("the agent's answer is not JSON")
    })
}

/// Hands over a bundle, prints each step and the verdict.
pub(crate) fn apply(bundle: &Path) -> ExitCode {
    match runtime().and_then(|runtime| runtime.block_on(hand_over(bundle))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether the bundle is in force now.
async fn hand_over(bundle: &Path) -> anyhow::Result<bool> {
    let bytes = std::fs::read(bundle).with_context(|| format!("{}", bundle.display()))?;
    if bytes.len() > MAX_BUNDLE {
        bail!("{}: {} bytes; a bundle has at most {MAX_BUNDLE}", bundle.display(), bytes.len());
    }
    let memfd: OwnedFd = ipc::seal("bundle", &bytes).context("memfd")?;
    let connection = connect().await?;
    let agent = Agent1Proxy::new(&connection).await?;
    let mut steps = agent.receive_state_changed().await?;
    let call = agent.apply(zbus::OwnedFd::from(memfd));
    tokio::pin!(call);
    let outcome = loop {
        tokio::select! {
            biased;
            Some(step) = steps.next() => print_step(&step)?,
            outcome = &mut call => break outcome.map_err(plain)?,
        }
    };
    // Signals and the answer travel in order, but through two queues.
    while let Ok(Some(step)) =
        tokio::time::timeout(std::time::Duration::from_millis(50), steps.next()).await
    {
        print_step(&step)?;
    }
    let outcome: Value = serde_json::from_str(&outcome).context("the agent's answer")?;
    print(&text::outcome(&outcome))?;
    Ok(matches!(outcome["verdict"].as_str(), Some("confirmed" | "unchanged")))
}

fn print_step(step: &StateChanged) -> anyhow::Result<()> {
    let step = step.args()?;
    print(&format!("  {:<13}{}\n", step.state, step.detail))
}

/// Keeps what waits for a confirmation by hand.
pub(crate) fn confirm() -> anyhow::Result<()> {
    let serial = runtime()?.block_on(async {
        let connection = connect().await?;
        Agent1Proxy::new(&connection).await?.confirm().await.map_err(plain)
    })?;
    print(&format!("serial {serial} is confirmed\n"))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn connect() -> anyhow::Result<zbus::Connection> {
    let address = bus::address();
    zbus::connection::Builder::address(address.as_str())
        .build()
        .await
        .with_context(|| format!("no system bus at {address}"))
}

/// The sentence in a D-Bus error, without its name where there is one.
fn plain(error: zbus::Error) -> anyhow::Error {
    let sentence = match &error {
        zbus::Error::MethodError(_, Some(sentence), _) => Some(sentence.as_str()),
        zbus::Error::FDO(inner) => inner.description(),
        _ => None,
    };
    sentence.map_or_else(
        || anyhow::anyhow!("agent: {error}"),
        |sentence| anyhow::anyhow!("agent: {sentence}"),
    )
}

/// Writes to standard output; a closed pipe is no fault.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("standard output"),
    }
}
