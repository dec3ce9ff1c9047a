//! Clients that others wrote use the relay through the static NAT, by every way into it.

use std::time::Duration;

use postern_ci::interop::{self, SecondOpinion, second_opinion};
use postern_ci::lab::Lab;
use postern_ci::lab::edge::NamespaceEdge;
use postern_ci::lab::topology::{CONFERENCE, InnerPath, LAN1, Nics, STATIC_NAT};
use turn_client_proto::types::{AddressFamily, TransportType};

use crate::{must, one_at_a_time, start};

#[test]
fn clients_that_others_wrote_use_the_relay_by_every_way() {
    let _turn = one_at_a_time();
    let (lab, _edge) = applied();

    must("coturn's client", interop::coturns_client(&lab));
    must("aioice", interop::aioice(&lab));
    must("Chromium on the Internet", interop::chromium(&lab));
    must("Chromium inside", interop::chromium_inside(&lab));
}

#[test]
fn a_second_reading_of_the_rfcs_agrees() {
    let _turn = one_at_a_time();
    let (lab, _edge) = applied();
    let mut command = lab.topology.inside.command("turnutils_peer");
    command.args(["-L", CONFERENCE, "-p", "3480"]);
    let _peer = lab.topology.inside.daemon("turnutils_peer", &mut command).unwrap();
    std::thread::sleep(Duration::from_millis(200));

    for (host, server) in [(&lab.topology.inet, STATIC_NAT), (&lab.topology.inside, LAN1)] {
        for transport in [TransportType::Udp, TransportType::Tcp] {
            for modern in [false, true] {
                let wish = SecondOpinion {
                    server: format!("{server}:3478").parse().unwrap(),
                    transport,
                    user: "turnuser".into(),
                    password: lab.site.turn_password.clone(),
                    modern,
                    families: vec![AddressFamily::IPV4],
                    peer: format!("{CONFERENCE}:3480").parse().unwrap(),
                };
                let what = format!("{server} over {transport}, SHA-256 and USERHASH: {modern}");
                let relayed = must(&what, second_opinion(host, &wish));
                assert_eq!(relayed[0].ip().to_string(), STATIC_NAT, "{what}: {relayed:?}");
            }
        }
    }
}

/// The reference edge, serving.
fn applied() -> (Lab, NamespaceEdge) {
    let lab = start(Nics::Veth, InnerPath::DeclaredPeer);
    let edge = lab.namespace_edge().unwrap();
    must("the bundle is applied and confirmed", edge.apply(&lab.sign(7).unwrap()));
    (lab, edge)
}
