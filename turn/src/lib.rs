//! A sans-IO TURN server: [`Server`] takes datagrams and the time, and says what to do next.
//!
//! # Specifications
//!
//! | section | what | code | test (`tests/it`, unless said) |
//! |---|---|---|---|
//! | [RFC 8489] §5, §14 | message format | `stun::message` | `stun::tests` (RFC 5769, RFC 8489 §B.1) |
//! | RFC 8489 §6.3 | requests, indications, unknown attributes (420) | `server::request` | `requests.rs` |
//! | RFC 8489 §9.2 | long-term credentials, 401, 400, 438 | `server::authentication`, `credential` | `credentials.rs` |
//! | RFC 8489 §9.2, §13 | stateless nonces, security features | `nonce` | `credentials.rs`, `rfc8489_credentials.rs` |
//! | RFC 8489 §9.2.1, §14.11, §14.12, §18.5 | PASSWORD-ALGORITHMS, bid-down | `server::authentication` | `rfc8489_credentials.rs` |
//! | RFC 8489 §14.4 | USERHASH | `credential` | `rfc8489_credentials.rs` |
//! | RFC 8489 §14.5, §14.6 | MESSAGE-INTEGRITY(-SHA256), what follows does not count | `stun::integrity`, `stun::message` | `stun::tests`, `credentials.rs`, `rfc8489_credentials.rs` |
//! | RFC 8489 §14.7 | FINGERPRINT | `stun::integrity` | `stun::tests` |
//! | RFC 8489 §10 | ALTERNATE-SERVER (300) while draining | `server::allocate` | `drain.rs` |
//! | RFC 8489 §6.2.2, RFC 8656 §12.5 | STUN and ChannelData over TCP | `framing` | its own |
//! | PROXY protocol, version 2 | who a joined stream is from | `proxy_header` | its own |
//! | [RFC 8656] §5 | only the user that made an allocation changes it (441) | `server::request` | `credentials.rs` |
//! | RFC 8656 §7.2 | Allocate, LIFETIME, retransmissions, 437, 442, 486, 508 | `server::allocate`, `server::open` | `allocate.rs` |
//! | RFC 8656 §7.2, §18.7, §18.10 | EVEN-PORT, RESERVATION-TOKEN | `server::allocate`, `relay_port` | `allocate.rs`, `shards.rs` |
//! | RFC 8656 §7.2, §18.6, §18.11, §18.12 | address families, ADDRESS-ERROR-CODE, 440 | `server::allocate`, `server::open` | `families.rs` |
//! | RFC 8656 §8.2 | Refresh, of one family or both, 443 | `server::refresh`, `server::expiry` | `allocate.rs`, `families.rs` |
//! | RFC 8656 §9, §10 | permissions, CreatePermission | `permission`, `server::permit` | `peers.rs` |
//! | RFC 8656 §11 | Send and Data indications | `server::relay` | `relay.rs` |
//! | RFC 8656 §11.2, §18.9 | DONT-FRAGMENT | `server::relay` | `relay.rs` |
//! | RFC 8656 §11.5, §18.13 | ICMP errors to the client, ten a second | `server::icmp`, `icmp` | `icmp.rs` |
//! | RFC 8656 §12 | channels; numbers up to 0x7FFF, as in RFC 5766 | `channel`, `server::permit` | `relay.rs`, `peers.rs` |
//! | RFC 8656 §7.2 (403), §21 | peer policy, quotas, bandwidth | `policy`, `quota`, `server::limits` | `peers.rs`, `limits.rs` |
//! | [RFC 8016] §3 | mobility: tickets, two 5-tuples at once, 405 | `mobility`, `server::mobility`, `routes` | `mobility.rs` |
//! | [RFC 6062] §4.5, §5 | TCP allocations: Connect, ConnectionBind, ConnectionAttempt, 446, 447 | `server::tcp_relay`, `connection` | `tcp_relay.rs` |
//! | [TURN REST] | time-limited credentials | `credential` | `rest_credentials.rs` |
//!
//! Left out for good: NAT behaviour discovery (RFC 5780), which needs two public addresses, and
//! DTLS, which no browser speaks to a TURN server. A TCP allocation gets no mobility ticket: it
//! ends with its control connection. Bandwidth limits are about datagrams; the octets of a TCP
//! allocation's connections do not pass through here.
//!
//! # Shards
//!
//! A [`Server`] is one shard: it has the clients that the kernel gave its thread, and their relay
//! ports, for as long as an allocation lives. What shards have in common is in [`Shared`]. A packet
//! for an allocation of another shard is returned with [`Destination::Shard`]: another relay port's
//! ([`Errand::Relay`]), a client's that moved (RFC 8016) or a data connection's (RFC 6062; both
//! [`Errand::Client`]).
//!
//! # Use
//!
//! After each `handle_*` and command, drain [`Server::poll_output`] until it says
//! [`Output::Timeout`]. `handle_client` and `handle_peer` are the data path: what they return is
//! to be sent at once and borrows nothing.
//!
//! # Invariants
//!
//! 1. A relay port belongs to at most one allocation and is inside the media range.
//! 2. A packet to one of this box's own addresses never leaves the process.
//! 3. No datagram makes this crate panic: a malformed one is counted and dropped.
//! 4. Nothing is allocated on the heap for a relayed packet, and no lock is taken but for the total
//!    bandwidth limit, once per 64 KiB.
//!
//! [RFC 8489]: https://www.rfc-editor.org/rfc/rfc8489
//! [RFC 6062]: https://www.rfc-editor.org/rfc/rfc6062
//! [RFC 8016]: https://www.rfc-editor.org/rfc/rfc8016
//! [RFC 8656]: https://www.rfc-editor.org/rfc/rfc8656
//! [TURN REST]: https://datatracker.ietf.org/doc/html/draft-uberti-behave-turn-rest-00
#![forbid(unsafe_code)]

mod allocation;
mod allocations;
mod bandwidth;
mod channel;
mod config;
mod connection;
mod credential;
mod five_tuple;
pub mod framing;
mod icmp;
mod mobility;
mod nonce;
mod output;
mod permission;
mod policy;
mod proxy_header;
mod quota;
mod random;
mod refusal;
mod relay_port;
mod reply_limit;
mod routes;
mod server;
mod shared;
mod special_purpose;
mod status;
pub mod stun;

pub use crate::allocation::Origin;
pub use crate::config::{Config, ConfigError, Drain, Face, Quotas, ReplyRate, Settings};
pub use crate::credential::Refusal;
pub use crate::five_tuple::{Family, FiveTuple, Side, Transport};
pub use crate::icmp::IcmpError;
pub use crate::output::{
    ConnectError, ConnectionId, Destination, Errand, Event, Output, Prefix, RelaySocket,
    RelayTransport, Relayed,
};
pub use crate::policy::{Denial, Reach};
pub use crate::proxy_header::{ProxyHeader, ProxyHeaderError};
pub use crate::refusal::{Refusals, Rule};
pub use crate::relay_port::RelayPort;
pub use crate::server::Server;
pub use crate::shared::{ShardId, Shared};
pub use crate::status::{AllocationStatus, Counters, Status};
