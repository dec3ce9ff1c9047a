//! Which generation is in force, and how it changes: apply, confirm, revert, drift repair.
//!
//! ```text
//!            apply(new)                     confirm
//!  in force ------------> pending(new) ----------------> in force (lkg = new)
//!     ^                        |
//!     +------------------------+  deadline, revert, restart in another boot
//! ```
//!
//! `pending` is on disk before the first kernel write of a new generation, `lkg` only once it is
//! confirmed, so a crash at any step leads back to what was last confirmed.
//!
//! A plan that cannot be made true is undone at once. Going back and repairing are lenient: a NIC
//! that is away is left out and looked for at each event, because there is nothing further to
//! fall back to.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::change::changes;
use super::desired::{Desired, MissingLink};
use super::kernel::{Change, Kernel, KernelError, Route, Snapshot};
use super::ruleset::{self, Firewall, Ruleset, RulesetError};
use super::sockets::{OpenError, Sockets};
use super::store::{Pending, Store, StoreError};
use super::sysctl::{self, SysctlError};
use crate::plan::{Generation, LinkPlan, ListenerPlan, NetPlan, Service};

/// How often the plan is run until the kernel shows it. Deleting an address takes routes with it,
/// so one repair round is normal; more means that somebody works against us.
const ROUNDS: u32 = 4;

/// The longest that a generation may stay unconfirmed.
const LONGEST_DEADLINE: Duration = Duration::from_secs(600);

/// Why a plan was not made true.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// A NIC of the plan is not there.
    #[error(transparent)]
    Missing(#[from] MissingLink),
    /// The plan contradicts itself.
    #[error("two routes with one destination, table and metric: {0}; {1}")]
    Rivals(Route, Route),
    /// The firewall's rules were refused.
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    /// A kernel setting was refused.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A link, address, route or rule was refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel took it all and shows something else.
    #[error("the kernel does not keep it: after {ROUNDS} rounds it still lacks: {0}")]
    NotKept(String),
    /// A listener was not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The state directory does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How strict to be about what the machine lacks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Care {
    /// A new generation: all of it or nothing.
    All,
    /// Going back or repairing: as much as there is.
    WhatThereIs,
}

/// The last change that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct LastApply {
    pub(crate) generation: Option<Generation>,
    pub(crate) writes: u32,
    pub(crate) micros: u64,
}

/// What apply and revert report.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) before: Option<Generation>,
    pub(crate) writes: u32,
    pub(crate) micros: u64,
}

/// The state of `postern-net`.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(super) kernel: Kernel,
    pub(super) store: Store,
    pub(super) firewall: Firewall,
    pub(super) sockets: Sockets,
    /// `None` is the rescue plan.
    pub(super) in_force: Option<(Generation, NetPlan)>,
    pub(super) pending: Option<Pending>,
    pub(super) last_apply: Option<LastApply>,
    /// The kernel's names that firewall and settings were made for.
    names: BTreeMap<String, String>,
    /// Changes that repairs made since the start.
    pub(super) repairs: u64,
    /// Where the generation in force is published for those who watch it.
    published: std::path::PathBuf,
    boot_id: String,
}

impl Engine {
    /// Opens the state in `state` and keeps what must not outlive the boot in `run`.
    ///
    /// # Errors
    ///
    /// Says what of the state directory or netlink does not work.
    pub(crate) fn open(state: &Path, run: &Path) -> anyhow::Result<Self> {
        use anyhow::Context;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("cannot read the boot id")?;
        Ok(Self {
            kernel: Kernel::open().context("cannot open a netlink socket")?,
            store: Store::open(state)?,
            firewall: Firewall::new(run),
            sockets: Sockets::default(),
            in_force: None,
            pending: None,
            last_apply: None,
            names: BTreeMap::new(),
            repairs: 0,
            published: run.join("in-force"),
            boot_id: boot_id.trim().to_owned(),
        })
    }

    /// Brings the network to where it was left: a change that was being tried in this boot goes on
    /// until its deadline, everything else is last known good or, without one, the rescue plan.
    ///
    /// It always ends with a plan in force; what did not work is in the log, and each later
    /// netlink event and each minute tries again.
    pub(crate) async fn start(&mut self) {
        let pending = self.store.pending().unwrap_or_else(|error| {
            tracing::error!(%error, "Taking back what was being tried");
            None
        });
        if let Some(pending) = pending {
            let same_boot = pending.boot_id == self.boot_id;
            if same_boot && boottime() < pending.deadline {
                match self.resume(&pending).await {
                    Ok(()) => return,
                    Err(error) => tracing::error!(%error, "Cannot go on with it"),
                }
            }
            let serial = pending.generation.serial;
            tracing::warn!(serial, same_boot, "Unconfirmed generation is taken back");
        }
        self.revert().await;
    }

    async fn resume(&mut self, pending: &Pending) -> Result<(), ApplyError> {
        let plan = self.store.plan(&pending.generation)?;
        self.make_true(Some(&plan), Care::All).await?;
        tracing::info!(serial = pending.generation.serial, "Going on with what was being tried");
        self.pending = Some(pending.clone());
        self.put_in_force(Some((pending.generation.clone(), plan)));
        Ok(())
    }

    /// Makes a generation true and starts its deadline, unless it is last known good already.
    ///
    /// # Errors
    ///
    /// Says why not; then what was in force before is in force again.
    pub(crate) async fn apply(&mut self, generation: &Generation) -> Result<Applied, ApplyError> {
        let started = Instant::now();
        let plan = self.store.plan(generation)?;
        let before = self.in_force.clone();
        let previous = self.store.last_known_good()?.map(|lkg| lkg.generation);
        let pending_before = self.pending.clone();
        let again = before.as_ref().is_some_and(|(g, p)| g == generation && *p == plan);
        if !again {
            let pending = (previous.as_ref() != Some(generation)).then(|| Pending {
                generation: generation.clone(),
                deadline: boottime() + plan.deadline.min(LONGEST_DEADLINE),
                boot_id: self.boot_id.clone(),
                previous,
            });
            self.store.set_pending(pending.as_ref())?;
            self.pending = pending;
        }
        match self.make_true(Some(&plan), Care::All).await {
            Ok(writes) => {
                self.put_in_force(Some((generation.clone(), plan)));
                let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                let serial = generation.serial;
                tracing::info!(serial, writes, micros, "Applied");
                let generation = Some(generation.clone());
                self.last_apply = Some(LastApply { generation, writes, micros });
                Ok(Applied { before: before.map(|(g, _)| g), writes, micros })
            }
            Err(error) => {
                tracing::warn!(serial = generation.serial, %error, "Not applied, going back");
                self.go_back(before.as_ref().map(|(_, plan)| plan)).await;
                self.store.set_pending(pending_before.as_ref())?;
                self.pending = pending_before;
                Err(error)
            }
        }
    }

    /// Makes the pending generation last known good.
    ///
    /// # Errors
    ///
    /// Says when another generation is in force, or the disk does not take it.
    pub(crate) fn confirm(&mut self, generation: &Generation) -> Result<(), ConfirmError> {
        let in_force = self.in_force.as_ref().map(|(generation, _)| generation);
        if in_force != Some(generation) {
            let in_force =
                in_force.map_or_else(|| "the rescue plan".to_owned(), |g| g.serial.to_string());
            return Err(ConfirmError::NotInForce { asked: generation.serial, in_force });
        }
        let lkg = self.store.commit(generation)?;
        // From here on it is confirmed: a `pending` that stays behind is of this generation,
        // and the start would only put lkg, which is the same, in force.
        self.pending = None;
        self.store.set_pending(None)?;
        tracing::info!(serial = generation.serial, floor = lkg.floor, "Confirmed");
        Ok(())
    }

    /// Goes back to last known good, or to the rescue plan.
    pub(crate) async fn revert(&mut self) -> Applied {
        let started = Instant::now();
        let before = self.in_force.take().map(|(generation, _)| generation);
        let target = self.last_good();
        let writes = self.go_back(target.as_ref().map(|(_, plan)| plan)).await;
        self.put_in_force(target);
        if let Err(error) = self.store.set_pending(None) {
            tracing::error!(%error, "Cannot forget what was being tried");
        }
        self.pending = None;
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let generation = self.generation().cloned();
        let serial = generation.as_ref().map(|generation| generation.serial);
        match serial {
            Some(serial) => tracing::info!(serial, writes, micros, "Last known good is in force"),
            None => tracing::warn!(
                writes,
                micros,
                "Nothing was ever confirmed here: rescue plan (links up, nothing let in; DHCP is not there yet)"
            ),
        }
        self.last_apply = Some(LastApply { generation, writes, micros });
        Applied { before, writes, micros }
    }

    /// The sockets that the generation in force gives `owners`.
    pub(crate) fn sockets_of(
        &self,
        owners: &[Service],
    ) -> (Vec<ListenerPlan>, Vec<BorrowedFd<'_>>) {
        self.sockets.of(owners)
    }

    /// How long the pending generation has left; `None` when nothing is pending.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.pending.as_ref().map(|pending| pending.deadline.saturating_sub(boottime()))
    }

    /// The generation in force; `None` is the rescue plan.
    pub(crate) fn generation(&self) -> Option<&Generation> {
        self.in_force.as_ref().map(|(generation, _)| generation)
    }

    /// Repairs what differs from the generation in force. `thorough` also looks at what sends no
    /// netlink event: firewall and settings.
    pub(crate) async fn repair(&mut self, thorough: bool) -> u32 {
        let plan = self.in_force.clone().map(|(_, plan)| plan);
        if !thorough {
            match self.kernel.snapshot().await {
                Ok(now) => {
                    let wanted = desired(plan.as_ref(), &now);
                    let listeners = plan.as_ref().map_or(0, |plan| plan.listeners.len());
                    if wanted.names == self.names
                        && self.sockets.plans().count() == listeners
                        && changes(&wanted, &now).is_empty()
                    {
                        return 0;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "Cannot look for drift");
                    return 0;
                }
            }
        }
        let writes = self.go_back(plan.as_ref()).await;
        if writes > 0 {
            tracing::info!(writes, "Drift repaired");
            self.repairs += u64::from(writes);
        }
        writes
    }

    /// Remembers a plan.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError`] when the disk does not take it.
    pub(crate) fn put_plan(
        &self,
        generation: &Generation,
        plan: &NetPlan,
    ) -> Result<(), StoreError> {
        let mut in_use: Vec<Generation> = self.generation().cloned().into_iter().collect();
        in_use.extend(self.pending.iter().map(|pending| pending.generation.clone()));
        in_use.extend(self.store.last_known_good()?.map(|lkg| lkg.generation));
        self.store.put_plan(generation, plan, &in_use)
    }

    /// What the kernel lacks of `plan`.
    pub(super) fn network_changes(&self, plan: Option<&NetPlan>, now: &Snapshot) -> Vec<Change> {
        changes(&desired(plan, now), now)
    }

    fn last_good(&self) -> Option<(Generation, NetPlan)> {
        let found = self.store.last_known_good().and_then(|lkg| {
            lkg.map(|lkg| Ok((lkg.generation.clone(), self.store.plan(&lkg.generation)?)))
                .transpose()
        });
        found.unwrap_or_else(|error| {
            tracing::error!(%error, "Last known good cannot be read: rescue plan");
            None
        })
    }

    fn put_in_force(&mut self, target: Option<(Generation, NetPlan)>) {
        self.in_force = target;
        let text = serde_json::to_vec(&self.generation()).unwrap_or_default();
        if let Err(error) = super::store::replace(&self.published, &text) {
            tracing::warn!(%error, "Cannot publish the generation in force");
        }
    }

    async fn go_back(&mut self, plan: Option<&NetPlan>) -> u32 {
        self.make_true(plan, Care::WhatThereIs).await.unwrap_or_else(|error| {
            tracing::error!(%error, "The network is not as it should be");
            0
        })
    }

    /// Desired -> changes -> apply -> read again, until nothing is left to change. Returns the
    /// number of writes.
    async fn make_true(&mut self, plan: Option<&NetPlan>, care: Care) -> Result<u32, ApplyError> {
        let first = self.kernel.snapshot().await?;
        let wanted = desired(plan, &first);
        if care == Care::All {
            if let Some(missing) = wanted.missing.first() {
                return Err(missing.clone().into());
            }
        } else {
            wanted.missing.iter().for_each(|missing| tracing::warn!(%missing, "NIC is away"));
        }
        if let Some((one, other)) = wanted.rivals() {
            return Err(ApplyError::Rivals(one, other));
        }
        let rules = resolved_ruleset(plan, &wanted)?;
        let load = !self.firewall.holds(&rules)?;
        if load {
            self.firewall.check(&rules)?;
        }
        // Nothing has been written so far. The firewall comes before the addresses that it
        // guards, the settings (arp_ignore and so on) before both.
        let mut writes = match sysctl::apply(&resolved_sysctls(plan, &wanted)) {
            Err(error) if care == Care::WhatThereIs => {
                tracing::error!(%error, "Going on without it");
                0
            }
            other => other?,
        };
        if load {
            self.firewall.load(&rules)?;
            writes += 1;
        }
        self.names = wanted.names;
        writes += self.settle(plan, first, care).await?;
        let listeners: &[ListenerPlan] = plan.map_or(&[], |plan| &plan.listeners);
        let (opened, failed) = self.sockets.open(listeners);
        for error in failed {
            if care == Care::All {
                return Err(error.into());
            }
            tracing::error!(%error, "Going on without it");
        }
        writes += u32::try_from(opened.count()).unwrap_or(u32::MAX);
        self.sockets.commit(listeners, opened);
        Ok(writes)
    }

    async fn settle(
        &self,
        plan: Option<&NetPlan>,
        mut now: Snapshot,
        care: Care,
    ) -> Result<u32, ApplyError> {
        let mut writes = 0;
        for _ in 0..ROUNDS {
            let todo = self.network_changes(plan, &now);
            if todo.is_empty() {
                return Ok(writes);
            }
            for change in todo {
                tracing::info!(%change, "Applying");
                writes += 1;
                match self.kernel.make(change).await {
                    // The kernel deletes routes together with the address they stand on: what
                    // is gone already is no fault, and the next round reads what is there.
                    Err(error) if is_delete(change) => tracing::debug!(%error, "Already gone"),
                    Err(error) if care == Care::WhatThereIs => {
                        tracing::error!(%error, "Going on without it");
                    }
                    other => other?,
                }
            }
            now = self.kernel.snapshot().await?;
        }
        let left = self.network_changes(plan, &now);
        if left.is_empty() {
            return Ok(writes);
        }
        let left: Vec<String> = left.iter().map(Change::to_string).collect();
        let error = ApplyError::NotKept(left.join("; "));
        if care == Care::All {
            return Err(error);
        }
        tracing::error!(%error, "The network is not as it should be");
        Ok(writes)
    }
}

/// Why a generation was not confirmed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfirmError {
    /// It was taken back meanwhile, or never applied.
    #[error("generation {asked} is not in force, {in_force} is")]
    NotInForce { asked: u64, in_force: String },
    /// The disk does not take it: the deadline goes on.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn is_delete(change: Change) -> bool {
    matches!(change, Change::DeleteAddress(_) | Change::DeleteRoute(_) | Change::DeleteRule(_))
}

pub(super) fn desired(plan: Option<&NetPlan>, now: &Snapshot) -> Desired {
    plan.map_or_else(|| Desired::rescue(&now.links), |plan| Desired::new(plan, &now.links))
}

pub(super) fn resolved_ruleset(
    plan: Option<&NetPlan>,
    desired: &Desired,
) -> Result<Ruleset, RulesetError> {
    let links: &[LinkPlan] = plan.map_or(&[], |plan| &plan.links);
    let nics: BTreeSet<String> = links.iter().map(|link| link.name.clone()).collect();
    let rescue = ruleset::rescue();
    Ruleset::new(plan.map_or(&rescue, |plan| &plan.ruleset), &nics, &desired.names)
}

/// The plan's settings, and the one that renumbering stands on: without it the kernel drops all
/// secondary addresses of a subnet with the primary one.
pub(super) fn resolved_sysctls(plan: Option<&NetPlan>, desired: &Desired) -> Vec<(String, String)> {
    let Some(plan) = plan else { return Vec::new() };
    let mut settings = sysctl::resolve(&plan.sysctls, &desired.names);
    for name in desired.names.values() {
        let path = format!("net/ipv4/conf/{name}/promote_secondaries");
        if !settings.iter().any(|(other, _)| *other == path) {
            settings.push((path, "1".to_owned()));
        }
    }
    settings
}

/// The clock that goes on while the box sleeps and that nobody can set.
fn boottime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .expect("CLOCK_BOOTTIME is there since Linux 2.6.39")
}
