//! Site file, signed config bundle, device keys: what an engineer's machine writes and a box reads.
//!
//! A bundle (`NAME.postern`) is one file: [`container`] frames it, [`trust`] says whose signatures
//! count, [`manifest`] says what it is and for which boxes, [`verify`] judges it in an order that
//! parses nothing before its signatures hold, [`seal`] keeps secrets for one box, and
//! [`sign`] makes it. [`site`] reads what it carries.
//!
//! # Invariants
//!
//! 1. Only [`verify`] makes a [`verify::VerifiedBundle`].
//! 2. No input makes this crate panic.
//! 3. No clock and no network takes part in a verdict.
#![forbid(unsafe_code)]

pub mod container;
pub mod device_key;
pub mod manifest;
pub mod seal;
pub mod sign;
pub mod signature;
pub mod site;
pub mod trust;
pub mod verify;
