//! What can be counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::five_tuple::FiveTuple;
use crate::output::RelayTransport;

/// What is there right now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Status {
    /// Clients (5-tuples) that have an allocation.
    pub active_clients: usize,
    /// Allocations whose client uses TCP.
    pub active_relays_tcp: usize,
    /// Allocations whose client uses UDP.
    pub active_relays_udp: usize,
}

/// One allocation, for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllocationStatus {
    /// Whose.
    pub client: FiveTuple,
    /// By which name.
    pub user: Arc<str>,
    /// XOR-RELAYED-ADDRESS.
    pub relayed: SocketAddr,
    /// What it relays.
    pub transport: RelayTransport,
    /// How long until it ends unless it is refreshed.
    pub expires_in: Duration,
    /// Permissions, also those that are over but not cleared yet.
    pub permissions: usize,
    /// Channels, also those that are over but not cleared yet.
    pub channels: usize,
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
    /// ICMP errors about packets to peers.
    pub icmp: u64,
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
