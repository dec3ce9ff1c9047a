//! `postern run`: an image in QEMU, as the machine that a bundle is for.
//!
//! The image is never written: the machine has a sparse copy, grown to the size asked for, whose
//! provision partition holds the device key. Firmware settings and the copy are files without a
//! name (unless `--keep` gives the copy one), so that nothing is left behind however it ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bundle::device_key::DeviceKeys;

mod machine;
mod qemu;
mod scratch;

use machine::Machine;

/// The file that the box takes its device keys from, on the provision partition.
const DEVICE_KEY_FILE: &str = "postern.device";

/// Options of `postern run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image that `postern build` made.
    image: PathBuf,
    /// The bundle to hand over; without one the box looks for a bundle.
    #[arg(long, value_name = "NAME.postern")]
    bundle: Option<PathBuf>,
    /// The private device keys that the bundle was sealed to.
    #[arg(long, value_name = "NAME.device")]
    device_key: Option<PathBuf>,
    /// Which box of the bundle to be, when there are several.
    #[arg(long = "box", value_name = "NAME", requires = "bundle")]
    machine: Option<String>,
    /// Memory in MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// Processors. Under `tcg` several can trip over a kernel that patches itself (`Oops: int3`)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// `user` (QEMU's own network) or `tap=LAN1,LAN2` (existing tap devices).
    #[arg(long, default_value = "user", value_name = "user|tap=LAN1,LAN2")]
    net: Net,
    /// Size of the disk in MiB; the data partition takes what the image leaves.
    #[arg(long, default_value_t = 2048, value_name = "MIB")]
    disk_size: u64,
    /// Keep the machine's disk in this file, and use it again when it exists.
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Forget what the machine writes to its disk.
    #[arg(long)]
    snapshot: bool,
    /// `tcg` runs everywhere; `kvm` is faster where it works.
    #[arg(long, value_enum, default_value_t = Accel::Tcg)]
    accel: Accel,
    /// Also write the console to this file.
    #[arg(long, value_name = "FILE")]
    serial_log: Option<PathBuf>,
    /// Control socket (QEMU machine protocol) to make.
    #[arg(long, value_name = "SOCKET")]
    monitor: Option<PathBuf>,
    /// Write the machine's process id to this file.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// End when the machine restarts.
    #[arg(long)]
    no_reboot: bool,
}

/// What the two NICs are connected to.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Net {
    User,
    Tap { lan1: String, lan2: String },
}

impl std::str::FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}`: expected `user` or `tap=LAN1,LAN2`");
        if text == "user" {
            return Ok(Self::User);
        }
        let names = text.strip_prefix("tap=").and_then(|names| names.split_once(','));
        let (lan1, lan2) = names.ok_or_else(expected)?;
        // IFNAMSIZ, and nothing that QEMU would read as another option.
        let good = |name: &str| {
            (1..16).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !good(lan1) || !good(lan2) || lan1 == lan2 {
            return Err(expected());
        }
        Ok(Self::Tap { lan1: lan1.to_owned(), lan2: lan2.to_owned() })
    }
}

/// How the processor is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Accel {
    Tcg,
    Kvm,
}

/// Becomes QEMU.
///
/// # Errors
///
/// Returns what is missing or does not fit together; once QEMU runs, its exit code is this
/// process's.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let programs = qemu::Programs::find()?;
    let machine = match &args.bundle {
        Some(path) => Machine::of_bundle(path, args.machine.as_deref())?,
        None => Machine::without_bundle(),
    };
    let key = args.device_key.as_deref().map(read_device_key).transpose()?;
    check_key(&machine, key.as_ref())?;
    let mut files = BTreeMap::new();
    if let Some((text, _)) = key {
        files.insert(DEVICE_KEY_FILE.to_owned(), text.into_bytes());
    }
    ensure!(args.disk_size <= 1 << 20, "--disk-size is in MiB, and at most 1048576");
    let disk = scratch::disk(&args.image, args.keep.as_deref(), args.disk_size << 20, files)?;
    let variables = scratch::nameless_copy(&programs.firmware_variables)?;
    let error = qemu::exec(&programs, args, &machine, &disk, &variables);
    Err(error).context("cannot start QEMU")
}

fn read_device_key(path: &Path) -> anyhow::Result<(String, DeviceKeys)> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the device key {}", path.display()))?;
    let keys =
        DeviceKeys::parse(&text).with_context(|| format!("{} is no device key", path.display()))?;
    Ok((text, keys))
}

/// A box that cannot open its bundle would say so a minute from now.
fn check_key(machine: &Machine, key: Option<&(String, DeviceKeys)>) -> anyhow::Result<()> {
    let Some(sealed_to) = &machine.seal_key else { return Ok(()) };
    let Some((_, keys)) = key else {
        bail!(
            "the bundle's secrets for `{}` are sealed to {sealed_to}; give that key with \
             --device-key FILE.device",
            machine.name
        );
    };
    let given = keys.seal().public().fingerprint();
    ensure!(
        given == *sealed_to,
        "the bundle's secrets for `{}` are sealed to {sealed_to}, and --device-key has {given}",
        machine.name
    );
    Ok(())
}

/// One NIC of the machine.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Nic {
    /// `lan1` or `lan2`.
    name: &'static str,
    mac: String,
    /// Slot and function on the first PCI bus, when the site finds the NIC by its PCI path.
    pci: Option<String>,
    /// Its first IPv4 address with the prefix length, for QEMU's own network.
    network: Option<(IpAddr, u8)>,
    gateway: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::Net;

    #[test]
    fn networks_are_user_or_two_tap_devices() {
        let tap = Net::Tap { lan1: "tap-1".into(), lan2: "tap-2".into() };
        assert_eq!("user".parse(), Ok(Net::User));
        assert_eq!("tap=tap-1,tap-2".parse(), Ok(tap));
        for bad in ["", "tap", "tap=a", "tap=a,a", "tap=a,b,c", "tap=a,script=x", "tap=,b"] {
            assert!(bad.parse::<Net>().is_err(), "{bad}");
        }
    }
}
