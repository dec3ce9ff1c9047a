//! The conformance suite: ours holds every case, whatever the number of shards, and Debian's coturn
//! is what it is known to be.

use postern_ci::artifacts::Artifacts;
use postern_ci::conformance::{self, Peer, Summary, Verdict};
use postern_ci::packages;

use crate::{must, one_at_a_time};

#[test]
fn our_relay_holds_every_case_with_one_shard() {
    ours_holds_every_case(1);
}

#[test]
fn our_relay_holds_every_case_with_two_shards() {
    ours_holds_every_case(2);
}

#[test]
fn coturn_holds_what_it_is_known_to_hold() {
    let _turn = one_at_a_time();
    must("coturn is installed", packages::ensure_installed(packages::LAB));

    let summary = as_expected(&Peer::Coturn);

    assert!(summary.count(Verdict::Holds) >= 150, "so few that the setting must be wrong");
}

fn ours_holds_every_case(shards: usize) {
    let _turn = one_at_a_time();
    let agent = Artifacts::build().unwrap().agent;

    let summary = as_expected(&Peer::Ours { agent, shards });

    assert_eq!(summary.count(Verdict::Holds), conformance::cases().len());
    assert!(summary.tried() >= 150, "{} cases", summary.tried());
}

fn as_expected(peer: &Peer) -> Summary {
    let summary = must("the suite runs", conformance::run(peer, &[]));
    println!("{summary}");
    assert!(summary.is_as_expected(), "{peer}: see above");
    summary
}
