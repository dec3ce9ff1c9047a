//! The fuzz targets without a fuzzer: their corpora, and a few seconds of changed corpora.
//!
//! `cargo ci fuzz` runs the same functions under libFuzzer, where that is installed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::hostile::Dice;

#[expect(unreachable_pub, reason = "the fuzz crate exports them")]
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target, usize); 4] = [
    ("stun_message", targets::stun_message, 60_000),
    ("framing", targets::framing, 60_000),
    ("proxy_header", targets::proxy_header, 60_000),
    ("relay", targets::relay, 500),
];

/// The corpus of a target, in the order of its file names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{target} has no corpus");
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn run(name: &str, target: Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        panic!("{name} breaks on {input:02x?}");
    }
}

#[test]
fn every_corpus_file_keeps_the_promises() {
    for (name, target, _) in TARGETS {
        for input in corpus(name) {
            run(name, target, &input);
        }
    }
}

#[test]
fn changed_corpus_files_keep_the_promises() {
    for (name, target, rounds) in TARGETS {
        let corpus = corpus(name);
        let mut dice = Dice(0x5EED);
        for _ in 0..rounds {
            let mut input = corpus[dice.below(corpus.len())].clone();
            for _ in 0..=dice.below(4) {
                change(&mut input, &corpus, &mut dice);
            }
            run(name, target, &input);
        }
    }
}

/// Changes an octet, cuts, repeats, or splices in a piece of another file.
fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    let end = at + dice.below(input.len() + 1 - at);
    match dice.below(6) {
        0 if at < input.len() => input[at] = dice.byte(),
        1 if at < input.len() => input[at] ^= 1 << dice.below(8),
        2 if at < input.len() => input[at] = [0, 1, 0x7F, 0x80, 0xFF, 4][dice.below(6)],
        3 => drop(input.drain(at..end)),
        4 => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        _ => {
            let other = &corpus[dice.below(corpus.len())];
            let from = dice.below(other.len() + 1);
            let to = from + dice.below(other.len() + 1 - from);
            input.splice(at..end, other[from..to].iter().copied());
        }
    }
    input.truncate(2_000);
}
