//! The control thread: takes slices from the agent and hands them to the shard.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::ipc::{self, Channel};
use crate::message::{AGENT_SOCKET, STREAMS_SOCKET, SliceReply, SliceRequest};
use crate::plan::{Generation, RelaySlice};
use crate::relay::shard::Handle;
use crate::relay::{listener, report, slice};

/// Longest slice: a bundle holds less.
const MAX_SLICE: usize = 1 << 20;

/// Pause between attempts to reach the agent: doubled each time up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Serves the agent for ever; the relay goes on with what it has while there is none.
pub(super) fn run(shard: &Handle) {
    let mut control = Control::new(shard).joined_at(STREAMS_SOCKET.into());
    let mut pause = FIRST_PAUSE;
    loop {
        match Channel::connect(Path::new(AGENT_SOCKET)) {
            Ok(channel) => {
                tracing::info!("connected to the agent");
                pause = FIRST_PAUSE;
                control.serve(&channel);
                tracing::info!("connection to the agent is gone");
            }
            Err(error) => tracing::debug!("agent is not there yet: {error}"),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What is served, as far as status tells it.
pub(super) struct Control<'a> {
    shard: &'a Handle,
    served: Option<RelaySlice>,
    /// Where the proxy joins streams.
    streams: Option<PathBuf>,
}

impl<'a> Control<'a> {
    /// Begins without a slice.
    pub(super) fn new(shard: &'a Handle) -> Self {
        Self { shard, served: None, streams: None }
    }

    /// The proxy joins streams there while there is a slice.
    pub(super) fn joined_at(self, path: PathBuf) -> Self {
        Self { streams: Some(path), ..self }
    }

    /// Answers requests until the connection ends.
    pub(super) fn serve(&mut self, channel: &Channel) {
        loop {
            let (request, fds) = match channel.receive::<SliceRequest>() {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!("cannot read from the agent: {error}");
                    return;
                }
            };
            let reply = match request {
                SliceRequest::Serve(generation) => self.take(generation, fds),
                SliceRequest::Stop => {
                    self.stop();
                    SliceReply::Stopped
                }
                SliceRequest::Report => SliceReply::Report(self.report()),
            };
            if let Err(error) = channel.send(&reply, &[]) {
                tracing::warn!("cannot answer the agent: {error}");
                return;
            }
        }
    }

    fn take(&mut self, generation: Generation, fds: Vec<OwnedFd>) -> SliceReply {
        let served = fds
            .into_iter()
            .next()
            .ok_or_else(|| anyhow::anyhow!("no slice came with the message"))
            .and_then(|fd| Ok(ipc::read_sealed(fd, MAX_SLICE)?))
            .and_then(|bytes| Ok(serde_json::from_slice::<RelaySlice>(&bytes)?))
            .and_then(|slice| self.swap(&slice));
        match served {
            Ok(()) => {
                tracing::info!(serial = generation.serial, "serving");
                SliceReply::Ready(generation)
            }
            Err(error) => {
                tracing::error!(serial = generation.serial, "cannot serve the slice: {error:#}");
                SliceReply::Failed(generation, format!("{error:#}"))
            }
        }
    }

    /// Serves this slice; on error everything is as before.
    ///
    /// # Errors
    ///
    /// Returns why a listener cannot be opened or what is wrong with the slice.
    pub(super) fn swap(&mut self, slice: &RelaySlice) -> anyhow::Result<()> {
        let config = slice::config(slice)?;
        let wanted = slice::udp_listeners(slice);
        let open = self.shard.snapshot()?.listeners;
        let missing: Vec<_> =
            wanted.iter().copied().filter(|address| !open.contains(address)).collect();
        let acceptor = self.shard.acceptor();
        let tcp = slice::tcp_listeners(slice);
        let open = acceptor.open();
        let missing_tcp: Vec<_> =
            tcp.iter().copied().filter(|address| !open.contains(address)).collect();
        let opened_tcp = listener::listen(&missing_tcp)?;
        let opened = listener::open(&missing, self.shard.shards())?;
        if let Some(path) = &self.streams {
            let joined = acceptor.join_at(path);
            joined.with_context(|| format!("cannot take streams at {}", path.display()))?;
        }
        self.shard.serve(config, &wanted, opened)?;
        acceptor.serve(&tcp, opened_tcp);
        self.served = Some(slice.clone());
        Ok(())
    }

    /// Serves nothing.
    pub(super) fn stop(&mut self) {
        self.served = None;
        self.shard.acceptor().stop();
        if let Err(error) = self.shard.stop() {
            tracing::error!("cannot stop serving: {error}");
        }
    }

    /// The status object.
    pub(super) fn report(&self) -> serde_json::Value {
        match self.shard.snapshot() {
            Ok(snapshot) => {
                let mut report = report::report(self.served.as_ref(), &snapshot, Instant::now());
                report::add_streams(&mut report, &snapshot, self.shard.acceptor());
                report
            }
            Err(error) => serde_json::json!({"status": "failed", "reason": error.to_string()}),
        }
    }
}
