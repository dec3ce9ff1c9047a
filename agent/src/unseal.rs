//! `postern-agent unseal`: judges one bundle and plans it, then exits.
//!
//! One process per bundle, started for each connection with the socket as standard input. It holds
//! the box's seal key and reads what strangers wrote, so it has no network, no capability and
//! nothing it may write: files and credentials in ([`inputs`]), messages and sealed memfds out.
//!
//! # Invariants
//!
//! 1. `postern-net` has the plan before the agent hears "accepted".
//! 2. Verified trust that is newer than what is stored goes back to the agent even when the bundle
//!    is refused, so that a revocation sticks.
//! 3. No reply and no log line holds a secret; only slices do.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

use crate::ipc::{Channel, read_sealed, seal};
use crate::message::{NET_SOCKET, NetReply, NetRequest, UnsealReply, UnsealRequest};
use crate::plan::derive::Derived;
use crate::plan::{Generation, Service};

mod confine;
mod inputs;
mod judge;

use inputs::Inputs;
use judge::{Ready, Refusal};

/// How long postern-net may take to answer its socket, as at boot.
const NET_PATIENCE: Duration = Duration::from_secs(10);

/// Answers one request.
///
/// # Errors
///
/// Returns an error when the agent cannot be heard or told.
pub(crate) fn run() -> anyhow::Result<()> {
    confine::confine().context("cannot confine this process")?;
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    serve(&Channel::from_fd(stdin), Inputs::read, &|generation, derived| {
        hand_over(Path::new(NET_SOCKET), generation, derived)
    })
}

/// Gives the plan of a generation to `postern-net`.
type HandOver<'a> = &'a dyn Fn(&Generation, &Derived) -> Result<(), Refusal>;

fn serve(
    agent: &Channel,
    inputs: impl FnOnce() -> Result<Inputs, Refusal>,
    hand_over: HandOver<'_>,
) -> anyhow::Result<()> {
    let Some((request, mut fds)) =
        agent.receive::<UnsealRequest>().context("cannot read the request")?
    else {
        return Ok(());
    };
    let bundle = fds.pop().context("no bundle came beside the request")?;
    let bundle = read_sealed(bundle, bundle::container::MAX_FILE)
        .context("cannot read the bundle that came beside the request")?;
    let mut trust = None;
    let answer = inputs().and_then(|inputs| {
        let verdict = judge::judge(&request, &bundle, &inputs);
        trust = verdict.newer_trust;
        let ready = verdict.outcome?;
        hand_over(&ready.generation, &ready.derived)?;
        Ok(ready)
    });
    let trust = trust.map(|records| seal("trust", &records)).transpose()?;
    let (reply, slices) = match answer {
        Ok(ready) => accepted(ready)?,
        Err(Refusal { code, reason }) => {
            tracing::warn!(code, "Refused: {reason}");
            (UnsealReply::Refused { code: code.to_owned(), reason }, Vec::new())
        }
    };
    let fds: Vec<BorrowedFd<'_>> = slices.iter().chain(&trust).map(AsFd::as_fd).collect();
    agent.send(&reply, &fds).context("cannot answer")
}

fn accepted(ready: Ready) -> anyhow::Result<(UnsealReply, Vec<OwnedFd>)> {
    let Ready { generation, summary, derived, unchanged, trust_version } = ready;
    let mut slices = Vec::new();
    let mut memfds = Vec::new();
    if let Some(relay) = &derived.relay {
        slices.push(Service::Relay);
        memfds.push(seal("relay", &serde_json::to_vec(relay)?)?);
    }
    if let Some(proxy) = &derived.proxy {
        slices.push(Service::Proxy);
        memfds.push(seal("proxy", &serde_json::to_vec(proxy)?)?);
    }
    tracing::info!(serial = generation.serial, digest = generation.digest, "Accepted");
    let reply = UnsealReply::Accepted {
        generation,
        summary,
        deadline: derived.net.deadline,
        host: derived.host,
        slices,
        require: derived.require,
        auto_confirm: derived.auto_confirm,
        unchanged,
        trust_version,
    };
    Ok((reply, memfds))
}

fn hand_over(socket: &Path, generation: &Generation, derived: &Derived) -> Result<(), Refusal> {
    let fail = |reason: String| Refusal { code: "net", reason };
    let exchange = || -> io::Result<Option<NetReply>> {
        let plan = seal("plan", &serde_json::to_vec(&derived.net)?)?;
        let net = connect_patiently(socket)?;
        net.send(&NetRequest::Plan(generation.clone()), &[plan.as_fd()])?;
        Ok(net.receive::<NetReply>()?.map(|(reply, _)| reply))
    };
    match exchange() {
        Ok(Some(NetReply::Done)) => Ok(()),
        Ok(Some(NetReply::Failed(reason))) => {
            Err(fail(format!("postern-net did not take the plan: {reason}")))
        }
        Ok(_) => Err(fail("postern-net gave no answer to the plan".to_owned())),
        Err(error) => Err(fail(format!("postern-net cannot be given the plan: {error}"))),
    }
}

/// Connects to postern-net, which may just be starting, at boot or after a crash.
fn connect_patiently(socket: &Path) -> io::Result<Channel> {
    let deadline = Instant::now() + NET_PATIENCE;
    loop {
        match Channel::connect(socket) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

/// What status shows of a bundle.
fn summary(
    manifest: &bundle::manifest::Manifest,
    box_name: &str,
    signers: &[bundle::signature::Fingerprint],
) -> BTreeMap<String, serde_json::Value> {
    let signers: Vec<String> = signers.iter().map(ToString::to_string).collect();
    BTreeMap::from([
        ("site".to_owned(), json!(manifest.site)),
        ("box".to_owned(), json!(box_name)),
        ("signers".to_owned(), json!(signers)),
        ("created-at".to_owned(), json!(manifest.created_at)),
        ("reason".to_owned(), json!(manifest.reason)),
        ("bundle-id".to_owned(), json!(manifest.bundle_id)),
    ])
}

#[cfg(test)]
mod tests;
