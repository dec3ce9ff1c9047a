//! The files that the verbs read and write.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bundle::device_key::DevicePublic;
use bundle::seal::Secrets;
use bundle::trust::TrustChain;

/// Longest secrets file.
const MAX_SECRETS: usize = 256 << 10;

/// Longest file of any kind; a bundle is at most half of it.
const MAX_FILE: u64 = 2 << 20;

/// Reads a file.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > MAX_FILE {
        bail!("{} is longer than 2 MiB; no file of a site is", path.display());
    }
    Ok(bytes)
}

/// Reads a text file.
pub(super) fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = read(path)?;
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))
}

/// Reads a trust file.
pub(super) fn read_trust(path: &Path) -> anyhow::Result<TrustChain> {
    TrustChain::anchored(&read(path)?)
        .with_context(|| format!("{} is not a trust file", path.display()))
}

/// Reads the public half of a box's device keys.
pub(super) fn read_device(path: &Path) -> anyhow::Result<DevicePublic> {
    read_text(path)?.parse().with_context(|| format!("cannot use {}", path.display()))
}

/// Whether a new file may take the place of an older one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Overwrite {
    /// It is an error if one is there.
    Refuse,
    /// It is replaced.
    Allow,
}

impl From<bool> for Overwrite {
    fn from(force: bool) -> Self {
        if force { Self::Allow } else { Self::Refuse }
    }
}

/// Writes a file with these permissions from its first byte on.
pub(super) fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    overwrite: Overwrite,
) -> anyhow::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if overwrite == Overwrite::Refuse && path.exists() {
        bail!("{} exists already; move it away, or say --force to replace it", path.display());
    }
    let name = path.file_name().with_context(|| format!("{} is no file name", path.display()))?;
    let temporary = parent.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// `path` with `suffix` behind its whole name: `keys/ops` and `.trust` give `keys/ops.trust`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Reads a file of secrets: YAML, names and texts, readable by its owner alone.
pub(super) fn read_secrets(path: &Path) -> anyhow::Result<Secrets> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!(
            "{} can be read by others (mode {mode:04o}); do `chmod 600 {}`",
            path.display(),
            path.display()
        );
    }
    let text = read_text(path)?;
    if text.len() > MAX_SECRETS {
        bail!("{} is longer than 256 KiB", path.display());
    }
    parse_secrets(&text).with_context(|| format!("cannot use {}", path.display()))
}

fn parse_secrets(text: &str) -> anyhow::Result<Secrets> {
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_anchors: 0,
            max_aliases: 0,
            max_depth: 2,
            max_nodes: 2_000,
        },
        with_snippet: false,
    };
    let parsed = serde_yaml::from_str_with_options::<std::collections::BTreeMap<String, String>>(
        text, options,
    );
    match parsed {
        Ok(secrets) => {
            Ok(secrets.into_iter().map(|(name, secret)| (name, secret.into_bytes())).collect())
        }
        // The parser's own words may repeat a secret.
        Err(error) => {
            let place = error.location().map_or_else(String::new, |location| {
                format!(" (line {}, column {})", location.line(), location.column())
            });
            bail!(
                "it is not YAML of lines `name: text`{place}; quote texts, and put keys below \
                 `name: |` with every line indented"
            )
        }
    }
}

/// Writes a line to standard output.
pub(super) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").context("cannot write to standard output")
}

/// Writes a line to standard error.
pub(super) fn note(text: &str) {
    // Nothing can be done when standard error is gone.
    let _ignored = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_names_and_texts() {
        let secrets = parse_secrets("pin: \"0123\"\nkey: |\n  line 1\n  line 2\nplain: abc\n");

        let secrets = secrets.unwrap();
        assert_eq!(secrets["pin"], b"0123");
        assert_eq!(secrets["key"], b"line 1\nline 2\n");
        assert_eq!(secrets["plain"], b"abc");
    }

    #[test]
    fn errors_in_a_secrets_file_never_repeat_a_secret() {
        for text in [
            "a: hunter2\nb: [hunter2]\n",
            "hunter2",
            "a: \"hunter2\n",
            "a: &x hunter2\nb: *x\n",
            "a: hunter2\na: hunter2\n",
            "a: {b: {c: hunter2}}\n",
            "- hunter2\n",
        ] {
            let error = format!("{:#}", parse_secrets(text).expect_err(text));
            assert!(!error.contains("hunter"), "{error}");
        }
    }

    #[test]
    fn a_secrets_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.secrets.yaml");
        write(&path, b"a: b\n", 0o640, Overwrite::Refuse).unwrap();

        let error = read_secrets(&path).unwrap_err().to_string();

        assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_is_replaced_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"1", 0o600, Overwrite::Refuse).unwrap();

        let refused = write(&path, b"2", 0o600, Overwrite::Refuse).unwrap_err().to_string();

        assert!(refused.contains("--force"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"1");
        write(&path, b"3", 0o600, Overwrite::Allow).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"3");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
