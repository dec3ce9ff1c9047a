//! Refresh (RFC 8656 §8.2), and Refresh with a mobility ticket (RFC 8016 §3.2).

use std::sync::Arc;
use std::time::Instant;

use super::attributes::{granted_lifetime, lifetime, requested_family};
use super::request::{Answer, Failure};
use super::{Server, Tombstone};
use crate::credential::Identity;
use crate::five_tuple::{Family, FiveTuple};
use crate::stun::{AttributeType, ErrorCode, Message};

impl Server {
    /// Handles a Refresh request whose credentials are already checked. Answers with the LIFETIME
    /// that is left.
    pub(super) fn refresh(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        now: Instant,
    ) -> Result<Answer, Failure> {
        let ends = lifetime(request)?.is_some_and(|asked| asked.is_zero());
        if ends && self.was_ended_by(client, request, identity) {
            return Ok(Answer::Lifetime(std::time::Duration::ZERO));
        }
        match request.attribute(AttributeType::MOBILITY_TICKET) {
            Some(ticket) => self.resume(client, request, identity, ticket, now),
            None => {
                self.own_allocation(client, identity, now)?;
                self.prolong(client, request, now)
            }
        }
    }

    /// Whether this very request ended an allocation, or a family of it, before.
    fn was_ended_by(&self, client: FiveTuple, request: &Message<'_>, identity: &Identity) -> bool {
        self.tombstones.iter().any(|tombstone| {
            tombstone.client == client
                && tombstone.transaction == request.transaction()
                && tombstone.user == identity.user
        })
    }

    /// Sets a new time for the families that the request is about, or ends them.
    ///
    /// `client` leads to a live allocation of the right user.
    pub(super) fn prolong(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        now: Instant,
    ) -> Result<Answer, Failure> {
        let asked = lifetime(request)?;
        let wanted = refreshed_families(request)?;
        let allocation =
            self.allocations.by_client(&client).ok_or(ErrorCode::ALLOCATION_MISMATCH)?;
        let about = |family: Family| wanted.contains(&family);
        if !allocation.legs.families().any(about) {
            return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH.into());
        }
        if asked.is_some_and(|asked| asked.is_zero()) {
            let user = Arc::clone(&allocation.user);
            self.drop_legs(client, |family, _| about(family));
            self.bury(Tombstone { client, transaction: request.transaction(), user });
            return Ok(Answer::Lifetime(std::time::Duration::ZERO));
        }
        let granted = granted_lifetime(asked);
        self.allocations.change_legs(client, |allocation| {
            for family in allocation.legs.families() {
                if let Some(leg) = allocation.legs.slot(family).as_mut().filter(|_| about(family)) {
                    leg.expires_at = now + granted;
                }
            }
        });
        Ok(Answer::Lifetime(granted))
    }
}

/// The families that a Refresh request is about: that of REQUESTED-ADDRESS-FAMILY, or both.
pub(super) fn refreshed_families(request: &Message<'_>) -> Result<&'static [Family], ErrorCode> {
    match requested_family(request) {
        Ok(None) => Ok(&[Family::V4, Family::V6]),
        Ok(Some(Family::V4)) => Ok(&[Family::V4]),
        Ok(Some(Family::V6)) => Ok(&[Family::V6]),
        Err(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED) => {
            Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH)
        }
        Err(code) => Err(code),
    }
}
