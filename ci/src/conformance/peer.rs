//! A peer of the relay: a plain UDP socket somewhere.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::case::{Fault, Outcome};

const PATIENCE: Duration = Duration::from_secs(4);
const SILENCE: Duration = Duration::from_millis(30);

/// A UDP socket.
#[derive(Debug)]
pub(super) struct Peer {
    socket: UdpSocket,
    pub(super) address: SocketAddr,
}

impl Peer {
    /// Around a bound socket.
    pub(super) fn new(socket: UdpSocket) -> Outcome<Self> {
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// Sends one datagram.
    pub(super) fn send(&self, to: SocketAddr, data: &[u8]) -> Outcome {
        self.socket.send_to(data, to)?;
        Ok(())
    }

    /// The next datagram must be this one; returns its source.
    pub(super) fn expect(&self, data: &[u8]) -> Outcome<SocketAddr> {
        match self.receive(PATIENCE)? {
            Some((received, source)) if received == data => Ok(source),
            Some((received, source)) => Err(Fault::differs(
                format!("{} octets at the peer: {:02x?}", data.len(), &data[..data.len().min(16)]),
                format!(
                    "{} from {source}: {:02x?}",
                    received.len(),
                    &received[..received.len().min(16)]
                ),
            )),
            None => Err(Fault::differs(format!("{} octets at the peer", data.len()), "nothing")),
        }
    }

    /// Nothing is there, nor comes in a moment.
    pub(super) fn hears_nothing(&self) -> Outcome {
        match self.receive(SILENCE)? {
            None => Ok(()),
            Some((data, source)) => Err(Fault::differs(
                "nothing at the peer",
                format!("{} octets from {source}", data.len()),
            )),
        }
    }

    fn receive(&self, patience: Duration) -> Outcome<Option<(Vec<u8>, SocketAddr)>> {
        self.socket.set_read_timeout(Some(patience))?;
        let mut room = [0; 65_536];
        match self.socket.recv_from(&mut room) {
            Ok((length, source)) => Ok(Some((room[..length].to_vec(), source))),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}
