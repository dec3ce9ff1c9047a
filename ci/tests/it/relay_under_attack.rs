//! The relay under attack: what must hold however fast or slow this machine is. `cargo ci bench
//! abuse` measures what depends on time.

use std::path::Path;

use postern_ci::artifacts::Artifacts;
use postern_ci::bench::abuse;

use crate::{must, one_at_a_time};

#[test]
fn floods_make_no_allocation_end_none_and_take_bounded_memory() {
    let _lab = one_at_a_time();
    let artifacts = Artifacts::build().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_postern-ci"));

    let after = must("flooded in every way", abuse::endure(program, artifacts.agent));

    println!("{after:?}");
    assert_eq!(after.relays, [100, 100], "live relay ports before and after");
    assert_eq!(after.allocations, [100, 100], "allocations ever made, before and after");
    assert_eq!(after.granted, Vec::<String>::new(), "forbidden peers let through");
    assert!(after.refused > 10_000, "the floods reached the relay");
    assert!(after.grown < 8 << 20, "{} octets more", after.grown);
}
