//! Lays folders of the repository over the tree: files at their final paths.
//!
//! Owners are root's and modes come from the executable bit alone, so that a checkout under another
//! umask or user makes the same image. Directories are made as files need them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::tree::{InsertError, Node, Tree};

/// Why an overlay cannot be laid over the tree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OverlayError {
    /// It cannot be read.
    #[error("overlay: cannot read {path}: {source}")]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is neither a file nor a link nor a folder, or its name is not UTF-8.
    #[error("overlay: {0} is neither a file nor a link nor a folder, or its name is not UTF-8")]
    Kind(PathBuf),
    /// It does not fit.
    #[error(transparent)]
    Insert(#[from] InsertError),
}

/// Puts all that is below `folder` into the tree, over what is there.
///
/// # Errors
///
/// Returns the first file that cannot be read or does not fit.
pub(super) fn lay(tree: &mut Tree, folder: &Path) -> Result<(), OverlayError> {
    lay_below(tree, folder, "")
}

fn lay_below(tree: &mut Tree, folder: &Path, at: &str) -> Result<(), OverlayError> {
    let failed = |path: &Path, source| OverlayError::Read { path: path.to_owned(), source };
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, error))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|error| failed(folder, error))?.path());
    }
    paths.sort();
    for path in paths {
        let odd = || OverlayError::Kind(path.clone());
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(odd)?;
        let target = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
        let metadata = fs::symlink_metadata(&path).map_err(|error| failed(&path, error))?;
        if metadata.is_dir() {
            lay_below(tree, &path, &target)?;
        } else if metadata.is_symlink() {
            let link = fs::read_link(&path).map_err(|error| failed(&path, error))?;
            tree.insert(&target, Node::symlink(link.to_str().ok_or_else(odd)?))?;
        } else if metadata.is_file() {
            let bytes = fs::read(&path).map_err(|error| failed(&path, error))?;
            let executable = metadata.permissions().mode() & 0o100 != 0;
            tree.insert(&target, Node::file(bytes, if executable { 0o755 } else { 0o644 }))?;
        } else {
            return Err(odd());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_come_from_the_executable_bit_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("usr/lib")).unwrap();
        fs::create_dir_all(folder.path().join("lib")).unwrap();
        for (path, mode) in [("usr/lib/a", 0o600), ("usr/lib/b", 0o775), ("lib/c", 0o666)] {
            fs::write(folder.path().join(path), path).unwrap();
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(folder.path().join(path), permissions).unwrap();
        }
        std::os::unix::fs::symlink("/dev/null", folder.path().join("usr/lib/d")).unwrap();
        let mut tree = Tree::merged_usr();
        tree.insert("usr/lib/d", Node::file("package's", 0o644)).unwrap();

        lay(&mut tree, folder.path()).unwrap();

        assert_eq!(tree.get("usr/lib/a").unwrap().mode, 0o644);
        assert_eq!(tree.get("usr/lib/b").unwrap().mode, 0o755);
        assert_eq!(tree.get("usr/lib/c").unwrap().mode, 0o644);
        assert_eq!(tree.get("usr/lib/d"), Some(&Node::symlink("/dev/null")));
    }
}
