//! What nix has no form for among the options of UDP sockets (socket(7), ip(7), ipv6(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// What may become of a datagram that is longer than a link allows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fragmentation {
    /// Everybody may fragment it: DF is 0.
    Allowed,
    /// Nobody may: DF is 1, whatever the kernel believes about the path.
    Forbidden,
}

/// Says what may become of the datagrams that this socket sends from now on.
///
/// # Errors
///
/// Returns the error of setsockopt(2).
pub fn set_fragmentation(socket: impl AsFd, v6: bool, how: Fragmentation) -> io::Result<()> {
    let (level, name) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    };
    // The values for IPv6 are the same.
    let value: libc::c_int = match how {
        Fragmentation::Allowed => libc::IP_PMTUDISC_DONT,
        Fragmentation::Forbidden => libc::IP_PMTUDISC_PROBE,
    };
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed, hence open, for the whole call; the value is a live
    // c_int and `length` is its size, which is what both options read.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Numbers that SO_MEMINFO fills, and where the drops are among them (linux/sock_diag.h).
const MEMORY_NUMBERS: usize = 9;
const DROPS: usize = 8;

/// How many datagrams found no room in this socket's receive buffer since it was made.
///
/// # Errors
///
/// Returns the error of getsockopt(2).
pub fn dropped(socket: impl AsFd) -> io::Result<u32> {
    let mut numbers = [0_u32; MEMORY_NUMBERS];
    let mut length = libc::socklen_t::try_from(size_of_val(&numbers)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed, hence open, for the whole call; `numbers` is live and
    // `length` its size, beyond which the kernel does not write.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(numbers[DROPS]) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::dropped;

    #[test]
    fn what_finds_no_room_is_counted() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        setsockopt(&receiver, sockopt::RcvBuf, &2048).unwrap();
        assert_eq!(dropped(&receiver).unwrap(), 0);

        for _ in 0..100 {
            sender.send_to(&[0; 1000], to).unwrap();
        }

        let lost = dropped(&receiver).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let mut buffer = [0; 1000];
        let arrived = std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count();
        assert!(lost > 0);
        assert_eq!(lost as usize + arrived, 100);
    }
}
