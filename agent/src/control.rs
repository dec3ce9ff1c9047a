//! `postern-agent agent`: takes bundles and drives the other processes. It holds no capability,
//! parses nothing that strangers wrote and opens no slice.
//!
//! A bundle comes from the firmware (credential `postern.bundle`, at start) or from a person
//! (D-Bus `org.postern.Agent1`, which `postern-agent apply` calls). postern-unseal judges it, hands
//! the network's plan to postern-net and the rest to us. Then, in this order: keep the bundle,
//! network, host, services, local invariants, outside probes, confirmation by postern-net. What
//! goes wrong after the first change takes all of it back. The way of a bundle is drawn in
//! [`state`].
//!
//! # Invariants
//!
//! 1. Only postern-net's last known good says what is in force; our journal is a log.
//! 2. A bundle that is refused or unchanged leaves no trace on disk, but for newer trust.
//! 3. Whatever restarts, in whatever order, ends with every process having its part of last known
//!    good.
//!
//! Left out so far: finding bundles anywhere else (`postern-fetch`), the admin API, probes of DNS
//! and of the static NAT address.

use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use anyhow::Context as _;

mod apply;
pub(crate) mod bus;
mod metrics;
mod peers;
mod probe;
mod serving;
mod state;
mod status;
mod store;

use apply::{Agent, Shared};
use peers::Places;
use store::Store;

/// Longest bundle.
pub(crate) const MAX_BUNDLE: usize = 1 << 20;

/// Runs until it is told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    let places = Places::of_the_box();
    let store = Store::open(&places.state)
        .with_context(|| format!("cannot use {}", places.state.display()))?;
    let shared = Arc::new(Shared::new(places));
    shared
        .serving
        .listen(&shared.places.agent)
        .with_context(|| format!("cannot listen at {}", shared.places.agent.display()))?;
    let (events, inbox) = mpsc::channel();
    let (progress, watched) = tokio::sync::mpsc::unbounded_channel();
    let bus = Arc::clone(&shared);
    thread::Builder::new()
        .name("bus".to_owned())
        .spawn(move || bus::serve(bus, events, watched))
        .context("cannot start the thread for D-Bus")?;
    crate::notify::notify("READY=1");
    Agent::new(shared, store, inbox, progress).run(delivered());
    Ok(())
}

/// The bundle that the firmware delivered, if any (systemd.exec(5), ImportCredential=).
fn delivered() -> Option<Vec<u8>> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let path = Path::new(&folder).join("postern.bundle");
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!("{}: {error}", path.display());
            None
        }
    }
}
