//! The ports of relayed transport addresses (RFC 8656 §7.2, §14.6).

use std::ops::RangeInclusive;

use crate::random::Random;

/// A port of the media range that an allocation has on every face.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct RelayPort(pub u16);

/// What EVEN-PORT asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wish {
    /// Any port.
    Any,
    /// An even one.
    Even,
    /// An even one, and the next one reserved.
    EvenWithNext,
}

/// Which ports are taken. A port is taken at most once, and none outside the range is handed out.
pub(crate) struct RelayPorts {
    range: RangeInclusive<u16>,
    taken: Vec<bool>,
}

impl RelayPorts {
    pub(crate) fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, taken: vec![false; 1 << 16] }
    }

    /// Hands out ports of another range from now on; those that are taken stay taken.
    pub(crate) fn set_range(&mut self, range: RangeInclusive<u16>) {
        self.range = range;
    }

    /// Takes a port that fulfils the wish, searching from a random one on (RFC 6056).
    pub(crate) fn take(&mut self, wish: Wish, random: &mut Random) -> Option<RelayPort> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let offset = random.below(self.range.len());
        let start = first.saturating_add(u16::try_from(offset).unwrap_or(0));
        let port = (start..=last).chain(first..start).find(|port| self.fulfils(*port, wish))?;
        self.taken[usize::from(port)] = true;
        if wish == Wish::EvenWithNext {
            self.taken[usize::from(port) + 1] = true;
        }
        Some(RelayPort(port))
    }

    fn fulfils(&self, port: u16, wish: Wish) -> bool {
        let free = |port: u16| self.range.contains(&port) && !self.taken[usize::from(port)];
        let even = port.is_multiple_of(2);
        free(port)
            && match wish {
                Wish::Any => true,
                Wish::Even => even,
                Wish::EvenWithNext => even && free(port + 1),
            }
    }

    /// Gives a port back.
    pub(crate) fn release(&mut self, port: RelayPort) {
        self.taken[usize::from(port.0)] = false;
    }

    /// Whether relayed addresses may have this port.
    pub(crate) fn contains(&self, port: u16) -> bool {
        self.range.contains(&port) || self.taken[usize::from(port)]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{RelayPort, RelayPorts, Wish};
    use crate::random::Random;

    #[test]
    fn every_port_of_the_range_is_handed_out_once_and_no_other() {
        let mut random = Random::new([1; 32]);
        let mut ports = RelayPorts::new(24000..=24009);

        let taken: BTreeSet<_> =
            (0..10).map(|_| ports.take(Wish::Any, &mut random).unwrap().0).collect();

        assert_eq!(taken, (24000..=24009).collect());
        assert_eq!(ports.take(Wish::Any, &mut random), None);
        ports.release(RelayPort(24004));
        assert_eq!(ports.take(Wish::Any, &mut random), Some(RelayPort(24004)));
    }

    #[test]
    fn an_even_port_with_its_successor_takes_both() {
        let mut random = Random::new([1; 32]);
        let mut ports = RelayPorts::new(65533..=65535);

        assert_eq!(ports.take(Wish::EvenWithNext, &mut random), Some(RelayPort(65534)));
        assert_eq!(ports.take(Wish::EvenWithNext, &mut random), None);
        assert_eq!(ports.take(Wish::Even, &mut random), None);
        assert_eq!(ports.take(Wish::Any, &mut random), Some(RelayPort(65533)));
        assert_eq!(ports.take(Wish::Any, &mut random), None);
    }
}
