//! `postern build`: the disk image from lock, recipe, overlays and two programs.
//!
//! A pure function of its inputs: no network, no mounts, nothing of the image is run, and no
//! privilege. The image appears under its name only once it is whole.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};

mod assemble;
mod steps;

use crate::disk::Sizes;
use crate::lock::file::Lock;
use crate::lock::store::Store;
use crate::recipe::{DiskRecipe, Recipe};
use crate::rootfs;
use assemble::{Made, Pieces, assemble};
use steps::Steps;

/// Options of `postern build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The recipe
    #[arg(long, value_name = "FILE", default_value = "image/appliance.yaml")]
    recipe: PathBuf,
    /// The lock [default: appliance.lock beside the recipe]
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// The agent, `postern-agent`
    #[arg(long, value_name = "BIN")]
    agent: PathBuf,
    /// The initrd's static init, `postern-init`
    #[arg(long, value_name = "BIN")]
    init: PathBuf,
    /// The owner's first trust blob, as `postern bundle keygen` makes it
    #[arg(long, value_name = "NAME.trust")]
    trust: PathBuf,
    /// A folder to lay over the root file system; may be given several times
    /// [default: ../overlays/base beside the recipe's folder]
    #[arg(long, value_name = "FOLDER")]
    overlay: Vec<PathBuf>,
    /// Where the image goes
    #[arg(short, long, value_name = "FILE", default_value = "postern.img")]
    output: PathBuf,
}

/// Builds the image and says what came out.
///
/// # Errors
///
/// Returns which input is missing or does not fit.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let steps = Steps::new();
    let recipe = Recipe::read(&args.recipe)?;
    let lock = args.lock.clone().unwrap_or_else(|| args.recipe.with_file_name("appliance.lock"));
    let lock = Lock::read(&lock)?;
    let overlays = match &args.overlay[..] {
        [] => vec![args.recipe.with_file_name("../overlays/base")],
        given => given.to_vec(),
    };
    let agent = read("the agent", &args.agent)?;
    let init = read("the initrd's init", &args.init)?;
    ensure!(
        is_static(&init),
        "{} is linked dynamically: the initrd has no libraries; build it with \
         `-C target-feature=+crt-static`",
        args.init.display()
    );
    let trust = read("the trust blob", &args.trust)?;
    bundle::trust::TrustChain::anchored(&trust)
        .with_context(|| format!("{} is no trust file", args.trust.display()))?;

    let bar = steps.begin("packages and overlays");
    let store = Store::of_user()?;
    let root = rootfs::build(&recipe, &lock, &store, &overlays, &agent, Some(&trust))?;
    steps.done(&bar);
    let pieces = Pieces {
        name: recipe.name.as_str(),
        version: recipe.version.as_str(),
        tree: &root.tree,
        time: root.time,
        init: &init,
        modules: &root.initrd_modules,
        kernel: &root.kernel,
        kernel_version: &root.kernel_version,
        command_line: &recipe.kernel.command_line,
        stub: &root.sd_stub,
        boot_loader: &root.sd_boot,
        os_release: root.os_release.as_bytes(),
        sizes: sizes(&recipe.disk)?,
    };
    let made = write(&pieces, &args.output, &steps)
        .with_context(|| format!("cannot make {}", args.output.display()))?;
    report(args, &made, root.tree.size(), start);
    Ok(())
}

fn read(what: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {what}, {}", path.display()))
}

fn write(pieces: &Pieces<'_>, path: &Path, steps: &Steps) -> anyhow::Result<Made> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or_else(|| Path::new(".")))?;
    let made = assemble(pieces, file.as_file_mut(), steps)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(made)
}

fn sizes(recipe: &DiskRecipe) -> anyhow::Result<Sizes> {
    let bytes = |name: &str, mebibytes: u64| {
        ensure!(
            (1..=1 << 20).contains(&mebibytes),
            "the recipe's disk.{name} is in MiB, from 1 to 1048576"
        );
        Ok(mebibytes << 20)
    };
    Ok(Sizes {
        esp: bytes("esp", recipe.esp)?,
        root: bytes("root", recipe.root)?,
        verity: bytes("verity", recipe.verity)?,
        provision: bytes("provision", recipe.provision)?,
    })
}

/// Whether an ELF file asks for no interpreter (`PT_INTERP`, ELF-64 object file format).
fn is_static(elf: &[u8]) -> bool {
    let half = |at: usize| {
        elf.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
    };
    let long = |at: usize| {
        elf.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let headers = usize::try_from(long(32)).unwrap_or(usize::MAX);
    elf.starts_with(b"\x7fELF\x02\x01")
        && (0..usize::from(half(56))).all(|index| {
            let at = headers.checked_add(index * usize::from(half(54)));
            let kind = at.and_then(|at| elf.get(at..at.checked_add(4)?));
            kind.is_some_and(|kind| kind != [3, 0, 0, 0])
        })
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn report(args: &Args, made: &Made, files: u64, start: Instant) {
    let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let metadata = fs::metadata(&args.output);
    let length = metadata.as_ref().map_or(0, fs::Metadata::len);
    let stored = metadata.as_ref().map_or(0, |metadata| metadata.blocks() * 512);
    println!(
        "{}  {} ({} on disk), in {:.1} s",
        args.output.display(),
        mebibytes(length),
        mebibytes(stored),
        start.elapsed().as_secs_f64()
    );
    println!(
        "root {} from {} of files, hash tree {}, initrd {}, kernel image {}",
        mebibytes(made.root as u64),
        mebibytes(files),
        mebibytes(made.verity as u64),
        mebibytes(made.initrd as u64),
        mebibytes(made.uki as u64)
    );
    println!("root hash {}", made.root_hash);
}

#[cfg(test)]
mod tests {
    use super::is_static;

    /// An ELF header with program headers of the given types.
    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            elf.extend(kind.to_le_bytes());
            elf.resize(elf.len() + 52, 0);
        }
        elf
    }

    #[test]
    fn a_program_that_asks_for_an_interpreter_is_not_static() {
        assert!(is_static(&elf(&[1, 2])));
        assert!(!is_static(&elf(&[1, 3])));
        assert!(!is_static(&std::fs::read("/proc/self/exe").unwrap()));
    }

    #[test]
    fn what_is_no_elf_file_is_not_static() {
        for bytes in [&b""[..], b"#!/bin/sh", b"\x7fELF", &elf(&[1, 2])[..70]] {
            assert!(!is_static(bytes));
        }
    }
}
