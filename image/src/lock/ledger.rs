//! The script ledger: every maintainer script is accounted for.
//!
//! No script of a package is run. What the ones that matter would have done is done by
//! [`crate::rootfs`]; a ledger beside the recipe says, for each script that a locked package has,
//! which of our steps stands for it, or why it can be ignored. A package update that changes a
//! script changes its hash, and the lock update fails until a person has read the change.
//!
//! A line of the ledger: `package file hash handlers`, where `file` is the name in the package's
//! control archive, `hash` the first 16 hexadecimal digits of SHA-256 over its text, `handlers` a
//! list of [`HANDLERS`] joined by `+`. The rest of the line is the reason, after `#`. So that an
//! update that changes nothing but the version passes, the package's own version (and the upstream
//! part of it) is replaced in name and text before, and debhelper's comments with its version are
//! left out.
//!
//! Not in the ledger, by rule: `prerm` and `postrm`, which run when a package goes (none ever does);
//! `md5sums`, `shlibs`, `symbols`, `templates`, which are data of other tools; a `triggers` file
//! that does nothing but ask for `ldconfig`, for which our loader cache stands; `conffiles` whose
//! files are unpacked as any other.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::store::hex;
use super::version;

/// Our steps that stand for what scripts do; `ignore` stands for nothing.
const HANDLERS: [&str; 11] = [
    "accounts",
    "boot-files",
    "ca-bundle",
    "directories",
    "ignore",
    "ld-so-cache",
    "links",
    "machine-id",
    "modules",
    "presets",
    "tmpfiles",
];

/// Control files that say nothing about what happens on the disk at installation.
const INERT: [&str; 7] =
    ["control", "md5sums", "shlibs", "symbols", "templates", "prerm", "postrm"];

/// A comment that names the version of the tool that made the next lines.
const DEBHELPER: &str = "# Automatically added by dh_";

/// A script that a package has, as the ledger knows it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Script {
    /// The package, its version replaced.
    pub(crate) package: String,
    /// Name in the control archive.
    pub(crate) file: String,
    /// First 16 hexadecimal digits of SHA-256 over the text, version replaced.
    pub(crate) hash: String,
}

impl std::fmt::Display for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.package, self.file, self.hash)
    }
}

/// Why a ledger cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub(crate) struct ParseLedgerError {
    /// Which one, from 1.
    line: usize,
    /// What is wrong with it.
    reason: String,
}

/// Known scripts and what stands for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    known: BTreeMap<Script, Vec<String>>,
}

impl Ledger {
    /// Reads a ledger.
    ///
    /// # Errors
    ///
    /// Returns the first line that is malformed or names an unknown handler.
    pub(crate) fn parse(text: &str) -> Result<Self, ParseLedgerError> {
        let mut known = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let fail = |reason: String| ParseLedgerError { line: index + 1, reason };
            let (entry, reason) = line.split_once('#').unwrap_or((line, ""));
            let words: Vec<&str> = entry.split_whitespace().collect();
            let [package, file, hash, handlers] = words[..] else {
                if words.is_empty() {
                    continue;
                }
                return Err(fail("expected `package file hash handlers # reason`".into()));
            };
            let handlers: Vec<String> = handlers.split('+').map(str::to_owned).collect();
            if let Some(unknown) = handlers.iter().find(|name| !HANDLERS.contains(&name.as_str())) {
                let known = HANDLERS.join(", ");
                return Err(fail(format!("`{unknown}` is no handler; there are {known}")));
            }
            if handlers.iter().any(|name| name == "ignore") && reason.trim().is_empty() {
                return Err(fail("`ignore` needs a reason, after `#`".into()));
            }
            let script = Script {
                package: package.to_owned(),
                file: file.to_owned(),
                hash: hash.to_owned(),
            };
            known.insert(script, handlers);
        }
        Ok(Self { known })
    }

    /// Whether the ledger has this very script.
    pub(crate) fn knows(&self, script: &Script) -> bool {
        self.known.contains_key(script)
    }

    /// Whether the ledger has an entry for that file with another text.
    pub(crate) fn knows_other(&self, script: &Script) -> bool {
        self.known.keys().any(|k| k.package == script.package && k.file == script.file)
    }
}

/// The scripts among the files of a package's control archive that the ledger must have.
pub(crate) fn scripts(
    package: &str,
    package_version: &str,
    control: &BTreeMap<String, Vec<u8>>,
) -> Vec<Script> {
    let replace = |text: &str| {
        let text = text.replace(package_version, "@VERSION@");
        let upstream = version::upstream(package_version);
        // A short version such as `37` would hit unrelated text.
        if upstream.len() >= 5 { text.replace(upstream, "@UPSTREAM@") } else { text }
    };
    let relevant = control
        .iter()
        .filter(|(file, text)| !INERT.contains(&file.as_str()) && !is_plain(file, text));
    relevant
        .map(|(file, text)| {
            let text = String::from_utf8_lossy(text);
            let lines = text.split_inclusive('\n').filter(|line| !line.starts_with(DEBHELPER));
            let text = replace(&lines.collect::<String>());
            let hash = hex(&Sha256::digest(text.as_bytes()));
            Script {
                package: replace(package),
                file: file.clone(),
                hash: hash.get(..16).unwrap_or_default().to_owned(),
            }
        })
        .collect()
}

/// Whether the rule of the module's doc settles this file.
fn is_plain(file: &str, text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    match file {
        "triggers" => lines.all(|line| line == "activate-noawait ldconfig"),
        // `remove-on-upgrade /etc/x` is the other form.
        "conffiles" => lines.all(|line| line.starts_with('/')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(files: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_new_version_with_the_same_script_keeps_its_entry() {
        let old = scripts(
            "linux-image-6.12.1+deb13-amd64",
            "6.12.1-1",
            &control(&[("postinst", "version=6.12.1+deb13-amd64\n# 6.12.1-1\n")]),
        );
        let new = scripts(
            "linux-image-6.12.9+deb13-amd64",
            "6.12.9-2",
            &control(&[(
                "postinst",
                "version=6.12.9+deb13-amd64\n# Automatically added by dh_x/13\n# 6.12.9-2\n",
            )]),
        );
        let other = scripts(
            "linux-image-6.12.9+deb13-amd64",
            "6.12.9-2",
            &control(&[("postinst", "version=6.12.9+deb13-amd64\n# 6.12.9-2\nrm -r /\n")]),
        );
        let ledger = Ledger::parse(&format!("{} ignore # nothing of use\n", old[0])).unwrap();

        assert_eq!(old, new);
        assert!(ledger.knows(&new[0]));
        assert!(!ledger.knows(&other[0]) && ledger.knows_other(&other[0]));
    }

    #[test]
    fn only_what_acts_at_installation_needs_an_entry() {
        let files = control(&[
            ("control", "Package: x"),
            ("md5sums", ""),
            ("prerm", "#!/bin/sh"),
            ("triggers", "# ldconfig\nactivate-noawait ldconfig\n"),
            ("conffiles", "/etc/x\n"),
        ]);
        let acting = control(&[
            ("triggers", "interest /usr/share/x"),
            ("conffiles", "remove-on-upgrade /etc/x"),
            ("preinst", "#!/bin/sh"),
        ]);

        assert_eq!(scripts("x", "1.0", &files), []);
        assert_eq!(scripts("x", "1.0", &acting).len(), 3);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, reason) in [
            ("a postinst 00", "line 1: expected"),
            ("# note\na postinst 00 magic", "line 2: `magic` is no handler"),
            ("\na postinst 00 ignore", "line 2: `ignore` needs a reason"),
        ] {
            let error = Ledger::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}");
        }
    }
}
