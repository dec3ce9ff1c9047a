//! The generator's process: reads what to do, does it, answers.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use sys::packet_socket::{Frames, PacketSocket};

use crate::bench::load::attack::{self, Attack, Disguise};
use crate::bench::load::client::Client;
use crate::bench::load::counter::Counter;
use crate::bench::load::offer::{self, Outlet, Stream};
use crate::bench::load::trickle::Trickle;
use crate::bench::load::{
    Allocated, Answer, Ask, Attacked, Beside, Direction, Shape, flow, namespace, real,
};
use crate::bench::processor;

/// Frames sent with one call; at half a million per second, every 64 us.
const BATCH: usize = 32;
/// Merged runs sent with one call.
const MERGED_BATCH: usize = 8;
/// The same of media beside an attack, which are few.
const MEDIA_BATCH: usize = 4;

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
    /// How often clients were replaced.
    generation: u16,
    open: Vec<Client>,
    prepared: Option<(Shape, Frames)>,
    flood: Option<(Attack, Frames)>,
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
            generation: 0,
            open: Vec::new(),
            prepared: None,
            flood: None,
        })
    }

    fn answer(&mut self, ask: Ask) -> Result<Answer> {
        match ask {
            Ask::Prepare(shape) => {
                self.free()?;
                self.open = flow::prepare(self.clients, self.generation, shape)?;
                self.prepared = Some((shape, flow::frames(&self.open, shape)?));
                Ok(Answer::Done)
            }
            Ask::Offer { packets_per_second, relay } => self.offer(packets_per_second, relay),
            Ask::AllocateInTurn { count, relay } => self.allocate_in_turn(count, relay),
            Ask::Hold { count } => {
                self.free()?;
                self.open = flow::open_clients(self.clients, self.generation, count.into())?;
                self.open.iter_mut().try_for_each(Client::allocate)?;
                Ok(Answer::Done)
            }
            Ask::Beside { media_per_second, attack, relay } => {
                self.beside(media_per_second, attack, relay).map(Answer::Attacked)
            }
            Ask::Disguises => self.disguises().map(Answer::Granted),
            Ask::Free => self.free().map(|()| Answer::Done),
        }
    }

    fn free(&mut self) -> Result<()> {
        self.prepared = None;
        self.flood = None;
        self.generation += 1;
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
        let frames_per_second = packets_per_second.map(|rate| rate / f64::from(merged));
        let stream = Stream::new(socket, frames, batch, frames_per_second);
        let mut outlet = Outlet { counter, payload, relay };
        Ok(Answer::Offered(offer::offer(stream, merged, &mut outlet)?))
    }

    fn beside(&mut self, media_per_second: f64, attack: Beside, relay: u32) -> Result<Attacked> {
        let (shape, frames) = self.prepared.as_mut().context("no media is prepared")?;
        let single = shape.direction == Direction::ClientToPeer && !shape.merged;
        ensure!(single, "media beside an attack are single packets of clients");
        let media = Stream::new(&self.from_clients, frames, MEDIA_BATCH, Some(media_per_second));
        let payload = u64::from(shape.payload);
        let mut outlet = Outlet { counter: &mut self.at_peers, payload, relay };
        match attack {
            Beside::Flood(attack, per_second) => {
                if self.flood.as_ref().is_none_or(|(made, _)| *made != attack) {
                    self.flood = Some((attack, attack::frames(attack, &self.open)?));
                }
                let (_, frames) = self.flood.as_mut().context("a flood was just made")?;
                let mut flood = Stream::new(&self.from_clients, frames, BATCH, per_second);
                let media = offer::beside(media, &mut outlet, |now| flood.pump(now))?;
                Ok(Attacked { media, sent: flood.sent(), closed: 0 })
            }
            Beside::SlowTcp(connections) => {
                let mut trickle = Trickle::open(self.clients, connections.into())?;
                let media = offer::beside(media, &mut outlet, |now| Ok(trickle.pump(now)))?;
                let closed = u64::try_from(trickle.closed())?;
                Ok(Attacked { media, sent: trickle.sent(), closed })
            }
        }
    }

    fn disguises(&self) -> Result<Vec<String>> {
        let client = self.open.first().context("no client is prepared")?;
        let mut granted = Vec::new();
        for Disguise { peer, by_port } in attack::disguises()? {
            if client.is_granted(peer, true)? {
                granted.push(format!("a channel to {peer}"));
            }
            if !by_port && client.is_granted(peer, false)? {
                granted.push(format!("a permission for {peer}"));
            }
        }
        Ok(granted)
    }

    fn allocate_in_turn(&mut self, count: u16, relay: u32) -> Result<Answer> {
        self.free()?;
        self.open = flow::open_clients(self.clients, self.generation, count.into())?;
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
