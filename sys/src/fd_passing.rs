//! File descriptors sent along with a message over a Unix socket (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// How many descriptors one message may carry.
pub const MAX_FDS: usize = 32;

/// How many descriptors the kernel lets one message carry (`SCM_MAX_FD`): with room for all of
/// them none arrives that we do not see, and so could not close.
const MOST_THAT_ARRIVE: usize = 253;

/// Sends `bytes` as one message with `fds` attached.
///
/// # Errors
///
/// Returns the error of sendmsg(2), and `InvalidInput` for more than [`MAX_FDS`] descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let iov = [IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message into `buffer` and returns its length and the descriptors that came along.
///
/// A length of 0 means that the peer has closed the connection.
///
/// # Errors
///
/// Returns the error of recvmsg(2), and `InvalidData` when the message or its descriptors did
/// not fit; the descriptors that did arrive are closed then.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([i32; MOST_THAT_ARRIVE]);
    let mut iov = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let raw = socket.as_fd().as_raw_fd();
    let message = recvmsg::<()>(raw, &mut iov, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    if let Ok(control) = message.cmsgs() {
        for item in control {
            if let ControlMessageOwned::ScmRights(rights) = item {
                for fd in rights {
                    // SAFETY: the kernel has just installed `fd` in this process for this message
                    // and nothing else knows its number, so this is its only owner.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
    }
    let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    if cut || fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    Ok((message.bytes, fds))
}

/// Takes ownership of a descriptor that a system call has just returned as a bare number.
///
/// Only for numbers that come straight from the kernel, such as accept4(2)'s.
#[must_use]
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass what a system call returned in the line before, so the descriptor
    // is open and has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Seek, Write};
    use std::os::fd::{AsFd, AsRawFd};

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
    };

    use super::{MAX_FDS, receive, send};

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let path = std::env::temp_dir().join(format!("fd-passing-{}", std::process::id()));
        let mut file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"inside").unwrap();
        file.rewind().unwrap();

        send(&a, b"hello", &[file.as_fd()]).unwrap();

        let mut buffer = [0; 16];
        let (length, mut fds) = receive(&b, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
        let mut text = String::new();
        std::fs::File::from(fds.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
    }

    #[test]
    fn a_message_with_too_many_descriptors_is_refused_and_none_stays_open() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let many = vec![writer.as_raw_fd(); MAX_FDS + 1];
        let rights = [ControlMessage::ScmRights(&many)];
        let iov = [IoSlice::new(b"many")];
        sendmsg::<()>(a.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
        drop(writer);

        assert!(receive(&b, &mut [0; 16]).is_err());

        let flags = OFlag::O_NONBLOCK;
        fcntl(&reader, FcntlArg::F_SETFL(flags)).unwrap();
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "nobody holds the other end");
    }

    #[test]
    fn a_message_longer_than_the_buffer_is_refused() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        send(&a, b"too long for it", &[]).unwrap();

        assert!(receive(&b, &mut [0; 4]).is_err());
    }
}
