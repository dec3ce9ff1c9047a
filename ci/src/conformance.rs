//! `cargo ci conformance`: a TURN server as a black box, held to what the RFCs and our policy say.
//!
//! # Specifications
//!
//! - RFC 8489 (STUN), RFC 8656 (TURN), RFC 6062 (TCP allocations), RFC 8016 (mobility).
//! - Time-limited credentials as in draft-uberti-behave-turn-rest.
//! - "policy": what our relay promises beyond them, sides, faces and whom a client may reach.
//!
//! Every case has a name that is a fact and the section that asks for it. Debian's coturn is held
//! to the same: where it is known not to hold a case, `coturn.txt` says why, and a case of that
//! list that suddenly holds is as unexpected as one that fails.
//!
//! # Invariants
//!
//! 1. Nothing here is shared with the crate `turn`.
//! 2. Silence is proven by something that is sent later and answered, not by waiting long.
//! 3. Cases share servers and run side by side; only those that count allocations have a fresh
//!    server each, one after the other.

mod case;
mod cases;
mod client;
mod coturn;
mod digest;
mod peer;
mod report;
mod setting;
mod stun;

use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

pub use self::case::{Case, Fault};
pub use self::report::{Record, Summary, Verdict};
use self::setting::{Server, Setting, Stage};

/// How many cases run side by side.
const ACTORS: usize = 8;

/// Whose server is held to the cases.
#[derive(Clone, Debug)]
pub enum Peer {
    /// Ours, with that many shards.
    Ours {
        /// The program `postern-agent`.
        agent: PathBuf,
        /// Its shards.
        shards: usize,
    },
    /// `turnserver` as installed.
    Coturn,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours { shards, .. } => write!(f, "postern-agent relay --shards {shards}"),
            Self::Coturn => write!(f, "coturn"),
        }
    }
}

/// Every case.
#[must_use]
pub fn cases() -> Vec<&'static Case> {
    cases::ALL.iter().copied().flatten().collect()
}

/// Tries the cases whose name contains one of `words` (all, when there is no word).
///
/// # Errors
///
/// Says what keeps the suite from running; a case that fails is no error here.
pub fn run(peer: &Peer, words: &[String]) -> Result<Summary> {
    let chosen: Vec<_> = cases()
        .into_iter()
        .filter(|case| words.is_empty() || words.iter().any(|word| case.name.contains(&**word)))
        .collect();
    ensure!(!chosen.is_empty(), "no case has {} in its name", words.join(" or "));
    let known = match peer {
        Peer::Coturn => {
            let version = coturn::version()?;
            if version != coturn::KNOWN_VERSION {
                println!(
                    "coturn {version}: what it does not hold is known of {} only",
                    coturn::KNOWN_VERSION
                );
            }
            coturn::known()
        }
        Peer::Ours { .. } => Default::default(),
    };
    if let Some(name) = known.keys().find(|name| !cases().iter().any(|case| case.name == **name)) {
        bail!("coturn.txt names a case that is not there: {name}");
    }
    let needed = |server: &Server| {
        !server.is_exclusive() && chosen.iter().any(|case| case.server == *server)
    };
    let servers: Vec<Server> = Server::ALL.into_iter().filter(needed).collect();
    let mut setting = Setting::start(peer, &servers)?;
    let start = std::time::Instant::now();
    let records = play(&setting, &chosen);
    let took = start.elapsed();
    ensure!(setting.is_alive(), "a server ended:\n{}", setting.logs());
    Ok(Summary::new(records, &known, took))
}

/// Runs the cases on [`ACTORS`] threads; the records are in the order of the cases.
fn play(setting: &Setting, cases: &[&'static Case]) -> Vec<Record> {
    let next = AtomicUsize::new(0);
    let turns: Vec<(Server, Mutex<()>)> = Server::ALL.map(|server| (server, Mutex::new(()))).into();
    let records: Mutex<Vec<Option<Record>>> = Mutex::new(cases.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..ACTORS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(index) else { return };
                    let turn = turns.iter().find(|(server, _)| *server == case.server);
                    let turn = turn.filter(|(server, _)| server.is_exclusive());
                    let held = turn.map(|(_, lock)| lock.lock().expect("no case panics"));
                    let record = try_case(setting, case);
                    drop(held);
                    records.lock().expect("no case panics")[index] = Some(record);
                }
            });
        }
    });
    records.into_inner().expect("no case panics").into_iter().flatten().collect()
}

fn try_case(setting: &Setting, case: &'static Case) -> Record {
    let start = std::time::Instant::now();
    let stage = Stage { setting, server: case.server };
    let outcome = if case.server.is_exclusive() {
        let fresh = setting.fresh(case.server);
        fresh.map_err(Fault::Broken).and_then(|_server| (case.run)(&stage))
    } else {
        (case.run)(&stage)
    };
    let took: Duration = start.elapsed();
    Record { case, outcome, took }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{cases, coturn};

    #[test]
    fn every_case_has_a_name_of_its_own_and_a_section() {
        let names: BTreeSet<_> = cases().iter().map(|case| case.name).collect();

        assert_eq!(names.len(), cases().len());
        for case in cases() {
            assert!(!case.section.is_empty(), "{}", case.name);
            assert!(
                case.name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{}",
                case.name
            );
        }
    }

    #[test]
    fn what_coturn_does_not_hold_is_about_cases_that_are_there() {
        for (name, why) in coturn::known() {
            assert!(cases().iter().any(|case| case.name == name), "{name}");
            assert!(!why.is_empty(), "{name}");
        }
    }
}
