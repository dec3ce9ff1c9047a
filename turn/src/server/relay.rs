//! The data path: ChannelData and Send indications from clients, datagrams from peers.
//!
//! Nothing here allocates. The policy is asked again at every packet; its last word, kept with
//! each permission and channel, counts until the configuration changes.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Instant;

use super::Server;
use super::request::FIRST_UNPRIVILEGED_PORT;
use crate::allocation::Origin;
use crate::channel::{CHANNEL_HEADER_LENGTH, ChannelNumber};
use crate::config::Config;
use crate::five_tuple::{FiveTuple, Side};
use crate::output::{Errand, Relayed};
use crate::permission::{Revision, Verdict};
use crate::policy::Reach;
use crate::relay_port::RelayPort;
use crate::stun::{AttributeType, Class, Message, Method, TransactionId};

/// An authorized packet on its way to a peer.
struct Outgoing {
    origin: Origin,
    relay: RelayPort,
    reach: Reach,
    peer: SocketAddr,
    payload: Range<usize>,
}

impl Server {
    /// Handles one datagram from a client. What is returned is to be sent at once.
    pub fn handle_client(
        &mut self,
        client: FiveTuple,
        datagram: &[u8],
        now: Instant,
    ) -> Option<Relayed> {
        match datagram.first() {
            Some(0x40..=0x7F) => return self.handle_channel_data(client, datagram, now),
            Some(0x00..=0x3F) => {}
            _ => {
                self.counters.malformed += 1;
                return None;
            }
        }
        let Ok(message) = Message::parse(datagram) else {
            self.counters.malformed += 1;
            return None;
        };
        match (message.class(), message.method()) {
            (Class::Request, _) => {
                self.handle_request(client, &message, now);
                None
            }
            (Class::Indication, Method::SEND) => self.handle_send(client, &message, now),
            (Class::Indication, Method::BINDING) => None,
            _ => {
                self.counters.malformed += 1;
                None
            }
        }
    }

    /// RFC 8656 §12.6: ChannelData from a client.
    fn handle_channel_data(
        &mut self,
        client: FiveTuple,
        datagram: &[u8],
        now: Instant,
    ) -> Option<Relayed> {
        let Some(header) = datagram.first_chunk::<CHANNEL_HEADER_LENGTH>() else {
            self.counters.malformed += 1;
            return None;
        };
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let payload = CHANNEL_HEADER_LENGTH..CHANNEL_HEADER_LENGTH + length;
        let number = ChannelNumber::new(u16::from_be_bytes([header[0], header[1]]));
        let (Some(number), true) = (number, payload.end <= datagram.len()) else {
            self.counters.malformed += 1;
            return None;
        };
        let Some(allocation) = self.allocations.by_client(client).filter(|a| a.is_live(now)) else {
            self.counters.no_allocation += 1;
            return None;
        };
        let Some(channel) = allocation.channels.by_number(number, now) else {
            self.counters.no_permission += 1;
            return None;
        };
        let peer = channel.peer;
        let verdict = &mut channel.verdict;
        let reach = judge(verdict, &self.config, self.revision, allocation.side, peer.ip());
        allocation.traffic.from_client(payload.len());
        let (origin, relay) = (allocation.origin(), allocation.port);
        self.send(Outgoing { origin, relay, reach, peer, payload }, now)
    }

    /// RFC 8656 §11.2: a Send indication from a client.
    fn handle_send(
        &mut self,
        client: FiveTuple,
        indication: &Message<'_>,
        now: Instant,
    ) -> Option<Relayed> {
        let peer = indication.xor_address(AttributeType::XOR_PEER_ADDRESS);
        let payload = indication.attribute_range(AttributeType::DATA);
        let (Some(peer), Some(payload), true) = (peer, payload, is_understood(indication)) else {
            self.counters.malformed += 1;
            return None;
        };
        let Some(allocation) = self.allocations.by_client(client).filter(|a| a.is_live(now)) else {
            self.counters.no_allocation += 1;
            return None;
        };
        let Some(permission) = allocation.permissions.find(peer.ip(), now) else {
            self.counters.no_permission += 1;
            return None;
        };
        let verdict = &mut permission.verdict;
        let reach = judge(verdict, &self.config, self.revision, allocation.side, peer.ip());
        allocation.traffic.from_client(payload.len());
        let (origin, relay) = (allocation.origin(), allocation.port);
        self.send(Outgoing { origin, relay, reach, peer, payload }, now)
    }

    /// Sends to a peer by its face, or to another allocation.
    fn send(&mut self, packet: Outgoing, now: Instant) -> Option<Relayed> {
        if packet.peer.port() < FIRST_UNPRIVILEGED_PORT {
            self.counters.privileged_port += 1;
            return None;
        }
        match packet.reach {
            Reach::OwnRelay => self.deliver(packet.origin, packet.peer, packet.payload, now),
            Reach::Peer(side) => {
                let length = packet.payload.len();
                let relayed = Relayed::to_peer(packet.relay, side, packet.peer, packet.payload);
                Some(self.pass(relayed, length))
            }
            Reach::Forbidden(_) => {
                self.counters.denied += 1;
                None
            }
        }
    }

    /// Relay to relay: hands a packet to the allocation at `target`, on whatever shard it is.
    fn deliver(
        &mut self,
        origin: Origin,
        target: SocketAddr,
        payload: Range<usize>,
        now: Instant,
    ) -> Option<Relayed> {
        match self.shared.owner(RelayPort(target.port())) {
            Some(shard) if shard != self.shard => {
                Some(Relayed::to_shard(shard, Errand::Relay { origin, target }, payload))
            }
            _ => self.deliver_here(origin, target, payload, now),
        }
    }

    /// Handles a packet that an allocation of another shard sends to `target`, a relayed transport
    /// address of this one. What is returned is to be sent at once.
    pub fn handle_relay(
        &mut self,
        origin: Origin,
        target: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> Option<Relayed> {
        self.deliver_here(origin, target, 0..payload.len(), now)
    }

    /// The allocation at `target` sees as its peer the form of the origin that it holds a channel
    /// or else a permission for.
    fn deliver_here(
        &mut self,
        origin: Origin,
        target: SocketAddr,
        payload: Range<usize>,
        now: Instant,
    ) -> Option<Relayed> {
        let length = payload.len();
        let relayed = self.address(origin, target, payload, now)?;
        self.counters.relayed_in_process += 1;
        Some(self.pass(relayed, length))
    }

    fn address(
        &mut self,
        origin: Origin,
        target: SocketAddr,
        payload: Range<usize>,
        now: Instant,
    ) -> Option<Relayed> {
        let Some(allocation) = self
            .allocations
            .by_port(RelayPort(target.port()))
            .filter(|a| a.is_live(now) && a.faces.forms().contains(&Some(target.ip())))
        else {
            self.counters.dead_own_address += 1;
            return None;
        };
        let mut shown = None;
        for form in origin.forms(&self.config) {
            if allocation.permissions.find(form.ip(), now).is_none() {
                continue;
            }
            if let Some(number) = allocation.channels.by_peer(form, now) {
                allocation.traffic.to_client(payload.len());
                return Relayed::channel_data(allocation.client, number, payload);
            }
            shown = shown.or(Some(form));
        }
        let client = allocation.client;
        let Some(peer) = shown else {
            self.counters.no_permission += 1;
            return None;
        };
        allocation.traffic.to_client(payload.len());
        Relayed::data_indication(client, peer, self.next_indication(), payload)
    }

    /// Handles one datagram that came in on a relay port's socket on that side (RFC 8656 §11.3,
    /// §12.7). What is returned is to be sent at once.
    pub fn handle_peer(
        &mut self,
        relay: RelayPort,
        face: Side,
        peer: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Option<Relayed> {
        // Without scope and flow, which the client could not have named.
        let peer = SocketAddr::new(peer.ip(), peer.port());
        let Some(allocation) = self.allocations.by_port(relay).filter(|a| a.is_live(now)) else {
            self.counters.no_allocation += 1;
            return None;
        };
        let Some(permission) = allocation.permissions.find(peer.ip(), now) else {
            self.counters.no_permission += 1;
            return None;
        };
        let verdict = &mut permission.verdict;
        match judge(verdict, &self.config, self.revision, allocation.side, peer.ip()) {
            Reach::Peer(side) if side == face => {}
            Reach::Peer(_) => {
                self.counters.wrong_face += 1;
                return None;
            }
            // From the network, nobody has one of our own addresses.
            Reach::OwnRelay | Reach::Forbidden(_) => {
                self.counters.denied += 1;
                return None;
            }
        }
        let client = allocation.client;
        let payload = 0..datagram.len();
        allocation.traffic.to_client(payload.len());
        let relayed = match allocation.channels.by_peer(peer, now) {
            Some(number) => Relayed::channel_data(client, number, payload),
            None => Relayed::data_indication(client, peer, self.next_indication(), payload),
        }?;
        Some(self.pass(relayed, datagram.len()))
    }

    /// A transaction id that no other indication of this server has.
    fn next_indication(&mut self) -> TransactionId {
        self.indications += 1;
        let mut id = [0; 12];
        id[3] = self.shard.0;
        id[4..].copy_from_slice(&self.indications.to_be_bytes());
        TransactionId(id)
    }

    fn pass(&mut self, relayed: Relayed, length: usize) -> Relayed {
        self.counters.relayed_packets += 1;
        self.counters.relayed_octets += u64::try_from(length).unwrap_or(0);
        relayed
    }
}

/// The policy's word under the configuration in force.
fn judge(
    verdict: &mut Verdict,
    config: &Config,
    revision: Revision,
    client: Side,
    peer: IpAddr,
) -> Reach {
    if verdict.revision != revision {
        *verdict = Verdict { reach: config.policy.reach(client, peer), revision };
    }
    verdict.reach
}

/// Whether a Send indication has nothing that must be understood and is not (RFC 8489 §6.3.2);
/// DONT-FRAGMENT is such a thing here.
fn is_understood(indication: &Message<'_>) -> bool {
    indication.attributes().all(|(kind, _)| {
        !kind.is_comprehension_required()
            || kind == AttributeType::XOR_PEER_ADDRESS
            || kind == AttributeType::DATA
    })
}
