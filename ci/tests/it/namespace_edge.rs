//! The edge as the agent's own processes in a namespace.

use std::time::Duration;

use postern_ci::end_to_end;
use postern_ci::lab::host::eventually;
use postern_ci::lab::topology::{InnerPath, LAN1, LAN2, Nics};

use crate::{must, one_at_a_time, start};

#[test]
fn guests_reach_the_conference_and_its_declared_media_server() {
    let _turn = one_at_a_time();
    let lab = start(Nics::Veth, InnerPath::DeclaredPeer);
    let edge = lab.namespace_edge().unwrap();
    let bundle = lab.sign(7).unwrap();

    must("the bundle is applied and confirmed", edge.apply(&bundle));

    must("the page loads", end_to_end::page_loads(&lab));
    must("port 80 redirects", end_to_end::plain_http_redirects(&lab));
    must("a wrong Host is explained", end_to_end::wrong_host_is_explained(&lab));
    must("relay to relay", end_to_end::relay_to_relay(&lab));
    must("a declared peer", end_to_end::declared_peer(&lab));
    must("an undeclared peer is refused", end_to_end::undeclared_peer_is_refused(&lab));
    must(
        "a wrong TURN password is refused and logged",
        end_to_end::wrong_password_is_refused(&lab, || edge.log("postern-relay")),
    );
    must("a name outside resolves", edge.host().run("getent ahostsv4 time.octavio.com"));
    must("DNS is split", end_to_end::dns_is_split(&lab, "time.octavio.com"));
    let frames = must("two guests meet", end_to_end::guests_meet(&lab, 100));
    println!("{frames} frames in 10 s");
}

#[test]
fn guests_meet_when_media_can_only_go_from_relay_to_relay() {
    let _turn = one_at_a_time();
    let lab = start(Nics::Veth, InnerPath::TurnOnly);
    let edge = lab.namespace_edge().unwrap();
    must("the bundle is applied and confirmed", edge.apply(&lab.sign(7).unwrap()));

    let frames = must("two guests meet", end_to_end::guests_meet(&lab, 100));

    println!("{frames} frames in 10 s");
}

#[test]
fn status_shows_what_is_observed() {
    let _turn = one_at_a_time();
    let lab = start(Nics::Veth, InnerPath::DeclaredPeer);
    let edge = lab.namespace_edge().unwrap();
    must("the bundle is applied and confirmed", edge.apply(&lab.sign(7).unwrap()));

    let status = must("status", edge.status());

    let text = status.to_string();
    for fact in [LAN1, LAN2, "172.16.85.168:3478", "192.168.245.61:3478", "cmsweb.octavio.com"] {
        assert!(text.contains(fact), "status lacks {fact}: {status:#}");
    }
    assert_eq!(status["relay"]["status"], "active", "{status:#}");
    assert_eq!(status["relay"]["active-clients"], 0, "{status:#}");
    assert_eq!(status["relay"]["active-relays-tcp"], 0, "{status:#}");
    assert_eq!(status["relay"]["active-relays-udp"], 0, "{status:#}");
    assert_eq!(status["bundle"]["serial"], 7, "{status:#}");
    assert!(text.contains("SHA256:"), "no signer's fingerprint: {status:#}");
    assert!(!text.contains(&lab.site.turn_password), "status shows a secret");
}

#[test]
fn the_same_bundle_again_writes_nothing() {
    let _turn = one_at_a_time();
    let lab = start(Nics::Veth, InnerPath::DeclaredPeer);
    let edge = lab.namespace_edge().unwrap();
    let bundle = lab.sign(7).unwrap();
    must("the bundle is applied and confirmed", edge.apply(&bundle));
    let before = must("status", edge.status());
    let mut command = edge.host().command("ip");
    let mut monitor = edge
        .host()
        .daemon("monitor", command.args(["monitor", "address", "route", "rule"]))
        .unwrap();

    must("the same bundle again", edge.apply(&bundle));

    monitor.stop();
    let seen = monitor.log();
    assert!(seen.trim().is_empty(), "netlink events on a re-apply:\n{seen}");
    let after = must("status", edge.status());
    assert_eq!(before["network"]["last-apply"], after["network"]["last-apply"], "{after:#}");
}

#[test]
fn any_process_may_be_killed_and_guests_still_get_the_page() {
    let _turn = one_at_a_time();
    let lab = start(Nics::Veth, InnerPath::DeclaredPeer);
    let edge = lab.namespace_edge().unwrap();
    must("the bundle is applied and confirmed", edge.apply(&lab.sign(7).unwrap()));

    for unit in ["postern-proxy", "postern-relay", "postern-agent", "postern-host", "postern-net"] {
        edge.kill(unit);
        must(
            &format!("the page and a relay after {unit} was killed"),
            eventually(Duration::from_secs(20), || {
                end_to_end::page_loads(&lab)?;
                end_to_end::relay_to_relay(&lab)
            }),
        );
    }
}
