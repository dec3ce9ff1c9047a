//! Bounds what strangers can make this server send, because their source may be forged.
//!
//! One token bucket per IPv4 /24 or IPv6 /64, in a table of fixed size: prefixes that meet in a
//! slot share it. A request with a nonce that was made here for its source is no stranger's.

use std::net::IpAddr;
use std::time::Instant;

use crate::bandwidth::{Bucket, Rate};
use crate::config::ReplyRate;
use crate::five_tuple::Source;
use crate::random::derive;

/// Slots of the table; 24 octets each.
const SLOTS: usize = 4096;

/// The table.
pub(crate) struct ReplyLimit {
    key: [u8; 32],
    buckets: Vec<Bucket>,
}

impl ReplyLimit {
    pub(crate) fn new(seed: &[u8; 32]) -> Self {
        Self { key: derive(seed, b"reply limit", &[]), buckets: vec![Bucket::default(); SLOTS] }
    }

    /// Takes a token for one reply to `source`; false when there is none.
    pub(crate) fn admit(&mut self, rate: ReplyRate, source: IpAddr, now: Instant) -> bool {
        let mut prefix = Source::of(source).bytes();
        if source.to_canonical().is_ipv4() {
            prefix[7] = 0;
        }
        let hash = derive(&self.key, b"slot", &prefix);
        let slot = usize::from(u16::from_be_bytes([hash[0], hash[1]])) % SLOTS;
        let rate = Rate { per_second: rate.per_second.into(), burst: rate.burst.into() };
        self.buckets[slot].take(rate, 1, now)
    }
}
