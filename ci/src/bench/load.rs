//! The load generator: a process of its own, on a core of its own.
//!
//! It is told what to do by lines of JSON on its standard input and answers each with one on its
//! standard output. TURN requests go through one UDP socket per client; relayed load is frames
//! made beforehand, sent many with one call past the client namespace's network stack, which is
//! faster than sockets are. What arrives is counted by the link's own counters.
//!
//! # Invariants
//!
//! 1. Everything it sends stays in the namespaces of `Field`.
//! 2. Every command ends: load is bounded in time, requests in number and patience.

pub(super) mod attack;
pub(super) mod client;
mod counter;
mod flow;
mod frame;
pub(super) mod namespace;
mod offer;
mod process;
mod trickle;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use crate::bench::load::process::{Arguments, serve};

use crate::bench::field::Field;
use crate::bench::load::attack::Attack;
use crate::bench::processor::{self, Priority};

/// Where relayed packets come from and where they go.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Direction {
    /// ChannelData of clients, to a peer.
    ClientToPeer,
    /// Datagrams of a peer, to clients.
    PeerToClient,
    /// ChannelData of clients, to the relayed addresses of other clients.
    ClientToClient,
}

/// What relayed load looks like.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// Its way.
    pub(crate) direction: Direction,
    /// Octets of each packet's application data.
    pub(crate) payload: u16,
    /// Packets of one flow in a row.
    pub(crate) burst: u16,
    /// Whether a burst arrives as one merged run, as a network card with UDP GRO gives it.
    pub(crate) merged: bool,
    /// Flows that take turns.
    pub(crate) flows: u16,
}

/// What the generator is asked to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Ask {
    /// Allocations, permissions and channels for load of this shape.
    Prepare(Shape),
    /// Load at this rate, for one measurement; `None`: as fast as it can.
    Offer { packets_per_second: Option<f64>, relay: u32 },
    /// Allocates one after the other, each with a 401 first, and frees all.
    AllocateInTurn { count: u16, relay: u32 },
    /// Makes this many allocations and keeps them.
    Hold { count: u16 },
    /// Media of the prepared shape at this rate, and an attack beside it.
    Beside { media_per_second: f64, attack: Beside, relay: u32 },
    /// Tries every disguise of a forbidden peer, with the first of the prepared clients.
    Disguises,
    /// Frees every allocation.
    Free,
}

/// What goes on beside media.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Beside {
    /// A flood at this many packets per second; `None`: as many as go.
    Flood(Attack, Option<f64>),
    /// So many TCP connections that never finish a message.
    SlowTcp(u16),
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    Offered(Offered),
    Allocated(Allocated),
    Attacked(Attacked),
    Granted(Vec<String>),
    Failed(String),
}

/// One measurement of relayed load.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Offered {
    /// Packets sent.
    pub(crate) sent: u64,
    /// Packets that came out of the relay.
    pub(crate) arrived: u64,
    /// How long that was.
    pub(crate) seconds: f64,
    /// What the relay ran meanwhile, in nanoseconds.
    pub(crate) relay_time: u64,
}

impl Offered {
    /// Packets per second sent.
    #[must_use]
    pub(crate) fn rate(&self) -> f64 {
        real(self.sent) / self.seconds
    }

    /// Packets per second that came through.
    #[must_use]
    pub(crate) fn throughput(&self) -> f64 {
        real(self.arrived) / self.seconds
    }

    /// The part that was lost; what came late from before makes it negative at most by a little.
    #[must_use]
    pub(crate) fn loss(&self) -> f64 {
        1.0 - real(self.arrived) / real(self.sent.max(1))
    }

    /// The relay's CPU seconds per million packets that came through.
    #[must_use]
    pub(crate) fn seconds_per_million(&self) -> f64 {
        real(self.relay_time) / 1e3 / real(self.arrived.max(1))
    }
}

/// Media beside an attack.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Attacked {
    /// The media, counted to the last packet.
    pub(crate) media: Offered,
    /// Packets of the attack that were sent.
    pub(crate) sent: u64,
    /// TCP connections that the relay has closed.
    pub(crate) closed: u64,
}

/// CPU time of the relay for each of many allocations.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Allocated {
    /// Nanoseconds for a refused and a granted Allocate, everything that it opens included.
    pub(crate) made: u64,
    /// Nanoseconds to free it again.
    pub(crate) freed: u64,
    /// Allocations per second, one after the other.
    pub(crate) per_second: f64,
}

/// The generator's process; it ends with this value.
#[derive(Debug)]
pub(crate) struct Generator {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Generator {
    /// Starts `program load …` (this program) between the namespaces of `field`.
    ///
    /// # Errors
    ///
    /// Says when it cannot be started.
    pub(crate) fn start(program: &Path, field: &Field, priority: Priority) -> Result<Self> {
        let words = priority.command(processor::LOAD, program);
        let (first, rest) = words.split_first().context("a program")?;
        let mut child = Command::new(first)
            .args(rest)
            .arg("load")
            .args(["--clients", &field.clients.init().to_string()])
            .args(["--peers", &field.peers.init().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the load generator")?;
        let to = child.stdin.take().context("a pipe to the load generator")?;
        let from = child.stdout.take().context("a pipe from the load generator")?;
        Ok(Self { child, to, from: BufReader::new(from) })
    }

    /// Makes allocations for load of this shape, after freeing those of the last one.
    ///
    /// # Errors
    ///
    /// Says what the relay refused.
    pub(crate) fn prepare(&mut self, shape: Shape) -> Result<()> {
        self.done(Ask::Prepare(shape))
    }

    /// Offers load for one measurement of the relay's process.
    ///
    /// # Errors
    ///
    /// Says what the generator could not do.
    pub(crate) fn offer(&mut self, packets_per_second: Option<f64>, relay: u32) -> Result<Offered> {
        match self.ask(Ask::Offer { packets_per_second, relay })? {
            Answer::Offered(offered) => Ok(offered),
            other => bail!("an answer to something else: {other:?}"),
        }
    }

    /// Makes `count` allocations one after the other, and frees them.
    ///
    /// # Errors
    ///
    /// Says what the relay refused.
    pub(crate) fn allocate_in_turn(&mut self, count: u16, relay: u32) -> Result<Allocated> {
        match self.ask(Ask::AllocateInTurn { count, relay })? {
            Answer::Allocated(allocated) => Ok(allocated),
            other => bail!("an answer to something else: {other:?}"),
        }
    }

    /// Makes `count` allocations, each of another client, and keeps them.
    ///
    /// # Errors
    ///
    /// Says what the relay refused.
    pub(crate) fn hold(&mut self, count: u16) -> Result<()> {
        self.done(Ask::Hold { count })
    }

    /// Sends media of the prepared shape with an attack beside it.
    ///
    /// # Errors
    ///
    /// Says what the generator could not do.
    pub(crate) fn beside(
        &mut self,
        media_per_second: f64,
        attack: Beside,
        relay: u32,
    ) -> Result<Attacked> {
        match self.ask(Ask::Beside { media_per_second, attack, relay })? {
            Answer::Attacked(attacked) => Ok(attacked),
            other => bail!("an answer to something else: {other:?}"),
        }
    }

    /// Tries every disguise of a forbidden peer and returns those that were let through.
    ///
    /// # Errors
    ///
    /// Says when the relay does not answer.
    pub(crate) fn disguises(&mut self) -> Result<Vec<String>> {
        match self.ask(Ask::Disguises)? {
            Answer::Granted(granted) => Ok(granted),
            other => bail!("an answer to something else: {other:?}"),
        }
    }

    /// Frees every allocation.
    ///
    /// # Errors
    ///
    /// Says what the relay refused.
    pub(crate) fn free(&mut self) -> Result<()> {
        self.done(Ask::Free)
    }

    fn done(&mut self, ask: Ask) -> Result<()> {
        match self.ask(ask)? {
            Answer::Done => Ok(()),
            other => bail!("an answer to something else: {other:?}"),
        }
    }

    fn ask(&mut self, ask: Ask) -> Result<Answer> {
        let mut line = serde_json::to_string(&ask)?;
        line.push('\n');
        self.to.write_all(line.as_bytes()).context("the load generator is gone")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        match serde_json::from_str(&line).context("the load generator is gone")? {
            Answer::Failed(reason) => bail!("load generator: {reason}"),
            answer => Ok(answer),
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A count as a number to divide.
pub(super) fn real(count: u64) -> f64 {
    // Counts of seconds of load are far below 2^52.
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let real = count as f64;
    real
}
