//! What the agent keeps on disk: accepted bundles, the journal, the quarantine, the trust blobs.
//!
//! Every file is written as a whole: temporary file, fsync, rename, fsync of the folder. Bundles
//! are kept as they came, still signed and sealed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::state::State;
use crate::plan::Generation;

/// How many accepted bundles stay.
const KEPT_GENERATIONS: usize = 5;
/// How many digests the quarantine remembers; the lowest serial goes first.
const KEPT_QUARANTINE: usize = 32;
/// How often a bundle may break a local invariant before it is not tried again. More than once,
/// because at a first start a NIC may come later than the bundle.
pub(crate) const STRIKES: u32 = 3;

/// The agent's folder.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// A bundle that broke a local invariant.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Strike {
    /// Its serial.
    pub(crate) serial: u64,
    /// How often.
    pub(crate) count: u32,
    /// What broke the last time.
    pub(crate) reason: String,
}

impl Store {
    /// Opens the store below `root`, which must exist.
    ///
    /// # Errors
    ///
    /// Returns the error of mkdir(2).
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let store = Self { root: root.to_owned() };
        let generations = store.root.join("generations");
        match fs::create_dir(&generations) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => fs::set_permissions(&generations, Permissions::from_mode(0o700))?,
        }
        Ok(store)
    }

    /// The bytes of an accepted bundle.
    ///
    /// # Errors
    ///
    /// Returns the error of open(2) or read(2).
    pub(crate) fn bundle(&self, generation: &Generation) -> io::Result<Vec<u8>> {
        fs::read(self.bundle_path(generation))
    }

    /// Keeps an accepted bundle and drops the oldest; `confirmed` is never dropped.
    ///
    /// # Errors
    ///
    /// Returns the error of the write.
    pub(crate) fn keep(
        &self,
        generation: &Generation,
        bytes: &[u8],
        confirmed: Option<&Generation>,
    ) -> io::Result<()> {
        let path = self.bundle_path(generation);
        if fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        write_durably(&path, bytes, 0o600)?;
        let mut kept: Vec<(u64, PathBuf)> = fs::read_dir(self.root.join("generations"))?
            .filter_map(|entry| {
                Some((serial_of(&entry.as_ref().ok()?.path())?, entry.ok()?.path()))
            })
            .collect();
        kept.sort();
        let spared = [Some(path), confirmed.map(|it| self.bundle_path(it))];
        let excess = kept.len().saturating_sub(KEPT_GENERATIONS);
        let old = kept.into_iter().filter(|(_, path)| !spared.contains(&Some(path.clone())));
        for (_, path) in old.take(excess) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// The state in the journal; [`State::Idle`] when there is none or it cannot be read: it is a
    /// log, and last known good says what is in force.
    pub(crate) fn journal(&self) -> State {
        read_json(&self.root.join("journal")).unwrap_or_default()
    }

    /// Writes the state down.
    ///
    /// # Errors
    ///
    /// Returns the error of the write.
    pub(crate) fn record(&self, state: &State) -> io::Result<()> {
        write_durably(&self.root.join("journal"), &serde_json::to_vec(state)?, 0o600)
    }

    /// Bundles that broke a local invariant, by digest.
    pub(crate) fn quarantine(&self) -> BTreeMap<String, Strike> {
        read_json(&self.root.join("quarantine")).unwrap_or_default()
    }

    /// Remembers that `generation` broke a local invariant.
    ///
    /// # Errors
    ///
    /// Returns the error of the write.
    pub(crate) fn strike(&self, generation: &Generation, reason: &str) -> io::Result<()> {
        let mut all = self.quarantine();
        let count = all.get(&generation.digest).map_or(0, |strike| strike.count);
        let strike = Strike {
            serial: generation.serial,
            count: count.saturating_add(1),
            reason: reason.to_owned(),
        };
        all.insert(generation.digest.clone(), strike);
        while all.len() > KEPT_QUARANTINE {
            let Some(oldest) = all.iter().min_by_key(|(_, it)| it.serial) else { break };
            let oldest = oldest.0.clone();
            all.remove(&oldest);
        }
        write_durably(&self.root.join("quarantine"), &serde_json::to_vec(&all)?, 0o600)
    }

    /// Stores newer trust at once, whatever becomes of the bundle that brought it.
    ///
    /// # Errors
    ///
    /// Returns the error of the write.
    pub(crate) fn store_trust(&self, blobs: &[u8]) -> io::Result<()> {
        let path = self.root.join("trust");
        if fs::read(&path).is_ok_and(|old| old == blobs) {
            return Ok(());
        }
        write_durably(&path, blobs, 0o644)
    }

    fn bundle_path(&self, generation: &Generation) -> PathBuf {
        let name = format!("{}-{}.postern", generation.serial, generation.digest);
        self.root.join("generations").join(name)
    }
}

fn serial_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".postern")?.split_once('-')?.0.parse().ok()
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!("{}: {error}", path.display());
            return None;
        }
    };
    serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!("{}: {error}; starting anew", path.display()))
        .ok()
}

/// Replaces `path` by `bytes` so that a power cut leaves the old or the new content, whole.
///
/// # Errors
///
/// Returns the error of open(2), write(2), fsync(2) or rename(2).
pub(crate) fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::Store;
    use crate::control::state::State;
    use crate::plan::Generation;

    fn generation(serial: u64) -> Generation {
        Generation { serial, digest: format!("{serial:064x}") }
    }

    #[test]
    fn the_last_five_and_the_confirmed_one_stay() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let confirmed = generation(1);

        for serial in 1..=12 {
            store.keep(&generation(serial), b"bundle", Some(&confirmed)).unwrap();
        }

        let kept: Vec<u64> =
            (1..=12).filter(|serial| store.bundle(&generation(*serial)).is_ok()).collect();
        assert_eq!(kept, [1, 9, 10, 11, 12]);
    }

    #[test]
    fn the_journal_is_what_was_recorded_last() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.journal(), State::Idle);

        let state =
            State::RollingBack { generation: generation(3), reason: "no carrier".to_owned() };
        store.record(&State::Staged { generation: generation(3) }).unwrap();
        store.record(&state).unwrap();

        assert_eq!(store.journal(), state);
    }

    #[test]
    fn a_torn_journal_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        std::fs::write(folder.path().join("journal"), b"{\"name\":\"app").unwrap();

        assert_eq!(store.journal(), State::Idle);
    }

    #[test]
    fn the_quarantine_counts_and_stays_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();

        for serial in 1..=40 {
            store.strike(&generation(serial), "port taken").unwrap();
        }
        store.strike(&generation(40), "port taken").unwrap();

        let all = store.quarantine();
        assert_eq!(all.len(), 32);
        assert_eq!(all[&generation(40).digest].count, 2);
        assert!(!all.contains_key(&generation(1).digest));
    }
}
