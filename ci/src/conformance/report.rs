//! What is printed at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::case::{Case, Fault};

/// What became of one case.
#[derive(Debug)]
pub struct Record {
    /// The case.
    pub case: &'static Case,
    /// Whether it held.
    pub outcome: Result<(), Fault>,
    /// How long it took.
    pub took: Duration,
}

/// A record beside what was known before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It holds.
    Holds,
    /// It does not, and nobody expected that.
    Fails,
    /// It does not hold, which is known.
    FailsAsKnown,
    /// It holds, although it is known not to.
    HoldsUnexpectedly,
}

/// The whole run.
#[derive(Debug)]
pub struct Summary {
    records: Vec<(Record, Option<&'static str>)>,
    took: Duration,
}

impl Summary {
    pub(super) fn new(
        records: Vec<Record>,
        known: &BTreeMap<&'static str, &'static str>,
        took: Duration,
    ) -> Self {
        let with_reason = |record: Record| {
            let why = known.get(record.case.name).copied();
            (record, why)
        };
        Self { records: records.into_iter().map(with_reason).collect(), took }
    }

    /// How many cases were tried.
    #[must_use]
    pub fn tried(&self) -> usize {
        self.records.len()
    }

    /// How many ended like that.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.records.iter().filter(|record| verdict_of(record) == verdict).count()
    }

    /// Whether everything was as expected.
    #[must_use]
    pub fn is_as_expected(&self) -> bool {
        self.count(Verdict::Fails) + self.count(Verdict::HoldsUnexpectedly) == 0
    }
}

fn verdict_of((record, known): &(Record, Option<&str>)) -> Verdict {
    match (&record.outcome, known) {
        (Ok(()), None) => Verdict::Holds,
        (Ok(()), Some(_)) => Verdict::HoldsUnexpectedly,
        (Err(Fault::Differs { .. }), Some(_)) => Verdict::FailsAsKnown,
        (Err(_), _) => Verdict::Fails,
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = |width: fn(&Case) -> usize| {
            self.records.iter().map(|(record, _)| width(record.case)).max().unwrap_or(0)
        };
        let width = widest(|case| case.name.len());
        let section_width = widest(|case| case.section.chars().count());
        for record in &self.records {
            let verdict = match verdict_of(record) {
                Verdict::Holds => "holds",
                Verdict::Fails => "FAILS",
                Verdict::FailsAsKnown => "fails, as known",
                Verdict::HoldsUnexpectedly => "HOLDS, though known to fail",
            };
            let (Record { case, outcome, .. }, known) = record;
            writeln!(f, "{:<width$}  {:<section_width$}  {verdict}", case.name, case.section)?;
            match outcome {
                Ok(()) => {}
                Err(Fault::Differs { expected, received }) => {
                    writeln!(f, "    expected: {expected}\n    received: {received}")?;
                }
                Err(Fault::Broken(error)) => writeln!(f, "    could not be tried: {error:#}")?,
            }
            if let Some(why) = known {
                writeln!(f, "    known: {why}")?;
            }
        }
        write!(
            f,
            "{} cases in {:.1} s: {} hold, {} fail, {} fail as known, {} hold unexpectedly",
            self.tried(),
            self.took.as_secs_f64(),
            self.count(Verdict::Holds),
            self.count(Verdict::Fails),
            self.count(Verdict::FailsAsKnown),
            self.count(Verdict::HoldsUnexpectedly),
        )
    }
}
