//! Link-layer sockets (packet(7)) that send frames made beforehand, many with one call.
//!
//! Each frame begins with the header of `PACKET_VNET_HDR` (`struct virtio_net_hdr`, 10 octets,
//! little-endian on the machines we ship for): it says where the kernel is to complete a checksum
//! and where it is to cut a merged run of datagrams.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket};

/// Room in the send buffer for bursts.
const SEND_BUFFER: usize = 16 << 20;

/// Frames that are sent again and again.
pub struct Frames {
    /// What the I/O vectors point into; never touched while this value lives.
    bytes: Vec<Box<[u8]>>,
    /// What the headers point to; as long as `bytes`.
    _vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

impl Frames {
    /// Takes frames, each with its `virtio_net_hdr` in front.
    #[must_use]
    pub fn new(bytes: Vec<Box<[u8]>>) -> Self {
        let vector = |frame: &[u8]| libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        };
        let mut vectors: Box<[_]> = bytes.iter().map(|frame| vector(frame)).collect();
        let header = |vector: &mut libc::iovec| libc::mmsghdr {
            msg_hdr: libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: vector,
                msg_iovlen: 1,
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
            msg_len: 0,
        };
        let headers = vectors.iter_mut().map(header).collect();
        Self { bytes, _vectors: vectors, headers }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A socket that sends whole frames out of one interface and receives nothing.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket on `interface` in this thread's network namespace, past its queueing
    /// discipline.
    ///
    /// # Errors
    ///
    /// Returns the error of the call that failed; `EPERM` without CAP_NET_RAW.
    pub fn open(interface: &str) -> io::Result<Self> {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        set(&socket, libc::PACKET_VNET_HDR)?;
        set(&socket, libc::PACKET_QDISC_BYPASS)?;
        setsockopt(&socket, SndBufForce, &SEND_BUFFER)?;
        bind(&socket, if_nametoindex(interface)?)?;
        Ok(Self(socket))
    }

    /// Sends the frames of `range` with one sendmmsg(2) and returns how many went.
    ///
    /// # Errors
    ///
    /// Returns its error when not even the first frame went.
    ///
    /// # Panics
    ///
    /// Panics when `range` is not within `frames`.
    pub fn send(&self, frames: &mut Frames, range: Range<usize>) -> io::Result<usize> {
        let headers = &mut frames.headers[range];
        let count = libc::c_uint::try_from(headers.len()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open as long as `self`; `headers` are `count` initialised
        // mmsghdr, whose I/O vectors and frames are owned by `frames` and only read.
        let sent = unsafe { libc::sendmmsg(self.0.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn set(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed, hence open; the value is a live c_int and `length` is
    // its size, which is what both options read.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(socket: &OwnedFd, interface: libc::c_uint) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: 0,
        sll_ifindex: i32::try_from(interface).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; the address is a live sockaddr_ll and `length` is its size.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;
    use std::time::Duration;

    use nix::sched::{CloneFlags, unshare};

    use super::{Frames, PacketSocket};

    /// A UDP datagram from 198.51.100.1 to 192.0.2.1, in a frame for the loopback link.
    fn frame(port: u16, payload: &[u8]) -> Box<[u8]> {
        let mut bytes = vec![0; 10];
        bytes.extend([0; 12]);
        bytes.extend([8, 0]);
        let length = u8::try_from(28 + payload.len()).unwrap();
        let ip = [0x45, 0, 0, length, 0, 0, 0, 0, 64, 17, 0, 0, 198, 51, 100, 1, 192, 0, 2, 1];
        let words = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = words.sum();
        let sum = !u16::try_from((sum & 0xFFFF) + (sum >> 16)).unwrap();
        bytes.extend(ip);
        bytes[34..36].copy_from_slice(&sum.to_be_bytes());
        bytes.extend([0, 9]);
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, length - 20, 0, 0]);
        bytes.extend(payload);
        bytes.into()
    }

    /// Needs root, as the load generator does.
    #[test]
    fn frames_reach_a_socket_in_order_and_again() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let script = "ip link set lo up && ip address add 192.0.2.1/32 dev lo &&
            ip route add 198.51.100.0/24 dev lo";
        assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
        let receiver = UdpSocket::bind("192.0.2.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let port = receiver.local_addr().unwrap().port();
        let mut frames = Frames::new(vec![frame(port, b"one"), frame(port, b"two")]);
        let sender = PacketSocket::open("lo").unwrap();

        assert_eq!(sender.send(&mut frames, 0..2).unwrap(), 2);
        assert_eq!(sender.send(&mut frames, 1..2).unwrap(), 1);

        let mut buffer = [0; 16];
        for expected in [b"one", b"two", b"two"] {
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected);
        }
    }
}
