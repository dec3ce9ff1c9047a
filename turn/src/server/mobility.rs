//! Allocations that move from one 5-tuple to another (RFC 8016 §3.2).
//!
//! ```text
//! Refresh with a ticket, from a new 5-tuple ─→ both 5-tuples work, data goes to the old one
//! Send or ChannelData from the new one ──────→ data goes to the new one, the old one is gone
//! ```
//!
//! A source's quota counts the allocation as long as one of its 5-tuples has that source, so that
//! moving away makes no room for more.

use std::sync::Arc;
use std::time::Instant;

use super::Server;
use super::refresh::refreshed_families;
use super::request::{Answer, Failure};
use crate::credential::Identity;
use crate::five_tuple::{FiveTuple, Source, Transport};
use crate::mobility::{Moving, TICKET_LENGTH, Ticket};
use crate::output::{Errand, Event, Output, Relayed};
use crate::refusal::Rule;
use crate::stun::{ErrorCode, Message};

impl Server {
    /// Handles a Refresh request with a MOBILITY-TICKET.
    pub(super) fn resume(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        identity: &Identity,
        value: &[u8],
        now: Instant,
    ) -> Result<Answer, Failure> {
        if !self.config.mobility {
            return Err(Failure::rule(ErrorCode::MOBILITY_FORBIDDEN, Rule::Mobility));
        }
        if let Some(allocation) = self.allocations.by_client(&client) {
            if allocation.user != identity.user {
                return Err(ErrorCode::WRONG_CREDENTIALS.into());
            }
            let last = allocation.mobility.as_ref().and_then(|mobility| mobility.last);
            return match last == Some((client, request.transaction())) {
                // A retransmission: the ticket of the first answer is still the last one.
                true => self.moved(client, request, now),
                // The client has not moved (RFC 8016 §3.2.2).
                false => Err(ErrorCode::BAD_REQUEST.into()),
            };
        }
        let Some(ticket) = Ticket::open(value, self.shared.seed()) else {
            self.counters.bad_tickets += 1;
            return Err(ErrorCode::BAD_REQUEST.into());
        };
        if ticket.shard != self.shard {
            return self.route(client, ticket, now);
        }
        self.routes.remove(&client);
        let current = self.allocations.by_port(ticket.port).filter(|allocation| {
            let mobility = allocation.mobility.as_deref();
            allocation.is_live(now)
                && mobility.is_some_and(|mobility| mobility.accepts(ticket.serial))
        });
        let Some(allocation) = current else {
            self.counters.bad_tickets += 1;
            return Err(ErrorCode::ALLOCATION_MISMATCH.into());
        };
        if allocation.user != identity.user {
            return Err(ErrorCode::WRONG_CREDENTIALS.into());
        }
        let old = allocation.client;
        if !refreshed_families(request)?.iter().any(|family| allocation.legs.get(*family).is_some())
        {
            return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH.into());
        }
        self.begin_move(old, client, ticket, request)?;
        self.moved(client, request, now)
    }

    /// Hands a request to the shard that made its ticket, and what follows from that client too.
    fn route(
        &mut self,
        client: FiveTuple,
        ticket: Ticket,
        now: Instant,
    ) -> Result<Answer, Failure> {
        if self.shared.owner(ticket.port) != Some(ticket.shard) {
            self.counters.bad_tickets += 1;
            return Err(ErrorCode::ALLOCATION_MISMATCH.into());
        }
        // A TCP client's whole stream moves there.
        let routed =
            client.transport == Transport::Tcp || self.routes.insert(client, ticket.shard, now);
        if !routed {
            return Err(Failure::rule(ErrorCode::INSUFFICIENT_CAPACITY, Rule::SourceQuota));
        }
        let errand = Errand::Client(client);
        Ok(Answer::Elsewhere(Relayed::to_shard(ticket.shard, errand, 0..0)))
    }

    /// Lets the new 5-tuple lead to the allocation too.
    fn begin_move(
        &mut self,
        old: FiveTuple,
        new: FiveTuple,
        ticket: Ticket,
        request: &Message<'_>,
    ) -> Result<(), Failure> {
        let source = Source::of(new.client.ip());
        let quotas = self.config.quotas;
        let Some(mobility) =
            self.allocations.by_client(&old).and_then(|allocation| allocation.mobility.as_mut())
        else {
            return Err(ErrorCode::ALLOCATION_MISMATCH.into());
        };
        let before = mobility.moving.map(|moving| moving.to);
        let mut tables = self.shared.tables();
        let counted = [Some(old), before].into_iter().flatten();
        if !counted.map(|client| Source::of(client.client.ip())).any(|other| other == source)
            && let Err(rule) = tables.usage.check_source(quotas, source)
        {
            return Err(Failure::rule(ErrorCode::ALLOCATION_QUOTA_REACHED, rule));
        }
        tables.usage.add_source(source);
        if let Some(before) = before {
            tables.usage.remove_source(Source::of(before.client.ip()));
        }
        drop(tables);
        self.tickets += 1;
        mobility.serial = self.tickets;
        mobility.former = None;
        mobility.moving = Some(Moving { to: new, serial: ticket.serial });
        mobility.last = Some((new, request.transaction()));
        if let Some(before) = before {
            self.allocations.drop_client(before, None);
        }
        self.allocations.add_client(old, new);
        Ok(())
    }

    /// Answers a move.
    fn moved(
        &mut self,
        client: FiveTuple,
        request: &Message<'_>,
        now: Instant,
    ) -> Result<Answer, Failure> {
        let answer = self.prolong(client, request, now)?;
        let Answer::Lifetime(left) = answer else {
            return Ok(answer);
        };
        match self.ticket(client) {
            Some(ticket) if !left.is_zero() => Ok(Answer::Moved(left, ticket)),
            _ => Ok(Answer::Lifetime(left)),
        }
    }

    /// The ticket that moves a client's allocation.
    pub(super) fn ticket(&mut self, client: FiveTuple) -> Option<[u8; TICKET_LENGTH]> {
        let allocation = self.allocations.by_client(&client)?;
        let serial = allocation.mobility.as_ref()?.serial;
        let ticket = Ticket { shard: self.shard, port: allocation.port, serial };
        Some(ticket.seal(self.shared.seed()))
    }

    /// The serial number of another ticket.
    pub(super) const fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// The client sends data from its new 5-tuple, or lost the old one: the move is over.
    #[cold]
    pub(super) fn finish_move(&mut self, old: FiveTuple) {
        let Some(allocation) = self.allocations.by_client(&old) else {
            return;
        };
        let moving = allocation.mobility.as_mut().and_then(|mobility| mobility.moving.take());
        let Some(Moving { to, .. }) = moving else {
            return;
        };
        allocation.client = to;
        allocation.side = self.config.side_of_client(to);
        allocation.forget_verdicts();
        let user = Arc::clone(&allocation.user);
        self.allocations.drop_client(old, Some(to));
        self.shared.tables().usage.remove_source(Source::of(old.client.ip()));
        self.counters.moved += 1;
        self.outputs.push_back(Output::Event(Event::Moved { from: old, to, user }));
    }

    /// The client lost its new 5-tuple before it sent data from there.
    pub(super) fn cancel_move(&mut self, new: FiveTuple) {
        let Some(mobility) =
            self.allocations.by_client(&new).and_then(|allocation| allocation.mobility.as_mut())
        else {
            return;
        };
        if let Some(moving) = mobility.moving.take() {
            mobility.former = Some(moving.serial);
            self.allocations.drop_client(new, None);
            self.shared.tables().usage.remove_source(Source::of(new.client.ip()));
        }
    }
}
