//! What dm-verity has to be told (kernel documentation, `admin-guide/device-mapper/verity`).

use std::fmt::Write as _;

/// The hash at the top of the tree: SHA-256.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RootHash([u8; 32]);

impl RootHash {
    /// Reads 64 hex digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(Self(hash))
    }

    /// The UUIDs of the data and the hash partition, in the order of their text form.
    pub(crate) fn halves(&self) -> ([u8; 16], [u8; 16]) {
        (
            std::array::from_fn(|index| self.0[index]),
            std::array::from_fn(|index| self.0[16 + index]),
        )
    }
}

/// The superblock of cryptsetup's on-disk format, version 1, as far as it can vary.
///
/// Nothing in it needs to be trusted: any change to it changes the root hash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Superblock {
    data_blocks: u64,
    salt: Vec<u8>,
}

impl Superblock {
    /// Takes SHA-256 over 4096-byte blocks; `None` for anything else.
    pub(crate) fn parse(block: &[u8; 512]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?));
        let right = block.starts_with(b"verity\0\0")
            && word(8)? == 1
            && word(12)? == 1
            && block.get(32..39)? == b"sha256\0"
            && word(64)? == 4096
            && word(68)? == 4096;
        let data_blocks = u64::from_le_bytes(block.get(72..80)?.try_into().ok()?);
        let salt_length = u16::from_le_bytes(block.get(80..82)?.try_into().ok()?);
        if !right || salt_length > 256 || data_blocks.checked_mul(8).is_none() {
            return None;
        }
        Some(Self { data_blocks, salt: block.get(88..88 + usize::from(salt_length))?.to_vec() })
    }

    /// How long the mapped device is, in sectors of 512 bytes.
    pub(crate) fn data_sectors(&self) -> u64 {
        self.data_blocks * 8
    }

    /// The target's table line. The tree starts in the block behind the superblock's.
    pub(crate) fn parameters(&self, data: &str, tree: &str, hash: &RootHash) -> String {
        let salt = if self.salt.is_empty() { "-".to_owned() } else { hex(&self.salt) };
        format!(
            "1 {data} {tree} 4096 4096 {} 1 sha256 {} {salt} 1 panic_on_corruption",
            self.data_blocks,
            hex(&hash.0)
        )
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{RootHash, Superblock};

    fn block() -> [u8; 512] {
        let mut block = [0; 512];
        block[..8].copy_from_slice(b"verity\0\0");
        block[8] = 1;
        block[12] = 1;
        block[32..38].copy_from_slice(b"sha256");
        block[65] = 0x10;
        block[69] = 0x10;
        block[72] = 3;
        block[80] = 2;
        block[88..90].copy_from_slice(&[0xab, 0x01]);
        block
    }

    #[test]
    fn a_superblock_becomes_a_table_that_panics_on_corruption() {
        let hash = RootHash::parse(&"0f".repeat(32)).unwrap();
        let table = Superblock::parse(&block()).unwrap();

        assert_eq!(table.data_sectors(), 24);
        assert_eq!(
            table.parameters("/dev/a3", "/dev/a2", &hash),
            format!(
                "1 /dev/a3 /dev/a2 4096 4096 3 1 sha256 {} ab01 1 panic_on_corruption",
                "0f".repeat(32)
            )
        );
    }

    #[test]
    fn another_hash_or_block_size_is_refused() {
        for (at, value) in [(0, b'V'), (8, 2), (35, b'5'), (65, 2), (81, 2)] {
            let mut block = block();
            block[at] = value;

            assert_eq!(Superblock::parse(&block), None, "byte {at}");
        }
    }

    #[test]
    fn a_root_hash_is_exactly_64_hex_digits() {
        for bad in ["", "0", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(RootHash::parse(bad), None, "{bad}");
        }
    }
}
