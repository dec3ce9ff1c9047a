//! Many datagrams with one system call: recvmmsg(2) and sendmmsg(2), with UDP_GRO and UDP_SEGMENT
//! (udp(7)).
//!
//! [`Inbox`] owns the memory that datagrams are received into; [`Outbox`] sends pieces of such
//! memory, from where they lie. Both reserve all they need when they are made.
//!
//! ```text
//! slot 0: before | datagram ...... | behind    slot 1: before | datagram ...... | behind    ...
//! ```

mod inbox;
mod name;
mod outbox;

pub use self::inbox::{Inbox, Layout, Received};
pub use self::outbox::{Message, Outbox, Piece};

#[cfg(test)]
mod tests;
