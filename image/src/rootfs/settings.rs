//! The few files that every box has and no package brings; an overlay's file wins over each.

use std::fmt::Write as _;

use anyhow::Context as _;

use crate::recipe::Recipe;
use crate::tree::{InsertError, Kind, Node, Tree};

/// Mount points, and folders that programs expect.
const DIRECTORIES: [(&str, u16); 15] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("efi", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];

const NSSWITCH: &str = "\
passwd: files
group: files
shadow: files
gshadow: files
hosts: files resolve [!UNAVAIL=return] dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
";

const HOSTS: &str = "\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
";

const LINKS: [(&str, &str); 4] = [
    ("etc/mtab", "../proc/self/mounts"),
    ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
    ("etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target"),
    ("etc/vconsole.conf", "/dev/null"),
];

/// Makes the directories.
///
/// # Errors
///
/// Returns an error when a file is in the way.
pub(super) fn directories(tree: &mut Tree) -> Result<(), InsertError> {
    // What packages have here belongs to the data partition, which is mounted over it.
    tree.remove("var");
    tree.remove("run");
    for (path, mode) in DIRECTORIES {
        tree.insert(path, Node::directory(mode))?;
    }
    Ok(())
}

/// Writes the settings that are not there.
///
/// # Errors
///
/// Returns an error when a directory is in the way.
pub(super) fn apply(tree: &mut Tree, time: u32) -> Result<(), InsertError> {
    let updated = format!("TIMESTAMP_NSEC={time}000000000\n");
    let files = [
        // Nothing has to be brought up to date at boot: this is what `ConditionNeedsUpdate=` reads.
        ("etc/.updated", updated.as_str()),
        ("etc/hosts", HOSTS),
        ("etc/locale.conf", "LANG=C.UTF-8\n"),
        // Empty, not absent: systemd can then mount the box's own over it.
        ("etc/machine-id", ""),
        ("etc/nsswitch.conf", NSSWITCH),
        ("var/.updated", updated.as_str()),
    ];
    for (path, text) in files {
        if tree.get(path).is_none() {
            tree.insert(path, Node::file(text, 0o644))?;
        }
    }
    for (path, target) in LINKS {
        if tree.get(path).is_none() {
            tree.insert(path, Node::symlink(target))?;
        }
    }
    Ok(())
}

/// Adds what the image is to Debian's `os-release`; returns its text.
///
/// # Errors
///
/// Returns an error when no package has brought the file.
pub(super) fn os_release(tree: &mut Tree, recipe: &Recipe) -> anyhow::Result<String> {
    let path = "usr/lib/os-release";
    let debian = tree.read_text(path).context("no package has brought usr/lib/os-release")?;
    let ours = ["PRETTY_NAME=", "IMAGE_ID=", "IMAGE_VERSION=", "DEFAULT_HOSTNAME="];
    let mut text = String::new();
    let mut based_on = "Debian";
    for line in debian.lines() {
        if let Some(name) = line.strip_prefix("PRETTY_NAME=") {
            based_on = name.trim_matches('"');
        }
        if !ours.iter().any(|key| line.starts_with(key)) {
            let _ = writeln!(text, "{line}");
        }
    }
    let (name, version) = (recipe.name.as_str(), recipe.version.as_str());
    let text = format!(
        "PRETTY_NAME=\"{name} {version} ({based_on})\"\nIMAGE_ID={name}\nIMAGE_VERSION={version}\n\
         DEFAULT_HOSTNAME={name}\n{text}"
    );
    tree.insert(path, Node::file(text.as_str(), 0o644))?;
    Ok(text)
}

/// Joins the certificates of public authorities into the one file that programs read.
///
/// # Errors
///
/// Returns an error when there is none.
pub(super) fn ca_bundle(tree: &mut Tree) -> anyhow::Result<()> {
    let folder = "usr/share/ca-certificates";
    let mut bundle = Vec::new();
    for (path, node) in tree.below(folder) {
        if let Kind::File(bytes) = &node.kind
            && path.ends_with(".crt")
        {
            bundle.extend_from_slice(bytes);
            if !bytes.ends_with(b"\n") {
                bundle.push(b'\n');
            }
        }
    }
    anyhow::ensure!(!bundle.is_empty(), "no package has brought certificates in {folder}");
    tree.remove(folder);
    tree.insert("etc/ssl/certs/ca-certificates.crt", Node::file(bundle, 0o644))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlays_setting_is_kept() {
        let mut tree = Tree::merged_usr();
        tree.insert("etc/hosts", Node::file("192.0.2.1 x\n", 0o644)).unwrap();

        directories(&mut tree).unwrap();
        apply(&mut tree, 7).unwrap();

        assert_eq!(tree.read_text("etc/hosts"), Some("192.0.2.1 x\n"));
        assert_eq!(tree.read_text("etc/.updated"), Some("TIMESTAMP_NSEC=7000000000\n"));
        assert_eq!(tree.read_file("etc/machine-id"), Some(b"".as_slice()));
    }

    #[test]
    fn os_release_says_which_image_it_is() {
        let recipe = Recipe::parse(include_str!("../../appliance.yaml")).unwrap();
        let mut tree = Tree::merged_usr();
        let debian = "PRETTY_NAME=\"Debian 13\"\nID=debian\nIMAGE_ID=old\n";
        tree.insert("usr/lib/os-release", Node::file(debian, 0o644)).unwrap();

        let text = os_release(&mut tree, &recipe).unwrap();

        assert!(text.starts_with("PRETTY_NAME=\"postern "), "{text}");
        assert!(text.contains("\nIMAGE_ID=postern\n") && text.ends_with("\nID=debian\n"), "{text}");
        assert!(!text.contains("old"));
    }

    #[test]
    fn certificates_are_joined_in_order() {
        let mut tree = Tree::merged_usr();
        for (name, text) in [("b.crt", "B"), ("a.crt", "A\n"), ("x.txt", "no")] {
            let path = format!("usr/share/ca-certificates/m/{name}");
            tree.insert(&path, Node::file(text, 0o644)).unwrap();
        }

        ca_bundle(&mut tree).unwrap();

        assert_eq!(tree.read_text("etc/ssl/certs/ca-certificates.crt"), Some("A\nB\n"));
        assert!(tree.get("usr/share/ca-certificates").is_none());
    }
}
