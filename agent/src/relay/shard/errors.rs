//! The error queue of relay sockets (ip(7), `IP_RECVERR`).

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc::{
    SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6, SO_EE_ORIGIN_LOCAL, sock_extended_err, sockaddr_in6,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use turn::IcmpError;

/// Destination unreachable, and its code: fragmentation needed (RFC 792).
const UNREACHABLE: (u8, u8) = (3, 4);
/// Packet too big (RFC 4443 §3.2).
const TOO_BIG: (u8, u8) = (2, 0);

/// Errors taken from one socket before the next one has its turn.
const AT_ONCE: usize = 16;

/// Takes what the error queue holds: whom the packet was for, and what became of it.
///
/// While it holds something, calls on the socket fail for what an earlier packet did.
pub(super) fn drain(socket: &UdpSocket, mut each: impl FnMut(SocketAddr, IcmpError)) {
    let mut control =
        nix::cmsg_space!([u8; size_of::<sock_extended_err>() + size_of::<sockaddr_in6>()]);
    for _ in 0..AT_ONCE {
        // The packet itself is of no interest.
        let mut packet = [0; 1];
        let mut iov = [IoSliceMut::new(&mut packet)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let received =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(&mut control), flags);
        let Ok(message) = received else {
            return;
        };
        let (Some(peer), Ok(controls)) = (message.address.and_then(address), message.cmsgs())
        else {
            continue;
        };
        for control in controls {
            if let ControlMessageOwned::Ipv4RecvErr(error, _)
            | ControlMessageOwned::Ipv6RecvErr(error, _) = control
                && let Some(error) = icmp(&error, peer)
            {
                each(peer, error);
            }
        }
    }
}

fn address(storage: SockaddrStorage) -> Option<SocketAddr> {
    let v4 =
        storage.as_sockaddr_in().map(|address| SocketAddr::from((address.ip(), address.port())));
    v4.or_else(|| {
        storage.as_sockaddr_in6().map(|address| SocketAddr::from((address.ip(), address.port())))
    })
}

/// The ICMP error that the kernel had, or would have had if the packet had left the box.
fn icmp(error: &sock_extended_err, peer: SocketAddr) -> Option<IcmpError> {
    let too_big = if peer.is_ipv6() { TOO_BIG } else { UNREACHABLE };
    let (kind, code) = match error.ee_origin {
        SO_EE_ORIGIN_ICMP | SO_EE_ORIGIN_ICMP6 => (error.ee_type, error.ee_code),
        SO_EE_ORIGIN_LOCAL if error.ee_errno == nix::errno::Errno::EMSGSIZE as u32 => too_big,
        _ => return None,
    };
    let mtu = if (kind, code) == too_big { error.ee_info } else { 0 };
    Some(IcmpError { kind, code, mtu })
}
