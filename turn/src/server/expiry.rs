//! How allocations end: by time, by the client, by the loss of its connection, by a configuration
//! without their addresses.

use std::time::Instant;

use super::{Leg, Server};
use crate::five_tuple::{Family, FiveTuple, Source};
use crate::output::{Event, Output};
use crate::relay_port::{RelayPort, Wish};

impl Server {
    /// Ends what is over; call it when the time of [`Output::Timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(client) = self.allocations.expired(now) {
            self.drop_legs(client, |_, leg| leg.expires_at <= now);
        }
        if self.reservations.front().is_some_and(|at| *at <= now) {
            self.reservations.retain(|at| *at > now);
            self.shared.tables().end_reservations(now);
        }
        while let Some(connection) = self.connections.overdue(now) {
            self.give_up(connection);
        }
        self.routes.sweep(now);
    }

    /// The client's connection is gone, and its allocation with it.
    ///
    /// An allocation that may move (RFC 8016) waits for its client until its time is over.
    pub fn handle_client_gone(&mut self, client: FiveTuple, now: Instant) {
        self.handle_timeout(now);
        self.routes.remove(&client);
        let Some(allocation) = self.allocations.by_client(&client) else {
            return;
        };
        let is_old = allocation.client == client;
        match &allocation.mobility {
            None => self.free(client),
            Some(_) if is_old => self.finish_move(client),
            Some(_) => self.cancel_move(client),
        }
    }

    /// Ends the legs whose addresses the box no longer has.
    pub(super) fn drop_orphans(&mut self, client: FiveTuple) {
        let config = std::sync::Arc::clone(&self.config);
        self.drop_legs(client, |family, leg| {
            let kept = config.faces(family).is_some_and(|faces| {
                faces.outside == leg.faces.outside
                    && (faces.inside.is_none()
                        || leg.faces.inside.is_none()
                        || faces.inside == leg.faces.inside)
            });
            !kept
        });
    }

    /// Ends the legs that `over` names, and the allocation when none is left.
    pub(super) fn drop_legs(&mut self, client: FiveTuple, over: impl Fn(Family, &Leg) -> bool) {
        let Some(allocation) = self.allocations.by_client(&client) else {
            return;
        };
        let ending =
            |family: &Family| allocation.legs.get(*family).is_some_and(|leg| over(*family, leg));
        let ending: Vec<_> = allocation.legs.families().filter(ending).collect();
        if ending.len() == allocation.legs.families().count() {
            self.free(client);
            return;
        }
        for family in ending {
            self.drop_leg(client, family);
        }
    }

    /// Ends one leg of two.
    pub(super) fn drop_leg(&mut self, client: FiveTuple, family: Family) {
        let mut port = None;
        self.allocations.change_legs(client, |allocation| {
            *allocation.legs.slot(family) = None;
            allocation.permissions.drop_family(family);
            allocation.channels.drop_family(family);
            port = Some(allocation.port);
        });
        let Some(port) = port else {
            return;
        };
        self.outputs.push_back(Output::CloseFamily(port, family));
        self.close_connections(client, Some(family));
    }

    /// Ends an allocation.
    pub(super) fn free(&mut self, client: FiveTuple) {
        self.close_connections(client, None);
        let Some(allocation) = self.allocations.remove(client) else {
            return;
        };
        let moving = allocation.mobility.as_ref().and_then(|mobility| mobility.moving);
        let mut tables = self.shared.tables();
        tables.usage.remove(&allocation.user, Source::of(allocation.client.client.ip()));
        if let Some(moving) = moving {
            tables.usage.remove_source(Source::of(moving.to.client.ip()));
        }
        tables.ports.release(allocation.port);
        self.shared.set_owner(allocation.port, None);
        let relayed = allocation.relayed();
        if let Some(opening) = allocation.opening {
            // No reservation holds the next port yet.
            if opening.wish == Wish::EvenWithNext {
                tables.ports.release(RelayPort(allocation.port.0 + 1));
            }
            for port in opening.refused {
                tables.ports.release(port);
            }
        } else if let Some(relayed) = relayed {
            let client = allocation.client;
            self.outputs.push_back(Output::Event(Event::Freed { client, relayed }));
        }
        self.outputs.push_back(Output::CloseRelay(allocation.port));
    }
}
