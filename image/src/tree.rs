//! The root file system in memory: what is unpacked, fixed up and overlaid before it is written.
//!
//! # Invariants
//!
//! 1. A path is relative to the root, without leading, trailing or doubled `/`, `.` or `..`; the
//!    root itself has no entry (it is a directory, 0755, owned by root).
//! 2. The parent of every node is a directory in the tree. Names below a symbolic link are resolved
//!    when a node is inserted, so that `lib/x` of an old package lands in `usr/lib/x` (merged /usr).
//! 3. There are no times here: all nodes of an image share one, which whoever writes it is given.
//!
//! Left out: devices, sockets, pipes (the kernel and systemd make them), extended attributes. Hard
//! links are nodes that share their bytes.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

/// How many symbolic links one path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

/// One file, directory or link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Node {
    /// What it is.
    pub(crate) kind: Kind,
    /// Permission bits, with set-id and sticky bits; nothing above `0o7777`.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
}

/// What a [`Node`] is.
#[derive(Clone, Eq, PartialEq)]
pub(crate) enum Kind {
    /// A directory; what it holds are the nodes whose paths begin with its own.
    Directory,
    /// A regular file.
    File(Arc<Vec<u8>>),
    /// A symbolic link and its target, as written.
    Symlink(String),
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => f.write_str("Directory"),
            Self::File(bytes) => write!(f, "File({} bytes)", bytes.len()),
            Self::Symlink(target) => write!(f, "Symlink({target:?})"),
        }
    }
}

impl Node {
    /// A directory of root's.
    pub(crate) fn directory(mode: u16) -> Self {
        Self { kind: Kind::Directory, mode, uid: 0, gid: 0 }
    }

    /// A regular file of root's.
    pub(crate) fn file(bytes: impl Into<Vec<u8>>, mode: u16) -> Self {
        Self { kind: Kind::File(Arc::new(bytes.into())), mode, uid: 0, gid: 0 }
    }

    /// A symbolic link.
    pub(crate) fn symlink(target: impl Into<String>) -> Self {
        Self { kind: Kind::Symlink(target.into()), mode: 0o777, uid: 0, gid: 0 }
    }

    /// The same node with another owner.
    pub(crate) fn owned_by(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
}

/// Why a node cannot be where it was to be put.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum InsertError {
    /// Invariant 1 does not hold.
    #[error("`{0}` is no path inside the root")]
    Path(String),
    /// A file is where a directory would have to be.
    #[error("`{path}` needs a directory at `{parent}`, where there is a file")]
    NotADirectory {
        /// The path that was to be made.
        path: String,
        /// The one in its way.
        parent: String,
    },
    /// A symbolic link leads in a circle.
    #[error("too many symbolic links on the way to `{0}`")]
    Loop(String),
    /// A directory with something in it is where a file was to be.
    #[error("`{0}` is a directory that is not empty")]
    NotEmpty(String),
}

/// The nodes, sorted by path: a directory comes before what it holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// A tree with nothing but the links and directories of merged /usr.
    pub(crate) fn merged_usr() -> Self {
        let mut nodes = BTreeMap::from([("usr".to_owned(), Node::directory(0o755))]);
        for name in ["bin", "lib", "lib64", "sbin"] {
            nodes.insert(format!("usr/{name}"), Node::directory(0o755));
            nodes.insert(name.to_owned(), Node::symlink(format!("usr/{name}")));
        }
        Self { nodes }
    }

    /// Puts `node` at `path` (a leading `/` or `./` is allowed), making the directories above it.
    ///
    /// A file or link replaces a file or link. A directory that exists keeps what it holds and takes
    /// the new owner and mode; one that is a symbolic link to a directory stays the link.
    ///
    /// # Errors
    ///
    /// Returns what is in its way; the tree is then as before, save for directories above.
    pub(crate) fn insert(&mut self, path: &str, node: Node) -> Result<(), InsertError> {
        let path = self.locate(path)?;
        let is_directory = node.kind == Kind::Directory;
        match self.nodes.get(&path).map(|old| &old.kind) {
            Some(Kind::Symlink(_)) if is_directory && self.is_directory(&path) => return Ok(()),
            Some(Kind::Directory) if !is_directory && self.below(&path).next().is_some() => {
                return Err(InsertError::NotEmpty(path));
            }
            Some(Kind::File(_)) if is_directory => {
                return Err(InsertError::NotADirectory { parent: path.clone(), path });
            }
            _ => {}
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// Takes the node at `path` out, with all below it; `None` when there is none.
    ///
    /// Directories on the way may be links; a link at `path` itself is taken, not followed.
    pub(crate) fn remove(&mut self, path: &str) -> Option<Node> {
        let path = self.resolve_parent(path)?;
        let below: Vec<String> = self.below(&path).map(|(path, _)| path.to_owned()).collect();
        for path in below {
            self.nodes.remove(&path);
        }
        self.nodes.remove(&path)
    }

    /// Keeps the nodes for which `keep` says so, and all directories.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&str, &Node) -> bool) {
        self.nodes.retain(|path, node| node.kind == Kind::Directory || keep(path, node));
    }

    /// Removes directories below `path` that hold nothing, and `path` itself when it is one.
    pub(crate) fn remove_empty_directories(&mut self, path: &str) {
        let Some(path) = self.resolve_parent(path) else { return };
        let candidates: Vec<String> = self.below(&path).map(|(path, _)| path.to_owned()).collect();
        for path in candidates.into_iter().rev().chain([path]) {
            let empty = self.below(&path).next().is_none();
            if empty && self.nodes.get(&path).is_some_and(|node| node.kind == Kind::Directory) {
                self.nodes.remove(&path);
            }
        }
    }

    /// The node at `path`; links above it are followed, `path` itself is not.
    pub(crate) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&self.resolve_parent(path)?)
    }

    /// As [`Tree::get`], to change the node.
    pub(crate) fn get_mut(&mut self, path: &str) -> Option<&mut Node> {
        let path = self.resolve_parent(path)?;
        self.nodes.get_mut(&path)
    }

    /// The bytes of the regular file that `path` leads to, links followed.
    pub(crate) fn read_file(&self, path: &str) -> Option<&[u8]> {
        match &self.nodes.get(&self.resolve(path)?)?.kind {
            Kind::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text of the regular file that `path` leads to; `None` also when it is not UTF-8.
    pub(crate) fn read_text(&self, path: &str) -> Option<&str> {
        std::str::from_utf8(self.read_file(path)?).ok()
    }

    /// Whether `path` leads to a directory, links followed.
    pub(crate) fn is_directory(&self, path: &str) -> bool {
        self.resolve(path).is_some_and(|path| {
            path.is_empty() || self.nodes.get(&path).is_some_and(|n| n.kind == Kind::Directory)
        })
    }

    /// The path of what `path` leads to, with all links followed; `None` when that does not exist.
    pub(crate) fn resolve(&self, path: &str) -> Option<String> {
        let mut path = self.resolve_parent(path)?;
        for _ in 0..MAX_LINKS {
            let Some(node) = self.nodes.get(&path) else {
                return path.is_empty().then_some(path);
            };
            let Kind::Symlink(target) = &node.kind else { return Some(path) };
            path = self.resolve_parent(&join(parent(&path), target)?)?;
        }
        None
    }

    /// All nodes, sorted by path in byte order: a directory comes before what it holds.
    pub(crate) fn walk(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// The nodes below a directory, at any depth, sorted. `path` must be without links.
    pub(crate) fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let range: Range<'a, String, Node> =
            self.nodes.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        range
            .take_while(move |(path, _)| path.starts_with(&prefix))
            .map(|(path, node)| (path.as_str(), node))
    }

    /// The names in a directory (links followed), sorted, with their nodes.
    pub(crate) fn entries(&self, path: &str) -> Vec<(&str, &Node)> {
        let Some(path) = self.resolve(path) else { return Vec::new() };
        let skip = if path.is_empty() { 0 } else { path.len() + 1 };
        self.below(&path)
            .filter_map(|(child, node)| {
                let name = child.get(skip..)?;
                (!name.contains('/')).then_some((name, node))
            })
            .collect()
    }

    /// How many bytes its regular files have together.
    pub(crate) fn size(&self) -> u64 {
        self.nodes
            .values()
            .map(|node| match &node.kind {
                Kind::File(bytes) => bytes.len() as u64,
                _ => 0,
            })
            .sum()
    }

    /// Where a node for `path` goes: links above it followed, missing directories made.
    fn locate(&mut self, path: &str) -> Result<String, InsertError> {
        let clean = join("", path).filter(|clean| !clean.is_empty());
        let clean = clean.ok_or_else(|| InsertError::Path(path.to_owned()))?;
        let (above, name) = clean.rsplit_once('/').unwrap_or(("", &clean));
        let mut todo: Vec<String> = above.split('/').rev().map(str::to_owned).collect();
        let mut at = String::new();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            let next = join(&at, &component).ok_or_else(|| InsertError::Path(path.to_owned()))?;
            if next.is_empty() {
                at = next;
                continue;
            }
            match self.nodes.get(&next).map(|node| &node.kind) {
                Some(Kind::Directory) => at = next,
                Some(Kind::File(_)) => {
                    return Err(InsertError::NotADirectory { path: clean, parent: next });
                }
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(InsertError::Loop(clean));
                    }
                    if target.starts_with('/') {
                        at = String::new();
                    }
                    todo.extend(target.split('/').rev().map(str::to_owned));
                }
                None => {
                    self.nodes.insert(next.clone(), Node::directory(0o755));
                    at = next;
                }
            }
        }
        join(&at, name).ok_or(InsertError::Path(clean))
    }

    /// `path` with the links above its last name followed; what it names need not exist.
    fn resolve_parent(&self, path: &str) -> Option<String> {
        let clean = join("", path)?;
        let Some((above, name)) = clean.rsplit_once('/') else { return Some(clean) };
        let mut todo: Vec<&str> = above.split('/').rev().collect();
        let mut at = String::new();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            let next = join(&at, component)?;
            match self.nodes.get(&next).map(|node| &node.kind) {
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    if target.starts_with('/') {
                        at = String::new();
                    }
                    todo.extend(target.split('/').rev());
                }
                _ => at = next,
            }
        }
        join(&at, name)
    }
}

/// The path that holds `path`; the root for a name in the root.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

/// `path` seen from the directory `base`, in the form of invariant 1; the root is the empty string.
///
/// `..` stops at the root, as in the kernel. `None` when a component holds a NUL or newline.
pub(crate) fn join(base: &str, path: &str) -> Option<String> {
    if path.contains(['\0', '\n']) {
        return None;
    }
    let base = if path.starts_with('/') { "" } else { base };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_a_link_of_merged_usr_lands_in_usr() {
        let mut tree = Tree::merged_usr();

        tree.insert("./lib/modules/x.ko", Node::file("x", 0o644)).unwrap();
        tree.insert("/lib", Node::directory(0o755)).unwrap();

        assert_eq!(tree.read_file("usr/lib/modules/x.ko"), Some(b"x".as_slice()));
        assert_eq!(tree.read_file("lib/modules/x.ko"), Some(b"x".as_slice()));
        assert_eq!(tree.get("lib"), Some(&Node::symlink("usr/lib")));
    }

    #[test]
    fn links_are_followed_relative_to_where_they_are() {
        let mut tree = Tree::merged_usr();
        tree.insert("etc/os-release", Node::symlink("../usr/lib/os-release")).unwrap();
        tree.insert("usr/lib/os-release", Node::file("ID=x\n", 0o644)).unwrap();
        tree.insert("a", Node::symlink("b")).unwrap();
        tree.insert("b", Node::symlink("/a")).unwrap();

        assert_eq!(tree.read_text("/etc/os-release"), Some("ID=x\n"));
        assert_eq!(tree.resolve("etc/os-release").as_deref(), Some("usr/lib/os-release"));
        assert_eq!(tree.resolve("a"), None);
        assert_eq!(
            tree.insert("a/c", Node::directory(0o755)),
            Err(InsertError::Loop("a/c".to_owned()))
        );
    }

    #[test]
    fn dot_dot_stops_at_the_root() {
        let mut tree = Tree::default();

        tree.insert("../../etc/hosts", Node::file("", 0o644)).unwrap();

        let paths: Vec<&str> = tree.walk().map(|(path, _)| path).collect();
        assert_eq!(paths, ["etc", "etc/hosts"]);
        assert!(matches!(tree.insert("..", Node::directory(0o755)), Err(InsertError::Path(_))));
    }

    #[test]
    fn a_removed_directory_takes_what_it_holds_and_nothing_beside_it() {
        let mut tree = Tree::default();
        for path in ["usr/lib/a", "usr/lib/b/c", "usr/lib-x/d", "usr/lib.conf"] {
            tree.insert(path, Node::file("", 0o644)).unwrap();
        }

        tree.remove("usr/lib").unwrap();

        let paths: Vec<&str> = tree.walk().map(|(path, _)| path).collect();
        assert_eq!(paths, ["usr", "usr/lib-x", "usr/lib-x/d", "usr/lib.conf"]);
    }

    #[test]
    fn a_file_never_takes_the_place_of_a_full_directory() {
        let mut tree = Tree::default();
        tree.insert("a/b", Node::file("", 0o644)).unwrap();

        assert_eq!(
            tree.insert("a", Node::file("", 0o644)),
            Err(InsertError::NotEmpty("a".to_owned()))
        );
        assert!(matches!(
            tree.insert("a/b/c", Node::file("", 0o644)),
            Err(InsertError::NotADirectory { .. })
        ));
    }

    #[test]
    fn entries_are_the_names_in_one_directory() {
        let mut tree = Tree::merged_usr();
        tree.insert("usr/lib/b/c", Node::file("", 0o644)).unwrap();
        tree.insert("usr/lib/a", Node::file("", 0o644)).unwrap();

        let names: Vec<&str> = tree.entries("lib").into_iter().map(|(name, _)| name).collect();

        assert_eq!(names, ["a", "b"]);
    }
}
