//! Clients over TCP, and TCP relays: what a shard asks of them. None is there so far: a client
//! over TCP cannot come, and a relay of connections is refused.

use std::io;

use nix::sys::epoll::{Epoll, EpollFlags};
use turn::{ConnectError, Family, FiveTuple, Output, RelayPort, RelaySocket};

use crate::relay::shard::Forwarder;

/// The streams of one shard.
#[derive(Debug, Default)]
pub(super) struct Streams {}

/// What a shard lends while streams work.
pub(super) struct Around<'a> {
    #[expect(dead_code, reason = "no stream is watched so far")]
    /// Where descriptors are watched, with [`Token::Stream`](crate::relay::shard::Token::Stream).
    pub(super) epoll: &'a Epoll,
    /// Where messages of clients go: [`Forwarder::handle_message`].
    pub(super) forwarder: &'a mut Forwarder,
    pub(super) now: std::time::Instant,
}

impl Streams {
    /// Something happened to the descriptor that is watched under this number.
    pub(super) fn handle_event(&mut self, id: u32, events: EpollFlags, _around: &mut Around<'_>) {
        tracing::debug!(id, ?events, "no such stream");
    }

    /// Sends one message to a client, or drops it when there is no room: never waits.
    pub(super) fn send(&mut self, _client: FiveTuple, _message: &[&[u8]]) -> bool {
        false
    }

    /// Listens for peers on a relay port, all or none per family; returns the open families.
    pub(super) fn open(
        &mut self,
        _relay: RelayPort,
        _sockets: &[RelaySocket],
        _around: &mut Around<'_>,
    ) -> io::Result<Vec<Family>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The port's listeners, of one family or of both, are closed.
    pub(super) fn close(&mut self, _relay: RelayPort, _family: Option<Family>) {}

    /// [`Output::Connect`], [`Output::ConnectInside`], [`Output::Join`] and
    /// [`Output::CloseConnection`].
    pub(super) fn handle_output(&mut self, output: Output, around: &mut Around<'_>) {
        if let Output::Connect { connection, .. } | Output::ConnectInside { connection, .. } =
            output
            && let Some(server) = around.forwarder.server_mut()
        {
            server.handle_connected(connection, Err(ConnectError), around.now);
        }
    }

    /// The relay serves nothing any more: closes everything.
    pub(super) fn clear(&mut self) {}
}
