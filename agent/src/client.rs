//! What a person calls on the box: `status` and `apply`, over D-Bus to the agent.

use std::path::Path;
use std::process::ExitCode;

/// Prints the status.
pub(crate) fn status(_json: bool) -> anyhow::Result<()> {
    anyhow::bail!("`status` is not here yet")
}

/// Hands over a bundle.
pub(crate) fn apply(_bundle: &Path) -> ExitCode {
    tracing::error!("`apply` is not here yet");
    ExitCode::FAILURE
}

/// Keeps what waits for a confirmation by hand.
pub(crate) fn confirm() -> anyhow::Result<()> {
    anyhow::bail!("`confirm` is not here yet")
}
