//! The YAML of a site file as a tree in which every key and value knows its place.
//!
//! serde stops at the first thing that it does not like, so a derived `Deserialize` can report one
//! fault per run. Here everything that is YAML at all becomes a [`Node`]; the reader walks the tree
//! afterwards and can find fault as often as it likes. This is the only module that knows which
//! YAML crate is used.
//!
//! Specification: YAML 1.2.2 without anchors, aliases, merge keys and foreign tags; one document;
//! booleans are `true` and `false` only.
//!
//! # Invariants
//!
//! 1. Text of any kind gives a tree or one fault; it never panics and never grows beyond the budget.
//! 2. A plain scalar keeps its text as written: `010` stays `010`, `no` stays `no`.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_yaml::{Location, Options, Spanned};

use super::fault::{Complaint, Place};

/// The longest site file, in bytes; the bundle's "site" section holds no more.
pub const MAX_BYTES: usize = 256 * 1024;
const MAX_DEPTH: usize = 16;
const MAX_NODES: usize = 20_000;

/// What stands in one place of the file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Node {
    /// Where it stands; a map's place is its first key.
    pub(crate) place: Place,
    /// What it is.
    pub(crate) value: Value,
}

/// The four things that YAML has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Value {
    /// Nothing after the colon, `~` or `null`.
    Nothing,
    /// One word or text.
    Scalar {
        /// As written; without its quotes.
        text: String,
        /// Whether it was quoted, so that `"7"` is told apart from `7`.
        quoted: bool,
    },
    /// `[a, b]` or lines that begin with `- `.
    List(Vec<Node>),
    /// `key: value` pairs in the order of the file; keys may repeat.
    Map(Vec<(Node, Node)>),
}

impl Value {
    /// What it is, for a sentence such as "expected a list, found ...".
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Scalar { .. } => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "keys with values",
        }
    }
}

/// Reads a whole file.
///
/// # Errors
///
/// Returns where and why the text is not the YAML that we take.
pub(crate) fn parse(text: &str) -> Result<Node, (Place, Complaint)> {
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes, more than {MAX_BYTES}", text.len());
        let help = "a site file says what differs; keep certificates and notes in other files";
        return Err((Place { line: 1, column: 1, length: 1 }, Complaint::new(message, help)));
    }
    match serde_yaml::from_str_with_options::<Spanned<Raw>>(text, options()) {
        Ok(raw) => Ok(node(raw, text)),
        Err(error) => Err(refuse(&error, text)),
    }
}

fn options() -> Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_anchors: 0,
            max_aliases: 0,
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
        },
        strict_booleans: true,
        // The reader reports every repeated key, not just the first.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn refuse(error: &serde_yaml::Error, text: &str) -> (Place, Complaint) {
    let place = error.location().map_or(Place { line: 1, column: 1, length: 1 }, |l| place(&l));
    let words = error.to_string();
    let words = words.rsplit_once(" at line ").map_or(words.as_str(), |(message, _)| message);
    let line = text.lines().nth(place.line.saturating_sub(1)).unwrap_or_default();
    let (message, help) = if words.contains("Anchors") || words.contains("alias") {
        ("anchors (&name) and aliases (*name) are not taken", "write the value out in each place")
    } else if words.contains("budget") || words.contains("depth") || words.contains("nesting") {
        ("nested too deep or too long", "a site file has at most 16 levels and 20000 values")
    } else if words.contains("multiple YAML documents") {
        ("a second document begins here", "a site file is one document; remove the line `---`")
    } else if words.contains("tag") {
        ("tags (!name) are not taken", "remove the tag; the key alone decides the type")
    } else if words.contains("tabs") || line.starts_with('\t') {
        ("a tab indents this line", "indent with spaces")
    } else if words.contains("mapping values are not allowed") {
        ("a second `: ` on this line", "quote the value if it contains a colon and a space")
    } else {
        return (
            place,
            Complaint::new(
                format!("not YAML: {words}"),
                "check brackets, quotes and the indentation above",
            ),
        );
    };
    (place, Complaint::new(message, help))
}

fn place(location: &Location) -> Place {
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).max(1);
    let length = usize::try_from(location.span().len()).unwrap_or(1);
    Place { line: number(location.line()), column: number(location.column()), length }
}

/// serde's view of a node; scalars other than strings are read again from the text.
enum Raw {
    Nothing,
    Plain,
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<Self>, Spanned<Self>)>),
}

/// Bounded by [`MAX_DEPTH`], which the parser has enforced.
fn node(raw: Spanned<Raw>, text: &str) -> Node {
    let mut at = place(&raw.referenced);
    let written = written(&raw.referenced, text);
    let value = match raw.value {
        Raw::Nothing => Value::Nothing,
        Raw::Plain => Value::Scalar { text: written.trim().to_owned(), quoted: false },
        Raw::Text(string) => {
            Value::Scalar { text: string, quoted: written.starts_with(['"', '\'', '|', '>']) }
        }
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, text)).collect()),
        Raw::Map(entries) => {
            Value::Map(entries.into_iter().map(|(k, v)| (node(k, text), node(v, text))).collect())
        }
    };
    if let Value::Map(entries) = &value
        && let Some((key, _)) = entries.first()
    {
        at = key.place;
    }
    at.length = at.length.max(1);
    Node { place: at, value }
}

fn written<'t>(location: &Location, text: &'t str) -> &'t str {
    let span = location.span();
    let range = span.byte_offset().zip(span.byte_len()).and_then(|(offset, length)| {
        let offset = usize::try_from(offset).ok()?;
        Some(offset..offset.checked_add(usize::try_from(length).ok()?)?)
    });
    range.and_then(|range| text.get(range)).unwrap_or_default()
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(text: &str, key: &str) -> (String, bool) {
        let Value::Map(entries) = parse(text).unwrap().value else { panic!("not a map") };
        entries
            .into_iter()
            .find_map(|(k, v)| match (k.value, v.value) {
                (Value::Scalar { text: k, .. }, Value::Scalar { text, quoted }) if k == key => {
                    Some((text, quoted))
                }
                _ => None,
            })
            .unwrap()
    }

    #[test]
    fn plain_scalars_keep_their_text() {
        let text = "a: 010\nb: no\nc: 0x10\nd: .inf\ne: 1_000 # comment\nf: \"7\"\ng: true\n";
        for (key, expected, quoted) in [
            ("a", "010", false),
            ("b", "no", false),
            ("c", "0x10", false),
            ("d", ".inf", false),
            ("e", "1_000", false),
            ("f", "7", true),
            ("g", "true", false),
        ] {
            assert_eq!(scalar(text, key), (expected.to_owned(), quoted), "{key}");
        }
    }

    #[test]
    fn repeated_keys_are_all_there() {
        let Value::Map(entries) = parse("a: 1\na: 2\na: 3\n").unwrap().value else {
            panic!("not a map")
        };

        assert_eq!(entries.len(), 3);
        assert_eq!(entries[2].0.place, Place { line: 3, column: 1, length: 1 });
    }

    #[test]
    fn what_we_do_not_take_is_refused_where_it_stands() {
        for (text, line, words) in [
            ("a: 1\nb: &x 1\n", 2, "anchors"),
            ("a: *x\n", 1, "anchors"),
            ("a: 1\n---\nb: 2\n", 3, "second document"),
            ("a: !foo 1\n", 1, "tags"),
            ("a:\n\tb: 1\n", 2, "tab"),
            ("a: b: c\n", 1, "second `: `"),
            ("a: \"x\n", 1, "not YAML"),
        ] {
            let (place, complaint) = parse(text).unwrap_err();

            assert_eq!(place.line, line, "{text:?}: {complaint:?}");
            assert!(complaint.message.contains(words), "{text:?}: {complaint:?}");
        }
    }

    #[test]
    fn deep_and_long_input_ends_at_the_budget() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        let many = format!("a: [{}]\n", "1,".repeat(30_000));
        let long = format!("# {}\n", "x".repeat(MAX_BYTES));

        for text in [deep, many, long] {
            assert!(parse(&text).is_err());
        }
    }
}
