//! What the agent's processes say to each other over [`crate::ipc`] sockets.
//!
//! | socket | server | clients, known by uid |
//! |---|---|---|
//! | [`NET_SOCKET`] | postern-net | postern-unseal: [`NetRequest::Plan`]; postern-agent: the other requests; serving processes: [`NetRequest::Listeners`] |
//! | [`HOST_SOCKET`] | postern-host | postern-agent |
//! | [`AGENT_SOCKET`] | postern-agent | postern-relay, postern-proxy |
//! | [`UNSEAL_SOCKET`] | postern-unseal, one process per connection | postern-agent |

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::{Generation, HostPlan, Service};

/// Where `postern-net` answers.
pub(crate) const NET_SOCKET: &str = "/run/postern/net/control";
/// Where `postern-host` answers.
pub(crate) const HOST_SOCKET: &str = "/run/postern/host/control";
/// Where the agent hands out slices.
pub(crate) const AGENT_SOCKET: &str = "/run/postern/agent/slices";
/// Where `postern-relay` takes TURN streams from `postern-proxy`: no messages of ours but the
/// client's bytes, behind a PROXY header (version 2) with both ends of its connection.
pub(crate) const STREAMS_SOCKET: &str = "/run/postern/relay/streams";
/// Where a new `postern-unseal` is started for each connection (systemd.socket(5), Accept=yes).
pub(crate) const UNSEAL_SOCKET: &str = "/run/postern/unseal";
/// Written by `postern-net` alone, read by all: [`LastKnownGood`] as JSON. The one commit point.
pub(crate) const LKG_FILE: &str = "/var/lib/postern/net/lkg";

/// Written by the agent alone, read by unseal: the newest verified trust blobs, as in a bundle.
pub(crate) const TRUST_FILE: &str = "/var/lib/postern/agent/trust";

/// The generation in force after the last confirmation, and the serial floor it raised.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct LastKnownGood {
    /// What to go back to.
    pub(crate) generation: Generation,
    /// No bundle at or below this serial is taken, except the same one again.
    pub(crate) floor: u64,
}

/// To `postern-net`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NetRequest {
    /// From unseal: remember this plan. It is too long for a message, so it comes as a sealed
    /// memfd (JSON of [`NetPlan`](crate::plan::NetPlan)) beside it.
    Plan(Generation),
    /// From the agent: make that generation true; arms the dead-man timer.
    Apply(Generation),
    /// From the agent: it works, make it last known good.
    Confirm(Generation),
    /// From the agent: go back to last known good.
    Revert,
    /// From the agent: what is true now?
    Observe,
    /// From a serving process: the sockets that the generation in force gives it.
    Listeners,
}

/// From `postern-net`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NetReply {
    /// Plan stored, confirmed.
    Done,
    /// Applied or reverted: what was in force before, what is now (`None`: the rescue plan),
    /// how many kernel writes it took, how long in microseconds.
    Applied { before: Option<Generation>, now: Option<Generation>, writes: u32, micros: u64 },
    /// The observed state; the shape is `net::observe`'s, and the agent's `control::probe` judges
    /// it.
    Observed(serde_json::Value),
    /// Addresses and transports of the sockets that come beside this message, in order.
    Listeners(Vec<crate::plan::ListenerPlan>),
    /// It did not work; the text says what and why, and what is in force is what was before.
    Failed(String),
}

/// To `postern-host`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HostRequest {
    /// Make it true.
    Apply(HostPlan),
    /// What is true now?
    Observe,
    /// Restart the box.
    Reboot,
}

/// From `postern-host`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HostReply {
    /// Applied, with the number of changes made.
    Applied { writes: u32, micros: u64 },
    /// The observed state, for status.
    Observed(serde_json::Value),
    /// It did not work.
    Failed(String),
}

/// From the agent to a serving process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SliceRequest {
    /// Serve this: the slice comes beside it as a sealed memfd (JSON of the service's slice).
    Serve(Generation),
    /// Serve nothing: close every listener. Only when there is no generation to go back to.
    Stop,
    /// Report the status object that `postern-agent status --json` shows for this service.
    Report,
}

/// From a serving process to the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SliceReply {
    /// Serving that generation: listeners bound, certificates loaded.
    Ready(Generation),
    /// Still serving what it served before; the text says why.
    Failed(Generation, String),
    /// Serving nothing.
    Stopped,
    /// The status object. From the proxy, `upstreams` is an array of objects with `url` or
    /// `host`, `reachable` (true, false, or null until it was first asked) and `reason`.
    Report(serde_json::Value),
}

/// To a `postern-unseal`; the bundle comes beside it as a sealed memfd.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnsealRequest {
    /// A bundle that has just arrived: the whole verification order of the design.
    Judge,
    /// The bundle of the last known good generation: its digest must be the one in [`LKG_FILE`];
    /// signers are not judged again.
    Reopen,
}

/// From a `postern-unseal`, which has then already handed the [`NetPlan`](crate::plan::NetPlan) to `postern-net`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnsealReply {
    /// Accepted. Beside it come sealed memfds: the slices, in the order of `slices`, then the
    /// newest verified trust blobs when `trust_version` is above what was stored.
    Accepted {
        /// Which generation it makes.
        generation: Generation,
        /// What status shows of it: site, box, signers' fingerprints, created-at, reason.
        summary: BTreeMap<String, serde_json::Value>,
        /// For `postern-host`.
        host: HostPlan,
        /// Whose slices come beside this message.
        slices: Vec<Service>,
        /// Probes that must pass before it is confirmed (`upstream`, `gateway`, `dns`, `stun`).
        require: Vec<String>,
        /// Whether the agent may confirm by itself.
        auto_confirm: bool,
        /// How long after Apply `postern-net` takes an unconfirmed generation back.
        deadline: Duration,
        /// The same serial and digest as last known good: nothing to do.
        unchanged: bool,
        /// Version of the trust in force after this bundle.
        trust_version: u64,
    },
    /// Refused; `code` is a stable word, `reason` a sentence for people. When the bundle carried
    /// verified trust above what was stored, it comes beside this as a sealed memfd.
    Refused { code: String, reason: String },
}
