//! Messages between the agent's processes: JSON over `SOCK_SEQPACKET` Unix sockets.
//!
//! One packet is one message, so there is no framing to get wrong. Descriptors (sealed memfds,
//! listening sockets) travel beside a message. The peer is known by the uid that the kernel
//! reports (`SO_PEERCRED`), never by what it says.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt,
    listen, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) mod serve;

/// Longest message; anything larger travels in a memfd.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;

/// One connection. Sending and receiving block; both work on `&self`, from different threads.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Takes a connected socket, such as the one that socket activation left as standard input.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    ///
    /// Returns the error of socket(2) or connect(2).
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let fd = seqpacket()?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self(fd))
    }

    /// Sends one message with `fds` beside it.
    ///
    /// # Errors
    ///
    /// Returns `InvalidInput` for a message above [`MAX_MESSAGE`], else the error of sendmsg(2).
    pub(crate) fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message above 64 KiB"));
        }
        sys::fd_passing::send(&self.0, &bytes, fds)
    }

    /// Receives one message; `None` when the peer has closed the connection.
    ///
    /// # Errors
    ///
    /// Returns `InvalidData` for a message that is too long or not a `T`.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let (length, fds) = sys::fd_passing::receive(&self.0, &mut buffer)?;
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&buffer[..length])?, fds)))
    }

    /// Makes [`send`](Self::send) and [`receive`](Self::receive) give up after `timeout`, with
    /// `WouldBlock`.
    ///
    /// # Errors
    ///
    /// Returns the error of setsockopt(2).
    pub(crate) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let micros = timeout.as_micros().try_into().unwrap_or(i64::MAX);
        let timeout = TimeVal::microseconds(micros);
        setsockopt(&self.0, sockopt::ReceiveTimeout, &timeout)?;
        Ok(setsockopt(&self.0, sockopt::SendTimeout, &timeout)?)
    }

    /// The uid of the process at the other end, as the kernel recorded it at connect time.
    ///
    /// # Errors
    ///
    /// Returns the error of getsockopt(2).
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        Ok(getsockopt(&self.0, sockopt::PeerCredentials)?.uid())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A listening socket; any local user may connect, the server looks at [`Channel::peer_uid`].
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Binds `path`, replacing what an earlier instance left there.
    ///
    /// # Errors
    ///
    /// Returns the error of unlink(2), bind(2), chmod(2) or listen(2).
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let fd = seqpacket()?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(Self(fd))
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// Returns the error of accept4(2).
    pub(crate) fn accept(&self) -> io::Result<Channel> {
        let raw = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        Ok(Channel(sys::fd_passing::own(raw)))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Puts `bytes` into a memfd that nobody can change any more (memfd_create(2), `F_ADD_SEALS`).
///
/// # Errors
///
/// Returns the error of memfd_create(2), write(2) or fcntl(2).
pub(crate) fn seal(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(name)?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(name.as_c_str(), flags)?);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals()))?;
    Ok(file.into())
}

/// Reads a memfd made by [`seal`], at most `limit` bytes.
///
/// # Errors
///
/// Returns `InvalidData` for a descriptor that is not sealed or is longer than `limit`.
pub(crate) fn read_sealed(fd: OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    use std::io::Seek;
    let seals = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(all_seals()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "memfd is not sealed"));
    }
    let mut file = File::from(fd);
    if file.metadata()?.len() > limit as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "memfd is too long"));
    }
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}
