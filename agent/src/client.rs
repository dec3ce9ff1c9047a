//! What a person calls on the box: `status` and `apply`, over D-Bus to the agent.

use std::path::Path;

/// Prints the status.
pub(crate) fn status(_json: bool) -> anyhow::Result<()> {
    anyhow::bail!("`status` is not here yet")
}

/// Hands over a bundle.
pub(crate) fn apply(_bundle: &Path) -> anyhow::Result<()> {
    anyhow::bail!("`apply` is not here yet")
}
