//! The loop against the sockets of the other processes. What answers there are stand-ins that
//! keep their word and can be told to fail; the real processes meet in the reference lab.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Agent, Event, Outcome, Shared};
use crate::control::peers::Places;
use crate::control::state::State;
use crate::control::store::Store;
use crate::ipc::{Channel, Listener, read_sealed, seal};
use crate::message::{
    HostReply, HostRequest, LastKnownGood, NetReply, NetRequest, SliceReply, SliceRequest,
    UnsealReply,
};
use crate::plan::{Generation, HostPlan, Service};

/// What the stand-ins remember and how they behave.
#[derive(Debug, Default)]
struct World {
    calls: Vec<String>,
    in_force: Option<Generation>,
    fail_net: bool,
    fail_slice: bool,
    mute_confirm: bool,
    broken: Option<&'static str>,
    upstream: Option<&'static str>,
}

struct Edge {
    folder: tempfile::TempDir,
    world: Arc<Mutex<World>>,
}

fn generation(serial: u64) -> Generation {
    Generation { serial, digest: format!("{serial:064}") }
}

fn places(folder: &Path) -> Places {
    Places {
        net: folder.join("net"),
        host: folder.join("host"),
        agent: folder.join("slices"),
        unseal: folder.join("unseal"),
        lkg: folder.join("lkg"),
        state: folder.to_owned(),
    }
}

fn serve<F>(path: &Path, answer: F)
where
    F: Fn(Channel) + Send + 'static,
{
    let listener = Listener::bind(path).unwrap();
    thread::spawn(move || {
        while let Ok(channel) = listener.accept() {
            answer(channel);
        }
    });
}

impl Edge {
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap(), world: Arc::new(Mutex::default()) };
        this.start_net();
        this.start_host();
        this.start_unseal();
        this
    }

    fn start_net(&self) {
        let world = Arc::clone(&self.world);
        let lkg = places(self.folder.path()).lkg;
        serve(&places(self.folder.path()).net, move |channel| {
            let (request, _) = channel.receive::<NetRequest>().unwrap().unwrap();
            let mut world = world.lock().unwrap();
            let applied = |now: Option<Generation>| NetReply::Applied {
                before: None,
                now,
                writes: 3,
                micros: 10,
            };
            let reply = match request {
                NetRequest::Apply(generation) => {
                    world.calls.push(format!("apply {}", generation.serial));
                    if world.fail_net {
                        NetReply::Failed("no NIC has MAC 52:54:00:00:00:01".to_owned())
                    } else {
                        world.in_force = Some(generation.clone());
                        applied(Some(generation))
                    }
                }
                NetRequest::Confirm(generation) => {
                    world.calls.push(format!("confirm {}", generation.serial));
                    let floor = generation.serial;
                    let good = LastKnownGood { generation, floor };
                    fs::write(&lkg, serde_json::to_vec(&good).unwrap()).unwrap();
                    if world.mute_confirm {
                        return;
                    }
                    NetReply::Done
                }
                NetRequest::Revert => {
                    world.calls.push("revert".to_owned());
                    world.in_force = fs::read(&lkg).ok().map(|bytes| {
                        serde_json::from_slice::<LastKnownGood>(&bytes).unwrap().generation
                    });
                    applied(world.in_force.clone())
                }
                NetRequest::Observe => NetReply::Observed(json!({
                    "generation": world.in_force,
                    "in-order": world.broken.is_none(),
                    "faults": world.broken.into_iter().collect::<Vec<_>>(),
                })),
                other => panic!("unexpected {other:?}"),
            };
            channel.send(&reply, &[]).unwrap();
        });
    }

    fn start_host(&self) {
        let world = Arc::clone(&self.world);
        serve(&places(self.folder.path()).host, move |channel| {
            let (request, _) = channel.receive::<HostRequest>().unwrap().unwrap();
            let HostRequest::Apply(plan) = request else { panic!("only Apply") };
            world.lock().unwrap().calls.push(format!("host {}", plan.host_name));
            channel.send(&HostReply::Applied { writes: 1, micros: 10 }, &[]).unwrap();
        });
    }

    /// A bundle is JSON here: `serial`, and whatever a test wants to bend.
    fn start_unseal(&self) {
        let lkg = places(self.folder.path()).lkg;
        serve(&places(self.folder.path()).unseal, move |channel| {
            let (_, mut fds) = channel.receive::<Value>().unwrap().unwrap();
            let bytes = read_sealed(fds.remove(0), 1 << 20).unwrap();
            let Ok(bundle) = serde_json::from_slice::<Value>(&bytes) else {
                let reason = "bundle is cut short".to_owned();
                let refused = UnsealReply::Refused { code: "framing".to_owned(), reason };
                channel.send(&refused, &[]).unwrap();
                return;
            };
            let generation = generation(bundle["serial"].as_u64().unwrap());
            let good = fs::read(&lkg)
                .ok()
                .map(|bytes| serde_json::from_slice::<LastKnownGood>(&bytes).unwrap().generation);
            let slice = seal("slice", bundle["serial"].to_string().as_bytes()).unwrap();
            let reply = UnsealReply::Accepted {
                unchanged: good.as_ref() == Some(&generation),
                generation,
                summary: BTreeMap::from([("site".to_owned(), json!("example"))]),
                host: HostPlan {
                    host_name: format!("edge{}", bundle["serial"]),
                    dns: Vec::new(),
                    ntp: Vec::new(),
                    clock_floor: 0,
                },
                slices: vec![Service::Proxy],
                require: serde_json::from_value(bundle["require"].clone()).unwrap_or_default(),
                auto_confirm: bundle["manual"].is_null(),
                deadline: Duration::from_millis(bundle["deadline"].as_u64().unwrap_or(60_000)),
                trust_version: 1,
            };
            channel.send(&reply, &[slice.as_fd()]).unwrap();
        });
    }

    /// Starts an agent with a proxy beside it; both end with the sender.
    fn start(&self) -> (mpsc::Sender<Event>, Arc<Shared>) {
        let shared = Arc::new(Shared::new(places(self.folder.path())));
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let world = Arc::clone(&self.world);
        thread::spawn(move || proxy(&Channel::from_fd(theirs), &world));
        shared.serving.attach(Service::Proxy, Channel::from_fd(ours));
        let (events, inbox) = mpsc::channel();
        let (progress, _) = tokio::sync::mpsc::unbounded_channel();
        let store = Store::open(self.folder.path()).unwrap();
        let agent = Agent::new(Arc::clone(&shared), store, inbox, progress);
        thread::spawn(move || agent.run(None));
        (events, shared)
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.world.lock().unwrap().calls)
    }

    /// Every file of the agent with its time of change.
    fn files(&self) -> Vec<(String, std::time::SystemTime)> {
        let mut found = Vec::new();
        for folder in [self.folder.path().to_owned(), self.folder.path().join("generations")] {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                found.push((name, entry.metadata().unwrap().modified().unwrap()));
            }
        }
        found.sort();
        found
    }
}

fn proxy(channel: &Channel, world: &Mutex<World>) {
    while let Ok(Some((request, fds))) = channel.receive::<SliceRequest>() {
        let reply = match request {
            SliceRequest::Serve(generation) => {
                let slice = read_sealed(fds.into_iter().next().unwrap(), 100).unwrap();
                let slice = String::from_utf8(slice).unwrap();
                let mut world = world.lock().unwrap();
                world.calls.push(format!("slice {slice}"));
                if world.fail_slice && slice != "1" {
                    SliceReply::Failed(generation, "certificate has no key".to_owned())
                } else {
                    SliceReply::Ready(generation)
                }
            }
            SliceRequest::Stop => {
                world.lock().unwrap().calls.push("stop".to_owned());
                SliceReply::Stopped
            }
            SliceRequest::Report => {
                let reason = world.lock().unwrap().upstream;
                SliceReply::Report(json!({ "upstreams": [
                    { "url": "https://a.example.org", "reachable": reason.is_none(),
                      "reason": reason },
                ] }))
            }
        };
        channel.send(&reply, &[]).unwrap();
    }
}

fn bundle(serial: u64) -> Value {
    json!({ "serial": serial })
}

fn offer(events: &mpsc::Sender<Event>, bundle: &Value) -> Outcome {
    offer_bytes(events, bundle.to_string().into_bytes())
}

fn offer_bytes(events: &mpsc::Sender<Event>, bytes: Vec<u8>) -> Outcome {
    let (reply, outcome) = oneshot::channel();
    events.send(Event::Offer(bytes, reply)).unwrap();
    outcome.blocking_recv().unwrap()
}

fn confirm(events: &mpsc::Sender<Event>) -> Result<Generation, String> {
    let (reply, confirmed) = oneshot::channel();
    events.send(Event::Confirm(reply)).unwrap();
    confirmed.blocking_recv().unwrap_or_else(|_| Err("gone".to_owned()))
}

#[test]
fn a_good_bundle_is_applied_in_order_and_confirmed() {
    let edge = Edge::new();
    let (events, shared) = edge.start();

    let outcome = offer(&events, &bundle(1));

    assert!(matches!(outcome, Outcome::Confirmed { writes: 4, .. }), "{outcome:?}");
    assert_eq!(edge.calls(), ["apply 1", "host edge1", "slice 1", "confirm 1"]);
    assert_eq!(shared.view().state, State::Confirmed { generation: generation(1) });
}

#[test]
fn the_same_bundle_again_writes_nothing() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();
    offer(&events, &bundle(1));
    edge.calls();
    let before = edge.files();

    let outcome = offer(&events, &bundle(1));

    assert_eq!(outcome, Outcome::Unchanged { generation: generation(1) });
    assert_eq!(edge.calls(), [""; 0]);
    assert_eq!(edge.files(), before);
}

#[test]
fn a_refused_bundle_changes_nothing_and_says_why() {
    let edge = Edge::new();
    let (events, shared) = edge.start();
    offer(&events, &bundle(1));
    edge.calls();
    let before = edge.files();

    let outcome = offer_bytes(&events, b"cut sho".to_vec());

    let reason = "bundle is cut short".to_owned();
    assert_eq!(outcome, Outcome::Refused { code: "framing".to_owned(), reason });
    assert_eq!(edge.calls(), [""; 0]);
    assert_eq!(edge.files(), before);
    let view = shared.view().clone();
    assert_eq!(view.state, State::Confirmed { generation: generation(1) });
    assert_eq!(view.refusal.unwrap().1, "bundle is cut short");
}

#[test]
fn a_service_that_cannot_serve_rolls_everything_back() {
    let edge = Edge::new();
    let (events, shared) = edge.start();
    offer(&events, &bundle(1));
    edge.calls();
    edge.world.lock().unwrap().fail_slice = true;

    let outcome = offer(&events, &bundle(2));

    let reason = "postern-proxy: certificate has no key".to_owned();
    assert_eq!(outcome, Outcome::RolledBack { generation: generation(2), reason });
    let expected = ["apply 2", "host edge2", "slice 2", "revert", "host edge1", "slice 1"];
    assert_eq!(edge.calls(), expected);
    let in_force = shared.view().in_force.clone();
    assert_eq!(in_force.unwrap().0, generation(1));
}

#[test]
fn the_first_bundle_that_fails_leaves_nothing_served() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();
    edge.world.lock().unwrap().fail_slice = true;

    offer(&events, &bundle(2));

    assert_eq!(edge.calls(), ["apply 2", "host edge2", "slice 2", "revert", "stop"]);
}

#[test]
fn a_bundle_that_broke_the_box_three_times_is_quarantined() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();
    edge.world.lock().unwrap().broken = Some("ruleset: table is empty");

    for _ in 0..3 {
        assert!(matches!(offer(&events, &bundle(1)), Outcome::RolledBack { .. }));
    }
    edge.world.lock().unwrap().broken = None;
    edge.calls();

    let Outcome::Refused { code, reason } = offer(&events, &bundle(1)) else {
        panic!("must be refused");
    };
    assert_eq!(code, "quarantined");
    assert!(reason.contains("ruleset: table is empty"), "{reason}");
    assert_eq!(edge.calls(), [""; 0]);
}

#[test]
fn a_process_that_cannot_is_no_strike_against_the_bundle() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();
    edge.world.lock().unwrap().fail_net = true;
    for _ in 0..4 {
        assert!(matches!(offer(&events, &bundle(1)), Outcome::RolledBack { .. }));
    }
    edge.world.lock().unwrap().fail_net = false;

    let outcome = offer(&events, &bundle(1));

    assert!(matches!(outcome, Outcome::Confirmed { .. }), "{outcome:?}");
}

#[test]
fn a_broken_local_invariant_rolls_back_in_its_own_words() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();
    edge.world.lock().unwrap().broken = Some("ruleset: table is empty");

    let outcome = offer(&events, &bundle(1));

    let reason = "ruleset: table is empty".to_owned();
    assert_eq!(outcome, Outcome::RolledBack { generation: generation(1), reason });
}

#[test]
fn a_required_probe_that_never_passes_rolls_back_at_the_deadline() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();
    edge.world.lock().unwrap().upstream = Some("connection refused");
    let strict = json!({ "serial": 1, "require": ["upstream"], "deadline": 2300 });

    let outcome = offer(&events, &strict);

    let Outcome::RolledBack { reason, .. } = outcome else { panic!("{outcome:?}") };
    let expected =
        "not confirmed in time, waiting for upstream https://a.example.org: connection refused";
    assert_eq!(reason, expected);
}

#[test]
fn a_probe_that_was_dark_before_does_not_count_unless_required() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();
    edge.world.lock().unwrap().upstream = Some("connection refused");

    assert!(matches!(offer(&events, &bundle(1)), Outcome::Confirmed { .. }));
    assert!(matches!(offer(&events, &bundle(2)), Outcome::Confirmed { .. }));
}

#[test]
fn without_auto_a_person_confirms() {
    let edge = Edge::new();
    let (events, shared) = edge.start();
    let manual = json!({ "serial": 1, "manual": true });
    let (reply, outcome) = oneshot::channel();
    events.send(Event::Offer(manual.to_string().into_bytes(), reply)).unwrap();
    while shared.view().waiting.is_none() {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(shared.view().waiting.as_deref(), Some("a confirmation by hand"));

    assert_eq!(confirm(&events), Ok(generation(1)));

    assert!(matches!(outcome.blocking_recv().unwrap(), Outcome::Confirmed { .. }));
}

#[test]
fn a_second_bundle_during_the_first_is_told_to_wait() {
    let edge = Edge::new();
    let (events, shared) = edge.start();
    let manual = json!({ "serial": 1, "manual": true });
    let (reply, _outcome) = oneshot::channel();
    events.send(Event::Offer(manual.to_string().into_bytes(), reply)).unwrap();
    while shared.view().waiting.is_none() {
        thread::sleep(Duration::from_millis(10));
    }

    let Outcome::Refused { code, .. } = offer(&events, &bundle(2)) else {
        panic!("must be refused");
    };
    assert_eq!(code, "busy");
}

#[test]
fn nothing_to_confirm_is_said() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();

    assert_eq!(confirm(&events), Err("nothing waits for a confirmation".to_owned()));
}

#[test]
fn a_confirmation_whose_answer_is_lost_counts() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();
    edge.world.lock().unwrap().mute_confirm = true;

    assert!(matches!(offer(&events, &bundle(1)), Outcome::Confirmed { .. }));

    assert_eq!(edge.calls(), ["apply 1", "host edge1", "slice 1", "confirm 1"]);
}

#[test]
fn a_restarted_agent_hands_out_last_known_good_again() {
    let edge = Edge::new();
    let (events, _shared) = edge.start();
    offer(&events, &bundle(1));
    drop(events);
    edge.calls();

    let (events, shared) = edge.start();
    assert!(confirm(&events).is_err(), "the loop answers once it has started");

    assert_eq!(edge.calls(), ["host edge1", "slice 1"]);
    assert_eq!(shared.view().state, State::Confirmed { generation: generation(1) });
}

#[test]
fn a_restart_in_the_middle_of_a_change_takes_it_back() {
    for state in ["applying", "probing"] {
        let edge = Edge::new();
        let (events, _shared) = edge.start();
        offer(&events, &bundle(1));
        drop(events);
        edge.calls();
        let store = Store::open(edge.folder.path()).unwrap();
        let generation = generation(2);
        store
            .record(&match state {
                "applying" => State::Applying { generation },
                _ => State::Probing { generation },
            })
            .unwrap();

        let (events, shared) = edge.start();
        assert!(confirm(&events).is_err());

        assert_eq!(edge.calls(), ["revert", "host edge1", "slice 1"], "{state}");
        assert_eq!(shared.view().state.name(), "rolled-back");
        assert_eq!(store.journal().name(), "rolled-back");
    }
}
