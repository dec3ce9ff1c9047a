//! Calls to the processes that listen: postern-net, postern-host, postern-unseal.
//!
//! Each call is a connection of its own, so a restart at the other end costs one failed call and
//! nothing else. Every call has an end.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ipc::{Channel, seal};
use crate::message::{
    AGENT_SOCKET, HOST_SOCKET, HostReply, HostRequest, LKG_FILE, LastKnownGood, NET_SOCKET,
    NetReply, NetRequest, TRUST_FILE, UNSEAL_SOCKET, UnsealReply, UnsealRequest,
};
use crate::plan::{Generation, HostPlan, Service};

/// How long one call may take; the slowest is an nft run on an emulated machine.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a judgement may take; its unit is killed at the same age.
const UNSEAL_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two tries to connect.
const RETRY: Duration = Duration::from_millis(100);

/// Where the other processes are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// postern-net's socket.
    pub(crate) net: PathBuf,
    /// postern-host's socket.
    pub(crate) host: PathBuf,
    /// Our own socket, for serving processes.
    pub(crate) agent: PathBuf,
    /// The socket that starts a postern-unseal.
    pub(crate) unseal: PathBuf,
    /// Last known good, written by postern-net.
    pub(crate) lkg: PathBuf,
    /// The agent's own folder.
    pub(crate) state: PathBuf,
}

impl Places {
    /// The places of a box.
    pub(crate) fn of_the_box() -> Self {
        let state = Path::new(TRUST_FILE).parent().unwrap_or_else(|| Path::new("/")).to_owned();
        Self {
            net: NET_SOCKET.into(),
            host: HOST_SOCKET.into(),
            agent: AGENT_SOCKET.into(),
            unseal: UNSEAL_SOCKET.into(),
            lkg: LKG_FILE.into(),
            state,
        }
    }
}

/// Why another process gave no answer, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody listens, or it stopped half-way. Worth another try.
    #[error("{peer} does not answer ({source})")]
    Silent {
        /// Which process.
        peer: &'static str,
        /// What the socket said.
        source: io::Error,
    },
    /// It tried and could not.
    #[error("{peer}: {reason}")]
    Failed {
        /// Which process.
        peer: &'static str,
        /// Its own words.
        reason: String,
    },
    /// Its answer was to another question: a fault in one of the two.
    #[error("{peer} gave an unexpected answer")]
    Unexpected {
        /// Which process.
        peer: &'static str,
    },
}

/// What postern-net did.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Applied {
    /// Kernel writes.
    pub(crate) writes: u32,
    /// How long they took.
    pub(crate) micros: u64,
}

/// An accepted bundle, taken apart.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Which one.
    pub(crate) generation: Generation,
    /// What status shows of it.
    pub(crate) summary: BTreeMap<String, Value>,
    /// For postern-host.
    pub(crate) host: HostPlan,
    /// For the serving processes, sealed.
    pub(crate) slices: BTreeMap<Service, OwnedFd>,
    /// Outside probes that must pass.
    pub(crate) require: Vec<String>,
    /// Whether the agent may confirm by itself.
    pub(crate) auto_confirm: bool,
    /// When postern-net takes it back.
    pub(crate) deadline: Duration,
    /// Nothing to do.
    pub(crate) unchanged: bool,
}

/// What postern-unseal thinks of a bundle.
#[derive(Debug)]
pub(crate) enum Judgement {
    /// Good.
    Accepted(Box<Accepted>),
    /// Not good: a stable word and a sentence.
    Refused {
        /// The word.
        code: String,
        /// The sentence.
        reason: String,
    },
}

impl Places {
    /// Last known good, or `None` when nothing was ever confirmed.
    pub(crate) fn last_known_good(&self) -> Option<LastKnownGood> {
        let bytes = match std::fs::read(&self.lkg) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!("{}: {error}", self.lkg.display());
                return None;
            }
        };
        serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::error!("{}: {error}", self.lkg.display()))
            .ok()
    }

    /// Makes the network of `generation` true.
    ///
    /// # Errors
    ///
    /// Returns [`CallError`]; after `Failed`, what was before is in force.
    pub(crate) fn net_apply(&self, generation: &Generation) -> Result<Applied, CallError> {
        self.net_change(&NetRequest::Apply(generation.clone()))
    }

    /// Goes back to last known good.
    ///
    /// # Errors
    ///
    /// Returns [`CallError`]; postern-net's own timer does it in the end.
    pub(crate) fn net_revert(&self) -> Result<Applied, CallError> {
        self.net_change(&NetRequest::Revert)
    }

    fn net_change(&self, request: &NetRequest) -> Result<Applied, CallError> {
        let patience = Duration::from_secs(10);
        match exchange("postern-net", &self.net, request, &[], CALL_TIMEOUT, patience)?.0 {
            NetReply::Applied { writes, micros, .. } => Ok(Applied { writes, micros }),
            NetReply::Failed(reason) => Err(CallError::Failed { peer: "postern-net", reason }),
            _ => Err(CallError::Unexpected { peer: "postern-net" }),
        }
    }

    /// Makes `generation` last known good.
    ///
    /// # Errors
    ///
    /// Returns [`CallError`]; it is not confirmed then.
    pub(crate) fn net_confirm(&self, generation: &Generation) -> Result<(), CallError> {
        let request = NetRequest::Confirm(generation.clone());
        let patience = Duration::from_secs(5);
        match exchange("postern-net", &self.net, &request, &[], CALL_TIMEOUT, patience)?.0 {
            NetReply::Done => Ok(()),
            NetReply::Failed(reason) => Err(CallError::Failed { peer: "postern-net", reason }),
            _ => Err(CallError::Unexpected { peer: "postern-net" }),
        }
    }

    /// What the network is.
    ///
    /// # Errors
    ///
    /// Returns [`CallError`].
    pub(crate) fn net_observe(&self) -> Result<Value, CallError> {
        let request = NetRequest::Observe;
        match exchange("postern-net", &self.net, &request, &[], CALL_TIMEOUT, Duration::ZERO)?.0 {
            NetReply::Observed(value) => Ok(value),
            NetReply::Failed(reason) => Err(CallError::Failed { peer: "postern-net", reason }),
            _ => Err(CallError::Unexpected { peer: "postern-net" }),
        }
    }

    /// Makes host name, DNS and time true, waiting up to `patience` for postern-host to start.
    ///
    /// # Errors
    ///
    /// Returns [`CallError`].
    pub(crate) fn host_apply(
        &self,
        plan: &HostPlan,
        patience: Duration,
    ) -> Result<Applied, CallError> {
        let request = HostRequest::Apply(plan.clone());
        match exchange("postern-host", &self.host, &request, &[], CALL_TIMEOUT, patience)?.0 {
            HostReply::Applied { writes, micros } => Ok(Applied { writes, micros }),
            HostReply::Failed(reason) => Err(CallError::Failed { peer: "postern-host", reason }),
            HostReply::Observed(_) => Err(CallError::Unexpected { peer: "postern-host" }),
        }
    }

    /// What host name, DNS and time are.
    ///
    /// # Errors
    ///
    /// Returns [`CallError`].
    pub(crate) fn host_observe(&self) -> Result<Value, CallError> {
        let request = HostRequest::Observe;
        match exchange("postern-host", &self.host, &request, &[], CALL_TIMEOUT, Duration::ZERO)?.0 {
            HostReply::Observed(value) => Ok(value),
            HostReply::Failed(reason) => Err(CallError::Failed { peer: "postern-host", reason }),
            HostReply::Applied { .. } => Err(CallError::Unexpected { peer: "postern-host" }),
        }
    }

    /// Has `bundle` judged. Beside the judgement comes trust that is newer than what is stored.
    ///
    /// # Errors
    ///
    /// Returns [`CallError`] when nobody judged it.
    pub(crate) fn unseal(
        &self,
        request: &UnsealRequest,
        bundle: &[u8],
    ) -> Result<(Judgement, Option<OwnedFd>), CallError> {
        let peer = "postern-unseal";
        let memfd = seal("bundle", bundle).map_err(|source| CallError::Silent { peer, source })?;
        let fds = [memfd.as_fd()];
        let patience = Duration::from_secs(10);
        let (reply, fds) = exchange(peer, &self.unseal, request, &fds, UNSEAL_TIMEOUT, patience)?;
        let mut fds = fds.into_iter();
        match reply {
            UnsealReply::Refused { code, reason } => {
                Ok((Judgement::Refused { code, reason }, fds.next()))
            }
            UnsealReply::Accepted {
                generation,
                summary,
                host,
                slices,
                require,
                auto_confirm,
                deadline,
                unchanged,
                trust_version: _,
            } => {
                let wanted = slices.len();
                let slices: BTreeMap<Service, OwnedFd> =
                    slices.into_iter().zip(fds.by_ref()).collect();
                if slices.len() != wanted {
                    return Err(CallError::Unexpected { peer });
                }
                let accepted = Accepted {
                    generation,
                    summary,
                    host,
                    slices,
                    require,
                    auto_confirm,
                    deadline,
                    unchanged,
                };
                Ok((Judgement::Accepted(Box::new(accepted)), fds.next()))
            }
        }
    }
}

/// One question, one answer; waits up to `patience` for somebody to listen at `path`.
fn exchange<R: DeserializeOwned>(
    peer: &'static str,
    path: &Path,
    request: &impl Serialize,
    fds: &[BorrowedFd<'_>],
    timeout: Duration,
    patience: Duration,
) -> Result<(R, Vec<OwnedFd>), CallError> {
    let silent = |source| CallError::Silent { peer, source };
    let until = Instant::now() + patience;
    let channel = loop {
        match Channel::connect(path) {
            Ok(channel) => break channel,
            Err(error) if Instant::now() >= until => return Err(silent(error)),
            Err(_) => sleep(RETRY),
        }
    };
    channel.set_timeout(timeout).map_err(silent)?;
    channel.send(request, fds).map_err(silent)?;
    match channel.receive().map_err(silent)? {
        Some(answer) => Ok(answer),
        None => Err(silent(io::ErrorKind::ConnectionReset.into())),
    }
}
