//! A connected stream socket: a client's, the proxy's in the name of one, or a peer's.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{setsockopt, sockopt};

/// Seconds of silence before the kernel asks a peer whether it is still there, and between two
/// such questions; a NAT forgets an idle connection after some minutes.
const KEEP_ALIVE_AFTER: u32 = 60;
const KEEP_ALIVE_EVERY: u32 = 15;
const KEEP_ALIVE_TRIES: u32 = 4;
/// Milliseconds after which a peer that acknowledges nothing is given up.
const USER_TIMEOUT: u32 = 120_000;

/// See the module. Never blocks.
#[derive(Debug)]
pub(in crate::relay) enum Wire {
    /// From the network.
    Tcp(TcpStream),
    /// From a process, or a thread, of this box.
    Local(UnixStream),
}

impl Wire {
    /// A connection from the network: small messages leave at once, dead ones are noticed.
    ///
    /// # Errors
    ///
    /// Returns the error of setsockopt(2) or fcntl(2).
    pub(in crate::relay) fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &KEEP_ALIVE_AFTER)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &KEEP_ALIVE_EVERY)?;
        setsockopt(&stream, sockopt::TcpKeepCount, &KEEP_ALIVE_TRIES)?;
        setsockopt(&stream, sockopt::TcpUserTimeout, &USER_TIMEOUT)?;
        Ok(Self::Tcp(stream))
    }

    /// A connection within the box.
    ///
    /// # Errors
    ///
    /// Returns the error of fcntl(2).
    pub(in crate::relay) fn local(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::Local(stream))
    }

    /// Says that nothing more will be written.
    ///
    /// # Errors
    ///
    /// Returns the error of shutdown(2).
    pub(in crate::relay) fn end_writing(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Local(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// What became of connecting.
    ///
    /// # Errors
    ///
    /// Returns why there is no connection.
    pub(in crate::relay) fn connected(&self) -> io::Result<()> {
        let error = match self {
            Self::Tcp(stream) => stream.take_error()?,
            Self::Local(stream) => stream.take_error()?,
        };
        error.map_or(Ok(()), Err)
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Local(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Local(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(pieces),
            Self::Local(stream) => stream.write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Local(stream) => stream.as_fd(),
        }
    }
}
