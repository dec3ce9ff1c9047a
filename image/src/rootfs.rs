//! Fills the root file system: packages, overlays, and what maintainer scripts would have done.
//!
//! A pure function of recipe, lock, the packages in the store, overlays and two files given by the
//! caller: nothing is run, nothing of the host goes in. What stands for which script is said in
//! `image/scripts.ledger`.
//!
//! # Order
//!
//! packages → prune → credentials refused → overlays → agent → accounts → tmpfiles → settings → presets → CA bundle →
//! modules → loader cache. Overlays win over packages and over the settings here; presets, accounts
//! and directories see what overlays bring.
//!
//! # Invariants
//!
//! 1. Two packages never bring the same file.
//! 2. No program is in the tree that the recipe's `only` and `prune` leave out, and no shell.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use rayon::prelude::*;

mod accounts;
mod closed;
mod elf;
mod loader_cache;
mod module_index;
mod modules;
mod overlay;
mod presets;
mod settings;
mod tmpfiles;

use crate::deb::{self, Content, Entry};
use crate::lock::file::{Lock, LockedPackage};
use crate::lock::store::Store;
use crate::recipe::{PathPattern, Recipe};
use crate::tree::{Kind, Node, Tree};
use accounts::Accounts;

const AGENT: &str = "usr/bin/postern-agent";
/// The owner's first trust, read-only under verity.
const TRUST: &str = "usr/lib/postern/trust";
const EFI: &str = "usr/lib/systemd/boot/efi";

/// The root file system, and what goes beside it.
#[derive(Debug)]
pub(crate) struct RootFs {
    /// The root.
    pub(crate) tree: Tree,
    /// The one time that all its files have, in seconds since 1970.
    pub(crate) time: u32,
    /// The kernel, signed by Debian.
    pub(crate) kernel: Vec<u8>,
    /// `uname -r` of it.
    pub(crate) kernel_version: String,
    /// Path and bytes (as packed in the package) of the initrd's modules in load order.
    pub(crate) initrd_modules: Vec<(String, Vec<u8>)>,
    /// systemd-stub.
    pub(crate) sd_stub: Vec<u8>,
    /// systemd-boot.
    pub(crate) sd_boot: Vec<u8>,
    /// The text of `os-release`.
    pub(crate) os_release: String,
}

/// Fills the root file system.
///
/// # Errors
///
/// Returns an error that names the package, file or line that does not work; a package that is not
/// in the store says how to get it.
pub(crate) fn build(
    recipe: &Recipe,
    lock: &Lock,
    store: &Store,
    overlays: &[PathBuf],
    agent: &[u8],
    trust: Option<&[u8]>,
) -> anyhow::Result<RootFs> {
    lock.check(recipe)?;
    let mut tree = unpack(recipe, lock, store)?;
    let version = lock.kernel.strip_prefix("linux-image-").unwrap_or(&lock.kernel).to_owned();
    let kernel = take(&mut tree, &format!("boot/vmlinuz-{version}"))?;
    let sd_stub = take(&mut tree, &format!("{EFI}/linuxx64.efi.stub"))?;
    let sd_boot = take(&mut tree, &format!("{EFI}/systemd-bootx64.efi"))?;
    tree.remove("boot");
    tree.remove("usr/lib/systemd/boot");

    tree.retain(|path, _| !recipe.prune.iter().any(|pattern| pattern.matches(path)));
    refuse_credentials(&mut tree)?;
    for folder in overlays {
        overlay::lay(&mut tree, folder)
            .with_context(|| format!("cannot lay {} over the root", folder.display()))?;
    }
    tree.insert(AGENT, Node::file(agent, 0o755))?;
    if let Some(trust) = trust {
        tree.insert(TRUST, Node::file(trust, 0o644))?;
    }

    let accounts = Accounts::read(&tree, &recipe.ids)?;
    accounts.write(&mut tree)?;
    settings::directories(&mut tree)?;
    tmpfiles::apply(&mut tree, &accounts)?;
    settings::apply(&mut tree, lock.time)?;
    let os_release = settings::os_release(&mut tree, recipe)?;
    presets::apply(&mut tree)?;
    settings::ca_bundle(&mut tree)?;
    let initrd_modules =
        modules::prune(&mut tree, &version, &recipe.kernel.modules, &recipe.kernel.initrd_modules)?;
    loader_cache::write(&mut tree)?;
    remove_emptied(&mut tree, recipe);
    closed::check(&tree)?;
    Ok(RootFs {
        tree,
        time: lock.time,
        kernel,
        kernel_version: version,
        initrd_modules,
        sd_stub,
        sd_boot,
        os_release,
    })
}

/// Unpacks all packages, in parallel, into one tree, in the order of their names.
fn unpack(recipe: &Recipe, lock: &Lock, store: &Store) -> anyhow::Result<Tree> {
    let everything = Vec::new();
    let unpacked: anyhow::Result<Vec<Vec<Entry>>> = lock
        .packages
        .par_iter()
        // The kernel is by far the largest: begin with each at once instead of in halves.
        .with_max_len(1)
        .map(|package| {
            let only = recipe.only.get(&package.name).unwrap_or(&everything);
            read_package(package, store, only, &recipe.prune)
                .with_context(|| format!("package {} {}", package.name, package.version))
        })
        .collect();
    let mut tree = Tree::merged_usr();
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for (package, entries) in lock.packages.iter().zip(unpacked?) {
        place(&mut tree, &mut owners, &package.name, entries)
            .with_context(|| format!("package {} {}", package.name, package.version))?;
    }
    Ok(tree)
}

fn read_package(
    package: &LockedPackage,
    store: &Store,
    only: &[PathPattern],
    prune: &[PathPattern],
) -> anyhow::Result<Vec<Entry>> {
    let bytes = store.read(&package.name, &package.sha256)?.with_context(|| {
        format!(
            "it is not in the package store {}: `postern lock` downloads it",
            store.folder().display()
        )
    })?;
    ensure!(
        bytes.len() as u64 == package.size,
        "it has {} bytes, the lock says {}",
        bytes.len(),
        package.size
    );
    Ok(deb::read_data(&bytes, |path| {
        !prune.iter().any(|pattern| pattern.matches(path))
            && (only.is_empty() || only.iter().any(|pattern| pattern.matches(path)))
    })?)
}

/// Puts a package's entries into the tree.
fn place<'a>(
    tree: &mut Tree,
    owners: &mut BTreeMap<String, &'a str>,
    package: &'a str,
    entries: Vec<Entry>,
) -> anyhow::Result<()> {
    for Entry { path, content } in entries {
        let node = match content {
            Content::Node(node) => node,
            Content::HardLink(target) => tree.get(&target).cloned().with_context(|| {
                format!("`{path}` is a hard link to `{target}`, which is not kept")
            })?,
        };
        if node.kind == Kind::Directory {
            // The first package that has a directory says what it is like, as with dpkg.
            if !tree.is_directory(&path) {
                tree.insert(&path, node)?;
            }
            continue;
        }
        // `mount` and `umount` of util-linux; nobody who is not root runs anything here.
        let node = Node { mode: node.mode & !0o6000, ..node };
        let above = tree.resolve(crate::tree::parent(&path)).unwrap_or_default();
        let name = path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name);
        let place = format!("{above}/{name}");
        if let Some(other) = owners.insert(place, package)
            && other != package
        {
            bail!("`{path}` is also in the package {other}");
        }
        tree.insert(&path, node)?;
    }
    Ok(())
}

/// Takes `ImportCredential=` out of the packages' units: whoever sets a machine's SMBIOS strings
/// could otherwise make files, kernel settings and name servers. What overlays import stays.
fn refuse_credentials(tree: &mut Tree) -> anyhow::Result<()> {
    let imports = |line: &str| line.trim_start().starts_with("ImportCredential");
    let mut changed = Vec::new();
    for (path, node) in tree.below("usr/lib/systemd/system") {
        let Kind::File(bytes) = &node.kind else { continue };
        let Ok(text) = std::str::from_utf8(bytes) else { continue };
        if text.lines().any(imports) {
            let lines = text.split_inclusive('\n').filter(|line| !imports(line));
            changed.push((path.to_owned(), Node::file(lines.collect::<String>(), node.mode)));
        }
    }
    for (path, node) in changed {
        tree.insert(&path, node)?;
    }
    Ok(())
}

/// Takes a file that goes beside the root out of it.
fn take(tree: &mut Tree, path: &str) -> anyhow::Result<Vec<u8>> {
    match tree.remove(path).map(|node| node.kind) {
        Some(Kind::File(bytes)) => {
            Ok(std::sync::Arc::try_unwrap(bytes).unwrap_or_else(|shared| shared.to_vec()))
        }
        _ => bail!("no package of the lock has the file `{path}`"),
    }
}

/// Removes the folders of which pruning left nothing.
fn remove_emptied(tree: &mut Tree, recipe: &Recipe) {
    tree.remove_empty_directories("usr/share");
    let emptied: Vec<String> = tree
        .walk()
        .filter(|(_, node)| node.kind == Kind::Directory)
        .map(|(path, _)| path.to_owned())
        .filter(|path| recipe.prune.iter().any(|pattern| pattern.matches(path)))
        .collect();
    for path in emptied {
        tree.remove_empty_directories(&path);
    }
}

#[cfg(test)]
mod tests;
