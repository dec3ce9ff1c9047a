//! Flows: allocations with a channel each, and the frames that go through them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Context, Result};
use nix::unistd::Pid;
use sys::packet_socket::Frames;

use crate::bench::field::{INSIDE, LINKS, PEER, SERVER};
use crate::bench::load::client::Client;
use crate::bench::load::frame::{self, Link};
use crate::bench::load::{Direction, Shape, namespace};

/// The channel of every client; each has one.
const CHANNEL: u16 = 0x4000;
/// The first port of the peers.
const PEER_PORT: u16 = 5_000;
/// The first port of clients; those of one generation have an address each.
const CLIENT_PORT: u16 = 30_000;
/// Clients in one /24.
const PER_SUBNET: usize = 100;

/// Clients with an address each, in the namespace of `process`. Each generation has ports of its
/// own: coturn knows a 5-tuple for some time after its allocation was freed.
pub(super) fn open_clients(process: Pid, generation: u16, count: usize) -> Result<Vec<Client>> {
    let port = CLIENT_PORT + generation;
    let open = |index| {
        let subnet = u8::try_from(1 + index / PER_SUBNET).context("too many clients")?;
        let host = u8::try_from(1 + index % PER_SUBNET).context("too many clients")?;
        Client::open(SocketAddrV4::new(Ipv4Addr::new(10, 9, subnet, host), port))
    };
    namespace::enter(process, || (0..count).map(open).collect())
}

/// Makes the allocations that load of this shape needs.
pub(super) fn prepare(process: Pid, generation: u16, shape: Shape) -> Result<Vec<Client>> {
    let flows = usize::from(shape.flows);
    let pairs = shape.direction == Direction::ClientToClient;
    let mut clients = open_clients(process, generation, if pairs { 2 * flows } else { flows })?;
    for client in &mut clients {
        client.allocate()?;
    }
    for (index, client) in clients.iter().enumerate() {
        let peer = if pairs {
            clients[(index + flows) % (2 * flows)].relayed()?
        } else {
            peer(index)?.into()
        };
        client.bind_channel(CHANNEL, peer)?;
    }
    Ok(clients)
}

/// One frame after the other as they are sent, flows taking turns.
pub(super) fn frames(clients: &[Client], shape: Shape) -> Result<Frames> {
    let [c0, s0, s1, p0] = LINKS;
    let up = Link { source: c0, target: s0 };
    let down = Link { source: p0, target: s1 };
    let SocketAddr::V4(server) = SERVER else { unreachable!("the field is IPv4") };
    let (in_a_row, merged) =
        if shape.merged { (1, usize::from(shape.burst)) } else { (shape.burst, 1) };
    let data = vec![0xA5; usize::from(shape.payload)];
    let mut channel_data = CHANNEL.to_be_bytes().to_vec();
    channel_data.extend(shape.payload.to_be_bytes());
    channel_data.extend(&data);
    let mut frames = Vec::new();
    for (index, client) in clients.iter().take(usize::from(shape.flows)).enumerate() {
        let frame = match shape.direction {
            Direction::ClientToPeer | Direction::ClientToClient => {
                frame::udp(up, client.address(), server, &channel_data, merged)
            }
            Direction::PeerToClient => {
                let relay = SocketAddrV4::new(INSIDE, client.relayed()?.port());
                frame::udp(down, peer(index)?, relay, &data, merged)
            }
        };
        frames.extend(std::iter::repeat_n(frame, in_a_row.into()));
    }
    Ok(Frames::new(frames))
}

fn peer(index: usize) -> Result<SocketAddrV4> {
    Ok(SocketAddrV4::new(PEER, PEER_PORT + u16::try_from(index)?))
}
