//! dm-verity hash trees in cryptsetup's on-disk format, version 1
//! (kernel documentation, `admin-guide/device-mapper/verity`; cryptsetup wiki, `DMVerity`).
//!
//! SHA-256 over blocks of 4096 bytes, salt in front of each block. The salt comes from the caller:
//! a tree over the same data with the same salt has the same root hash everywhere.

use std::fmt;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::gpt::Guid;

/// Size of data and hash blocks.
pub(crate) const BLOCK: usize = 4096;

/// The hash at the top of a tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct RootHash([u8; 32]);

impl RootHash {
    /// The partition UUID of the data: the first half (Discoverable Partitions Specification).
    pub(crate) fn data_partition(&self) -> Guid {
        Guid::from_text_order(std::array::from_fn(|index| self.0[index]))
    }

    /// The partition UUID of the tree: the second half.
    pub(crate) fn tree_partition(&self) -> Guid {
        Guid::from_text_order(std::array::from_fn(|index| self.0[16 + index]))
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Hashes `data`, whose length must be a multiple of [`BLOCK`] and more than one block, and returns
/// the contents of the hash partition (superblock, then the levels from the top) and the root hash.
pub(crate) fn tree(data: &[u8], salt: &[u8; 32]) -> (Vec<u8>, RootHash) {
    debug_assert!(data.len().is_multiple_of(BLOCK) && data.len() > BLOCK, "the caller pads");
    let mut levels = vec![level(data, salt)];
    while levels.last().is_some_and(|level| level.len() > BLOCK) {
        let above = levels.last().map(|below| level(below, salt)).unwrap_or_default();
        levels.push(above);
    }
    let root = RootHash(levels.last().map(|top| hash(top, salt)).unwrap_or_default());
    let mut partition = superblock(data.len() / BLOCK, salt);
    for level in levels.iter().rev() {
        partition.extend_from_slice(level);
    }
    (partition, root)
}

/// The hashes of all blocks, filled up with zeros to whole blocks.
fn level(blocks: &[u8], salt: &[u8; 32]) -> Vec<u8> {
    let hashes: Vec<[u8; 32]> = blocks.par_chunks(BLOCK).map(|block| hash(block, salt)).collect();
    let mut level = hashes.concat();
    level.resize(level.len().next_multiple_of(BLOCK), 0);
    level
}

fn hash(block: &[u8], salt: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(block).finalize().into()
}

fn superblock(blocks: usize, salt: &[u8; 32]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"verity\0\0");
    put(8, &1_u32.to_le_bytes());
    put(12, &1_u32.to_le_bytes());
    put(16, Guid::derived("verity superblock", &[salt]).text_order());
    put(32, b"sha256");
    put(64, &4096_u32.to_le_bytes());
    put(68, &4096_u32.to_le_bytes());
    put(72, &(blocks as u64).to_le_bytes());
    put(80, &32_u16.to_le_bytes());
    put(88, salt);
    block
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Command;

    use super::{BLOCK, tree};

    fn data(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK).map(|index| u8::try_from(index * 31 % 251).unwrap()).collect()
    }

    /// Whether cryptsetup accepts `data` against the tree made from `original`.
    fn accepted(original: &[u8], data: &[u8]) -> (bool, String) {
        let (partition, root) = tree(original, &[7; 32]);
        let mut files = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
        files[0].write_all(data).unwrap();
        files[1].write_all(&partition).unwrap();
        let output = Command::new("/usr/sbin/veritysetup")
            .arg("verify")
            .args(files.iter().map(|file| file.path()))
            .arg(root.to_string())
            .output()
            .unwrap_or_else(|error| panic!("veritysetup (package cryptsetup-bin): {error}"));
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    fn cryptsetup_verifies_trees_of_one_two_and_three_levels() {
        for blocks in [2, 128, 129, 128 * 128 + 1] {
            let data = data(blocks);
            let (good, text) = accepted(&data, &data);

            assert!(good, "{blocks} blocks: {text}");
        }
    }

    #[test]
    fn cryptsetup_finds_one_changed_byte() {
        let original = data(300);
        let mut changed = original.clone();
        changed[299 * BLOCK + 5] ^= 1;

        assert!(!accepted(&original, &changed).0);
    }
}
