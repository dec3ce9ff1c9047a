//! FAT volumes, written in one go (Microsoft FAT specification 1.03; ECMA-107 for FAT16).
//!
//! The same files give the same bytes: no clock, no random serial, directories first, then files,
//! each in one run of clusters in path order. Only what is not zero is written, so that a sparse
//! image stays sparse.
//!
//! Left out: reading, changing a volume in place, FAT12, names beyond ASCII.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Seek, SeekFrom, Write};

const SECTOR: u32 = 512;
const ENTRY: usize = 32;
const FATS: u32 = 2;
/// Entries of the root directory of FAT16, which has a place of its own.
const ROOT_ENTRIES: u32 = 512;
/// 1980-01-01, the first day that FAT can name.
const DATE: u16 = 0x0021;
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_FILE: u8 = 0x20;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;
const MEDIA: u8 = 0xf8;

/// Why a volume cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FatError {
    /// The files are too many or too large.
    #[error("{needed} clusters are needed, the volume `{label}` has {available}")]
    Full {
        /// Whose.
        label: String,
        /// What the files take.
        needed: u32,
        /// What there is.
        available: u32,
    },
    /// The size gives a number of clusters that no FAT kind covers.
    #[error("a volume of {0} bytes does not make {1}")]
    Size(u64, &'static str),
    /// A name that FAT cannot hold.
    #[error("`{0}` is no path for a FAT volume")]
    Path(String),
    /// Two names that differ by case only, or a file where a directory has to be.
    #[error("`{0}` collides with another name")]
    Collision(String),
    /// The disk.
    #[error("cannot write the volume")]
    Write(#[from] io::Error),
}

/// Which of the two kinds: FAT32 for the ESP, FAT16 for small volumes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// 4085 to 65524 clusters.
    Fat16,
    /// At least 65525 clusters.
    Fat32,
}

/// A volume to be written.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// Bytes per cluster: a power of two, at least 512.
    pub(crate) cluster: u32,
    /// The volume label, at most 11 characters.
    pub(crate) label: &'static str,
    /// The volume serial number.
    pub(crate) serial: u32,
    /// Sectors before the volume on its disk.
    pub(crate) hidden_sectors: u32,
    /// Paths, parts divided by `/`, and what they hold; directories are made as needed.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

/// Where everything lies, in sectors.
struct Geometry {
    kind: Kind,
    total: u32,
    per_cluster: u32,
    reserved: u32,
    fat_sectors: u32,
    root_sectors: u32,
    clusters: u32,
}

/// A directory on its way to disk.
#[derive(Default)]
struct Directory {
    /// Paths of what it holds, with whether they are directories.
    children: BTreeMap<String, bool>,
    first: u32,
    clusters: u32,
}

impl Volume {
    /// Writes the volume at `offset` of `disk`, which must read as zeros there.
    ///
    /// # Errors
    ///
    /// Returns which file or size does not fit, or the disk's error.
    pub(crate) fn write(
        &self,
        disk: &mut (impl Write + Seek),
        offset: u64,
    ) -> Result<(), FatError> {
        let geometry = Geometry::new(self)?;
        let mut directories = self.directories()?;
        let mut fat = Fat::new(geometry.kind);
        let cluster = geometry.per_cluster * SECTOR;

        for (path, directory) in &mut directories {
            let entries: usize =
                directory.children.keys().map(|child| entries_for(name_of(child))).sum();
            let bytes = (entries + 2) * ENTRY;
            if path.is_empty() && geometry.kind == Kind::Fat16 {
                if entries + 1 > usize_of(ROOT_ENTRIES) {
                    return Err(FatError::Path("too many names in the root".into()));
                }
                continue;
            }
            directory.clusters = clusters_for(bytes, cluster);
            directory.first = fat.allocate(directory.clusters);
        }
        let mut files = BTreeMap::new();
        for (path, bytes) in &self.files {
            let clusters = clusters_for(bytes.len(), cluster);
            let first = if clusters == 0 { 0 } else { fat.allocate(clusters) };
            files.insert(path.as_str(), first);
        }
        let needed = fat.used();
        if needed > geometry.clusters {
            let (label, available) = (self.label.to_owned(), geometry.clusters);
            return Err(FatError::Full { label, needed, available });
        }

        let mut at = |sector: u32, bytes: &[u8]| -> io::Result<()> {
            disk.seek(SeekFrom::Start(offset + u64::from(sector) * u64::from(SECTOR)))?;
            disk.write_all(bytes)
        };
        let boot = self.boot_sector(&geometry);
        at(0, &boot)?;
        if geometry.kind == Kind::Fat32 {
            let information = geometry.information_sector(needed, fat.next());
            at(1, &information)?;
            at(6, &boot)?;
            at(7, &information)?;
        }
        let table = fat.bytes();
        for copy in 0..FATS {
            at(geometry.reserved + copy * geometry.fat_sectors, &table)?;
        }
        for (path, directory) in &directories {
            let bytes = self.directory_bytes(path, directory, &directories, &files)?;
            let sector = match directory.first {
                0 => geometry.reserved + FATS * geometry.fat_sectors,
                first => geometry.sector_of(first),
            };
            at(sector, &bytes)?;
        }
        for (path, bytes) in &self.files {
            if let Some(first) = files.get(path.as_str()).copied().filter(|&first| first != 0) {
                at(geometry.sector_of(first), bytes)?;
            }
        }
        Ok(())
    }

    fn directories(&self) -> Result<BTreeMap<String, Directory>, FatError> {
        let mut directories = BTreeMap::from([(String::new(), Directory::default())]);
        let mut lower = BTreeMap::new();
        for path in self.files.keys() {
            let mut here = String::new();
            let parts: Vec<&str> = path.split('/').collect();
            for (index, part) in parts.iter().enumerate() {
                check_name(part).ok_or_else(|| FatError::Path(path.clone()))?;
                let child =
                    if here.is_empty() { (*part).to_owned() } else { format!("{here}/{part}") };
                let is_directory = index + 1 < parts.len();
                let seen = lower.insert(child.to_ascii_lowercase(), (child.clone(), is_directory));
                if seen.is_some_and(|seen| seen != (child.clone(), is_directory)) {
                    return Err(FatError::Collision(child));
                }
                directories.entry(here).or_default().children.insert(child.clone(), is_directory);
                if is_directory {
                    directories.entry(child.clone()).or_default();
                }
                here = child;
            }
        }
        Ok(directories)
    }

    fn directory_bytes(
        &self,
        path: &str,
        directory: &Directory,
        directories: &BTreeMap<String, Directory>,
        files: &BTreeMap<&str, u32>,
    ) -> Result<Vec<u8>, FatError> {
        let mut bytes = Vec::new();
        if path.is_empty() {
            bytes.extend(entry(&padded(self.label), ATTRIBUTE_LABEL, 0, 0));
        } else {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            // A `..` that leads to the root says 0, even where the root has a cluster.
            let above = if parent.is_empty() { 0 } else { first_of(directories, parent) };
            bytes.extend(entry(b".          ", ATTRIBUTE_DIRECTORY, directory.first, 0));
            bytes.extend(entry(b"..         ", ATTRIBUTE_DIRECTORY, above, 0));
        }
        let mut taken = BTreeSet::new();
        for (child, is_directory) in &directory.children {
            let name = name_of(child);
            let short = short_name(name, &mut taken);
            if entries_for(name) > 1 {
                bytes.extend(long_entries(name, &short));
            }
            if *is_directory {
                let first = first_of(directories, child);
                bytes.extend(entry(&short, ATTRIBUTE_DIRECTORY, first, 0));
            } else {
                let length = self.files.get(child).map_or(0, Vec::len);
                let length =
                    u32::try_from(length).map_err(|_| FatError::Path(format!("{child}: 4 GiB")))?;
                let first = files.get(child.as_str()).copied().unwrap_or(0);
                bytes.extend(entry(&short, ATTRIBUTE_FILE, first, length));
            }
        }
        Ok(bytes)
    }

    fn boot_sector(&self, geometry: &Geometry) -> [u8; SECTOR as usize] {
        let mut boot = [0; SECTOR as usize];
        let mut put = |at: usize, bytes: &[u8]| boot[at..at + bytes.len()].copy_from_slice(bytes);
        let wide = geometry.kind == Kind::Fat32;
        put(0, if wide { &[0xeb, 0x58, 0x90] } else { &[0xeb, 0x3c, 0x90] });
        put(3, b"POSTERN ");
        put(11, &low_half(SECTOR));
        put(13, &geometry.per_cluster.to_le_bytes()[..1]);
        put(14, &low_half(geometry.reserved));
        put(16, &FATS.to_le_bytes()[..1]);
        put(17, &low_half(if wide { 0 } else { ROOT_ENTRIES }));
        // The 16-bit total is left 0 in both kinds; the 32-bit one is valid for both.
        put(21, &[MEDIA]);
        put(24, &63_u16.to_le_bytes());
        put(26, &255_u16.to_le_bytes());
        put(28, &self.hidden_sectors.to_le_bytes());
        put(32, &geometry.total.to_le_bytes());
        let extended = if wide {
            put(36, &geometry.fat_sectors.to_le_bytes());
            put(44, &2_u32.to_le_bytes());
            put(48, &1_u16.to_le_bytes());
            put(50, &6_u16.to_le_bytes());
            64
        } else {
            put(22, &low_half(geometry.fat_sectors));
            36
        };
        put(extended, &[0x80, 0, 0x29]);
        put(extended + 3, &self.serial.to_le_bytes());
        put(extended + 7, &padded(self.label));
        put(extended + 18, if wide { b"FAT32   " } else { b"FAT16   " });
        put(510, &[0x55, 0xaa]);
        boot
    }
}

impl Geometry {
    fn new(volume: &Volume) -> Result<Self, FatError> {
        let name = if volume.kind == Kind::Fat32 { "FAT32" } else { "FAT16" };
        let wrong = || FatError::Size(volume.size, name);
        let total = u32::try_from(volume.size / u64::from(SECTOR)).map_err(|_| wrong())?;
        let per_cluster = volume.cluster / SECTOR;
        if !(1..=128).contains(&per_cluster) || !per_cluster.is_power_of_two() {
            return Err(wrong());
        }
        let (reserved, root_sectors, width) = match volume.kind {
            Kind::Fat16 => (1, ROOT_ENTRIES * 32 / SECTOR, 2),
            Kind::Fat32 => (32, 0, 4),
        };
        // Generous by at most one FAT's worth: sized for all sectors to be data.
        let fat_sectors = (total / per_cluster + 2).div_ceil(SECTOR / width);
        let overhead = reserved + root_sectors + FATS * fat_sectors;
        let clusters = total.checked_sub(overhead).ok_or_else(wrong)? / per_cluster;
        let fits = match volume.kind {
            Kind::Fat16 => (4085..65525).contains(&clusters),
            Kind::Fat32 => (65525..0x0fff_fff5).contains(&clusters),
        };
        if !fits {
            return Err(wrong());
        }
        let kind = volume.kind;
        Ok(Self { kind, total, per_cluster, reserved, fat_sectors, root_sectors, clusters })
    }

    fn sector_of(&self, cluster: u32) -> u32 {
        let data = self.reserved + FATS * self.fat_sectors + self.root_sectors;
        data + (cluster - 2) * self.per_cluster
    }

    fn information_sector(&self, used: u32, next: u32) -> [u8; SECTOR as usize] {
        let mut sector = [0; SECTOR as usize];
        sector[..4].copy_from_slice(b"RRaA");
        sector[484..488].copy_from_slice(b"rrAa");
        sector[488..492].copy_from_slice(&(self.clusters - used).to_le_bytes());
        sector[492..496].copy_from_slice(&next.to_le_bytes());
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }
}

/// The file allocation table, filled from the front.
struct Fat {
    kind: Kind,
    entries: Vec<u32>,
}

impl Fat {
    fn new(kind: Kind) -> Self {
        Self { kind, entries: vec![0x0fff_ff00 | u32::from(MEDIA), 0x0fff_ffff] }
    }

    /// Takes a run of clusters and returns its first; none are taken for 0.
    fn allocate(&mut self, clusters: u32) -> u32 {
        let first = self.next();
        self.entries.extend(first + 1..first + clusters);
        self.entries.push(0x0fff_ffff);
        first
    }

    fn next(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    fn used(&self) -> u32 {
        self.next() - 2
    }

    fn bytes(&self) -> Vec<u8> {
        match self.kind {
            Kind::Fat32 => self.entries.iter().flat_map(|entry| entry.to_le_bytes()).collect(),
            Kind::Fat16 => self.entries.iter().flat_map(|&entry| low_half(entry)).collect(),
        }
    }
}

fn clusters_for(bytes: usize, cluster: u32) -> u32 {
    u32::try_from(bytes.div_ceil(usize_of(cluster))).unwrap_or(u32::MAX / 4)
}

fn usize_of(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn low_half(value: u32) -> [u8; 2] {
    let [a, b, ..] = value.to_le_bytes();
    [a, b]
}

fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn first_of(directories: &BTreeMap<String, Directory>, path: &str) -> u32 {
    directories.get(path).map_or(0, |directory| directory.first)
}

fn padded(label: &str) -> [u8; 11] {
    let mut field = [b' '; 11];
    for (place, byte) in field.iter_mut().zip(label.bytes()) {
        *place = byte;
    }
    field
}

fn check_name(name: &str) -> Option<()> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"*/:<>?\\|".contains(&byte);
    let good = !name.is_empty()
        && name.len() <= 200
        && name.bytes().all(|byte| allowed(byte) || byte == b' ')
        && !name.ends_with(['.', ' '])
        && !name.starts_with(' ');
    good.then_some(())
}

/// `Some` when the name is an 8.3 name as it stands.
fn plain_short_name(name: &str) -> Option<[u8; 11]> {
    let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let plain = |part: &str| {
        part.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    let fits = (1..=8).contains(&base.len()) && extension.len() <= 3 && !name.ends_with('.');
    if !fits || !plain(base) || !plain(extension) {
        return None;
    }
    let mut field = padded(base);
    field[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
    Some(field)
}

/// How many directory entries a name takes: one, or one more per 13 characters.
fn entries_for(name: &str) -> usize {
    if plain_short_name(name).is_some() { 1 } else { 1 + name.len().div_ceil(13) }
}

/// The name itself when it is short, else an alias that is unique in its directory.
fn short_name(name: &str, taken: &mut BTreeSet<[u8; 11]>) -> [u8; 11] {
    let clean = |part: &str| -> String {
        part.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect()
    };
    let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let (base, extension) = (clean(base), clean(extension));
    let mut short = plain_short_name(name).unwrap_or_else(|| alias(&base, &extension, 1));
    let mut number = 1;
    while !taken.insert(short) {
        number += 1;
        short = alias(&base, &extension, number);
    }
    short
}

fn alias(base: &str, extension: &str, number: u32) -> [u8; 11] {
    let tail = format!("~{number}");
    let kept: String = base.chars().take(8 - tail.len()).collect();
    let mut field = padded(&format!("{kept}{tail}"));
    for (place, byte) in field[8..].iter_mut().zip(extension.bytes()) {
        *place = byte;
    }
    field
}

fn entry(name: &[u8; 11], attributes: u8, first: u32, length: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    let first = first.to_le_bytes();
    entry[16..18].copy_from_slice(&DATE.to_le_bytes());
    entry[18..20].copy_from_slice(&DATE.to_le_bytes());
    entry[20..22].copy_from_slice(&first[2..]);
    entry[24..26].copy_from_slice(&DATE.to_le_bytes());
    entry[26..28].copy_from_slice(&first[..2]);
    entry[28..].copy_from_slice(&length.to_le_bytes());
    entry
}

/// The long name's entries, last part first, tied to the short name by its checksum.
fn long_entries(name: &str, short: &[u8; 11]) -> Vec<u8> {
    const PLACES: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    let sum = short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let parts: Vec<&[u8]> = name.as_bytes().chunks(13).collect();
    let mut bytes = Vec::new();
    for (index, part) in parts.iter().enumerate().rev() {
        let mut entry = [0; ENTRY];
        let last = if index + 1 == parts.len() { 0x40 } else { 0 };
        entry[0] = u8::try_from(index + 1).unwrap_or(0x3f) | last;
        entry[11] = ATTRIBUTE_LONG_NAME;
        entry[13] = sum;
        for (place, at) in PLACES.into_iter().enumerate() {
            // The name ends with one zero; what is left is filled with ones.
            let unit = match part.get(place) {
                Some(byte) => u16::from(*byte),
                None if place == part.len() => 0,
                None => 0xffff,
            };
            entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        bytes.extend(entry);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Cursor;
    use std::process::Command;

    use super::{FatError, Kind, Volume};

    fn volume(kind: Kind) -> Volume {
        let (size, cluster) = match kind {
            Kind::Fat16 => (16 << 20, 2048),
            Kind::Fat32 => (128 << 20, 1024),
        };
        let files = BTreeMap::from([
            ("EFI/BOOT/BOOTX64.EFI".to_owned(), vec![1; 100_000]),
            ("EFI/Linux/postern_1.0+3-0.efi".to_owned(), (0..=255).cycle().take(70_001).collect()),
            ("EFI/Linux/postern_1.1.efi".to_owned(), vec![3; 1024]),
            ("loader/loader.conf".to_owned(), b"timeout 0\n".to_vec()),
            ("empty".to_owned(), Vec::new()),
        ]);
        Volume {
            kind,
            size,
            cluster,
            label: "POSTERN",
            serial: 0x1234_5678,
            hidden_sectors: 0,
            files,
        }
    }

    fn written(volume: &Volume) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(volume.size).unwrap();
        volume.write(&mut file, 0).unwrap();
        file
    }

    fn run(program: &str, arguments: &[&str]) -> (bool, Vec<u8>) {
        let output = Command::new(program)
            .args(arguments)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap_or_else(|error| panic!("{program} (dosfstools, mtools): {error}"));
        let mut text = output.stdout;
        text.extend(output.stderr);
        (output.status.success(), text)
    }

    #[test]
    fn dosfstools_finds_nothing_to_repair() {
        for kind in [Kind::Fat16, Kind::Fat32] {
            let file = written(&volume(kind));
            let (good, text) = run("fsck.vfat", &["-n", "-v", file.path().to_str().unwrap()]);
            let text = String::from_utf8_lossy(&text).into_owned();

            assert!(good, "{kind:?}: {text}");
            assert!(!text.to_lowercase().contains("dirty"), "{kind:?}: {text}");
        }
    }

    #[test]
    fn mtools_reads_back_every_file_under_its_long_name() {
        for kind in [Kind::Fat16, Kind::Fat32] {
            let volume = volume(kind);
            let file = written(&volume);
            for (path, bytes) in &volume.files {
                let image = file.path().to_str().unwrap();
                let (good, read) = run("mtype", &["-i", image, &format!("::{path}")]);

                assert!(good, "{path}: {}", String::from_utf8_lossy(&read));
                assert!(read == *bytes, "{kind:?} {path}: {} bytes", read.len());
            }
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let bytes = || {
            let mut disk = Cursor::new(Vec::new());
            volume(Kind::Fat16).write(&mut disk, 1024).unwrap();
            disk.into_inner()
        };

        assert!(bytes() == bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_numbers() {
        let mut volume = volume(Kind::Fat16);
        volume.files.insert("large".into(), vec![9; 17 << 20]);
        let error = volume.write(&mut Cursor::new(Vec::new()), 0).unwrap_err();

        assert!(matches!(error, FatError::Full { needed: 8704.., .. }), "{error}");
    }

    #[test]
    fn names_that_collide_or_cannot_be_are_refused() {
        for (path, other) in [("a/b", "A/c"), ("a", "a/b"), ("x", "a:b"), ("x", "a//b"), ("x", "é")]
        {
            let mut volume = volume(Kind::Fat16);
            volume.files = BTreeMap::from([(path.into(), vec![1]), (other.into(), vec![2])]);

            assert!(volume.write(&mut Cursor::new(Vec::new()), 0).is_err(), "{path} {other}");
        }
    }
}
