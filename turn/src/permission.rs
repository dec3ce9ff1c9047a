//! Permissions (RFC 8656 §9) and what the policy said of each when it was last asked.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::five_tuple::Family;
use crate::policy::Reach;

/// RFC 8656 §9.
pub(crate) const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);

/// Which configuration a verdict was made under; it counts under that one only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Revision(pub(crate) u64);

impl Revision {
    /// No configuration's: the policy is asked again.
    pub(crate) const NONE: Self = Self(u64::MAX);
}

/// The policy's word on an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    pub(crate) reach: Reach,
    pub(crate) revision: Revision,
}

/// A peer address that may send to the client and be sent to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permission {
    pub(crate) peer: IpAddr,
    pub(crate) expires_at: Instant,
    pub(crate) verdict: Verdict,
}

/// The permissions of one allocation: few, so a list.
#[derive(Debug, Default)]
pub(crate) struct Permissions(Vec<Permission>);

impl Permissions {
    /// The live permission for that address.
    #[inline]
    pub(crate) fn find(&mut self, peer: IpAddr, now: Instant) -> Option<&mut Permission> {
        let index = self.0.iter().position(|entry| entry.peer == peer)?;
        let index = advance(&mut self.0, index);
        self.0.get_mut(index).filter(|entry| entry.expires_at > now)
    }

    /// Forgets what the policy said.
    pub(crate) fn forget_verdicts(&mut self) {
        for entry in &mut self.0 {
            entry.verdict.revision = Revision::NONE;
        }
    }

    /// Forgets the peers of a family whose leg is gone.
    pub(crate) fn drop_family(&mut self, family: Family) {
        self.0.retain(|entry| Family::of(entry.peer) != family);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether `peers` can be installed without more than `limit` in all.
    pub(crate) fn have_room(&mut self, peers: &[IpAddr], limit: usize, now: Instant) -> bool {
        self.0.retain(|entry| entry.expires_at > now);
        let known = |peer: &IpAddr| self.0.iter().any(|entry| entry.peer == *peer);
        self.0.len() + peers.iter().filter(|peer| !known(peer)).count() <= limit
    }

    /// Installs or refreshes a permission.
    pub(crate) fn install(&mut self, peer: IpAddr, verdict: Verdict, now: Instant) {
        let fresh = Permission { peer, expires_at: now + PERMISSION_LIFETIME, verdict };
        match self.0.iter_mut().find(|entry| entry.peer == peer) {
            Some(entry) => *entry = fresh,
            None => self.0.push(fresh),
        }
    }
}

/// Entries that are looked at before the order matters.
const FRONT: usize = 4;

/// Moves what was found far behind towards the front, so that what is in use is found early.
/// Returns where it is now.
pub(crate) fn advance<T>(list: &mut [T], index: usize) -> usize {
    if index < FRONT {
        return index;
    }
    list.swap(index, index / 2);
    index / 2
}
