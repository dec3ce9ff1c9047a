//! Which shard has the allocation of a client whose datagrams come in here (RFC 8016 §3.2).
//!
//! The kernel picks a shard by the 5-tuple, so that a client that moves may come in on another
//! one. Whoever gets in here has shown credentials and a ticket; the table is bounded all the same.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;

use crate::allocation::MAX_LIFETIME;
use crate::five_tuple::{FiveTuple, Source};
use crate::shared::ShardId;

/// Clients of other shards at most.
pub(crate) const MAX_ROUTES: usize = 4096;

/// Of one source at most.
pub(crate) const MAX_ROUTES_PER_SOURCE: usize = 64;

/// A client that says nothing this long has no allocation.
const IDLE: Duration = MAX_LIFETIME;

#[derive(Clone, Copy, Debug)]
struct Route {
    shard: ShardId,
    used: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Routes {
    by_client: HashMap<FiveTuple, Route, FixedState>,
    of_source: HashMap<Source, usize>,
    /// Every route once, and when to look whether it is idle.
    checks: VecDeque<(Instant, FiveTuple)>,
}

impl Routes {
    pub(crate) fn new(seed: [u8; 8]) -> Self {
        let state = FixedState::with_seed(u64::from_be_bytes(seed));
        Self {
            by_client: HashMap::with_hasher(state),
            of_source: HashMap::new(),
            checks: VecDeque::new(),
        }
    }

    /// The shard that this client's datagrams go to.
    pub(crate) fn find(&mut self, client: &FiveTuple, now: Instant) -> Option<ShardId> {
        if self.by_client.is_empty() {
            return None;
        }
        let route = self.by_client.get_mut(client)?;
        route.used = now;
        Some(route.shard)
    }

    /// Remembers a client; false when there is no room.
    pub(crate) fn insert(&mut self, client: FiveTuple, shard: ShardId, now: Instant) -> bool {
        if let Some(route) = self.by_client.get_mut(&client) {
            *route = Route { shard, used: now };
            return true;
        }
        let source = Source::of(client.client.ip());
        let of_source = self.of_source.get(&source).copied().unwrap_or(0);
        if self.by_client.len() >= MAX_ROUTES || of_source >= MAX_ROUTES_PER_SOURCE {
            return false;
        }
        self.of_source.insert(source, of_source + 1);
        self.by_client.insert(client, Route { shard, used: now });
        self.checks.push_back((now + IDLE, client));
        true
    }

    pub(crate) fn remove(&mut self, client: &FiveTuple) {
        if self.forget(client) {
            self.checks.retain(|(_, other)| other != client);
        }
    }

    /// Drops idle routes.
    pub(crate) fn sweep(&mut self, now: Instant) {
        while let Some((_, client)) = self.checks.pop_front_if(|(at, _)| *at <= now) {
            let used = self.by_client.get(&client).map_or(now, |route| route.used);
            if used + IDLE <= now {
                self.forget(&client);
            } else {
                self.checks.push_back((now.max(used + IDLE), client));
            }
        }
    }

    /// When to sweep next.
    pub(crate) fn next_sweep(&self) -> Option<Instant> {
        self.checks.front().map(|(at, _)| *at)
    }

    fn forget(&mut self, client: &FiveTuple) -> bool {
        let there = self.by_client.remove(client).is_some();
        let source = Source::of(client.client.ip());
        if there && let Some(count) = self.of_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.of_source.remove(&source);
            }
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{MAX_ROUTES, MAX_ROUTES_PER_SOURCE, Routes};
    use crate::five_tuple::{FiveTuple, Transport};
    use crate::shared::ShardId;

    fn epoch() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one point that virtual time counts from"
        )]
        Instant::now()
    }

    fn client(source: u32, port: u16) -> FiveTuple {
        let ip = std::net::Ipv4Addr::from(0xCB00_7100 + source);
        let server = "192.0.2.61:3478".parse().unwrap();
        FiveTuple { transport: Transport::Udp, client: (ip, port).into(), server }
    }

    #[test]
    fn the_table_is_bounded_in_all_and_per_source() {
        let now = epoch();
        let mut routes = Routes::new([1; 8]);

        let of_one = (0..1000).filter(|port| routes.insert(client(0, *port), ShardId(1), now));
        assert_eq!(of_one.count(), MAX_ROUTES_PER_SOURCE);
        let all = (1..=200_u32).flat_map(|source| (0..64).map(move |port| client(source, port)));
        let all = all.filter(|client| routes.insert(*client, ShardId(1), now)).count();

        assert_eq!(all + MAX_ROUTES_PER_SOURCE, MAX_ROUTES);
    }

    #[test]
    fn a_route_that_nobody_uses_ends_and_one_in_use_stays() {
        let t0 = epoch();
        let mut routes = Routes::new([1; 8]);
        assert!(routes.insert(client(0, 1), ShardId(1), t0));
        assert!(routes.insert(client(0, 2), ShardId(1), t0));

        let later = t0 + Duration::from_secs(3000);
        assert_eq!(routes.find(&client(0, 1), later), Some(ShardId(1)));
        let later = t0 + Duration::from_secs(3600);
        routes.sweep(later);

        assert_eq!(routes.find(&client(0, 1), later), Some(ShardId(1)));
        assert_eq!(routes.find(&client(0, 2), later), None);
    }
}
