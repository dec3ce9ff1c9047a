//! The acceptor: one thread that takes connections of clients and deals them to the shards.
//!
//! Clients come over TCP, or joined by the proxy, which has taken TLS off, through a local socket.
//! That one is for the proxy's user only: what comes there says itself whose it is.
//!
//! # Invariants
//!
//! 1. A connection above a limit, or of another user, is closed at once and counted.
//! 2. Shards get connections in turn, so that no shard has more than its share.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Uid, User, geteuid};
use turn::{FiveTuple, Transport};

use crate::connection_limit::ConnectionLimit;
use crate::relay::stream::{Arrival, Gate, Wire};
use crate::relay::vital;

/// Connections of clients at a time, all told.
const MAX_CONNECTIONS: usize = 4096;
/// The same from one source (IPv6: /64), wide enough for an office behind one address. The proxy
/// has limits of its own for those that it joins.
const MAX_PER_SOURCE: usize = 512;
/// Connections taken from one listener before the next one has its turn.
const AT_ONCE: usize = 64;
/// How long the backlog waits when there are no descriptors or no memory.
const PAUSE: Duration = Duration::from_millis(50);
/// Whose streams may be joined, beside our own.
const PROXY: &str = "postern-proxy";

/// Where the wake-up is told, in the 64 bits that epoll keeps; listeners have their number.
const WAKE: u64 = u64::MAX;

/// What the control thread asks for.
enum Command {
    Serve(Vec<SocketAddr>, Vec<(SocketAddr, TcpListener)>),
    Join(UnixListener),
    Stop,
}

/// The control thread's end; the thread ends with the last one.
#[derive(Clone)]
pub(super) struct Acceptor {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
}

/// What the control thread and the acceptor share.
#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Open>,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    tcp: Vec<SocketAddr>,
    streams: Option<PathBuf>,
}

/// A socket that connections come from.
enum Door {
    Tcp(SocketAddr, TcpListener),
    Streams(UnixListener),
}

impl Acceptor {
    /// Starts the thread, which deals connections to `gates`.
    ///
    /// # Errors
    ///
    /// Returns the error of epoll_create1(2), eventfd(2) or of starting a thread.
    pub(super) fn start(gates: Vec<Gate>) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let (commands, receiver) = channel();
        let shared = Arc::<Shared>::default();
        let thread = Thread {
            epoll,
            wake: Arc::clone(&wake),
            commands: receiver,
            gates,
            next: 0,
            doors: Vec::new(),
            limit: ConnectionLimit::new(MAX_CONNECTIONS, MAX_PER_SOURCE),
            shared: Arc::clone(&shared),
        };
        let builder = std::thread::Builder::new().name("acceptor".into());
        drop(builder.spawn(move || vital::run(|| thread.run(), vital::end_process))?);
        Ok(Self { commands, wake, shared })
    }

    /// The addresses where TCP clients are served.
    pub(super) fn open(&self) -> Vec<SocketAddr> {
        self.shared.open().tcp.clone()
    }

    /// Connections that were closed because there are too many, or not the proxy's.
    pub(super) fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Serves TCP clients on exactly `wanted`; `opened` are those that were not open before.
    pub(super) fn serve(&self, wanted: &[SocketAddr], opened: Vec<(SocketAddr, TcpListener)>) {
        self.shared.open().tcp = wanted.to_vec();
        self.tell(Command::Serve(wanted.to_vec(), opened));
    }

    /// Takes joined streams at `path` from now on.
    ///
    /// # Errors
    ///
    /// Returns the error of bind(2) or chmod(2).
    pub(super) fn join_at(&self, path: &Path) -> io::Result<()> {
        let mut open = self.shared.open();
        if open.streams.as_deref() == Some(path) {
            return Ok(());
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        // Everybody may knock: who comes in is decided by uid.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        open.streams = Some(path.to_owned());
        drop(open);
        self.tell(Command::Join(listener));
        Ok(())
    }

    /// Closes every listener.
    pub(super) fn stop(&self) {
        let mut open = self.shared.open();
        open.tcp.clear();
        if let Some(path) = open.streams.take()
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(%error, "the streams' socket was gone already");
        }
        drop(open);
        self.tell(Command::Stop);
    }

    fn tell(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::error!("the acceptor is gone: no client can connect over TCP");
        } else if let Err(error) = self.wake.write(1) {
            tracing::debug!("eventfd: {error}");
        }
    }
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread.
struct Thread {
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    gates: Vec<Gate>,
    /// Whose turn it is.
    next: usize,
    doors: Vec<(u64, Door)>,
    limit: Arc<ConnectionLimit>,
    shared: Arc<Shared>,
}

impl Thread {
    /// Serves until every handle is gone.
    ///
    /// # Errors
    ///
    /// Returns the error of epoll_wait(2).
    fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 16];
        let mut last = 0;
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                if event.data() != WAKE {
                    self.accept(event.data());
                } else if !self.obey(&mut last) {
                    return Ok(());
                }
            }
        }
    }

    /// Does what the control thread asks for; false when there is none any more.
    fn obey(&mut self, last: &mut u64) -> bool {
        if let Err(error) = self.wake.read() {
            tracing::debug!("eventfd: {error}");
        }
        loop {
            let (wanted, opened) = match self.commands.try_recv() {
                Ok(Command::Serve(wanted, opened)) => (wanted, opened),
                Ok(Command::Join(listener)) => {
                    self.close(|door| matches!(door, Door::Streams(_)));
                    self.add(last, Door::Streams(listener));
                    continue;
                }
                Ok(Command::Stop) => {
                    self.close(|_| true);
                    continue;
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            };
            self.close(|door| matches!(door, Door::Tcp(address, _) if !wanted.contains(address)));
            for (address, listener) in opened {
                self.add(last, Door::Tcp(address, listener));
            }
        }
    }

    fn add(&mut self, last: &mut u64, door: Door) {
        *last += 1;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, *last);
        match self.epoll.add(&door, event) {
            Ok(()) => self.doors.push((*last, door)),
            Err(error) => tracing::error!(%error, "a listener cannot be watched"),
        }
    }

    /// Closes listeners. Those that came from postern-net stay open there, so that closing our
    /// descriptor alone would leave them in the epoll set.
    fn close(&mut self, which: impl Fn(&Door) -> bool) {
        let epoll = &self.epoll;
        self.doors.retain(|(_, door)| {
            let close = which(door);
            if close && let Err(error) = epoll.delete(door) {
                tracing::debug!("epoll: {error}");
            }
            !close
        });
    }

    fn accept(&mut self, number: u64) {
        for _ in 0..AT_ONCE {
            let Some((_, door)) = self.doors.iter().find(|(it, _)| *it == number) else {
                return;
            };
            let arrival = match self.take(door) {
                Ok(Some(arrival)) => arrival,
                Ok(None) => {
                    self.shared.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Of one connection, or for want of descriptors or memory.
                    tracing::debug!(%error, "a connection cannot be accepted");
                    std::thread::sleep(PAUSE);
                    return;
                }
            };
            self.next = (self.next + 1) % self.gates.len().max(1);
            if let Some(gate) = self.gates.get(self.next) {
                gate.give(arrival);
            }
        }
    }

    /// The next connection; `None` when it is not to be served.
    fn take(&self, door: &Door) -> io::Result<Option<Arrival>> {
        match door {
            Door::Tcp(address, listener) => {
                let (stream, client) = listener.accept()?;
                let client = SocketAddr::new(client.ip(), client.port());
                let Some(place) = self.limit.enter(Some(client.ip())) else {
                    tracing::debug!(%client, "too many connections");
                    return Ok(None);
                };
                let who = FiveTuple { transport: Transport::Tcp, client, server: *address };
                let wire = Wire::tcp(stream)?;
                Ok(Some(Arrival::Accepted { wire, who: Some(who), place }))
            }
            Door::Streams(listener) => {
                let (stream, _) = listener.accept()?;
                let uid = Uid::from_raw(getsockopt(&stream, sockopt::PeerCredentials)?.uid());
                if !may_join(uid) {
                    tracing::warn!(%uid, "only the proxy may join streams; turned away");
                    return Ok(None);
                }
                let Some(place) = self.limit.enter(None) else {
                    tracing::debug!("too many connections");
                    return Ok(None);
                };
                Ok(Some(Arrival::Accepted { wire: Wire::local(stream)?, who: None, place }))
            }
        }
    }
}

/// Whether this user may say in whose name a stream comes.
fn may_join(uid: Uid) -> bool {
    uid == geteuid() || User::from_name(PROXY).ok().flatten().is_some_and(|it| it.uid == uid)
}

impl AsFd for Door {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(_, listener) => listener.as_fd(),
            Self::Streams(listener) => listener.as_fd(),
        }
    }
}
