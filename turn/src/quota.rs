//! Counts allocations per user and per source.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::config::Quotas;
use crate::five_tuple::Source;

/// Which quota is used up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exceeded {
    Total,
    UserOrSource,
}

/// The counters; a key at zero is not kept.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    total: usize,
    users: HashMap<Arc<str>, usize>,
    sources: HashMap<Source, usize>,
}

impl Usage {
    /// Whether one more allocation fits.
    pub(crate) fn check(
        &self,
        quotas: Quotas,
        user: &Arc<str>,
        source: Source,
    ) -> Result<(), Exceeded> {
        let used = |count: Option<&usize>| count.copied().unwrap_or(0);
        if self.total >= quotas.total {
            return Err(Exceeded::Total);
        }
        if used(self.users.get(user)) >= quotas.per_user
            || used(self.sources.get(&source)) >= quotas.per_source
        {
            return Err(Exceeded::UserOrSource);
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, user: &Arc<str>, source: Source) {
        self.total += 1;
        *self.users.entry(Arc::clone(user)).or_default() += 1;
        *self.sources.entry(source).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, user: &Arc<str>, source: Source) {
        self.total = self.total.saturating_sub(1);
        decrement(&mut self.users, user);
        decrement(&mut self.sources, &source);
    }
}

fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}
