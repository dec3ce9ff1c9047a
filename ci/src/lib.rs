//! Every check of the project, and the reference lab that tests and the demo stand on.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "it says on the terminal what it does")]

pub mod artifacts;
pub mod bench;
pub mod check;
pub mod conformance;
pub mod demo;
pub mod end_to_end;
pub mod fuzz;
pub mod interop;
pub mod lab;
pub mod packages;
pub mod relay_server;
