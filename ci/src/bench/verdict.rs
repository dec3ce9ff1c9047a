//! Figures of several rounds, and whether they meet a bar.

use std::fmt;

/// What a row promises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    /// At least this many times the packaged coturn's figure.
    Times(f64),
    /// At most this much.
    AtMost(f64),
    /// Nothing: the row is there to be read.
    None,
}

/// The figures of one contender, one a round.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures(Vec<f64>);

impl Figures {
    pub(super) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(super) fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    pub(super) fn range(&self) -> Option<(f64, f64)> {
        let smallest = self.0.iter().copied().min_by(f64::total_cmp)?;
        let largest = self.0.iter().copied().max_by(f64::total_cmp)?;
        Some((smallest, largest))
    }

    /// Round by round, how many times the other's figure this one is.
    pub(super) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
    }
}

/// Whether a bar is met.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Met,
    NotMet,
    /// Some rounds met it and some did not.
    NotDecided,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::NotMet => "NOT MET",
            Self::NotDecided => "not decided",
        })
    }
}

impl Bar {
    /// Judges our figures, those that the bar is about: ratios or our own.
    pub(super) fn judge(self, figures: &Figures) -> Option<Verdict> {
        let (smallest, largest) = figures.range()?;
        let (worst_meets, best_meets) = match self {
            Self::Times(bar) => (smallest >= bar, largest >= bar),
            Self::AtMost(bar) => (largest <= bar, smallest <= bar),
            Self::None => return None,
        };
        Some(match (worst_meets, best_meets) {
            (true, _) => Verdict::Met,
            (false, true) => Verdict::NotDecided,
            (false, false) => Verdict::NotMet,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Bar, Figures, Verdict};

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(Figures(vec![4.0, 1.0, 3.0]).median(), Some(3.0));
        assert_eq!(Figures(vec![4.0, 1.0, 3.0, 2.0]).median(), Some(2.5));
        assert_eq!(Figures::default().median(), None);
    }

    #[test]
    fn a_bar_inside_the_range_decides_nothing() {
        let ratios = Figures(vec![1.2, 1.3, 1.4]);

        assert_eq!(Bar::Times(1.1).judge(&ratios), Some(Verdict::Met));
        assert_eq!(Bar::Times(1.25).judge(&ratios), Some(Verdict::NotDecided));
        assert_eq!(Bar::Times(1.5).judge(&ratios), Some(Verdict::NotMet));
        assert_eq!(Bar::AtMost(1.4).judge(&ratios), Some(Verdict::Met));
        assert_eq!(Bar::AtMost(1.3).judge(&ratios), Some(Verdict::NotDecided));
        assert_eq!(Bar::AtMost(1.1).judge(&ratios), Some(Verdict::NotMet));
        assert_eq!(Bar::None.judge(&ratios), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let ours = Figures(vec![10.0, 30.0]);
        let theirs = Figures(vec![5.0, 10.0]);

        assert_eq!(ours.over(&theirs).range(), Some((2.0, 3.0)));
    }
}
