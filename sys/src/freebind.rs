//! Binding to an address that is not there yet (ipv6(7), `IPV6_FREEBIND`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// Lets an IPv6 socket bind an address that no link carries at the moment.
///
/// # Errors
///
/// Returns the error of setsockopt(2).
pub fn v6(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed, hence open, for the whole call; the value is a live
    // c_int and `length` is its size, which is what IPV6_FREEBIND reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_FREEBIND,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};

    #[test]
    fn a_socket_binds_an_address_that_is_not_there() {
        let address: SocketAddr = "[2001:db8::1]:0".parse().unwrap();
        let new = || {
            socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap()
        };
        let plain = new();
        assert!(bind(plain.as_raw_fd(), &SockaddrStorage::from(address)).is_err());

        let free = new();
        super::v6(&free).unwrap();
        bind(free.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
    }
}
