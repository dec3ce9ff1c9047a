//! The root file system as squashfs 4.0: zstd in blocks of 128 KiB, one time for all nodes.
//!
//! The bytes depend on the tree, the time and the pinned versions of `backhand` and zstd alone, not
//! on threads, clock or the order in which nodes came into the tree.

use std::io::{Cursor, Read};
use std::path::Path;

use backhand::compression::{CompressionOptions, Compressor, Zstd};
use backhand::{BackhandError, FilesystemCompressor, FilesystemWriter, NodeHeader};

use crate::tree::{Kind, Tree};
use crate::verity;

const BLOCK: u32 = 128 * 1024;
const LEVEL: u32 = 15;

/// Writes the tree and pads it to whole blocks of dm-verity. `progress` is told of each piece of
/// input bytes as it is read.
///
/// # Errors
///
/// Returns backhand's error.
pub(crate) fn write(
    tree: &Tree,
    time: u32,
    progress: impl Fn(u64),
) -> Result<Vec<u8>, BackhandError> {
    let options = CompressionOptions::Zstd(Zstd { compression_level: LEVEL });
    let mut writer = FilesystemWriter::default();
    writer.set_compressor(FilesystemCompressor::new(Compressor::Zstd, Some(options))?);
    writer.set_block_size(BLOCK);
    writer.set_time(time);
    writer.set_root_mode(0o755);
    writer.set_no_padding();
    for (path, node) in tree.walk() {
        let path = Path::new("/").join(path);
        let header =
            NodeHeader { permissions: node.mode, uid: node.uid, gid: node.gid, mtime: time };
        match &node.kind {
            Kind::Directory => writer.push_dir(path, header)?,
            Kind::Symlink(target) => writer.push_symlink(target, path, header)?,
            Kind::File(bytes) => {
                let reader = Counted { bytes: bytes.as_slice(), progress: &progress };
                writer.push_file(reader, path, header)?;
            }
        }
    }
    let mut out = Cursor::new(Vec::new());
    writer.write(&mut out)?;
    let mut image = out.into_inner();
    image.resize(image.len().next_multiple_of(verity::BLOCK).max(2 * verity::BLOCK), 0);
    Ok(image)
}

struct Counted<'a, F> {
    bytes: &'a [u8],
    progress: &'a F,
}

impl<F: Fn(u64)> Read for Counted<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        (self.progress)(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::process::Command;

    use super::write;
    use crate::tree::{Node, Tree};

    fn tree() -> Tree {
        let mut tree = Tree::merged_usr();
        let noise = (0..175_000_u32)
            .flat_map(|n| n.wrapping_mul(n).wrapping_mul(2_654_435_761).to_le_bytes());
        let noise: Vec<u8> = noise.collect();
        tree.insert("usr/bin/program", Node::file(noise, 0o4755)).unwrap();
        tree.insert("etc/state", Node::file(b"x\n".to_vec(), 0o640).owned_by(0, 42)).unwrap();
        tree.insert("etc/copy", Node::file(b"x\n".to_vec(), 0o644)).unwrap();
        tree.insert("etc/empty", Node::file(Vec::new(), 0o644)).unwrap();
        tree.insert("var/lib/postern", Node::directory(0o750).owned_by(7, 8)).unwrap();
        for index in 0..600 {
            let file = Node::file(format!("file {index}"), 0o644);
            tree.insert(&format!("usr/share/many/{index}"), file).unwrap();
        }
        tree
    }

    #[test]
    fn squashfs_tools_extracts_what_the_tree_holds() {
        let image = write(&tree(), 1_780_000_000, |_| {}).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        let unsquashfs = |arguments: &[&str]| {
            let output = Command::new("unsquashfs")
                .args(arguments)
                .arg(file.path())
                .env("TZ", "UTC")
                .output()
                .unwrap_or_else(|error| panic!("unsquashfs (squashfs-tools): {error}"));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let superblock = unsquashfs(&["-s"]);
        let list = unsquashfs(&["-lln"]);
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("root");
        unsquashfs(&["-no-xattrs", "-d", to.to_str().unwrap()]);

        assert!(superblock.contains("Compression zstd"), "{superblock}");
        assert!(superblock.contains("compression-level 15"), "{superblock}");
        assert!(superblock.contains("Block size 131072"), "{superblock}");
        let line = |path: &str| {
            let line = list.lines().find(|line| line.contains(path));
            line.unwrap_or_else(|| panic!("{path} in {list}")).to_owned()
        };
        assert!(line("/usr/bin/program").starts_with("-rwsr-xr-x 0/0 "), "{list}");
        assert!(line("/etc/state").starts_with("-rw-r----- 0/42 "), "{list}");
        assert!(line("/var/lib/postern").starts_with("drwxr-x--- 7/8 "), "{list}");
        assert!(line("/etc/state").contains("2026-05-28"), "{list}");
        assert!(line("/bin -> usr/bin").starts_with("lrwxrwxrwx"), "{list}");
        let extracted = std::fs::read(to.join("usr/bin/program")).unwrap();
        assert!(extracted == tree().read_file("usr/bin/program").unwrap());
        assert_eq!(std::fs::read(to.join("usr/share/many/599")).unwrap(), b"file 599");
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_number_of_threads() {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| write(&tree(), 1_780_000_000, |_| {})).unwrap()
        };

        assert!(with(1) == with(4));
    }

    #[test]
    fn progress_adds_up_to_the_size_of_the_files() {
        let tree = tree();
        let seen = Cell::new(0);
        write(&tree, 0, |bytes| seen.set(seen.get() + bytes)).unwrap();

        assert_eq!(seen.get(), tree.size());
    }
}
