//! `cargo ci`: every check, the tests and the demo.
fn main() {}
