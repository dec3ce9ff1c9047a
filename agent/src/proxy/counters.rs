//! What status counts, and how often refusals are logged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

/// Only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many there are at the moment, and how many there were.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    total: AtomicU64,
    left: AtomicU64,
}

/// One that is open; dropped when it ends.
#[derive(Debug)]
pub(super) struct Open<'a>(&'a Gauge);

impl Gauge {
    pub(super) fn enter(&self) -> Open<'_> {
        self.total.fetch_add(1, Ordering::Relaxed);
        Open(self)
    }

    fn report(&self) -> Value {
        let left = self.left.load(Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        json!({ "open": total.saturating_sub(left), "total": total })
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::Relaxed);
    }
}

/// Since the process started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// TCP connections that were taken.
    pub(super) connections: Gauge,
    /// TCP connections above a limit.
    pub(super) refused_connections: Counter,
    /// TLS handshakes that broke off.
    pub(super) failed_handshakes: Counter,
    /// TLS handshakes for a name that is not served.
    pub(super) unknown_names: Counter,
    /// Requests, refused ones included.
    pub(super) requests: Counter,
    /// Requests that were refused here.
    pub(super) refused_requests: Counter,
    /// Tunnels.
    pub(super) websockets: Gauge,
    /// TURN clients that were joined to the relay.
    pub(super) turn_streams: Gauge,
    /// TURN clients for whom there was no relay.
    pub(super) unjoined_streams: Counter,
}

impl Counters {
    /// For status.
    pub(super) fn report(&self) -> Value {
        json!({
            "connections": self.connections.report(),
            "connections-refused": self.refused_connections.value(),
            "handshakes-failed": self.failed_handshakes.value(),
            "handshakes-unknown-name": self.unknown_names.value(),
            "requests": self.requests.value(),
            "requests-refused": self.refused_requests.value(),
            "websockets": self.websockets.report(),
            "turn-streams": self.turn_streams.report(),
            "turn-streams-refused": self.unjoined_streams.value(),
        })
    }
}

/// Lets through a burst of log lines and then one a second: refusals are the clients' to cause.
#[derive(Debug)]
pub(super) struct LogLimit(Mutex<Allowance>);

#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
    suppressed: u64,
}

/// Lines at once.
const BURST: f64 = 10.0;

impl Default for LogLimit {
    fn default() -> Self {
        Self(Mutex::new(Allowance { left: BURST, at: Instant::now(), suppressed: 0 }))
    }
}

impl LogLimit {
    /// Whether to log; then also how many lines were left out since the last one.
    pub(super) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut allowance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = now.saturating_duration_since(allowance.at).as_secs_f64();
        allowance.left = (allowance.left + seconds).min(BURST);
        allowance.at = now;
        if allowance.left < 1.0 {
            allowance.suppressed += 1;
            return None;
        }
        allowance.left -= 1.0;
        Some(std::mem::take(&mut allowance.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_of_refusals_is_logged_once_a_second() {
        let limit = LogLimit::default();
        let start = Instant::now();

        let logged = (0..100).filter(|_| limit.admit_at(start).is_some()).count();

        assert_eq!(logged, 10);
        assert_eq!(limit.admit_at(start + Duration::from_secs(1)), Some(90));
    }

    #[test]
    fn a_gauge_knows_how_many_are_open() {
        let gauge = Gauge::default();

        let open = gauge.enter();
        drop(gauge.enter());

        assert_eq!(gauge.report(), json!({ "open": 1, "total": 2 }));
        drop(open);
        assert_eq!(gauge.report(), json!({ "open": 0, "total": 2 }));
    }
}
