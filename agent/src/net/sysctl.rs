//! Kernel settings below /proc/sys/net, written only when they differ.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
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
    /// Whether it can be set here. In a network namespace some are shown that belong to the whole
    /// machine; those have no write permission for anybody.
    pub(crate) settable: bool,
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
        let full = full(path)?;
        let found = std::fs::read_to_string(&full).ok();
        let same = found
            .as_ref()
            .is_some_and(|found| found.split_whitespace().eq(wanted.split_whitespace()));
        if !same {
            let found = found.map(|found| found.trim().to_owned());
            let settable = found.is_some()
                && std::fs::metadata(&full)
                    .is_ok_and(|file| file.permissions().mode() & 0o222 != 0);
            let (path, wanted) = (path.clone(), wanted.clone());
            differences.push(Difference { path, wanted, found, settable });
        }
    }
    Ok(differences)
}

/// Writes what differs and returns how many writes that took. A setting that cannot be set here
/// is said in the log and left out: status shows it.
///
/// # Errors
///
/// Returns [`SysctlError::Write`] when the kernel refuses a value.
pub(crate) fn apply(settings: &[(String, String)]) -> Result<u32, SysctlError> {
    let mut writes = 0;
    for Difference { path, wanted, found, settable } in differences(settings)? {
        if !settable {
            tracing::warn!(setting = path, ?found, "Not settable here");
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
