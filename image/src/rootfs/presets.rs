//! Switches units on: applies the preset files (systemd.preset(5)) to the `[Install]` sections of
//! all system units, as `systemctl preset-all` would on an empty `etc/systemd/system`.
//!
//! The first line that matches a unit decides; a unit that no line matches stays off, because our
//! preset ends in `disable *` and a missing preset must not start anything. Masked units (links to
//! `/dev/null`) are left alone. The links of packages in `usr/lib/systemd/system/*.wants` are not
//! ours to judge: the recipe prunes those that are not wanted.

use std::collections::{BTreeMap, BTreeSet};

use crate::recipe::PathPattern;
use crate::tree::{InsertError, Kind, Node, Tree};

const UNITS: &str = "usr/lib/systemd/system";
const PRESETS: &str = "usr/lib/systemd/system-preset";
const ENABLED: &str = "etc/systemd/system";

/// Why the presets cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PresetsError {
    /// A line is not understood.
    #[error(
        "{file}: `{line}`: expected `enable PATTERN [INSTANCE…]`, `disable PATTERN`, `ignore PATTERN`"
    )]
    Line {
        /// In which file.
        file: String,
        /// The line.
        line: String,
    },
    /// A name in an `[Install]` section is no unit's.
    #[error("{unit}: `{name}` in its [Install] section is no name of a unit")]
    Name {
        /// Which unit.
        unit: String,
        /// What it says.
        name: String,
    },
    /// A preset names a unit that is not there.
    #[error("{file} switches on `{unit}`, which is not in the image")]
    Absent {
        /// The preset file.
        file: String,
        /// The unit.
        unit: String,
    },
    /// A link cannot be put into the tree.
    #[error(transparent)]
    Insert(#[from] InsertError),
}

struct Rule {
    file: String,
    verb: Verb,
    pattern: PathPattern,
    text: String,
    instances: Vec<String>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Verb {
    Enable,
    Other,
}

/// Applies all presets; returns the names of the units that are on.
///
/// # Errors
///
/// Returns the first line, unit or name that does not work.
pub(super) fn apply(tree: &mut Tree) -> Result<BTreeSet<String>, PresetsError> {
    let rules = read_rules(tree)?;
    let units: BTreeMap<String, Install> = tree
        .entries(UNITS)
        .into_iter()
        .filter(|(_, node)| matches!(node.kind, Kind::File(_)))
        .filter_map(|(name, _)| {
            let text = tree.read_text(&format!("{UNITS}/{name}"))?;
            Some((name.to_owned(), Install::parse(text)?))
        })
        .collect();
    let mut todo: Vec<String> = Vec::new();
    for name in units.keys() {
        let rule = rules.iter().find(|rule| rule.pattern.matches(name));
        let Some(rule) = rule.filter(|rule| rule.verb == Verb::Enable) else { continue };
        if name.contains("@.") && !rule.instances.is_empty() {
            let instance = |i: &String| name.replacen('@', &format!("@{i}"), 1);
            todo.extend(rule.instances.iter().map(instance));
        } else {
            todo.push(name.clone());
        }
    }
    for rule in rules.iter().filter(|rule| rule.verb == Verb::Enable && rule.is_ours()) {
        if !rule.text.contains(['*', '?', '[']) && !exists(tree, &rule.text) {
            return Err(PresetsError::Absent { file: rule.file.clone(), unit: rule.text.clone() });
        }
    }
    let mut on = BTreeSet::new();
    while let Some(name) = todo.pop() {
        let Some(install) = units.get(&template(&name)) else { continue };
        if on.insert(name.clone()) {
            enable(tree, &name, install)?;
            todo.extend(install.also.iter().cloned());
        }
    }
    Ok(on)
}

/// Whether there is such a unit; one without an [Install] section is on by a package's own link.
fn exists(tree: &Tree, unit: &str) -> bool {
    tree.get(&format!("{UNITS}/{}", template(unit))).is_some()
}

impl Rule {
    /// Packages' presets name units of packages that are not installed.
    fn is_ours(&self) -> bool {
        self.file.contains("postern")
    }
}

fn read_rules(tree: &Tree) -> Result<Vec<Rule>, PresetsError> {
    let mut rules = Vec::new();
    for (file, _) in tree.entries(PRESETS) {
        for line in tree.read_text(&format!("{PRESETS}/{file}")).unwrap_or_default().lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let fail = || PresetsError::Line { file: file.to_owned(), line: line.to_owned() };
            let mut words = line.split_whitespace();
            let verb = match words.next() {
                Some("enable") => Verb::Enable,
                Some("disable" | "ignore") => Verb::Other,
                _ => return Err(fail()),
            };
            let text = words.next().ok_or_else(fail)?.to_owned();
            let pattern = PathPattern::try_from(text.clone()).map_err(|_| fail())?;
            let instances = words.map(str::to_owned).collect();
            rules.push(Rule { file: file.to_owned(), verb, pattern, text, instances });
        }
    }
    Ok(rules)
}

/// The `[Install]` section of a unit.
#[derive(Debug, Default)]
struct Install {
    wanted_by: Vec<String>,
    required_by: Vec<String>,
    upheld_by: Vec<String>,
    alias: Vec<String>,
    also: Vec<String>,
    default_instance: Option<String>,
}

impl Install {
    /// `None` when the unit has no such section.
    fn parse(text: &str) -> Option<Self> {
        let mut install = Self::default();
        let mut found = false;
        let mut inside = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                inside = line == "[Install]";
                found |= inside;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| inside) else { continue };
            let mut words = value.split_whitespace().map(str::to_owned);
            match key.trim() {
                "WantedBy" => install.wanted_by.extend(words),
                "RequiredBy" => install.required_by.extend(words),
                "UpheldBy" => install.upheld_by.extend(words),
                "Alias" => install.alias.extend(words),
                "Also" => install.also.extend(words),
                "DefaultInstance" => install.default_instance = words.next_back(),
                _ => {}
            }
        }
        found.then_some(install)
    }
}

fn enable(tree: &mut Tree, name: &str, install: &Install) -> Result<(), PresetsError> {
    let target = format!("/{UNITS}/{}", template(name));
    // A template without an instance is switched on as its default instance, or not at all.
    let name = match (name.split_once("@."), &install.default_instance) {
        (Some((stem, suffix)), Some(instance)) => format!("{stem}@{instance}.{suffix}"),
        (Some(_), None) => return Ok(()),
        (None, _) => name.to_owned(),
    };
    let dependants = [
        ("wants", &install.wanted_by),
        ("requires", &install.required_by),
        ("upholds", &install.upheld_by),
    ];
    for (kind, by) in dependants {
        for other in by {
            check_name(&name, other)?;
            let path = format!("{ENABLED}/{other}.{kind}/{name}");
            tree.insert(&path, Node::symlink(target.as_str()))?;
        }
    }
    for alias in &install.alias {
        check_name(&name, alias)?;
        tree.insert(&format!("{ENABLED}/{alias}"), Node::symlink(target.as_str()))?;
    }
    Ok(())
}

/// `a@b.service` is an instance of `a@.service`.
fn template(name: &str) -> String {
    match (name.split_once('@'), name.rsplit_once('.')) {
        (Some((stem, _)), Some((_, suffix))) => format!("{stem}@.{suffix}"),
        _ => name.to_owned(),
    }
}

fn check_name(unit: &str, name: &str) -> Result<(), PresetsError> {
    let good = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.contains('.') && name.chars().all(good) {
        return Ok(());
    }
    Err(PresetsError::Name { unit: unit.to_owned(), name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::merged_usr();
        for (path, text) in files {
            let node = match text.strip_prefix("-> ") {
                Some(target) => Node::symlink(target),
                None => Node::file(*text, 0o644),
            };
            tree.insert(&format!("usr/lib/systemd/{path}"), node).unwrap();
        }
        tree
    }

    fn links(tree: &Tree) -> Vec<String> {
        let below = tree.below(ENABLED).filter_map(|(path, node)| match &node.kind {
            Kind::Symlink(target) => {
                Some(format!("{} {}", &path[ENABLED.len() + 1..], target.rsplit_once('/')?.1))
            }
            _ => None,
        });
        below.collect()
    }

    #[test]
    fn the_first_matching_line_decides_and_the_default_is_off() {
        let mut tree = tree(&[
            (
                "system-preset/00-a.preset",
                "# x\nenable one.service\nenable two@.service x y\ndisable *\n",
            ),
            ("system-preset/90-b.preset", "enable three.service\n"),
            (
                "system/one.service",
                "[Unit]\nWantedBy=no.target\n[Install]\nWantedBy=multi-user.target\nAlias=uno.service\nAlso=one.socket\n",
            ),
            ("system/one.socket", "[Install]\nRequiredBy=sockets.target\n"),
            ("system/two@.service", "[Install]\nWantedBy=a.target b.target\n"),
            ("system/three.service", "[Install]\nWantedBy=multi-user.target\n"),
        ]);

        let on = apply(&mut tree).unwrap();

        assert_eq!(on.len(), 4);
        assert_eq!(
            links(&tree),
            [
                "a.target.wants/two@x.service two@.service",
                "a.target.wants/two@y.service two@.service",
                "b.target.wants/two@x.service two@.service",
                "b.target.wants/two@y.service two@.service",
                "multi-user.target.wants/one.service one.service",
                "sockets.target.requires/one.socket one.socket",
                "uno.service one.service",
            ]
        );
    }

    #[test]
    fn masked_units_and_templates_without_an_instance_stay_off() {
        let mut tree = tree(&[
            ("system-preset/00-a.preset", "enable *\n"),
            ("system/getty@.service", "-> /dev/null"),
            ("system/plain@.service", "[Install]\nWantedBy=a.target\n"),
            ("system/tty@.service", "[Install]\nWantedBy=a.target\nDefaultInstance=tty1\n"),
            ("system/static.service", "[Service]\nExecStart=/x\n"),
        ]);

        apply(&mut tree).unwrap();

        assert_eq!(links(&tree), ["a.target.wants/tty@tty1.service tty@.service"]);
    }

    #[test]
    fn without_presets_nothing_is_on() {
        let mut tree = tree(&[("system/a.service", "[Install]\nWantedBy=a.target\n")]);

        assert!(apply(&mut tree).unwrap().is_empty());
        assert!(links(&tree).is_empty());
    }

    #[test]
    fn a_preset_of_ours_for_a_unit_that_is_not_there_is_an_error() {
        let mut tree = tree(&[("system-preset/00-postern.preset", "enable typo.service\n")]);

        assert!(
            matches!(apply(&mut tree), Err(PresetsError::Absent { unit, .. }) if unit == "typo.service")
        );
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        let mut tree = tree(&[
            ("system-preset/00-a.preset", "enable *\n"),
            ("system/a.service", "[Install]\nAlias=../../shadow.service\n"),
        ]);

        assert!(matches!(apply(&mut tree), Err(PresetsError::Name { .. })));
    }
}
