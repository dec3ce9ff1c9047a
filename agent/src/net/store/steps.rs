//! Records what is done to the disk, so that a test can say what a power cut may leave of it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// One step, in the order in which the program took them.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// New content, in memory only until the file is synced.
    Wrote(PathBuf, Vec<u8>),
    /// A file, or a folder with the names in it, is on the disk.
    Synced(PathBuf),
    /// A name moved, in memory only until the folder is synced.
    Renamed(PathBuf, PathBuf),
    /// A name went, in memory only until the folder is synced.
    Removed(PathBuf),
    /// The program told somebody.
    Said(String),
}

thread_local! {
    static STEPS: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
}

fn push(step: Step) {
    STEPS.with_borrow_mut(|steps| steps.push(step));
}

pub(super) fn wrote(path: &Path, bytes: &[u8]) {
    push(Step::Wrote(path.to_owned(), bytes.to_owned()));
}

pub(super) fn synced(path: &Path) {
    push(Step::Synced(path.to_owned()));
}

pub(super) fn renamed(from: &Path, to: &Path) {
    push(Step::Renamed(from.to_owned(), to.to_owned()));
}

pub(super) fn removed(path: &Path) {
    push(Step::Removed(path.to_owned()));
}

pub(super) fn said(what: &str) {
    push(Step::Said(what.to_owned()));
}

/// What this thread recorded since the last call.
pub(super) fn take() -> Vec<Step> {
    STEPS.take()
}
