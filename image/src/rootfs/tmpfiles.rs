//! Makes now what tmpfiles.d(5) would make at boot in places that are read-only then.
//!
//! Lines for `/run`, `/var`, `/tmp`, `/dev`, `/proc` and `/sys` are left to the box. Left out:
//! specifiers, globs and copies from the factory folder, which no line of ours for these places
//! uses; a line that only changes what exists, since packages bring right modes.

use super::accounts::{Accounts, split_words};
use crate::tree::{self, InsertError, Kind, Node, Tree};

const FOLDER: &str = "usr/lib/tmpfiles.d";
/// Where the box can write.
const WRITABLE: [&str; 6] = ["dev", "proc", "run", "sys", "tmp", "var"];

/// Makes the directories, links and files of all tmpfiles.d files. What exists stays, save that a
/// directory takes owner and mode of its line.
///
/// # Errors
///
/// Returns an error when something is in the way.
pub(super) fn apply(tree: &mut Tree, accounts: &Accounts) -> Result<(), InsertError> {
    let mut made: Vec<(String, Node)> = Vec::new();
    for (file, _) in tree.entries(FOLDER) {
        let text = tree.read_text(&format!("{FOLDER}/{file}")).unwrap_or_default();
        made.extend(text.lines().filter_map(|line| node(line, accounts)));
    }
    made.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (path, node) in made {
        match tree.get_mut(&path) {
            None => tree.insert(&path, node)?,
            // A line for a directory that exists sets owner and mode, which the box could not.
            Some(old) if old.kind == Kind::Directory && node.kind == Kind::Directory => *old = node,
            Some(_) => {}
        }
    }
    Ok(())
}

/// Path and node of a line that makes something in a read-only place.
fn node(line: &str, accounts: &Accounts) -> Option<(String, Node)> {
    let words = split_words(line.trim());
    let kind = words.first()?;
    // `^`: the content is a credential's.
    if kind.starts_with('#') || kind.contains('^') {
        return None;
    }
    let path = words.get(1).filter(|path| path.starts_with('/') && !path.contains(['%', '*']))?;
    let path = tree::join("", path).filter(|path| !path.is_empty())?;
    if WRITABLE.contains(&path.split('/').next()?) {
        return None;
    }
    let field = |index: usize| {
        let word = words.get(index)?.trim_start_matches([':', '~']);
        (!matches!(word, "" | "-")).then_some(word)
    };
    let mode = |default| {
        field(2).map_or(Some(default), |text| u16::from_str_radix(text, 8).ok()).map(|m| m & 0o7777)
    };
    let argument = || words.get(6..).unwrap_or_default().join(" ");
    let node = match kind.trim_end_matches(['!', '+', '-', '=', '~', '$']) {
        "d" | "D" | "q" | "Q" | "v" => Node::directory(mode(0o755)?),
        "f" | "F" => Node::file(argument(), mode(0o644)?),
        "L" if !argument().is_empty() => return Some((path, Node::symlink(argument()))),
        _ => return None,
    };
    let uid = field(3).map_or(Some(0), |name| accounts.user(name))?;
    let gid = field(4).map_or(Some(0), |name| accounts.group(name))?;
    Some((path, node.owned_by(uid, gid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_box_could_not_make_is_made() {
        let mut tree = Tree::merged_usr();
        let lines = "# note\nd /etc/credstore 0700 root root\nd- /root :0700 root :root -\n\
                     L+ /etc/mtab - - - - ../proc/self/mounts\nq /srv 0755 - - -\n\
                     d /run/x 0755\nd /var/lib/x\nf^ /etc/hosts - - - - network.hosts\n\
                     z /etc/shadow 0640\nd /home/%u\nL /etc/os-release - - - - other\n";
        tree.insert(&format!("{FOLDER}/a.conf"), Node::file(lines, 0o644)).unwrap();
        tree.insert("usr/lib/sysusers.d/a.conf", Node::file("u root 0\n", 0o644)).unwrap();
        tree.insert("etc/os-release", Node::symlink("../usr/lib/os-release")).unwrap();
        tree.insert("etc/credstore", Node::directory(0o755)).unwrap();
        let accounts = Accounts::read(&tree, &std::collections::BTreeMap::new()).unwrap();

        apply(&mut tree, &accounts).unwrap();

        let made: Vec<&str> = tree
            .walk()
            .map(|(path, _)| path)
            .filter(|path| {
                !path.starts_with("usr") && !["bin", "lib", "lib64", "sbin"].contains(path)
            })
            .collect();
        assert_eq!(made, ["etc", "etc/credstore", "etc/mtab", "etc/os-release", "root", "srv"]);
        assert_eq!(tree.get("root"), Some(&Node::directory(0o700)));
        assert_eq!(tree.get("etc/credstore"), Some(&Node::directory(0o700)));
        assert_eq!(tree.get("etc/mtab"), Some(&Node::symlink("../proc/self/mounts")));
        assert_eq!(tree.get("etc/os-release"), Some(&Node::symlink("../usr/lib/os-release")));
    }
}
