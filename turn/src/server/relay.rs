//! The data path: ChannelData and Send indications from clients, datagrams from peers and from
//! other allocations.
//!
//! Nothing here allocates, locks or asks for the time. The policy is asked again at every packet;
//! its last word, kept with each permission and channel, counts until the configuration changes.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Instant;

use super::Server;
use super::permit::FIRST_UNPRIVILEGED_PORT;
use crate::allocation::Origin;
use crate::allocations::Slot;
use crate::channel::{CHANNEL_HEADER_LENGTH, ChannelNumber};
use crate::config::Config;
use crate::five_tuple::{Family, FiveTuple, Side};
use crate::output::{Errand, RelayTransport, Relayed};
use crate::permission::{Revision, Verdict};
use crate::policy::Reach;
use crate::refusal::Rule;
use crate::relay_port::RelayPort;
use crate::stun::{AttributeType, Class, Message, Method, TransactionId};

/// A packet from a client whose channel or permission was found.
struct Outgoing {
    slot: Slot,
    reach: Reach,
    peer: SocketAddr,
    payload: Range<usize>,
    dont_fragment: bool,
}

impl Server {
    /// Handles one datagram from a client, or one message of its stream. What is returned is to be
    /// sent at once.
    pub fn handle_client(
        &mut self,
        client: FiveTuple,
        datagram: &[u8],
        now: Instant,
    ) -> Option<Relayed> {
        match datagram.first() {
            Some(0x40..=0x7F) => {
                if let Some(shard) = self.routes.find(&client, now) {
                    return Some(self.pass_on(shard, client, datagram));
                }
                self.handle_channel_data(client, datagram, now)
            }
            Some(0x00..=0x3F) => {
                let Ok(message) = Message::parse(datagram) else {
                    self.counters.malformed += 1;
                    return None;
                };
                // A ticket says itself where it is to be taken.
                let routed = message.attribute(AttributeType::MOBILITY_TICKET).is_none()
                    || message.method() != Method::REFRESH;
                if let (Some(shard), true) = (self.routes.find(&client, now), routed) {
                    return Some(self.pass_on(shard, client, datagram));
                }
                let relayed = self.handle_message(client, &message, now)?;
                Some(relayed.with_whole(datagram))
            }
            _ => {
                self.counters.malformed += 1;
                None
            }
        }
    }

    fn handle_message(
        &mut self,
        client: FiveTuple,
        message: &Message<'_>,
        now: Instant,
    ) -> Option<Relayed> {
        match (message.class(), message.method()) {
            (Class::Request, _) => self.handle_request(client, message, now),
            (Class::Indication, Method::SEND) => self.handle_send(client, message, now),
            (Class::Indication, Method::BINDING) => None,
            _ => {
                self.counters.malformed += 1;
                None
            }
        }
    }

    /// Hands a datagram of a client to the shard that has its allocation.
    fn pass_on(
        &mut self,
        shard: crate::shared::ShardId,
        client: FiveTuple,
        datagram: &[u8],
    ) -> Relayed {
        self.counters.to_other_shard += 1;
        Relayed::to_shard(shard, Errand::Client(client), 0..datagram.len())
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
        let slot = self.sender(client)?;
        let allocation = self.allocations.at(slot)?;
        let side = allocation.side;
        let Some(channel) = allocation.channels.by_number(number, now) else {
            self.counters.no_permission += 1;
            return None;
        };
        let peer = channel.peer;
        let reach = judge(&mut channel.verdict, &self.config, self.revision, side, peer.ip());
        self.send(Outgoing { slot, reach, peer, payload, dont_fragment: false }, now)
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
        let dont_fragment = indication.attribute(AttributeType::DONT_FRAGMENT).is_some();
        let slot = self.sender(client)?;
        let allocation = self.allocations.at(slot)?;
        let side = allocation.side;
        let Some(permission) = allocation.permissions.find(peer.ip(), now) else {
            self.counters.no_permission += 1;
            return None;
        };
        let reach = judge(&mut permission.verdict, &self.config, self.revision, side, peer.ip());
        self.send(Outgoing { slot, reach, peer, payload, dont_fragment }, now)
    }

    /// The allocation whose client sends data. From a new 5-tuple that ends its move (RFC 8016).
    fn sender(&mut self, client: FiveTuple) -> Option<Slot> {
        let Some(slot) = self.allocations.find(&client) else {
            self.counters.no_allocation += 1;
            return None;
        };
        let allocation = self.allocations.at(slot)?;
        if allocation.transport != RelayTransport::Udp {
            self.counters.no_allocation += 1;
            return None;
        }
        if let Some(old) = allocation.moved_from(&client) {
            self.finish_move(old);
        }
        Some(slot)
    }

    /// Sends to a peer by its face, or to another allocation.
    fn send(&mut self, packet: Outgoing, now: Instant) -> Option<Relayed> {
        let Outgoing { slot, reach, peer, payload, dont_fragment } = packet;
        if peer.port() < FIRST_UNPRIVILEGED_PORT {
            self.counters.privileged_port += 1;
            self.counters.refused.count(Rule::PrivilegedPort);
            return None;
        }
        if let Reach::Forbidden(denial) = reach {
            self.deny(denial.into());
            return None;
        }
        let length = payload.len();
        let family = Family::of(peer.ip());
        let allocation = self.allocations.at(slot)?;
        if allocation.live_leg(family, now).is_none() {
            self.counters.no_allocation += 1;
            return None;
        }
        if !self.is_within_limits(slot, length, now) {
            return None;
        }
        let allocation = self.allocations.at(slot)?;
        allocation.traffic.packets_from_client += 1;
        allocation.traffic.octets_from_client += length as u64;
        match reach {
            Reach::Peer(side) => {
                let port = allocation.port;
                self.count(length);
                Some(Relayed::to_peer(port, side, peer, payload, dont_fragment))
            }
            _ => {
                let origin = allocation.origin(family);
                self.deliver(origin, peer, payload, now)
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
                self.counters.to_other_shard += 1;
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
        let slot = self.allocations.find_port(RelayPort(target.port()));
        let found = slot.and_then(|slot| Some((slot, self.allocations.at(slot)?)));
        let Some((slot, allocation)) = found.filter(|(_, found)| {
            found.transport == RelayTransport::Udp && found.answers_to(target.ip(), now)
        }) else {
            self.counters.dead_own_address += 1;
            self.counters.refused.count(Rule::NoSuchRelay);
            return None;
        };
        let mut shown = None;
        for form in origin.forms(&self.config) {
            if allocation.permissions.find(form.ip(), now).is_none() {
                continue;
            }
            if let Some(number) = allocation.channels.by_peer(form, now) {
                shown = Some((form, Some(number)));
                break;
            }
            shown = shown.or(Some((form, None)));
        }
        let Some((peer, channel)) = shown else {
            self.counters.no_permission += 1;
            return None;
        };
        let relayed = self.client_packet(slot, peer, channel, payload, now)?;
        self.counters.relayed_in_process += 1;
        Some(relayed)
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
        let slot = self.allocations.find_port(relay);
        let found = slot.and_then(|slot| Some((slot, self.allocations.at(slot)?)));
        let Some((slot, allocation)) =
            found.filter(|(_, found)| found.live_leg(Family::of(peer.ip()), now).is_some())
        else {
            self.counters.no_allocation += 1;
            return None;
        };
        let side = allocation.side;
        let Some(permission) = allocation.permissions.find(peer.ip(), now) else {
            self.counters.no_permission += 1;
            return None;
        };
        match judge(&mut permission.verdict, &self.config, self.revision, side, peer.ip()) {
            Reach::Peer(side) if side == face => {}
            Reach::Peer(_) => {
                self.counters.wrong_face += 1;
                return None;
            }
            // From the network, nobody has one of our own addresses.
            Reach::OwnRelay => {
                self.deny(Rule::OwnAddress);
                return None;
            }
            Reach::Forbidden(denial) => {
                self.deny(denial.into());
                return None;
            }
        }
        let channel = allocation.channels.by_peer(peer, now);
        self.client_packet(slot, peer, channel, 0..datagram.len(), now)
    }

    /// A peer's packet in the form that its client gets it in.
    fn client_packet(
        &mut self,
        slot: Slot,
        peer: SocketAddr,
        channel: Option<ChannelNumber>,
        payload: Range<usize>,
        now: Instant,
    ) -> Option<Relayed> {
        let length = payload.len();
        if !self.is_within_limits(slot, length, now) {
            return None;
        }
        let allocation = self.allocations.at(slot)?;
        allocation.traffic.packets_to_client += 1;
        allocation.traffic.octets_to_client += length as u64;
        let client = allocation.client;
        self.count(length);
        match channel {
            Some(number) => Relayed::channel_data(client, number, payload),
            None => Relayed::data_indication(client, peer, self.next_indication(), payload),
        }
    }

    /// A transaction id that no other indication of this server has.
    pub(super) fn next_indication(&mut self) -> TransactionId {
        self.indications += 1;
        let mut id = [0; 12];
        id[3] = self.shard.0;
        id[4..].copy_from_slice(&self.indications.to_be_bytes());
        TransactionId(id)
    }

    /// Counts a packet that a rule refuses.
    pub(super) const fn deny(&mut self, rule: Rule) {
        self.counters.denied += 1;
        self.counters.refused.count(rule);
    }

    const fn count(&mut self, length: usize) {
        self.counters.relayed_packets += 1;
        self.counters.relayed_octets += length as u64;
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

/// Whether a Send indication has nothing that must be understood and is not (RFC 8489 §6.3.2).
fn is_understood(indication: &Message<'_>) -> bool {
    indication.attributes().all(|(kind, _)| {
        !kind.is_comprehension_required()
            || kind == AttributeType::XOR_PEER_ADDRESS
            || kind == AttributeType::DATA
            || kind == AttributeType::DONT_FRAGMENT
    })
}
