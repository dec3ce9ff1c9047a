//! Writes `etc/ld.so.cache`, where the dynamic loader looks up shared libraries, in the format
//! "glibc-ld.so.cache1.1" of glibc (`sysdeps/generic/dl-cache.h`), and makes missing soname links.
//!
//! A header of 48 bytes, an entry of 24 bytes for each library, then the strings; all offsets count
//! from the file's first byte. The loader searches by bisection, so the order matters: descending by
//! [`compare`]. Left out: the old format before 2.2, and variants for newer processors (glibc-hwcaps),
//! which no package of ours has.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::elf::Elf;
use crate::tree::{InsertError, Kind, Node, Tree};

const HEADER: usize = 48;
const ENTRY: usize = 24;
/// A library of the C library 6 for x86-64.
const FLAGS: u32 = 0x0303;
const LITTLE_ENDIAN: u8 = 2;
/// What Debian's `ld.so.conf.d` lists, as far as the image has it. `/lib` first: the loader finds
/// the same file, and programs see the path that `ldconfig` would have written.
const FOLDERS: [&str; 2] = ["lib/x86_64-linux-gnu", "lib64"];

/// Writes the cache for the libraries in the tree.
///
/// # Errors
///
/// Returns an error when something is in the way.
pub(super) fn write(tree: &mut Tree) -> Result<(), InsertError> {
    let mut libraries: BTreeMap<String, String> = BTreeMap::new();
    let mut links = Vec::new();
    for folder in FOLDERS {
        for (name, node) in tree.entries(folder) {
            let is_library = (name.starts_with("lib") || name.starts_with("ld-"))
                && name.contains(".so")
                && !matches!(node.kind, Kind::Directory);
            let path = format!("{folder}/{name}");
            let Some(elf) = tree.read_file(&path).filter(|_| is_library).and_then(Elf::parse)
            else {
                continue;
            };
            let soname = elf.soname().unwrap_or(name).to_owned();
            if soname.contains('/') {
                continue;
            }
            if tree.get(&format!("{folder}/{soname}")).is_none() {
                links.push((format!("{folder}/{soname}"), Node::symlink(name)));
            }
            let place = format!("/{folder}/{soname}");
            libraries.entry(soname).or_insert(place);
        }
    }
    for (path, link) in links {
        tree.insert(&path, link)?;
    }
    tree.insert("etc/ld.so.cache", Node::file(cache(&libraries), 0o644))
}

/// The cache file for these libraries, path by soname.
fn cache(libraries: &BTreeMap<String, String>) -> Vec<u8> {
    let mut entries: Vec<(&String, &String)> = libraries.iter().collect();
    entries.sort_by(|(a, _), (b, _)| compare(b.as_bytes(), a.as_bytes()));
    let strings_at = HEADER + ENTRY * entries.len();
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let mut table = Vec::new();
    let mut strings = Vec::new();
    for (soname, path) in &entries {
        table.extend_from_slice(&FLAGS.to_le_bytes());
        for text in [soname, path] {
            table.extend_from_slice(&number(strings_at + strings.len()));
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
        }
        // OS version (unused) and hardware capabilities (none).
        table.extend_from_slice(&[0; 12]);
    }
    let mut file = b"glibc-ld.so.cache1.1".to_vec();
    file.extend_from_slice(&number(entries.len()));
    file.extend_from_slice(&number(strings.len()));
    file.extend_from_slice(&[LITTLE_ENDIAN, 0, 0, 0]);
    // No extensions; three unused words.
    file.resize(HEADER, 0);
    file.extend_from_slice(&table);
    file.extend_from_slice(&strings);
    file
}

/// The loader's order: byte by byte, save that runs of digits compare as numbers and come after
/// everything else.
fn compare(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        let (first_a, first_b) = (a.first(), b.first());
        let is_digit = |c: Option<&u8>| c.is_some_and(u8::is_ascii_digit);
        let order = match (is_digit(first_a), is_digit(first_b)) {
            (true, true) => {
                let (number_a, rest_a) = take_number(a);
                let (number_b, rest_b) = take_number(b);
                (a, b) = (rest_a, rest_b);
                number_a.cmp(&number_b)
            }
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                if first_a.is_none() && first_b.is_none() {
                    return Ordering::Equal;
                }
                (a, b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default());
                first_a.cmp(&first_b)
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn take_number(text: &[u8]) -> (u64, &[u8]) {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end]
        .iter()
        .fold(0u64, |number, c| number.saturating_mul(10).saturating_add(u64::from(c - b'0')));
    (number, &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_ldconfig_reads_the_cache() {
        let libraries: BTreeMap<String, String> =
            ["libc.so.6", "libz.so.1", "libfoo.so.10", "libfoo.so.9", "ld-linux-x86-64.so.2"]
                .into_iter()
                .map(|name| (name.to_owned(), format!("/lib/x86_64-linux-gnu/{name}")))
                .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), cache(&libraries)).unwrap();

        // Debian has it in a folder that an ordinary user's PATH lacks.
        let output = std::process::Command::new("/sbin/ldconfig")
            .args(["-p", "-C"])
            .arg(file.path())
            .output()
            .expect("the host has ldconfig");

        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<&str> = text.lines().skip(1).map(str::trim).collect();
        assert_eq!(
            lines[..5],
            [
                "libz.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libz.so.1",
                "libfoo.so.10 (libc6,x86-64) => /lib/x86_64-linux-gnu/libfoo.so.10",
                "libfoo.so.9 (libc6,x86-64) => /lib/x86_64-linux-gnu/libfoo.so.9",
                "libc.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libc.so.6",
                "ld-linux-x86-64.so.2 (libc6,x86-64) => /lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            ]
        );
    }

    #[test]
    fn digits_compare_as_numbers() {
        assert_eq!(compare(b"lib.so.10", b"lib.so.9"), Ordering::Greater);
        assert_eq!(compare(b"lib1.so", b"liba.so"), Ordering::Greater);
        assert_eq!(compare(b"lib.so", b"lib.so"), Ordering::Equal);
        assert_eq!(compare(b"lib.so", b"lib.so.1"), Ordering::Less);
    }
}
