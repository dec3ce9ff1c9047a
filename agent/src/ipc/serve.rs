//! A server on a [`Listener`]: one thread per connection, all requests to one loop.
//!
//! Peers that may not talk at all are dropped at the door. There are at most [`MOST`] connections
//! at a time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::{Channel, Listener};

/// How many connections are served at a time.
const MOST: usize = 64;

/// One request and where its answer goes.
#[derive(Debug)]
pub(crate) struct Call<Q, R> {
    /// The uid at the other end.
    pub(crate) peer: u32,
    /// What it asks.
    pub(crate) request: Q,
    /// Descriptors that came along.
    pub(crate) fds: Vec<OwnedFd>,
    /// The reply and descriptors to send with it.
    pub(crate) answer: oneshot::Sender<(R, Vec<OwnedFd>)>,
}

/// Accepts connections for ever, in threads of their own, and gives what they ask to `calls`.
///
/// # Errors
///
/// Returns the error of starting the first thread.
pub(crate) fn serve<Q, R>(
    listener: Listener,
    may_talk: impl Fn(u32) -> bool + Send + 'static,
    calls: mpsc::Sender<Call<Q, R>>,
) -> io::Result<()>
where
    Q: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
{
    let open = Arc::new(());
    let accept = move || {
        loop {
            let channel = match listener.accept() {
                Ok(channel) => channel,
                Err(error) => {
                    tracing::warn!(%error, "Cannot accept a connection");
                    thread::sleep(std::time::Duration::from_millis(100));
                    continue;
                }
            };
            let Ok(peer) = channel.peer_uid() else { continue };
            if !may_talk(peer) || Arc::strong_count(&open) > MOST {
                tracing::warn!(uid = peer, "Connection refused");
                continue;
            }
            let (calls, open) = (calls.clone(), Arc::clone(&open));
            let talk = move || {
                if let Err(error) = converse(&channel, peer, &calls) {
                    tracing::debug!(uid = peer, %error, "Connection ended");
                }
                drop(open);
            };
            if let Err(error) = thread::Builder::new().name("connection".to_owned()).spawn(talk) {
                tracing::warn!(%error, "Cannot serve a connection");
            }
        }
    };
    drop(thread::Builder::new().name("accept".to_owned()).spawn(accept)?);
    Ok(())
}

fn converse<Q, R>(channel: &Channel, peer: u32, calls: &mpsc::Sender<Call<Q, R>>) -> io::Result<()>
where
    Q: DeserializeOwned,
    R: Serialize,
{
    while let Some((request, fds)) = channel.receive()? {
        let (answer, reply) = oneshot::channel();
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the loop has ended");
        calls.blocking_send(Call { peer, request, fds, answer }).map_err(|_| gone(()))?;
        let (reply, fds) = reply.blocking_recv().map_err(|_| gone(()))?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        channel.send(&reply, &fds)?;
    }
    Ok(())
}
