//! What can be counted.

use std::net::SocketAddr;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use crate::five_tuple::FiveTuple;
use crate::output::RelayTransport;
use crate::refusal::Refusals;

/// What is there right now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Status {
    /// Clients (5-tuples) that have an allocation.
    pub active_clients: usize,
    /// Allocations whose client uses TCP.
    pub active_relays_tcp: usize,
    /// Allocations whose client uses UDP.
    pub active_relays_udp: usize,
    /// Connections to peers (RFC 6062).
    pub connections: usize,
}

/// Shards add up.
impl AddAssign for Status {
    fn add_assign(&mut self, other: Self) {
        self.active_clients += other.active_clients;
        self.active_relays_tcp += other.active_relays_tcp;
        self.active_relays_udp += other.active_relays_udp;
        self.connections += other.connections;
    }
}

/// One allocation, for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllocationStatus {
    /// Whose.
    pub client: FiveTuple,
    /// By which name.
    pub user: Arc<str>,
    /// Every XOR-RELAYED-ADDRESS: one per family.
    pub relayed: Vec<SocketAddr>,
    /// What it relays.
    pub transport: RelayTransport,
    /// How long until its last family ends unless it is refreshed.
    pub expires_in: Duration,
    /// Permissions, also those that are over but not cleared yet.
    pub permissions: usize,
    /// Channels, also those that are over but not cleared yet.
    pub channels: usize,
    /// Connections to peers (RFC 6062).
    pub connections: usize,
    /// Packets from the client that were passed on.
    pub packets_from_client: u64,
    /// Octets of their payload.
    pub octets_from_client: u64,
    /// Packets that were passed to the client.
    pub packets_to_client: u64,
    /// Octets of their payload.
    pub octets_to_client: u64,
}

/// What has happened since the server was made. Drops are counted here, they are no errors.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Allocations made.
    pub allocations: u64,
    /// Requests with a valid nonce and a wrong password or an unknown user.
    pub refused_credentials: u64,
    /// Requests answered with 508.
    pub exhausted: u64,
    /// Requests answered with 486.
    pub quota_reached: u64,
    /// Peers refused with 403.
    pub forbidden: u64,
    /// Replies not sent because their source asked too often without a valid nonce.
    pub limited_replies: u64,
    /// Packets passed on.
    pub relayed_packets: u64,
    /// Octets of their payload.
    pub relayed_octets: u64,
    /// Of those packets, the ones that went to another allocation of this server.
    pub relayed_in_process: u64,
    /// Datagrams that are neither STUN nor ChannelData, or are malformed, or mean nothing here.
    pub malformed: u64,
    /// ICMP errors about packets to peers that the client was told of.
    pub icmp: u64,
    /// ICMP errors that the client was not told of: no permission, no error of a packet's, or too
    /// many.
    pub icmp_dropped: u64,
    /// Allocations that moved to another 5-tuple (RFC 8016).
    pub moved: u64,
    /// Requests with a mobility ticket that fits no allocation.
    pub bad_tickets: u64,
    /// Connections to or from peers that were made (RFC 6062).
    pub connections: u64,
    /// Packets given to another shard.
    pub to_other_shard: u64,
    /// What each rule refused, requests and packets together.
    pub refused: Refusals,
    /// Packets from clients without allocation or channel.
    pub no_allocation: u64,
    /// Packets to or from peers without permission.
    pub no_permission: u64,
    /// Packets to or from peers that the policy refuses, although there is a permission.
    pub denied: u64,
    /// Packets to ports below 1024.
    pub privileged_port: u64,
    /// Packets from a peer that came in on the face it does not belong to.
    pub wrong_face: u64,
    /// Packets to an own address without live allocation.
    pub dead_own_address: u64,
}

/// Shards add up.
impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        // By name, so that none is forgotten.
        let Self {
            allocations,
            refused_credentials,
            exhausted,
            quota_reached,
            forbidden,
            limited_replies,
            relayed_packets,
            relayed_octets,
            relayed_in_process,
            malformed,
            icmp,
            icmp_dropped,
            moved,
            bad_tickets,
            connections,
            to_other_shard,
            refused,
            no_allocation,
            no_permission,
            denied,
            privileged_port,
            wrong_face,
            dead_own_address,
        } = other;
        self.allocations += allocations;
        self.refused_credentials += refused_credentials;
        self.exhausted += exhausted;
        self.quota_reached += quota_reached;
        self.forbidden += forbidden;
        self.limited_replies += limited_replies;
        self.relayed_packets += relayed_packets;
        self.relayed_octets += relayed_octets;
        self.relayed_in_process += relayed_in_process;
        self.malformed += malformed;
        self.icmp += icmp;
        self.icmp_dropped += icmp_dropped;
        self.moved += moved;
        self.bad_tickets += bad_tickets;
        self.connections += connections;
        self.to_other_shard += to_other_shard;
        self.refused += refused;
        self.no_allocation += no_allocation;
        self.no_permission += no_permission;
        self.denied += denied;
        self.privileged_port += privileged_port;
        self.wrong_face += wrong_face;
        self.dead_own_address += dead_own_address;
    }
}
