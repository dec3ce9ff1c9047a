//! The recipe of the appliance: `image/appliance.yaml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// What goes into the image and how it is laid out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Recipe {
    /// `IMAGE_ID`, and the first part of partition and file names.
    pub(crate) name: ImageName,
    /// `IMAGE_VERSION`, and the second part.
    pub(crate) version: ImageVersion,
    /// The Debian release.
    pub(crate) release: ReleaseName,
    /// Packages to install; those that they depend on come with them.
    pub(crate) packages: Vec<String>,
    /// Packages that are not installed although others depend on them.
    pub(crate) leave_out: Vec<String>,
    /// Of these packages, only the files that match a pattern are kept.
    pub(crate) only: BTreeMap<String, Vec<PathPattern>>,
    /// Files and folders that are not kept.
    pub(crate) prune: Vec<PathPattern>,
    /// Numbers of the users and groups that packages leave to the machine to choose.
    pub(crate) ids: BTreeMap<String, u32>,
    /// The kernel.
    pub(crate) kernel: KernelRecipe,
    /// The disk's layout.
    pub(crate) disk: DiskRecipe,
}

/// The kernel's part of the [`Recipe`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct KernelRecipe {
    /// The meta-package that depends on the newest kernel.
    pub(crate) package: String,
    /// The command line, without the root hash.
    pub(crate) command_line: Vec<String>,
    /// Modules that the initrd loads, in this order, after what they depend on.
    pub(crate) initrd_modules: Vec<String>,
    /// Modules that the root file system has, with what they depend on.
    pub(crate) modules: Vec<String>,
}

/// The disk's part of the [`Recipe`]; sizes in MiB.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct DiskRecipe {
    /// EFI system partition.
    pub(crate) esp: u64,
    /// Each slot's root file system.
    pub(crate) root: u64,
    /// Each slot's hash tree.
    pub(crate) verity: u64,
    /// The partition that a flasher can fill.
    pub(crate) provision: u64,
}

/// Lower-case letters and digits.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(crate) struct ImageName(String);

/// Digits, lower-case letters, dots, tildes; it goes into partition labels of 36 characters.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(crate) struct ImageVersion(String);

/// The codename of a Debian release.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(crate) struct ReleaseName(String);

/// A path with `*` (anything but `/`) and `**` (anything); it stands for all below a folder too.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(crate) struct PathPattern(String);

/// `text`, when it is of 1 to `maximum` lower-case letters, digits and characters of `also`.
fn plain_text(text: String, maximum: usize, also: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c);
    if (1..=maximum).contains(&text.len()) && text.chars().all(good) {
        return Ok(text);
    }
    let also = if also.is_empty() { String::new() } else { format!(" and `{also}`") };
    Err(format!("`{text}`: expected up to {maximum} lower-case letters and digits{also}"))
}

impl TryFrom<String> for ImageName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        plain_text(text, 12, "").map(Self)
    }
}

impl ImageName {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ImageVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        plain_text(text, 16, ".~").map(Self)
    }
}

impl ImageVersion {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ReleaseName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        plain_text(text, 16, "").map(Self)
    }
}

impl ReleaseName {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PathPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() || text.starts_with('/') || text.ends_with('/') {
            return Err(format!(
                "`{text}`: expected a path relative to the root, such as usr/share"
            ));
        }
        Ok(Self(text))
    }
}

impl PathPattern {
    /// Whether `path`, or a folder that holds it, matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        matches_from(self.0.as_bytes(), path.as_bytes())
    }
}

fn matches_from(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty() || path.first() == Some(&b'/'),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|at| matches_from(rest, &path[at..])),
        [b'*', rest @ ..] => {
            let end = path.iter().position(|c| *c == b'/').unwrap_or(path.len());
            (0..=end).any(|at| matches_from(rest, &path[at..]))
        }
        [c, rest @ ..] => {
            path.split_first().is_some_and(|(d, tail)| c == d && matches_from(rest, tail))
        }
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    ///
    /// Returns an error that says where the file is wrong.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the recipe {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("the recipe {} is wrong", path.display()))
    }

    /// Reads a recipe's text.
    ///
    /// # Errors
    ///
    /// Returns an error that says where the text is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, serde_yaml::Error> {
        serde_yaml::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_recipe_parses() {
        let recipe = Recipe::parse(include_str!("../appliance.yaml")).unwrap();

        assert_eq!(recipe.name.as_str(), "postern");
        assert_eq!(recipe.release.as_str(), "trixie");
    }

    #[test]
    fn patterns_match_paths_and_what_is_below_them() {
        let table = [
            ("usr/share/doc", "usr/share/doc", true),
            ("usr/share/doc", "usr/share/doc/x/y", true),
            ("usr/share/doc", "usr/share/doc-base", false),
            ("usr/share/*/man", "usr/share/a/man/1", true),
            ("usr/share/*/man", "usr/share/a/b/man", false),
            ("usr/lib/**/x.service", "usr/lib/systemd/system/a.wants/x.service", true),
            ("usr/lib/**/x.service", "usr/lib/systemd/ax.service", false),
            ("usr/sbin/fsck*", "usr/sbin/fsck.ext4", true),
        ];
        for (pattern, path, expected) in table {
            let pattern = PathPattern::try_from(pattern.to_owned()).unwrap();
            assert_eq!(pattern.matches(path), expected, "{pattern:?} {path}");
        }
    }

    #[test]
    fn a_version_that_no_partition_label_can_hold_is_refused() {
        assert!(ImageVersion::try_from("1.0~rc1".to_owned()).is_ok());
        for bad in ["", "1_0", "1.0-1", "A", "11111111111111111"] {
            assert!(ImageVersion::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
