//! `cargo ci fuzz`: the corpora of `fuzz/`, and a fuzzer where there is one.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::artifacts::{cargo, repository};

/// Replays every corpus on stable; then, where nightly and cargo-fuzz are installed, lets each
/// target run for so long. Findings are in `fuzz/artifacts`, what it learned in `fuzz/corpus`.
///
/// # Errors
///
/// Says which target broke a promise.
pub fn run(each: Duration) -> Result<()> {
    cargo(&["test", "--release", "--package", "postern-turn", "--test", "it", "corpus::"])?;
    let Some(targets) = targets()? else {
        println!("The corpora were replayed. No fuzzer ran: that takes nightly and cargo-fuzz.");
        return Ok(());
    };
    for target in targets {
        println!("fuzzing {target} for {} s", each.as_secs());
        let time = format!("-max_total_time={}", each.as_secs());
        let words = ["+nightly", "fuzz", "run", &target, "--", &time, "-max_len=2000"];
        let status = Command::new("cargo")
            .args(words)
            .current_dir(repository())
            .env_remove("RUSTUP_TOOLCHAIN")
            .status()
            .context("cannot run cargo fuzz")?;
        ensure!(status.success(), "{target} broke a promise: see fuzz/artifacts/{target}");
    }
    Ok(())
}

/// The names of the targets; `None` when nothing here can run them.
fn targets() -> Result<Option<Vec<String>>> {
    // Cargo tells its children which toolchain they are in; `+nightly` is to choose another one.
    let output = Command::new("cargo")
        .args(["+nightly", "fuzz", "list"])
        .current_dir(repository())
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect()))
}
