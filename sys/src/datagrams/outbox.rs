//! Sending.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

use super::name::Name;

/// Octets that lie together in the memory that is sent from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Where they begin.
    pub start: usize,
    /// How many they are.
    pub length: usize,
}

/// A datagram, or a run of them for one receiver (UDP_SEGMENT).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// To whom; `None` is whom the socket is connected to.
    pub to: Option<SocketAddr>,
    /// Which pieces it is made of, one behind the other.
    pub pieces: Range<usize>,
    /// For a run: octets of each datagram but the last, which may be shorter.
    pub segment: Option<u16>,
}

/// `struct cmsghdr` with the value of UDP_SEGMENT, as the kernel reads it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    value: u16,
    padding: [u16; 3],
}

/// Octets of a control message that holds one `u16`.
const CONTROL_LENGTH: usize = size_of::<libc::cmsghdr>() + size_of::<u16>();

const CONTROL: Control = Control {
    header: libc::cmsghdr {
        cmsg_len: CONTROL_LENGTH,
        cmsg_level: libc::SOL_UDP,
        cmsg_type: libc::UDP_SEGMENT,
    },
    value: 0,
    padding: [0; 3],
};

/// See the module.
pub struct Outbox {
    headers: Vec<libc::mmsghdr>,
    pieces: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<Control>,
}

// SAFETY: the pointers in `headers` and `pieces` are written before each system call and never
// followed by anything else.
unsafe impl Send for Outbox {}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("messages", &self.names.len()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Room for that many messages in one call.
    #[must_use]
    pub fn new(messages: usize) -> Self {
        Self {
            headers: Vec::with_capacity(messages),
            pieces: Vec::with_capacity(messages),
            names: vec![Name::EMPTY; messages],
            controls: vec![CONTROL; messages],
        }
    }

    /// Sends messages made of `pieces` of `memory`, as many as there is room for, and returns how
    /// many, from the first on, were sent. Does not wait.
    ///
    /// # Errors
    ///
    /// Returns the error of sendmmsg(2) when not even the first message could be sent.
    ///
    /// # Panics
    ///
    /// Panics when a message has pieces that are not there or lie outside of `memory`.
    pub fn send(
        &mut self,
        socket: impl AsFd,
        memory: &[u8],
        messages: &[Message],
        pieces: &[Piece],
    ) -> io::Result<usize> {
        let messages = &messages[..messages.len().min(self.names.len())];
        self.pieces.clear();
        for message in messages {
            self.pieces.extend(pieces[message.pieces.clone()].iter().map(|piece| {
                let octets = &memory[piece.start..piece.start + piece.length];
                libc::iovec { iov_base: octets.as_ptr().cast_mut().cast(), iov_len: octets.len() }
            }));
        }
        for (index, message) in messages.iter().enumerate() {
            self.controls[index].value = message.segment.unwrap_or(0);
        }
        self.headers.clear();
        let vector = self.pieces.as_mut_ptr();
        let controls = self.controls.as_mut_ptr();
        let mut first = 0;
        for (index, message) in messages.iter().enumerate() {
            let name_length = message.to.map_or(0, |to| self.names[index].set(to));
            let (control, control_length) = match message.segment {
                Some(_) => (controls.wrapping_add(index).cast(), size_of::<Control>()),
                None => (std::ptr::null_mut(), 0),
            };
            self.headers.push(libc::mmsghdr {
                msg_hdr: libc::msghdr {
                    msg_name: std::ptr::null_mut(),
                    msg_namelen: libc::socklen_t::try_from(name_length).unwrap_or(0),
                    msg_iov: vector.wrapping_add(first),
                    msg_iovlen: message.pieces.len(),
                    msg_control: control,
                    msg_controllen: control_length,
                    msg_flags: 0,
                },
                msg_len: 0,
            });
            first += message.pieces.len();
        }
        let names = self.names.as_mut_ptr();
        for (index, header) in self.headers.iter_mut().enumerate() {
            if header.msg_hdr.msg_namelen > 0 {
                header.msg_hdr.msg_name = names.wrapping_add(index).cast();
            }
        }
        let count = libc::c_uint::try_from(messages.len()).map_err(io::Error::other)?;
        // SAFETY: `headers` has `count` elements. Each points to a name, to the pieces and to the
        // control message of its index with their true lengths, all owned by `self`; the pieces
        // point into `memory`, which is borrowed for the whole call and only read.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}
