//! What a server wants done.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::allocation::Origin;
use crate::channel::{CHANNEL_HEADER_LENGTH, ChannelNumber};
use crate::credential::Refusal;
use crate::five_tuple::{Family, FiveTuple, Side, Transport};
use crate::refusal::Rule;
use crate::relay_port::RelayPort;
use crate::shared::ShardId;
use crate::stun::{
    AttributeType, Class, ErrorCode, HEADER_LENGTH, Method, TransactionId, encode_type,
    xor_address_bytes,
};

/// What an allocation relays (RFC 8656 §3.2, RFC 6062).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum RelayTransport {
    /// Datagrams.
    Udp,
    /// Connections.
    Tcp,
}

/// A socket of a relay port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RelaySocket {
    /// Which face it is.
    pub side: Side,
    /// What to bind.
    pub address: SocketAddr,
}

/// A connection to a peer (CONNECTION-ID, RFC 6062 §6.2.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct ConnectionId(pub u32);

/// The connection to a peer failed, or took too long.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no connection to the peer")]
pub struct ConnectError;

/// What to do next; see [`Server::poll_output`](crate::Server::poll_output).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Send this to the client from the server's address of the 5-tuple.
    Reply {
        /// To whom.
        client: FiveTuple,
        /// A whole STUN message.
        message: Vec<u8>,
    },
    /// Open these sockets, all or none per family, and call
    /// [`Server::handle_relay_opened`](crate::Server::handle_relay_opened) with the families that
    /// are open, or [`Server::handle_relay_refused`](crate::Server::handle_relay_refused) when
    /// none is.
    OpenRelay {
        /// The port of all of them.
        relay: RelayPort,
        /// UDP: bind. TCP: bind and listen.
        transport: RelayTransport,
        /// One to four: per family the outside face and, if there is one, the inside face.
        sockets: Vec<RelaySocket>,
    },
    /// Close every socket of this port.
    CloseRelay(RelayPort),
    /// Close this port's sockets of one family; the other family's stay.
    CloseFamily(RelayPort, Family),
    /// Bind a TCP socket to `local` (which the listener of the port has too), connect it to `peer`
    /// and call [`Server::handle_connected`](crate::Server::handle_connected) (RFC 6062 §5.2).
    Connect {
        /// What to call the connection.
        connection: ConnectionId,
        /// Whose connection it is.
        relay: RelayPort,
        /// By which face.
        side: Side,
        /// Where from.
        local: SocketAddr,
        /// Where to.
        peer: SocketAddr,
    },
    /// The peer is a TCP relay of our own: make a pair of connected stream sockets. One end is the
    /// connection; the other goes to `shard`, whose
    /// [`Server::handle_relay_connected`](crate::Server::handle_relay_connected) is called with
    /// `origin` and `target`. Then call
    /// [`Server::handle_connected`](crate::Server::handle_connected).
    ConnectInside {
        /// What to call this end.
        connection: ConnectionId,
        /// Who has the other end.
        shard: ShardId,
        /// Whose connection it is.
        origin: Origin,
        /// The relayed transport address to connect to.
        target: SocketAddr,
    },
    /// After every reply queued so far: the client's stream is the data of that connection from
    /// now on (RFC 6062 §5.4). Octets of the peer that came before go first. When either end is
    /// over, call
    /// [`Server::handle_connection_closed`](crate::Server::handle_connection_closed).
    Join {
        /// The client data connection.
        client: FiveTuple,
        /// The peer data connection.
        connection: ConnectionId,
    },
    /// Close this peer data connection and the client's stream that is joined to it, if any.
    CloseConnection(ConnectionId),
    /// Something the owner may want to know.
    Event(Event),
    /// Nothing more to do until a datagram comes, or until this time: call
    /// [`Server::handle_timeout`](crate::Server::handle_timeout) then.
    Timeout(Option<Instant>),
}

/// Something the owner may want to know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// Wrong credentials with a valid nonce: the source is not forged.
    RefusedCredentials {
        /// USERNAME as it came, with what is not UTF-8 replaced; whom USERHASH means, or its begin.
        user: String,
        /// Where from.
        source: SocketAddr,
        /// What was wrong with them.
        reason: Refusal,
    },
    /// No port of the media range was left: an alarm. [`Self::Refused`] says who felt it.
    Exhausted,
    /// A request with right credentials was refused by a rule of the site's.
    Refused {
        /// Whose.
        client: FiveTuple,
        /// By which name.
        user: Arc<str>,
        /// The peer that it was about, if any.
        peer: Option<SocketAddr>,
        /// Which rule.
        rule: Rule,
        /// What the client was told.
        code: ErrorCode,
    },
    /// An allocation drops packets because of a bandwidth limit; said once for each.
    Limited {
        /// Whose.
        client: FiveTuple,
        /// By which name.
        user: Arc<str>,
        /// Which limit.
        rule: Rule,
    },
    /// An allocation moved to another 5-tuple (RFC 8016).
    Moved {
        /// Where it was.
        from: FiveTuple,
        /// Where it is.
        to: FiveTuple,
        /// By which name.
        user: Arc<str>,
    },
    /// An allocation was made.
    Allocated {
        /// For whom.
        client: FiveTuple,
        /// By which name.
        user: Arc<str>,
        /// XOR-RELAYED-ADDRESS.
        relayed: SocketAddr,
    },
    /// An allocation ended.
    Freed {
        /// Whose.
        client: FiveTuple,
        /// XOR-RELAYED-ADDRESS.
        relayed: SocketAddr,
    },
}

/// A packet to pass on: [`Prefix`], then `payload` of the datagram just handled, then `padding`
/// octets of zero. Nothing was copied or allocated for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Relayed {
    /// To whom.
    pub to: Destination,
    /// What goes before.
    pub prefix: Prefix,
    /// Which octets of the datagram.
    pub payload: Range<usize>,
    /// How many octets of zero go behind.
    pub padding: usize,
    /// Whether routers may not fragment it (DONT-FRAGMENT, RFC 8656 §11.2); peers only.
    pub dont_fragment: bool,
}

/// Where a relayed packet goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// To a client, from the server's address of its 5-tuple.
    Client(FiveTuple),
    /// To a peer, from the relay port's socket on that side.
    Peer {
        /// From which port.
        relay: RelayPort,
        /// From which face.
        side: Side,
        /// To whom.
        peer: SocketAddr,
    },
    /// To another shard's thread.
    Shard {
        /// Whose.
        shard: ShardId,
        /// What it does with the payload.
        errand: Errand,
    },
}

/// What another shard is to do with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Errand {
    /// The payload is the whole datagram of a client whose allocation is there: call
    /// [`Server::handle_client`](crate::Server::handle_client). A TCP client's whole stream moves
    /// to that shard, this message first.
    Client(FiveTuple),
    /// To an allocation there: call [`Server::handle_relay`](crate::Server::handle_relay).
    Relay {
        /// From which allocation.
        origin: Origin,
        /// To which relayed transport address.
        target: SocketAddr,
    },
}

/// Octets of the longest prefix: header, XOR-PEER-ADDRESS with IPv6, header of DATA.
const MAX_PREFIX: usize = HEADER_LENGTH + 24 + 4;

/// Up to 48 octets, held inline.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Prefix {
    bytes: [u8; MAX_PREFIX],
    length: usize,
}

impl Prefix {
    /// The octets.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    const EMPTY: Self = Self { bytes: [0; MAX_PREFIX], length: 0 };

    fn push(&mut self, octets: &[u8]) {
        self.bytes[self.length..self.length + octets.len()].copy_from_slice(octets);
        self.length += octets.len();
    }
}

impl Relayed {
    /// The bare payload to a peer.
    #[inline]
    pub(crate) const fn to_peer(
        relay: RelayPort,
        side: Side,
        peer: SocketAddr,
        payload: Range<usize>,
        dont_fragment: bool,
    ) -> Self {
        let to = Destination::Peer { relay, side, peer };
        Self { to, prefix: Prefix::EMPTY, payload, padding: 0, dont_fragment }
    }

    /// The bare payload to another shard.
    pub(crate) const fn to_shard(shard: ShardId, errand: Errand, payload: Range<usize>) -> Self {
        let to = Destination::Shard { shard, errand };
        Self { to, prefix: Prefix::EMPTY, payload, padding: 0, dont_fragment: false }
    }

    /// What goes to another shard is the whole of the datagram.
    pub(crate) fn with_whole(mut self, datagram: &[u8]) -> Self {
        if let Destination::Shard { errand: Errand::Client(_), .. } = self.to {
            self.payload = 0..datagram.len();
        }
        self
    }

    /// A ChannelData message (RFC 8656 §12.4); padded over TCP only (§12.5).
    #[inline]
    pub(crate) fn channel_data(
        client: FiveTuple,
        number: ChannelNumber,
        payload: Range<usize>,
    ) -> Option<Self> {
        let length = u16::try_from(payload.len()).ok()?;
        let mut prefix = Prefix::EMPTY;
        prefix.push(&number.to_be_bytes());
        prefix.push(&length.to_be_bytes());
        debug_assert_eq!(prefix.length, CHANNEL_HEADER_LENGTH);
        let padding = match client.transport {
            Transport::Udp => 0,
            Transport::Tcp => payload.len().next_multiple_of(4) - payload.len(),
        };
        let to = Destination::Client(client);
        Some(Self { to, prefix, payload, padding, dont_fragment: false })
    }

    /// A Data indication (RFC 8656 §11.4).
    pub(crate) fn data_indication(
        client: FiveTuple,
        peer: SocketAddr,
        transaction: TransactionId,
        payload: Range<usize>,
    ) -> Option<Self> {
        let (address, address_length) = xor_address_bytes(peer, transaction);
        let padded = payload.len().next_multiple_of(4);
        let length = u16::try_from(4 + address_length + 4 + padded).ok()?;
        let data_length = u16::try_from(payload.len()).ok()?;
        let mut prefix = Prefix::EMPTY;
        prefix.push(&encode_type(Class::Indication, Method::DATA).to_be_bytes());
        prefix.push(&length.to_be_bytes());
        prefix.push(&crate::stun::MAGIC_COOKIE);
        prefix.push(&transaction.0);
        prefix.push(&AttributeType::XOR_PEER_ADDRESS.0.to_be_bytes());
        prefix.push(&u16::try_from(address_length).ok()?.to_be_bytes());
        prefix.push(&address[..address_length]);
        prefix.push(&AttributeType::DATA.0.to_be_bytes());
        prefix.push(&data_length.to_be_bytes());
        let padding = padded - payload.len();
        let to = Destination::Client(client);
        Some(Self { to, prefix, payload, padding, dont_fragment: false })
    }
}
