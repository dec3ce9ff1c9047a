//! Debian packages that a command needs: installed when missing, after saying so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// To compile the workspace.
pub const BUILD: &[&str] = &["gcc", "libc6-dev", "make", "cmake", "git", "ca-certificates"];

/// To run the reference lab with the agent's processes in a namespace.
pub const LAB: &[&str] = &[
    "iproute2",
    "ethtool",
    "util-linux",
    "nftables",
    "dnsmasq-base",
    "dbus",
    "systemd",
    "curl",
    "coturn",
    "janus",
    "nginx",
    "chromium",
    "chromium-driver",
    "libnss3-tools",
    "openssh-client",
    "openssl",
    "procps",
    "python3-venv",
];

/// To measure the relay beside coturn.
pub const BENCH: &[&str] = &["iproute2", "util-linux", "nftables", "coturn"];

/// To boot the image and to check it with foreign readers.
pub const IMAGE: &[&str] = &[
    "qemu-system-x86",
    "ovmf",
    "squashfs-tools",
    "cryptsetup-bin",
    "gdisk",
    "dosfstools",
    "mtools",
    "kmod",
    "binutils",
    "cpio",
];

/// Installs what is missing of `wanted` with apt-get, as root or through sudo.
///
/// # Errors
///
/// Says which packages to install by hand where that is not possible.
pub fn ensure_installed(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Installing with apt-get: {}", missing.join(" "));
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "these Debian packages are needed and there is no apt-get here: {}",
        missing.join(" ")
    );
    run_as_root(&["apt-get", "update", "-qq"]).context("apt-get update")?;
    let mut words = vec!["apt-get", "install", "-y", "-qq", "--no-install-recommends"];
    words.extend(&missing);
    run_as_root(&words)
        .with_context(|| format!("install these by hand, then again: {}", missing.join(" ")))?;
    keep_services_off(&missing);
    Ok(())
}

/// The contents of a package in a folder of their own, without installing it.
///
/// # Errors
///
/// Says when it cannot be downloaded or unpacked.
pub fn unpacked(package: &str) -> Result<PathBuf> {
    let folder = crate::artifacts::target_folder().join("lab").join(package);
    let done = folder.join(".done");
    if done.exists() {
        return Ok(folder);
    }
    let scratch = tempfile::Builder::new().prefix("package").tempdir()?;
    let status = Command::new("apt-get")
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root", package])
        .current_dir(scratch.path())
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "apt-get download {package}: {status}");
    let file = std::fs::read_dir(scratch.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    std::fs::create_dir_all(&folder)?;
    let status = Command::new("dpkg-deb").arg("-x").arg(file).arg(&folder).status()?;
    ensure!(status.success(), "dpkg-deb -x {package}: {status}");
    std::fs::write(done, "")?;
    Ok(folder)
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// Debian starts a service as soon as it is installed; the lab starts its own instances instead.
fn keep_services_off(installed: &[&str]) {
    for service in ["coturn", "nginx", "janus"] {
        if installed.contains(&service) && Path::new("/run/systemd/system").exists() {
            let words = ["systemctl", "disable", "--now", service];
            if run_as_root(&words).is_err() {
                println!("{service} could not be stopped; it may hold a port of this machine");
            }
        }
    }
}

fn run_as_root(words: &[&str]) -> Result<()> {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new(words[0])
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(words[0]);
        sudo
    };
    let status = command
        .args(&words[1..])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", words[0]))?;
    if !status.success() {
        bail!("{}: {status}", words.join(" "));
    }
    Ok(())
}
