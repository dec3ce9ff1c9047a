//! The generator's process: reads what to do, does it, answers.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::unistd::Pid;
use sys::packet_socket::{Frames, PacketSocket};

use crate::bench::load::client::Client;
use crate::bench::load::counter::Counter;
use crate::bench::load::offer::Load;
use crate::bench::load::{Allocated, Answer, Ask, Direction, Shape, flow, namespace, real};
use crate::bench::processor;

/// Frames sent with one call; at half a million per second, every 64 us.
const BATCH: usize = 32;
/// Merged runs sent with one call.
const MERGED_BATCH: usize = 8;

/// Whose network namespaces the load is for.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Arguments {
    /// A process in the clients' namespace.
    #[arg(long)]
    clients: i32,
    /// A process in the peers' namespace.
    #[arg(long)]
    peers: i32,
}

/// Answers commands until standard input ends.
///
/// # Errors
///
/// Says what it lacks to begin; a command that fails is answered so.
pub fn serve(arguments: Arguments) -> Result<()> {
    let mut process = Process::new(arguments)?;
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?).context("not a command") {
            Ok(ask) => process.answer(ask),
            Err(error) => Err(error),
        };
        let answer = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
        let mut line = serde_json::to_string(&answer)?;
        line.push('\n');
        output.write_all(line.as_bytes())?;
        output.flush()?;
    }
    Ok(())
}

struct Process {
    clients: Pid,
    from_clients: PacketSocket,
    from_peers: PacketSocket,
    at_clients: Counter,
    at_peers: Counter,
    open: Vec<Client>,
    prepared: Option<(Shape, Frames)>,
}

impl Process {
    fn new(arguments: Arguments) -> Result<Self> {
        let [clients, peers] = [arguments.clients, arguments.peers].map(Pid::from_raw);
        Ok(Self {
            clients,
            from_clients: namespace::enter(clients, || Ok(PacketSocket::open("c0")?))?,
            from_peers: namespace::enter(peers, || Ok(PacketSocket::open("p0")?))?,
            at_clients: Counter::open(clients, "c0")?,
            at_peers: Counter::open(peers, "p0")?,
            open: Vec::new(),
            prepared: None,
        })
    }

    fn answer(&mut self, ask: Ask) -> Result<Answer> {
        match ask {
            Ask::Prepare(shape) => {
                self.free()?;
                self.open = flow::prepare(self.clients, shape)?;
                self.prepared = Some((shape, flow::frames(&self.open, shape)?));
                Ok(Answer::Done)
            }
            Ask::Offer { packets_per_second, relay } => self.offer(packets_per_second, relay),
            Ask::AllocateInTurn { count, relay } => self.allocate_in_turn(count, relay),
            Ask::Hold { count } => {
                self.free()?;
                self.open = flow::open_clients(self.clients, count.into())?;
                self.open.iter_mut().try_for_each(Client::allocate)?;
                Ok(Answer::Done)
            }
            Ask::Free => self.free().map(|()| Answer::Done),
        }
    }

    fn free(&mut self) -> Result<()> {
        self.prepared = None;
        let clients = std::mem::take(&mut self.open);
        clients.into_iter().try_for_each(|mut client| client.free())
    }

    fn offer(&mut self, packets_per_second: Option<f64>, relay: u32) -> Result<Answer> {
        let (shape, frames) = self.prepared.as_mut().context("nothing is prepared")?;
        let (socket, counter, header) = match shape.direction {
            Direction::ClientToPeer => (&self.from_clients, &mut self.at_peers, 0),
            Direction::PeerToClient => (&self.from_peers, &mut self.at_clients, 4),
            Direction::ClientToClient => (&self.from_clients, &mut self.at_clients, 4),
        };
        let (merged, batch) = if shape.merged { (shape.burst, MERGED_BATCH) } else { (1, BATCH) };
        let payload = u64::from(shape.payload) + header;
        let mut load = Load { socket, frames, merged, batch, counter, payload };
        Ok(Answer::Offered(load.offer(packets_per_second, relay)?))
    }

    fn allocate_in_turn(&mut self, count: u16, relay: u32) -> Result<Answer> {
        self.free()?;
        self.open = flow::open_clients(self.clients, count.into())?;
        let before = processor::time_used(relay)?;
        let begun = Instant::now();
        self.open.iter_mut().try_for_each(Client::allocate)?;
        let seconds = begun.elapsed().as_secs_f64();
        let between = processor::time_used(relay)?;
        self.free()?;
        let after = processor::time_used(relay)?;
        let each = |time: u64| time / u64::from(count.max(1));
        Ok(Answer::Allocated(Allocated {
            made: each(between - before),
            freed: each(after - between),
            per_second: real(count.into()) / seconds,
        }))
    }
}
