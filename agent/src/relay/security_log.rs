//! Security events for people, at most a few per second: a flood of wrong passwords must not
//! become a flood of log lines.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use turn::Refusal;

/// Lines at once, and one more each second.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(1);

/// Writes security events and counts those it leaves out.
pub(super) struct SecurityLog {
    tokens: u32,
    refilled: Instant,
    left_out: u64,
}

impl SecurityLog {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: BURST, refilled: now, left_out: 0 }
    }

    /// Wrong credentials, and what was wrong with them.
    pub(super) fn refused_credentials(
        &mut self,
        user: &str,
        source: SocketAddr,
        reason: Refusal,
        now: Instant,
    ) {
        if self.admit(now) {
            tracing::warn!(user, %source, ?reason, "refused credentials");
        }
    }

    /// A rule of the site's refuses what a user asks for.
    pub(super) fn refused(
        &mut self,
        user: &str,
        source: SocketAddr,
        peer: Option<SocketAddr>,
        rule: turn::Rule,
        now: Instant,
    ) {
        if self.admit(now) {
            let peer = peer.map(tracing::field::display);
            tracing::warn!(user, %source, peer, rule = rule.name(), "refused");
        }
    }

    /// No port or no room for another allocation.
    pub(super) fn exhausted(&mut self, now: Instant) {
        if self.admit(now) {
            tracing::warn!("no relay port left: widen media-ports or look for a client that leaks");
        }
    }

    /// A relay port that another program holds, or whose address is not on its NIC.
    pub(super) fn cannot_bind(
        &mut self,
        address: SocketAddr,
        error: &std::io::Error,
        now: Instant,
    ) {
        if self.admit(now) {
            tracing::warn!("cannot bind relay port {address}: {error}");
        }
    }

    fn admit(&mut self, now: Instant) -> bool {
        while self.tokens < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == 0 {
            self.left_out += 1;
            return false;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
        self.tokens -= 1;
        if self.left_out > 0 {
            tracing::warn!(count = self.left_out, "security events left out");
            self.left_out = 0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{BURST, SecurityLog};

    #[test]
    fn a_flood_is_thinned_to_one_line_a_second() {
        let start = Instant::now();
        let mut log = SecurityLog::new(start);

        let at_once = (0..1000).filter(|_| log.admit(start)).count();
        let later = (0..1000).filter(|_| log.admit(start + Duration::from_secs(3))).count();

        assert_eq!(at_once, usize::try_from(BURST).unwrap());
        assert_eq!(later, 3);
        assert!(log.admit(start + Duration::from_secs(3600)));
    }
}
