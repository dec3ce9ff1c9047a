//! A toy release: three packages made here, a recipe for them, a whole root.

use std::path::Path;

use super::*;
use crate::deb::tests::{archive, package};
use crate::lock::file::Archive;
use crate::lock::store::hex;
use sha2::{Digest as _, Sha256};
use tar::EntryType::{Directory, Link, Regular, Symlink};

const KERNEL: &str = "linux-image-6.12.1-test";

type Entries<'a> = &'a [(&'a str, tar::EntryType, Vec<u8>, u32)];

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// A store with these packages, and their lock.
fn release(folder: &Path, recipe: &Recipe, packages: &[(&str, Entries<'_>)]) -> (Store, Lock) {
    let store = Store::at(folder);
    let mut locked = Vec::new();
    for (name, entries) in packages {
        let deb = package("data.tar", &archive(entries));
        let sha256 = hex(&Sha256::digest(&deb));
        let size = deb.len() as u64;
        store.insert(name, &sha256, size, deb.as_slice(), |_| {}).unwrap();
        locked.push(LockedPackage {
            name: (*name).to_owned(),
            version: "1.0".to_owned(),
            archive: Archive::Main,
            path: format!("pool/{name}.deb"),
            size,
            sha256,
        });
    }
    (store, Lock::new(recipe, KERNEL, Vec::new(), locked).unwrap())
}

fn recipe() -> Recipe {
    let mut recipe = Recipe::parse(include_str!("../../appliance.yaml")).unwrap();
    recipe.only.clear();
    recipe.kernel.modules = vec!["veth".to_owned()];
    recipe.kernel.initrd_modules = vec!["squashfs".to_owned()];
    recipe
}

fn kernel_package() -> Vec<(&'static str, tar::EntryType, Vec<u8>, u32)> {
    let module = || modules::tests::module(&["depends="], &[], &[]);
    vec![
        ("./boot/vmlinuz-6.12.1-test", Regular, text("kernel"), 0o644),
        ("./lib/modules/6.12.1-test/kernel/net/veth.ko", Regular, module(), 0o644),
        ("./lib/modules/6.12.1-test/kernel/fs/squashfs.ko", Regular, module(), 0o644),
        ("./lib/modules/6.12.1-test/kernel/fs/jfs.ko", Regular, module(), 0o644),
        ("./lib/modules/6.12.1-test/modules.builtin", Regular, text(""), 0o644),
    ]
}

fn base_package() -> Vec<(&'static str, tar::EntryType, Vec<u8>, u32)> {
    vec![
        ("./etc/", Directory, text(""), 0o755),
        ("./etc/os-release", Symlink, text("../usr/lib/os-release"), 0o777),
        ("./usr/lib/os-release", Regular, text("PRETTY_NAME=\"D\"\nID=d\n"), 0o644),
        ("./usr/bin/tool", Regular, text("tool"), 0o4755),
        ("./usr/bin/tool-link", Link, text("./usr/bin/tool"), 0o755),
        ("./usr/share/doc/base/readme", Regular, text("x"), 0o644),
        ("./usr/share/ca-certificates/a.crt", Regular, text("A\n"), 0o644),
        ("./usr/lib/sysusers.d/b.conf", Regular, text("u root 0 - /root\n"), 0o644),
        ("./usr/lib/systemd/boot/efi/linuxx64.efi.stub", Regular, text("stub"), 0o644),
        ("./usr/lib/systemd/boot/efi/systemd-bootx64.efi", Regular, text("boot"), 0o644),
        (
            "./usr/lib/systemd/system/a.service",
            Regular,
            text("[Service]\nImportCredential=tmpfiles.*\nUser=x\n[Install]\nWantedBy=a.target\n"),
            0o644,
        ),
        ("./var/lib/base/x", Regular, text("x"), 0o644),
    ]
}

#[test]
fn a_root_is_filled_from_packages_overlays_and_fix_ups() {
    let folder = tempfile::tempdir().unwrap();
    let overlay = folder.path().join("overlay");
    std::fs::create_dir_all(overlay.join("usr/lib/systemd/system-preset")).unwrap();
    std::fs::write(overlay.join("usr/lib/systemd/system-preset/00-x.preset"), "enable a.service\n")
        .unwrap();
    let recipe = recipe();
    let (base, kernel) = (base_package(), kernel_package());
    let packages: [(&str, Entries<'_>); 2] = [("base", &base), (KERNEL, &kernel)];
    let (store, lock) = release(&folder.path().join("store"), &recipe, &packages);

    let root = build(&recipe, &lock, &store, &[overlay], b"agent", Some(b"trust")).unwrap();

    assert_eq!(root.kernel, b"kernel");
    assert_eq!(root.kernel_version, "6.12.1-test");
    assert_eq!((root.sd_stub.as_slice(), root.sd_boot.as_slice()), (&b"stub"[..], &b"boot"[..]));
    assert_eq!(root.initrd_modules.len(), 1);
    assert!(root.os_release.contains("IMAGE_ID=postern\n"));
    let tree = &root.tree;
    assert_eq!(tree.read_file("usr/bin/postern-agent"), Some(b"agent".as_slice()));
    assert_eq!(tree.read_file("usr/bin/tool-link"), Some(b"tool".as_slice()));
    assert_eq!(tree.get("usr/bin/tool").unwrap().mode, 0o755);
    assert_eq!(
        tree.get("etc/systemd/system/a.target.wants/a.service"),
        Some(&Node::symlink("/usr/lib/systemd/system/a.service"))
    );
    assert!(tree.is_directory("usr/lib/modules/6.12.1-test/kernel/net"));
    assert_eq!(tree.entries("boot"), []);
    assert_eq!(
        tree.read_text("usr/lib/systemd/system/a.service"),
        Some("[Service]\nUser=x\n[Install]\nWantedBy=a.target\n")
    );
    for gone in [
        "usr/share/doc",
        "usr/lib/systemd/boot",
        "var/lib",
        "usr/lib/modules/6.12.1-test/kernel/fs/jfs.ko",
    ] {
        assert!(tree.get(gone).is_none(), "{gone}");
    }
}

#[test]
fn the_number_of_cores_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe();
    let (base, kernel) = (base_package(), kernel_package());
    let packages: [(&str, Entries<'_>); 2] = [("base", &base), (KERNEL, &kernel)];
    let (store, lock) = release(folder.path(), &recipe, &packages);
    let build_with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| build(&recipe, &lock, &store, &[], b"agent", None).unwrap().tree)
    };

    assert_eq!(build_with(1), build_with(7));
}

#[test]
fn two_packages_with_one_file_are_both_named() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe();
    let first = vec![("./usr/lib/same", Regular, text("1"), 0o644)];
    let second = vec![("./lib/same", Regular, text("2"), 0o644)];
    let packages: [(&str, Entries<'_>); 2] = [("first", &first), ("second", &second)];
    let (store, lock) = release(folder.path(), &recipe, &packages);

    let error = build(&recipe, &lock, &store, &[], b"agent", None).unwrap_err();

    let error = format!("{error:#}");
    assert!(error.contains("package second 1.0") && error.contains("package first"), "{error}");
}

#[test]
fn a_package_that_was_not_downloaded_is_named_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe();
    let base = base_package();
    let packages: [(&str, Entries<'_>); 1] = [("base", &base)];
    let (_, lock) = release(&folder.path().join("full"), &recipe, &packages);

    let empty = Store::at(&folder.path().join("empty"));
    let error = build(&recipe, &lock, &empty, &[], b"agent", None).unwrap_err();

    let error = format!("{error:#}");
    assert!(error.contains("package base 1.0") && error.contains("postern lock"), "{error}");
}
