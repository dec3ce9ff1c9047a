//! The sockets that `postern-net` opens and holds for serving processes.
//!
//! A serving process gets a duplicate, so it can be replaced without a connection attempt being
//! lost: the socket, with its queue, stays open here. Sockets that two generations share stay
//! open across the change.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen,
    setsockopt, socket, sockopt,
};

use crate::plan::{ListenerPlan, Service, Transport};

/// Why a socket was not opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {transport:?} {address}: {source}", address = plan.address, transport = plan.transport)]
pub(crate) struct OpenError {
    plan: ListenerPlan,
    source: io::Error,
}

/// Opened, not yet in the place of what is held.
#[derive(Debug)]
pub(crate) struct Opened(Vec<(ListenerPlan, OwnedFd)>);

impl Opened {
    /// How many were opened.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// What is held.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Vec<(ListenerPlan, OwnedFd)>);

impl Sockets {
    /// Opens those of `wanted` that are not held yet; what cannot be opened is in the second
    /// part.
    pub(crate) fn open(&self, wanted: &[ListenerPlan]) -> (Opened, Vec<OpenError>) {
        let (mut opened, mut failed) = (Vec::new(), Vec::new());
        for plan in wanted {
            if self.0.iter().any(|(held, _)| same_socket(held, plan)) {
                continue;
            }
            match open(plan) {
                Ok(fd) => opened.push((plan.clone(), fd)),
                Err(source) => failed.push(OpenError { plan: plan.clone(), source }),
            }
        }
        (Opened(opened), failed)
    }

    /// Holds exactly `wanted` from now on: what was held and is not wanted is closed.
    pub(crate) fn commit(&mut self, wanted: &[ListenerPlan], opened: Opened) {
        let mut held = std::mem::take(&mut self.0);
        held.extend(opened.0);
        for plan in wanted {
            if let Some(at) = held.iter().position(|(held, _)| same_socket(held, plan)) {
                let (_, fd) = held.swap_remove(at);
                self.0.push((plan.clone(), fd));
            }
        }
    }

    /// What is held, in the order of the plan.
    pub(crate) fn plans(&self) -> impl Iterator<Item = &ListenerPlan> {
        self.0.iter().map(|(plan, _)| plan)
    }

    /// Those of `owners`.
    pub(crate) fn of(&self, owners: &[Service]) -> (Vec<ListenerPlan>, Vec<BorrowedFd<'_>>) {
        self.0
            .iter()
            .filter(|(plan, _)| owners.contains(&plan.owner))
            .map(|(plan, fd)| (plan.clone(), fd.as_fd()))
            .unzip()
    }
}

/// Whether one socket serves both; the owner may change hands.
fn same_socket(a: &ListenerPlan, b: &ListenerPlan) -> bool {
    a.address == b.address && a.transport == b.transport
}

fn open(plan: &ListenerPlan) -> io::Result<OwnedFd> {
    let v6 = plan.address.is_ipv6();
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let (kind, protocol) = match plan.transport {
        Transport::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Transport::Udp => (SockType::Datagram, SockProtocol::Udp),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, protocol)?;
    // An address that is away for a moment (drift, duplicate address detection) must not cost
    // the listener: the plan says that the address is ours.
    if v6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        sys::freebind::v6(&fd)?;
    } else {
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
    }
    if plan.transport == Transport::Tcp {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(plan.address))?;
    if plan.transport == Transport::Tcp {
        listen(&fd, Backlog::MAXCONN)?;
    }
    Ok(fd)
}
