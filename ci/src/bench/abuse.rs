//! `cargo ci bench abuse`: what attacks cost the media beside them, and how much memory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bench::contender::{Contender, Relay};
use crate::bench::field::Field;
use crate::bench::load::attack::Attack;
use crate::bench::load::{Attacked, Beside, Direction, Generator, Shape, real};
use crate::bench::processor::{self, Priority};

/// Media that is established before any attack begins.
const MEDIA: Shape =
    Shape { direction: Direction::ClientToPeer, payload: 160, burst: 1, merged: false, flows: 100 };
/// Its packets per second.
const MEDIA_PER_SECOND: f64 = 20_000.0;
/// Measurements of each step, which are added up.
const REPEATS: usize = 3;
/// Slow TCP connections.
const CONNECTIONS: u16 = 500;
/// The promise: less than this part of the media is lost beside [`PROMISED_GARBAGE`].
const PROMISED_LOSS: f64 = 0.001;
/// Packets of garbage per second, at most, beside which the promise holds.
const PROMISED_GARBAGE: f64 = 200_000.0;
/// Every flood and what to call it.
const FLOODS: [(Attack, &str); 5] = [
    (Attack::Garbage, "garbage"),
    (Attack::Asking, "Allocate from 50 000 sources"),
    (Attack::Refresh, "Refresh"),
    (Attack::Mobility, "made-up mobility tickets"),
    (Attack::Forbidden, "permissions for forbidden peers"),
];
/// Packets per second of a flood where time does not matter.
const SHORT_FLOOD: f64 = 50_000.0;
/// Steps of each flood, as parts of the generator's ceiling, from nothing to two thirds.
const STEPS: [f64; 7] = [0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 2.0 / 3.0];

/// Measures and prints. `program` is this one, which is also the load generator.
///
/// # Errors
///
/// Says what could not be measured.
pub fn run(program: &Path, agent: PathBuf) -> Result<()> {
    let priority = Priority::claim()?;
    let contender = Contender::Postern(agent);
    println!(
        "postern {}, one core; {MEDIA_PER_SECOND} pps of media beside each attack",
        contender.version()?
    );
    let scratch = tempfile::Builder::new().prefix("bench").tempdir()?;
    let mut ground = Ground::start(scratch.path(), program, &contender, priority)?;
    ground.run().with_context(|| ground.relay.end_of_log())
}

/// What short floods of every kind have left behind.
#[derive(Clone, Debug)]
pub struct Aftermath {
    /// Octets of memory that the relay has more than before.
    pub grown: u64,
    /// Live relay ports before and after.
    pub relays: [u64; 2],
    /// Allocations made in all, before and after.
    pub allocations: [u64; 2],
    /// Datagrams and requests that the relay has counted as bad.
    pub refused: u64,
    /// Forbidden peers that were let through.
    pub granted: Vec<String>,
}

/// Floods in every way for a moment, without real-time priority and without looking at time; then
/// every client that was there before must still have its allocation to free.
///
/// # Errors
///
/// Says when the relay ends or does not answer.
pub fn endure(program: &Path, agent: PathBuf) -> Result<Aftermath> {
    let scratch = tempfile::Builder::new().prefix("abuse").tempdir()?;
    let contender = Contender::Postern(agent);
    let mut ground = Ground::start(scratch.path(), program, &contender, Priority::ordinary())?;
    ground.endure().with_context(|| ground.relay.end_of_log())
}

/// The relay under attack.
struct Ground {
    relay: Relay,
    generator: Generator,
    _field: Field,
    resident: u64,
}

/// One step of an attack, its measurements added up.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    media_sent: u64,
    media_arrived: u64,
    attack_sent: u64,
    closed: u64,
    seconds: f64,
    relay_time: u64,
}

impl Step {
    fn add(&mut self, attacked: &Attacked) {
        self.media_sent += attacked.media.sent;
        self.media_arrived += attacked.media.arrived;
        self.attack_sent += attacked.sent;
        self.closed += attacked.closed;
        self.seconds += attacked.media.seconds;
        self.relay_time += attacked.media.relay_time;
    }

    fn rate(&self) -> f64 {
        real(self.attack_sent) / self.seconds
    }

    fn loss(&self) -> f64 {
        1.0 - real(self.media_arrived) / real(self.media_sent.max(1))
    }

    /// The part of a core that the relay had.
    fn core(&self) -> f64 {
        real(self.relay_time) / 1e9 / self.seconds
    }
}

impl Ground {
    fn start(
        folder: &Path,
        program: &Path,
        contender: &Contender,
        priority: Priority,
    ) -> Result<Self> {
        let field = Field::start(folder)?;
        let relay = contender.start(&field, priority)?;
        let mut generator = Generator::start(program, &field, priority)?;
        generator.prepare(MEDIA)?;
        let resident = processor::resident(relay.process())?;
        Ok(Self { relay, generator, _field: field, resident })
    }

    fn run(&mut self) -> Result<()> {
        let attack = Beside::Flood(Attack::Garbage, None);
        let ceiling = self.step(attack, 1)?.rate();
        println!("generator's ceiling {ceiling:.0} pps; {:.1} MB resident", mega(self.resident));
        for (attack, name) in FLOODS {
            println!("\n{name}");
            for part in STEPS {
                let rate = part * ceiling;
                let step = self.step(Beside::Flood(attack, Some(rate.max(1.0))), REPEATS)?;
                self.show(&step)?;
            }
            if attack == Attack::Garbage {
                let step = self.step(Beside::Flood(attack, Some(PROMISED_GARBAGE)), REPEATS)?;
                self.show(&step)?;
                let verdict = if step.loss() < PROMISED_LOSS { "met" } else { "NOT MET" };
                println!("  bar < 0.1 % of media lost beside {:.0} pps: {verdict}", step.rate());
            }
        }
        println!("\n{CONNECTIONS} TCP connections that never finish a message");
        match self.step(Beside::SlowTcp(CONNECTIONS), REPEATS) {
            Ok(step) => {
                self.show(&step)?;
                println!("  {} of them closed by the relay", step.closed);
            }
            Err(error) => println!("  not measured: {error:#}"),
        }
        let granted = self.generator.disguises()?;
        println!("\nforbidden peers in disguise that were let through: {granted:?}");
        self.relay.ensure_alive()
    }

    fn endure(&mut self) -> Result<Aftermath> {
        let count = |report: &serde_json::Value, name: &str| {
            report[name].as_u64().with_context(|| format!("no {name} in {report}"))
        };
        let before = self.relay.report()?;
        for (attack, _) in FLOODS {
            self.step(Beside::Flood(attack, Some(SHORT_FLOOD)), REPEATS)?;
        }
        let granted = self.generator.disguises()?;
        let after = self.relay.report()?;
        let grown = processor::resident(self.relay.process())?.saturating_sub(self.resident);
        let rules = after["refused"].as_object().context("no refusals in the report")?;
        let refused = rules.values().filter_map(serde_json::Value::as_u64).sum::<u64>()
            + count(&after["dropped"], "malformed")?
            + count(&after, "refused-credentials")?;
        self.generator.free()?;
        let pair = |name| -> Result<_> { Ok([count(&before, name)?, count(&after, name)?]) };
        Ok(Aftermath {
            grown,
            relays: pair("active-relays-udp")?,
            allocations: pair("allocations-total")?,
            refused,
            granted,
        })
    }

    fn step(&mut self, attack: Beside, repeats: usize) -> Result<Step> {
        let mut step = Step::default();
        for _ in 0..repeats {
            self.relay.ensure_alive()?;
            let process = self.relay.process();
            step.add(&self.generator.beside(MEDIA_PER_SECOND, attack, process)?);
        }
        Ok(step)
    }

    fn show(&self, step: &Step) -> Result<()> {
        let resident = processor::resident(self.relay.process())?;
        println!(
            "  {:>8.0} pps: {:>7.3} % of {} media packets lost, {:>3.0} % of the core, {:+.1} MB",
            step.rate(),
            step.loss() * 100.0,
            step.media_sent,
            step.core() * 100.0,
            mega(resident) - mega(self.resident),
        );
        Ok(())
    }
}

fn mega(octets: u64) -> f64 {
    real(octets) / 1e6
}
