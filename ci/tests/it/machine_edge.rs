//! The edge as the booted image in a virtual machine.

use std::time::{Duration, Instant};

use postern_ci::artifacts::{self, Artifacts};
use postern_ci::end_to_end;
use postern_ci::lab::Lab;
use postern_ci::lab::edge::MachineEdge;
use postern_ci::lab::host::eventually;
use postern_ci::lab::topology::{InnerPath, Nics};

use crate::{must, one_at_a_time, start};

#[test]
fn guests_meet_through_the_booted_image() {
    let _turn = one_at_a_time();
    let (lab, edge) = boot(InnerPath::DeclaredPeer);

    must("port 80 redirects", end_to_end::plain_http_redirects(&lab));
    must("a wrong Host is explained", end_to_end::wrong_host_is_explained(&lab));
    must("relay to relay", end_to_end::relay_to_relay(&lab));
    must("a declared peer", end_to_end::declared_peer(&lab));
    must(
        "a wrong TURN password is refused and logged",
        end_to_end::wrong_password_is_refused(&lab, || edge.console()),
    );
    must("DNS is split", end_to_end::dns_is_split(&lab, "time.octavio.com"));
    let frames = must("two guests meet", end_to_end::guests_meet(&lab, 30));
    println!("{frames} frames in 10 s");
}

#[test]
fn guests_meet_through_the_booted_image_from_relay_to_relay() {
    let _turn = one_at_a_time();
    let (lab, _edge) = boot(InnerPath::TurnOnly);

    let frames = must("two guests meet", end_to_end::guests_meet(&lab, 30));
    println!("{frames} frames in 10 s");
}

/// Boots the image with the site's bundle and waits for the guest page.
fn boot(inner: InnerPath) -> (Lab, MachineEdge) {
    let artifacts = Artifacts::build().unwrap();
    let image = artifacts::image_path();
    if !image.exists() {
        artifacts::image(&artifacts, &image).unwrap();
    }
    let lab = start(Nics::Tap, inner);
    let bundle = lab.sign(7).unwrap();
    let power_on = Instant::now();
    let edge = lab.machine_edge(&image, &bundle).unwrap();
    let page = eventually(Duration::from_secs(300), || end_to_end::page_loads(&lab));
    must("the page answers", page.map_err(|e| e.context(format!("console:\n{}", edge.console()))));
    println!("the guest page answered {:.1} s after power-on", power_on.elapsed().as_secs_f64());
    (lab, edge)
}
