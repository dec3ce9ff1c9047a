//! The crate as others use it.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod contents;
mod site;
