//! `cargo ci check`: what every commit passes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::artifacts::{cargo, repository};

/// Longest source file, tests not counted.
const MAX_LINES: usize = 800;
/// File names that say nothing.
const VAGUE: [&str; 8] =
    ["util", "utils", "common", "helper", "helpers", "misc", "manager", "types"];

/// Runs all of it, in the order of what is quickest to fail.
///
/// # Errors
///
/// Says which check failed.
pub fn run() -> Result<()> {
    file_names_and_sizes()?;
    cargo_plain(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    deny()?;
    documentation()
}

fn file_names_and_sizes() -> Result<()> {
    let output =
        Command::new("git").args(["ls-files", "*.rs"]).current_dir(repository()).output()?;
    ensure!(output.status.success(), "git ls-files: {}", output.status);
    let mut faults = Vec::new();
    for file in String::from_utf8(output.stdout)?.lines() {
        let path = Path::new(file);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if VAGUE.contains(&stem.as_str()) {
            faults.push(format!("{file}: a name that says nothing"));
        }
        // A file that is deleted but not yet committed is not there.
        let Ok(text) = std::fs::read_to_string(repository().join(path)) else { continue };
        let code = text.split("\n#[cfg(test)]").next().unwrap_or(&text);
        let lines = code.lines().count();
        if lines > MAX_LINES && !file.contains("/tests/") && stem != "tests" {
            faults.push(format!("{file}: {lines} lines, at most {MAX_LINES}"));
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// Bans, licences and sources; advisories only where their database can be reached.
fn deny() -> Result<()> {
    let present = Command::new("cargo").args(["deny", "--version"]).output();
    if !present.is_ok_and(|output| output.status.success()) {
        println!("Installing cargo-deny (some minutes, once)");
        cargo_plain(&["install", "--locked", "--quiet", "cargo-deny"])?;
    }
    cargo_plain(&["deny", "--offline", "check", "bans", "licenses", "sources"])?;
    if cargo_plain(&["deny", "check", "advisories"]).is_err() {
        println!("Advisories were NOT checked, or there are some: see above.");
    }
    Ok(())
}

fn documentation() -> Result<()> {
    let status = Command::new("cargo")
        .args(["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .current_dir(repository())
        .status()?;
    ensure!(status.success(), "cargo doc: {status}");
    Ok(())
}

fn cargo_plain(words: &[&str]) -> Result<()> {
    let status = Command::new("cargo")
        .args(words)
        .current_dir(repository())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo {}: {status}", words.join(" "));
    Ok(())
}
