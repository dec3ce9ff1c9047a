//! The crate as others use it.

mod contents;
mod site;
