//! `postern`: builds the appliance image, signs a site's bundle, runs an image in QEMU.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod build;
mod bundle_command;
mod deb;
mod disk;
mod fat;
mod gpt;
mod initrd;
mod lock;
mod recipe;
mod rootfs;
mod run;
mod squashfs;
mod tree;
mod uki;
mod verity;

/// Builds the appliance image, signs a site's bundle, runs an image in QEMU.
#[derive(Debug, Parser)]
#[command(name = "postern", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pins every package of the appliance by version and hash.
    Lock(lock::Args),
    /// Builds the disk image from the lock.
    Build(build::Args),
    /// Boots an image in QEMU.
    Run(run::Args),
    /// Writes, checks, signs and verifies a site's bundle.
    #[command(subcommand)]
    Bundle(bundle_command::Command),
}

fn main() -> ExitCode {
    match dispatch(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line for people; where in our code it came from helps nobody who uses it.
            // Nothing can be done when standard error is gone.
            let _ignored = writeln!(std::io::stderr(), "postern: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Lock(args) => lock::run(args),
        Command::Build(args) => build::run(args),
        Command::Run(args) => run::run(args),
        Command::Bundle(command) => bundle_command::run(command),
    }
}
