//! GUID partition tables (UEFI specification 2.10, section 5; Discoverable Partitions
//! Specification for the types).
//!
//! Sectors of 512 bytes, 128 entries, a backup at the end of the disk, a protective MBR. A disk that
//! is longer than the table says is fine: systemd-repart moves the backup when it grows the disk.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

/// A logical block.
pub(crate) const SECTOR: u64 = 512;
/// Partitions begin and end at multiples of this.
pub(crate) const ALIGNMENT: u64 = 1 << 20;
const ENTRIES: u32 = 128;
const ENTRY: usize = 128;
/// Sectors that the entries take.
const TABLE_SECTORS: u64 = 32;
/// Characters of a label.
const LABEL: usize = 36;

/// A GUID, in the order in which its text form is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Guid([u8; 16]);

impl Guid {
    /// EFI system partition.
    pub(crate) const ESP: Self = Self(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b_u128.to_be_bytes());
    /// Root file system of x86-64.
    pub(crate) const ROOT: Self = Self(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709_u128.to_be_bytes());
    /// Its dm-verity hash tree.
    pub(crate) const ROOT_VERITY: Self =
        Self(0x2c7357ed_ebd2_46d9_aec1_23d437ec2bf5_u128.to_be_bytes());
    /// Microsoft basic data: what every desktop mounts.
    pub(crate) const BASIC_DATA: Self =
        Self(0xebd0a0a2_b9e5_4433_87c0_68b6b72699c7_u128.to_be_bytes());

    /// From its 16 bytes as written.
    pub(crate) const fn from_text_order(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Made from `purpose` and `parts` by SHA-256, marked as RFC 9562 version 8.
    pub(crate) fn derived(purpose: &str, parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new_with_prefix(purpose);
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let mut bytes: [u8; 16] = std::array::from_fn(|index| digest[index]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// Its 16 bytes as written.
    pub(crate) const fn text_order(&self) -> &[u8; 16] {
        &self.0
    }

    /// Its bytes on disk: three fields little endian. Its own inverse.
    fn disk_order(self) -> [u8; 16] {
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        ORDER.map(|index| self.0[index])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// One entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Partition {
    /// What it is for.
    pub(crate) kind: Guid,
    /// Which one it is.
    pub(crate) id: Guid,
    /// Its place in bytes; a multiple of [`ALIGNMENT`].
    pub(crate) start: u64,
    /// Its length in bytes; likewise.
    pub(crate) length: u64,
    /// Bits 48 to 63 belong to the type.
    pub(crate) attributes: u64,
    /// Its name, at most 36 characters.
    pub(crate) label: String,
}

/// Read-only, for root and verity partitions (Discoverable Partitions Specification).
pub(crate) const READ_ONLY: u64 = 1 << 60;

/// A whole table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Table {
    /// The disk's GUID.
    pub(crate) disk: Guid,
    /// The disk's length in bytes.
    pub(crate) length: u64,
    /// At most 128.
    pub(crate) partitions: Vec<Partition>,
}

impl Table {
    /// Writes protective MBR, table and backup.
    ///
    /// # Errors
    ///
    /// Returns the disk's error.
    pub(crate) fn write(&self, disk: &mut (impl Write + Seek)) -> io::Result<()> {
        let last = self.length / SECTOR - 1;
        let entries = self.entries();
        disk.seek(SeekFrom::Start(0))?;
        disk.write_all(&protective_mbr(last))?;
        disk.write_all(&self.header(1, last, 2, &entries))?;
        disk.write_all(&entries)?;
        disk.seek(SeekFrom::Start((last - TABLE_SECTORS) * SECTOR))?;
        disk.write_all(&entries)?;
        disk.write_all(&self.header(last, 1, last - TABLE_SECTORS, &entries))
    }

    fn entries(&self) -> Vec<u8> {
        let mut bytes = vec![0; ENTRY * ENTRIES as usize];
        for (entry, partition) in bytes.chunks_mut(ENTRY).zip(&self.partitions) {
            let mut put =
                |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
            put(0, &partition.kind.disk_order());
            put(16, &partition.id.disk_order());
            put(32, &(partition.start / SECTOR).to_le_bytes());
            put(40, &((partition.start + partition.length) / SECTOR - 1).to_le_bytes());
            put(48, &partition.attributes.to_le_bytes());
            for (index, unit) in partition.label.encode_utf16().take(LABEL).enumerate() {
                put(56 + 2 * index, &unit.to_le_bytes());
            }
        }
        bytes
    }

    fn header(&self, own: u64, other: u64, table: u64, entries: &[u8]) -> Vec<u8> {
        let last = self.length / SECTOR - 1;
        let mut bytes = vec![0; 512];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"EFI PART");
        put(8, &0x0001_0000_u32.to_le_bytes());
        put(12, &92_u32.to_le_bytes());
        put(24, &own.to_le_bytes());
        put(32, &other.to_le_bytes());
        put(40, &(2 + TABLE_SECTORS).to_le_bytes());
        put(48, &(last - TABLE_SECTORS - 1).to_le_bytes());
        put(56, &self.disk.disk_order());
        put(72, &table.to_le_bytes());
        put(80, &ENTRIES.to_le_bytes());
        put(84, &128_u32.to_le_bytes());
        put(88, &crc32(entries).to_le_bytes());
        let sum = crc32(&bytes[..92]);
        bytes[16..20].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

/// Why a table cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadTableError {
    /// The disk.
    #[error("cannot read the partition table")]
    Read(#[from] io::Error),
    /// Not one that [`Table::write`] writes.
    #[error("no GUID partition table with valid checksums")]
    Invalid,
}

/// Reads the partitions of the table at the front of `disk`.
///
/// # Errors
///
/// Returns why there is none.
pub(crate) fn read(disk: &File) -> Result<Vec<Partition>, ReadTableError> {
    let mut header = [0; 92];
    disk.read_exact_at(&mut header, SECTOR)?;
    let long = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
    };
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| header[at + index]));
    let (count, size, sum, entries_sum) = (word(80), word(84), word(16), word(88));
    let mut zeroed = header;
    zeroed[16..20].fill(0);
    let table = long(&header, 72).checked_mul(SECTOR).ok_or(ReadTableError::Invalid)?;
    let right = header.starts_with(b"EFI PART") && crc32(&zeroed) == sum && count == ENTRIES;
    if !right || size != 128 {
        return Err(ReadTableError::Invalid);
    }
    let mut entries = vec![0; ENTRY * ENTRIES as usize];
    disk.read_exact_at(&mut entries, table)?;
    if crc32(&entries) != entries_sum {
        return Err(ReadTableError::Invalid);
    }
    let guid = |bytes: &[u8]| Guid(Guid(std::array::from_fn(|index| bytes[index])).disk_order());
    let used = entries.chunks(ENTRY).filter(|entry| entry[..16] != [0; 16]);
    used.map(|entry| {
        let (first, last) = (long(entry, 32), long(entry, 40));
        let sectors = last.checked_sub(first).and_then(|n| n.checked_add(1));
        let length = sectors.and_then(|sectors| sectors.checked_mul(SECTOR));
        let start = first.checked_mul(SECTOR);
        let (Some(start), Some(length)) = (start, length) else {
            return Err(ReadTableError::Invalid);
        };
        let units = entry[56..].chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
        Ok(Partition {
            kind: guid(entry),
            id: guid(&entry[16..]),
            start,
            length,
            attributes: long(entry, 48),
            label: String::from_utf16_lossy(&units),
        })
    })
    .collect()
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// One partition of type 0xEE over the whole disk (UEFI, section 5.2.3).
fn protective_mbr(last: u64) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    bytes[454..458].copy_from_slice(&1_u32.to_le_bytes());
    let sectors = u32::try_from(last).unwrap_or(u32::MAX);
    bytes[458..462].copy_from_slice(&sectors.to_le_bytes());
    bytes[510..].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Guid, Partition, READ_ONLY, Table, read};

    fn table() -> Table {
        let partition = |kind, label: &str, start: u64, length: u64| Partition {
            kind,
            id: Guid::derived("test", &[label.as_bytes()]),
            start: start << 20,
            length: length << 20,
            attributes: if kind == Guid::ROOT { READ_ONLY } else { 0 },
            label: label.to_owned(),
        };
        Table {
            disk: Guid::derived("disk", &[]),
            length: 64 << 20,
            partitions: vec![
                partition(Guid::ESP, "esp", 1, 20),
                partition(Guid::ROOT, "postern_1.0", 21, 10),
                partition(Guid::BASIC_DATA, "provision", 31, 32),
            ],
        }
    }

    fn written(length: u64) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        table().write(&mut file).unwrap();
        file.as_file().set_len(length).unwrap();
        file
    }

    #[test]
    fn gdisk_finds_no_problem_and_the_names_and_types() {
        let file = written(64 << 20);
        let sgdisk = |arguments: &[&str]| {
            let output = Command::new("/usr/sbin/sgdisk")
                .args(arguments)
                .arg(file.path())
                .output()
                .unwrap_or_else(|error| panic!("sgdisk (package gdisk): {error}"));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let verdict = sgdisk(&["-v"]);
        let second = sgdisk(&["-i", "2"]);

        assert!(verdict.contains("No problems found"), "{verdict}");
        assert!(second.contains("'postern_1.0'"), "{second}");
        assert!(second.contains("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"), "{second}");
        let id = Guid::derived("test", &[b"postern_1.0"]).to_string().to_uppercase();
        assert!(second.contains(&id), "{second}");
    }

    #[test]
    fn what_is_written_is_read_back_even_on_a_longer_disk() {
        for length in [64 << 20, 128 << 20] {
            let file = written(length);

            assert_eq!(read(file.as_file()).unwrap(), table().partitions);
        }
    }

    #[test]
    fn a_changed_table_is_refused() {
        use std::os::unix::fs::FileExt;
        for at in [512 + 40, 1024 + 33] {
            let file = written(64 << 20);
            file.as_file().write_all_at(&[0x77], at).unwrap();

            assert!(read(file.as_file()).is_err(), "byte {at}");
        }
    }
}
