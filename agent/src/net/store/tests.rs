//! What a power cut at any step may leave on the disk, and what a box makes of it.
//!
//! The real [`Store`] runs against a real folder while [`steps`] records what it does. Then each
//! prefix of that record is replayed as a disk would keep it: what was synced is there, what was
//! not may be there or not, whole or cut short, in every combination.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::steps::{self, Step};
use super::{Pending, Store};
use crate::message::LastKnownGood;
use crate::plan::{Generation, NetPlan};

fn generation(serial: u64) -> Generation {
    Generation { serial, digest: format!("{serial:064x}") }
}

fn plan(seconds: u64) -> NetPlan {
    NetPlan {
        links: Vec::new(),
        ruleset: json!([]),
        sysctls: Vec::new(),
        listeners: Vec::new(),
        deadline: Duration::from_secs(seconds),
    }
}

fn pending(serial: u64, previous: Option<u64>) -> Pending {
    Pending {
        generation: generation(serial),
        previous: previous.map(generation),
        deadline: Duration::from_secs(100),
        boot_id: "this".to_owned(),
    }
}

/// Takes one generation the whole way, saying what was promised to whom.
fn confirm(store: &Store, serial: u64, previous: Option<u64>) {
    store.put_plan(&generation(serial), &plan(serial), &[]).unwrap();
    store.set_pending(Some(&pending(serial, previous))).unwrap();
    steps::said(&format!("try {serial}"));
    store.commit(&generation(serial)).unwrap();
    steps::said(&format!("confirmed {serial}"));
    store.set_pending(None).unwrap();
}

/// What the disk is sure to hold, and what only memory holds.
#[derive(Clone, Default)]
struct Disk {
    /// Name to content; `None` content: written but never synced.
    names: BTreeMap<PathBuf, Option<Vec<u8>>>,
    /// Content in memory, by name, until the file is synced.
    unsynced: BTreeMap<PathBuf, Vec<u8>>,
    /// Renames and removals until the folder is synced.
    moves: Vec<Step>,
}

impl Disk {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Wrote(path, bytes) => {
                self.names.insert(path.clone(), None);
                self.unsynced.insert(path.clone(), bytes.clone());
            }
            Step::Synced(path) => {
                if let Some(bytes) = self.unsynced.remove(path) {
                    self.names.insert(path.clone(), Some(bytes));
                }
                let (now, later) =
                    self.moves.drain(..).partition::<Vec<_>, _>(|step| folder_of(step) == *path);
                self.moves = later;
                now.iter().for_each(|step| self.carry_out(step));
            }
            Step::Renamed(..) | Step::Removed(_) => self.moves.push(step.clone()),
            Step::Said(_) => {}
        }
    }

    fn carry_out(&mut self, step: &Step) {
        match step {
            Step::Renamed(from, to) => {
                let content = self.names.remove(from).flatten();
                self.names.insert(to.clone(), content);
            }
            Step::Removed(path) => drop(self.names.remove(path)),
            _ => {}
        }
    }

    /// Every state that a power cut may leave: unsynced moves are kept up to any point, unsynced
    /// content is lost, cut short or there.
    fn after_a_cut(&self) -> Vec<BTreeMap<PathBuf, Vec<u8>>> {
        let mut states = Vec::new();
        for kept in 0..=self.moves.len() {
            let mut disk = self.clone();
            self.moves[..kept].iter().for_each(|step| disk.carry_out(step));
            for share in [0, 1, 2] {
                let content = |(name, content): (&PathBuf, &Option<Vec<u8>>)| {
                    let bytes = content.clone().unwrap_or_else(|| {
                        let whole = self.unsynced.get(name).cloned().unwrap_or_default();
                        whole[..whole.len() * share / 2].to_vec()
                    });
                    (name.clone(), bytes)
                };
                states.push(disk.names.iter().map(content).collect());
            }
        }
        states
    }
}

fn folder_of(step: &Step) -> PathBuf {
    let (Step::Renamed(_, path) | Step::Removed(path)) = step else { return PathBuf::new() };
    path.parent().unwrap().to_owned()
}

/// What a box finds at its next start in a folder with these files.
fn recovered(root: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) -> (Store, Option<LastKnownGood>) {
    let directory = TempDir::new().unwrap().keep();
    let store = Store::open(&directory).unwrap();
    for (path, bytes) in files {
        std::fs::write(directory.join(path.strip_prefix(root).unwrap()), bytes).unwrap();
    }
    let lkg = store.last_known_good().expect("lkg is never damaged");
    store.pending().expect("pending is never damaged");
    (store, lkg)
}

#[test]
fn a_power_cut_at_any_step_leaves_the_old_or_the_new_generation_whole() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    drop(steps::take());
    for serial in 1..=8 {
        confirm(&store, serial, serial.checked_sub(1).filter(|serial| *serial > 0));
    }
    let taken = steps::take();

    let (mut disk, mut confirmed, mut trying, mut states) = (Disk::default(), 0, 0, 0);
    for step in &taken {
        disk.take(step);
        if let Step::Said(what) = step {
            let (word, serial) = what.split_once(' ').unwrap();
            let serial: u64 = serial.parse().unwrap();
            if word == "confirmed" { confirmed = serial } else { trying = serial }
        }
        for files in disk.after_a_cut() {
            let (store, lkg) = recovered(directory.path(), &files);
            let found = lkg.as_ref().map_or(0, |lkg| lkg.generation.serial);
            assert!(
                found == confirmed || found == trying,
                "{found} is in force; {confirmed} was confirmed and {trying} tried; {step:?}"
            );
            if let Some(lkg) = lkg {
                assert_eq!(lkg.floor, lkg.generation.serial);
                assert_eq!(store.plan(&lkg.generation).unwrap(), plan(found), "after {step:?}");
            }
            // Between the first kernel write and the commit, the box knows that it was trying.
            if trying > confirmed && found == confirmed {
                assert_eq!(store.pending().unwrap().unwrap().generation.serial, trying);
            }
            std::fs::remove_dir_all(&store.directory).unwrap();
            states += 1;
        }
    }
    println!("{states} states after {} steps", taken.len());
}

#[test]
fn the_last_plans_are_kept_and_those_in_use_for_ever() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let in_use = [generation(1)];
    for serial in 1..=9 {
        store.put_plan(&generation(serial), &plan(serial), &in_use).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }

    let kept: Vec<u64> = (1..=9).filter(|s| store.plan(&generation(*s)).is_ok()).collect();
    assert_eq!(kept, [1, 5, 6, 7, 8, 9]);
}

#[test]
fn the_floor_never_falls() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    confirm(&store, 9, None);
    confirm(&store, 4, Some(9));

    let lkg = store.last_known_good().unwrap().unwrap();
    assert_eq!((lkg.generation.serial, lkg.floor), (4, 9));
}

#[test]
fn a_digest_is_not_a_path() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let generation = Generation { serial: 1, digest: "../../../etc/passwd".to_owned() };

    assert!(store.put_plan(&generation, &plan(1), &[]).is_err());
    assert!(store.plan(&generation).is_err());
}
