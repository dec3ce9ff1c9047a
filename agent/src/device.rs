//! `postern-agent device`: puts the device keys in place at boot, then exits.
//!
//! Keys that are there stay. Otherwise a pair that a flasher left as `postern.device` on the
//! provision partition is moved here and wiped there (`flashed`), and without one a pair is made
//! (`software`). What a person needs to seal secrets to this box goes to the log and, as
//! `device.pub`, onto the provision partition.
//!
//! # Files
//!
//! Below /var/lib/postern/device: `seal` and `identity` (private, 0600), `device.pub` (both public
//! halves), `origin` (`flashed` or `software`).
//!
//! # Invariants
//!
//! 1. `origin` is written last: without it the keys were never finished and nobody knows them.
//! 2. A flashed pair is wiped only after it is on the data partition and synced. A power cut in
//!    between leaves it in both places, and the next boot wipes it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bundle::device_key::DeviceKeys;

mod provision;
mod store;

use provision::Provision;
use store::{Origin, Store};

/// Where the keys lie.
const FOLDER: &str = "/var/lib/postern/device";

/// Puts the keys in place.
///
/// # Errors
///
/// Returns an error when there are no usable keys in the end.
pub(crate) fn run() -> anyhow::Result<()> {
    let device = provision::find(Path::new("/sys/class/block"), Path::new("/dev"));
    put_in_place(&Store::new(FOLDER), device)
}

fn put_in_place(store: &Store, device: Option<PathBuf>) -> anyhow::Result<()> {
    // Without a readable provision partition the box still gets its keys.
    let provision = device.and_then(|device| match Provision::open(&device) {
        Ok(provision) => Some(provision),
        Err(error) => {
            tracing::warn!("cannot read the provision partition {}: {error}", device.display());
            None
        }
    });
    let (keys, origin) = match store.load().context("the device keys are damaged")? {
        Some((keys, origin)) => (keys, origin),
        None => first_boot(store, provision.as_ref())?,
    };
    let text = public_text(&keys, origin);
    if let Some(provision) = &provision {
        clean_up(provision, &keys);
        if let Err(error) = provision.write_public(&text) {
            tracing::warn!("cannot write device.pub onto the provision partition: {error}");
        }
    }
    for line in text.lines() {
        tracing::info!("{}", line.trim_start_matches("# "));
    }
    Ok(())
}

fn first_boot(
    store: &Store,
    provision: Option<&Provision>,
) -> anyhow::Result<(DeviceKeys, Origin)> {
    let flashed = provision.and_then(|provision| match provision.read_private() {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!("cannot use postern.device on the provision partition: {error}");
            None
        }
    });
    let (keys, origin) = match flashed {
        Some(keys) => (keys, Origin::Flashed),
        None => (DeviceKeys::generate("postern")?, Origin::Software),
    };
    let text = public_text(&keys, origin);
    store.save(&keys, origin, &text).context("cannot store the device keys")?;
    Ok((keys, origin))
}

/// Wipes a private pair that has been moved.
fn clean_up(provision: &Provision, keys: &DeviceKeys) {
    let same = match provision.read_private() {
        Ok(None) => return,
        Ok(Some(there)) => there.seal_text() == keys.seal_text(),
        Err(_) => false,
    };
    if !same {
        tracing::warn!("postern.device on the provision partition is not this box's; left alone");
        return;
    }
    match provision.wipe_private() {
        Ok(()) => tracing::info!("Wiped postern.device from the provision partition"),
        Err(error) => {
            tracing::error!("private keys stay on the provision partition: {error}");
        }
    }
}

fn public_text(keys: &DeviceKeys, origin: Origin) -> String {
    let public = keys.public();
    format!(
        "# identity: {origin}\n# seal key {}, identity key {}\n{public}",
        public.seal.fingerprint(),
        public.identity_fingerprint()
    )
}

#[cfg(test)]
mod tests;
