//! Bounds what strangers can make this server send, because their source may be forged.
//!
//! One token bucket per IPv4 /24 or IPv6 /64, in a table of fixed size: prefixes that meet in a
//! slot share it. A request with a nonce that was made here for its source is no stranger's.

use std::net::IpAddr;
use std::time::Instant;

use crate::config::ReplyRate;
use crate::five_tuple::Source;
use crate::random::derive;

/// Slots of the table; 16 octets each.
const SLOTS: usize = 4096;

/// Tokens in thousandths, and when they were counted.
#[derive(Clone, Copy)]
struct Bucket {
    millitokens: u64,
    at: Instant,
}

/// The table.
pub(crate) struct ReplyLimit {
    key: [u8; 32],
    buckets: Vec<Option<Bucket>>,
}

impl ReplyLimit {
    pub(crate) fn new(seed: &[u8; 32]) -> Self {
        Self { key: derive(seed, b"reply limit", &[]), buckets: vec![None; SLOTS] }
    }

    /// Takes a token for one reply to `source`; false when there is none.
    pub(crate) fn admit(&mut self, rate: ReplyRate, source: IpAddr, now: Instant) -> bool {
        let mut prefix = Source::of(source).bytes();
        if source.to_canonical().is_ipv4() {
            prefix[7] = 0;
        }
        let hash = derive(&self.key, b"slot", &prefix);
        let slot = usize::from(u16::from_be_bytes([hash[0], hash[1]])) % SLOTS;
        let full = u64::from(rate.burst) * 1000;
        let bucket = self.buckets[slot].get_or_insert(Bucket { millitokens: full, at: now });
        let elapsed = now.saturating_duration_since(bucket.at).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let gained = elapsed.saturating_mul(u64::from(rate.per_second));
        bucket.millitokens = bucket.millitokens.saturating_add(gained).min(full);
        bucket.at = now;
        if bucket.millitokens < 1000 {
            return false;
        }
        bucket.millitokens -= 1000;
        true
    }
}
