//! The machine's own copy of the image.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::{disk, gpt};

/// Copies `image` to a new file (`keep`, or one without a name), makes it `size` bytes long and
/// puts `provision` into the provision partition. A `keep` that exists is used as it is.
pub(super) fn disk(
    image: &Path,
    keep: Option<&Path>,
    size: u64,
    provision: BTreeMap<String, Vec<u8>>,
) -> anyhow::Result<File> {
    if let Some(path) = keep.filter(|path| path.exists()) {
        let file = OpenOptions::new().read(true).write(true).open(path);
        return file.with_context(|| format!("cannot open the disk {}", path.display()));
    }
    let source =
        File::open(image).with_context(|| format!("cannot open the image {}", image.display()))?;
    let length = source.metadata()?.len();
    ensure!(
        size >= length,
        "--disk-size is below the image's own size, {} MiB",
        length.div_ceil(1 << 20)
    );
    let mut copy = match keep {
        Some(path) => OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .with_context(|| format!("cannot make the disk {}", path.display()))?,
        None => tempfile::tempfile().context("cannot make a scratch file")?,
    };
    let made = fill(&source, length, &mut copy, size, provision)
        .with_context(|| format!("cannot copy the image {}", image.display()));
    if let (Err(_), Some(path)) = (&made, keep) {
        drop(std::fs::remove_file(path));
    }
    made.map(|()| copy)
}

/// A copy of a small file, without a name.
pub(super) fn nameless_copy(path: &Path) -> anyhow::Result<File> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut copy = tempfile::tempfile().context("cannot make a scratch file")?;
    copy.write_all(&bytes)?;
    Ok(copy)
}

fn fill(
    source: &File,
    length: u64,
    copy: &mut File,
    size: u64,
    provision: BTreeMap<String, Vec<u8>>,
) -> anyhow::Result<()> {
    let partitions = gpt::read(source)?;
    let Some(partition) = partitions.iter().find(|one| one.label == disk::PROVISION) else {
        bail!("it has no partition `{}`", disk::PROVISION);
    };
    copy.set_len(size)?;
    let is_provision =
        |at: u64| (partition.start..partition.start + partition.length).contains(&at);
    // Without files the partition stays as the image has it.
    let replaced = !provision.is_empty();
    copy_data(source, length, copy, |at| !(replaced && is_provision(at)))?;
    if replaced {
        disk::provision_volume(partition, provision).write(copy, partition.start)?;
    }
    Ok(())
}

/// Copies what is not a hole, in pieces that never cross 1 MiB, which partitions are aligned to.
fn copy_data(
    source: &File,
    length: u64,
    copy: &mut File,
    wanted: impl Fn(u64) -> bool,
) -> anyhow::Result<()> {
    const PIECE: u64 = 1 << 20;
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        at = match lseek(source, i64::try_from(at)?, Whence::SeekData) {
            Ok(data) => u64::try_from(data)?,
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = u64::try_from(lseek(source, i64::try_from(at)?, Whence::SeekHole)?)?.min(length);
        while at < end {
            let piece = (PIECE - at % PIECE).min(end - at);
            let bytes = &mut buffer[..usize::try_from(piece)?];
            if wanted(at) {
                std::os::unix::fs::FileExt::read_exact_at(source, bytes, at)?;
                copy.seek(SeekFrom::Start(at))?;
                copy.write_all(bytes)?;
            }
            at += piece;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::disk;
    use crate::disk::{Contents, Sizes, write};
    use crate::{gpt, verity};

    fn image() -> tempfile::NamedTempFile {
        let root = vec![1; 8 * 4096];
        let (tree, root_hash) = verity::tree(&root, &[3; 32]);
        let contents = Contents {
            name: "postern",
            version: "1.0",
            root: &root,
            verity: &tree,
            root_hash,
            boot_loader: b"boot loader",
            uki: b"uki",
        };
        let sizes = Sizes { esp: 68 << 20, root: 1 << 20, verity: 1 << 20, provision: 16 << 20 };
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write(file.as_file_mut(), &contents, sizes).unwrap();
        file
    }

    #[test]
    fn the_copy_is_longer_sparse_and_has_the_key_in_its_provision_partition() {
        let image = image();
        let folder = tempfile::tempdir().unwrap();
        let keep = folder.path().join("disk.img");
        let files = BTreeMap::from([("postern.device".to_owned(), b"a key\n".to_vec())]);
        let copy = disk(image.path(), Some(&keep), 256 << 20, files).unwrap();
        let partitions = gpt::read(&copy).unwrap();
        let provision = partitions.last().unwrap();
        let at = format!("{}@@{}", keep.display(), provision.start);
        let output = Command::new("mtype").args(["-i", &at, "::postern.device"]).output().unwrap();

        assert_eq!(partitions, gpt::read(image.as_file()).unwrap());
        assert_eq!(copy.metadata().unwrap().len(), 256 << 20);
        assert!(copy.metadata().unwrap().blocks() * 512 < 4 << 20);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a key\n", "{output:?}");
    }

    #[test]
    fn a_kept_disk_is_used_again_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let keep = folder.path().join("disk.img");
        std::fs::write(&keep, b"as it was").unwrap();
        let copy = disk("/nonexistent".as_ref(), Some(&keep), 1 << 30, BTreeMap::new()).unwrap();

        assert_eq!(copy.metadata().unwrap().len(), 9);
    }

    #[test]
    fn what_is_no_image_is_refused_and_leaves_no_disk() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let keep = folder.path().join("disk.img");

        assert!(disk(file.path(), Some(&keep), 1 << 20, BTreeMap::new()).is_err());
        assert!(!keep.exists());
    }
}
