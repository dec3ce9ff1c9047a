//! The initial RAM disk: a cpio archive in the "newc" format (kernel documentation,
//! `driver-api/early-userspace/buffer-format`), compressed with zstd.
//!
//! It holds our static init, the kernel modules that reach the root file system, and
//! `/modules.list` with their paths in load order. Modules go in unpacked: together they compress
//! better, and the kernel saves the time of its slower decompressor.

use std::io::{self, Read};

/// zstd's level: this is read at every boot and written once.
const LEVEL: i32 = 19;
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Why there is no initrd.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitrdError {
    /// The module is damaged, or packed in a way that is not known.
    #[error("cannot unpack the kernel module {0}")]
    Module(String, #[source] io::Error),
    /// zstd failed.
    #[error("cannot compress the initrd")]
    Compress(#[source] io::Error),
}

/// Makes the archive from the init program and the modules in the order in which they are loaded.
///
/// # Errors
///
/// Returns the module that cannot be unpacked.
pub(crate) fn build(init: &[u8], modules: &[(String, Vec<u8>)]) -> Result<Vec<u8>, InitrdError> {
    let mut archive = Archive::default();
    let mut list = String::new();
    archive.add("init", EXECUTABLE, init);
    for at in ["dev", "modules", "proc", "sys", "sysroot"] {
        archive.add(at, DIRECTORY, &[]);
    }
    for (index, (path, bytes)) in modules.iter().enumerate() {
        let file = path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name);
        let (name, bytes) =
            unpack(file, bytes).map_err(|error| InitrdError::Module(path.clone(), error))?;
        let path = format!("modules/{index:03}-{name}");
        list.push_str(&format!("/{path}\n"));
        archive.add(&path, FILE, &bytes);
    }
    archive.add("modules.list", FILE, list.as_bytes());
    let archive = archive.finish();
    zstd::bulk::compress(&archive, LEVEL).map_err(InitrdError::Compress)
}

fn unpack(name: &str, bytes: &[u8]) -> io::Result<(String, Vec<u8>)> {
    let mut unpacked = Vec::new();
    if let Some(name) = name.strip_suffix(".xz") {
        liblzma::read::XzDecoder::new(bytes).read_to_end(&mut unpacked)?;
        return Ok((name.to_owned(), unpacked));
    }
    if let Some(name) = name.strip_suffix(".zst") {
        zstd::stream::copy_decode(bytes, &mut unpacked)?;
        return Ok((name.to_owned(), unpacked));
    }
    Ok((name.to_owned(), bytes.to_vec()))
}

/// A cpio archive being written: inode numbers count up, times are 0, everything is root's.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let inode = self.entries;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let fields = [
            inode as usize,
            mode as usize,
            0,
            0,
            links,
            0,
            contents.len(),
            0,
            0,
            0,
            0,
            path.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::build;

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut writer = liblzma::write::XzEncoder::new(Vec::new(), 6);
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn cpio_extracts_init_and_the_unpacked_modules_in_load_order() {
        let modules = [
            ("kernel/drivers/z.ko.xz".to_owned(), xz(b"module z")),
            ("kernel/fs/a.ko".to_owned(), b"module a".to_vec()),
        ];
        let initrd = build(b"static init", &modules).unwrap();
        let archive = zstd::stream::decode_all(&initrd[..]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut cpio = Command::new("cpio")
            .args(["--extract", "--quiet", "--no-absolute-filenames"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cpio (package cpio): {error}"));
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();

        assert!(cpio.wait().unwrap().success());
        let read = |path: &str| std::fs::read_to_string(folder.path().join(path)).unwrap();
        assert_eq!(read("init"), "static init");
        assert_eq!(read("modules.list"), "/modules/000-z.ko\n/modules/001-a.ko\n");
        assert_eq!(read("modules/000-z.ko"), "module z");
        assert_eq!(read("modules/001-a.ko"), "module a");
        assert!(folder.path().join("sysroot").is_dir());
    }

    #[test]
    fn a_damaged_module_is_named() {
        let error = build(b"", &[("kernel/x.ko.xz".to_owned(), b"no xz".to_vec())]).unwrap_err();

        assert!(error.to_string().contains("kernel/x.ko.xz"), "{error}");
    }
}
