//! A shard: one thread with a state machine, its clients' sockets and its relay ports. It waits
//! for nothing but events, and shares nothing that is locked per packet.

mod batch;
mod errors;
mod forwarder;
mod handle;
mod listeners;
mod neighbours;
mod outgoing;
mod relays;
mod token;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use turn::{Event, Output, RelayTransport, Server, ShardId};

pub(super) use self::forwarder::Forwarder;
pub(super) use self::handle::{Handle, NewListener, Snapshot};
pub(super) use self::token::{Token as StreamToken, watch};

use self::handle::{Command, Line, Losses, Serve};
use self::neighbours::{Neighbours, Parcel, door};
use self::token::Token;
use crate::relay::acceptor::Acceptor;
use crate::relay::security_log::SecurityLog;
use crate::relay::stream::{Around, Streams, gate};

/// Events taken from epoll at once.
const EVENTS: usize = 256;

/// Parcels of other shards taken before sockets have their turn.
const PARCELS: usize = 256;

/// How often the wall clock is read and the sockets are asked what they dropped.
const TICK: Duration = Duration::from_secs(1);

/// Allocations that one shard tells in a snapshot.
const TOLD_ALLOCATIONS: usize = 1_001;

/// See the module.
pub(super) struct Shard {
    id: ShardId,
    epoll: Arc<Epoll>,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    parcels: Receiver<Parcel>,
    forwarder: Forwarder,
    streams: Streams,
    timeout: Option<Instant>,
    next_tick: Instant,
    log: SecurityLog,
    exhausted_at: Option<Instant>,
}

/// Shards that serve nothing yet, and the handle to them.
///
/// # Errors
///
/// Returns the error of epoll_create1(2), eventfd(2) or epoll_ctl(2).
pub(super) fn new(count: u8) -> io::Result<(Vec<Shard>, Handle)> {
    let mut lines = Vec::new();
    let mut doors = Vec::new();
    let mut gates = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..count.max(1) {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let (sender, commands) = channel();
        let (door, parcels) = door(Arc::clone(&wake));
        doors.push(door);
        let (gate, arrivals) = gate(Arc::clone(&wake));
        gates.push(gate);
        lines.push(Line { commands: sender, wake: Arc::clone(&wake) });
        ends.push((wake, commands, parcels, arrivals));
    }
    let mut shards = Vec::new();
    for (id, (wake, commands, parcels, arrivals)) in (0..).zip(ends) {
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        watch(&epoll, &wake, Token::Wake, EpollFlags::EPOLLIN)?;
        let now = Instant::now();
        shards.push(Shard {
            id: ShardId(id),
            wake,
            commands,
            parcels,
            forwarder: Forwarder::new(Arc::clone(&epoll), Neighbours::new(doors.clone())),
            epoll,
            streams: Streams::new(ShardId(id), gates.clone(), arrivals),
            timeout: None,
            next_tick: now,
            log: SecurityLog::new(now),
            exhausted_at: None,
        });
    }
    Ok((shards, Handle::new(lines, Acceptor::start(gates)?)))
}

impl Shard {
    /// Serves until every handle is gone.
    ///
    /// # Errors
    ///
    /// Returns the error of epoll_wait(2).
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, self.patience()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            self.keep_time(now);
            for event in &events[..count] {
                if !self.handle(Token::decode(event.data()), event.events(), now) {
                    return Ok(());
                }
            }
            self.flush(now);
            self.streams.end_round();
            self.forwarder.neighbours.wake();
        }
    }

    /// Sends everything that waits, and what comes of that.
    fn flush(&mut self, now: Instant) {
        loop {
            self.forwarder.flush(&mut self.streams);
            self.drain(now);
            let mut around = Around { epoll: &self.epoll, forwarder: &mut self.forwarder, now };
            if !self.streams.flush(&mut around) {
                return;
            }
        }
    }

    /// Handles one event; false when there is no handle any more.
    fn handle(&mut self, token: Token, events: EpollFlags, now: Instant) -> bool {
        match token {
            Token::Wake => {
                // A wake-up that is already read is no error: everything is looked at all the same.
                if let Err(error) = self.wake.read() {
                    tracing::debug!("eventfd: {error}");
                }
                self.take_parcels(now);
                let mut around = Around { epoll: &self.epoll, forwarder: &mut self.forwarder, now };
                self.streams.take_arrivals(&mut around);
                self.drain(now);
                return self.obey(now);
            }
            Token::Listener(id) => {
                self.forwarder.receive_from_clients(id, &mut self.streams, now);
                self.drain(now);
            }
            Token::Relay(id) => {
                if events.contains(EpollFlags::EPOLLERR) {
                    self.forwarder.receive_errors(id, now);
                }
                self.forwarder.receive_from_peers(id, &mut self.streams, now);
            }
            Token::Stream(id) => {
                let mut around = Around { epoll: &self.epoll, forwarder: &mut self.forwarder, now };
                self.streams.handle_event(id, events, &mut around);
                self.drain(now);
            }
        }
        true
    }

    /// How long epoll may wait.
    fn patience(&self) -> EpollTimeout {
        let timeout = self.timeout.unwrap_or(self.next_tick).min(self.next_tick);
        // One more millisecond, because epoll cuts fractions off.
        let wait = timeout.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
    }

    fn keep_time(&mut self, now: Instant) {
        if self.next_tick <= now {
            self.next_tick = now + TICK;
            self.tell_wall_clock(now);
            self.forwarder.relays.look_at_drops();
            let mut around = Around { epoll: &self.epoll, forwarder: &mut self.forwarder, now };
            self.streams.keep_time(&mut around);
            self.drain(now);
        }
        if self.timeout.is_some_and(|timeout| timeout <= now) {
            if let Some(server) = self.forwarder.server_mut() {
                server.handle_timeout(now);
            }
            self.drain(now);
        }
    }

    fn tell_wall_clock(&mut self, now: Instant) {
        if let (Some(server), Ok(unix)) =
            (self.forwarder.server_mut(), SystemTime::now().duration_since(UNIX_EPOCH))
        {
            server.set_wall_clock(unix, now);
        }
    }

    /// Does what the control thread asks for; false when there is none any more.
    fn obey(&mut self, now: Instant) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Serve(serve)) => self.serve(*serve, now),
                Ok(Command::Stop(done)) => {
                    self.stop();
                    answer(&done, ());
                }
                Ok(Command::Snapshot(reply)) => answer(&reply, self.snapshot(now)),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn serve(&mut self, serve: Serve, now: Instant) {
        let Serve { shared, config, wanted, opened, done } = serve;
        // What waits may be for a listener that is about to be closed.
        self.forwarder.flush(&mut self.streams);
        let changed = self.forwarder.listeners.change(&self.epoll, &wanted, opened);
        if changed.is_ok() {
            match self.forwarder.server_mut() {
                Some(server) => server.set_config(config, now),
                None => {
                    let server = Server::new(shared, self.id, config, now);
                    self.forwarder.set_server(Some(server));
                    self.tell_wall_clock(now);
                }
            }
            self.drain(now);
        }
        answer(&done, changed);
    }

    fn stop(&mut self) {
        self.forwarder.flush(&mut self.streams);
        self.forwarder.set_server(None);
        self.timeout = None;
        self.forwarder.listeners.close(&self.epoll, |_| true);
        self.forwarder.relays.clear();
        self.streams.clear();
    }

    fn snapshot(&mut self, now: Instant) -> Snapshot {
        let listeners = self.forwarder.listeners.all();
        let losses = Losses {
            not_sent: self.forwarder.not_sent(),
            listener_overflows: self.forwarder.listeners.dropped(),
            relay_overflows: self.forwarder.relays.look_at_drops(),
            ring_overflows: self.forwarder.neighbours.overflows,
            unsegmented: self.forwarder.unsegmented(),
        };
        let listeners = listeners.iter().map(|listener| listener.address).collect();
        let exhausted_at = self.exhausted_at;
        let streams = self.streams.counters();
        let Some(server) = self.forwarder.server() else {
            return Snapshot {
                listeners,
                losses,
                exhausted_at,
                shards: 1,
                streams,
                ..Snapshot::default()
            };
        };
        Snapshot {
            listeners,
            status: server.status(),
            counters: *server.counters(),
            allocations: server.allocations(now, TOLD_ALLOCATIONS),
            losses,
            exhausted_at,
            shards: 1,
            streams,
        }
    }

    /// Takes what other shards have for this one.
    fn take_parcels(&mut self, now: Instant) {
        for _ in 0..PARCELS {
            let Ok(parcel) = self.parcels.try_recv() else {
                self.drain(now);
                return;
            };
            self.forwarder.handle_parcel(&parcel, &mut self.streams, now);
        }
        self.drain(now);
        // There may be more, and nobody else will say so.
        if let Err(error) = self.wake.write(1) {
            tracing::debug!("eventfd: {error}");
        }
    }

    /// Does what the state machine wants done.
    fn drain(&mut self, now: Instant) {
        while self.forwarder.is_stale() {
            // Before a port is closed that it is to leave from.
            self.forwarder.flush(&mut self.streams);
            while let Some(output) = self.forwarder.poll_output() {
                if let Output::Timeout(timeout) = output {
                    self.timeout = timeout;
                    break;
                }
                self.act(output, now);
            }
        }
    }

    fn act(&mut self, output: Output, now: Instant) {
        let mut around = Around { epoll: &self.epoll, forwarder: &mut self.forwarder, now };
        match output {
            Output::Reply { client, message } => {
                around.forwarder.reply(client, &message, &mut self.streams, now);
            }
            Output::OpenRelay { relay, transport: RelayTransport::Udp, sockets } => {
                let opened = around.forwarder.relays.open(&self.epoll, relay, &sockets);
                let opened = opened.unwrap_or_else(|(address, error)| {
                    self.log.cannot_bind(address, &error, now);
                    Vec::new()
                });
                if let Some(server) = around.forwarder.server_mut() {
                    server.handle_relay_opened(relay, &opened, now);
                }
            }
            Output::OpenRelay { relay, transport: RelayTransport::Tcp, sockets } => {
                let opened = self.streams.open(relay, &sockets, &mut around);
                let opened = opened.unwrap_or_else(|error| {
                    if let Some(socket) = sockets.first() {
                        self.log.cannot_bind(socket.address, &error, now);
                    }
                    Vec::new()
                });
                if let Some(server) = around.forwarder.server_mut() {
                    server.handle_relay_opened(relay, &opened, now);
                }
            }
            Output::CloseRelay(relay) => {
                around.forwarder.relays.close(relay);
                self.streams.close(relay, None);
            }
            Output::CloseFamily(relay, family) => {
                around.forwarder.relays.close_family(relay, family);
                self.streams.close(relay, Some(family));
            }
            Output::Connect { .. }
            | Output::ConnectInside { .. }
            | Output::Join { .. }
            | Output::CloseConnection(_) => self.streams.handle_output(output, &mut around),
            Output::Event(event) => {
                if event == Event::Exhausted {
                    self.exhausted_at = Some(now);
                }
                if let Event::Freed { client, .. } = event {
                    self.streams.handle_freed(client, now);
                }
                report(&mut self.log, event, now);
            }
            Output::Timeout(timeout) => self.timeout = timeout,
        }
    }
}

fn report(log: &mut SecurityLog, event: Event, now: Instant) {
    match event {
        Event::RefusedCredentials { user, source, reason } => {
            log.refused_credentials(&user, source, reason, now);
        }
        Event::Exhausted => log.exhausted(now),
        Event::Refused { client, user, peer, rule, .. } => {
            log.refused(&user, client.client, peer, rule, now);
        }
        Event::Limited { client, user, rule } => {
            log.refused(&user, client.client, None, rule, now);
        }
        Event::Moved { from, to, user } => {
            tracing::debug!(from = %from.client, to = %to.client, %user, "moved");
        }
        Event::Allocated { client, user, relayed } => {
            tracing::debug!(client = %client.client, %user, %relayed, "allocated");
        }
        Event::Freed { client, relayed } => {
            tracing::debug!(client = %client.client, %relayed, "freed");
        }
    }
}

/// Answers the control thread, which may have given up.
fn answer<T>(sender: &SyncSender<T>, value: T) {
    if sender.try_send(value).is_err() {
        tracing::debug!("the control thread did not wait for its answer");
    }
}
