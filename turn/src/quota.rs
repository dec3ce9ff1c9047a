//! Counts allocations per user and per source.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::config::Quotas;
use crate::five_tuple::Source;
use crate::refusal::Rule;

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
    ) -> Result<(), Rule> {
        if self.total >= quotas.total {
            return Err(Rule::TotalQuota);
        }
        if self.users.get(user).copied().unwrap_or(0) >= quotas.per_user {
            return Err(Rule::UserQuota);
        }
        self.check_source(quotas, source)
    }

    /// Whether one more allocation of that source fits.
    pub(crate) fn check_source(&self, quotas: Quotas, source: Source) -> Result<(), Rule> {
        let used = self.sources.get(&source).copied().unwrap_or(0);
        if used >= quotas.per_source { Err(Rule::SourceQuota) } else { Ok(()) }
    }

    pub(crate) fn add(&mut self, user: &Arc<str>, source: Source) {
        self.total += 1;
        *self.users.entry(Arc::clone(user)).or_default() += 1;
        self.add_source(source);
    }

    pub(crate) fn remove(&mut self, user: &Arc<str>, source: Source) {
        self.total = self.total.saturating_sub(1);
        decrement(&mut self.users, user);
        self.remove_source(source);
    }

    /// A source more for an allocation that is counted: it moves there.
    pub(crate) fn add_source(&mut self, source: Source) {
        *self.sources.entry(source).or_default() += 1;
    }

    /// A source less for an allocation that is counted.
    pub(crate) fn remove_source(&mut self, source: Source) {
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
