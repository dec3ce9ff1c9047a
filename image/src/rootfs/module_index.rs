//! Writes the indexes that kmod looks modules up in, as depmod(8) makes them: the text files, and
//! their binary forms, which are what libkmod reads.
//!
//! A binary index is a radix tree in big endian: magic, version, the root's offset; each node after
//! its children. The upper bits of an offset say which parts the node has: a prefix (NUL at the
//! end), children (first and last byte, then an offset for each byte between, 0 for none), values
//! (count, then each with its priority). The root never has a prefix.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::modules::Module;
use crate::tree::{InsertError, Node, Tree};

const MAGIC: u32 = 0xB007_F457;
const VERSION: u32 = 0x0002_0001;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;

/// Writes all indexes for `modules`, which are in the order of `modules.order`, into `folder`,
/// where the kernel's package has left `modules.builtin` and `modules.builtin.modinfo`.
///
/// # Errors
///
/// Returns an error when something is in a file's way.
pub(super) fn write(
    tree: &mut Tree,
    folder: &str,
    modules: &[&Module],
    all_dependencies: &BTreeMap<&str, Vec<&Module>>,
) -> Result<(), InsertError> {
    let mut files: Vec<(&str, Vec<u8>)> = Vec::new();

    let mut text = String::new();
    let mut index = Index::default();
    for (priority, module) in modules.iter().enumerate() {
        let mut line = format!("{}:", module.path);
        for dependency in all_dependencies.get(module.name.as_str()).into_iter().flatten() {
            let _ = write!(line, " {}", dependency.path);
        }
        let _ = writeln!(text, "{line}");
        index.add(&module.name, priority, &line);
    }
    files.push(("modules.dep", text.into_bytes()));
    files.push(("modules.dep.bin", index.to_bytes()));

    let mut text = String::from("# Aliases extracted from modules themselves.\n");
    let mut index = Index::default();
    for (priority, module) in modules.iter().enumerate() {
        for alias in module.values("alias") {
            let _ = writeln!(text, "alias {alias} {}", module.name);
            index.add(&normalize(alias), priority, &module.name);
        }
    }
    files.push(("modules.alias", text.into_bytes()));
    files.push(("modules.alias.bin", index.to_bytes()));

    let mut text = String::from("# Aliases for symbols, used by symbol_request().\n");
    let mut index = Index::default();
    for (priority, module) in modules.iter().enumerate() {
        for symbol in &module.symbols {
            let _ = writeln!(text, "alias symbol:{symbol} {}", module.name);
            index.add(&format!("symbol:{symbol}"), priority, &module.name);
        }
    }
    files.push(("modules.symbols", text.into_bytes()));
    files.push(("modules.symbols.bin", index.to_bytes()));

    for (key, file, head) in [
        ("softdep", "modules.softdep", "# Soft dependencies extracted from modules themselves.\n"),
        ("weakdep", "modules.weakdep", "# Weak dependencies extracted from modules themselves.\n"),
    ] {
        let mut text = head.to_owned();
        for module in modules {
            for value in module.values(key) {
                let _ = writeln!(text, "{key} {} {value}", module.name);
            }
        }
        files.push((file, text.into_bytes()));
    }

    files.push(("modules.devname", device_names(modules).into_bytes()));
    files.push(("modules.builtin.bin", builtin(tree, folder).to_bytes()));
    files.push(("modules.builtin.alias.bin", builtin_aliases(tree, folder).to_bytes()));

    for (name, bytes) in files {
        tree.insert(&format!("{folder}/{name}"), Node::file(bytes, 0o644))?;
    }
    Ok(())
}

/// Device nodes that systemd makes at boot although their module is not loaded yet.
fn device_names(modules: &[&Module]) -> String {
    let mut text = String::new();
    for module in modules {
        let mut name = None;
        let mut number = None;
        for alias in module.values("alias") {
            name = alias.strip_prefix("devname:").or(name);
            for (prefix, kind) in [("char-major-", 'c'), ("block-major-", 'b')] {
                let pair = alias.strip_prefix(prefix).and_then(|rest| rest.split_once('-'));
                let pair = pair.map(|(a, b)| (a.parse::<u32>(), b.parse::<u32>()));
                if let Some((Ok(major), Ok(minor))) = pair {
                    number = Some((kind, major, minor));
                }
            }
        }
        if let (Some(name), Some((kind, major, minor))) = (name, number) {
            let _ = writeln!(text, "{} {name} {kind}{major}:{minor}", module.name);
        }
    }
    if text.is_empty() {
        return text;
    }
    format!("# Device nodes to trigger on-demand module loading.\n{text}")
}

fn builtin(tree: &Tree, folder: &str) -> Index {
    let mut index = Index::default();
    for path in tree.read_text(&format!("{folder}/modules.builtin")).unwrap_or_default().lines() {
        index.add(&super::modules::name_of(path), 0, "");
    }
    index
}

fn builtin_aliases(tree: &Tree, folder: &str) -> Index {
    let mut index = Index::default();
    let info = tree.read_file(&format!("{folder}/modules.builtin.modinfo")).unwrap_or_default();
    for entry in info.split(|byte| *byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        if let Some((module, alias)) = entry.split_once(".alias=") {
            index.add(&normalize(alias), 0, module);
        }
    }
    index
}

/// `-` and `_` are the same in a module's name, save between brackets.
fn normalize(alias: &str) -> String {
    let mut in_brackets = false;
    let map = |c| {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            _ => {}
        }
        if c == '-' && !in_brackets { '_' } else { c }
    };
    alias.chars().map(map).collect()
}

/// The content of a binary index.
#[derive(Debug, Default)]
struct Index(BTreeMap<String, Vec<(u32, String)>>);

impl Index {
    fn add(&mut self, key: &str, priority: usize, value: &str) {
        let priority = u32::try_from(priority).unwrap_or(u32::MAX);
        let values = self.0.entry(key.to_owned()).or_default();
        if !values.iter().any(|(_, known)| known == value) {
            values.push((priority, value.to_owned()));
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [MAGIC, VERSION, 0] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        let entries: Vec<Entry<'_>> =
            self.0.iter().map(|(key, values)| (key.as_bytes(), values.as_slice())).collect();
        let root = write_node(&mut out, b"", &entries, 0);
        if let Some(place) = out.get_mut(8..12) {
            place.copy_from_slice(&root.to_be_bytes());
        }
        out
    }
}

type Entry<'a> = (&'a [u8], &'a [(u32, String)]);

/// Writes the node of `entries`, sorted, which all begin with the same `depth` bytes, of which
/// `prefix` are the node's own; returns its offset with the flags.
fn write_node(out: &mut Vec<u8>, prefix: &[u8], entries: &[Entry<'_>], depth: usize) -> u32 {
    let (values, rest) = match entries.split_first() {
        Some(((key, values), rest)) if key.len() == depth => (*values, rest),
        _ => (&[][..], entries),
    };
    let mut children: Vec<(u8, u32)> = Vec::new();
    for group in rest.chunk_by(|(a, _), (b, _)| a[depth] == b[depth]) {
        let (Some((first, _)), Some((last, _))) = (group.first(), group.last()) else { continue };
        // Sorted, so what the first and last have in common all have in common.
        let common = first.iter().zip(*last).take_while(|(a, b)| a == b).count();
        let offset = write_node(out, &first[depth + 1..common], group, common);
        children.push((first[depth], offset));
    }
    let mut offset = u32::try_from(out.len()).unwrap_or(u32::MAX);
    if !prefix.is_empty() {
        offset |= HAS_PREFIX;
        out.extend_from_slice(prefix);
        out.push(0);
    }
    if let (Some((first, _)), Some((last, _))) = (children.first(), children.last()) {
        offset |= HAS_CHILDREN;
        out.extend_from_slice(&[*first, *last]);
        let children: BTreeMap<u8, u32> = children.iter().copied().collect();
        for byte in *first..=*last {
            let child = children.get(&byte).copied().unwrap_or_default();
            out.extend_from_slice(&child.to_be_bytes());
        }
    }
    if !values.is_empty() {
        offset |= HAS_VALUES;
        let count = u32::try_from(values.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for (priority, value) in values {
            out.extend_from_slice(&priority.to_be_bytes());
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        }
    }
    offset
}
