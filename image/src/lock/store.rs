//! Keeps .debs by content: mirrors drop old versions, a lock must outlive that.
//!
//! # Invariants
//!
//! A file in the store has the name of its SHA-256; it is written beside its place and renamed, and
//! read back through the hash, so a broken disk or a stopped download is never taken for a package.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The environment variable that names the folder.
pub(crate) const STORE_VARIABLE: &str = "POSTERN_STORE";

/// A folder of files by SHA-256.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
}

/// Why the store could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Neither variable says where it is.
    #[error("no place for the package store: set {STORE_VARIABLE} to a folder (HOME is not set)")]
    NoPlace,
    /// The file system refused.
    #[error("package store: {path}: {source}")]
    Io {
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What came is shorter or longer than the lock says, or something else.
    #[error(
        "{name}: expected {expected_size} bytes with SHA-256 {expected}, \
         got {size} bytes with {found}"
    )]
    Content {
        /// Of which package.
        name: String,
        /// The lock's hash.
        expected: String,
        /// The lock's size.
        expected_size: u64,
        /// Hash of what came.
        found: String,
        /// How much came.
        size: u64,
    },
    /// The connection broke.
    #[error("{name}: {source}")]
    Receive {
        /// Of which package.
        name: String,
        /// Why.
        source: io::Error,
    },
}

impl Store {
    /// The folder that `POSTERN_STORE` names, else `~/.cache/postern/store`.
    ///
    /// # Errors
    ///
    /// Returns an error when there is no home folder either.
    pub(crate) fn of_user() -> Result<Self, StoreError> {
        let named = env::var_os(STORE_VARIABLE).filter(|folder| !folder.is_empty());
        let cache = || {
            let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
            let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            Some(cache.filter(|path| path.is_absolute()).or_else(home)?.join("postern/store"))
        };
        let folder = named.map(PathBuf::from).or_else(cache).ok_or(StoreError::NoPlace)?;
        Ok(Self { folder })
    }

    /// A store in `folder`.
    #[cfg(test)]
    pub(crate) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a file of that hash and size is here; its bytes are checked by [`Store::read`].
    pub(crate) fn has(&self, sha256: &str, size: u64) -> bool {
        fs::metadata(self.place(sha256)).is_ok_and(|metadata| metadata.len() == size)
    }

    /// Reads a file and checks it. `Ok(None)`: it is not here. A damaged one is removed.
    ///
    /// # Errors
    ///
    /// Returns an error when it cannot be read, or is not what its name says.
    pub(crate) fn read(&self, name: &str, sha256: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.place(sha256);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        let found = hex(&Sha256::digest(&bytes));
        if found == sha256 {
            return Ok(Some(bytes));
        }
        fs::remove_file(&path).map_err(|source| StoreError::Io { path, source })?;
        Err(StoreError::Content {
            name: format!("{name} in the package store (removed)"),
            expected: sha256.to_owned(),
            expected_size: bytes.len() as u64,
            found,
            size: bytes.len() as u64,
        })
    }

    /// Takes in what `source` yields, when that is the file that the lock describes. `progress`
    /// hears of each piece's length.
    ///
    /// # Errors
    ///
    /// Returns an error when it is another file, or on failure to read or write; the store is then
    /// as before.
    pub(crate) fn insert(
        &self,
        name: &str,
        sha256: &str,
        size: u64,
        source: impl Read,
        mut progress: impl FnMut(u64),
    ) -> Result<(), StoreError> {
        let place = self.place(sha256);
        let folder = place.parent().unwrap_or(&self.folder);
        let io = |path: &Path, source| StoreError::Io { path: path.to_owned(), source };
        fs::create_dir_all(folder).map_err(|error| io(folder, error))?;
        let mut file =
            tempfile::NamedTempFile::new_in(folder).map_err(|error| io(folder, error))?;
        let mut hasher = Sha256::new();
        let mut received = 0;
        let mut buffer = vec![0; 64 * 1024];
        // One byte more than expected is enough to know that it is another file.
        let mut source = source.take(size + 1);
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(StoreError::Receive { name: name.to_owned(), source }),
            };
            hasher.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(|error| io(&place, error))?;
            received += count as u64;
            progress(count as u64);
        }
        let found = hex(&hasher.finalize());
        if found != sha256 || received != size {
            return Err(StoreError::Content {
                name: name.to_owned(),
                expected: sha256.to_owned(),
                expected_size: size,
                found,
                size: received,
            });
        }
        file.as_file().sync_all().map_err(|error| io(&place, error))?;
        file.persist(&place).map_err(|error| io(&place, error.error))?;
        Ok(())
    }

    fn place(&self, sha256: &str) -> PathBuf {
        self.folder.join(sha256.get(..2).unwrap_or("00")).join(sha256)
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn what_was_put_in_comes_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path());
        let mut seen = 0;

        store.insert("h", HELLO, 5, b"hello".as_slice(), |count| seen += count).unwrap();

        assert_eq!(seen, 5);
        assert!(store.has(HELLO, 5) && !store.has(HELLO, 6));
        assert_eq!(store.read("h", HELLO).unwrap().as_deref(), Some(b"hello".as_slice()));
    }

    #[test]
    fn a_short_long_or_other_file_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path());
        for bytes in [b"hell".as_slice(), b"hello world", b"jello"] {
            let error = store.insert("h.deb", HELLO, 5, bytes, |_| {}).unwrap_err().to_string();

            assert!(error.contains("h.deb: expected 5 bytes with SHA-256 2cf24"), "{error}");
            assert_eq!(fs::read_dir(folder.path().join("2c")).unwrap().count(), 0);
            assert!(store.read("h", HELLO).unwrap().is_none());
        }
    }

    #[test]
    fn a_file_that_rotted_is_found_out_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path());
        store.insert("h", HELLO, 5, b"hello".as_slice(), |_| {}).unwrap();
        fs::write(folder.path().join("2c").join(HELLO), b"hallo").unwrap();

        assert!(matches!(store.read("h", HELLO), Err(StoreError::Content { .. })));
        assert!(store.read("h", HELLO).unwrap().is_none());
    }
}
