//! Rules of a site that are judged from its text alone.
use super::{Fault, Site};
/// Every breach of a rule.
pub(crate) fn judge(_site: &Site) -> Vec<Fault> {
    Vec::new()
}
