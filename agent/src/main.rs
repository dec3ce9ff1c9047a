//! `postern-agent`: everything that runs on the box, one process per privilege.
#![forbid(unsafe_code)]

mod ipc;
mod message;
mod plan;

fn main() {}
