//! Site file, signed config bundle and device keys, shared by the box and the workbench.

pub mod site;
