//! The control thread's end of all shards.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::EventFd;
use turn::{AllocationStatus, Config, Counters, Shared, Status};

use crate::relay::acceptor::Acceptor;
use crate::relay::shard::listeners::Opened;
use crate::relay::stream::StreamCounters;

/// What the control thread asks a shard for.
pub(super) enum Command {
    Serve(Box<Serve>),
    Stop(SyncSender<()>),
    Snapshot(SyncSender<Snapshot>),
}

/// A configuration with its listeners.
pub(super) struct Serve {
    pub(super) shared: Arc<Shared>,
    pub(super) config: Arc<Config>,
    /// Every address to serve, in the order status shows them.
    pub(super) wanted: Vec<SocketAddr>,
    /// Sockets for those that are not open yet.
    pub(super) opened: Vec<Opened>,
    pub(super) done: SyncSender<io::Result<()>>,
}

/// A new address with its sockets.
#[derive(Debug)]
pub(in crate::relay) struct NewListener {
    /// What clients talk to.
    pub(in crate::relay) address: SocketAddr,
    /// One per shard; or a single one, which the first shard reads and all send from.
    pub(in crate::relay) sockets: Vec<UdpSocket>,
}

/// What a shard, or all of them together, is doing.
#[derive(Clone, Debug, Default)]
pub(in crate::relay) struct Snapshot {
    /// Addresses whose sockets are open.
    pub(in crate::relay) listeners: Vec<SocketAddr>,
    /// Clients and relays.
    pub(in crate::relay) status: Status,
    /// What has happened.
    pub(in crate::relay) counters: Counters,
    /// Some of the allocations.
    pub(in crate::relay) allocations: Vec<AllocationStatus>,
    /// What the sockets have lost.
    pub(in crate::relay) losses: Losses,
    /// When a request last found no port, or the total quota used up.
    pub(in crate::relay) exhausted_at: Option<Instant>,
    /// How many shards these are.
    pub(in crate::relay) shards: usize,
    /// Connections of clients and with peers.
    pub(in crate::relay) streams: StreamCounters,
}

/// Packets that were lost between the kernel and the state machine.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::relay) struct Losses {
    /// The kernel, or a client's stream, did not take them.
    pub(in crate::relay) not_sent: u64,
    /// They found no room in the receive buffer of a listener.
    pub(in crate::relay) listener_overflows: u64,
    /// They found no room in the receive buffer of a relay port's socket.
    pub(in crate::relay) relay_overflows: u64,
    /// They found no room on their way to another shard.
    pub(in crate::relay) ring_overflows: u64,
    /// Runs, none of them lost, that the kernel would not split.
    pub(in crate::relay) unsegmented: u64,
}

impl Snapshot {
    /// Adds another shard's; both serve the same addresses.
    fn add(&mut self, other: Self) {
        self.listeners = other.listeners;
        self.status += other.status;
        self.counters += other.counters;
        self.allocations.extend(other.allocations);
        self.exhausted_at = self.exhausted_at.max(other.exhausted_at);
        self.shards += other.shards;
        self.losses.not_sent += other.losses.not_sent;
        self.losses.listener_overflows += other.losses.listener_overflows;
        self.losses.relay_overflows += other.losses.relay_overflows;
        self.losses.ring_overflows += other.losses.ring_overflows;
        self.losses.unsegmented += other.losses.unsegmented;
        self.streams += other.streams;
    }
}

/// One shard, as the control thread sees it.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) commands: Sender<Command>,
    pub(super) wake: Arc<EventFd>,
}

/// All shards, as the control thread sees them.
#[derive(Clone)]
pub(in crate::relay) struct Handle {
    lines: Vec<Line>,
    /// There while something is served.
    shared: Arc<Mutex<Option<Arc<Shared>>>>,
    acceptor: Acceptor,
}

impl Handle {
    pub(super) fn new(lines: Vec<Line>, acceptor: Acceptor) -> Self {
        Self { lines, shared: Arc::default(), acceptor }
    }

    /// How many shards there are.
    pub(in crate::relay) const fn shards(&self) -> usize {
        self.lines.len()
    }

    /// Who takes connections of clients.
    pub(in crate::relay) const fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// Serves `config` on exactly `wanted`; `opened` are those that were not open before.
    ///
    /// # Errors
    ///
    /// Returns the error of epoll_ctl(2) or dup(2), or `BrokenPipe` when a shard is gone.
    pub(in crate::relay) fn serve(
        &self,
        config: Config,
        wanted: &[SocketAddr],
        opened: Vec<NewListener>,
    ) -> io::Result<()> {
        let shared = self.shared(&config)?;
        let config = Arc::new(config);
        let deals = deal(opened, self.lines.len())?;
        let mut answers = Vec::new();
        for (line, opened) in self.lines.iter().zip(deals) {
            let (shared, config) = (Arc::clone(&shared), Arc::clone(&config));
            let wanted = wanted.to_vec();
            answers.push(line.ask(|done| {
                Command::Serve(Box::new(Serve { shared, config, wanted, opened, done }))
            })?);
        }
        answers.into_iter().try_for_each(|answer| answer.recv().map_err(broken)?)
    }

    /// Closes every socket.
    ///
    /// # Errors
    ///
    /// Returns `BrokenPipe` when a shard is gone.
    pub(in crate::relay) fn stop(&self) -> io::Result<()> {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let answers = self.lines.iter().map(|line| line.ask(Command::Stop));
        let answers: Vec<_> = answers.collect::<io::Result<_>>()?;
        answers.into_iter().try_for_each(|answer| answer.recv().map_err(broken))
    }

    /// What the shards are doing right now, all together.
    ///
    /// # Errors
    ///
    /// Returns `BrokenPipe` when a shard is gone.
    pub(in crate::relay) fn snapshot(&self) -> io::Result<Snapshot> {
        let answers = self.lines.iter().map(|line| line.ask(Command::Snapshot));
        let answers: Vec<_> = answers.collect::<io::Result<_>>()?;
        let mut sum = Snapshot::default();
        for answer in answers {
            sum.add(answer.recv().map_err(broken)?);
        }
        Ok(sum)
    }

    /// What the shards share: made with the first configuration, kept until nothing is served.
    fn shared(&self, config: &Config) -> io::Result<Arc<Shared>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = &*shared {
            return Ok(Arc::clone(shared));
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Arc::clone(shared.insert(Shared::new(config, seed))))
    }
}

impl Line {
    fn ask<T>(
        &self,
        command: impl FnOnce(SyncSender<T>) -> Command,
    ) -> io::Result<std::sync::mpsc::Receiver<T>> {
        let (sender, receiver) = sync_channel(1);
        self.commands.send(command(sender)).map_err(|_| broken(std::sync::mpsc::RecvError))?;
        self.wake.write(1)?;
        Ok(receiver)
    }
}

fn broken(_gone: std::sync::mpsc::RecvError) -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// Gives each shard its sockets.
fn deal(opened: Vec<NewListener>, shards: usize) -> io::Result<Vec<Vec<Opened>>> {
    let mut deals: Vec<Vec<Opened>> = std::iter::repeat_with(Vec::new).take(shards).collect();
    for NewListener { address, mut sockets } in opened {
        let own = sockets.len() == shards;
        for (shard, deal) in deals.iter_mut().enumerate().rev() {
            let socket = match (own, sockets.first()) {
                (false, Some(socket)) if shard > 0 => socket.try_clone()?,
                _ => sockets.pop().ok_or(io::ErrorKind::InvalidInput)?,
            };
            deal.push(Opened { address, socket, reads: own || shard == 0 });
        }
    }
    Ok(deals)
}
