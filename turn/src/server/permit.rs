//! CreatePermission (RFC 8656 §10) and ChannelBind (§12).

use std::net::SocketAddr;
use std::time::Instant;

use super::Server;
use super::attributes::{channel_number, peer_of, peers_of};
use super::request::{Answer, Failure};
use crate::channel::BindError;
use crate::credential::Identity;
use crate::five_tuple::{Family, FiveTuple, Side};
use crate::output::RelayTransport;
use crate::permission::{Revision, Verdict};
use crate::policy::Reach;
use crate::refusal::Rule;
use crate::stun::{ErrorCode, Message};

/// Ports of peers that no client gets to: services of the system.
pub(super) const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

impl Server {
    /// RFC 8656 §10.2: all peers or none.
    pub(super) fn create_permission(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        now: Instant,
    ) -> Result<Answer, Failure> {
        let limit = self.config.quotas.per_allocation;
        let legs = self.own_allocation(client, identity, now)?.legs;
        let (side, revision) = self.judging_side(client);
        let full = Failure::rule(ErrorCode::INSUFFICIENT_CAPACITY, Rule::AllocationQuota);
        let mut peers = Vec::new();
        let mut verdicts = Vec::new();
        for peer in peers_of(request)? {
            if peers.contains(&peer) {
                continue;
            }
            // Before the next one is compared with all: a message holds thousands.
            if peers.len() == limit {
                return Err(full);
            }
            if legs.get(Family::of(peer)).is_none() {
                return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH.into());
            }
            let reach = self.config.policy.reach(side, peer);
            if let Reach::Forbidden(denial) = reach {
                return Err(Failure::peer(denial.into(), SocketAddr::new(peer, 0)));
            }
            peers.push(peer);
            verdicts.push(Verdict { reach, revision });
        }
        let allocation = self.own_allocation(client, identity, now)?;
        if !allocation.permissions.have_room(&peers, limit, now) {
            return Err(full);
        }
        for (peer, verdict) in peers.into_iter().zip(verdicts) {
            allocation.permissions.install(peer, verdict, now);
        }
        Ok(Answer::Success)
    }

    /// RFC 8656 §12.2; installs a permission too.
    pub(super) fn channel_bind(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        now: Instant,
    ) -> Result<Answer, Failure> {
        let limit = self.config.quotas.per_allocation;
        let allocation = self.own_allocation(client, identity, now)?;
        let (legs, transport) = (allocation.legs, allocation.transport);
        let number = channel_number(request)?;
        let peer = peer_of(request)?;
        // RFC 6062 §5: a TCP allocation has no channels.
        if transport == RelayTransport::Tcp {
            return Err(ErrorCode::BAD_REQUEST.into());
        }
        if legs.get(Family::of(peer.ip())).is_none() {
            return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH.into());
        }
        let (side, revision) = self.judging_side(client);
        let verdict = Verdict { reach: self.reach_port(side, peer)?, revision };
        let full = Failure::rule(ErrorCode::INSUFFICIENT_CAPACITY, Rule::AllocationQuota);
        let allocation = self.own_allocation(client, identity, now)?;
        match allocation.channels.check(number, peer, limit, now) {
            Err(BindError::Conflict) => return Err(ErrorCode::BAD_REQUEST.into()),
            Err(BindError::Full) => return Err(full),
            Ok(()) => {}
        }
        if !allocation.permissions.have_room(&[peer.ip()], limit, now) {
            return Err(full);
        }
        allocation.permissions.install(peer.ip(), verdict, now);
        allocation.channels.bind(number, peer, verdict, now);
        Ok(Answer::Success)
    }

    /// The side by which a client's request is judged, and for which revision the word counts: a
    /// client that is about to change sides is judged again when it has.
    fn judging_side(&mut self, client: FiveTuple) -> (Side, Revision) {
        let side = self.config.side_of_client(client);
        let same = self.allocations.by_client(&client).is_some_and(|found| found.side == side);
        (side, if same { self.revision } else { Revision::NONE })
    }

    /// The policy's word on a peer address with its port.
    pub(super) fn reach_port(&self, side: Side, peer: SocketAddr) -> Result<Reach, Failure> {
        let reach = self.config.policy.reach(side, peer.ip());
        match reach {
            Reach::Forbidden(denial) => Err(Failure::peer(denial.into(), peer)),
            _ if peer.port() < FIRST_UNPRIVILEGED_PORT => {
                Err(Failure::peer(Rule::PrivilegedPort, peer))
            }
            Reach::OwnRelay if !self.shared.tables().ports.contains(peer.port()) => {
                Err(Failure::peer(Rule::NoSuchRelay, peer))
            }
            _ => Ok(reach),
        }
    }
}
