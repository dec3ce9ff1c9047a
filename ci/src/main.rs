//! `cargo ci`: every check, the tests and the demo. See `cargo ci --help`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use postern_ci::artifacts::{self, Artifacts};
use postern_ci::{bench, check, demo, packages};

/// Every check, the tests and the demo; installs by apt what is missing, after saying so.
#[derive(Debug, Parser)]
#[command(name = "cargo ci")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Formatting, lints, dependencies, file sizes, documentation.
    Check,
    /// Every test, the lab and the booted image included.
    Test,
    /// Builds the image and prints where it is.
    Image,
    /// Builds the image and boots it in the lab until the guest page answers.
    Boot,
    /// The whole path on this machine: image, box, conference, two guests. Stays up.
    Demo,
    /// Measures what the project promises; prints figures, asserts nothing.
    Bench,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Check => check::run(),
        Task::Test => test(),
        Task::Image => build_image().map(|(_, image)| println!("{}", image.display())),
        Task::Boot => privileged(&["boot"], || {
            let (artifacts, image) = build_image()?;
            bench::boot(&artifacts, &image).map(drop)
        }),
        Task::Demo => privileged(&["demo"], || {
            let (artifacts, image) = build_image()?;
            demo::run(&artifacts, &image)
        }),
        Task::Bench => privileged(&["bench"], || bench::run(&Artifacts::build()?)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nfailed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn test() -> Result<()> {
    packages::ensure_installed(packages::BUILD)?;
    packages::ensure_installed(packages::LAB)?;
    packages::ensure_installed(packages::IMAGE)?;
    let (_, image) = build_image()?;
    println!("image: {}", image.display());
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["test", "--release", "--locked", "--workspace", "--no-fail-fast"]);
    command.env("POSTERN_BUILT", "1").current_dir(artifacts::repository());
    if !nix::unistd::geteuid().is_root() {
        println!("The tests make network namespaces, which takes root: they run through sudo.");
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
    }
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo test: {status}");
    Ok(())
}

fn build_image() -> Result<(Artifacts, PathBuf)> {
    packages::ensure_installed(packages::BUILD)?;
    let artifacts = Artifacts::build()?;
    let image = artifacts::image_path();
    let took = artifacts::image(&artifacts, &image)?;
    println!("built {} in {:.1} s", image.display(), took.as_secs_f64());
    Ok((artifacts, image))
}

/// Runs `task` as root: here when this is root, else this program again through sudo, after
/// everything was built as the user.
fn privileged(words: &[&str], task: impl FnOnce() -> Result<()>) -> Result<()> {
    packages::ensure_installed(packages::BUILD)?;
    packages::ensure_installed(packages::LAB)?;
    packages::ensure_installed(packages::IMAGE)?;
    if nix::unistd::geteuid().is_root() {
        return task();
    }
    build_image()?;
    println!("The lab makes network namespaces, which takes root: going on through sudo.");
    let status = Command::new("sudo")
        .args(["--preserve-env", "env", "POSTERN_BUILT=1"])
        .arg(std::env::current_exe()?)
        .args(words)
        .status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}
