//! Makes users and groups from sysusers.d(5) files: `etc/passwd`, `group`, `shadow`, `gshadow`.
//!
//! A host's systemd-sysusers is not used: older ones drop lines that they do not know. Numbers never
//! depend on what is installed: a name without a number in its line has one in the recipe.
//!
//! Left out: passwords (none are set, no account can log in), `r` lines (nothing is allocated).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::tree::{InsertError, Node, Tree};

const FOLDER: &str = "usr/lib/sysusers.d";
const NO_LOGIN: &str = "/usr/sbin/nologin";

/// Why the accounts cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountsError {
    /// A line is not understood.
    #[error("{file}: `{line}`: {reason}")]
    Line {
        /// In which file.
        file: String,
        /// The line.
        line: String,
        /// What is wrong.
        reason: String,
    },
    /// A name has no number.
    #[error("`{0}` has no number: add it to `ids` in the recipe, the same for ever")]
    NoNumber(String),
    /// A number is taken.
    #[error("`{name}` and `{other}` have the same number {number}")]
    Twice {
        /// One of them.
        name: String,
        /// The other.
        other: String,
        /// The number.
        number: u32,
    },
    /// A file cannot be put into the tree.
    #[error(transparent)]
    Insert(#[from] InsertError),
}

/// The users and groups of the image.
#[derive(Clone, Debug, Default)]
pub(super) struct Accounts {
    users: BTreeMap<String, User>,
    groups: BTreeMap<String, Group>,
}

#[derive(Clone, Debug)]
struct User {
    number: u32,
    group: u32,
    description: String,
    home: String,
}

#[derive(Clone, Debug)]
struct Group {
    number: u32,
    members: Vec<String>,
}

impl Accounts {
    /// Reads all sysusers.d files of the tree.
    ///
    /// # Errors
    ///
    /// Returns the first line that does not work.
    pub(super) fn read(tree: &Tree, ids: &BTreeMap<String, u32>) -> Result<Self, AccountsError> {
        let mut lines = Vec::new();
        for (file, _) in tree.entries(FOLDER) {
            let text = tree.read_text(&format!("{FOLDER}/{file}")).unwrap_or_default();
            for line in text.lines().map(str::trim) {
                if !line.is_empty() && !line.starts_with('#') {
                    lines.push((file, line, split_words(line)));
                }
            }
        }
        let mut accounts = Self::default();
        // Groups first, so that a user's line can name one of a later file.
        for kinds in ["g", "u", "m"] {
            for (file, line, words) in &lines {
                let kind = words.first().map_or("", |word| word.trim_end_matches('!'));
                if !matches!(kind, "g" | "u" | "m" | "r") {
                    return Err(fail(file, line, "only lines of type g, u, m, r are known"));
                }
                if kind == kinds {
                    accounts.apply(kind, words, ids).map_err(|error| match error {
                        Refused::Line(reason) => fail(file, line, reason),
                        Refused::Other(error) => error,
                    })?;
                }
            }
        }
        Ok(accounts)
    }

    fn apply(
        &mut self,
        kind: &str,
        words: &[String],
        ids: &BTreeMap<String, u32>,
    ) -> Result<(), Refused> {
        let field = |index: usize| {
            words.get(index).map(String::as_str).filter(|word| !matches!(*word, "" | "-"))
        };
        let name = field(1).ok_or(Refused::Line("it has no name"))?;
        if !is_name(name) {
            return Err(Refused::Line("the name is not one of a user or group"));
        }
        if kind == "m" {
            let group = field(2).ok_or(Refused::Line("it has no group"))?;
            let group = self.groups.get_mut(group).ok_or(Refused::Line("no such group"))?;
            if !group.members.iter().any(|member| member == name) {
                group.members.push(name.to_owned());
            }
            return Ok(());
        }
        let (number, group) = match field(2) {
            None => (None, None),
            Some(id) => match id.split_once(':') {
                Some((number, group)) => (Some(number), Some(group)),
                None => (Some(id), None),
            },
        };
        let number = match number.map(str::parse) {
            Some(Ok(number)) => number,
            Some(Err(_)) => return Err(Refused::Line("the number is none")),
            None => *ids
                .get(name)
                .ok_or_else(|| Refused::Other(AccountsError::NoNumber(name.to_owned())))?,
        };
        if kind == "g" {
            return self.add_group(name, number);
        }
        let group = match group {
            None => {
                self.add_group(name, number)?;
                self.groups.get(name).map_or(number, |group| group.number)
            }
            Some(group) => match group.parse() {
                Ok(number) => number,
                Err(_) => self.groups.get(group).ok_or(Refused::Line("no such group"))?.number,
            },
        };
        let home = field(4).unwrap_or("/").to_owned();
        let description = field(3).unwrap_or(name).to_owned();
        if description.contains([':', '\n']) || home.contains([':', '\n']) {
            return Err(Refused::Line("a colon has no place in passwd"));
        }
        if let Some((other, _)) = self.users.iter().find(|(n, u)| u.number == number && *n != name)
        {
            return Err(twice(name, other, number));
        }
        self.users.entry(name.to_owned()).or_insert(User { number, group, description, home });
        Ok(())
    }

    fn add_group(&mut self, name: &str, number: u32) -> Result<(), Refused> {
        if self.groups.contains_key(name) {
            return Ok(());
        }
        if let Some((other, _)) = self.groups.iter().find(|(_, group)| group.number == number) {
            return Err(twice(name, other, number));
        }
        self.groups.insert(name.to_owned(), Group { number, members: Vec::new() });
        Ok(())
    }

    /// The number of a user, by name or number.
    pub(super) fn user(&self, name: &str) -> Option<u32> {
        name.parse().ok().or_else(|| Some(self.users.get(name)?.number))
    }

    /// The number of a group, by name or number.
    pub(super) fn group(&self, name: &str) -> Option<u32> {
        name.parse().ok().or_else(|| Some(self.groups.get(name)?.number))
    }

    /// Writes the four files, sorted by number.
    ///
    /// # Errors
    ///
    /// Returns an error when something is in their way.
    pub(super) fn write(&self, tree: &mut Tree) -> Result<(), AccountsError> {
        let mut users: Vec<(&String, &User)> = self.users.iter().collect();
        users.sort_by_key(|(_, user)| user.number);
        let mut groups: Vec<(&String, &Group)> = self.groups.iter().collect();
        groups.sort_by_key(|(_, group)| group.number);
        let (mut passwd, mut shadow) = (String::new(), String::new());
        for (name, user) in users {
            let User { number, group, description, home } = user;
            let _ = writeln!(passwd, "{name}:x:{number}:{group}:{description}:{home}:{NO_LOGIN}");
            let _ = writeln!(shadow, "{name}:!*:::::::");
        }
        let (mut group_file, mut gshadow) = (String::new(), String::new());
        for (name, group) in groups {
            let members = group.members.join(",");
            let _ = writeln!(group_file, "{name}:x:{}:{members}", group.number);
            let _ = writeln!(gshadow, "{name}:!*::{members}");
        }
        let shadow_group = self.group("shadow").unwrap_or_default();
        for (path, text, secret) in [
            ("etc/passwd", passwd, false),
            ("etc/group", group_file, false),
            ("etc/shadow", shadow, true),
            ("etc/gshadow", gshadow, true),
        ] {
            let node = Node::file(text, if secret { 0o640 } else { 0o644 });
            tree.insert(path, node.owned_by(0, if secret { shadow_group } else { 0 }))?;
        }
        Ok(())
    }
}

enum Refused {
    Line(&'static str),
    Other(AccountsError),
}

fn fail(file: &str, line: &str, reason: &str) -> AccountsError {
    AccountsError::Line { file: file.into(), line: line.into(), reason: reason.into() }
}

fn twice(name: &str, other: &str, number: u32) -> Refused {
    Refused::Other(AccountsError::Twice { name: name.into(), other: other.into(), number })
}

fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    name.len() <= 31 && name.chars().all(good) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Splits at white space, save inside double or single quotes.
pub(super) fn split_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(files: &[(&str, &str)]) -> Result<Tree, AccountsError> {
        let mut tree = Tree::merged_usr();
        for (name, text) in files {
            tree.insert(&format!("{FOLDER}/{name}"), Node::file(*text, 0o644)).unwrap();
        }
        let ids = BTreeMap::from([("bus".to_owned(), 996), ("net".to_owned(), 998)]);
        Accounts::read(&tree, &ids)?.write(&mut tree)?;
        Ok(tree)
    }

    #[test]
    fn every_kind_of_line_is_made() {
        let tree = accounts(&[
            (
                "10-a.conf",
                "# note\nu root 0 - /root /bin/bash\nu nobody 65534:65534 - /none\n\
                 u! net - \"The Network\"\nm net tty\nu bus -\n",
            ),
            ("20-b.conf", "g tty 5 -\ng nogroup 65534\nu lp 7:tty - /var/spool/lpd\n"),
        ])
        .unwrap();

        assert_eq!(
            tree.read_text("etc/passwd").unwrap(),
            "root:x:0:0:root:/root:/usr/sbin/nologin\n\
             lp:x:7:5:lp:/var/spool/lpd:/usr/sbin/nologin\n\
             bus:x:996:996:bus:/:/usr/sbin/nologin\n\
             net:x:998:998:The Network:/:/usr/sbin/nologin\n\
             nobody:x:65534:65534:nobody:/none:/usr/sbin/nologin\n"
        );
        assert_eq!(
            tree.read_text("etc/group").unwrap(),
            "root:x:0:\ntty:x:5:net\nbus:x:996:\nnet:x:998:\nnogroup:x:65534:\n"
        );
        assert!(tree.read_text("etc/shadow").unwrap().starts_with("root:!*:::::::\n"));
        assert_eq!(tree.get("etc/shadow").unwrap().mode, 0o640);
    }

    #[test]
    fn a_name_without_a_number_is_refused() {
        let error = accounts(&[("a.conf", "u ghost -\n")]).unwrap_err().to_string();
        assert!(error.contains("`ghost`") && error.contains("ids"), "{error}");
    }

    #[test]
    fn a_number_is_given_once() {
        let error = accounts(&[("a.conf", "u a 5\nu b 5\n")]).unwrap_err();
        assert!(matches!(error, AccountsError::Twice { number: 5, .. }), "{error}");
    }

    #[test]
    fn a_line_that_is_not_understood_is_named() {
        for line in ["x a 1", "u a b", "u a:b 1", "m a nowhere", "u"] {
            let error = accounts(&[("a.conf", line)]).unwrap_err().to_string();
            assert!(error.contains("a.conf") && error.contains(line), "{error}");
        }
    }
}
