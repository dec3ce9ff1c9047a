//! The loop that takes one bundle after another from Received to Confirmed or RolledBack.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::peers::{Accepted, Applied, CallError, Judgement, Places};
use super::probe::{self, Local};
use super::serving::{ServeError, Serving, SliceSet};
use super::state::{Recovery, State, Step, reconcile};
use super::store::{STRIKES, Store};
use crate::message::UnsealRequest;
use crate::notify::notify;
use crate::plan::{Generation, HostPlan, Service};

/// How long a fault may be on its way (duplicate address detection) before it counts.
const GRACE: Duration = Duration::from_secs(2);
/// Between two looks while probing.
const LOOK: Duration = Duration::from_millis(250);
/// We give up this long before postern-net's own timer does, to say why.
const MARGIN: Duration = Duration::from_secs(2);
/// How long a service or postern-host may take to appear during a change.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks when nothing happens.
const TICK: Duration = Duration::from_secs(5);
/// Refusals that say nothing about the bundle: somebody was not there to judge or plan it.
const NOT_YET: [&str; 4] = ["unavailable", "not-ready", "net", "disk"];
/// Longest pause before a bundle that waits at the door is tried again: on a box that has nothing
/// else to run, and on one whose guests each try disturbs.
const LONGEST_RETRY: [Duration; 2] = [Duration::from_secs(300), Duration::from_secs(3600)];
/// Between two rounds of putting right what others lost.
const MAINTENANCE: Duration = Duration::from_secs(60);

/// What the loop waits for.
#[derive(Debug)]
pub(crate) enum Event {
    /// A bundle from a person.
    Offer(Vec<u8>, oneshot::Sender<Outcome>),
    /// A person says that it works.
    Confirm(oneshot::Sender<Result<Generation, String>>),
}

/// What became of a bundle.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub(crate) enum Outcome {
    /// It is last known good.
    Confirmed {
        /// Which one.
        generation: Generation,
        /// Writes to the kernel and the host's services.
        writes: u32,
        /// How long the kernel's part took.
        #[serde(rename = "net-micros")]
        net_micros: u64,
        /// From the first byte to the confirmation.
        #[serde(rename = "total-millis")]
        total_millis: u128,
    },
    /// It was in force already; nothing was written.
    Unchanged {
        /// Which one.
        generation: Generation,
    },
    /// It was not taken; what ran before runs on.
    Refused {
        /// A stable word.
        code: String,
        /// A sentence.
        reason: String,
    },
    /// It was tried and taken back.
    RolledBack {
        /// Which one.
        generation: Generation,
        /// What did not work.
        reason: String,
    },
}

/// What status shows of the loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Where the bundle at hand is.
    pub(crate) state: State,
    /// The generation in force, with what its bundle says of itself.
    pub(crate) in_force: Option<(Generation, BTreeMap<String, Value>)>,
    /// The last refusal: code, reason, when.
    pub(crate) refusal: Option<(String, String, Instant)>,
    /// The last roll-back: which, why, when.
    pub(crate) roll_back: Option<(Generation, String, Instant)>,
    /// What the last confirmed change cost.
    pub(crate) cost: Option<Outcome>,
    /// What a bundle under way still waits for.
    pub(crate) waiting: Option<String>,
}

/// Shared between the loop and those who ask.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Where the other processes are.
    pub(crate) places: Places,
    /// The serving processes.
    pub(crate) serving: Arc<Serving>,
    /// The loop's own view.
    view: Mutex<View>,
}

impl Shared {
    /// Nothing has happened yet.
    pub(crate) fn new(places: Places) -> Self {
        Self { places, serving: Arc::default(), view: Mutex::default() }
    }

    /// The loop's view, for a moment.
    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The generation in force, ready to be put back.
#[derive(Clone, Debug)]
struct Loaded {
    host: HostPlan,
    set: SliceSet,
}

/// Why a change is taken back.
#[derive(Debug)]
struct Fault {
    reason: String,
    /// A local invariant is broken: the bundle's fault.
    local: bool,
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        // Never a strike: D-Bus that is not up yet, a full disk, a NIC that comes late or a
        // neighbour with our address fail the same way, and pass.
        Self { local: false, reason: error.to_string() }
    }
}

impl From<ServeError> for Fault {
    fn from(error: ServeError) -> Self {
        Self { local: matches!(error, ServeError::Failed(..)), reason: error.to_string() }
    }
}

/// The bundle that waits at the door since the start: tried again until it is judged.
#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    at: Instant,
    pause: Duration,
}

/// The loop.
#[derive(Debug)]
pub(crate) struct Agent {
    shared: Arc<Shared>,
    store: Store,
    events: Receiver<Event>,
    progress: UnboundedSender<(String, String)>,
    loaded: Option<Loaded>,
    waiting: Option<Waiting>,
    maintain_at: Instant,
}

impl Agent {
    /// Makes the loop; [`run`](Self::run) runs it.
    pub(crate) fn new(
        shared: Arc<Shared>,
        store: Store,
        events: Receiver<Event>,
        progress: UnboundedSender<(String, String)>,
    ) -> Self {
        let maintain_at = Instant::now();
        Self { shared, store, events, progress, loaded: None, waiting: None, maintain_at }
    }

    /// Settles what an earlier instance left, takes `delivered` (the firmware's credential), then
    /// whatever comes. Returns when nobody can send an event any more.
    pub(crate) fn run(mut self, delivered: Option<Vec<u8>>) {
        self.recover();
        self.reopen();
        let now = Instant::now();
        self.waiting =
            delivered.map(|bytes| Waiting { bytes, at: now, pause: Duration::from_secs(5) });
        loop {
            notify("WATCHDOG=1");
            self.take_waiting();
            let pause = self
                .waiting
                .as_ref()
                .map_or(TICK, |it| it.at.saturating_duration_since(Instant::now()).min(TICK));
            match self.events.recv_timeout(pause) {
                Ok(Event::Offer(bytes, reply)) => {
                    let outcome = self.offer(&bytes, "apply");
                    if reply.send(outcome).is_err() {
                        tracing::info!("whoever brought the bundle did not wait");
                    }
                }
                Ok(Event::Confirm(reply)) => {
                    let nothing = "nothing waits for a confirmation".to_owned();
                    drop(reply.send(Err(nothing)));
                }
                Err(RecvTimeoutError::Timeout) => self.maintain(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Settles the journal with last known good.
    fn recover(&mut self) {
        let confirmed = self.confirmed();
        match reconcile(self.store.journal(), confirmed) {
            Recovery::Rest(state) => self.shared.view().state = state,
            Recovery::Revert(state) => {
                tracing::warn!("a change was under way at the last stop; taking it back");
                if let Err(error) = self.shared.places.net_revert() {
                    tracing::warn!("{error}; postern-net's own timer will do it");
                }
                if let State::RolledBack { generation, reason } = &state {
                    self.shared.view().roll_back =
                        Some((generation.clone(), reason.clone(), Instant::now()));
                }
                self.shared.view().state = state;
                self.record();
            }
        }
    }

    /// Opens last known good again and hands out its parts; signers are not judged again.
    fn reopen(&mut self) {
        let Some(generation) = self.confirmed() else {
            return;
        };
        let bytes = match self.store.bundle(&generation) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!("bundle of serial {} is not kept: {error}", generation.serial);
                return;
            }
        };
        match self.shared.places.unseal(&UnsealRequest::Reopen, &bytes) {
            Ok((Judgement::Accepted(accepted), _)) if accepted.generation == generation => {
                self.adopt(*accepted);
            }
            Ok((Judgement::Accepted(_), _)) => {
                tracing::error!("kept bundle of serial {} is another one", generation.serial);
            }
            Ok((Judgement::Refused { code, reason }, _)) => {
                tracing::error!("serial {} does not open ({code}): {reason}", generation.serial);
            }
            Err(error) => {
                tracing::warn!("{error}; trying again");
                self.maintain_at = Instant::now() + TICK;
            }
        }
    }

    /// Hands out a generation that the network already has.
    fn adopt(&mut self, accepted: Accepted) {
        let generation = accepted.generation.clone();
        let loaded = load(accepted.generation, accepted.host, accepted.slices);
        self.maintain_at = Instant::now() + MAINTENANCE;
        if let Err(error) = self.shared.places.host_apply(&loaded.host, PATIENCE) {
            tracing::warn!("{error}; trying again");
            self.maintain_at = Instant::now() + TICK;
        }
        if let Err(error) = self.shared.serving.serve(&loaded.set, Duration::ZERO) {
            tracing::warn!("{error}; it gets its slice when it comes");
        }
        self.shared.view().in_force = Some((generation, accepted.summary));
        self.loaded = Some(loaded);
    }

    /// Tries the bundle that waits at the door, when it is time.
    fn take_waiting(&mut self) {
        let Some(waiting) = self.waiting.take_if(|it| it.at <= Instant::now()) else {
            return;
        };
        match self.offer(&waiting.bytes, "firmware credential") {
            Outcome::Refused { code, .. } if NOT_YET.contains(&code.as_str()) => {}
            Outcome::RolledBack { .. } => {}
            _ => return,
        }
        let pause = waiting.pause;
        tracing::info!("trying the delivered bundle again in {} s", pause.as_secs());
        self.waiting = Some(Waiting {
            bytes: waiting.bytes,
            at: Instant::now() + pause,
            pause: (pause * 2).min(LONGEST_RETRY[usize::from(self.loaded.is_some())]),
        });
    }

    /// Puts right what a restart of another process lost. Writes nothing when all is well.
    fn maintain(&mut self) {
        if Instant::now() < self.maintain_at {
            return;
        }
        self.maintain_at = Instant::now() + MAINTENANCE;
        let Some(loaded) = &self.loaded else {
            self.reopen();
            return;
        };
        match self.shared.places.host_apply(&loaded.host, Duration::ZERO) {
            Ok(applied) if applied.writes > 0 => {
                tracing::info!("postern-host: {} settings put right", applied.writes);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("{error}"),
        }
    }

    /// Takes one bundle all the way.
    pub(crate) fn offer(&mut self, bytes: &[u8], source: &str) -> Outcome {
        let started = Instant::now();
        self.step(Step::Offered, &format!("{} bytes by {source}", bytes.len()));
        let (judgement, trust) = match self.shared.places.unseal(&UnsealRequest::Judge, bytes) {
            Ok(judged) => judged,
            Err(error) => return self.refuse("unavailable", error.to_string()),
        };
        if let Some(trust) = trust {
            self.keep_trust(trust);
        }
        let accepted = match judgement {
            Judgement::Refused { code, reason } => return self.refuse(&code, reason),
            Judgement::Accepted(accepted) => *accepted,
        };
        let generation = accepted.generation.clone();
        if accepted.unchanged {
            if self.loaded.as_ref().is_none_or(|it| it.set.generation != generation) {
                self.keep(&generation, bytes);
                self.adopt(accepted);
            }
            self.step(Step::Unchanged(generation.clone()), "in force already");
            return Outcome::Unchanged { generation };
        }
        let serial = generation.serial;
        self.step(Step::Accepted(generation.clone()), &format!("serial {serial}"));
        if let Some(strike) = self.store.quarantine().get(&generation.digest)
            && strike.count >= STRIKES
        {
            let reason = format!("it broke this box {} times: {}", strike.count, strike.reason);
            return self.refuse("quarantined", reason);
        }
        self.step(Step::Planned, "");
        if let Err(error) = self.store.keep(&generation, bytes, self.confirmed().as_ref()) {
            return self.refuse("disk", format!("cannot keep the bundle: {error}"));
        }
        self.step(Step::Stored, "");
        let auto = accepted.auto_confirm;
        let baseline = self.baseline();
        match self.change(accepted, baseline, auto) {
            Ok(applied) => {
                let outcome = Outcome::Confirmed {
                    generation,
                    writes: applied.writes,
                    net_micros: applied.micros,
                    total_millis: started.elapsed().as_millis(),
                };
                self.shared.view().cost = Some(outcome.clone());
                outcome
            }
            Err(fault) => self.roll_back(&generation, fault),
        }
    }

    /// Applying and Probing.
    fn change(
        &mut self,
        accepted: Accepted,
        baseline: BTreeSet<&'static str>,
        auto: bool,
    ) -> Result<Applied, Fault> {
        let generation = accepted.generation.clone();
        let begun = Instant::now();
        self.step(Step::Begun, "");
        let places = self.shared.places.clone();
        let net = places.net_apply(&generation)?;
        self.note(&format!("network: {} writes in {} us", net.writes, net.micros));
        let host = places.host_apply(&accepted.host, PATIENCE)?;
        self.note(&format!("host: {} writes in {} us", host.writes, host.micros));
        let loaded = load(accepted.generation, accepted.host, accepted.slices);
        self.shared.serving.serve(&loaded.set, PATIENCE)?;
        let services: Vec<&str> =
            loaded.set.slices.keys().map(|it| super::serving::unit(*it)).collect();
        self.step(Step::Served, &format!("ready: {}", services.join(", ")));
        let mut probes: BTreeSet<String> = accepted.require.into_iter().collect();
        probes.extend(baseline.into_iter().map(str::to_owned));
        self.probe(&generation, &probes, begun + accepted.deadline, auto)?;
        // The commit point is the file: an answer that was lost after it was written changes nothing.
        if let Err(error) = places.net_confirm(&generation)
            && self.confirmed().as_ref() != Some(&generation)
        {
            return Err(error.into());
        }
        self.loaded = Some(loaded);
        self.shared.view().in_force = Some((generation.clone(), accepted.summary));
        self.step(Step::Kept, &format!("serial {}", generation.serial));
        Ok(Applied { writes: net.writes.saturating_add(host.writes), micros: net.micros })
    }

    /// Returns when everything holds and, without `auto`, a person has said so.
    fn probe(
        &mut self,
        generation: &Generation,
        probes: &BTreeSet<String>,
        deadline: Instant,
        auto: bool,
    ) -> Result<(), Fault> {
        let deadline = deadline.checked_sub(MARGIN).unwrap_or(deadline);
        let mut broken_since = None;
        let mut person = None;
        loop {
            notify("WATCHDOG=1");
            let open = match self.look(generation, probes)? {
                Look::Holds => {
                    broken_since = None;
                    None
                }
                Look::Broken(faults) => {
                    let since = *broken_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= GRACE {
                        return Err(Fault { reason: faults, local: true });
                    }
                    Some(faults)
                }
                Look::Waits(reason) => {
                    broken_since = None;
                    Some(reason)
                }
            };
            if open.is_none() && (auto || person.is_some()) {
                if let Some(reply) = person {
                    let reply: oneshot::Sender<Result<Generation, String>> = reply;
                    drop(reply.send(Ok(generation.clone())));
                }
                self.wait_for(None);
                return Ok(());
            }
            let missing = open.unwrap_or_else(|| "a confirmation by hand".to_owned());
            self.wait_for(Some(&missing));
            if Instant::now() >= deadline {
                let reason = format!("not confirmed in time, waiting for {missing}");
                return Err(Fault { reason, local: false });
            }
            match self.events.recv_timeout(LOOK) {
                Ok(Event::Confirm(reply)) if auto => {
                    drop(reply.send(Err(format!("it confirms itself; waiting for {missing}"))));
                }
                Ok(Event::Confirm(reply)) => person = Some(reply),
                Ok(Event::Offer(_, reply)) => {
                    let reason = format!("serial {} is being tried", generation.serial);
                    drop(reply.send(Outcome::Refused { code: "busy".to_owned(), reason }));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => sleep(LOOK),
            }
        }
    }

    /// One look at everything that must hold.
    fn look(&self, generation: &Generation, probes: &BTreeSet<String>) -> Result<Look, Fault> {
        let net = match self.shared.places.net_observe() {
            Ok(net) => net,
            Err(error) => return Ok(Look::Waits(error.to_string())),
        };
        match probe::local(&net, generation) {
            Local::Holds => {}
            Local::Broken(faults) => return Ok(Look::Broken(faults.join("; "))),
            Local::TakenBack => {
                let reason = "postern-net has taken it back".to_owned();
                return Err(Fault { reason, local: false });
            }
        }
        let proxy = self.shared.serving.report(Service::Proxy);
        for name in probes {
            if let Err(reason) = probe::outside(name, Some(&net), proxy.as_ref()) {
                return Ok(Look::Waits(reason));
            }
        }
        Ok(Look::Holds)
    }

    /// Outside probes that pass before the change; the change must not break them.
    fn baseline(&self) -> BTreeSet<&'static str> {
        if self.loaded.is_none() {
            return BTreeSet::new();
        }
        let net = self.shared.places.net_observe().ok();
        let proxy = self.shared.serving.report(Service::Proxy);
        probe::passing(net.as_ref(), proxy.as_ref())
    }

    /// Puts back what was before.
    fn roll_back(&mut self, generation: &Generation, fault: Fault) -> Outcome {
        let Fault { reason, local } = fault;
        self.wait_for(None);
        self.step(Step::Broken(reason.clone()), &reason);
        if let Err(error) = self.shared.places.net_revert() {
            tracing::warn!("{error}; postern-net's own timer will do it");
        }
        match &self.loaded {
            Some(loaded) => {
                if let Err(error) = self.shared.places.host_apply(&loaded.host, PATIENCE) {
                    tracing::warn!("{error}; trying again");
                }
                if let Err(error) = self.shared.serving.serve(&loaded.set, PATIENCE) {
                    tracing::error!("while rolling back: {error}");
                }
            }
            None => self.shared.serving.stop(),
        }
        if local && let Err(error) = self.store.strike(generation, &reason) {
            tracing::error!("quarantine: {error}");
        }
        self.shared.view().roll_back = Some((generation.clone(), reason.clone(), Instant::now()));
        self.step(Step::Reverted, &reason);
        Outcome::RolledBack { generation: generation.clone(), reason }
    }

    fn refuse(&mut self, code: &str, reason: String) -> Outcome {
        tracing::warn!("bundle refused ({code}): {reason}");
        let confirmed = self.confirmed();
        self.shared.view().refusal = Some((code.to_owned(), reason.clone(), Instant::now()));
        self.step(Step::Refused { confirmed }, &format!("refused ({code}): {reason}"));
        Outcome::Refused { code: code.to_owned(), reason }
    }

    fn keep(&self, generation: &Generation, bytes: &[u8]) {
        if let Err(error) = self.store.keep(generation, bytes, Some(generation)) {
            tracing::error!("cannot keep the bundle: {error}");
        }
    }

    fn keep_trust(&self, trust: std::os::fd::OwnedFd) {
        let stored = crate::ipc::read_sealed(trust, 64 * 1024)
            .and_then(|blobs| self.store.store_trust(&blobs));
        if let Err(error) = stored {
            tracing::error!("cannot store the newer trust: {error}");
        }
    }

    fn confirmed(&self) -> Option<Generation> {
        self.shared.places.last_known_good().map(|it| it.generation)
    }

    /// Moves on, tells who watches, and from Staged on writes it down first.
    fn step(&self, step: Step, detail: &str) {
        let state = self.shared.view().state.clone();
        let state = match state.next(step) {
            Ok(state) => state,
            Err(error) => {
                tracing::error!("{error}; settling with last known good");
                State::at_rest(self.confirmed())
            }
        };
        let name = state.name();
        let durable = !matches!(
            state,
            State::Idle | State::Received | State::Verified { .. } | State::Planned { .. }
        );
        let changed = std::mem::replace(&mut self.shared.view().state, state);
        // A refused or unchanged bundle comes back to rest without a trace on disk.
        let returned =
            matches!(changed, State::Received | State::Verified { .. } | State::Planned { .. })
                && name == "confirmed";
        if durable && !returned {
            self.record();
        }
        tracing::info!("{name}{}{detail}", if detail.is_empty() { "" } else { ": " });
        self.tell(name, detail);
    }

    fn note(&self, detail: &str) {
        let name = self.shared.view().state.name();
        tracing::info!("{name}: {detail}");
        self.tell(name, detail);
    }

    fn wait_for(&self, what: Option<&str>) {
        let before = self.shared.view().waiting.clone();
        if before.as_deref() != what {
            self.shared.view().waiting = what.map(str::to_owned);
            if let Some(what) = what {
                self.note(&format!("waiting for {what}"));
            }
        }
    }

    fn tell(&self, name: &str, detail: &str) {
        notify(&format!("STATUS={name} {detail}\nWATCHDOG=1"));
        if self.progress.send((name.to_owned(), detail.to_owned())).is_err() {
            tracing::debug!("nobody watches");
        }
    }

    fn record(&self) {
        let state = self.shared.view().state.clone();
        if let Err(error) = self.store.record(&state) {
            tracing::error!("journal: {error}");
        }
    }
}

/// What one look found.
#[derive(Debug)]
enum Look {
    Holds,
    Broken(String),
    Waits(String),
}

fn load(
    generation: Generation,
    host: HostPlan,
    slices: BTreeMap<Service, std::os::fd::OwnedFd>,
) -> Loaded {
    Loaded { host, set: SliceSet { generation, slices: Arc::new(slices) } }
}

#[cfg(test)]
mod tests;
