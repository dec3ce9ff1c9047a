//! Finding partitions by UUID (UEFI specification 2.10, section 5.3, GUID Partition Table).
//!
//! The kernel tells partition UUIDs only to programs that ask for block devices by them, so the
//! tables are read here. The kernel has checked a table before it made partitions from it.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Entries beyond this are not looked at; every tool writes 128.
const MAX_ENTRIES: u32 = 256;

/// A unique partition GUID in its on-disk byte order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PartitionUuid([u8; 16]);

impl PartitionUuid {
    /// From the order in which its text form is written; three fields are stored little endian.
    pub(crate) fn from_text_order(b: [u8; 16]) -> Self {
        Self([
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13],
            b[14], b[15],
        ])
    }
}

impl fmt::Display for PartitionUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The reordering is its own inverse.
        for (index, byte) in Self::from_text_order(self.0).0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A partition that exists as a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Candidate {
    /// The disk's name, such as `vda`.
    pub(crate) disk: String,
    /// The partition's path, such as `/dev/vda3`.
    pub(crate) device: String,
    /// Its UUID.
    pub(crate) uuid: PartitionUuid,
}

/// Every partition of every disk that has a GUID partition table, ordered by disk name.
///
/// What cannot be read is passed over: the caller waits and scans again.
pub(crate) fn scan() -> Vec<Candidate> {
    let Ok(entries) = fs::read_dir("/sys/class/block") else { return Vec::new() };
    let mut disks: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !fs::exists(format!("/sys/class/block/{name}/partition")).unwrap_or(true))
        .collect();
    disks.sort_unstable();
    disks.iter().flat_map(|disk| scan_disk(disk)).collect()
}

fn scan_disk(disk: &str) -> Vec<Candidate> {
    let block = fs::read_to_string(format!("/sys/class/block/{disk}/queue/logical_block_size"));
    let block = block.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(512);
    let Ok(file) = File::open(format!("/dev/{disk}")) else { return Vec::new() };
    let digit = disk.ends_with(|last: char| last.is_ascii_digit());
    read_table(&file, block)
        .into_iter()
        .map(|(number, uuid)| Candidate {
            disk: disk.to_owned(),
            device: format!("/dev/{disk}{}{number}", if digit { "p" } else { "" }),
            uuid,
        })
        .filter(|candidate| fs::exists(&candidate.device).unwrap_or(false))
        .collect()
}

fn read_table(disk: &File, block: u64) -> Vec<(u32, PartitionUuid)> {
    let mut header = [0; 92];
    if disk.read_exact_at(&mut header, block).is_err() || !header.starts_with(b"EFI PART") {
        return Vec::new();
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let start = u64::from_le_bytes(std::array::from_fn(|i| header[72 + i]));
    let (count, size) = (word(80).min(MAX_ENTRIES), u64::from(word(84)));
    let mut found = Vec::new();
    for index in 0..count {
        let mut entry = [0; 32];
        let at =
            start.checked_mul(block).and_then(|table| table.checked_add(u64::from(index) * size));
        if at.is_none_or(|at| disk.read_exact_at(&mut entry, at).is_err()) {
            break;
        }
        if entry[..16] != [0; 16] {
            found.push((index + 1, PartitionUuid(std::array::from_fn(|i| entry[16 + i]))));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::{PartitionUuid, read_table};

    #[test]
    fn a_uuid_is_stored_mixed_endian_and_written_in_order() {
        let uuid =
            PartitionUuid::from_text_order(std::array::from_fn(|i| u8::try_from(i).unwrap()));

        assert_eq!(uuid.0[..8], [3, 2, 1, 0, 5, 4, 7, 6]);
        assert_eq!(uuid.to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }

    #[test]
    fn entries_keep_their_number_and_a_cut_table_ends_the_list() {
        let path = std::env::temp_dir().join(format!("init-table-{}", std::process::id()));
        let mut disk =
            std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        disk.seek(SeekFrom::Start(512)).unwrap();
        disk.write_all(b"EFI PART").unwrap();
        disk.seek(SeekFrom::Start(512 + 72)).unwrap();
        disk.write_all(&2_u64.to_le_bytes()).unwrap();
        disk.write_all(&200_u32.to_le_bytes()).unwrap();
        disk.write_all(&128_u32.to_le_bytes()).unwrap();
        disk.seek(SeekFrom::Start(1024 + 128)).unwrap();
        disk.write_all(&[7; 32]).unwrap();

        assert_eq!(read_table(&disk, 512), [(2, PartitionUuid([7; 16]))]);
    }

    #[test]
    fn a_disk_without_a_table_has_no_partitions() {
        assert_eq!(read_table(&std::fs::File::open("/dev/zero").unwrap(), 512), []);
    }
}
