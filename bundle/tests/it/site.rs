//! A corpus of bad site files: `tests/site/bad/NAME.yaml` with every fault that must be found in
//! `NAME.expected`, one per line: severity, line:column, message.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use postern_bundle::site::{Fault, Severity, Site};

const GOOD: &str = include_str!("../site/good.yaml");

fn corpus() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/site/bad");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

fn list(faults: &[Fault]) -> String {
    faults.iter().fold(String::new(), |mut list, fault| {
        let place = fault.place;
        writeln!(list, "{} {}:{} {}", fault.severity, place.line, place.column, fault.message)
            .unwrap();
        list
    })
}

#[test]
fn every_bad_site_file_gives_exactly_the_faults_beside_it() {
    let bless = std::env::var_os("POSTERN_BLESS").is_some();
    let mut wrong = String::new();
    let corpus = corpus();
    for path in &corpus {
        let text = std::fs::read_to_string(path).unwrap();
        let expected = path.with_extension("expected");
        let found = match Site::parse(&text, "site.yaml") {
            Ok(_) => "taken\n".to_owned(),
            Err(faults) => list(&faults),
        };
        if bless {
            std::fs::write(&expected, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        if found != expected {
            write!(wrong, "{}\nexpected\n{expected}found\n{found}\n", path.display()).unwrap();
        }
    }

    assert!(wrong.is_empty(), "{wrong}");
    assert!(corpus.len() >= 60, "only {} files", corpus.len());
}

#[test]
fn every_fault_says_what_to_write_and_shows_its_line() {
    for path in corpus() {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for fault in Site::parse(&text, "site.yaml").unwrap_err() {
            let shown = fault.render(false);

            assert!(!fault.help.is_empty(), "{}: {shown}", path.display());
            assert!(shown.contains('^'), "{}: {shown}", path.display());
            if let Some(line) = lines.get(fault.place.line - 1) {
                assert_eq!(&fault.source_line, line, "{}: {shown}", path.display());
                assert!(
                    fault.place.column <= line.chars().count() + 1,
                    "{}: {shown}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn the_base_of_the_corpus_is_good() {
    let site = Site::parse(GOOD, "good.yaml").unwrap_or_else(|faults| panic!("{}", list(&faults)));

    assert_eq!(site.warnings(), []);
}

#[test]
fn a_fault_is_shown_with_its_line_and_carets() {
    let text = GOOD.replace("10.0.1.10/24", "10.0.1.300/24");

    let faults = Site::parse(&text, "good.yaml").unwrap_err();

    assert_eq!(
        faults[0].to_string(),
        "good.yaml:14:19: error: `10.0.1.300/24` is not an address with a prefix length\n   \
         |\n14 |         address: [10.0.1.300/24]\n   |                   ^^^^^^^^^^^^^\n   \
         = write address and prefix length, such as 192.0.2.10/24"
    );
}

#[test]
fn warnings_do_not_refuse_a_site() {
    let text = GOOD.replace("media-ports: 24000-29999", "media-ports: 24000-24049");

    let site = Site::parse(&text, "good.yaml").unwrap();

    assert_eq!(site.warnings().len(), 1);
    assert_eq!(site.warnings()[0].severity, Severity::Warning);
}

/// Marsaglia's xorshift: the same mutations on every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

#[test]
fn no_mutation_of_a_site_file_panics() {
    const PIECES: [&str; 24] = [
        "\"",
        "'",
        "[",
        "]",
        "{",
        "}",
        ":",
        ": ",
        "- ",
        "\n",
        "\t",
        "&a ",
        "*a",
        "!!str ",
        "|\n",
        "~",
        "0.0.0.0/0",
        "::/0",
        "99999999999999999999",
        "\u{feff}",
        "\u{1F600}",
        "...",
        "---\n",
        "#",
    ];
    let mut dice = Dice(0x5EED_0F51_7300);
    let mut refused = 0;
    for _ in 0..3000 {
        let mut text: Vec<char> = GOOD.chars().collect();
        for _ in 0..=dice.below(4) {
            let at = dice.below(text.len());
            let end = (at + dice.below(12)).min(text.len());
            let piece = match dice.below(3) {
                0 => String::new(),
                1 => PIECES[dice.below(PIECES.len())].to_owned(),
                _ => {
                    let from = dice.below(text.len());
                    text[from..(from + dice.below(40)).min(text.len())].iter().collect()
                }
            };
            drop(text.splice(at..end, piece.chars()));
            if text.is_empty() {
                text.push(' ');
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(faults) = Site::parse(&text, "mutated.yaml") {
            refused += 1;
            assert!(faults.iter().any(Fault::is_error));
            faults.iter().for_each(|fault| assert!(!fault.render(true).is_empty()));
        }
    }

    assert!(refused > 1000, "only {refused} of 3000 mutations were refused");
}
