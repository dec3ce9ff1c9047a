//! Chooses packages: what the recipe asks for and all that these depend on.
//!
//! For each dependency the first alternative that exists is taken, unless one is chosen or left out
//! already; of several versions the newest. There is no search: when the outcome leaves a
//! dependency unmet, or brings two packages that conflict, that is an error for a person to solve
//! with an explicit pick in the recipe. Recommends are never followed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{deb822, version};

/// A package as an index of the archive describes it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its version.
    pub(crate) version: &'a str,
    /// The suite whose index lists it.
    pub(crate) suite: &'a str,
    /// Where it is, below the base address of the archive.
    pub(crate) path: &'a str,
    /// Bytes of the .deb.
    pub(crate) size: u64,
    /// SHA-256 of the .deb, in hexadecimal.
    pub(crate) sha256: &'a str,
    /// `Pre-Depends` and `Depends`.
    depends: Vec<Vec<Relation<'a>>>,
    /// `Provides`.
    provides: Vec<Relation<'a>>,
    /// `Conflicts` and `Breaks`.
    conflicts: Vec<Relation<'a>>,
}

/// `name` or `name (>= version)`.
#[derive(Clone, Copy, Debug)]
struct Relation<'a> {
    name: &'a str,
    version: Option<&'a str>,
}

/// The newest version of each package in several suites' indexes.
#[derive(Debug, Default)]
pub(crate) struct Catalogue<'a> {
    newest: BTreeMap<&'a str, Candidate<'a>>,
    /// Real packages by the virtual name that they provide.
    providers: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

/// Why there is no set of packages.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ResolveError {
    /// No suite has it.
    #[error("no suite has a package `{name}`, which {wanted_by} asks for")]
    Missing {
        /// The package or virtual package.
        name: String,
        /// The recipe or a package.
        wanted_by: String,
    },
    /// A version is too old or too new.
    #[error("`{package}` needs `{clause}`, which the chosen packages do not meet")]
    Unmet {
        /// Which one.
        package: String,
        /// Its dependency.
        clause: String,
    },
    /// Two chosen packages exclude each other.
    #[error("`{package}` cannot be together with `{other}`")]
    Conflict {
        /// The one that says so.
        package: String,
        /// The other.
        other: String,
    },
    /// The meta-package of the kernel names no kernel.
    #[error("`{0}` depends on no package `linux-image-…`")]
    NoKernel(String),
}

impl<'a> Catalogue<'a> {
    /// Adds a suite's `Packages` index, keeping those of `architecture` and `all`.
    pub(crate) fn add(&mut self, suite: &'a str, index: &'a str) {
        for paragraph in deb822::paragraphs(index) {
            let Some(candidate) = candidate(suite, &paragraph) else { continue };
            let newer = self.newest.get(candidate.name).is_none_or(|old| {
                version::compare(candidate.version, old.version) == std::cmp::Ordering::Greater
            });
            if newer {
                for provided in &candidate.provides {
                    self.providers.entry(provided.name).or_default().insert(candidate.name);
                }
                self.newest.insert(candidate.name, candidate);
            }
        }
    }

    /// The kernel that a meta-package such as `linux-image-amd64` stands for at present.
    ///
    /// # Errors
    ///
    /// Returns an error when the meta-package does not exist or names no kernel.
    pub(crate) fn kernel(&self, meta: &str) -> Result<&'a str, ResolveError> {
        let package = self.newest.get(meta).ok_or_else(|| ResolveError::Missing {
            name: meta.to_owned(),
            wanted_by: "the recipe's kernel".to_owned(),
        })?;
        let names = package.depends.iter().flatten().map(|relation| relation.name);
        names
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
            .ok_or_else(|| ResolveError::NoKernel(meta.to_owned()))
    }

    /// The packages `roots` with their dependencies, without those in `leave_out`, by name.
    ///
    /// # Errors
    ///
    /// Returns the first thing that does not fit together.
    pub(crate) fn resolve(
        &self,
        roots: &[&str],
        leave_out: &BTreeSet<&str>,
    ) -> Result<BTreeMap<&'a str, &Candidate<'a>>, ResolveError> {
        let mut chosen: BTreeMap<&str, &Candidate<'_>> = BTreeMap::new();
        let mut todo: VecDeque<(&str, &str)> =
            roots.iter().map(|name| (*name, "the recipe")).collect();
        while let Some((name, wanted_by)) = todo.pop_front() {
            if leave_out.contains(name) || self.has(&chosen, name) {
                continue;
            }
            let package = self.find(name).ok_or_else(|| ResolveError::Missing {
                name: name.to_owned(),
                wanted_by: wanted_by.to_owned(),
            })?;
            chosen.insert(package.name, package);
            for clause in &package.depends {
                let settled = clause.iter().any(|relation| {
                    leave_out.contains(relation.name)
                        || roots.contains(&relation.name)
                        || self.has(&chosen, relation.name)
                });
                if settled {
                    continue;
                }
                let first = clause.iter().find(|relation| self.newest.contains_key(relation.name));
                let Some(first) = first.or_else(|| clause.first()) else { continue };
                todo.push_back((first.name, package.name));
            }
        }
        self.check(&chosen, leave_out)?;
        Ok(chosen)
    }

    /// A real package of that name, else the first by name that provides it.
    fn find(&self, name: &str) -> Option<&Candidate<'a>> {
        self.newest.get(name).or_else(|| self.newest.get(self.providers.get(name)?.first()?))
    }

    fn has(&self, chosen: &BTreeMap<&str, &Candidate<'_>>, name: &str) -> bool {
        chosen.contains_key(name)
            || self
                .providers
                .get(name)
                .is_some_and(|names| names.iter().any(|name| chosen.contains_key(name)))
    }

    fn check(
        &self,
        chosen: &BTreeMap<&str, &Candidate<'_>>,
        leave_out: &BTreeSet<&str>,
    ) -> Result<(), ResolveError> {
        let meets = |package: &Candidate<'_>, relation: &Relation<'_>| {
            let of_real = (package.name == relation.name).then_some(Some(package.version));
            let of_virtual = package.provides.iter().find(|p| p.name == relation.name);
            let of_virtual =
                of_virtual.map(|p| p.version.map(|v| v.trim_start_matches(['=', ' '])));
            of_real.or(of_virtual).is_some_and(|offered| match (relation.version, offered) {
                (None, _) => true,
                (Some(wanted), Some(offered)) => version::satisfies(offered, wanted),
                (Some(_), None) => false,
            })
        };
        for package in chosen.values() {
            for clause in &package.depends {
                let met = clause.iter().any(|relation| {
                    leave_out.contains(relation.name)
                        || chosen.values().any(|other| meets(other, relation))
                });
                if !met {
                    let alternatives: Vec<String> = clause
                        .iter()
                        .map(|r| format!("{} {}", r.name, r.version.unwrap_or_default()))
                        .collect();
                    return Err(ResolveError::Unmet {
                        package: package.name.to_owned(),
                        clause: alternatives.join("| ").trim_end().to_owned(),
                    });
                }
            }
            for relation in &package.conflicts {
                let other = chosen
                    .values()
                    .find(|other| other.name != package.name && meets(other, relation));
                if let Some(other) = other {
                    return Err(ResolveError::Conflict {
                        package: package.name.to_owned(),
                        other: other.name.to_owned(),
                    });
                }
            }
        }
        Ok(())
    }
}

fn candidate<'a>(suite: &'a str, paragraph: &deb822::Paragraph<'a>) -> Option<Candidate<'a>> {
    let relations = |field: &str| {
        paragraph.get(field).into_iter().flat_map(clauses).flatten().collect::<Vec<_>>()
    };
    let depends = ["Pre-Depends", "Depends"].into_iter().filter_map(|field| paragraph.get(field));
    Some(Candidate {
        name: paragraph.get("Package")?,
        version: paragraph.get("Version")?,
        suite,
        path: paragraph.get("Filename")?,
        size: paragraph.get("Size")?.parse().ok()?,
        sha256: paragraph.get("SHA256")?,
        depends: depends.flat_map(clauses).collect(),
        provides: relations("Provides"),
        conflicts: ["Conflicts", "Breaks"].into_iter().flat_map(relations).collect(),
    })
}

/// `a (>= 1) | b, c:any` as clauses of alternatives.
fn clauses(field: &str) -> impl Iterator<Item = Vec<Relation<'_>>> {
    field.split(',').map(|clause| clause.split('|').filter_map(relation).collect())
}

fn relation(text: &str) -> Option<Relation<'_>> {
    let text = text.trim();
    let (name, rest) = text.split_once([' ', '(']).unwrap_or((text, ""));
    let name = name.split(':').next().filter(|name| !name.is_empty())?;
    let version = rest.trim().trim_start_matches('(').split(')').next();
    Some(Relation { name, version: version.map(str::trim).filter(|v| !v.is_empty()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, fields: &str) -> String {
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}\n\
             Size: 1\nSHA256: 00\n{fields}\n"
        )
    }

    fn names(
        indexes: &[(&str, &str)],
        roots: &[&str],
        leave_out: &[&str],
    ) -> Result<Vec<String>, ResolveError> {
        let mut catalogue = Catalogue::default();
        for (suite, index) in indexes {
            catalogue.add(suite, index);
        }
        let chosen = catalogue.resolve(roots, &leave_out.iter().copied().collect())?;
        Ok(chosen.values().map(|c| format!("{}={} {}", c.name, c.version, c.suite)).collect())
    }

    #[test]
    fn the_newest_version_and_the_first_alternative_are_chosen() {
        let main = [
            package("a", "1", "Depends: x | b (>= 1), v, shell"),
            package("b", "1", ""),
            package("p2", "1", "Provides: v"),
            package("p1", "1", "Provides: v (= 3)"),
            package("shell", "1", "Depends: world"),
        ]
        .join("\n");
        let security = package("b", "1+deb13u1", "Pre-Depends: p2:any");

        let chosen = names(&[("s", &main), ("s-security", &security)], &["a"], &["shell"]).unwrap();

        assert_eq!(chosen, ["a=1 s", "b=1+deb13u1 s-security", "p1=1 s", "p2=1 s"]);
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_names_both() {
        let index = [
            package("a", "1", "Depends: b (>= 2)"),
            package("b", "1", ""),
            package("c", "1", "Breaks: b (<< 2)"),
            package("d", "1", "Depends: nowhere"),
        ]
        .join("\n");
        let resolve = |roots: &[&str]| names(&[("s", &index)], roots, &[]).unwrap_err();

        assert_eq!(
            resolve(&["a"]),
            ResolveError::Unmet { package: "a".into(), clause: "b >= 2".into() }
        );
        assert_eq!(
            resolve(&["b", "c"]),
            ResolveError::Conflict { package: "c".into(), other: "b".into() }
        );
        assert_eq!(
            resolve(&["d"]),
            ResolveError::Missing { name: "nowhere".into(), wanted_by: "d".into() }
        );
    }

    #[test]
    fn the_kernel_is_what_the_meta_package_depends_on() {
        let index = package(
            "linux-image-amd64",
            "6.12-1",
            "Depends: linux-image-6.12.1+deb13-amd64 (= 6.12-1)",
        );
        let mut catalogue = Catalogue::default();
        catalogue.add("s", &index);

        assert_eq!(catalogue.kernel("linux-image-amd64"), Ok("linux-image-6.12.1+deb13-amd64"));
    }
}
