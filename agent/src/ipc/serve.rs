//! A server on a [`Listener`]: one thread per connection, all requests to one loop.
//!
//! Peers that may not talk at all are dropped at the door. Each uid has at most [`MOST`]
//! connections at a time, so that no process can keep another one out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::{Channel, Listener};

/// How many connections of one uid are served at a time.
const MOST: usize = 16;

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
    let accept = move || {
        // One count per uid, of which each connection holds a clone while it lasts.
        let mut counts: BTreeMap<u32, Arc<()>> = BTreeMap::new();
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
            if !may_talk(peer) {
                tracing::warn!(uid = peer, "Connection refused");
                continue;
            }
            let count = counts.entry(peer).or_default();
            if Arc::strong_count(count) > MOST {
                tracing::warn!(uid = peer, "Too many connections");
                continue;
            }
            let (calls, open) = (calls.clone(), Arc::clone(count));
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::sync::mpsc;

    use super::{Call, MOST, serve};
    use crate::ipc::{Channel, Listener};

    fn ask(channel: &Channel, question: u32) -> Option<u32> {
        channel.send(&question, &[]).ok()?;
        channel.receive().ok()?.map(|(answer, _)| answer)
    }

    /// A server that adds one.
    fn start(socket: &Path) {
        let (sender, mut calls) = mpsc::channel::<Call<u32, u32>>(16);
        serve(Listener::bind(socket).unwrap(), |_| true, sender).unwrap();
        std::thread::spawn(move || {
            while let Some(call) = calls.blocking_recv() {
                call.answer.send((call.request + 1, Vec::new())).unwrap();
            }
        });
    }

    #[test]
    fn one_uid_cannot_take_all_connections_and_gets_them_back() {
        let folder = tempfile::TempDir::new().unwrap();
        let socket = folder.path().join("socket");
        start(&socket);
        let mut open: Vec<Channel> =
            (0..MOST).map(|_| Channel::connect(&socket).unwrap()).collect();
        assert!(open.iter().all(|channel| ask(channel, 1) == Some(2)));

        assert_eq!(ask(&Channel::connect(&socket).unwrap(), 1), None);

        open.pop();
        let again = || ask(&Channel::connect(&socket).unwrap(), 1) == Some(2);
        assert!((0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            again()
        }));
    }

    #[test]
    fn a_message_that_is_no_request_ends_the_connection_only() {
        let folder = tempfile::TempDir::new().unwrap();
        let socket = folder.path().join("socket");
        start(&socket);
        let bad = Channel::connect(&socket).unwrap();
        bad.send(&"not a number", &[]).unwrap();

        assert!(bad.receive::<u32>().unwrap().is_none());
        assert_eq!(ask(&Channel::connect(&socket).unwrap(), 41), Some(42));
    }
}
