//! Listening sockets: opened here, or fetched from postern-net below port 1024.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use sys::udp::{Fragmentation, set_fragmentation};

use crate::ipc::Channel;
use crate::message::{NET_SOCKET, NetReply, NetRequest};
use crate::plan::Transport;
use crate::relay::shard::NewListener;

/// Octets of buffers that are asked for; the kernel gives at most net.core.rmem_max and wmem_max.
const LISTENER_BUFFER: usize = 8 << 20;
const RELAY_RECEIVE_BUFFER: usize = 1 << 20;

/// How long an address may take to appear on its NIC (it is tentative while IPv6 checks for
/// duplicates), or a socket at postern-net.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ports below this one are opened by postern-net.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// Why a listener cannot be opened; the slice is not served then.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The kernel refuses the address.
    #[error("cannot bind UDP {address}: {source}")]
    Bind {
        /// Which one.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses the address for connections.
    #[error("cannot listen on TCP {address}: {source}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No answer, or not the one asked for.
    #[error("cannot fetch sockets below 1024 from postern-net: {0}")]
    Net(String),
    /// The plan of postern-net and the slice disagree.
    #[error("postern-net holds no socket for {address}")]
    NotHeld {
        /// Which one.
        address: SocketAddr,
    },
}

/// Opens a listener for each address, all or none: a socket for each shard, or, below port 1024,
/// the one that postern-net holds.
///
/// # Errors
///
/// Returns why the first one that does not come within a few seconds does not.
pub(super) fn open(addresses: &[SocketAddr], shards: usize) -> Result<Vec<NewListener>, OpenError> {
    let deadline = Instant::now() + PATIENCE;
    let (low, high): (Vec<_>, Vec<_>) =
        addresses.iter().partition(|address| address.port() < FIRST_UNPRIVILEGED_PORT);
    let mut listeners = Vec::new();
    for address in high {
        let sockets = patiently(deadline, || {
            let sockets = (0..shards).map(|_| bind_listener(address)).collect::<io::Result<_>>();
            sockets.map_err(|source| OpenError::Bind { address, source })
        })?;
        listeners.push(NewListener { address, sockets });
    }
    if !low.is_empty() {
        let fetch = || fetch(Path::new(NET_SOCKET), &low, Transport::Udp);
        let fetched = patiently(deadline, fetch)?.into_iter().map(UdpSocket::from);
        for (address, socket) in low.iter().copied().zip(fetched) {
            let prepared = socket.set_nonblocking(true).and_then(|()| prepare_listener(&socket));
            prepared.map_err(|source| OpenError::Bind { address, source })?;
            listeners.push(NewListener { address, sockets: vec![socket] });
        }
    }
    Ok(listeners)
}

/// Listens for TCP clients on each address, all or none.
///
/// # Errors
///
/// Returns why the first one that does not come within a few seconds does not.
pub(super) fn listen(
    addresses: &[SocketAddr],
) -> Result<Vec<(SocketAddr, TcpListener)>, OpenError> {
    let deadline = Instant::now() + PATIENCE;
    let (low, high): (Vec<_>, Vec<_>) =
        addresses.iter().partition(|address| address.port() < FIRST_UNPRIVILEGED_PORT);
    let mut listeners = Vec::new();
    for address in high {
        let listener = patiently(deadline, || {
            TcpListener::bind(address).map_err(|source| OpenError::Listen { address, source })
        })?;
        listeners.push((address, listener));
    }
    if !low.is_empty() {
        let fetch = || fetch(Path::new(NET_SOCKET), &low, Transport::Tcp);
        let fetched = patiently(deadline, fetch)?.into_iter().map(TcpListener::from);
        listeners.extend(low.iter().copied().zip(fetched));
    }
    for (address, listener) in &listeners {
        let nonblocking = listener.set_nonblocking(true);
        nonblocking.map_err(|source| OpenError::Listen { address: *address, source })?;
    }
    Ok(listeners)
}

/// Binds the socket of a relay port.
///
/// # Errors
///
/// Returns the error of bind(2) or of a socket option.
pub(super) fn bind_relay(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = unbound(address)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    prepare_relay(&socket, address)?;
    Ok(socket)
}

/// Binds another socket to the address of this one, and connects it to a peer.
///
/// What the peer has sent is in either of them. While this happens, but not afterwards, the kernel
/// would let others bind that address too.
///
/// # Errors
///
/// Returns the error of bind(2), connect(2) or of a socket option.
pub(super) fn bind_beside(socket: &UdpSocket, peer: SocketAddr) -> io::Result<UdpSocket> {
    let address = socket.local_addr()?;
    let beside = unbound(address)?;
    setsockopt(&beside, sockopt::ReuseAddr, &true)?;
    setsockopt(socket, sockopt::ReuseAddr, &true)?;
    let bound = bind(beside.as_raw_fd(), &SockaddrStorage::from(address));
    setsockopt(socket, sockopt::ReuseAddr, &false)?;
    setsockopt(&beside, sockopt::ReuseAddr, &false)?;
    bound?;
    prepare_relay(&beside, address)?;
    beside.connect(peer)?;
    Ok(beside)
}

fn prepare_relay(socket: &UdpSocket, address: SocketAddr) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBuf, &RELAY_RECEIVE_BUFFER)?;
    setsockopt(socket, sockopt::UdpGroSegment, &true)?;
    // Errors come with the peer that they are about, RFC 8656 section 11.5.
    if address.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    }
    set_fragmentation(socket, address.is_ipv6(), Fragmentation::Allowed)
}

/// Binds one shard's socket; the kernel gives each client to one of them.
fn bind_listener(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = unbound(address)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    prepare_listener(&socket)?;
    Ok(socket)
}

/// With one call, for there may be many.
fn unbound(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(UdpSocket::from(socket(family, SockType::Datagram, flags, None)?))
}

fn patiently<T>(
    deadline: Instant,
    mut attempt: impl FnMut() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    loop {
        match attempt() {
            Err(error) if Instant::now() < deadline => {
                tracing::debug!("waiting: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

/// Fetches the sockets that postern-net holds for this process.
pub(super) fn fetch(
    net: &Path,
    addresses: &[SocketAddr],
    transport: Transport,
) -> Result<Vec<OwnedFd>, OpenError> {
    let failed = |error: io::Error| OpenError::Net(error.to_string());
    let channel = Channel::connect(net).map_err(failed)?;
    channel.send(&NetRequest::Listeners, &[]).map_err(failed)?;
    let (reply, fds) = channel
        .receive::<NetReply>()
        .map_err(failed)?
        .ok_or_else(|| OpenError::Net("it closed the connection".into()))?;
    let plans = match reply {
        NetReply::Listeners(plans) => plans,
        NetReply::Failed(reason) => return Err(OpenError::Net(reason)),
        other => return Err(OpenError::Net(format!("unexpected answer {other:?}"))),
    };
    let mut held: Vec<_> = plans
        .into_iter()
        .zip(fds)
        .filter(|(plan, _)| plan.transport == transport)
        .map(|(plan, fd)| (plan.address, fd))
        .collect();
    addresses
        .iter()
        .map(|address| {
            let index = held.iter().position(|(held, _)| held == address);
            let index = index.ok_or(OpenError::NotHeld { address: *address })?;
            Ok(held.swap_remove(index).1)
        })
        .collect()
}

fn prepare_listener(socket: &UdpSocket) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBuf, &LISTENER_BUFFER)?;
    setsockopt(socket, sockopt::SndBuf, &LISTENER_BUFFER)?;
    setsockopt(socket, sockopt::UdpGroSegment, &true)?;
    Ok(())
}
