//! The initrd's only program: PID 1 until the real one takes over.
//!
//! It loads the modules that `/modules.list` names in order, finds the two partitions that the
//! command line's `roothash=` names (Discoverable Partitions Specification: the partition UUIDs
//! are the hash's halves), joins them by dm-verity, mounts the squashfs inside and hands over to
//! systemd. On any error it prints the reason and restarts the machine, so that the boot loader's
//! try counters can bring the other slot back.
//!
//! Left out, on purpose: a shell, key files, network, anything to interact with.
//!
//! It is linked statically, by a cargo call of its own:
//!
//! ```text
//! cargo rustc --package postern-init --profile init --target x86_64-unknown-linux-gnu -- \
//!     -C target-feature=+crt-static -C relocation-model=static
//! ```
//!
//! # Invariants
//!
//! 1. Nothing is mounted as root but a verity device with the command line's hash.
//! 2. A block that does not match its hash panics the kernel (`panic_on_corruption`).

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

mod partition;
mod verity;

use partition::{Candidate, PartitionUuid};

/// Slow disks and emulated machines under load need their time; a missing disk must still end.
const WAIT: Duration = Duration::from_secs(90);
/// So that a person at the console can read the reason.
const PAUSE_BEFORE_REBOOT: Duration = Duration::from_secs(8);
/// `MODULE_INIT_COMPRESSED_FILE` of the kernel's `linux/module.h`.
const COMPRESSED: u32 = 4;
const NEW_ROOT: &str = "/sysroot";
const SYSTEMD: &str = "/usr/lib/systemd/systemd";
const NO_DATA: Option<&str> = None;

/// A sentence that says what failed, on what, and the kernel's word for it.
type Fault = String;

fn main() {
    let Err(fault) = start();
    say(2, &format!("cannot start: {fault}"));
    say(2, &format!("restarting in {} s", PAUSE_BEFORE_REBOOT.as_secs()));
    sleep(PAUSE_BEFORE_REBOOT);
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    say(2, &format!("cannot restart: {error}"));
    // Returning from PID 1 panics the kernel, and `panic=10` restarts the machine.
}

fn start() -> Result<std::convert::Infallible, Fault> {
    mount_kernel_file_systems()?;
    let command_line = read("/proc/cmdline")?;
    let hash = root_hash(&command_line)?;
    let modules = load_modules()?;
    let (data, tree) = wait_for_partitions(&hash)?;
    let device = open_verity(&hash, &data, &tree)?;
    fs::create_dir_all(NEW_ROOT).map_err(|error| format!("{NEW_ROOT}: {error}"))?;
    mount(Some(device), NEW_ROOT, Some("squashfs"), MsFlags::MS_RDONLY, NO_DATA)
        .map_err(|error| format!("mounting the root file system: {error}"))?;
    say(5, &format!("{modules} modules, root on {} with {}", data.device, tree.device));
    switch_root()
}

fn mount_kernel_file_systems() -> Result<(), Fault> {
    for (kind, at, options) in
        [("devtmpfs", "/dev", Some("mode=0755")), ("proc", "/proc", None), ("sysfs", "/sys", None)]
    {
        fs::create_dir_all(at).map_err(|error| format!("{at}: {error}"))?;
        match mount(Some(kind), at, Some(kind), MsFlags::empty(), options) {
            // A kernel built to mount devtmpfs itself has done so already.
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(error) => return Err(format!("mounting {at}: {error}")),
        }
    }
    Ok(())
}

fn root_hash(command_line: &str) -> Result<verity::RootHash, Fault> {
    let text = command_line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("roothash="))
        .ok_or("the kernel command line has no roothash=")?;
    verity::RootHash::parse(text).ok_or_else(|| format!("roothash={text} is not 64 hex digits"))
}

/// A module that fails is said and passed over: what it was needed for will say so by itself.
fn load_modules() -> Result<usize, Fault> {
    let mut loaded = 0;
    for path in read("/modules.list")?.lines() {
        match load(path) {
            Ok(()) => loaded += 1,
            Err(error) => say(4, &format!("module {path}: {error}")),
        }
    }
    Ok(loaded)
}

fn load(path: &str) -> Result<(), std::io::Error> {
    let file = File::open(path)?;
    let flags = if path.ends_with(".ko") { 0 } else { COMPRESSED };
    match finit_module(&file, c"", ModuleInitFlags::from_bits_retain(flags)) {
        // Loaded already, or for a device that this machine does not have.
        Ok(()) | Err(nix::errno::Errno::EEXIST | nix::errno::Errno::ENODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn wait_for_partitions(hash: &verity::RootHash) -> Result<(Candidate, Candidate), Fault> {
    let (data, tree) = hash.halves();
    let (data, tree) = (PartitionUuid::from_text_order(data), PartitionUuid::from_text_order(tree));
    let end = Instant::now() + WAIT;
    loop {
        let all = partition::scan();
        let (datas, trees) = (pick(&all, data), pick(&all, tree));
        // Two copies of one image are alike to verity, but halves of different disks must not mix.
        for one in &datas {
            if let Some(other) = trees.iter().find(|other| other.disk == one.disk) {
                warn_if_doubled("root", &datas);
                warn_if_doubled("verity", &trees);
                return Ok(((*one).clone(), (*other).clone()));
            }
        }
        if Instant::now() > end {
            return Err(format!(
                "no disk has both partitions of this image after {} s: {} with PARTUUID {data}, \
                 {} with {tree}; partitions seen: {}",
                WAIT.as_secs(),
                datas.len(),
                trees.len(),
                all.iter().map(|one| one.device.as_str()).collect::<Vec<_>>().join(" "),
            ));
        }
        sleep(Duration::from_millis(20));
    }
}

fn pick(all: &[Candidate], uuid: PartitionUuid) -> Vec<&Candidate> {
    all.iter().filter(|candidate| candidate.uuid == uuid).collect()
}

fn warn_if_doubled(what: &str, candidates: &[&Candidate]) {
    if let [first, second, ..] = candidates {
        say(
            3,
            &format!(
                "two disks carry this {what} partition: {} and {}; taking the first. \
                 Remove the disk that the image was copied from",
                first.device, second.device
            ),
        );
    }
}

fn open_verity(
    hash: &verity::RootHash,
    data: &Candidate,
    tree: &Candidate,
) -> Result<&'static str, Fault> {
    const DEVICE: &str = "/dev/mapper/root";
    let block = File::open(&tree.device)
        .and_then(|mut file| {
            let mut block = [0; 512];
            std::io::Read::read_exact(&mut file, &mut block)?;
            Ok(block)
        })
        .map_err(|error| format!("{}: {error}", tree.device))?;
    let table = verity::Superblock::parse(&block)
        .ok_or_else(|| format!("{} has no dm-verity superblock that fits", tree.device))?;
    let control = device_mapper_control()?;
    let number = sys::device_mapper::create_read_only(
        &control,
        "root",
        "POSTERN-VERITY-root",
        table.data_sectors(),
        "verity",
        &table.parameters(&data.device, &tree.device, hash),
    )
    .map_err(|error| format!("dm-verity on {} and {}: {error}", data.device, tree.device))?;
    if !Path::new(DEVICE).exists() {
        let number = makedev(number.major, number.minor);
        mknod(DEVICE, SFlag::S_IFBLK, Mode::S_IRUSR, number)
            .map_err(|error| format!("{DEVICE}: {error}"))?;
    }
    Ok(DEVICE)
}

fn device_mapper_control() -> Result<File, Fault> {
    const CONTROL: &str = "/dev/mapper/control";
    let open = || OpenOptions::new().read(true).write(true).open(CONTROL);
    if let Ok(file) = open() {
        return Ok(file);
    }
    fs::create_dir_all("/dev/mapper").map_err(|error| format!("/dev/mapper: {error}"))?;
    // MISC_MAJOR and MAPPER_CTRL_MINOR of the kernel's `linux/{major,miscdevice}.h`.
    mknod(CONTROL, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(10, 236))
        .map_err(|error| format!("{CONTROL}: {error}"))?;
    open().map_err(|error| format!("{CONTROL}: {error} (is the module dm_mod in the initrd?)"))
}

fn switch_root() -> Result<std::convert::Infallible, Fault> {
    // The initramfs cannot be unmounted; emptying it gives its memory back.
    drop(fs::remove_dir_all("/modules"));
    drop(fs::remove_file("/init"));
    for at in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{at}");
        mount(Some(at), target.as_str(), None::<&str>, MsFlags::MS_MOVE, NO_DATA)
            .map_err(|error| format!("moving {at}: {error}"))?;
    }
    std::env::set_current_dir(NEW_ROOT).map_err(|error| format!("{NEW_ROOT}: {error}"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, NO_DATA)
        .map_err(|error| format!("moving the root: {error}"))?;
    nix::unistd::chroot(".").map_err(|error| format!("chroot: {error}"))?;
    std::env::set_current_dir("/").map_err(|error| format!("/: {error}"))?;
    let error = Command::new(SYSTEMD).exec();
    Err(format!("{SYSTEMD}: {error}"))
}

fn read(path: &str) -> Result<String, Fault> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

/// The kernel's log reaches every console and, later, the journal. Levels are syslog(2)'s.
fn say(level: u8, text: &str) {
    let line = format!("<{level}>postern-init: {text}\n");
    let kernel_log = OpenOptions::new().write(true).open("/dev/kmsg");
    let written = kernel_log.and_then(|mut log| log.write_all(line.as_bytes()));
    if written.is_err() {
        drop(std::io::stderr().write_all(line.as_bytes()));
    }
}
