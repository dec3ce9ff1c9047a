//! The highest rate that a relay carries with almost no loss.

use anyhow::Result;

use crate::bench::load::Offered;

/// The part of the load that may be lost.
const TOLERATED: f64 = 0.01;
/// Measurements after the first one.
const STEPS: usize = 9;
/// Where searching ends: 1.5 % between a rate that passes and one that does not.
const FINE_ENOUGH: f64 = 1.015;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    /// Load at the highest rate with tolerable loss.
    pub(super) best: Offered,
    /// Packets per second that the generator reached when it did not wait.
    pub(super) ceiling: f64,
    /// Packets per second that came through then.
    pub(super) saturated: f64,
}

impl Capacity {
    /// Whether the relay carried all that the generator could send.
    pub(super) fn is_limited_by_generator(&self) -> bool {
        self.best.rate() > 0.97 * self.ceiling
    }
}

/// Searches with measurements that `offer` makes.
///
/// # Errors
///
/// Returns the first error of `offer`.
pub(super) fn capacity(mut offer: impl FnMut(Option<f64>) -> Result<Offered>) -> Result<Capacity> {
    let flood = offer(None)?;
    let (ceiling, saturated) = (flood.rate(), flood.throughput());
    if flood.loss() < TOLERATED {
        return Ok(Capacity { best: flood, ceiling, saturated });
    }
    let (mut low, mut high) = (0.0, ceiling);
    // Most relays carry without loss about what they carry when flooded.
    let mut next = saturated.max(ceiling / 100.0);
    let mut best: Option<Offered> = None;
    for _ in 0..STEPS {
        let offered = offer(Some(next))?;
        if offered.loss() < TOLERATED {
            low = next;
            best = Some(offered);
        } else {
            high = next;
        }
        if low > 0.0 && high < low * FINE_ENOUGH {
            break;
        }
        next = if low > 0.0 {
            // Near to what passes, until something does not.
            f64::midpoint(low, high).min(low * 1.1)
        } else {
            high * 0.85
        };
    }
    let none = Offered { sent: 0, arrived: 0, seconds: 1.0, relay_time: 0 };
    Ok(Capacity { best: best.unwrap_or(none), ceiling, saturated })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relay that carries so many packets per second, and less of them when flooded.
    fn relay(capacity: f64, flooded: f64) -> impl FnMut(Option<f64>) -> Result<Offered> {
        move |rate| {
            let sent = rate.unwrap_or(700_000.0).min(700_000.0);
            let arrived = if sent <= capacity { sent } else { sent.min(flooded) };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "below a million"
            )]
            let count = |rate: f64| rate as u64;
            Ok(Offered { sent: count(sent), arrived: count(arrived), seconds: 1.0, relay_time: 0 })
        }
    }

    #[test]
    fn the_search_ends_close_below_the_capacity() {
        for (carried, flooded) in [(400e3, 400e3), (400e3, 200e3), (50e3, 49e3), (650e3, 500e3)] {
            let found = capacity(relay(carried, flooded)).unwrap();

            let rate = found.best.rate();
            assert!(rate <= carried * 1.011 && rate > carried * 0.97, "{carried}: {rate}");
            assert!(!found.is_limited_by_generator());
        }
    }

    #[test]
    fn a_relay_faster_than_the_generator_is_measured_once_and_said_to_be() {
        let found = capacity(relay(900e3, 900e3)).unwrap();

        assert!(found.is_limited_by_generator());
    }
}
