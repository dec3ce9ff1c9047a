//! From the root tree and the boot programs to the disk image.

use std::fs::File;

use anyhow::Context as _;
use sha2::{Digest, Sha256};

use super::steps::Steps;
use crate::disk::{self, Contents, Sizes};
use crate::tree::Tree;
use crate::uki::{self, Parts};
use crate::verity::{self, RootHash};
use crate::{initrd, squashfs};

/// Everything that the image depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces<'a> {
    /// First part of labels and file names.
    pub(super) name: &'a str,
    /// Second part.
    pub(super) version: &'a str,
    /// The root file system.
    pub(super) tree: &'a Tree,
    /// The one time that all its nodes have.
    pub(super) time: u32,
    /// The static init.
    pub(super) init: &'a [u8],
    /// Modules that the initrd loads, in order.
    pub(super) modules: &'a [(String, Vec<u8>)],
    /// The kernel, as Debian ships it.
    pub(super) kernel: &'a [u8],
    /// `uname -r`.
    pub(super) kernel_version: &'a str,
    /// What the kernel is started with, besides the root hash.
    pub(super) command_line: &'a [String],
    /// systemd's stub.
    pub(super) stub: &'a [u8],
    /// systemd-boot.
    pub(super) boot_loader: &'a [u8],
    /// os-release.
    pub(super) os_release: &'a [u8],
    /// The partitions' sizes.
    pub(super) sizes: Sizes,
}

/// What came out, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Made {
    /// The top of the hash tree.
    pub(super) root_hash: RootHash,
    /// The squashfs.
    pub(super) root: usize,
    /// Its hash tree.
    pub(super) verity: usize,
    /// The initrd, compressed.
    pub(super) initrd: usize,
    /// The unified kernel image.
    pub(super) uki: usize,
}

/// Writes the image into `output`, an empty file. The same pieces give the same bytes.
///
/// # Errors
///
/// Returns which piece does not fit or cannot be read.
pub(super) fn assemble(
    pieces: &Pieces<'_>,
    output: &mut File,
    steps: &Steps,
) -> anyhow::Result<Made> {
    let bar = steps.bytes("squashfs", pieces.tree.size());
    let root = squashfs::write(pieces.tree, pieces.time, |bytes| bar.inc(bytes))
        .context("cannot write the root file system")?;
    steps.done(&bar);

    let bar = steps.begin("hash tree");
    let (verity, root_hash) = verity::tree(&root, &salt(pieces, &root));
    steps.done(&bar);

    let bar = steps.begin("initrd and kernel image");
    let initrd = initrd::build(pieces.init, pieces.modules)?;
    let command_line = format!("roothash={root_hash} {}", pieces.command_line.join(" "));
    let uki = uki::build(&Parts {
        stub: pieces.stub,
        os_release: pieces.os_release,
        command_line: &command_line,
        kernel_version: pieces.kernel_version,
        initrd: &initrd,
        kernel: pieces.kernel,
    })
    .context("cannot make the unified kernel image")?;
    steps.done(&bar);

    let bar = steps.begin("disk");
    let contents = Contents {
        name: pieces.name,
        version: pieces.version,
        root: &root,
        verity: &verity,
        root_hash,
        boot_loader: pieces.boot_loader,
        uki: &uki,
    };
    disk::write(output, &contents, pieces.sizes)?;
    steps.done(&bar);
    Ok(Made {
        root_hash,
        root: root.len(),
        verity: verity.len(),
        initrd: initrd.len(),
        uki: uki.len(),
    })
}

/// No secret: it keeps trees over different images from sharing hashes.
fn salt(pieces: &Pieces<'_>, root: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update("verity salt\0")
        .chain_update(pieces.name)
        .chain_update("\0")
        .chain_update(pieces.version)
        .chain_update("\0")
        .chain_update(Sha256::digest(root))
        .finalize()
        .into()
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read, Seek};

    use super::{Made, Pieces, assemble};
    use crate::build::steps::Steps;
    use crate::disk::Sizes;
    use crate::tree::{Node, Tree};

    fn tree(order: impl Iterator<Item = u32>) -> Tree {
        let mut tree = Tree::merged_usr();
        for index in order {
            let bytes: Vec<u8> = (0..index * 77).flat_map(u32::to_le_bytes).collect();
            tree.insert(&format!("usr/share/file{index}"), Node::file(bytes, 0o644)).unwrap();
        }
        tree
    }

    fn made(tree: &Tree, version: &str, threads: usize) -> (Made, Vec<u8>) {
        let modules = [("kernel/x.ko".to_owned(), b"module".to_vec())];
        let pieces = Pieces {
            name: "postern",
            version,
            tree,
            time: 1_780_000_000,
            init: b"init",
            modules: &modules,
            kernel: &[1; 5000],
            kernel_version: "6.12",
            command_line: &["ro".to_owned(), "quiet".to_owned()],
            stub: &crate::uki::tests::stub(1024),
            boot_loader: b"boot loader",
            os_release: b"ID=postern\n",
            sizes: Sizes { esp: 68 << 20, root: 8 << 20, verity: 1 << 20, provision: 16 << 20 },
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut output = tempfile::tempfile().unwrap();
        let made = pool.install(|| assemble(&pieces, &mut output, &Steps::hidden()).unwrap());
        output.rewind().unwrap();
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).unwrap();
        (made, bytes)
    }

    #[test]
    fn threads_and_the_order_of_files_do_not_change_a_byte() {
        let (one, bytes) = made(&tree(0..200), "1.0", 1);
        let (other, others) = made(&tree((0..200).rev()), "1.0", 4);

        assert_eq!(one, other);
        assert!(bytes == others);
    }

    #[test]
    fn the_command_line_in_the_image_carries_the_root_hash() {
        let (made, bytes) = made(&tree(0..3), "1.0", 1);
        let wanted = format!("roothash={} ro quiet", made.root_hash);

        assert!(bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes()));
    }

    #[test]
    fn another_version_of_the_same_files_has_another_root_hash() {
        let tree = tree(0..3);

        assert_ne!(made(&tree, "1.0", 1).0.root_hash, made(&tree, "1.1", 1).0.root_hash);
    }
}
