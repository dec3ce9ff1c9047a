//! The device keys on the data partition.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bundle::device_key::{DeviceKeyError, DeviceKeys};

/// Where a pair comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    /// Made elsewhere and left on the provision partition.
    Flashed,
    /// Made here, in software.
    Software,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flashed => "flashed",
            Self::Software => "software",
        })
    }
}

/// Why the keys could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The file system said no.
    #[error("{}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The files are there but are no keys.
    #[error(transparent)]
    Key(#[from] DeviceKeyError),
    /// `origin` is neither word.
    #[error("origin is neither `flashed` nor `software`")]
    Origin,
}

/// The folder.
#[derive(Clone, Debug)]
pub(super) struct Store(PathBuf);

impl Store {
    /// The folder at `path`; it exists.
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Reads the keys; `None` when they were never finished.
    ///
    /// # Errors
    ///
    /// Returns an error for files that are there and damaged: keys to which secrets were sealed
    /// are not silently replaced.
    pub(super) fn load(&self) -> Result<Option<(DeviceKeys, Origin)>, StoreError> {
        let origin = match fs::read_to_string(self.0.join("origin")) {
            Ok(text) => match text.trim() {
                "flashed" => Origin::Flashed,
                "software" => Origin::Software,
                _ => return Err(StoreError::Origin),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path: self.0.join("origin"), source }),
        };
        let read = |name: &str| {
            let path = self.0.join(name);
            fs::read_to_string(&path).map_err(|source| StoreError::Io { path, source })
        };
        let keys = DeviceKeys::from_parts(&read("seal")?, &read("identity")?)?;
        Ok(Some((keys, origin)))
    }

    /// Writes the keys, `origin` last.
    ///
    /// # Errors
    ///
    /// Returns an error when a file could not be written and synced.
    pub(super) fn save(
        &self,
        keys: &DeviceKeys,
        origin: Origin,
        public: &str,
    ) -> Result<(), StoreError> {
        self.write("seal", &keys.seal_text(), 0o600)?;
        self.write("identity", &keys.identity_text()?, 0o600)?;
        self.write("device.pub", public, 0o644)?;
        self.write("origin", &format!("{origin}\n"), 0o644)
    }

    /// tmp + fsync + rename + fsync of the folder.
    fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), StoreError> {
        let path = self.0.join(name);
        write_synced(&self.0, &path, text, mode).map_err(|source| StoreError::Io { path, source })
    }
}

fn write_synced(folder: &Path, path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}
