//! Receiving.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

use super::name::Name;

/// How the memory of an [`Inbox`] is divided.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// How many datagrams fit.
    pub slots: usize,
    /// Octets that are free before each.
    pub before: usize,
    /// The longest datagram; of a longer one the rest is lost.
    pub longest: usize,
    /// Octets that are free behind the longest.
    pub behind: usize,
    /// Octets behind the last slot.
    pub scratch: usize,
}

impl Layout {
    const fn stride(self) -> usize {
        self.before + self.longest + self.behind
    }
}

/// A datagram, or a run of them from one sender that the kernel merged (UDP_GRO).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Received {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it begins in [`Inbox::bytes`].
    pub start: usize,
    /// Octets of all of them.
    pub length: usize,
    /// Octets of each but the last, which may be shorter; equal to `length` for a single one.
    pub segment: usize,
    /// Whether its end is missing.
    pub truncated: bool,
}

/// `struct cmsghdr` with the value of UDP_GRO, as the kernel writes it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    value: libc::c_int,
    padding: libc::c_int,
}

const NO_CONTROL: Control = Control {
    header: libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 },
    value: 0,
    padding: 0,
};

/// Octets of a control message that holds one `c_int`.
const CONTROL_LENGTH: usize = size_of::<libc::cmsghdr>() + size_of::<libc::c_int>();

/// See the module.
pub struct Inbox {
    layout: Layout,
    bytes: Vec<u8>,
    headers: Vec<libc::mmsghdr>,
    pieces: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<Control>,
}

// SAFETY: the pointers in `headers` and `pieces` are written before each system call, lead into
// memory that this value owns, and are never followed by anything else.
unsafe impl Send for Inbox {}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Inbox {
    /// Reserves memory; the kernel gives what is never touched only on paper.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let slots = layout.slots;
        Self {
            layout,
            bytes: vec![0; slots * layout.stride() + layout.scratch],
            headers: vec![EMPTY_HEADER; slots],
            pieces: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; slots],
            names: vec![Name::EMPTY; slots],
            controls: vec![NO_CONTROL; slots],
        }
    }

    /// Takes datagrams that are already there, at most one (or one merged run) for each of
    /// `slots`, and returns how many slots, from the first on, it has filled.
    ///
    /// # Errors
    ///
    /// Returns the error of recvmmsg(2); `WouldBlock` when there is none.
    ///
    /// # Panics
    ///
    /// Panics when there are no such slots.
    pub fn receive(&mut self, socket: impl AsFd, slots: Range<usize>) -> io::Result<usize> {
        let base = self.bytes.as_mut_ptr();
        for slot in slots.clone() {
            let start = self.start(slot);
            self.pieces[slot] = libc::iovec {
                iov_base: base.wrapping_add(start).cast(),
                iov_len: self.layout.longest,
            };
            self.controls[slot].header.cmsg_len = 0;
        }
        // From the bases of the whole vectors, so that no pointer outlives its borrow.
        let pieces = self.pieces.as_mut_ptr();
        let names = self.names.as_mut_ptr();
        let controls = self.controls.as_mut_ptr();
        for slot in slots.clone() {
            self.headers[slot] = libc::mmsghdr {
                msg_hdr: libc::msghdr {
                    msg_name: names.wrapping_add(slot).cast(),
                    msg_namelen: NAME_LENGTH,
                    msg_iov: pieces.wrapping_add(slot),
                    msg_iovlen: 1,
                    msg_control: controls.wrapping_add(slot).cast(),
                    msg_controllen: size_of::<Control>(),
                    msg_flags: 0,
                },
                msg_len: 0,
            };
        }
        let headers = &mut self.headers[slots];
        let count = libc::c_uint::try_from(headers.len()).map_err(io::Error::other)?;
        // SAFETY: `headers` has `count` elements. Each points to a name, a piece and a control
        // buffer of this slot with their true lengths, each piece to `longest` octets of `bytes`;
        // all of it is owned by `self`, borrowed mutably for the whole call, and any octets are
        // valid values of it.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// What the last [`receive`](Self::receive) that covered it put into this slot.
    #[must_use]
    pub fn received(&self, slot: usize) -> Received {
        let header = &self.headers[slot];
        let length = usize::try_from(header.msg_len).unwrap_or(0).min(self.layout.longest);
        let control = &self.controls[slot];
        let merged = header.msg_hdr.msg_controllen >= CONTROL_LENGTH
            && control.header.cmsg_len >= CONTROL_LENGTH
            && control.header.cmsg_level == libc::SOL_UDP
            && control.header.cmsg_type == libc::UDP_GRO;
        let segment = match usize::try_from(control.value) {
            Ok(segment) if merged && segment > 0 => segment.min(length),
            _ => length,
        };
        Received {
            from: self.names[slot].address(),
            start: self.start(slot),
            length,
            segment,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }

    /// All the memory.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All the memory, to write before and behind datagrams.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Where the datagram of a slot begins.
    #[must_use]
    pub const fn start(&self, slot: usize) -> usize {
        slot * self.layout.stride() + self.layout.before
    }

    /// Where the scratch memory begins.
    #[must_use]
    pub const fn scratch(&self) -> usize {
        self.layout.slots * self.layout.stride()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "28")]
const NAME_LENGTH: libc::socklen_t = Name::CAPACITY as libc::socklen_t;

const EMPTY_HEADER: libc::mmsghdr = libc::mmsghdr {
    msg_hdr: libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: std::ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    },
    msg_len: 0,
};
