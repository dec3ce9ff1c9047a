//! TURN clients on the proxy's listeners: how one is told from a browser, and its way to the relay.
//!
//! Who a client is follows from what it sends, never from ALPN alone: most TURN clients offer no
//! ALPN, and neither do some browsers' ways through other people's proxies.
//!
//! | first octet on the wire | inside TLS | it is |
//! |---|---|---|
//! | below 0x14 | no TLS | TURN |
//! | anything else | ALPN `stun.turn` | TURN |
//! | | first octet below 0x14, unless `h2` was chosen | TURN |
//! | | anything else | a browser |
//!
//! The relay owns nothing of TLS: it gets the stream in clear over a local socket that only this
//! process' user may open, behind a header that names both ends of the client's connection.
//!
//! # Specifications
//!
//! - [RFC 7983 section 7](https://www.rfc-editor.org/rfc/rfc7983#section-7): a first octet of 0 to
//!   3 is STUN; [RFC 7443](https://www.rfc-editor.org/rfc/rfc7443): `stun.turn`.
//! - [PROXY protocol](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt), version 2.
//!
//! # Invariants
//!
//! 1. A joined stream has none of HTTP's limits: the relay ends clients that never complete a
//!    message. Until it is joined it is under the handshake's deadline like any other.
//! 2. What is kept of a stream is what the other end has not taken yet, a piece per direction.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;
use turn::ProxyHeader;

use super::Shared;
use super::tunnel::Tunnel;

/// ALPN of TURN (RFC 7443 section 4).
pub(super) const ALPN: &[u8] = b"stun.turn";
/// Read before it is known who a client is.
const FIRST_PIECE: usize = 2048;
/// The first octet of a STUN message is below this one, and that of TLS above.
const FIRST_NOT_STUN: u8 = 0x14;

/// Both ends of a client's connection: together its 5-tuple.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// The client.
    pub(super) client: SocketAddr,
    /// What it connected to.
    pub(super) local: SocketAddr,
}

/// Whether a connection that begins with this octet is STUN and not TLS.
pub(super) const fn is_stun_on_the_wire(first: u8) -> bool {
    first < FIRST_NOT_STUN
}

/// Whether a stream inside TLS is TURN, by what was chosen by ALPN and by what came first.
pub(super) fn is_turn(alpn: Option<&[u8]>, first: &[u8]) -> bool {
    match alpn {
        Some(ALPN) => true,
        Some(b"h2") => false,
        // A line end may stand before a request (RFC 9112 section 2.2), and neither of its octets
        // begins a STUN message that is in use.
        _ => first.first().is_some_and(|&it| it < FIRST_NOT_STUN && !b"\r\n".contains(&it)),
    }
}

/// What a client sends first; empty when it hangs up.
///
/// # Errors
///
/// Returns the error of the stream.
pub(super) async fn first_piece(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut piece = vec![0; FIRST_PIECE];
    let length = stream.read(&mut piece).await?;
    piece.truncate(length);
    Ok(piece)
}

/// Joins a client to the relay until both directions have ended; `first` was read already.
pub(super) async fn join<S>(shared: &Shared, stream: S, first: Vec<u8>, ends: Ends)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ends { client, local } = ends;
    let Some(header) = ProxyHeader::new(client, local) else {
        tracing::debug!(%client, %local, "One connection, two address families");
        return;
    };
    let relay = match UnixStream::connect(&shared.streams).await {
        Ok(relay) => relay,
        Err(error) => {
            shared.counters.unjoined_streams.add();
            if let Some(suppressed) = shared.relay_faults.admit() {
                tracing::warn!(%error, suppressed, "TURN client turned away: no relay to join");
            }
            return;
        }
    };
    let open = shared.counters.turn_streams.enter();
    let mut begin = header.to_bytes();
    begin.extend_from_slice(&first);
    if let Err(error) = Tunnel::new((stream, begin), (relay, Vec::new())).await {
        tracing::debug!(%client, %error, "TURN stream ended");
    }
    drop(open);
}

#[cfg(test)]
mod tests {
    use super::{is_stun_on_the_wire, is_turn};

    #[test]
    fn the_first_octet_and_the_chosen_protocol_tell_turn_from_the_web() {
        let (stun, get) = (&[0, 3, 0, 8][..], b"GET / ");
        for (alpn, first, turn) in [
            (None, stun, true),
            (None, get, false),
            (None, b"\r\nGET", false),
            (None, b"", false),
            (None, &[0x13], true),
            (None, &[0x14], false),
            (Some(&b"http/1.1"[..]), stun, true),
            (Some(b"http/1.1"), get, false),
            (Some(b"stun.turn"), stun, true),
            (Some(b"stun.turn"), get, true),
            (Some(b"h2"), b"PRI * ", false),
            (Some(b"h2"), stun, false),
        ] {
            assert_eq!(is_turn(alpn, first), turn, "{alpn:?} {first:?}");
        }
    }

    #[test]
    fn a_tls_record_is_no_stun_message() {
        assert!(is_stun_on_the_wire(0) && is_stun_on_the_wire(0x13));
        assert!(!is_stun_on_the_wire(0x14) && !is_stun_on_the_wire(0x16));
    }
}
