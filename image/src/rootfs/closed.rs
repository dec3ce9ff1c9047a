//! Holds the finished root against the promises of a closed box, and against its own completeness.

use std::collections::BTreeSet;

use super::elf::Elf;
use crate::tree::{Kind, Node, Tree};

/// Shells, logins, interpreters: by name, in the folders of programs.
const FORBIDDEN: [&str; 13] = [
    "agetty", "bash", "busybox", "dash", "getty", "login", "perl", "python3", "run0", "sh", "sshd",
    "su", "sulogin",
];
/// Generators that would open the box or start what the recipe does not ask for.
const GENERATORS: [&str; 6] = ["debug", "getty", "rc-local", "run", "ssh", "sysv"];

/// What is wrong with the root.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ClosedError {
    /// It lets someone in, or interprets what they write.
    #[error("`{0}` has no place in the image: leave its package out, or prune it")]
    Forbidden(String),
    /// It would give privilege to who runs it.
    #[error("`{0}` is set-user-id or set-group-id: nothing in the image may be")]
    SetId(String),
    /// It cannot start.
    #[error(
        "`{program}` needs `{needs}`, which is not in the image: prune the one or add the other"
    )]
    Incomplete {
        /// The program or library.
        program: String,
        /// A library or interpreter.
        needs: String,
    },
}

/// Checks the whole tree.
///
/// # Errors
///
/// Returns the first thing that is wrong.
pub(super) fn check(tree: &Tree) -> Result<(), ClosedError> {
    for folder in ["usr/bin", "usr/sbin"] {
        for (name, node) in tree.entries(folder) {
            if node.kind != Kind::Directory && FORBIDDEN.contains(&name) {
                return Err(ClosedError::Forbidden(format!("{folder}/{name}")));
            }
        }
    }
    for generator in GENERATORS {
        let path = format!("usr/lib/systemd/system-generators/systemd-{generator}-generator");
        if tree.get(&path).is_some() {
            return Err(ClosedError::Forbidden(path));
        }
    }
    let names: BTreeSet<&str> = tree
        .walk()
        .filter(|(_, node)| node.kind != Kind::Directory)
        .map(|(path, _)| path.rsplit_once('/').map_or(path, |(_, name)| name))
        .collect();
    for (path, node) in tree.walk() {
        check_file(tree, path, node, &names)?;
    }
    Ok(())
}

fn check_file(
    tree: &Tree,
    path: &str,
    node: &Node,
    names: &BTreeSet<&str>,
) -> Result<(), ClosedError> {
    let Kind::File(bytes) = &node.kind else { return Ok(()) };
    if node.mode & 0o6000 != 0 {
        return Err(ClosedError::SetId(path.to_owned()));
    }
    let incomplete = |needs: &str| {
        Err(ClosedError::Incomplete { program: path.to_owned(), needs: needs.to_owned() })
    };
    if let Some(elf) = Elf::parse(bytes) {
        // Some libraries are found by a path in the program, so any folder will do.
        if let Some(missing) = elf.needed().find(|library| !names.contains(library)) {
            return incomplete(missing);
        }
    }
    if node.mode & 0o111 != 0
        && let Some(line) = bytes.strip_prefix(b"#!")
    {
        let line =
            String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next().unwrap_or(line));
        let interpreter = line.split_whitespace().next().unwrap_or_default();
        if tree.read_file(interpreter).is_none() {
            return incomplete(interpreter);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(path: &str, node: Node) -> Tree {
        let mut tree = Tree::merged_usr();
        tree.insert(path, node).unwrap();
        tree
    }

    #[test]
    fn shells_and_debug_generators_are_found() {
        for path in
            ["bin/sh", "sbin/agetty", "usr/lib/systemd/system-generators/systemd-run-generator"]
        {
            let tree = tree(path, Node::file("x", 0o755));
            assert!(matches!(check(&tree), Err(ClosedError::Forbidden(_))), "{path}");
        }
    }

    #[test]
    fn a_script_without_its_interpreter_is_found() {
        let script = Node::file("#! /usr/bin/awk -f\n", 0o755);
        let mut tree = tree("usr/bin/x", script);

        assert_eq!(
            check(&tree),
            Err(ClosedError::Incomplete {
                program: "usr/bin/x".into(),
                needs: "/usr/bin/awk".into()
            })
        );
        tree.insert("usr/bin/awk", Node::file("", 0o755)).unwrap();
        assert_eq!(check(&tree), Ok(()));
    }

    #[test]
    fn a_set_id_program_is_found() {
        let tree = tree("usr/bin/mount", Node::file("", 0o4755));
        assert_eq!(check(&tree), Err(ClosedError::SetId("usr/bin/mount".into())));
    }

    #[test]
    fn a_program_without_its_library_is_found() {
        // This test is itself a program that needs the C library.
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let tree = tree("usr/bin/x", Node::file(program, 0o755));

        let Err(ClosedError::Incomplete { needs, .. }) = check(&tree) else { panic!("not found") };

        assert!(needs.contains(".so"), "{needs}");
    }
}
