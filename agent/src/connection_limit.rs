//! How many connections there may be at a time: in all, and from one source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Open connections, counted by source.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    total: usize,
    per_source: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// A connection's place under the limit; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    limit: Arc<ConnectionLimit>,
    source: Option<IpAddr>,
}

impl ConnectionLimit {
    /// Nobody is there yet.
    pub(crate) fn new(total: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self { total, per_source, counts: Mutex::default() })
    }

    /// A place for a connection from `client`; without one it counts in the total only.
    pub(crate) fn enter(self: &Arc<Self>, client: Option<IpAddr>) -> Option<Place> {
        let source = client.map(source_of);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.total >= self.total {
            return None;
        }
        if let Some(source) = source {
            let count = counts.by_source.entry(source).or_default();
            if *count >= self.per_source {
                return None;
            }
            *count += 1;
        }
        counts.total += 1;
        drop(counts);
        Some(Place { limit: Arc::clone(self), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.limit.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        let Some(source) = self.source else { return };
        if let Some(count) = counts.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                counts.by_source.remove(&source);
            }
        }
    }
}

/// What counts as one source: an IPv4 address, an IPv6 /64.
fn source_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::ConnectionLimit;

    #[test]
    fn one_source_has_its_share_and_gets_it_back() {
        let limit = ConnectionLimit::new(4, 2);
        let enter = |source: &str| limit.enter(Some(source.parse().unwrap()));

        let first = (enter("2001:db8::1"), enter("2001:db8::2:1"));
        assert!(first.0.is_some() && first.1.is_some());
        assert!(enter("2001:db8::3").is_none(), "the same /64");
        drop(first.0);
        assert!(enter("2001:db8::3").is_some());
    }

    #[test]
    fn all_sources_together_have_no_more_than_the_total() {
        let limit = ConnectionLimit::new(2, 2);
        let places = (limit.enter(None), limit.enter(Some("192.0.2.1".parse().unwrap())));

        assert!(limit.enter(None).is_none());
        assert!(limit.enter(Some("192.0.2.2".parse().unwrap())).is_none());
        drop(places);
        assert!(limit.enter(None).is_some());
    }
}
