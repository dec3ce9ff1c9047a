//! The lock: which packages, exactly. `appliance.lock` is JSON with one line per package, so that a
//! change of one package is a change of one line.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;

/// The only version of the file that we know.
const FORMAT: u32 = 1;

/// A lock.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Lock {
    /// Version of the format.
    format: u32,
    /// The Debian release.
    pub(crate) release: String,
    /// Seconds since 1970 of the newest suite: the one time that all files of the image have.
    pub(crate) time: u32,
    /// The kernel package that the recipe's meta-package stood for.
    pub(crate) kernel: String,
    /// The recipe's packages, then those left out behind a `-`: to notice that the recipe changed.
    pub(crate) asked_for: Vec<String>,
    /// The suites that it was resolved from.
    pub(crate) suites: Vec<LockedSuite>,
    /// The packages, by name.
    pub(crate) packages: Vec<LockedPackage>,
}

/// A suite as it was when the lock was made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LockedSuite {
    /// `trixie`, `trixie-updates`, `trixie-security`.
    pub(crate) suite: String,
    /// Seconds since 1970.
    pub(crate) date: u64,
    /// SHA-256 of the index that was read.
    pub(crate) index: String,
    /// Fingerprint of the archive key that signed it.
    pub(crate) signer: String,
}

/// One .deb.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LockedPackage {
    /// Package name.
    pub(crate) name: String,
    /// Package version.
    pub(crate) version: String,
    /// The archive that has it.
    pub(crate) archive: Archive,
    /// Where it is below the archive's base address.
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: u64,
    /// SHA-256, in lower-case hexadecimal.
    pub(crate) sha256: String,
}

/// Debian's two archives.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Archive {
    /// The release and its updates.
    Main,
    /// Security updates.
    Security,
}

impl Lock {
    /// A lock of the present format.
    pub(crate) fn new(
        recipe: &Recipe,
        kernel: &str,
        suites: Vec<LockedSuite>,
        packages: Vec<LockedPackage>,
    ) -> anyhow::Result<Self> {
        let newest = suites.iter().map(|suite| suite.date).max().unwrap_or_default();
        Ok(Self {
            format: FORMAT,
            release: recipe.release.as_str().to_owned(),
            time: u32::try_from(newest).context("a suite is from after 2106")?,
            kernel: kernel.to_owned(),
            asked_for: asked_for(recipe),
            suites,
            packages,
        })
    }

    /// Reads a lock file.
    ///
    /// # Errors
    ///
    /// Returns an error that names the file and what is wrong with it.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!("cannot read the lock {} (`postern lock` makes it)", path.display())
        })?;
        Self::parse(&text).with_context(|| format!("the lock {} is wrong", path.display()))
    }

    /// Reads a lock's text.
    ///
    /// # Errors
    ///
    /// Returns an error that says what is wrong.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let lock: Self = serde_json::from_str(text)?;
        ensure!(lock.format == FORMAT, "format {} is not {FORMAT}", lock.format);
        for package in &lock.packages {
            let is_hash = package.sha256.len() == 64
                && package.sha256.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
            ensure!(is_hash, "`{}` has no SHA-256 in lower-case hexadecimal", package.name);
            let is_path = !package.path.is_empty()
                && package.path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            ensure!(is_path, "`{}` has no path below the archive", package.name);
        }
        Ok(lock)
    }

    /// The file's text.
    pub(crate) fn to_text(&self) -> anyhow::Result<String> {
        let mut text = String::from("{\n");
        let mut field = |name: &str, value: String| {
            let _ = writeln!(text, "  \"{name}\": {value},");
        };
        field("format", self.format.to_string());
        field("release", serde_json::to_string(&self.release)?);
        field("time", self.time.to_string());
        field("kernel", serde_json::to_string(&self.kernel)?);
        field("asked-for", lines(&self.asked_for)?);
        field("suites", lines(&self.suites)?);
        let _ = write!(text, "  \"packages\": {}\n}}\n", lines(&self.packages)?);
        Ok(text)
    }

    /// Writes the file, replacing it at once.
    ///
    /// # Errors
    ///
    /// Returns an error when it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        let failed = || format!("cannot write the lock {}", path.display());
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
        file.write_all(self.to_text()?.as_bytes()).with_context(failed)?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(permissions).with_context(failed)?;
        file.persist(path).with_context(failed)?;
        Ok(())
    }

    /// Checks that the lock was made for this recipe.
    ///
    /// # Errors
    ///
    /// Returns an error that names a package on which they differ.
    pub(crate) fn check(&self, recipe: &Recipe) -> anyhow::Result<()> {
        let wanted = asked_for(recipe);
        if self.release != recipe.release.as_str() {
            bail!("the lock is for another release; make a new one: `postern lock --update`");
        }
        let differs = |entry: &&String| self.asked_for.contains(entry) != wanted.contains(entry);
        if let Some(entry) = self.asked_for.iter().chain(&wanted).find(differs) {
            bail!(
                "the recipe changed since the lock was made (`{entry}`); \
                 make a new one: `postern lock --update`"
            );
        }
        Ok(())
    }
}

fn asked_for(recipe: &Recipe) -> Vec<String> {
    let mut packages: Vec<String> = recipe.packages.clone();
    packages.push(recipe.kernel.package.clone());
    packages.sort();
    let mut left_out: Vec<String> =
        recipe.leave_out.iter().map(|name| format!("-{name}")).collect();
    left_out.sort();
    packages.extend(left_out);
    packages
}

/// A JSON array with one element per line.
fn lines<T: Serialize>(items: &[T]) -> anyhow::Result<String> {
    let items: Result<Vec<String>, _> = items.iter().map(serde_json::to_string).collect();
    Ok(format!("[\n    {}\n  ]", items?.join(",\n    ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_as_it_was_written_one_line_per_package() {
        let recipe = Recipe::parse(include_str!("../../appliance.yaml")).unwrap();
        let package = |name: &str| LockedPackage {
            name: name.to_owned(),
            version: "1:2.0-1+deb13u1".to_owned(),
            archive: Archive::Security,
            path: format!("pool/main/a/{name}.deb"),
            size: 7,
            sha256: "0".repeat(64),
        };
        let suite = LockedSuite {
            suite: "trixie".into(),
            date: 1_700_000_000,
            index: "1".repeat(64),
            signer: "a".into(),
        };
        let packages = vec![package("a"), package("b")];
        let lock = Lock::new(&recipe, "linux-image-x", vec![suite], packages).unwrap();

        let text = lock.to_text().unwrap();

        assert_eq!(Lock::parse(&text).unwrap(), lock);
        assert_eq!(text.lines().filter(|line| line.contains("\"path\"")).count(), 2);
        lock.check(&recipe).unwrap();
    }

    #[test]
    fn a_lock_of_another_recipe_names_the_difference() {
        let mut recipe = Recipe::parse(include_str!("../../appliance.yaml")).unwrap();
        let lock = Lock::new(&recipe, "linux-image-x", Vec::new(), Vec::new()).unwrap();
        recipe.packages.push("extra".to_owned());

        let error = lock.check(&recipe).unwrap_err().to_string();

        assert!(error.contains("extra") && error.contains("--update"), "{error}");
    }

    #[test]
    fn a_path_that_leaves_the_archive_is_refused() {
        let line =
            r#"{"name":"a","version":"1","archive":"main","path":"../x","size":1,"sha256":"SUM"}"#;
        let line = line.replace("SUM", &"0".repeat(64));
        let text = format!(
            r#"{{"format":1,"release":"trixie","time":1,"kernel":"k","asked-for":[],"suites":[],"packages":[{line}]}}"#
        );
        assert!(Lock::parse(&text).unwrap_err().to_string().contains("below the archive"));
    }
}
