//! `cargo ci`: every check, the tests and the demo. See `cargo ci --help`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command-line program")]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use postern_ci::artifacts::{self, Artifacts};
use postern_ci::bench::{self, abuse, load, relay};
use postern_ci::{check, conformance, demo, fuzz, packages};

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
    /// Replays the fuzz corpora, and fuzzes where nightly and cargo-fuzz are installed.
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Holds a TURN server to the RFCs and to our policy, as a black box.
    Conformance {
        /// Whose server.
        #[arg(long, value_enum, default_value_t = Whose::Ours)]
        peer: Whose,
        /// How many shards ours has.
        #[arg(long, default_value_t = 1)]
        shards: usize,
        /// Parts of case names; without any, all cases are tried.
        #[arg(value_name = "CASE")]
        cases: Vec<String>,
    },
    /// Measures what the project promises; prints figures, asserts nothing.
    Bench {
        /// Image, box and boot, unless said otherwise.
        #[command(subcommand)]
        what: Option<Bench>,
    },
    /// The load generator that the benchmarks start for themselves.
    #[command(hide = true)]
    Load(load::Arguments),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The relay beside coturn (`COTURN=PATH`: beside that build too).
    Relay {
        /// How often each row is measured.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Only rows whose name begins with this.
        #[arg(long, value_name = "ROW")]
        only: Option<String>,
        /// Only our relay.
        #[arg(long)]
        no_peer: bool,
    },
    /// The relay under attack: what that costs the media beside it.
    Abuse,
}

/// Whose server is held to the cases.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Whose {
    /// `postern-agent relay`.
    Ours,
    /// Debian's coturn.
    Coturn,
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
        Task::Fuzz { seconds } => fuzz::run(Duration::from_secs(seconds)),
        Task::Conformance { peer, shards, cases } => conformance(peer, shards, &cases),
        Task::Bench { what: None } => privileged(&["bench"], || bench::run(&Artifacts::build()?)),
        Task::Bench { what: Some(what) } => measure(what),
        Task::Load(arguments) => load::serve(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nfailed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The benchmarks that need neither image nor lab.
fn measure(what: Bench) -> Result<()> {
    packages::ensure_installed(packages::BUILD)?;
    packages::ensure_installed(packages::BENCH)?;
    let artifacts = Artifacts::build()?;
    if !nix::unistd::geteuid().is_root() {
        return through_sudo(std::env::args_os().skip(1));
    }
    let program = std::env::current_exe()?;
    match what {
        Bench::Abuse => abuse::run(&program, artifacts.agent),
        Bench::Relay { rounds, only, no_peer } => {
            relay::run(&program, artifacts.agent, &relay::Options { rounds, only, no_peer })
        }
    }
}

fn conformance(peer: Whose, shards: usize, cases: &[String]) -> Result<()> {
    packages::ensure_installed(packages::BUILD)?;
    packages::ensure_installed(packages::LAB)?;
    let tested = match peer {
        Whose::Ours => conformance::Peer::Ours { agent: Artifacts::build()?.agent, shards },
        Whose::Coturn => conformance::Peer::Coturn,
    };
    if !nix::unistd::geteuid().is_root() {
        return through_sudo(std::env::args_os().skip(1));
    }
    println!("{tested}");
    let summary = conformance::run(&tested, cases)?;
    println!("{summary}");
    ensure!(summary.is_as_expected(), "not everything was as expected");
    Ok(())
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
    through_sudo(words)
}

fn through_sudo(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<()> {
    println!("This makes network namespaces, which takes root: going on through sudo.");
    let status = Command::new("sudo")
        .args(["--preserve-env", "env", "POSTERN_BUILT=1"])
        .arg(std::env::current_exe()?)
        .args(words)
        .status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}
