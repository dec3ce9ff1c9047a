//! QEMU's command line.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::machine::Machine;
use super::{Accel, Args, Net, Nic};

/// Where distributions put the firmware: code, variables.
const FIRMWARE: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
];
const QEMU: &str = "qemu-system-x86_64";

/// What the host has to have.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    qemu: PathBuf,
    firmware: PathBuf,
    /// The firmware's settings, to be copied.
    pub(super) firmware_variables: PathBuf,
}

impl Programs {
    /// Finds QEMU and OVMF.
    pub(super) fn find() -> anyhow::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin".into());
        let qemu = std::env::split_paths(&path).map(|at| at.join(QEMU)).find(|at| at.is_file());
        let qemu = qemu.with_context(|| {
            format!("{QEMU} is not installed (Debian and Ubuntu: apt install qemu-system-x86)")
        })?;
        let mut firmware =
            FIRMWARE.iter().map(|(code, variables)| (Path::new(code), Path::new(variables)));
        let (code, variables) =
            firmware.find(|(code, variables)| code.is_file() && variables.is_file()).context(
                "the UEFI firmware OVMF is not installed (Debian and Ubuntu: apt install ovmf)",
            )?;
        Ok(Self { qemu, firmware: code.into(), firmware_variables: variables.into() })
    }
}

/// Becomes QEMU; returns only when that fails.
pub(super) fn exec(
    programs: &Programs,
    args: &Args,
    machine: &Machine,
    disk: &File,
    variables: &File,
) -> anyhow::Error {
    for file in [disk, variables] {
        // QEMU opens them again by number, so they must outlive exec.
        if let Err(error) = fcntl(file, FcntlArg::F_SETFD(FdFlag::empty())) {
            return error.into();
        }
    }
    let paths = [disk, variables].map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
    let mut command = Command::new(&programs.qemu);
    command.args(arguments(programs, args, machine, &paths[0], &paths[1]));
    command.exec().into()
}

fn arguments(
    programs: &Programs,
    args: &Args,
    machine: &Machine,
    disk: &str,
    variables: &str,
) -> Vec<OsString> {
    let mut line: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| line.extend(words.iter().map(OsString::from));
    add(&["-name", "postern", "-nodefaults", "-display", "none", "-machine", "q35,smm=off"]);
    match args.accel {
        // Nehalem is the newest model that stays free of soft lock-ups when it is emulated.
        Accel::Tcg => add(&["-accel", "tcg,thread=multi", "-cpu", "Nehalem"]),
        Accel::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
    }
    add(&["-smp", &args.cpus.to_string(), "-m", &args.memory.to_string()]);
    let code = escaped(&programs.firmware.display().to_string());
    add(&["-drive", &format!("if=pflash,format=raw,unit=0,readonly=on,file={code}")]);
    add(&["-drive", &format!("if=pflash,format=raw,unit=1,file={variables}")]);
    // The NICs come first: those with a fixed PCI place must find it free.
    for nic in &machine.nics {
        add(&["-netdev", &netdev(nic, &args.net)]);
        let place =
            nic.pci.as_ref().map_or_else(String::new, |pci| format!(",bus=pcie.0,addr={pci}"));
        let Nic { name, mac, .. } = nic;
        add(&["-device", &format!("virtio-net-pci,netdev={name},mac={mac},romfile={place}")]);
    }
    let snapshot = if args.snapshot { "on" } else { "off" };
    add(&["-drive", &format!("if=none,id=disk,format=raw,snapshot={snapshot},file={disk}")]);
    add(&["-device", "virtio-blk-pci,drive=disk,bootindex=1", "-device", "virtio-rng-pci"]);
    let (serial, uuid) = (escaped(&machine.serial), &machine.uuid);
    add(&["-smbios", &format!("type=1,product=postern,serial={serial},uuid={uuid}")]);
    if let Some(bundle) = &args.bundle {
        let file = escaped(&bundle.display().to_string());
        add(&["-fw_cfg", &format!("name=opt/io.systemd.credentials/postern.bundle,file={file}")]);
    }
    let log = args.serial_log.as_ref().map_or_else(String::new, |path| {
        format!(",logfile={},logappend=off", escaped(&path.display().to_string()))
    });
    add(&["-chardev", &format!("stdio,id=console,signal=on{log}"), "-serial", "chardev:console"]);
    if let Some(socket) = &args.monitor {
        let path = escaped(&socket.display().to_string());
        add(&["-qmp", &format!("unix:{path},server=on,wait=off")]);
    }
    if args.no_reboot {
        add(&["-no-reboot"]);
    }
    if let Some(path) = &args.pid_file {
        add(&["-pidfile"]);
        line.push(path.into());
    }
    line
}

fn netdev(nic: &Nic, net: &Net) -> String {
    let name = nic.name;
    match net {
        Net::Tap { lan1, lan2 } => {
            let device = if name == "lan1" { lan1 } else { lan2 };
            format!("tap,id={name},ifname={device},script=no,downscript=no")
        }
        Net::User => {
            let mut text = format!("user,id={name}");
            // QEMU's network needs room for a router and a name server beside the guest.
            if let Some((address, prefix @ 8..=28)) = nic.network {
                text.push_str(&format!(",net={address}/{prefix}"));
                if let Some(gateway) = nic.gateway {
                    text.push_str(&format!(",host={gateway}"));
                }
            }
            text
        }
    }
}

/// A comma in a value is written twice.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::{escaped, netdev};
    use crate::run::{Net, Nic};

    fn nic() -> Nic {
        Nic {
            name: "lan2",
            mac: "52:54:00:00:00:02".into(),
            pci: None,
            network: Some(("192.0.2.61".parse().unwrap(), 24)),
            gateway: Some("192.0.2.1".parse().unwrap()),
        }
    }

    #[test]
    fn qemus_own_network_is_the_sites() {
        assert_eq!(netdev(&nic(), &Net::User), "user,id=lan2,net=192.0.2.61/24,host=192.0.2.1");
    }

    #[test]
    fn the_second_tap_device_is_lan2() {
        let net = Net::Tap { lan1: "a".into(), lan2: "b".into() };

        assert_eq!(netdev(&nic(), &net), "tap,id=lan2,ifname=b,script=no,downscript=no");
    }

    #[test]
    fn a_comma_in_a_file_name_does_not_end_the_option() {
        assert_eq!(escaped("a,b"), "a,,b");
    }
}
