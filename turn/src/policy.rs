//! Where a client may send, and by which face: default deny.
//!
//! | client | may reach |
//! |---|---|
//! | any | declared media servers (`allow`), live relay ports of this server |
//! | inside | also `allow_outside` and globally routable addresses, both only beyond LAN2 |
//! | nobody | special-purpose ranges, the box itself, its listeners, peers without a face |
//!
//! # Invariants
//!
//! 1. An IPv6 form of an IPv4 address is judged as that IPv4 address.
//! 2. The box's own addresses are judged before every list, so no list opens them and none locks
//!    out its relay addresses.
//! 3. The side of a peer comes from the plan's routes, never from the kernel.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::five_tuple::{Family, Side};
use crate::special_purpose;

/// What the policy says about one peer address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reach {
    /// One of this server's relayed addresses: delivered in the process, never by the network.
    OwnRelay,
    /// A peer that the face of that side talks to.
    Peer(Side),
    /// Nobody the client may talk to.
    Forbidden(Denial),
}

/// Which rule refuses a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Denial {
    /// Loopback, link-local, groups, embedded addresses: never.
    SpecialPurpose,
    /// An address of this box that has no relay ports.
    OwnAddress,
    /// On no list.
    NotAllowed,
    /// The route leads to a side that has no face in this family.
    NoFace,
}

/// The lists and routes of a configuration.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(super) relay_addresses: Vec<IpAddr>,
    pub(super) own_addresses: Vec<IpAddr>,
    pub(super) inside_families: Vec<Family>,
    pub(super) outside_families: Vec<Family>,
    pub(super) inside_routes: Vec<IpNet>,
    pub(super) outside_routes: Vec<IpNet>,
    pub(super) allow: Vec<IpNet>,
    pub(super) allow_outside: Vec<IpNet>,
}

impl Policy {
    /// Judges one peer address for a client of that side.
    pub(crate) fn reach(&self, client: Side, peer: IpAddr) -> Reach {
        if self.relay_addresses.contains(&peer) {
            return Reach::OwnRelay;
        }
        let canonical = special_purpose::canonical(peer);
        if self.is_own(canonical) || self.is_own(peer) {
            return Reach::Forbidden(Denial::OwnAddress);
        }
        if special_purpose::is_never_a_peer(peer) || special_purpose::is_never_a_peer(canonical) {
            return Reach::Forbidden(Denial::SpecialPurpose);
        }
        let side = self.side_of(peer);
        let listed = |list: &[IpNet]| list.iter().any(|net| net.contains(&canonical));
        let allowed = listed(&self.allow)
            || client == Side::Inside
                && side == Side::Outside
                && (listed(&self.allow_outside) || special_purpose::is_global(canonical));
        if !allowed {
            return Reach::Forbidden(Denial::NotAllowed);
        }
        let faces = match side {
            Side::Inside => &self.inside_families,
            Side::Outside => &self.outside_families,
        };
        if faces.contains(&Family::of(peer)) {
            Reach::Peer(side)
        } else {
            Reach::Forbidden(Denial::NoFace)
        }
    }

    /// The side that the longest matching route leads to; without one it is the outside.
    pub(crate) fn side_of(&self, peer: IpAddr) -> Side {
        let longest = |routes: &[IpNet]| {
            routes.iter().filter(|net| net.contains(&peer)).map(IpNet::prefix_len).max()
        };
        if longest(&self.inside_routes) > longest(&self.outside_routes) {
            Side::Inside
        } else {
            Side::Outside
        }
    }

    /// Whether this box, or the firewall in front of it, carries the address.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.own_addresses.contains(&address) || self.relay_addresses.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Denial, Policy, Reach};
    use crate::five_tuple::{Family, Side};

    fn policy() -> Policy {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let addresses = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
        Policy {
            relay_addresses: addresses(&["203.0.113.156", "192.0.2.61", "172.16.85.168"]),
            own_addresses: addresses(&["203.0.113.156", "192.0.2.61", "172.16.85.168", "10.9.9.9"]),
            inside_families: vec![Family::V4],
            outside_families: vec![Family::V4, Family::V6],
            inside_routes: nets(&["172.16.85.0/24", "172.16.84.0/24", "11.0.0.0/8", "fd00::/8"]),
            outside_routes: nets(&["172.16.84.128/25"]),
            allow: nets(&["172.16.85.0/24", "172.16.84.0/24", "fd00::/8", "127.0.0.0/8"]),
            allow_outside: nets(&["198.51.100.0/24", "172.16.0.0/12"]),
        }
    }

    fn reach(client: Side, peer: &str) -> Reach {
        policy().reach(client, peer.parse().unwrap())
    }

    #[test]
    fn an_outside_client_reaches_declared_servers_and_own_relays_only() {
        for (peer, expected) in [
            ("172.16.85.180", Reach::Peer(Side::Inside)),
            ("172.16.84.200", Reach::Peer(Side::Outside)),
            ("203.0.113.156", Reach::OwnRelay),
            ("192.0.2.61", Reach::OwnRelay),
            ("172.16.85.168", Reach::OwnRelay),
            ("10.9.9.9", Reach::Forbidden(Denial::OwnAddress)),
            ("198.51.100.7", Reach::Forbidden(Denial::NotAllowed)),
            ("9.9.9.9", Reach::Forbidden(Denial::NotAllowed)),
            ("127.0.0.1", Reach::Forbidden(Denial::SpecialPurpose)),
            ("169.254.169.254", Reach::Forbidden(Denial::SpecialPurpose)),
            ("fd00::7", Reach::Forbidden(Denial::NoFace)),
        ] {
            assert_eq!(reach(Side::Outside, peer), expected, "{peer}");
        }
    }

    #[test]
    fn an_inside_client_also_reaches_the_world_but_no_undeclared_inside_host() {
        for (peer, expected) in [
            ("172.16.85.180", Reach::Peer(Side::Inside)),
            ("198.51.100.7", Reach::Peer(Side::Outside)),
            ("9.9.9.9", Reach::Peer(Side::Outside)),
            ("2a00::1", Reach::Peer(Side::Outside)),
            ("64:ff9b::909:909", Reach::Peer(Side::Outside)),
            // Global, but routed inside and not declared.
            ("11.0.0.1", Reach::Forbidden(Denial::NotAllowed)),
            ("10.0.0.1", Reach::Forbidden(Denial::NotAllowed)),
            ("127.0.0.1", Reach::Forbidden(Denial::SpecialPurpose)),
        ] {
            assert_eq!(reach(Side::Inside, peer), expected, "{peer}");
        }
    }

    #[test]
    fn embedded_ipv4_addresses_open_nothing() {
        for peer in [
            "::ffff:172.16.85.180",
            "64:ff9b::ac10:55b4",
            "2002:ac10:55b4::1",
            "::ffff:127.0.0.1",
            "::172.16.85.180",
        ] {
            for client in [Side::Inside, Side::Outside] {
                let reach = reach(client, peer);
                assert_eq!(reach, Reach::Forbidden(Denial::SpecialPurpose), "{peer}");
            }
        }
    }

    #[test]
    fn an_embedded_own_address_is_an_own_address_without_relay_ports() {
        for peer in ["::ffff:203.0.113.156", "64:ff9b::cb00:719c", "2002:cb00:719c::"] {
            assert_eq!(reach(Side::Outside, peer), Reach::Forbidden(Denial::OwnAddress), "{peer}");
        }
    }

    #[test]
    fn the_longest_prefix_decides_the_side() {
        let side = |peer: &str| policy().side_of(peer.parse::<IpAddr>().unwrap());

        assert_eq!(side("172.16.84.1"), Side::Inside);
        assert_eq!(side("172.16.84.129"), Side::Outside);
        assert_eq!(side("172.16.86.1"), Side::Outside);
    }
}
