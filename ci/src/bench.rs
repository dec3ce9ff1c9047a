//! `cargo ci bench`: what the project promises, measured. Prints figures and asserts nothing on
//! time.

pub mod abuse;
mod contender;
mod field;
pub mod load;
mod processor;
pub mod relay;
mod search;
mod verdict;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::artifacts::{self, Artifacts};
use crate::demo::wait_for_page;
use crate::lab::topology::{InnerPath, Nics};
use crate::lab::{Lab, Setup};

/// Everything, in the order of the README's table.
///
/// # Errors
///
/// Says which measurement could not be made.
pub fn run(artifacts: &Artifacts) -> Result<()> {
    let image = artifacts::image_path();
    let cold = build_without(&image, artifacts)?;
    let warm = artifacts::image(artifacts, &image)?;
    let size = std::fs::metadata(&image)?;
    println!("image, apparent               {:8.1} MB", megabytes(size.len()));
    println!("image, bytes that are stored  {:8.1} MB", megabytes(stored(&size)));
    println!("image build, no image before  {:8.1} s", cold.as_secs_f64());
    println!("image build, again            {:8.1} s", warm.as_secs_f64());
    apply(artifacts)?;
    let took = boot(artifacts, &image)?;
    println!("power-on to guest page (TCG)  {:8.1} s", took.as_secs_f64());
    Ok(())
}

/// Boots the image in the lab until the guest page answers; returns how long that took.
///
/// # Errors
///
/// Shows the end of the console.
pub fn boot(artifacts: &Artifacts, image: &Path) -> Result<Duration> {
    let setup = Setup { nics: Nics::Tap, inner: InnerPath::DeclaredPeer };
    let lab = Lab::start(artifacts, setup)?;
    let bundle = lab.sign(7)?;
    let start = Instant::now();
    let edge = lab.machine_edge(image, &bundle)?;
    wait_for_page(&lab, &edge)?;
    let took = start.elapsed();
    println!("the guest page answered {:.1} s after power-on", took.as_secs_f64());
    Ok(took)
}

fn build_without(image: &Path, artifacts: &Artifacts) -> Result<Duration> {
    if image.exists() {
        std::fs::remove_file(image)?;
    }
    artifacts::image(artifacts, image)
}

/// Applies the reference site in a namespace and prints what the processes report.
fn apply(artifacts: &Artifacts) -> Result<()> {
    let setup = Setup { nics: Nics::Veth, inner: InnerPath::DeclaredPeer };
    let lab = Lab::start(artifacts, setup)?;
    let edge = lab.namespace_edge()?;
    let bundle = lab.sign(7)?;
    let start = Instant::now();
    edge.apply(&bundle)?;
    println!("bundle to confirmed           {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let status = edge.status()?;
    let network = &status["network"]["last-apply"];
    let micros = network["micros"].as_f64().context("no last-apply in the status")?;
    println!("  of it the network           {:8.1} ms, {} writes", micros / 1e3, network["writes"]);
    for (name, rss) in edge.resident_memory()? {
        println!("memory of {name:<19} {:8.1} MB", megabytes(rss));
    }
    Ok(())
}

fn megabytes(bytes: u64) -> f64 {
    // Image sizes are far below 2^52 bytes.
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    let bytes = bytes as f64;
    bytes / 1e6
}

fn stored(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}
