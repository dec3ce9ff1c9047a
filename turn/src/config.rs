//! What a server is told to be: parsed once, swapped whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use crate::credential::Credentials;
use crate::five_tuple::{Family, FiveTuple, Side};
use crate::policy::{Policy, Reach};

/// One address that relay ports have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Face {
    /// The address that sockets bind.
    pub local: IpAddr,
    /// The address that the other end is told; a static NAT address differs from `local`.
    pub told: IpAddr,
}

/// How many allocations there may be at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quotas {
    /// In all; the media port range is a bound of its own.
    pub total: usize,
    /// Of one user name. A conference's guests all share one.
    pub per_user: usize,
    /// Of one IPv4 address or IPv6 /64: an office behind one NAT, or a media server.
    pub per_source: usize,
    /// Permissions, and channels, of one allocation.
    pub per_allocation: usize,
    /// What one allocation relays in a second, both directions together; `None` is no limit.
    pub allocation_bytes_per_second: Option<u64>,
    /// What all allocations together relay in a second; `None` is no limit.
    pub total_bytes_per_second: Option<u64>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            total: 16_384,
            per_user: 16_384,
            per_source: 2_048,
            per_allocation: 256,
            allocation_bytes_per_second: None,
            total_bytes_per_second: None,
        }
    }
}

/// How many replies a source gets without having shown a valid nonce, which proves its address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReplyRate {
    /// Replies per second in the long run, per IPv4 /24 or IPv6 /64.
    pub per_second: u32,
    /// Replies at once.
    pub burst: u32,
}

impl Default for ReplyRate {
    fn default() -> Self {
        Self { per_second: 200, burst: 1_000 }
    }
}

/// No new allocations: the box is about to go, or is to be relieved.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Drain {
    /// ALTERNATE-SERVER for new clients, at most one per family. A client of a family without one
    /// gets 508.
    pub alternate: Vec<SocketAddr>,
}

/// What a [`Config`] is made from. Its `Debug` names the realm and nothing else: passwords and
/// secrets are in here.
#[derive(Clone, Default)]
pub struct Settings {
    /// REALM.
    pub realm: String,
    /// User names and passwords.
    pub users: Vec<(String, String)>,
    /// Secrets of time-limited credentials, beside the users; each of them counts.
    pub rest_secrets: Vec<String>,
    /// Local addresses whose clients are inside ones.
    pub inside_listeners: Vec<IpAddr>,
    /// Ports handed to allocations; `None` hands out none.
    pub media_ports: Option<RangeInclusive<u16>>,
    /// The outside face, at most one per family.
    pub outside: Vec<Face>,
    /// The inside face, at most one per family; empty when no inside peer is declared.
    pub inside: Vec<Face>,
    /// Whether XOR-RELAYED-ADDRESS names the inside face to inside clients.
    pub inside_clients_are_told_inside: bool,
    /// Destinations that leave by LAN1.
    pub inside_routes: Vec<IpNet>,
    /// Destinations that leave by LAN2 although a shorter prefix above covers them.
    pub outside_routes: Vec<IpNet>,
    /// Peers for every client.
    pub allow: Vec<IpNet>,
    /// Further outside peers for inside clients.
    pub allow_outside: Vec<IpNet>,
    /// Every address of this box, its static NAT addresses included.
    pub own_addresses: Vec<IpAddr>,
    /// How much of everything.
    pub quotas: Quotas,
    /// How fast strangers are answered.
    pub reply_rate: ReplyRate,
    /// Whether TCP is relayed too (RFC 6062).
    pub tcp_relay: bool,
    /// Whether allocations may move between 5-tuples (RFC 8016).
    pub mobility: bool,
    /// There when new allocations are refused.
    pub drain: Option<Drain>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("realm", &self.realm).finish_non_exhaustive()
    }
}

/// Why [`Settings`] make no [`Config`]; the caller goes on with the one it has.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// REALM goes into a quoted string of at most 127 characters.
    #[error("realm must have 1 to 127 characters")]
    Realm,
    /// USERNAME is below 509 octets (RFC 8489 §14.3) and tells users apart, also from those of
    /// time-limited credentials.
    #[error("user name {0:?} is empty, too long, there twice or one of a time-limited credential")]
    User(String),
    /// Anybody knows the empty secret, and each one more costs time for every wrong password.
    #[error("there may be up to {MAX_SECRETS} secrets of time-limited credentials, none empty")]
    Secrets,
    /// Media ports start at 1024 and run upwards.
    #[error("media ports {first}-{last} are empty or begin below 1024")]
    MediaPorts {
        /// As given.
        first: u16,
        /// As given.
        last: u16,
    },
    /// Nothing to relay from.
    #[error("there is no outside face")]
    NoFace,
    /// A face needs two concrete addresses of one family, and is the only one of that family.
    #[error("face {local} told as {told} is not one address of a family of its own")]
    Face {
        /// As given.
        local: IpAddr,
        /// As given.
        told: IpAddr,
    },
    /// A client is sent to one address of its family.
    #[error("alternate server {0} is not the only one of its family")]
    Alternate(SocketAddr),
    /// Inside clients cannot be told what is not there.
    #[error("inside clients are to be told an inside face, but there is none")]
    NoInsideFace,
}

/// How many secrets of time-limited credentials there may be: two are needed to rotate them.
const MAX_SECRETS: usize = 8;

/// The faces of one allocation's relay port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Faces {
    pub(crate) outside: Face,
    pub(crate) inside: Option<Face>,
}

impl Faces {
    /// The address that clients are told who are told that side's.
    pub(crate) fn told(self, side: Side) -> IpAddr {
        match self.inside {
            Some(inside) if side == Side::Inside => inside.told,
            _ => self.outside.told,
        }
    }

    /// The face of that side.
    pub(crate) fn face(self, side: Side) -> Option<Face> {
        match side {
            Side::Inside => self.inside,
            Side::Outside => Some(self.outside),
        }
    }

    /// The addresses under which one relay port is known, those told first.
    pub(crate) fn forms(self) -> [Option<IpAddr>; 4] {
        let inside = self.inside;
        [
            Some(self.outside.told),
            inside.map(|face| face.told),
            Some(self.outside.local),
            inside.map(|face| face.local),
        ]
    }
}

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) realm: String,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) media_ports: RangeInclusive<u16>,
    pub(crate) quotas: Quotas,
    pub(crate) reply_rate: ReplyRate,
    pub(crate) policy: Policy,
    pub(crate) tcp_relay: bool,
    pub(crate) mobility: bool,
    pub(crate) drain: Option<Drain>,
    faces: BTreeMap<Family, Faces>,
    inside_listeners: Vec<IpAddr>,
    told_inside: bool,
}

impl Config {
    /// Checks the settings and derives keys and policy from them.
    ///
    /// # Errors
    ///
    /// Returns the first [`ConfigError`].
    pub fn new(settings: Settings) -> Result<Self, ConfigError> {
        if settings.realm.is_empty() || settings.realm.chars().count() > 127 {
            return Err(ConfigError::Realm);
        }
        let secrets = &settings.rest_secrets;
        if secrets.len() > MAX_SECRETS || secrets.iter().any(String::is_empty) {
            return Err(ConfigError::Secrets);
        }
        let credentials = Credentials::new(&settings.realm, &settings.users, secrets)
            .map_err(ConfigError::User)?;
        #[expect(clippy::reversed_empty_ranges, reason = "no range hands out no port")]
        let media_ports = settings.media_ports.clone().unwrap_or(1..=0);
        if settings.media_ports.is_some() && (media_ports.is_empty() || *media_ports.start() < 1024)
        {
            let (first, last) = media_ports.into_inner();
            return Err(ConfigError::MediaPorts { first, last });
        }
        let faces = faces(&settings)?;
        if settings.inside_clients_are_told_inside && settings.inside.is_empty() {
            return Err(ConfigError::NoInsideFace);
        }
        let mut alternates = BTreeSet::new();
        for alternate in settings.drain.iter().flat_map(|drain| &drain.alternate) {
            if !alternates.insert(Family::of(alternate.ip())) {
                return Err(ConfigError::Alternate(*alternate));
            }
        }
        let relay_addresses = faces.values().flat_map(|faces| faces.forms()).flatten().collect();
        let families = |faces: &[Face]| faces.iter().map(|face| Family::of(face.local)).collect();
        Ok(Self {
            policy: Policy {
                relay_addresses,
                own_addresses: settings.own_addresses,
                inside_families: families(&settings.inside),
                outside_families: families(&settings.outside),
                inside_routes: settings.inside_routes,
                outside_routes: settings.outside_routes,
                allow: settings.allow,
                allow_outside: settings.allow_outside,
            },
            realm: settings.realm,
            credentials: Arc::new(credentials),
            media_ports,
            quotas: settings.quotas,
            reply_rate: settings.reply_rate,
            tcp_relay: settings.tcp_relay,
            mobility: settings.mobility,
            drain: settings.drain,
            faces,
            inside_listeners: settings.inside_listeners,
            told_inside: settings.inside_clients_are_told_inside,
        })
    }

    /// What a client of that side may do with that peer address.
    #[must_use]
    pub fn reach(&self, client: Side, peer: IpAddr) -> Reach {
        self.policy.reach(client, peer)
    }

    /// A client is inside or outside by the local address of its 5-tuple.
    pub(crate) fn side_of_client(&self, client: FiveTuple) -> Side {
        if self.inside_listeners.contains(&client.server.ip()) {
            Side::Inside
        } else {
            Side::Outside
        }
    }

    /// The faces of relay ports in that family.
    pub(crate) fn faces(&self, family: Family) -> Option<Faces> {
        self.faces.get(&family).copied()
    }

    /// Which face's address a client of that side is told.
    pub(crate) const fn told(&self, client: Side) -> Side {
        if self.told_inside { client } else { Side::Outside }
    }
}

fn faces(settings: &Settings) -> Result<BTreeMap<Family, Faces>, ConfigError> {
    let mut faces = BTreeMap::new();
    for outside in &settings.outside {
        let family = family_of(*outside)?;
        let entry = Faces { outside: *outside, inside: None };
        if faces.insert(family, entry).is_some() {
            return Err(ConfigError::Face { local: outside.local, told: outside.told });
        }
    }
    for inside in &settings.inside {
        let error = ConfigError::Face { local: inside.local, told: inside.told };
        let entry = faces.get_mut(&family_of(*inside)?).ok_or_else(|| error.clone())?;
        if entry.inside.replace(*inside).is_some() {
            return Err(error);
        }
    }
    if faces.is_empty() { Err(ConfigError::NoFace) } else { Ok(faces) }
}

fn family_of(face: Face) -> Result<Family, ConfigError> {
    let concrete = |ip: IpAddr| !ip.is_unspecified() && !ip.is_multicast();
    let family = Family::of(face.local);
    if family == Family::of(face.told) && concrete(face.local) && concrete(face.told) {
        Ok(family)
    } else {
        Err(ConfigError::Face { local: face.local, told: face.told })
    }
}
