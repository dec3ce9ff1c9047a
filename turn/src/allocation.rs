//! Allocations (RFC 8656 §3.2).
//!
//! An allocation has one relay port and one or two *legs*: per address family the faces that the
//! port is open on, and when that family ends (RFC 8656 §7.2, ADDITIONAL-ADDRESS-FAMILY).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bandwidth::Bucket;
use crate::channel::Channels;
use crate::config::{Config, Faces};
use crate::five_tuple::{Family, FiveTuple, Side};
use crate::mobility::Mobility;
use crate::output::{ConnectionId, RelayTransport};
use crate::permission::Permissions;
use crate::relay_port::{RelayPort, Wish};
use crate::stun::{ErrorCode, Key, TransactionId};

/// RFC 8656 §3.2: what a client gets that asks for less, or for nothing.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);

/// RFC 8656 §7.2 recommends one hour.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// A relayed transport address and all that belongs to it. What few allocations have is boxed or
/// an empty list: there may be tens of thousands that only wait.
#[derive(Debug)]
pub(crate) struct Allocation {
    /// Where data goes.
    pub(crate) client: FiveTuple,
    pub(crate) side: Side,
    pub(crate) transport: RelayTransport,
    pub(crate) port: RelayPort,
    pub(crate) legs: Legs,
    pub(crate) user: Arc<str>,
    pub(crate) permissions: Permissions,
    pub(crate) channels: Channels,
    pub(crate) traffic: Traffic,
    pub(crate) bandwidth: Bucket,
    pub(crate) icmp: Bucket,
    /// Of the Allocate request: tells its retransmission from a second one.
    pub(crate) transaction: TransactionId,
    /// Sent again when the request comes again.
    pub(crate) token: Option<[u8; 8]>,
    /// The family of ADDITIONAL-ADDRESS-FAMILY that could not be had.
    pub(crate) family_error: Option<(Family, ErrorCode)>,
    /// There until the caller has opened the relay port.
    pub(crate) opening: Option<Box<Opening>>,
    /// There when the client may move (RFC 8016).
    pub(crate) mobility: Option<Box<Mobility>>,
    /// Connections to peers (RFC 6062).
    pub(crate) connections: Vec<ConnectionId>,
    /// Whether the owner was told that this allocation is over a bandwidth limit.
    pub(crate) limit_reported: bool,
}

/// One address family of an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leg {
    pub(crate) faces: Faces,
    /// The face whose address the client was told.
    pub(crate) told: Side,
    pub(crate) expires_at: Instant,
}

impl Leg {
    /// The address in XOR-RELAYED-ADDRESS.
    pub(crate) fn address(&self) -> IpAddr {
        self.faces.told(self.told)
    }
}

/// The legs by family.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Legs {
    v4: Option<Leg>,
    v6: Option<Leg>,
}

impl Legs {
    pub(crate) fn get(&self, family: Family) -> Option<&Leg> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    pub(crate) fn slot(&mut self, family: Family) -> &mut Option<Leg> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// What is there, IPv4 first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Family, &Leg)> {
        let v4 = self.v4.iter().map(|leg| (Family::V4, leg));
        v4.chain(self.v6.iter().map(|leg| (Family::V6, leg)))
    }

    pub(crate) fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let v4 = self.v4.map(|_| Family::V4);
        v4.into_iter().chain(self.v6.map(|_| Family::V6))
    }

    /// When the first leg ends.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.iter().map(|(_, leg)| leg.expires_at).min()
    }

    /// When the last leg ends.
    pub(crate) fn last_expiry(&self) -> Option<Instant> {
        self.iter().map(|(_, leg)| leg.expires_at).max()
    }
}

/// What an allocation has relayed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets_from_client: u64,
    pub(crate) octets_from_client: u64,
    pub(crate) packets_to_client: u64,
    pub(crate) octets_to_client: u64,
}

/// What the answer to an Allocate request needs once the port is open.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) key: Key,
    pub(crate) fingerprint: bool,
    pub(crate) wish: Wish,
    pub(crate) from_reservation: bool,
    /// Ports that another program holds; given back when this is settled.
    pub(crate) refused: Vec<RelayPort>,
}

/// Where a packet comes from that stays among our own relay ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Origin {
    relay: RelayPort,
    family: Family,
    /// Which face the origin's client was told.
    told: Side,
}

impl Origin {
    /// The transport addresses that the origin is known by, the one its client was told first.
    pub(crate) fn forms(self, config: &Config) -> impl Iterator<Item = SocketAddr> + use<> {
        let faces = config.faces(self.family);
        let told = faces.map(|faces| faces.told(self.told));
        let forms = faces.map(Faces::forms).into_iter().flatten().flatten();
        let others = forms.filter(move |ip| Some(*ip) != told);
        told.into_iter().chain(others).map(move |ip| SocketAddr::new(ip, self.relay.0))
    }
}

impl Allocation {
    /// The first XOR-RELAYED-ADDRESS.
    pub(crate) fn relayed(&self) -> Option<SocketAddr> {
        self.all_relayed().next()
    }

    /// Every XOR-RELAYED-ADDRESS.
    pub(crate) fn all_relayed(&self) -> impl Iterator<Item = SocketAddr> {
        self.legs.iter().map(|(_, leg)| SocketAddr::new(leg.address(), self.port.0))
    }

    /// What the other end of a packet in that family needs to know.
    pub(crate) fn origin(&self, family: Family) -> Origin {
        let told = self.legs.get(family).map_or(Side::Outside, |leg| leg.told);
        Origin { relay: self.port, family, told }
    }

    /// Whether requests find it: the port is open and the time of some family is not over.
    pub(crate) fn is_live(&self, now: Instant) -> bool {
        self.opening.is_none() && self.legs.iter().any(|(_, leg)| leg.expires_at > now)
    }

    /// The leg that packets of that family pass, if its time is not over.
    #[inline]
    pub(crate) fn live_leg(&self, family: Family, now: Instant) -> Option<&Leg> {
        let leg = self.legs.get(family).filter(|leg| leg.expires_at > now)?;
        self.opening.is_none().then_some(leg)
    }

    /// Whether that is a relayed transport address of this allocation's.
    pub(crate) fn answers_to(&self, target: IpAddr, now: Instant) -> bool {
        let leg = self.live_leg(Family::of(target), now);
        leg.is_some_and(|leg| leg.faces.forms().contains(&Some(target)))
    }

    /// The old 5-tuple, when data from `client` ends a move away from it.
    #[inline]
    pub(crate) fn moved_from(&self, client: &FiveTuple) -> Option<FiveTuple> {
        (self.mobility.is_some() && self.client != *client).then_some(self.client)
    }

    /// Forgets what the policy said, because the client changed sides.
    pub(crate) fn forget_verdicts(&mut self) {
        self.permissions.forget_verdicts();
        self.channels.forget_verdicts();
    }
}
