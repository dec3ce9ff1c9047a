//! Reads Debian binary packages (deb(5)): an `ar` archive of two tar archives.
//!
//! Nothing is run and nothing is written: what a package holds comes out as values. A package is
//! trusted only as far as its hash is in the lock; a malformed one is an error, never a panic.
//!
//! Left out: device nodes, which packages of this release do not hold (an error), `bzip2` and
//! `lzma` members, which the archive no longer has.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::tree::{self, Kind, Node};

/// One thing that a package puts on the disk.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Its path, relative to the root.
    pub(crate) path: String,
    /// What it is.
    pub(crate) content: Content,
}

/// What an [`Entry`] is.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// A node of its own.
    Node(Node),
    /// Another name of the file at this path of the same package.
    HardLink(String),
}

/// Why a package cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadDebError {
    /// The outer archive is damaged.
    #[error("it is no Debian package, or it is cut short")]
    Archive,
    /// A member is missing.
    #[error("it has no member `{0}`")]
    Member(&'static str),
    /// A member is compressed in a way that we do not know.
    #[error("its member `{0}` has an unknown compression")]
    Compression(String),
    /// A member cannot be unpacked.
    #[error("its member `{member}` cannot be unpacked: {source}")]
    Unpack {
        /// Which one.
        member: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An entry is of a kind that has no place in an image.
    #[error("`{path}` is of a kind that has no place in an image ({kind})")]
    Kind {
        /// Which one.
        path: String,
        /// The tar type.
        kind: String,
    },
}

/// The files of the control archive by name: `control`, `postinst`, `triggers`, …
///
/// # Errors
///
/// Returns an error when the package is damaged.
pub(crate) fn read_control(deb: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, ReadDebError> {
    let archive = unpack(deb, "control.tar")?;
    let failed = |source| ReadDebError::Unpack { member: "control.tar", source };
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(failed)?;
        files.insert(name.trim_start_matches("./").to_owned(), bytes);
    }
    Ok(files)
}

/// The entries of the data archive for which `wanted` says yes, in order.
///
/// # Errors
///
/// Returns an error when the package is damaged or holds a device.
pub(crate) fn read_data(
    deb: &[u8],
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Entry>, ReadDebError> {
    let archive = unpack(deb, "data.tar")?;
    let failed = |source| ReadDebError::Unpack { member: "data.tar", source };
    let mut entries = Vec::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = tree::join("", &name).ok_or(ReadDebError::Archive)?;
        if path.is_empty() || !wanted(&path) {
            continue;
        }
        let content = read_entry(&mut entry, &path).map_err(failed)?;
        let content = content.ok_or_else(|| ReadDebError::Kind {
            path: path.clone(),
            kind: format!("{:?}", entry.header().entry_type()),
        })?;
        entries.push(Entry { path, content });
    }
    Ok(entries)
}

/// `None` for a kind that has no place in an image.
fn read_entry<R: Read>(entry: &mut tar::Entry<'_, R>, path: &str) -> io::Result<Option<Content>> {
    let header = entry.header();
    let owner = |id: u64| u32::try_from(id).map_err(|_| io::Error::other("an id is too large"));
    let (uid, gid) = (owner(header.uid()?)?, owner(header.gid()?)?);
    let mode = u16::try_from(header.mode()? & 0o7777).unwrap_or_default();
    let target = || {
        let bytes = entry.link_name_bytes();
        bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    };
    let kind = match header.entry_type() {
        tar::EntryType::Directory => Kind::Directory,
        tar::EntryType::Symlink => Kind::Symlink(target()),
        tar::EntryType::Link => {
            let target = tree::join("", &target()).unwrap_or_default();
            return Ok(Some(Content::HardLink(target)));
        }
        tar::EntryType::Regular | tar::EntryType::Continuous => {
            let mut bytes = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or(0));
            entry.read_to_end(&mut bytes)?;
            Kind::File(bytes.into())
        }
        _ => return Ok(None),
    };
    debug_assert!(!path.is_empty(), "the root is passed over");
    Ok(Some(Content::Node(Node { kind, mode, uid, gid })))
}

/// The member whose name begins with `prefix`, decompressed.
fn unpack(deb: &[u8], prefix: &'static str) -> Result<Vec<u8>, ReadDebError> {
    let (name, packed) = find_member(deb, prefix)?;
    let failed = |source| ReadDebError::Unpack { member: prefix, source };
    let mut raw = Vec::new();
    match name.rsplit_once('.').map(|(_, suffix)| suffix) {
        Some("xz") => {
            liblzma::read::XzDecoder::new_multi_decoder(packed)
                .read_to_end(&mut raw)
                .map_err(failed)?;
        }
        Some("zst") => zstd::stream::copy_decode(packed, &mut raw).map_err(failed)?,
        Some("gz") => {
            flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut raw).map_err(failed)?;
        }
        Some("tar") => raw.extend_from_slice(packed),
        _ => return Err(ReadDebError::Compression(name.to_owned())),
    }
    Ok(raw)
}

/// Finds a member of the outer `ar` archive.
fn find_member<'a>(
    deb: &'a [u8],
    prefix: &'static str,
) -> Result<(&'a str, &'a [u8]), ReadDebError> {
    let mut rest = deb.strip_prefix(b"!<arch>\n").ok_or(ReadDebError::Archive)?;
    while !rest.is_empty() {
        let (header, body) = rest.split_at_checked(60).ok_or(ReadDebError::Archive)?;
        let field = |range: std::ops::Range<usize>| {
            let text = header.get(range).and_then(|bytes| std::str::from_utf8(bytes).ok());
            text.map(str::trim_end).ok_or(ReadDebError::Archive)
        };
        let name = field(0..16)?.trim_end_matches('/');
        let size: usize = field(48..58)?.parse().map_err(|_| ReadDebError::Archive)?;
        let (content, after) = body.split_at_checked(size).ok_or(ReadDebError::Archive)?;
        if name.starts_with(prefix) {
            return Ok((name, content));
        }
        rest = after.get(size % 2..).unwrap_or_default();
    }
    Err(ReadDebError::Member(prefix))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn member(name: &str, bytes: &[u8]) -> Vec<u8> {
        let size = bytes.len();
        let mut out =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 100_644).into_bytes();
        out.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            out.push(b'\n');
        }
        out
    }

    /// A tar archive: path, kind, content or target, mode.
    pub(crate) fn archive<T: AsRef<[u8]>>(entries: &[(&str, tar::EntryType, T, u32)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content, mode) in entries {
            let content = content.as_ref();
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_uid(0);
            header.set_gid(42);
            let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
            let bytes = if is_link { b"".as_slice() } else { content };
            header.set_size(bytes.len() as u64);
            if is_link {
                header.set_link_name(std::str::from_utf8(content).unwrap()).unwrap();
            }
            builder.append_data(&mut header, path, bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// A package with this data archive.
    pub(crate) fn package(data_name: &str, data: &[u8]) -> Vec<u8> {
        let control = archive(&[("./postinst", tar::EntryType::Regular, "#!/bin/sh\n", 0o755)]);
        let mut deb = b"!<arch>\n".to_vec();
        deb.extend(member("debian-binary", b"2.0\n"));
        deb.extend(member("control.tar", &control));
        deb.extend(member(data_name, data));
        deb
    }

    #[test]
    fn files_links_owners_and_modes_come_out() {
        let data = archive(&[
            ("./usr/", tar::EntryType::Directory, "", 0o755),
            ("./usr/a", tar::EntryType::Regular, "hello", 0o2755),
            ("./usr/b", tar::EntryType::Link, "./usr/a", 0o755),
            ("./usr/c", tar::EntryType::Symlink, "a", 0o777),
            ("./usr/doc", tar::EntryType::Regular, "x", 0o644),
        ]);
        let packed = zstd::encode_all(data.as_slice(), 3).unwrap();
        let deb = package("data.tar.zst", &packed);

        let entries = read_data(&deb, |path| path != "usr/doc").unwrap();

        assert_eq!(entries.len(), 4);
        assert!(matches!(&entries[1].content, Content::Node(node)
            if node.mode == 0o2755 && node.gid == 42 && node.kind == Node::file("hello", 0).kind));
        assert!(matches!(&entries[2].content, Content::HardLink(path) if path == "usr/a"));
        assert!(matches!(&entries[3].content, Content::Node(node)
            if node.kind == Kind::Symlink("a".into())));
        assert_eq!(read_control(&deb).unwrap()["postinst"], b"#!/bin/sh\n");
    }

    #[test]
    fn a_package_cut_at_any_byte_is_an_error() {
        let data = archive(&[("./a", tar::EntryType::Regular, "hello", 0o644)]);
        let deb = package("data.tar", &data);
        let header_end = deb.len() - data.len();
        for end in (0..header_end).chain([deb.len() - 1]) {
            assert!(read_data(&deb[..end], |_| true).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_device_has_no_place_in_an_image() {
        let data = archive(&[("./dev/null", tar::EntryType::Char, "", 0o666)]);

        let error = read_data(&package("data.tar", &data), |_| true).unwrap_err();

        assert!(matches!(error, ReadDebError::Kind { path, .. } if path == "dev/null"));
    }
}
