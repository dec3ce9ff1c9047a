//! What strangers and bad clients send: frames made beforehand, the same in every run.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sys::packet_socket::Frames;
use turn::stun::{AttributeType, Class, Method, TransactionId, Writer};

use crate::bench::contender::{REALM, USER};
use crate::bench::field::{LINKS, SERVER};
use crate::bench::load::client::Client;
use crate::bench::load::frame::{self, Link};

/// Sources that do not exist: answers to 10.10.0.0/16 are dropped where they arrive.
const SPOOFED: [u8; 2] = [10, 10];
/// How many of them ask.
const SOURCES: u32 = 50_000;
/// Different frames of the other attacks.
const VARIETY: u32 = 4_096;

/// A flood.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Attack {
    /// Datagrams that begin like nothing, like STUN or like ChannelData, and are neither.
    Garbage,
    /// Allocate without credentials, each from another source.
    Asking,
    /// Refresh: of strangers, of a client with a wrong password, of a client that may.
    Refresh,
    /// Refresh with a made-up MOBILITY-TICKET (RFC 8016): of strangers, and of a user that has
    /// moved to another port.
    Mobility,
    /// CreatePermission and ChannelBind of a client for peers that it must not reach.
    Forbidden,
}

/// The frames of a flood; `clients` have allocations.
pub(super) fn frames(attack: Attack, clients: &[Client]) -> Result<Frames> {
    let mut random = Random(0x5EED);
    let count = if attack == Attack::Asking { SOURCES } else { VARIETY };
    let frame = |index| {
        let client = &clients[usize::try_from(index)? % clients.len().max(1)];
        let stranger = spoofed(index);
        let (source, payload) = match attack {
            Attack::Garbage => (stranger, garbage(&mut random)),
            Attack::Asking => (stranger, ask(&mut random)),
            Attack::Refresh => refresh(&mut random, index, client, stranger)?,
            Attack::Mobility => {
                // A nonce is good for its address, whatever the port.
                let moved = SocketAddrV4::new(*client.address().ip(), stranger.port() % 16_384);
                let source = if index.is_multiple_of(2) { moved } else { stranger };
                (source, mobility(&mut random, client)?)
            }
            Attack::Forbidden => (client.address(), forbidden(index, client)?),
        };
        let link = Link { source: LINKS[0], target: LINKS[1] };
        let SocketAddr::V4(server) = SERVER else { unreachable!("the field is IPv4") };
        Ok(frame::udp(link, source, server, &payload, 1))
    };
    Ok(Frames::new((0..count).map(frame).collect::<Result<_>>()?))
}

/// A peer that no client may reach, and how a client could write it.
pub(super) struct Disguise {
    pub(super) peer: SocketAddr,
    /// Whether only a channel to it is refused: the port makes it forbidden, not the address.
    pub(super) by_port: bool,
}

/// Every disguise, for a relay at [`SERVER`] whose clients are outside.
pub(super) fn disguises() -> Result<Vec<Disguise>> {
    let by_address = [
        // The box itself, its links, other clients.
        "127.0.0.1:3478",
        "127.127.1.1:80",
        "0.0.0.0:3478",
        "10.8.1.2:80",
        "10.9.0.1:80",
        // Beside the declared media server.
        "10.8.2.3:5000",
        "10.8.2.0:5000",
        "10.8.2.255:5000",
        // What only a network or a cloud has.
        "169.254.169.254:80",
        "192.168.0.1:80",
        "172.16.0.1:80",
        "100.64.0.1:80",
        "198.18.0.1:80",
        "192.0.0.9:80",
        "192.0.2.1:80",
        "224.0.0.251:5353",
        "239.255.255.250:1900",
        "240.0.0.1:80",
        "255.255.255.255:67",
        // The rest of the world, which only inside clients reach.
        "8.8.8.8:53",
        // IPv6, plain and with one of the above in it.
        "[::]:80",
        "[::1]:3478",
        "[fe80::1]:80",
        "[fc00::1]:80",
        "[ff02::1]:80",
        "[2001:db8::1]:80",
        "[2001:4860:4860::8888]:53",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:10.8.2.3]:5000",
        "[::ffff:10.8.2.2]:5000",
        "[::127.0.0.1]:80",
        "[64:ff9b::127.0.0.1]:80",
        "[64:ff9b::10.8.2.3]:5000",
        "[64:ff9b:1::10.8.2.3]:5000",
        "[2002:7f00:1::1]:80",
        "[2002:a08:203::1]:5000",
        "[2001:0:a08:203:0:ffff:f5f7:fdfc]:5000",
    ];
    let by_port = ["10.8.1.1:22", "10.8.2.1:443", "10.8.2.2:22", "10.8.2.2:0"];
    let parse = |text: &str, by_port| {
        let peer = text.parse().with_context(|| format!("{text} is no address"))?;
        Ok(Disguise { peer, by_port })
    };
    let by_address = by_address.into_iter().map(|text| parse(text, false));
    by_address.chain(by_port.into_iter().map(|text| parse(text, true))).collect()
}

fn garbage(random: &mut Random) -> Vec<u8> {
    let length = 1 + random.below(400);
    let mut bytes = random.bytes(length);
    match random.below(3) {
        // Looks like STUN, with lengths and attributes of chance.
        0 if length >= 20 => {
            bytes[0] &= 0x3F;
            let body = u16::try_from(length - 20).unwrap_or(0) & !3;
            bytes[2..4].copy_from_slice(&body.to_be_bytes());
            bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xA4, 0x42]);
        }
        // Looks like ChannelData.
        1 if length >= 4 => {
            bytes[0] = 0x40 | bytes[0] & 0x3F;
            let body = u16::try_from(length - 4).unwrap_or(0);
            bytes[2..4].copy_from_slice(&body.to_be_bytes());
        }
        _ => {}
    }
    bytes
}

fn ask(random: &mut Random) -> Vec<u8> {
    let writer = Writer::new(Class::Request, Method::ALLOCATE, random.transaction());
    writer.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).finish()
}

fn refresh(
    random: &mut Random,
    index: u32,
    client: &Client,
    stranger: SocketAddrV4,
) -> Result<(SocketAddrV4, Vec<u8>)> {
    let lifetime = 3_600_u32.to_be_bytes();
    let refresh = |writer: Writer| writer.attribute(AttributeType::LIFETIME, &lifetime);
    Ok(match index % 3 {
        0 => (stranger, unsigned(random, refresh)),
        1 => {
            let mut request = client.signed(Method::REFRESH, refresh)?;
            let last = request.len() - 1;
            request[last] ^= 1;
            (client.address(), request)
        }
        _ => (client.address(), client.signed(Method::REFRESH, refresh)?),
    })
}

fn mobility(random: &mut Random, client: &Client) -> Result<Vec<u8>> {
    let length = 32 + random.below(32);
    let ticket = random.bytes(length);
    client
        .signed(Method::REFRESH, |writer| writer.attribute(AttributeType::MOBILITY_TICKET, &ticket))
}

fn forbidden(index: u32, client: &Client) -> Result<Vec<u8>> {
    let disguises = disguises()?;
    let disguise = &disguises[usize::try_from(index)? % disguises.len()];
    let peer = |writer: Writer| writer.xor_address(AttributeType::XOR_PEER_ADDRESS, disguise.peer);
    if disguise.by_port || index.is_multiple_of(2) {
        let number = [0x50, 0x00, 0, 0];
        client.signed(Method::CHANNEL_BIND, |writer| {
            peer(writer.attribute(AttributeType::CHANNEL_NUMBER, &number))
        })
    } else {
        client.signed(Method::CREATE_PERMISSION, peer)
    }
}

/// A request with credentials that nobody has given out.
fn unsigned(random: &mut Random, attributes: impl FnOnce(Writer) -> Writer) -> Vec<u8> {
    let nonce = random.bytes(40);
    attributes(Writer::new(Class::Request, Method::REFRESH, random.transaction()))
        .attribute(AttributeType::USERNAME, USER.as_bytes())
        .attribute(AttributeType::REALM, REALM.as_bytes())
        .attribute(AttributeType::NONCE, &nonce)
        .attribute(AttributeType::MESSAGE_INTEGRITY, &random.bytes(20))
        .finish()
}

fn spoofed(index: u32) -> SocketAddrV4 {
    let [.., third, fourth] = index.to_be_bytes();
    let ip = Ipv4Addr::new(SPOOFED[0], SPOOFED[1], third, fourth);
    SocketAddrV4::new(ip, 1_024 + u16::from(fourth) * 200 + u16::from(third))
}

/// SplitMix64: the same garbage in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        let [high, low, ..] = self.next().to_be_bytes();
        usize::from(u16::from_be_bytes([high, low])) % bound
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_be_bytes()[0]).take(count).collect()
    }

    fn transaction(&mut self) -> TransactionId {
        let mut id = [0; 12];
        id.copy_from_slice(&self.bytes(12));
        TransactionId(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_no_message() {
        let mut random = Random(1);

        let well_formed = std::iter::repeat_with(|| garbage(&mut random))
            .take(2_000)
            .filter(|bytes| turn::stun::Message::parse(bytes).is_ok());

        assert!(well_formed.count() < 20, "nearly all of it is malformed");
    }

    #[test]
    fn each_asking_source_is_another() {
        let sources: std::collections::HashSet<_> = (0..SOURCES).map(spoofed).collect();

        assert_eq!(sources.len(), 50_000);
    }
}
