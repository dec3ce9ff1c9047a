//! The disk image: where each partition lies and what it holds.
//!
//! | partition | file system | holds |
//! |---|---|---|
//! | `esp` | FAT32 | systemd-boot, its settings, one UKI per installed version |
//! | `NAME_VERSION_verity`, `NAME_VERSION` | | slot A: hash tree and root |
//! | `_empty`, `_empty` | | slot B, until the first update (systemd-sysupdate's name for it) |
//! | `provision` | FAT16 | what a flasher hands to the box |
//!
//! The data partition is not here: systemd-repart makes it at first boot, as large as the disk
//! allows. Every GUID comes from the root hash and the version; what is zero is left a hole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use crate::fat::{FatError, Kind, Volume};
use crate::gpt::{ALIGNMENT, Guid, Partition, READ_ONLY, SECTOR, Table};
use crate::verity::RootHash;

/// The provision partition's label in the partition table.
pub(crate) const PROVISION: &str = "provision";
/// The largest piece of zeros that is looked for when writing.
const HOLE: usize = 4096;

/// Sizes of the partitions in bytes; each a multiple of 1 MiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Sizes {
    /// EFI system partition.
    pub(crate) esp: u64,
    /// One slot's root.
    pub(crate) root: u64,
    /// One slot's hash tree.
    pub(crate) verity: u64,
    /// What a flasher fills.
    pub(crate) provision: u64,
}

/// What goes onto the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents<'a> {
    /// First part of labels and file names.
    pub(crate) name: &'a str,
    /// Second part.
    pub(crate) version: &'a str,
    /// The root file system.
    pub(crate) root: &'a [u8],
    /// Its hash tree.
    pub(crate) verity: &'a [u8],
    /// The tree's top.
    pub(crate) root_hash: RootHash,
    /// systemd-boot.
    pub(crate) boot_loader: &'a [u8],
    /// The unified kernel image.
    pub(crate) uki: &'a [u8],
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteDiskError {
    /// A part is larger than the partition for it.
    #[error(
        "{what} takes {needed} bytes, its partition has {room}; raise `{setting}` in the recipe"
    )]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its size.
        needed: u64,
        /// The partition's.
        room: u64,
        /// The recipe's key.
        setting: &'static str,
    },
    /// A label is longer than a partition table can hold.
    #[error("the partition label `{0}` is longer than 36 characters")]
    Label(String),
    /// A FAT volume.
    #[error("cannot make the partition {0}")]
    Fat(&'static str, #[source] FatError),
    /// The file.
    #[error("cannot write the image")]
    Write(#[from] io::Error),
}

/// Writes the whole image into `disk`, an empty file.
///
/// # Errors
///
/// Returns which part does not fit, or the file's error.
pub(crate) fn write(
    disk: &mut File,
    contents: &Contents<'_>,
    sizes: Sizes,
) -> Result<(), WriteDiskError> {
    let table = table(contents, sizes)?;
    disk.set_len(table.length)?;
    let [esp, verity, root, _, _, provision] = &table.partitions[..] else {
        unreachable!("`table` makes six partitions");
    };
    check("the hash tree", contents.verity, verity, "disk.verity")?;
    check("the root file system", contents.root, root, "disk.root")?;
    table.write(disk)?;
    esp_volume(contents, esp)
        .write(disk, esp.start)
        .map_err(|error| WriteDiskError::Fat("esp", error))?;
    write_sparse(disk, verity.start, contents.verity)?;
    write_sparse(disk, root.start, contents.root)?;
    provision_volume(provision, BTreeMap::new())
        .write(disk, provision.start)
        .map_err(|error| WriteDiskError::Fat(PROVISION, error))?;
    disk.flush()?;
    Ok(())
}

fn table(contents: &Contents<'_>, sizes: Sizes) -> Result<Table, WriteDiskError> {
    let hash = contents.root_hash;
    let version = contents.version.as_bytes();
    let derived = |purpose| Guid::derived(purpose, &[hash.bytes(), version]);
    let slot = format!("{}_{}", contents.name, contents.version);
    let slot_verity = format!("{slot}_verity");
    let layout = [
        (Guid::ESP, derived("esp"), sizes.esp, 0, "esp"),
        (Guid::ROOT_VERITY, hash.tree_partition(), sizes.verity, READ_ONLY, slot_verity.as_str()),
        (Guid::ROOT, hash.data_partition(), sizes.root, READ_ONLY, slot.as_str()),
        (Guid::ROOT_VERITY, derived("verity b"), sizes.verity, READ_ONLY, "_empty"),
        (Guid::ROOT, derived("root b"), sizes.root, READ_ONLY, "_empty"),
        (Guid::BASIC_DATA, derived(PROVISION), sizes.provision, 0, PROVISION),
    ];
    let mut start = ALIGNMENT;
    let mut partitions = Vec::new();
    for (kind, id, length, attributes, label) in layout {
        if label.len() > 36 {
            return Err(WriteDiskError::Label(label.to_owned()));
        }
        partitions.push(Partition { kind, id, start, length, attributes, label: label.to_owned() });
        start += length;
    }
    // Room for the backup table behind the last partition.
    Ok(Table { disk: derived("disk"), length: start + ALIGNMENT, partitions })
}

fn esp_volume(contents: &Contents<'_>, partition: &Partition) -> Volume {
    let uki = format!("EFI/Linux/{}_{}.efi", contents.name, contents.version);
    let files = BTreeMap::from([
        ("EFI/BOOT/BOOTX64.EFI".to_owned(), contents.boot_loader.to_vec()),
        (uki, contents.uki.to_vec()),
        // The newest version that has tries left boots at once; nobody changes its command line.
        ("loader/loader.conf".to_owned(), b"timeout 0\neditor no\n".to_vec()),
    ]);
    // The largest clusters that still make it FAT32: firmware reads those fastest.
    let mut cluster = 4096;
    while cluster > 512 && partition.length / u64::from(cluster) < 66_000 {
        cluster /= 2;
    }
    volume(Kind::Fat32, cluster, "ESP", partition, files)
}

/// The provision partition's volume, with what a flasher or `postern run` puts into it.
pub(crate) fn provision_volume(partition: &Partition, files: BTreeMap<String, Vec<u8>>) -> Volume {
    volume(Kind::Fat16, 2048, "PROVISION", partition, files)
}

fn volume(
    kind: Kind,
    cluster: u32,
    label: &'static str,
    partition: &Partition,
    files: BTreeMap<String, Vec<u8>>,
) -> Volume {
    let [a, b, c, d, ..] = *partition.id.text_order();
    Volume {
        kind,
        size: partition.length,
        cluster,
        label,
        serial: u32::from_be_bytes([a, b, c, d]),
        hidden_sectors: u32::try_from(partition.start / SECTOR).unwrap_or(0),
        files,
    }
}

fn check(
    what: &'static str,
    bytes: &[u8],
    partition: &Partition,
    setting: &'static str,
) -> Result<(), WriteDiskError> {
    let (needed, room) = (bytes.len() as u64, partition.length);
    if needed > room {
        return Err(WriteDiskError::TooLarge { what, needed, room, setting });
    }
    Ok(())
}

fn write_sparse(disk: &mut File, start: u64, bytes: &[u8]) -> io::Result<()> {
    for (index, block) in bytes.chunks(HOLE).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            disk.seek(SeekFrom::Start(start + (index * HOLE) as u64))?;
            disk.write_all(block)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom};
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::{Contents, Sizes, WriteDiskError, write};
    use crate::{gpt, verity};

    const SIZES: Sizes =
        Sizes { esp: 68 << 20, root: 16 << 20, verity: 1 << 20, provision: 16 << 20 };

    fn image(root_blocks: usize) -> Result<(File, verity::RootHash), WriteDiskError> {
        let mut root = vec![0; root_blocks * 4096];
        root[4096] = 1;
        let (tree, root_hash) = verity::tree(&root, &[3; 32]);
        let contents = Contents {
            name: "postern",
            version: "1.0~rc1",
            root: &root,
            verity: &tree,
            root_hash,
            boot_loader: b"boot loader",
            uki: &[5; 3_000_000],
        };
        let mut disk = tempfile::tempfile().unwrap();
        write(&mut disk, &contents, SIZES)?;
        Ok((disk, root_hash))
    }

    /// A foreign tool, run on the image by its descriptor's path.
    fn run(disk: &File, program: &str, arguments: &[&str], offset: u64) -> String {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd());
        let at = if offset == 0 { path } else { format!("{path}@@{offset}") };
        let output = Command::new(program)
            .args(arguments.iter().map(|word| if *word == "IMAGE" { at.as_str() } else { word }))
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    #[test]
    fn gdisk_and_mtools_find_the_partitions_and_what_they_hold() {
        let (disk, root_hash) = image(64).unwrap();
        let verdict = run(&disk, "sgdisk", &["-v", "IMAGE"], 0);
        let list = run(&disk, "sgdisk", &["-p", "IMAGE"], 0);
        let root = run(&disk, "sgdisk", &["-i", "3", "IMAGE"], 0);
        let esp = run(&disk, "mdir", &["-b", "-/", "-i", "IMAGE", "::"], 1 << 20);

        assert!(verdict.contains("No problems found"), "{verdict}");
        for name in ["esp", "postern_1.0~rc1_verity", "postern_1.0~rc1", "_empty", "provision"] {
            assert!(list.contains(name), "{name} in {list}");
        }
        let id = root_hash.data_partition().to_string().to_uppercase();
        assert!(root.contains(&id), "{id} in {root}");
        for path in ["EFI/BOOT/BOOTX64.EFI", "EFI/Linux/postern_1.0~rc1.efi", "loader/loader.conf"]
        {
            assert!(esp.contains(path), "{path} in {esp}");
        }
    }

    #[test]
    fn holes_stay_holes() {
        let (disk, _) = image(4096).unwrap();
        let metadata = disk.metadata().unwrap();

        assert_eq!(metadata.len(), (2 + 68 + 16 + 1 + 16 + 1 + 16) << 20);
        assert!(metadata.blocks() * 512 < 6 << 20, "{} KiB", metadata.blocks() / 2);
    }

    #[test]
    fn the_same_contents_give_the_same_bytes() {
        let bytes = || {
            let (mut disk, _) = image(64).unwrap();
            let mut bytes = Vec::new();
            disk.seek(SeekFrom::Start(0)).unwrap();
            disk.read_to_end(&mut bytes).unwrap();
            bytes
        };

        assert!(bytes() == bytes());
    }

    #[test]
    fn the_table_is_read_back_with_the_provision_partition_last() {
        let (disk, _) = image(64).unwrap();
        let partitions = gpt::read(&disk).unwrap();

        assert_eq!(partitions.len(), 6);
        assert_eq!(partitions[5].label, super::PROVISION);
        assert_eq!(partitions[5].length, 16 << 20);
    }

    #[test]
    fn a_root_that_does_not_fit_names_the_setting_to_raise() {
        let error = image(4097).unwrap_err();

        assert!(error.to_string().contains("`disk.root`"), "{error}");
    }
}
