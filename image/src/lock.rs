//! `postern lock`: pins every package of the appliance, and downloads what is pinned.
//!
//! Trust runs from the keys in `image/keys` over each suite's `InRelease` to its `Packages` index,
//! and from there to each .deb, by SHA-256 all the way; the mirror and the way to it are not
//! trusted. Valid-Until is checked when a lock is made, never later: a lock stays good.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use anyhow::{Context as _, bail, ensure};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

mod apt;
mod closure;
mod deb822;
mod fetch;
pub(crate) mod file;
mod ledger;
mod release;
pub(crate) mod store;
mod version;

use crate::deb;
use crate::recipe::Recipe;
use apt::Mirror;
use closure::Catalogue;
use fetch::Client;
use file::{Archive, Lock, LockedPackage, LockedSuite};
use ledger::Ledger;
use store::Store;

/// The only architecture.
const ARCHITECTURE: &str = "amd64";
/// An index is 10 MB packed and 57 MB unpacked in 2026.
const MAX_INDEX: u64 = 512 << 20;
const MAX_RELEASE: u64 = 4 << 20;
/// More connections do not make a mirror faster.
const CONNECTIONS: usize = 6;

/// Options of `postern lock`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Choose the newest packages anew; else only what is locked is downloaded
    #[arg(long)]
    update: bool,
    /// Debian mirror: base address of the main archive, and of the security archive after a comma
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// The recipe
    #[arg(long, value_name = "FILE", default_value = "image/appliance.yaml")]
    recipe: PathBuf,
    /// The lock [default: appliance.lock beside the recipe]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let recipe = Recipe::read(&args.recipe)?;
    let path = args.output.clone().unwrap_or_else(|| args.recipe.with_file_name("appliance.lock"));
    let ledger_path = args.recipe.with_file_name("scripts.ledger");
    let store = Store::of_user()?;
    let old = if path.exists() { Some(Lock::read(&path)?) } else { None };
    let (lock, is_new) = match old.clone() {
        Some(lock) if !args.update => {
            lock.check(&recipe)?;
            (lock, false)
        }
        _ => (resolve(&recipe, &mirror(args.mirror.as_deref())?)?, true),
    };
    download(&lock, &store, args.mirror.as_deref())?;
    if is_new {
        check_scripts(&lock, &store, &ledger_path)?;
        // A lock made elsewhere is held against the one beside the recipe.
        let beside = args.recipe.with_file_name("appliance.lock");
        report_changes(old.or_else(|| Lock::read(&beside).ok()).as_ref(), &lock);
        lock.write(&path)?;
    }
    let size: u64 = lock.packages.iter().map(|package| package.size).sum();
    say(&format!(
        "{}: {} packages, {} MB, in {}",
        path.display(),
        lock.packages.len(),
        size / 1_000_000,
        store.folder().display()
    ));
    Ok(())
}

/// Downloads the packages that the store lacks.
///
/// # Errors
///
/// Returns an error that names each package that could not be had, and the ways out.
pub(crate) fn download(lock: &Lock, store: &Store, named: Option<&str>) -> anyhow::Result<()> {
    let missing: Vec<&LockedPackage> =
        lock.packages.iter().filter(|package| !store.has(&package.sha256, package.size)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mirror = mirror(named)?;
    let client = Client::new(mirror.proxy.as_deref())?;
    let progress = Progress::new(&missing);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(CONNECTIONS).build()?;
    let failures: Mutex<BTreeMap<String, String>> = Mutex::default();
    pool.install(|| {
        missing.par_iter().with_max_len(1).for_each(|package| {
            if let Err(reason) = download_one(package, &mirror, &client, store, &progress)
                && let Ok(mut failures) = failures.lock()
            {
                failures.insert(package.name.clone(), reason);
            }
        });
    });
    progress.finish();
    let failures = failures.into_inner().unwrap_or_default();
    if failures.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = failures.into_values().map(|reason| format!("  {reason}")).collect();
    bail!(
        "{} of {} packages could not be downloaded:\n{}\n\
         Mirrors drop old versions. Ways out:\n  \
         `postern lock --update` chooses what the mirror has now;\n  \
         `--mirror URL` or {}=URL names another mirror, such as an archive of old versions;\n  \
         {}=FOLDER names a package store that has them.",
        list.len(),
        missing.len(),
        list.join("\n"),
        apt::MIRROR_VARIABLE,
        store::STORE_VARIABLE
    )
}

fn download_one(
    package: &LockedPackage,
    mirror: &Mirror,
    client: &Client,
    store: &Store,
    progress: &Progress,
) -> Result<(), String> {
    let base = match package.archive {
        Archive::Main => &mirror.main,
        Archive::Security => &mirror.security,
    };
    let url = format!("{base}/{}", package.path);
    let label = format!("{} {}", package.name, package.version);
    let body = client.open(&url).map_err(|error| {
        if error.is_gone() {
            format!("{label}: the mirror no longer has it ({error})")
        } else {
            format!("{label}: {error}")
        }
    })?;
    let bar = progress.begin(package);
    let done = store.insert(&label, &package.sha256, package.size, body, |count| {
        progress.advance(&bar, count);
    });
    progress.end(package, &bar, done.is_ok());
    done.map_err(|error| format!("{error} (from {url})"))
}

/// `--mirror`, the environment, the host's apt sources, in that order.
fn mirror(named: Option<&str>) -> anyhow::Result<Mirror> {
    let variable = env::var(apt::MIRROR_VARIABLE).ok().filter(|value| !value.is_empty());
    Ok(apt::find_mirror(named.or(variable.as_deref()), Path::new("/"))?)
}

/// Chooses packages by what the mirror has now.
fn resolve(recipe: &Recipe, mirror: &Mirror) -> anyhow::Result<Lock> {
    let client = Client::new(mirror.proxy.as_deref())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let release = recipe.release.as_str();
    let names = [release.to_owned(), format!("{release}-updates"), format!("{release}-security")];
    let mut suites = Vec::new();
    let mut indexes = Vec::new();
    for suite in &names {
        let base = if suite.ends_with("-security") { &mirror.security } else { &mirror.main };
        let (locked, index) = read_suite(&client, base, suite, now)
            .with_context(|| format!("the suite {suite} of {base} cannot be used"))?;
        say(&format!("{suite}: signed by {}", locked.signer));
        suites.push(locked);
        indexes.push(index);
    }
    let mut catalogue = Catalogue::default();
    for (suite, index) in names.iter().zip(&indexes) {
        catalogue.add(suite, index);
    }
    let kernel = catalogue.kernel(&recipe.kernel.package)?;
    let mut roots: Vec<&str> = recipe.packages.iter().map(String::as_str).collect();
    roots.push(kernel);
    let leave_out: BTreeSet<&str> = recipe.leave_out.iter().map(String::as_str).collect();
    let chosen = catalogue.resolve(&roots, &leave_out)?;
    let packages = chosen.values().map(|candidate| LockedPackage {
        name: candidate.name.to_owned(),
        version: candidate.version.to_owned(),
        archive: if candidate.suite.ends_with("-security") {
            Archive::Security
        } else {
            Archive::Main
        },
        path: candidate.path.to_owned(),
        size: candidate.size,
        sha256: candidate.sha256.to_owned(),
    });
    Lock::new(recipe, kernel, suites, packages.collect())
}

/// Reads a suite's verified index of packages.
fn read_suite(
    client: &Client,
    base: &str,
    suite: &str,
    now: u64,
) -> anyhow::Result<(LockedSuite, String)> {
    let folder = format!("{base}/dists/{suite}");
    let in_release = client.read(&format!("{folder}/InRelease"), MAX_RELEASE)?;
    let text = String::from_utf8(in_release).context("InRelease is not text")?;
    let index = format!("main/binary-{ARCHITECTURE}/Packages.xz");
    let release = release::open_release(&text, suite, &index, now).context("InRelease")?;
    let (expected, size) = release.index;
    ensure!(size <= MAX_INDEX, "{index} has {size} bytes, which is too much");
    // By its hash first: a mirror in the middle of an update has both the old and the new one.
    let by_hash = format!("{folder}/main/binary-{ARCHITECTURE}/by-hash/SHA256/{expected}");
    let packed = match client.read(&by_hash, size) {
        Err(error) if error.is_gone() => client.read(&format!("{folder}/{index}"), size)?,
        other => other?,
    };
    let found = store::hex(&Sha256::digest(&packed));
    ensure!(
        found == expected,
        "{index}: expected {size} bytes with SHA-256 {expected}, got {} bytes with {found}",
        packed.len()
    );
    let mut text = String::new();
    liblzma::read::XzDecoder::new_multi_decoder(packed.as_slice())
        .take(MAX_INDEX)
        .read_to_string(&mut text)
        .with_context(|| format!("{index} cannot be unpacked"))?;
    let locked = LockedSuite {
        suite: suite.to_owned(),
        date: release.date,
        index: expected,
        signer: release.signer,
    };
    Ok((locked, text))
}

/// Holds every script of every locked package against the ledger.
fn check_scripts(lock: &Lock, store: &Store, path: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the script ledger {}", path.display()))?;
    let ledger = Ledger::parse(&text).with_context(|| format!("{}", path.display()))?;
    // Where a person finds the texts to read.
    let unread = store.folder().join("unread-scripts");
    let mut unknown = Vec::new();
    for package in &lock.packages {
        let bytes = store
            .read(&package.name, &package.sha256)?
            .with_context(|| format!("{} left the store meanwhile", package.name))?;
        let control = deb::read_control(&bytes)
            .with_context(|| format!("{} {}", package.name, package.version))?;
        for script in ledger::scripts(&package.name, &package.version, &control) {
            if ledger.knows(&script) {
                continue;
            }
            let state = if ledger.knows_other(&script) { "changed" } else { "new" };
            unknown.push(format!("  {script}  ({state})"));
            let text = control.get(&script.file).map(Vec::as_slice).unwrap_or_default();
            fs::create_dir_all(&unread)?;
            fs::write(unread.join(format!("{}.{}", package.name, script.file)), text)?;
        }
    }
    ensure!(
        unknown.is_empty(),
        "{} maintainer scripts are not in {}:\n{}\n\
         Read each, in {}, then add its line with the handlers that stand for it, or `ignore # why`.",
        unknown.len(),
        path.display(),
        unknown.join("\n"),
        unread.display()
    );
    Ok(())
}

/// Prints what is new, gone, or of another version.
fn report_changes(old: Option<&Lock>, new: &Lock) {
    let Some(old) = old else { return };
    let versions = |lock: &Lock| -> BTreeMap<String, String> {
        lock.packages.iter().map(|p| (p.name.clone(), p.version.clone())).collect()
    };
    let (before, after) = (versions(old), versions(new));
    for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        match (before.get(name), after.get(name)) {
            (Some(was), Some(is)) if was != is => say(&format!("  {name}: {was} -> {is}")),
            (Some(was), None) => say(&format!("  {name}: {was} -> gone")),
            (None, Some(is)) => say(&format!("  {name}: new, {is}")),
            _ => {}
        }
    }
}

/// Bars on a terminal, a line per package elsewhere.
struct Progress {
    bars: MultiProgress,
    total: ProgressBar,
    plain: bool,
}

impl Progress {
    fn new(packages: &[&LockedPackage]) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bars = MultiProgress::with_draw_target(if plain {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        });
        let size: u64 = packages.iter().map(|package| package.size).sum();
        if plain {
            say(&format!("downloading {} packages, {} MB", packages.len(), size / 1_000_000));
        }
        let total = bars.add(ProgressBar::new(size));
        total.set_style(style(
            "{bytes:>11} of {total_bytes:11} [{bar:30}] {bytes_per_sec:12} {eta}",
        ));
        Self { bars, total, plain }
    }

    fn begin(&self, package: &LockedPackage) -> ProgressBar {
        let bar = self.bars.insert_before(&self.total, ProgressBar::new(package.size));
        bar.set_style(style("{bytes:>11} of {total_bytes:11} [{bar:30}] {msg}"));
        bar.set_message(package.name.clone());
        bar
    }

    fn advance(&self, bar: &ProgressBar, count: u64) {
        bar.inc(count);
        self.total.inc(count);
    }

    fn end(&self, package: &LockedPackage, bar: &ProgressBar, good: bool) {
        bar.finish_and_clear();
        if self.plain && good {
            say(&format!("  {} {}", package.name, package.version));
        }
    }

    fn finish(&self) {
        self.total.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[expect(clippy::print_stderr, reason = "progress of the command line")]
fn say(text: &str) {
    eprintln!("{text}");
}
