//! The shard: one thread with the state machine, its listeners and its relay ports.
//!
//! Each datagram is received behind some headroom, so that what the state machine wants before it
//! and behind it is written in place and every packet leaves with one system call.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use turn::{
    Config, ConnectError, Counters, Destination, Event, Family, FiveTuple, Output, RelayPort,
    RelaySocket, Relayed, Server, ShardId, Shared, Side, Status, Transport,
};

use crate::relay::listener::bind_relay;
use crate::relay::security_log::SecurityLog;

/// Room before a datagram for the longest prefix.
const HEADROOM: usize = 64;
/// The longest UDP datagram.
const MAX_DATAGRAM: usize = 65_536;
/// Room behind it for padding.
const TAILROOM: usize = 4;
/// Datagrams taken from one socket before the next one has its turn.
const BATCH: usize = 64;
/// How often a call is tried that may report the error of an earlier packet.
const ATTEMPTS: usize = 3;
/// Events taken from epoll at once.
const EVENTS: usize = 256;

/// Which socket an epoll event is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Token {
    Wake,
    Listener(u16),
    Relay(RelayPort, Side, Family),
}

impl Token {
    const fn encode(self) -> u64 {
        match self {
            Self::Wake => 0,
            Self::Listener(id) => 1 << 32 | id as u64,
            Self::Relay(port, Side::Inside, Family::V4) => 2 << 32 | port.0 as u64,
            Self::Relay(port, Side::Outside, Family::V4) => 3 << 32 | port.0 as u64,
            Self::Relay(port, Side::Inside, Family::V6) => 4 << 32 | port.0 as u64,
            Self::Relay(port, Side::Outside, Family::V6) => 5 << 32 | port.0 as u64,
        }
    }

    fn decode(data: u64) -> Self {
        let value = u16::try_from(data & 0xFFFF).unwrap_or(0);
        match data >> 32 {
            1 => Self::Listener(value),
            2 => Self::Relay(RelayPort(value), Side::Inside, Family::V4),
            3 => Self::Relay(RelayPort(value), Side::Outside, Family::V4),
            4 => Self::Relay(RelayPort(value), Side::Inside, Family::V6),
            5 => Self::Relay(RelayPort(value), Side::Outside, Family::V6),
            _ => Self::Wake,
        }
    }
}

/// What the control thread asks for.
enum Command {
    Serve(Box<Serve>),
    Stop(SyncSender<()>),
    Snapshot(SyncSender<Snapshot>),
}

/// A configuration with its listeners.
struct Serve {
    config: Config,
    /// Every address to serve, in the order status shows them.
    wanted: Vec<SocketAddr>,
    /// Sockets for those that are not open yet.
    opened: Vec<UdpSocket>,
    done: SyncSender<io::Result<()>>,
}

/// What the shard is doing.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// Addresses whose sockets are open.
    pub(super) listeners: Vec<SocketAddr>,
    /// Clients and relays.
    pub(super) status: Status,
    /// What has happened.
    pub(super) counters: Counters,
    /// Packets that the kernel refused to send.
    pub(super) not_sent: u64,
}

/// The control thread's end.
#[derive(Clone)]
pub(super) struct Handle {
    commands: std::sync::mpsc::Sender<Command>,
    wake: Arc<EventFd>,
}

impl Handle {
    /// Serves `config` on exactly `wanted`; `opened` are the sockets that were not open before.
    ///
    /// # Errors
    ///
    /// Returns the error of epoll_ctl(2) or `BrokenPipe` when the shard is gone.
    pub(super) fn serve(
        &self,
        config: Config,
        wanted: Vec<SocketAddr>,
        opened: Vec<UdpSocket>,
    ) -> io::Result<()> {
        self.ask(|done| Command::Serve(Box::new(Serve { config, wanted, opened, done })))?
    }

    /// Closes every socket.
    ///
    /// # Errors
    ///
    /// Returns `BrokenPipe` when the shard is gone.
    pub(super) fn stop(&self) -> io::Result<()> {
        self.ask(Command::Stop)
    }

    /// What the shard is doing right now.
    ///
    /// # Errors
    ///
    /// Returns `BrokenPipe` when the shard is gone.
    pub(super) fn snapshot(&self) -> io::Result<Snapshot> {
        self.ask(Command::Snapshot)
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> io::Result<T> {
        let (sender, receiver) = sync_channel(1);
        self.commands.send(command(sender)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.wake.write(1)?;
        receiver.recv().map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A socket that clients talk to.
struct Listener {
    id: u16,
    address: SocketAddr,
    socket: UdpSocket,
}

/// One socket of a relay port.
struct OpenSocket {
    side: Side,
    family: Family,
    socket: UdpSocket,
}

/// The sockets, apart from the state machine so that both can be used at once.
#[derive(Default)]
struct Sockets {
    listeners: Vec<Listener>,
    relays: HashMap<RelayPort, Vec<OpenSocket>>,
    next_listener: u16,
    not_sent: u64,
}

/// See the module.
pub(super) struct Shard {
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    server: Option<Server>,
    sockets: Sockets,
    buffer: Vec<u8>,
    timeout: Option<Instant>,
    log: SecurityLog,
}

impl Shard {
    /// A shard that serves nothing yet, and the handle to it.
    ///
    /// # Errors
    ///
    /// Returns the error of epoll_create1(2), eventfd(2) or epoll_ctl(2).
    pub(super) fn new() -> io::Result<(Self, Handle)> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        watch(&epoll, &wake, Token::Wake)?;
        let (sender, commands) = channel();
        let handle = Handle { commands: sender, wake: Arc::clone(&wake) };
        let shard = Self {
            epoll,
            wake,
            commands,
            server: None,
            sockets: Sockets::default(),
            buffer: vec![0; HEADROOM + MAX_DATAGRAM + TAILROOM],
            timeout: None,
            log: SecurityLog::new(Instant::now()),
        };
        Ok((shard, handle))
    }

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
            if self.timeout.is_some_and(|timeout| timeout <= now) {
                if let Some(server) = &mut self.server {
                    server.handle_timeout(now);
                }
                self.drain(now);
            }
            for event in &events[..count] {
                match Token::decode(event.data()) {
                    Token::Wake => {
                        if !self.obey(now) {
                            return Ok(());
                        }
                    }
                    Token::Listener(id) => self.receive_from_clients(id, now),
                    Token::Relay(port, side, family) => {
                        self.receive_from_peers(port, side, family, now);
                    }
                }
            }
        }
    }

    /// How long epoll may wait.
    fn patience(&self) -> EpollTimeout {
        let Some(timeout) = self.timeout else {
            return EpollTimeout::NONE;
        };
        // One more millisecond, because epoll cuts fractions off.
        let wait = timeout.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
    }

    /// Does what the control thread asks for; false when there is none any more.
    fn obey(&mut self, now: Instant) -> bool {
        // A wake-up that is already read is no error: the commands are looked at all the same.
        if let Err(error) = self.wake.read() {
            tracing::debug!("eventfd: {error}");
        }
        loop {
            match self.commands.try_recv() {
                Ok(Command::Serve(serve)) => {
                    let Serve { config, wanted, opened, done } = *serve;
                    let result = self.serve(config, &wanted, opened, now);
                    answer(&done, result);
                }
                Ok(Command::Stop(done)) => {
                    self.server = None;
                    self.timeout = None;
                    self.close_listeners(|_| true);
                    self.sockets.relays.clear();
                    answer(&done, ());
                }
                Ok(Command::Snapshot(reply)) => answer(&reply, self.snapshot()),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            listeners: self.sockets.listeners.iter().map(|listener| listener.address).collect(),
            status: self.server.as_ref().map(Server::status).unwrap_or_default(),
            counters: self.server.as_ref().map(|server| *server.counters()).unwrap_or_default(),
            not_sent: self.sockets.not_sent,
        }
    }

    fn serve(
        &mut self,
        config: Config,
        wanted: &[SocketAddr],
        opened: Vec<UdpSocket>,
        now: Instant,
    ) -> io::Result<()> {
        let mut fresh = Vec::new();
        for socket in opened {
            let id = self.sockets.next_listener;
            self.sockets.next_listener = id.wrapping_add(1);
            watch(&self.epoll, &socket, Token::Listener(id))?;
            fresh.push(Listener { id, address: socket.local_addr()?, socket });
        }
        match &mut self.server {
            Some(server) => server.set_config(Arc::new(config), now),
            None => {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
                let shared = Shared::new(&config, seed);
                self.server = Some(Server::new(shared, ShardId(0), Arc::new(config), now));
            }
        }
        self.close_listeners(|address| !wanted.contains(&address));
        let listeners = &mut self.sockets.listeners;
        listeners.extend(fresh);
        listeners.sort_by_key(|l| wanted.iter().position(|address| *address == l.address));
        self.drain(now);
        Ok(())
    }

    /// Closes listeners. Those that came from postern-net stay open there, so that closing our
    /// descriptor alone would leave them in the epoll set.
    fn close_listeners(&mut self, which: impl Fn(SocketAddr) -> bool) {
        let epoll = &self.epoll;
        self.sockets.listeners.retain(|listener| {
            let close = which(listener.address);
            if close && let Err(error) = epoll.delete(&listener.socket) {
                tracing::debug!("epoll: {error}");
            }
            !close
        });
    }

    fn receive_from_clients(&mut self, id: u16, now: Instant) {
        for _ in 0..BATCH {
            let Self { server: Some(server), sockets, buffer, .. } = self else {
                return;
            };
            let mut listeners = sockets.listeners.iter();
            let Some(listener) = listeners.find(|listener| listener.id == id) else {
                return;
            };
            let Some((length, from)) = receive(&listener.socket, buffer) else {
                return;
            };
            let client = FiveTuple {
                transport: Transport::Udp,
                client: SocketAddr::new(from.ip(), from.port()),
                server: listener.address,
            };
            let datagram = &buffer[HEADROOM..HEADROOM + length];
            match server.handle_client(client, datagram, now) {
                Some(relayed) => sockets.transmit(&relayed, buffer),
                None => self.drain(now),
            }
        }
    }

    fn receive_from_peers(&mut self, port: RelayPort, side: Side, family: Family, now: Instant) {
        let Self { server: Some(server), sockets, buffer, .. } = self else {
            return;
        };
        for _ in 0..BATCH {
            let Some((length, from)) =
                sockets.relay(port, side, family).and_then(|socket| receive(socket, buffer))
            else {
                return;
            };
            let datagram = &buffer[HEADROOM..HEADROOM + length];
            if let Some(relayed) = server.handle_peer(port, side, from, datagram, now) {
                sockets.transmit(&relayed, buffer);
            }
        }
    }

    /// Does what the state machine wants done.
    fn drain(&mut self, now: Instant) {
        let Some(server) = &mut self.server else {
            return;
        };
        loop {
            match server.poll_output() {
                Output::Reply { client, message } => self.sockets.reply(client, &message),
                Output::OpenRelay { relay, sockets, .. } => {
                    match open_relay(&self.epoll, relay, &sockets) {
                        Ok(opened) => {
                            let families = opened.iter().map(|socket| socket.family);
                            let families: BTreeSet<_> = families.collect();
                            let families: Vec<_> = families.into_iter().collect();
                            self.sockets.relays.insert(relay, opened);
                            server.handle_relay_opened(relay, &families, now);
                        }
                        Err((address, error)) => {
                            self.log.cannot_bind(address, &error, now);
                            server.handle_relay_refused(relay, now);
                        }
                    }
                }
                // Closing takes a socket out of the epoll set.
                Output::CloseRelay(port) => drop(self.sockets.relays.remove(&port)),
                Output::CloseFamily(port, family) => {
                    if let Some(sockets) = self.sockets.relays.get_mut(&port) {
                        sockets.retain(|socket| socket.family != family);
                    }
                }
                // Only a site that relays TCP gets these, and none does so far.
                Output::Connect { connection, .. } | Output::ConnectInside { connection, .. } => {
                    server.handle_connected(connection, Err(ConnectError), now);
                }
                Output::Join { .. } | Output::CloseConnection(_) => {}
                Output::Event(event) => report(&mut self.log, event, now),
                Output::Timeout(timeout) => {
                    self.timeout = timeout;
                    return;
                }
            }
        }
    }
}

impl Sockets {
    fn relay(&self, port: RelayPort, side: Side, family: Family) -> Option<&UdpSocket> {
        let mut sockets = self.relays.get(&port)?.iter();
        let found = sockets.find(|socket| socket.side == side && socket.family == family);
        found.map(|found| &found.socket)
    }

    fn listener(&self, address: SocketAddr) -> Option<&UdpSocket> {
        let mut listeners = self.listeners.iter();
        listeners.find(|listener| listener.address == address).map(|listener| &listener.socket)
    }

    /// Sends a packet from where it lies in the buffer.
    fn transmit(&mut self, relayed: &Relayed, buffer: &mut [u8]) {
        let prefix = relayed.prefix.as_bytes();
        let payload = HEADROOM + relayed.payload.start;
        let start = payload - prefix.len();
        let end = HEADROOM + relayed.payload.end;
        buffer[start..payload].copy_from_slice(prefix);
        buffer[end..end + relayed.padding].fill(0);
        let packet = &buffer[start..end + relayed.padding];
        let (socket, to) = match relayed.to {
            Destination::Client(client) => (self.listener(client.server), client.client),
            Destination::Peer { relay, side, peer } => {
                (self.relay(relay, side, Family::of(peer.ip())), peer)
            }
            // There is only one.
            Destination::Shard { .. } => return,
        };
        self.not_sent += u64::from(!socket.is_some_and(|socket| send(socket, packet, to)));
    }

    fn reply(&mut self, client: FiveTuple, message: &[u8]) {
        let socket = self.listener(client.server);
        let sent = socket.is_some_and(|socket| send(socket, message, client.client));
        self.not_sent += u64::from(!sent);
    }
}

/// Takes one datagram; `None` when there is none.
///
/// An error belongs to an earlier packet and is reported once: the next attempt gets what is
/// behind it.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    for _ in 0..ATTEMPTS {
        match socket.recv_from(&mut buffer[HEADROOM..HEADROOM + MAX_DATAGRAM]) {
            Ok(received) => return Some(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => tracing::trace!("receive: {error}"),
        }
    }
    None
}

/// Sends one datagram, or drops it when the kernel does not want it.
///
/// The attempts after the first are for errors of earlier packets, which are reported once and
/// would otherwise cost this one.
fn send(socket: &UdpSocket, packet: &[u8], to: SocketAddr) -> bool {
    for _ in 0..ATTEMPTS {
        match socket.send_to(packet, to) {
            Ok(_) => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => tracing::trace!("send to {to}: {error}"),
        }
    }
    false
}

/// Binds every face of a port, or none.
fn open_relay(
    epoll: &Epoll,
    port: RelayPort,
    sockets: &[RelaySocket],
) -> Result<Vec<OpenSocket>, (SocketAddr, io::Error)> {
    let open = |RelaySocket { side, address }: &RelaySocket| {
        let family = Family::of(address.ip());
        bind_relay(*address)
            .and_then(|socket| {
                watch(epoll, &socket, Token::Relay(port, *side, family)).map(|()| socket)
            })
            .map(|socket| OpenSocket { side: *side, family, socket })
            .map_err(|error| (*address, error))
    };
    sockets.iter().map(open).collect()
}

fn watch(epoll: &Epoll, fd: impl AsFd, token: Token) -> io::Result<()> {
    Ok(epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.encode()))?)
}

fn report(log: &mut SecurityLog, event: Event, now: Instant) {
    match event {
        Event::RefusedCredentials { user, source, reason } => {
            log.refused_credentials(&user, source, reason, now);
        }
        Event::Exhausted => log.exhausted(now),
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Instant;

    use nix::sys::epoll::{EpollEvent, EpollTimeout};
    use turn::{Config, Face, Settings};

    use super::Shard;

    #[test]
    fn a_closed_listener_that_postern_net_still_holds_wakes_nobody() {
        let address = "127.0.0.1".parse().unwrap();
        let settings = Settings {
            realm: "example.org".into(),
            outside: vec![Face { local: address, told: address }],
            ..Settings::default()
        };
        let config = Config::new(settings).unwrap();
        let (mut shard, _handle) = Shard::new().unwrap();
        let held = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = held.local_addr().unwrap();
        let ours = held.try_clone().unwrap();
        let mut events = [EpollEvent::empty(); 4];
        let mut ready = |shard: &Shard| shard.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap();

        shard.serve(config.clone(), &[at], vec![ours], Instant::now()).unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", at).unwrap();
        assert_eq!(ready(&shard), 1);
        shard.serve(config, &[], Vec::new(), Instant::now()).unwrap();

        assert_eq!(ready(&shard), 0);
    }
}
