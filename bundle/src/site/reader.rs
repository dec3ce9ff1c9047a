//! Walks the tree of a site file and collects every fault instead of stopping at the first.
//!
//! A value that is missing or wrong leaves a fault and a stand-in, so that reading goes on; the
//! path of the stand-in is remembered, and rules that look at it stay silent. Nothing built with a
//! stand-in leaves [`super::Site::parse`].

use std::collections::{BTreeMap, BTreeSet};

use super::fault::{Complaint, Fault, Place, Severity};
use super::tree::{Node, Value};

/// Where each key and value of the file stands, by path such as `boxes.vcse.admin.port`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Sheet {
    file: String,
    lines: Vec<String>,
    places: BTreeMap<String, Place>,
    wrong: BTreeSet<String>,
}

impl Sheet {
    /// An empty sheet of a file; the text is kept for the lines that faults show.
    pub(crate) fn new(file: &str, text: &str) -> Self {
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::to_owned).collect();
        Self { file: file.to_owned(), lines, ..Self::default() }
    }

    /// A fault at a path of the file, or at the nearest part of the path that is in the file.
    pub(crate) fn fault(&self, severity: Severity, path: &str, complaint: Complaint) -> Fault {
        self.fault_at(severity, self.place(path), complaint)
    }

    fn fault_at(&self, severity: Severity, place: Place, complaint: Complaint) -> Fault {
        let source_line = self.lines.get(place.line.saturating_sub(1)).cloned().unwrap_or_default();
        let Complaint { message, help } = complaint;
        Fault { severity, file: self.file.clone(), place, message, help, source_line }
    }

    fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return *place;
            }
            match path.strip_suffix(":key").or_else(|| Some(path.rsplit_once('.')?.0)) {
                Some(parent) => path = parent,
                None => return Place { line: 1, column: 1, length: 1 },
            }
        }
    }

    /// Whether this path, something above it or something below it has a stand-in.
    pub(crate) fn is_wrong(&self, path: &str) -> bool {
        let below = format!("{path}.");
        self.wrong.iter().any(|wrong| {
            wrong.is_empty()
                || wrong == path
                || wrong.starts_with(&below)
                || path.strip_prefix(wrong.as_str()).is_some_and(|rest| rest.starts_with('.'))
        })
    }
}

/// A type that one scalar of the file can be.
pub(crate) trait FromScalar: Sized {
    /// Reads the text of a scalar.
    fn from_scalar(text: &str) -> Result<Self, Complaint>;
    /// Stands in for a value that is wrong.
    fn stand_in() -> Self;
}

/// Collects faults while the tree is read.
#[derive(Debug)]
pub(crate) struct Reader {
    /// Where everything stands.
    pub(crate) sheet: Sheet,
    /// What was wrong so far.
    pub(crate) faults: Vec<Fault>,
}

impl Reader {
    /// A reader of this file.
    pub(crate) fn new(file: &str, text: &str) -> Self {
        Self { sheet: Sheet::new(file, text), faults: Vec::new() }
    }

    /// Notes an error at a path and that its value is a stand-in.
    pub(crate) fn wrong(&mut self, path: &str, complaint: Complaint) {
        self.sheet.wrong.insert(path.to_owned());
        self.faults.push(self.sheet.fault(Severity::Error, path, complaint));
    }

    /// Notes an error at a place that has no path.
    pub(crate) fn wrong_at(&mut self, place: Place, complaint: Complaint) {
        self.faults.push(self.sheet.fault_at(Severity::Error, place, complaint));
    }

    /// Opens a map whose keys are all in `known`.
    pub(crate) fn table<'t>(&mut self, path: &str, node: &'t Node, known: &[&str]) -> Table<'t> {
        let table = self.entries(path, node, &known.join(", "));
        for (key, _) in &table.entries {
            if !known.contains(&key.as_str()) {
                let place = self.sheet.place(&format!("{}:key", join(path, key)));
                self.wrong_at(place, unknown("key", key, known.iter().copied()));
                // The key that was meant is not missing as well.
                if let Some(meant) = nearest(key, known.iter().copied())
                    && table.get(meant).is_none()
                {
                    self.sheet.wrong.insert(join(path, meant));
                }
            }
        }
        table
    }

    /// Opens a map whose keys the user chooses.
    pub(crate) fn entries<'t>(&mut self, path: &str, node: &'t Node, keys: &str) -> Table<'t> {
        let mut table = Table { path: path.to_owned(), entries: Vec::new() };
        let Value::Map(entries) = &node.value else {
            let message = format!("expected keys with values, found {}", node.value.describe());
            self.wrong(
                path,
                Complaint::new(message, format!("write `key: value` lines; keys: {keys}")),
            );
            return table;
        };
        for (key, value) in entries {
            let Value::Scalar { text, .. } = &key.value else {
                let message = format!("a key must be one word, found {}", key.value.describe());
                self.wrong_at(key.place, Complaint::new(message, format!("known keys: {keys}")));
                continue;
            };
            let below = join(path, text);
            if table.get(text).is_some() {
                let first = self.sheet.place(&below).line;
                let message = format!("key `{text}` is here for the second time");
                let help = format!("the first one is in line {first}; keep one of them");
                self.wrong_at(key.place, Complaint::new(message, help));
                continue;
            }
            // A list or map is pointed at by its key, a single value by itself.
            let place = match &value.value {
                Value::Scalar { .. } => value.place,
                _ => key.place,
            };
            self.sheet.places.insert(below.clone(), place);
            self.sheet.places.insert(format!("{below}:key"), key.place);
            table.entries.push((text.clone(), value));
        }
        table
    }

    /// Opens a map again whose faults are already noted.
    pub(crate) fn reopen<'t>(&mut self, path: &str, node: &'t Node) -> Table<'t> {
        let noted = self.faults.len();
        let table = self.entries(path, node, "");
        self.faults.truncate(noted);
        table
    }

    /// Reads a key that the user chooses as the name of what is below it.
    pub(crate) fn key<T: FromScalar>(&mut self, path: &str, key: &str) -> T {
        T::from_scalar(key).unwrap_or_else(|complaint| {
            self.wrong(&format!("{path}:key"), complaint);
            T::stand_in()
        })
    }

    /// Reads the items of a list; a single value counts as a list of one.
    pub(crate) fn list<T>(
        &mut self,
        path: &str,
        node: &Node,
        mut item: impl FnMut(&mut Self, &str, &Node) -> T,
    ) -> Vec<T> {
        let items = match &node.value {
            Value::List(items) => items.as_slice(),
            Value::Scalar { .. } => std::slice::from_ref(node),
            other => {
                let message = format!("expected a list, found {}", other.describe());
                self.wrong(
                    path,
                    Complaint::new(message, "write [first, second] or one `- item` per line"),
                );
                &[]
            }
        };
        let mut read = Vec::new();
        for (index, node) in items.iter().enumerate() {
            let below = join(path, &index.to_string());
            self.sheet.places.insert(below.clone(), node.place);
            read.push(item(self, &below, node));
        }
        read
    }

    /// Reads the items of a list of tables; a single table counts as a list of one.
    pub(crate) fn list_or_one<T>(
        &mut self,
        path: &str,
        node: &Node,
        mut item: impl FnMut(&mut Self, &str, &Node) -> T,
    ) -> Vec<T> {
        if !matches!(node.value, Value::Map(_)) {
            return self.list(path, node, item);
        }
        let below = join(path, "0");
        self.sheet.places.insert(below.clone(), self.sheet.place(path));
        vec![item(self, &below, node)]
    }

    /// Reads one scalar.
    pub(crate) fn scalar<T: FromScalar>(&mut self, path: &str, node: &Node) -> T {
        let Value::Scalar { text, .. } = &node.value else {
            let message = format!("expected a single value, found {}", node.value.describe());
            let help = match T::from_scalar("") {
                Err(complaint) => complaint.help,
                Ok(_) => String::new(),
            };
            self.wrong(path, Complaint::new(message, help));
            return T::stand_in();
        };
        T::from_scalar(text).unwrap_or_else(|complaint| {
            self.wrong(path, complaint);
            T::stand_in()
        })
    }

    /// The value of a key that must be there.
    pub(crate) fn need<'t>(&mut self, table: &Table<'t>, key: &str) -> Option<&'t Node> {
        let node = table.get(key);
        let path = table.at(key);
        let noted = |path: &String| self.sheet.wrong.contains(path);
        if node.is_none() && !noted(&table.path) && !noted(&path) {
            let whom = match table.path.is_empty() {
                true => "the site".to_owned(),
                false => format!("`{}`", table.path),
            };
            let message = format!("{whom} has no `{key}`");
            let help =
                format!("add `{key}: ...`; docs/site-file.md shows each key with an example");
            // The key that has the table, not its first line, is what lacks something.
            let place = self.sheet.place(&format!("{}:key", table.path));
            self.wrong_at(place, Complaint::new(message, help));
            self.sheet.wrong.insert(path);
        }
        node
    }

    /// Reads a scalar that must be there.
    pub(crate) fn need_scalar<T: FromScalar>(&mut self, table: &Table<'_>, key: &str) -> T {
        match self.need(table, key) {
            Some(node) => self.scalar(&table.at(key), node),
            None => T::stand_in(),
        }
    }

    /// Reads a scalar that may be there.
    pub(crate) fn may_scalar<T: FromScalar>(&mut self, table: &Table<'_>, key: &str) -> Option<T> {
        let node = table.get(key)?;
        Some(self.scalar(&table.at(key), node))
    }

    /// Reads a list of scalars; empty when the key is absent.
    pub(crate) fn may_scalars<T: FromScalar>(&mut self, table: &Table<'_>, key: &str) -> Vec<T> {
        match table.get(key) {
            Some(node) => self.list(&table.at(key), node, Self::scalar),
            None => Vec::new(),
        }
    }

    /// Reads a list of scalars that must be there and not be empty.
    pub(crate) fn need_scalars<T: FromScalar>(&mut self, table: &Table<'_>, key: &str) -> Vec<T> {
        let Some(node) = self.need(table, key) else { return Vec::new() };
        self.not_empty(table, key, node);
        self.list(&table.at(key), node, Self::scalar)
    }

    /// Complains of an empty list.
    pub(crate) fn not_empty(&mut self, table: &Table<'_>, key: &str, node: &Node) {
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            let message = format!("`{key}` is empty");
            self.wrong(&table.at(key), Complaint::new(message, "name at least one"));
        }
    }
}

/// A map of the file, opened.
#[derive(Clone, Debug)]
pub(crate) struct Table<'t> {
    /// Its path; empty for the whole file.
    pub(crate) path: String,
    /// Keys and values in the order of the file, each key once.
    pub(crate) entries: Vec<(String, &'t Node)>,
}

impl<'t> Table<'t> {
    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&'t Node> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, node)| *node)
    }

    /// The path of a key.
    pub(crate) fn at(&self, key: &str) -> String {
        join(&self.path, key)
    }
}

/// The path of what is below another.
pub(crate) fn join(path: &str, key: &str) -> String {
    match path.is_empty() {
        true => key.to_owned(),
        false => format!("{path}.{key}"),
    }
}

/// A complaint of a word that is not among the known ones, with the nearest of them.
pub(crate) fn unknown<'a>(
    what: &str,
    word: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Complaint {
    let all = known.clone().collect::<Vec<_>>().join(", ");
    let help = match nearest(word, known) {
        Some(nearest) => format!("did you mean `{nearest}`? Known here: {all}"),
        None => format!("known here: {all}"),
    };
    let word: String = word.chars().take(60).collect();
    Complaint::new(format!("unknown {what} `{word}`"), help)
}

/// The known word that was probably meant.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, nearest) =
        known.map(|candidate| (distance(word, candidate), candidate)).min()?;
    (distance <= nearest.len().div_ceil(2)).then_some(nearest)
}

/// Levenshtein's distance, case ignored, on the first 64 characters.
fn distance(a: &str, b: &str) -> usize {
    let letters = |s: &str| s.chars().take(64).flat_map(char::to_lowercase).collect::<Vec<_>>();
    let (a, b) = (letters(a), letters(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
