//! Token buckets: how much passes in the long run, and how much at once.
//!
//! Credit is counted in millionths of a token, so that a bucket costs a multiplication per packet
//! and no division.

use std::time::{Duration, Instant};

const MILLION: u64 = 1_000_000;

/// What a bucket lets through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rate {
    /// Tokens per second.
    pub(crate) per_second: u64,
    /// Tokens at once.
    pub(crate) burst: u64,
}

impl Rate {
    /// A limit on octets per second: a quarter of a second's worth at once, but never less than a
    /// few datagrams of the largest kind.
    pub(crate) fn octets(per_second: u64) -> Self {
        Self { per_second, burst: (per_second / 4).max(1 << 18) }
    }
}

/// The credit of one who is limited.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    /// Millionths of a token.
    credit: u64,
    /// `None` before the first token is asked for: the bucket is full.
    at: Option<Instant>,
}

impl Bucket {
    /// Takes `tokens`; false, and nothing taken, when there are not as many.
    pub(crate) fn take(&mut self, rate: Rate, tokens: u64, now: Instant) -> bool {
        let full = rate.burst.saturating_mul(MILLION);
        self.credit = match self.at {
            None => full,
            Some(at) => {
                let elapsed = now.saturating_duration_since(at);
                let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
                let gained = elapsed.saturating_mul(rate.per_second);
                self.credit.saturating_add(gained).min(full)
            }
        };
        // Whole microseconds were counted; the fraction counts the next time.
        self.at = Some(match self.at {
            None => now,
            Some(at) => at.max(now - fraction(now.saturating_duration_since(at))),
        });
        let cost = tokens.saturating_mul(MILLION);
        if self.credit < cost {
            return false;
        }
        self.credit -= cost;
        true
    }
}

/// What is beyond whole microseconds.
fn fraction(elapsed: Duration) -> Duration {
    Duration::from_nanos(u64::from(elapsed.subsec_nanos() % 1000))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Bucket, Rate};

    fn epoch() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one point that virtual time counts from"
        )]
        Instant::now()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = Rate { per_second: 1000, burst: 100 };
        let mut bucket = Bucket::default();
        let t0 = epoch();

        assert!(bucket.take(rate, 100, t0));
        assert!(!bucket.take(rate, 1, t0));
        assert!(bucket.take(rate, 10, t0 + Duration::from_millis(10)));
        assert!(!bucket.take(rate, 1, t0 + Duration::from_millis(10)));
        assert!(bucket.take(rate, 100, t0 + Duration::from_secs(60)));
        assert!(!bucket.take(rate, 1, t0 + Duration::from_secs(60)));
    }

    #[test]
    fn packets_closer_than_a_microsecond_lose_no_credit() {
        let rate = Rate { per_second: 1_000_000, burst: 1000 };
        let mut bucket = Bucket::default();
        let t0 = epoch();
        assert!(bucket.take(rate, 1000, t0));

        let passed = (1..=10_000_u64)
            .filter(|step| bucket.take(rate, 1, t0 + Duration::from_nanos(step * 300)))
            .count();

        assert_eq!(passed, 3000);
    }
}
