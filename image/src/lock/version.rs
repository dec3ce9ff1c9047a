//! Compares Debian package versions (deb-version(7)).

use std::cmp::Ordering;

/// Orders two versions as dpkg does.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (Parts::of(a), Parts::of(b));
    a.epoch
        .cmp(&b.epoch)
        .then_with(|| compare_part(a.upstream, b.upstream))
        .then_with(|| compare_part(a.revision, b.revision))
}

/// The upstream part of a version: without epoch and Debian revision.
pub(crate) fn upstream(version: &str) -> &str {
    Parts::of(version).upstream
}

/// Whether `version` stands in the relation that a dependency asks for (`>= 1.2`, `= 3`, …).
pub(crate) fn satisfies(version: &str, relation: &str) -> bool {
    let split = relation.find(|c: char| !"<>=".contains(c)).unwrap_or(relation.len());
    let (operator, wanted) = relation.split_at(split);
    let order = compare(version, wanted.trim());
    match operator {
        ">=" => order != Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">>" => order == Ordering::Greater,
        "<<" => order == Ordering::Less,
        "=" => order == Ordering::Equal,
        _ => false,
    }
}

struct Parts<'a> {
    epoch: u32,
    upstream: &'a str,
    revision: &'a str,
}

impl<'a> Parts<'a> {
    fn of(version: &'a str) -> Self {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
        Self { epoch: epoch.parse().unwrap_or(0), upstream, revision }
    }
}

/// Compares runs of non-digits by [`weight`], runs of digits by number, in turn.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        while a.first().is_some_and(|c| !c.is_ascii_digit())
            || b.first().is_some_and(|c| !c.is_ascii_digit())
        {
            let order = weight(a.first()).cmp(&weight(b.first()));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default());
        }
        let (number_a, rest_a) = take_number(a);
        let (number_b, rest_b) = take_number(b);
        let order = number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b));
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

/// `~` sorts before the end, the end (and a digit) before letters, letters before the rest.
fn weight(c: Option<&u8>) -> i32 {
    match c {
        None => 0,
        Some(c) if c.is_ascii_digit() => 0,
        Some(b'~') => -1,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

/// The leading digits without leading zeros, and what follows them.
fn take_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let zeros = text[..end].iter().take_while(|c| **c == b'0').count();
    (&text[zeros..end], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_dpkg_sorts_them() {
        let ascending = [
            "0.9~rc1-1",
            "0.9-1",
            "0.9-1+b1",
            "0.9-1+deb13u1",
            "0.9-2",
            "0.9.1-1",
            "0.10-1",
            "1.0~~",
            "1.0~",
            "1.0",
            "1.0a",
            "1.0+dfsg",
            "1:0.1",
        ];
        for pair in ascending.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("1.02-1", "0:1.2-1"), Ordering::Equal);
        assert_eq!(compare("1.2", "1.2-0"), Ordering::Equal);
    }

    #[test]
    fn relations_are_those_of_dependencies() {
        assert!(satisfies("2.41-12", ">= 2.38"));
        assert!(satisfies("257~deb13u1", "= 257~deb13u1"));
        assert!(!satisfies("2.41", "<< 2.41"));
        assert!(!satisfies("2.41", "nonsense"));
    }
}
