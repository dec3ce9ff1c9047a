//! The programs and the image that tests and the demo run: built by cargo, found here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Paths of the built programs.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// `postern-agent`, release build.
    pub agent: PathBuf,
    /// `postern`, release build.
    pub postern: PathBuf,
}

impl Artifacts {
    /// Builds both programs (nothing to do when they are fresh).
    ///
    /// # Errors
    ///
    /// Fails with cargo.
    pub fn build() -> Result<Self> {
        cargo(&["build", "--release", "-p", "postern-agent", "-p", "postern"])?;
        let folder = target_folder().join("release");
        Ok(Self { agent: folder.join("postern-agent"), postern: folder.join("postern") })
    }
}

/// Builds the initrd's static init and returns its path.
///
/// # Errors
///
/// Fails with cargo.
pub fn build_init() -> Result<PathBuf> {
    let target = "x86_64-unknown-linux-gnu";
    let flags = ["--", "-C", "target-feature=+crt-static", "-C", "relocation-model=static"];
    let mut words = vec!["rustc", "--release", "-p", "postern-init", "--target", target];
    words.extend(flags);
    cargo(&words)?;
    Ok(target_folder().join(target).join("release/postern-init"))
}

/// The repository's top folder.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("ci/ lies in the repository")
}

/// Where cargo builds.
#[must_use]
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), |folder| repository().join(folder))
}

/// Runs cargo in the repository with the lock file as it is.
///
/// # Errors
///
/// Says which call failed.
pub fn cargo(words: &[&str]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let (verb, rest) = words.split_first().context("a verb")?;
    let status = Command::new(program)
        .arg(verb)
        .arg("--locked")
        .args(rest)
        .current_dir(repository())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo {}: {status}", words.join(" "));
    Ok(())
}
