//! Bandwidth limits, per allocation and in all.

use std::sync::Arc;
use std::time::Instant;

use super::Server;
use crate::allocations::Slot;
use crate::bandwidth::Rate;
use crate::output::{Event, Output};
use crate::refusal::Rule;

impl Server {
    /// Whether a packet of that payload passes; what does not is counted, and the owner is told
    /// once per allocation.
    #[inline]
    pub(super) fn is_within_limits(&mut self, slot: Slot, length: usize, now: Instant) -> bool {
        let quotas = &self.config.quotas;
        let (own, total) = (quotas.allocation_bytes_per_second, quotas.total_bytes_per_second);
        own.is_none() && total.is_none() || self.take_bandwidth(slot, length, now)
    }

    fn take_bandwidth(&mut self, slot: Slot, length: usize, now: Instant) -> bool {
        let quotas = &self.config.quotas;
        let (own, total) = (quotas.allocation_bytes_per_second, quotas.total_bytes_per_second);
        let octets = length as u64;
        let Some(allocation) = self.allocations.at(slot) else {
            return false;
        };
        let fits =
            own.is_none_or(|rate| allocation.bandwidth.take(Rate::octets(rate), octets, now));
        let rule = if !fits {
            Rule::AllocationBandwidth
        } else if total
            .is_none_or(|rate| self.grant.take(&self.shared, Rate::octets(rate), octets, now))
        {
            return true;
        } else {
            Rule::TotalBandwidth
        };
        self.counters.refused.count(rule);
        if !allocation.limit_reported {
            allocation.limit_reported = true;
            let (client, user) = (allocation.client, Arc::clone(&allocation.user));
            self.outputs.push_back(Output::Event(Event::Limited { client, user, rule }));
        }
        false
    }
}
