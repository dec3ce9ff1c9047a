//! How streams come to a shard: from the acceptor, and from other shards.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::eventfd::EventFd;
use turn::{FiveTuple, Origin};

use crate::connection_limit::Place;
use crate::relay::stream::client::Client;
use crate::relay::stream::wire::Wire;

/// A stream that a shard is given. There are never more than connections and relays together.
#[derive(Debug)]
pub(in crate::relay) enum Arrival {
    /// A client has connected; the 5-tuple of one that was joined comes in its header.
    Accepted {
        /// Its connection.
        wire: Wire,
        /// Who it is.
        who: Option<FiveTuple>,
        /// Under the limit of connections.
        place: Place,
    },
    /// The client's allocation is here, not where it was.
    Moved(Box<Client>),
    /// A TCP relay of another shard connects to one of this shard.
    Relay {
        /// From which allocation.
        origin: Origin,
        /// To which relayed transport address.
        target: std::net::SocketAddr,
        /// Our end.
        wire: Wire,
    },
}

/// Where arrivals are handed in.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Gate {
    arrivals: Sender<Arrival>,
    wake: Arc<EventFd>,
}

/// A shard's gate, and where it takes what was handed in.
pub(in crate::relay) fn gate(wake: Arc<EventFd>) -> (Gate, Receiver<Arrival>) {
    let (arrivals, receiver) = channel();
    (Gate { arrivals, wake }, receiver)
}

impl Gate {
    /// Hands a stream in; it is closed when the shard is gone.
    pub(in crate::relay) fn give(&self, arrival: Arrival) {
        if self.arrivals.send(arrival).is_err() {
            tracing::debug!("a stream came for a shard that is gone");
        } else if let Err(error) = self.wake.write(1) {
            // Full: it is about to wake up anyway.
            tracing::debug!("eventfd: {error}");
        }
    }
}
