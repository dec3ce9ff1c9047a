//! ICMP errors about packets to peers, told to the client (RFC 8656 §11.5).

use std::net::SocketAddr;
use std::time::Instant;

use super::Server;
use crate::bandwidth::Rate;
use crate::five_tuple::{Family, Side};
use crate::icmp::IcmpError;
use crate::output::Output;
use crate::policy::Reach;
use crate::relay_port::RelayPort;
use crate::stun::{AttributeType, Class, Method, Writer};

/// What one allocation's client is told at most: a router on the way may send one error for each
/// packet.
const RATE: Rate = Rate { per_second: 10, burst: 20 };

impl Server {
    /// Handles an ICMP error about a packet that went to `peer` from a relay port: if the client
    /// may know of the peer, it gets a Data indication with ICMP.
    pub fn handle_icmp(
        &mut self,
        relay: RelayPort,
        face: Side,
        peer: SocketAddr,
        error: IcmpError,
        now: Instant,
    ) {
        let peer = SocketAddr::new(peer.ip(), peer.port());
        let value = error.attribute(Family::of(peer.ip()));
        let allocation = self.allocations.by_port(relay).filter(|allocation| {
            let leg = allocation.live_leg(Family::of(peer.ip()), now);
            leg.is_some_and(|leg| leg.faces.face(face).is_some())
        });
        let (Some(value), Some(allocation)) = (value, allocation) else {
            self.counters.icmp_dropped += 1;
            return;
        };
        let permitted = allocation.permissions.find(peer.ip(), now).is_some()
            && self.config.policy.reach(allocation.side, peer.ip()) == Reach::Peer(face);
        if !permitted || !allocation.icmp.take(RATE, 1, now) {
            self.counters.icmp_dropped += 1;
            return;
        }
        let client = allocation.client;
        self.counters.icmp += 1;
        let message = Writer::new(Class::Indication, Method::DATA, self.next_indication())
            .xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
            .attribute(AttributeType::ICMP, &value)
            .finish();
        self.outputs.push_back(Output::Reply { client, message });
    }
}
