//! What `postern-net` keeps on disk: plans, the pending change and the one commit point.
//!
//! | file | meaning |
//! |---|---|
//! | `plans/SERIAL-DIGEST.json` | plans from `postern-unseal`, the last [`KEPT`] |
//! | `pending` | an unconfirmed generation is being tried: written before its first kernel write, removed when it is confirmed or taken back |
//! | `lkg` | [`LastKnownGood`]; a generation is confirmed when this file names it |
//!
//! # Invariants
//!
//! 1. Each file is replaced by tmp + fsync + rename + fsync of the directory, so that after a
//!    power cut it is whole, and what was reported as written is there.
//! 2. `lkg` never names a generation whose plan is not on disk.
//! 3. A `pending` of another boot means that the box went down while trying: it is taken back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::message::LastKnownGood;
use crate::plan::{Generation, NetPlan};

/// How many plans are kept, besides those in use.
const KEPT: usize = 5;

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// A file could not be read or replaced.
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    /// A file is not what it should be.
    #[error("{path} is damaged: {source}")]
    Damaged { path: String, source: serde_json::Error },
    /// No such plan.
    #[error("there is no plan of generation {serial} ({digest}); hand it over first", serial = .0.serial, digest = .0.digest)]
    NoPlan(Generation),
    /// A digest that is not one.
    #[error("a digest is 64 lower-case hex digits, not {0:?}")]
    Digest(String),
}

/// An unconfirmed generation.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Pending {
    /// The generation being tried.
    pub(crate) generation: Generation,
    /// What was last known good when it began.
    pub(crate) previous: Option<Generation>,
    /// When it is taken back, on `CLOCK_BOOTTIME`.
    pub(crate) deadline: Duration,
    /// Which boot that clock belongs to.
    pub(crate) boot_id: String,
}

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the state directory, making what is missing.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::File`].
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let plans = directory.join("plans");
        fs::create_dir_all(&plans).map_err(|source| file(&plans, source))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Remembers a plan and forgets the oldest that nothing refers to. Writes nothing when it is
    /// already there.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError`] when the disk does not take it.
    pub(crate) fn put_plan(
        &self,
        generation: &Generation,
        plan: &NetPlan,
        in_use: &[Generation],
    ) -> Result<(), StoreError> {
        let path = self.plan_path(generation)?;
        if self.plan(generation).is_ok_and(|stored| stored == *plan) {
            return Ok(());
        }
        write(&path, plan)?;
        self.prune(generation, in_use)
    }

    /// Reads a plan.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::NoPlan`] when it was never handed over.
    pub(crate) fn plan(&self, generation: &Generation) -> Result<NetPlan, StoreError> {
        read(&self.plan_path(generation)?)?.ok_or_else(|| StoreError::NoPlan(generation.clone()))
    }

    /// The last known good generation; `None` on a box that never confirmed one.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Damaged`] for a file that is not one of ours.
    pub(crate) fn last_known_good(&self) -> Result<Option<LastKnownGood>, StoreError> {
        read(&self.directory.join("lkg"))
    }

    /// The commit point: `generation` is confirmed once this returns.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError`] when the disk does not take it; then it is not confirmed.
    pub(crate) fn commit(&self, generation: &Generation) -> Result<LastKnownGood, StoreError> {
        self.plan(generation)?;
        let before = self.last_known_good()?;
        let floor = before.as_ref().map_or(0, |lkg| lkg.floor).max(generation.serial);
        let lkg = LastKnownGood { generation: generation.clone(), floor };
        if before.as_ref() != Some(&lkg) {
            write(&self.directory.join("lkg"), &lkg)?;
        }
        Ok(lkg)
    }

    /// The change that was being tried.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Damaged`] for a file that is not one of ours.
    pub(crate) fn pending(&self) -> Result<Option<Pending>, StoreError> {
        read(&self.directory.join("pending"))
    }

    /// Records that a change is being tried, or that none is.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::File`] when the disk does not take it.
    pub(crate) fn set_pending(&self, pending: Option<&Pending>) -> Result<(), StoreError> {
        let path = self.directory.join("pending");
        match pending {
            Some(pending) => write(&path, pending),
            None => remove(&path).map_err(|source| file(&path, source)),
        }
    }

    fn plan_path(&self, generation: &Generation) -> Result<PathBuf, StoreError> {
        let digest = &generation.digest;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digest.len() != 64 || !digest.bytes().all(hex) {
            return Err(StoreError::Digest(digest.clone()));
        }
        let name = format!("{}-{digest}.json", generation.serial);
        Ok(self.directory.join("plans").join(name))
    }

    fn prune(&self, newest: &Generation, in_use: &[Generation]) -> Result<(), StoreError> {
        let folder = self.directory.join("plans");
        let mut kept = vec![self.plan_path(newest)?];
        for generation in in_use {
            kept.push(self.plan_path(generation)?);
        }
        let failed = |source| file(&folder, source);
        let mut others = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !kept.contains(&entry.path()) {
                others.push((entry.metadata().and_then(|m| m.modified()).ok(), entry.path()));
            }
        }
        others.sort();
        let excess = (others.len() + 1).saturating_sub(KEPT);
        for (_, path) in others.into_iter().take(excess) {
            remove(&path).map_err(|source| file(&path, source))?;
        }
        Ok(())
    }
}

fn file(path: &Path, source: io::Error) -> StoreError {
    StoreError::File { path: path.display().to_string(), source }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| file(path, source))?,
    };
    let value = serde_json::from_slice(&bytes)
        .map_err(|source| StoreError::Damaged { path: path.display().to_string(), source })?;
    Ok(Some(value))
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value)
        .map_err(|source| StoreError::Damaged { path: path.display().to_string(), source })?;
    replace(path, &bytes).map_err(|source| file(path, source))
}

/// Puts `bytes` in the place of the file at `path`, so that after a power cut there is either the
/// old file or the new one, and after the return the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut new = File::create(&temporary)?;
    new.write_all(bytes)?;
    steps::wrote(&temporary, bytes);
    new.sync_all()?;
    steps::synced(&temporary);
    fs::rename(&temporary, path)?;
    steps::renamed(&temporary, path);
    sync_folder_of(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    steps::removed(path);
    sync_folder_of(path)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    File::open(folder)?.sync_all()?;
    steps::synced(folder);
    Ok(())
}

/// Where a test looks on: in the program these do nothing.
#[cfg(not(test))]
mod steps {
    use std::path::Path;

    pub(super) fn wrote(_: &Path, _: &[u8]) {}
    pub(super) fn synced(_: &Path) {}
    pub(super) fn renamed(_: &Path, _: &Path) {}
    pub(super) fn removed(_: &Path) {}
}

#[cfg(test)]
#[path = "store/steps.rs"]
mod steps;

#[cfg(test)]
#[path = "store/tests.rs"]
mod tests;
