//! Sockets of TCP relays: listening ones, and connections that are made from them (RFC 6062).

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt,
    socket, sockopt,
};
use turn::{RelayPort, Side};

use crate::relay::stream::wire::Wire;

/// Connections of peers that wait to be accepted, for one port.
const BACKLOG: i32 = 16;

/// A relay port's socket that peers connect to.
#[derive(Debug)]
pub(super) struct PeerListener {
    pub(super) relay: RelayPort,
    pub(super) side: Side,
    pub(super) address: SocketAddr,
    pub(super) socket: TcpListener,
}

/// Listens for peers. Connections to peers leave from the same address, so both share it.
///
/// # Errors
///
/// Returns the error of bind(2) or listen(2).
pub(super) fn listen_for_peers(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = bound(address)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(fd))
}

/// Begins to connect from `local` to `peer`.
///
/// # Errors
///
/// Returns why it cannot even begin.
pub(super) fn begin_to_connect(local: SocketAddr, peer: SocketAddr) -> io::Result<Wire> {
    let fd = bound(local)?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(peer)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Wire::tcp(TcpStream::from(fd)),
        Err(error) => Err(error.into()),
    }
}

fn bound(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}
