//! Small modules made here, held against the host's depmod(8) and modprobe(8).

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::tree::Node;

const VERSION: &str = "6.12.1-test";
const FOLDER: &str = "usr/lib/modules/6.12.1-test";

/// An ELF relocatable file with `.modinfo` and a symbol table: what depmod looks at.
pub(in crate::rootfs) fn module(info: &[&str], exports: &[&str], imports: &[&str]) -> Vec<u8> {
    let mut strings = vec![0];
    let mut symbols = vec![0; 24];
    let exported = exports.iter().map(|name| (format!("__crc_{name}"), 0xfff1u16));
    let imported = imports.iter().map(|name| ((*name).to_owned(), 0));
    for (name, section) in exported.chain(imported) {
        symbols.extend_from_slice(&u32::try_from(strings.len()).unwrap().to_le_bytes());
        symbols.extend_from_slice(&[0x10, 0]);
        symbols.extend_from_slice(&section.to_le_bytes());
        symbols.extend_from_slice(&7u64.to_le_bytes());
        symbols.extend_from_slice(&0u64.to_le_bytes());
        strings.extend_from_slice(name.as_bytes());
        strings.push(0);
    }
    let info: Vec<u8> = info.iter().flat_map(|entry| [entry.as_bytes(), b"\0"].concat()).collect();
    let names = b"\0.modinfo\0.symtab\0.strtab\0.shstrtab\0";
    // Name, type, link, body; a symbol table links to its strings.
    let sections: [(u32, u32, u32, &[u8]); 5] = [
        (0, 0, 0, b""),
        (1, 1, 0, &info),
        (10, 2, 3, &symbols),
        (18, 3, 0, &strings),
        (26, 3, 0, names),
    ];
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[16..20].copy_from_slice(&[1, 0, 62, 0]);
    file[20] = 1;
    file[52..54].copy_from_slice(&64u16.to_le_bytes());
    file[58..64].copy_from_slice(&[64, 0, 5, 0, 4, 0]);
    let mut table = Vec::new();
    for (name, kind, link, body) in sections {
        let mut header = [0; 64];
        header[0..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(body.len() as u64).to_le_bytes());
        header[40..44].copy_from_slice(&link.to_le_bytes());
        header[56..64].copy_from_slice(&if kind == 2 { 24u64 } else { 0 }.to_le_bytes());
        table.extend_from_slice(&header);
        file.extend_from_slice(body);
        file.resize(file.len().next_multiple_of(8), 0);
    }
    let at = file.len() as u64;
    file[40..48].copy_from_slice(&at.to_le_bytes());
    file.extend_from_slice(&table);
    file
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A kernel with a chain `top-one` -> `middle` -> `base`, one beside it, one that nobody wants.
fn kernel() -> Tree {
    let top = module(
        &[
            "license=GPL",
            "depends=middle",
            "softdep=pre: beside",
            "alias=pci:v00001AF4d00001000sv*sd*bc*sc*i*",
            "alias=char-major-10-237",
            "alias=devname:top-control",
            "alias=of:N*T*Cx,y-[a-z]*",
        ],
        &[],
        &["middle_run"],
    );
    let middle = module(&["depends=base", "alias=fs-middle"], &["middle_run"], &["base_run"]);
    let base = module(&["depends="], &["base_run", "base_stop"], &[]);
    let beside = module(&["alias=pci:v00001AF4d*sv*sd*bc*sc*i*"], &["beside_run"], &[]);
    let files: [(&str, Vec<u8>); 8] = [
        ("kernel/drivers/top-one.ko.xz", xz(&top)),
        ("kernel/fs/middle.ko.xz", xz(&middle)),
        ("kernel/lib/base.ko", base),
        ("kernel/lib/beside.ko.xz", xz(&beside)),
        ("kernel/unwanted/unwanted.ko.xz", b"never read".to_vec()),
        (
            "modules.order",
            b"kernel/lib/base.ko\nkernel/fs/middle.ko\nkernel/drivers/top-one.ko\nkernel/lib/beside.ko\n"
                .to_vec(),
        ),
        ("modules.builtin", b"kernel/drivers/virtio-pci.ko\nkernel/drivers/virtual.ko\n".to_vec()),
        ("modules.builtin.modinfo", b"virtio_pci.alias=pci:v00001AF4-x\0virtio_pci.author=x\0".to_vec()),
    ];
    let mut tree = Tree::merged_usr();
    for (path, bytes) in files {
        tree.insert(&format!("{FOLDER}/{path}"), Node::file(bytes, 0o644)).unwrap();
    }
    tree
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn unpack(tree: &Tree, root: &Path) {
    for (path, node) in tree.below(FOLDER) {
        if let Kind::File(bytes) = &node.kind {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes.as_slice()).unwrap();
        }
    }
    std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
}

/// Debian has these in a folder that an ordinary user's PATH lacks.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(format!("/sbin/{program}"))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} of the package kmod: {error}"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && text.is_empty(), "{program}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn indexes_are_those_of_depmod() {
    let before = kernel();
    let mut tree = before.clone();
    prune(&mut tree, VERSION, &names(&["top_one"]), &names(&["base"])).unwrap();
    let theirs = tempfile::tempdir().unwrap();
    let mut inputs = before;
    inputs.remove(&format!("{FOLDER}/kernel/unwanted"));
    unpack(&inputs, theirs.path());

    run("depmod", &["-b", theirs.path().to_str().unwrap(), VERSION]);

    for name in [
        "modules.dep",
        "modules.dep.bin",
        "modules.alias",
        "modules.alias.bin",
        "modules.symbols.bin",
        "modules.softdep",
        "modules.devname",
        "modules.builtin.bin",
        "modules.builtin.alias.bin",
    ] {
        let ours = tree.read_file(&format!("{FOLDER}/{name}")).unwrap();
        let theirs = fs::read(theirs.path().join(FOLDER).join(name)).unwrap();
        assert_eq!(String::from_utf8_lossy(ours), String::from_utf8_lossy(&theirs), "{name}");
    }
}

#[test]
fn modprobe_finds_modules_by_alias_and_by_symbol() {
    let mut tree = kernel();
    prune(&mut tree, VERSION, &names(&["top-one"]), &[]).unwrap();
    let root = tempfile::tempdir().unwrap();
    unpack(&tree, root.path());
    let folder = root.path().to_str().unwrap();

    let find = |alias: &str| {
        let lines = run("modprobe", &["-R", "-d", folder, "-S", VERSION, alias]);
        lines.lines().map(str::to_owned).collect::<Vec<_>>()
    };

    let pci = find("pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00");
    assert_eq!(pci, ["top_one", "beside"]);
    assert_eq!(find("symbol:base_stop"), ["base"]);
    assert_eq!(find("fs-middle"), ["middle"]);
}

#[test]
fn only_what_is_wanted_is_kept_and_early_modules_come_in_load_order() {
    let mut tree = kernel();

    let early = prune(&mut tree, VERSION, &names(&["beside"]), &names(&["middle", "virtio_pci"]));

    let early: Vec<String> = early.unwrap().into_iter().map(|(path, _)| path).collect();
    assert_eq!(early, ["kernel/lib/base.ko", "kernel/fs/middle.ko.xz"]);
    let kept: Vec<&str> = tree
        .below(&format!("{FOLDER}/kernel"))
        .filter(|(_, node)| node.kind != Kind::Directory)
        .map(|(path, _)| &path[FOLDER.len() + 1..])
        .collect();
    assert_eq!(kept, ["kernel/fs/middle.ko.xz", "kernel/lib/base.ko", "kernel/lib/beside.ko.xz"]);
    assert!(!tree.is_directory(&format!("{FOLDER}/kernel/unwanted")));
}

#[test]
fn a_module_that_is_missing_or_damaged_is_named() {
    let mut tree = kernel();

    let missing = prune(&mut tree, VERSION, &names(&["nowhere"]), &[]).unwrap_err().to_string();
    let damaged = prune(&mut tree, VERSION, &names(&["unwanted"]), &[]).unwrap_err().to_string();

    assert!(missing.contains("`nowhere`") && missing.contains("the recipe"), "{missing}");
    assert!(damaged.contains("kernel/unwanted/unwanted.ko.xz"), "{damaged}");
}

#[test]
fn a_cut_elf_file_never_panics() {
    let whole = module(&["depends=a"], &["x"], &["y"]);
    for end in 0..whole.len() {
        if let Some(elf) = Elf::parse(&whole[..end]) {
            elf.symbols().count();
            elf.needed().count();
        }
    }
}
