//! Why something was refused: every refusal names its rule, and is counted by it.

use std::ops::AddAssign;

use crate::policy::Denial;

/// The rule that refuses a request or a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Rule {
    /// The peer is in a special-purpose range.
    SpecialPurpose,
    /// The peer is this box.
    OwnAddress,
    /// The peer is on no list.
    NotAllowed,
    /// No face of this box leads to the peer.
    NoFace,
    /// The peer's port is below 1024.
    PrivilegedPort,
    /// The peer is a relayed transport address of this box that no allocation has.
    NoSuchRelay,
    /// `quotas`: allocations in all.
    TotalQuota,
    /// `quotas`: allocations of one user.
    UserQuota,
    /// `quotas`: allocations of one source.
    SourceQuota,
    /// `quotas`: permissions, channels or connections of one allocation.
    AllocationQuota,
    /// `quotas`: octets per second of one allocation.
    AllocationBandwidth,
    /// `quotas`: octets per second of all allocations together.
    TotalBandwidth,
    /// No port of `media-ports` is left.
    MediaPorts,
    /// `drain`: no new allocations.
    Drain,
    /// `tcp-relay` is off.
    TcpRelay,
    /// `mobility` is off.
    Mobility,
}

impl Rule {
    /// Every rule, in the order of status and metrics.
    pub const ALL: [Self; 16] = [
        Self::SpecialPurpose,
        Self::OwnAddress,
        Self::NotAllowed,
        Self::NoFace,
        Self::PrivilegedPort,
        Self::NoSuchRelay,
        Self::TotalQuota,
        Self::UserQuota,
        Self::SourceQuota,
        Self::AllocationQuota,
        Self::AllocationBandwidth,
        Self::TotalBandwidth,
        Self::MediaPorts,
        Self::Drain,
        Self::TcpRelay,
        Self::Mobility,
    ];

    /// How status, metrics and logs call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SpecialPurpose => "special-purpose-address",
            Self::OwnAddress => "own-address",
            Self::NotAllowed => "not-allowed",
            Self::NoFace => "no-face",
            Self::PrivilegedPort => "privileged-port",
            Self::NoSuchRelay => "no-such-relay",
            Self::TotalQuota => "total-quota",
            Self::UserQuota => "user-quota",
            Self::SourceQuota => "source-quota",
            Self::AllocationQuota => "allocation-quota",
            Self::AllocationBandwidth => "allocation-bandwidth",
            Self::TotalBandwidth => "total-bandwidth",
            Self::MediaPorts => "media-ports",
            Self::Drain => "drain",
            Self::TcpRelay => "tcp-relay",
            Self::Mobility => "mobility",
        }
    }
}

impl From<Denial> for Rule {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::SpecialPurpose => Self::SpecialPurpose,
            Denial::OwnAddress => Self::OwnAddress,
            Denial::NotAllowed => Self::NotAllowed,
            Denial::NoFace => Self::NoFace,
        }
    }
}

/// How often each rule refused something: requests and packets together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Refusals([u64; Rule::ALL.len()]);

impl Refusals {
    /// How often that rule did.
    #[must_use]
    pub const fn of(&self, rule: Rule) -> u64 {
        self.0[rule as usize]
    }

    /// How often in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) const fn count(&mut self, rule: Rule) {
        self.0[rule as usize] += 1;
    }
}

/// Shards add up.
impl AddAssign for Refusals {
    fn add_assign(&mut self, other: Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rule;

    #[test]
    fn every_rule_has_its_own_place_and_name() {
        for (index, rule) in Rule::ALL.into_iter().enumerate() {
            assert_eq!(rule as usize, index);
            assert_eq!(Rule::ALL.iter().filter(|other| other.name() == rule.name()).count(), 1);
        }
    }
}
