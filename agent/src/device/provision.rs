//! The provision partition: a small FAT that a flasher can fill, read in user space.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use bundle::device_key::DeviceKeys;
use fatfs::{FileSystem, FsOptions};

/// The partition's name in the GPT.
const NAME: &str = "provision";
/// A private pair, as `postern bundle keygen --device` writes it.
const PRIVATE: &str = "postern.device";
/// What the box leaves for people.
const PUBLIC: &str = "device.pub";
/// Longest private pair.
const MAX_PRIVATE: u64 = 16 << 10;

/// Finds the partition by its name in the GPT: `sys` is /sys/class/block, `dev` is /dev.
pub(super) fn find(sys: &Path, dev: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(sys)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let uevent = fs::read_to_string(entry.path().join("uevent")).ok()?;
            let value = |key: &str| uevent.lines().find_map(|line| line.strip_prefix(key));
            (value("PARTNAME=")? == NAME).then(|| dev.join(value("DEVNAME=").unwrap_or_default()))
        })
        .collect();
    found.sort();
    if found.len() > 1 {
        tracing::warn!(?found, "several provision partitions; the first is taken");
    }
    found.into_iter().next()
}

/// An open partition.
pub(super) struct Provision {
    file: File,
}

impl Provision {
    /// Opens the block device (or, in a test, an image of one).
    ///
    /// # Errors
    ///
    /// Returns an error when it cannot be opened or is no FAT.
    pub(super) fn open(device: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(device)?;
        let provision = Self { file };
        provision.mount().map(drop)?;
        Ok(provision)
    }

    /// Reads the private pair if there is one.
    ///
    /// # Errors
    ///
    /// Returns an error for a file that is no pair of device keys.
    pub(super) fn read_private(&self) -> io::Result<Option<DeviceKeys>> {
        let volume = self.mount()?;
        let file = match volume.root_dir().open_file(PRIVATE) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.take(MAX_PRIVATE).read_to_string(&mut text)?;
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        DeviceKeys::parse(&text).map(Some).map_err(invalid)
    }

    /// Overwrites the private pair in place, syncs, then deletes it.
    ///
    /// # Errors
    ///
    /// Returns an error when zeros may not have reached the disk.
    pub(super) fn wipe_private(&self) -> io::Result<()> {
        {
            let volume = self.mount()?;
            let mut file = volume.root_dir().open_file(PRIVATE)?;
            let length = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(0))?;
            let zeros = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            file.write_all(&zeros)?;
            file.flush()?;
        }
        self.file.sync_all()?;
        self.mount()?.root_dir().remove(PRIVATE)?;
        self.file.sync_all()
    }

    /// Leaves the public halves for people, unless they are there already.
    ///
    /// # Errors
    ///
    /// Returns the error of the write.
    pub(super) fn write_public(&self, text: &str) -> io::Result<()> {
        {
            let volume = self.mount()?;
            let root = volume.root_dir();
            if let Ok(file) = root.open_file(PUBLIC) {
                let mut present = Vec::new();
                file.take(MAX_PRIVATE).read_to_end(&mut present)?;
                if present == text.as_bytes() {
                    return Ok(());
                }
            }
            let mut file = root.create_file(PUBLIC)?;
            file.truncate()?;
            file.write_all(text.as_bytes())?;
            file.flush()?;
        }
        self.file.sync_all()
    }

    fn mount(&self) -> io::Result<FileSystem<File>> {
        let mut file = self.file.try_clone()?;
        file.rewind()?;
        FileSystem::new(file, FsOptions::new())
    }
}
