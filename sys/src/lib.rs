//! The only unsafe code of the project: system calls that `nix` has no safe form for.
//!
//! Each function is safe to call, holds one unsafe operation per block and names its
//! preconditions. Nothing here knows what the other crates use it for.

#![expect(unsafe_code, reason = "this crate exists to fence the unsafe calls in")]

pub mod datagrams;
pub mod device_mapper;
pub mod fd_passing;
pub mod freebind;
pub mod packet_socket;
pub mod udp;
