//! `cargo ci bench relay`: the relay beside coturn, on one core, in the same run.
//!
//! Rounds are interleaved (ours, coturn, ours, …), each figure is the median of its rounds, and a
//! bar that lies between the smallest and the largest of them is not decided.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::bench::contender::{Contender, Relay};
use crate::bench::field::{Field, MEDIA_PORTS};
use crate::bench::load::{Direction, Generator, Shape, real};
use crate::bench::processor::{self, Priority};
use crate::bench::search::{self, Capacity};
use crate::bench::verdict::{Bar, Figures};

/// Flows that take turns in every row.
const FLOWS: u16 = 100;
/// Allocations made one after the other.
const ALLOCATIONS: u16 = 1_000;
/// Allocations held to see what one takes.
const HELD: u16 = 2_000;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often.
    pub rounds: usize,
    /// Only rows whose name begins so.
    pub only: Option<String>,
    /// Only ours.
    pub no_peer: bool,
}

/// One line of the table.
struct Row {
    name: &'static str,
    what: &'static str,
    work: Work,
    bar: Bar,
}

enum Work {
    Relay(Shape),
    Allocate,
    Memory,
    Start,
}

fn rows() -> Vec<Row> {
    use Direction::{ClientToClient, ClientToPeer, PeerToClient};
    let relay = |direction, payload, burst, merged| {
        Work::Relay(Shape { direction, payload, burst, merged, flows: FLOWS })
    };
    let row = |name, what, work, bar| Row { name, what, work, bar };
    vec![
        row(
            "packets-160",
            "160 B, flows interleaved",
            relay(ClientToPeer, 160, 1, false),
            Bar::Times(1.25),
        ),
        row(
            "merged-4",
            "1200 B, merged bursts of 4",
            relay(ClientToPeer, 1200, 4, true),
            Bar::Times(2.5),
        ),
        row(
            "merged-16",
            "1200 B, merged bursts of 16",
            relay(ClientToPeer, 1200, 16, true),
            Bar::Times(4.5),
        ),
        row(
            "client-to-client",
            "160 B, both clients here",
            relay(ClientToClient, 160, 1, false),
            Bar::Times(2.8),
        ),
        row(
            "peer-to-client",
            "160 B, flows interleaved",
            relay(PeerToClient, 160, 1, false),
            Bar::None,
        ),
        row(
            "bursts-16",
            "160 B, bursts of 16, not merged",
            relay(ClientToPeer, 160, 16, false),
            Bar::None,
        ),
        row("allocate", "CPU per Allocate, us", Work::Allocate, Bar::AtMost(60.0)),
        row("memory", "per idle allocation, B", Work::Memory, Bar::AtMost(2_500.0)),
        row("start", "until it answers, ms", Work::Start, Bar::AtMost(200.0)),
    ]
}

/// Measures and prints. `program` is this one, which is also the load generator.
///
/// # Errors
///
/// Says what could not be measured.
pub fn run(program: &Path, agent: PathBuf, options: &Options) -> Result<()> {
    let wanted = |row: &Row| options.only.as_deref().is_none_or(|only| row.name.starts_with(only));
    let rows: Vec<Row> = rows().into_iter().filter(wanted).collect();
    ensure!(!rows.is_empty() && options.rounds > 0, "there is nothing to measure");
    let contenders = contenders(agent, options.no_peer);
    let priority = Priority::claim()?;
    println!("one core for the relay, one for the load; {FLOWS} flows; < 1 % loss");
    println!("media ports {}-{}; rounds: {}", MEDIA_PORTS.0, MEDIA_PORTS.1, options.rounds);
    for contender in &contenders {
        println!("{}: {}", contender.name(), contender.version()?);
    }
    let scratch = tempfile::Builder::new().prefix("bench").tempdir()?;
    let mut stands = Vec::new();
    for contender in contenders {
        let field = Field::start(&scratch.path().join(contender.name()))?;
        let generator = Generator::start(program, &field, priority)?;
        stands.push(Stand { contender, relay: None, generator, field, priority });
    }
    for row in &rows {
        measure(row, &mut stands, options.rounds).with_context(|| row.name)?;
    }
    Ok(())
}

fn contenders(agent: PathBuf, no_peer: bool) -> Vec<Contender> {
    let mut contenders = vec![Contender::Postern(agent)];
    if !no_peer {
        contenders.push(Contender::Coturn("/usr/bin/turnserver".into(), "coturn"));
        if let Some(program) = std::env::var_os("COTURN") {
            contenders.push(Contender::Coturn(program.into(), "COTURN"));
        }
    }
    contenders
}

/// A contender with namespaces and a load generator of its own.
struct Stand {
    contender: Contender,
    /// Kept between rows of relayed load.
    relay: Option<Relay>,
    generator: Generator,
    field: Field,
    priority: Priority,
}

impl Stand {
    fn restart(&mut self) -> Result<&Relay> {
        self.relay = None;
        let relay = self.contender.start(&self.field, self.priority)?;
        Ok(self.relay.insert(relay))
    }

    fn process(&mut self) -> Result<u32> {
        match &mut self.relay {
            Some(relay) => {
                relay.ensure_alive()?;
                Ok(relay.process())
            }
            None => Ok(self.restart()?.process()),
        }
    }

    fn capacity(&mut self, shape: Shape) -> Result<Capacity> {
        let process = self.process()?;
        self.generator.prepare(shape)?;
        let found = search::capacity(|rate| self.generator.offer(rate, process))?;
        self.generator.free()?;
        Ok(found)
    }

    /// Microseconds of CPU for each Allocate, and for each one freed.
    fn allocate(&mut self) -> Result<(f64, f64)> {
        let process = self.restart()?.process();
        // The first ones pay for what is set up once.
        self.generator.allocate_in_turn(100, process)?;
        let allocated = self.generator.allocate_in_turn(ALLOCATIONS, process)?;
        Ok((real(allocated.made) / 1e3, real(allocated.freed) / 1e3))
    }

    /// Octets of memory for each allocation.
    fn memory(&mut self) -> Result<f64> {
        let process = self.restart()?.process();
        self.generator.allocate_in_turn(1, process)?;
        let before = processor::resident(process)?;
        self.generator.hold(HELD)?;
        let after = processor::resident(process)?;
        self.generator.free()?;
        self.relay = None;
        Ok(real(after.saturating_sub(before)) / f64::from(HELD))
    }

    /// Milliseconds from its start to its first answer.
    fn start(&mut self) -> Result<f64> {
        let took = self.restart()?.started_in;
        Ok(took.as_secs_f64() * 1e3)
    }

    /// Its end of the log when something went wrong.
    fn explain(&self) -> String {
        self.relay.as_ref().map(Relay::end_of_log).unwrap_or_default()
    }
}

/// What one contender's rounds gave.
#[derive(Clone, Debug, Default)]
struct Measured {
    figures: Figures,
    /// Of relayed load: CPU seconds per million packets, flooded throughput, generator's ceiling.
    cost: Figures,
    saturated: Figures,
    ceiling: Figures,
    /// Of allocations: microseconds to free one.
    freed: Figures,
    is_limited_by_generator: bool,
}

fn measure(row: &Row, stands: &mut [Stand], rounds: usize) -> Result<()> {
    let mut measured = vec![Measured::default(); stands.len()];
    for _ in 0..rounds {
        for (stand, into) in stands.iter_mut().zip(&mut measured) {
            let result = one_round(row, stand, into);
            if let Err(error) = result {
                let log = stand.explain();
                bail!("{}: {error:#}\n{log}", stand.contender.name());
            }
        }
    }
    println!("\n{} ({})", row.name, row.what);
    let unit = if matches!(row.work, Work::Relay(_)) { " pps" } else { "" };
    for (stand, measured) in stands.iter().zip(&measured) {
        show(stand.contender.name(), measured, unit);
    }
    let ours = &measured[0];
    for (stand, theirs) in stands.iter().zip(&measured).skip(1) {
        let ratios = ours.figures.over(&theirs.figures);
        if let (Some(median), Some((low, high))) = (ratios.median(), ratios.range()) {
            let name = stand.contender.name();
            println!("  ratio to {name:<10} {median:>8.2}  ({low:.2}-{high:.2})");
        }
    }
    judge(row, &measured);
    Ok(())
}

fn one_round(row: &Row, stand: &mut Stand, into: &mut Measured) -> Result<()> {
    match &row.work {
        Work::Relay(shape) => {
            let found = stand.capacity(*shape)?;
            into.figures.push(found.best.rate());
            into.cost.push(found.best.seconds_per_million());
            into.saturated.push(found.saturated);
            into.ceiling.push(found.ceiling);
            into.is_limited_by_generator |= found.is_limited_by_generator();
        }
        Work::Allocate => {
            let (made, freed) = stand.allocate()?;
            into.figures.push(made);
            into.freed.push(freed);
        }
        Work::Memory => into.figures.push(stand.memory()?),
        Work::Start => into.figures.push(stand.start()?),
    }
    Ok(())
}

fn show(name: &str, measured: &Measured, unit: &str) {
    let (Some(median), Some((low, high))) = (measured.figures.median(), measured.figures.range())
    else {
        return;
    };
    let bound = if measured.is_limited_by_generator { ">=" } else { "" };
    print!("  {name:<10} {bound:>2}{median:>10.0}{unit}  ({low:.0}-{high:.0})");
    if let (Some(cost), Some(saturated), Some(ceiling)) =
        (measured.cost.median(), measured.saturated.median(), measured.ceiling.median())
    {
        print!("  {cost:.2} CPU s/Mpkt; flooded {saturated:.0}; generator's ceiling {ceiling:.0}");
    }
    if let Some(freed) = measured.freed.median() {
        print!("  freed again: {freed:.0} us");
    }
    println!();
}

fn judge(row: &Row, measured: &[Measured]) {
    let ours = &measured[0].figures;
    let (text, verdict) = match row.bar {
        Bar::Times(bar) => {
            let Some(coturn) = measured.get(1) else { return };
            let ratios = ours.over(&coturn.figures);
            (format!(">= {bar} x coturn"), row.bar.judge(&ratios))
        }
        Bar::AtMost(bar) => (format!("<= {bar}"), row.bar.judge(ours)),
        Bar::None => return,
    };
    if let Some(verdict) = verdict {
        println!("  bar {text}: {verdict}");
    }
}
