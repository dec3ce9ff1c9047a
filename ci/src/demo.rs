//! `cargo ci demo`: the whole path on this machine, and it stays up.

use std::io::BufRead;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::artifacts::Artifacts;
use crate::end_to_end::{self, GUEST_URL};
use crate::lab::edge::MachineEdge;
use crate::lab::host::eventually;
use crate::lab::topology::{InnerPath, Nics};
use crate::lab::{Lab, Setup, browser};

/// Boots `image` in the lab, lets two guests meet, prints how to join them and waits for Enter
/// (or, without a terminal, returns).
///
/// # Errors
///
/// Says which step failed.
pub fn run(artifacts: &Artifacts, image: &Path) -> Result<()> {
    let setup = Setup { nics: Nics::Tap, inner: InnerPath::DeclaredPeer };
    step("Starting Internet, firewall, conference and DNS in network namespaces");
    let lab = Lab::start(artifacts, setup)?;
    step("Signing the site's bundle");
    let bundle = lab.sign(7)?;
    step("Booting the image in QEMU with that bundle (under emulation: about a minute)");
    let start = Instant::now();
    let edge = lab.machine_edge(image, &bundle)?;
    wait_for_page(&lab, &edge)?;
    println!("   the guest page answered {:.0} s after power-on", start.elapsed().as_secs_f64());
    for (what, check) in CHECKS {
        step(what);
        check(&lab)?;
    }
    step("Two guests (Chromium, fake cameras, relay only) join the room");
    let frames = end_to_end::guests_meet(&lab, 30)?;
    println!("   the first decoded {frames} frames of the second in 10 s");
    print_ways_in(&lab, &edge)?;
    stay_up()
}

/// Waits until the guest page answers through the booted image.
///
/// # Errors
///
/// Shows the end of the console.
pub fn wait_for_page(lab: &Lab, edge: &MachineEdge) -> Result<()> {
    eventually(Duration::from_secs(300), || end_to_end::page_loads(lab))
        .with_context(|| format!("the console says:\n{}", tail(&edge.console(), 40)))
}

type Check = fn(&Lab) -> Result<()>;

const CHECKS: [(&str, Check); 5] = [
    ("The page loads over TLS that validates", end_to_end::page_loads),
    ("Port 80 redirects to the guest URL only", end_to_end::plain_http_redirects),
    ("A wrong Host is refused with a page that explains", end_to_end::wrong_host_is_explained),
    ("coturn's client: relay to relay through the static NAT address", end_to_end::relay_to_relay),
    ("coturn's client: to the declared peer inside and back", end_to_end::declared_peer),
];

fn print_ways_in(lab: &Lab, edge: &MachineEdge) -> Result<()> {
    let script = lab.directory().join("open-browser");
    browser::write_launcher(&lab.topology.inet, lab.public.certificate(), &script)?;
    println!("\nEverything is up.");
    println!("  Guest URL            {GUEST_URL}   (call ID 100101)");
    println!("  Your own browser     sudo {}", script.display());
    println!("                       (Chromium on the lab's Internet, with your display)");
    println!("  Console of the box   {}", edge.console_path().display());
    println!("  Logs                 {}", lab.directory().display());
    println!("\nWhat the box says of itself:\n{}", tail(&edge.console(), 25));
    Ok(())
}

fn stay_up() -> Result<()> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        println!("\nNo terminal to wait on: stopping.");
        return Ok(());
    }
    println!("\nPress Enter to stop it all.");
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

fn step(what: &str) {
    println!("-- {what}");
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
