//! A bundle that is good on paper and does not work: taken back, by whoever is still there to do
//! it, and what ran before runs on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_ci::artifacts::Artifacts;
use postern_ci::end_to_end;
use postern_ci::lab::Lab;
use postern_ci::lab::edge::NamespaceEdge;
use postern_ci::lab::host::eventually;
use postern_ci::lab::topology::{InnerPath, Nics};

use crate::{must, one_at_a_time, start};

const CONFIRM: &str = "confirm: { mode: auto, deadline: 120s, require: [upstream] }";

#[test]
fn what_does_not_work_is_taken_back() {
    let _turn = one_at_a_time();
    let lab = start(Nics::Veth, InnerPath::DeclaredPeer);
    let edge = lab.namespace_edge().unwrap();
    must("the bundle is applied and confirmed", edge.apply(&lab.sign(7).unwrap()));

    let dark = sign_with(
        &lab,
        8,
        &[
            (CONFIRM, "confirm: { mode: auto, deadline: 15s, require: [upstream] }"),
            ("url: https://cms.octavio.local", "url: https://nobody.octavio.local"),
        ],
    );
    let said = edge.apply(&dark).expect_err("its upstream does not exist").to_string();
    assert!(said.contains("rolled back: serial 8"), "{said}");
    assert!(said.contains("nobody.octavio.local"), "{said}");
    still_serves(&lab, &edge, 7);

    let manual = "confirm: { mode: manual, deadline: 60s, require: [upstream] }";
    let bundle = sign_with(&lab, 9, &[(CONFIRM, manual)]);
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| edge.apply(&bundle));
        wait_for_a_person(&edge);
        confirm(&edge);
        must("serial 9 is confirmed by hand", apply.join().unwrap());
    });
    still_serves(&lab, &edge, 9);

    let manual = "confirm: { mode: manual, deadline: 15s, require: [upstream] }";
    let bundle = sign_with(&lab, 10, &[(CONFIRM, manual)]);
    let said = edge.apply(&bundle).expect_err("nobody confirms").to_string();
    assert!(said.contains("waiting for a confirmation by hand"), "{said}");
    still_serves(&lab, &edge, 9);
}

#[test]
fn a_change_whose_agent_dies_is_taken_back() {
    let _turn = one_at_a_time();
    let lab = start(Nics::Veth, InnerPath::DeclaredPeer);
    let edge = lab.namespace_edge().unwrap();
    must("the bundle is applied and confirmed", edge.apply(&lab.sign(7).unwrap()));
    let manual = "confirm: { mode: manual, deadline: 60s, require: [upstream] }";
    let changes = [(CONFIRM, manual), ("media-ports: 24000-29999", "media-ports: 24000-28999")];
    let bundle = sign_with(&lab, 8, &changes);

    std::thread::scope(|scope| {
        let apply = scope.spawn(|| edge.apply(&bundle));
        wait_for_a_person(&edge);
        edge.kill("postern-agent");
        assert!(apply.join().unwrap().is_err(), "nobody is left to say that it worked");
    });

    must(
        "serial 7 is back",
        eventually(Duration::from_secs(20), || {
            let status = edge.status()?;
            anyhow::ensure!(status["network"]["generation"]["serial"] == 7, "{status:#}");
            anyhow::ensure!(status["state"] == "rolled-back", "{status:#}");
            anyhow::ensure!(status["bundle"]["serial"] == 7, "{status:#}");
            Ok(())
        }),
    );
    still_serves(&lab, &edge, 7);
}

/// Serial `serial` with `changes` made to the reference site.
fn sign_with(lab: &Lab, serial: u64, changes: &[(&str, &str)]) -> PathBuf {
    let bundle = lab.sign(serial).unwrap();
    let site = lab.site.folder().join("octavio.site.yaml");
    let mut text = fs::read_to_string(&site).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "the site has no `{from}`:\n{text}");
        text = text.replacen(from, to, 1);
    }
    fs::write(&site, text).unwrap();
    remove(&bundle);
    lab.site.sign_current("signer", &bundle).unwrap();
    bundle
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn wait_for_a_person(edge: &NamespaceEdge) {
    must(
        "it waits for a confirmation by hand",
        eventually(Duration::from_secs(20), || {
            let status = edge.status()?;
            let waiting = &status["change"]["waiting-for"];
            anyhow::ensure!(waiting == "a confirmation by hand", "{:#}", status["change"]);
            Ok(())
        }),
    );
}

fn confirm(edge: &NamespaceEdge) {
    let agent = Artifacts::build().unwrap().agent;
    let output = edge.host().command(agent).arg("confirm").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn still_serves(lab: &Lab, edge: &NamespaceEdge, serial: u64) {
    let status = must("status", edge.status());
    assert_eq!(status["bundle"]["serial"], serial, "{status:#}");
    assert_eq!(status["network"]["generation"]["serial"], serial, "{status:#}");
    assert_eq!(status["network"]["in-order"], true, "{status:#}");
    must("the page loads", end_to_end::page_loads(lab));
    must("the relay relays", end_to_end::relay_to_relay(lab));
}
