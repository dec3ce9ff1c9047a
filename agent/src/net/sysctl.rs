//! Kernel settings below /proc/sys/net, written only when they differ.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Where they are.
const ROOT: &str = "/proc/sys";

/// Why settings were not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SysctlError {
    /// Not below net/, or not a plain path.
    #[error("setting {0}: only plain paths below net/ are set")]
    Path(String),
    /// The kernel refused the value.
    #[error("cannot set {path} to {value}: {source}")]
    Write { path: String, value: String, source: io::Error },
}

/// A setting that is not what it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Difference {
    /// Path below /proc/sys.
    pub(crate) path: String,
    /// What it should be.
    pub(crate) wanted: String,
    /// What it is; `None` when this kernel has no such setting.
    pub(crate) found: Option<String>,
}

/// Replaces `@NAME` components by the NIC's name; settings of an absent NIC are left out.
pub(crate) fn resolve(
    settings: &[(String, String)],
    names: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let component = |part: &str| match part.strip_prefix('@') {
        Some(nic) => names.get(nic).cloned(),
        None => Some(part.to_owned()),
    };
    let resolved = |(path, value): &(String, String)| {
        let parts: Option<Vec<String>> = path.split('/').map(component).collect();
        Some((parts?.join("/"), value.clone()))
    };
    settings.iter().filter_map(resolved).collect()
}

/// What differs.
///
/// # Errors
///
/// Returns [`SysctlError::Path`] for a path that is not below net/.
pub(crate) fn differences(settings: &[(String, String)]) -> Result<Vec<Difference>, SysctlError> {
    let mut differences = Vec::new();
    for (path, wanted) in settings {
        let found = std::fs::read_to_string(full(path)?).ok();
        let same = found
            .as_ref()
            .is_some_and(|found| found.split_whitespace().eq(wanted.split_whitespace()));
        if !same {
            let found = found.map(|found| found.trim().to_owned());
            differences.push(Difference { path: path.clone(), wanted: wanted.clone(), found });
        }
    }
    Ok(differences)
}

/// Writes what differs and returns how many writes that took. A setting that this kernel does
/// not have is said in the log and left out: status shows it.
///
/// # Errors
///
/// Returns [`SysctlError::Write`] when the kernel refuses a value.
pub(crate) fn apply(settings: &[(String, String)]) -> Result<u32, SysctlError> {
    let mut writes = 0;
    for Difference { path, wanted, found } in differences(settings)? {
        if found.is_none() {
            tracing::warn!(setting = path, "This kernel has no such setting");
            continue;
        }
        tracing::info!(setting = path, value = wanted, "Setting");
        std::fs::write(full(&path)?, &wanted).map_err(|source| SysctlError::Write {
            path,
            value: wanted,
            source,
        })?;
        writes += 1;
    }
    Ok(writes)
}

fn full(path: &str) -> Result<PathBuf, SysctlError> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if path.starts_with("net/") && path.split('/').all(plain) {
        Ok(Path::new(ROOT).join(path))
    } else {
        Err(SysctlError::Path(path.to_owned()))
    }
}
