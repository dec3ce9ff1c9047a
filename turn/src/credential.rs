//! Who may use the relay: users with a password, and time-limited credentials.
//!
//! # Specifications
//!
//! - RFC 8489 §9.2.2, §18.5.1: keys of users, made once from the configuration.
//! - [A REST API For Access To TURN Services]: USERNAME is `timestamp` or `timestamp:userid`, with
//!   the time it expires in Unix seconds; the password is base64(HMAC(secret, USERNAME)) with SHA-1
//!   or, which the draft does not have, SHA-256. Each of several secrets counts, so that they
//!   rotate without a gap.
//!
//! # Decisions
//!
//! - A time-limited credential is known by its userid: `rest:userid` is the user of quotas and of
//!   allocations, so that a fresh timestamp is no fresh quota, and one that replaces another may
//!   refresh what the other made.
//! - Its time is judged at Allocate alone. Every other request needs an allocation of that user, and
//!   a call must not end because it outlasts the time in which it had to begin. To end calls, take
//!   the secret away.
//! - USERHASH finds users only: nobody can list the user names of a secret. So the nonce offers
//!   anonymous user names only while there is no secret.
//!
//! [A REST API For Access To TURN Services]: https://datatracker.ietf.org/doc/html/draft-uberti-behave-turn-rest-00

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::Sha256;

use crate::stun::{Integrity, Key, Message, PasswordAlgorithm, userhash};

/// RFC 8489 §14.3: USERNAME has fewer octets.
const USERNAME_LIMIT: usize = 509;

/// What the user of a time-limited credential is called by.
const REST_PREFIX: &str = "rest:";

/// How many keys of time-limited credentials a shard keeps; each is some 200 octets.
const KEPT: usize = 1024;

/// Why credentials were refused although the nonce was valid. The client is told nothing of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// No such user.
    UnknownUser,
    /// The user is known, or it is a time-limited credential, but the password is not the one
    /// that belongs to it; or the request was changed on its way.
    WrongPassword,
    /// REALM is not ours: the client's key belongs to another server.
    Realm,
    /// A time-limited credential that is right, but over.
    Expired {
        /// For how long; much of it, or any at all for a fresh one, means that a clock is wrong.
        since: Duration,
    },
    /// A time-limited credential that is right, but nobody has said what time it is.
    NoClock,
}

/// How a request names its user.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Name<'a> {
    /// USERNAME.
    Plain(&'a [u8]),
    /// USERHASH.
    Hash(&'a [u8]),
}

/// Who a request is from.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The user of quotas and allocations.
    pub(crate) user: Arc<str>,
    /// What the request was signed with, and the response is to be signed with.
    pub(crate) key: Key,
}

/// Users and secrets of one configuration.
#[derive(Debug)]
pub(crate) struct Credentials {
    realm: String,
    users: HashMap<Arc<str>, Keys>,
    hashes: HashMap<[u8; 32], Arc<str>>,
    secrets: Vec<Secret>,
    /// What the request of an unknown user is compared with.
    nobody: Keys,
}

/// A user's key for each password algorithm.
#[derive(Clone, Debug)]
struct Keys {
    md5: Key,
    sha256: Key,
}

/// What makes time-limited credentials, ready to be used.
struct Secret {
    sha1: Hmac<Sha1>,
    sha256: Hmac<Sha256>,
}

/// A time-limited USERNAME.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct TimeLimited<'a> {
    name: &'a str,
    expires_at: Duration,
    userid: &'a str,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Credentials {
    /// Derives all keys.
    ///
    /// # Errors
    ///
    /// Returns the name of a user that is empty, too long, there twice, or, beside secrets, could
    /// be taken for that of a time-limited credential.
    pub(crate) fn new(
        realm: &str,
        passwords: &[(String, String)],
        secrets: &[String],
    ) -> Result<Self, String> {
        let mut users = HashMap::new();
        let mut hashes = HashMap::new();
        for (name, password) in passwords {
            let fits = !name.is_empty() && name.len() < USERNAME_LIMIT;
            let ambiguous = !secrets.is_empty()
                && (name.starts_with(REST_PREFIX) || TimeLimited::parse(name).is_some());
            let shared: Arc<str> = Arc::from(name.as_str());
            hashes.insert(userhash(name, realm), Arc::clone(&shared));
            let keys = Keys::new(name, realm, password);
            if !fits || ambiguous || users.insert(shared, keys).is_some() {
                return Err(name.clone());
            }
        }
        let secrets = secrets.iter().map(|secret| Secret::new(secret.as_bytes())).collect();
        let nobody = Keys::new("", realm, "");
        Ok(Self { realm: realm.into(), users, hashes, secrets, nobody })
    }

    /// Whether every user can be found by USERHASH.
    pub(crate) fn anonymity(&self) -> bool {
        self.secrets.is_empty()
    }

    /// What to call the user of a refused request in a log.
    pub(crate) fn display(&self, name: Name<'_>) -> String {
        match name {
            Name::Plain(octets) => {
                let octets = octets.get(..USERNAME_LIMIT).unwrap_or(octets);
                String::from_utf8_lossy(octets).into_owned()
            }
            Name::Hash(hash) => self.by_hash(hash).map_or_else(
                || {
                    let digits = hash.iter().take(8).map(|octet| format!("{octet:02x}"));
                    std::iter::once("userhash:".to_owned()).chain(digits).collect()
                },
                |user| String::from(&**user),
            ),
        }
    }

    fn by_hash(&self, hash: &[u8]) -> Option<&Arc<str>> {
        self.hashes.get(&<[u8; 32]>::try_from(hash).ok()?)
    }

    fn user(&self, name: Name<'_>) -> Option<(&Arc<str>, &Keys)> {
        let name = match name {
            Name::Plain(octets) => std::str::from_utf8(octets).ok()?,
            Name::Hash(hash) => self.by_hash(hash)?,
        };
        self.users.get_key_value(name)
    }

    /// The name of a time-limited credential, if that is what it is.
    fn time_limited<'a>(&self, name: Name<'a>) -> Option<TimeLimited<'a>> {
        match name {
            Name::Plain(octets) if !self.secrets.is_empty() && octets.len() < USERNAME_LIMIT => {
                TimeLimited::parse(std::str::from_utf8(octets).ok()?)
            }
            Name::Plain(_) | Name::Hash(_) => None,
        }
    }
}

impl Keys {
    fn new(user: &str, realm: &str, password: &str) -> Self {
        let key = |algorithm| Key::long_term_with(algorithm, user, realm, password);
        Self { md5: key(PasswordAlgorithm::Md5), sha256: key(PasswordAlgorithm::Sha256) }
    }

    const fn of(&self, algorithm: PasswordAlgorithm) -> &Key {
        match algorithm {
            PasswordAlgorithm::Md5 => &self.md5,
            PasswordAlgorithm::Sha256 => &self.sha256,
        }
    }
}

impl Secret {
    fn new(secret: &[u8]) -> Self {
        let expect = "HMAC takes keys of any length";
        Self {
            sha1: Hmac::new_from_slice(secret).expect(expect),
            sha256: Hmac::new_from_slice(secret).expect(expect),
        }
    }

    fn password(&self, integrity: Integrity, name: &str) -> String {
        match integrity {
            Integrity::Sha1 => STANDARD.encode(digest(self.sha1.clone(), name)),
            Integrity::Sha256 => STANDARD.encode(digest(self.sha256.clone(), name)),
        }
    }
}

fn digest<M: Mac>(mut mac: M, name: &str) -> hmac::digest::Output<M> {
    mac.update(name.as_bytes());
    mac.finalize().into_bytes()
}

impl<'a> TimeLimited<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (time, userid) = name.split_once(':').unwrap_or((name, ""));
        if !time.bytes().all(|octet| octet.is_ascii_digit()) {
            return None;
        }
        Some(Self { name, expires_at: Duration::from_secs(time.parse().ok()?), userid })
    }

    fn check(&self, at: At) -> Result<(), Refusal> {
        let At::WallClock(now) = at else {
            return Ok(());
        };
        let now = now.ok_or(Refusal::NoClock)?;
        match now.checked_sub(self.expires_at) {
            Some(since) => Err(Refusal::Expired { since }),
            None => Ok(()),
        }
    }
}

/// The keys of time-limited credentials that were right lately; a slot per hash of the name, so
/// that what is kept is bounded. Only who knows a secret's passwords gets in.
pub(crate) struct Kept {
    of: Option<Arc<Credentials>>,
    slots: Vec<Option<Slot>>,
}

struct Slot {
    name: Box<str>,
    algorithm: PasswordAlgorithm,
    identity: Identity,
}

impl Kept {
    pub(crate) const fn new() -> Self {
        Self { of: None, slots: Vec::new() }
    }

    /// Forgets everything when the credentials are others than last time.
    fn follow(&mut self, credentials: &Arc<Credentials>) {
        if !self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, credentials)) {
            self.of = Some(Arc::clone(credentials));
            self.slots.clear();
        }
    }

    fn slot(&mut self, name: &str) -> &mut Option<Slot> {
        if self.slots.is_empty() {
            self.slots.resize_with(KEPT, || None);
        }
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let [.., high, low] = hasher.finish().to_be_bytes();
        &mut self.slots[usize::from(u16::from_be_bytes([high, low])) % KEPT]
    }
}

/// What a time-limited credential is held against.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum At {
    /// This time of day, if anybody has said what it is.
    WallClock(Option<Duration>),
    /// Nothing: the request cannot begin anything.
    AnyTime,
}

/// What is asked of [`judge`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    pub(crate) name: Name<'a>,
    pub(crate) realm: &'a [u8],
    pub(crate) algorithm: PasswordAlgorithm,
    /// What a time-limited credential is held against.
    pub(crate) at: At,
}

/// Says who signed `request`. An unknown user costs what a known one costs.
pub(crate) fn judge(
    credentials: &Arc<Credentials>,
    kept: &mut Kept,
    request: &Message<'_>,
    claim: Claim<'_>,
) -> Result<Identity, Refusal> {
    let user = credentials.user(claim.name);
    let time_limited = credentials.time_limited(claim.name).filter(|_| user.is_none());
    let verdict = match (user, time_limited) {
        (Some((user, keys)), _) => {
            let key = keys.of(claim.algorithm);
            let identity = || Identity { user: Arc::clone(user), key: key.clone() };
            request.verify(key).then(identity).ok_or(Refusal::WrongPassword)
        }
        (None, Some(time_limited)) => {
            kept.follow(credentials);
            time_limited_user(credentials, kept, request, time_limited, claim.algorithm)
                .ok_or(Refusal::WrongPassword)
                .and_then(|identity| time_limited.check(claim.at).map(|()| identity))
        }
        (None, None) => {
            // Compared all the same: the time it takes tells nothing.
            std::hint::black_box(request.verify(credentials.nobody.of(claim.algorithm)));
            Err(Refusal::UnknownUser)
        }
    };
    if claim.realm == credentials.realm.as_bytes() { verdict } else { Err(Refusal::Realm) }
}

/// The user of a time-limited credential, if one of the secrets made it.
fn time_limited_user(
    credentials: &Credentials,
    kept: &mut Kept,
    request: &Message<'_>,
    claimed: TimeLimited<'_>,
    algorithm: PasswordAlgorithm,
) -> Option<Identity> {
    let slot = kept.slot(claimed.name);
    if let Some(Slot { name, algorithm: kept_algorithm, identity }) = slot
        && **name == *claimed.name
        && *kept_algorithm == algorithm
        && request.verify(&identity.key)
    {
        return Some(identity.clone());
    }
    let variants = [Integrity::Sha1, Integrity::Sha256];
    let key = credentials
        .secrets
        .iter()
        .flat_map(|secret| variants.map(|variant| secret.password(variant, claimed.name)))
        .map(|password| Key::long_term_with(algorithm, claimed.name, &credentials.realm, &password))
        .find(|key| request.verify(key))?;
    let user = format!("{REST_PREFIX}{}", claimed.userid).into();
    let identity = Identity { user, key };
    *slot = Some(Slot { name: claimed.name.into(), algorithm, identity: identity.clone() });
    Some(identity)
}
