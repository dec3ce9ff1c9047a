//! The difference between what is and what should be, as the shortest list of writes.

use std::collections::BTreeMap;

use super::desired::Desired;
use super::kernel::{Change, Route, Snapshot};

/// Returns what turns `current` into `desired`; empty once it has been applied.
///
/// Adds come first, so that a box being renumbered is never without an address. Addresses go
/// before the routes that need them, on-link routes before gateways.
pub(crate) fn changes(desired: &Desired, current: &Snapshot) -> Vec<Change> {
    let mut changes = Vec::new();
    for link in &current.links {
        if let Some(mtu) = desired.mtu.get(&link.index)
            && *mtu != link.mtu
        {
            changes.push(Change::Mtu(link.index, *mtu));
        }
        if desired.up.contains(&link.index) && !link.up {
            changes.push(Change::Up(link.index));
        }
    }
    for address in &desired.addresses {
        if !current.addresses.contains_key(address) {
            changes.push(Change::AddAddress(*address));
        }
    }
    let ours: BTreeMap<_, &Route> =
        current.routes.iter().map(|route| (route.key(), route)).collect();
    let mut wanted: Vec<&Route> = desired.routes.difference(&current.routes).collect();
    wanted.sort_by_key(|route| route.via.is_some());
    for route in wanted {
        changes.push(match ours.get(&route.key()) {
            Some(_) => Change::ReplaceRoute(*route),
            None => Change::AddRoute(*route),
        });
    }
    changes.extend(desired.rules.difference(&current.rules).map(|rule| Change::AddRule(*rule)));

    changes.extend(current.rules.difference(&desired.rules).map(|rule| Change::DeleteRule(*rule)));
    let kept: BTreeMap<_, &Route> =
        desired.routes.iter().map(|route| (route.key(), route)).collect();
    for route in current.routes.difference(&desired.routes) {
        if !kept.contains_key(&route.key()) {
            changes.push(Change::DeleteRoute(*route));
        }
    }
    for (address, state) in &current.addresses {
        let decided = state.ours || desired.managed.contains(&address.index);
        if decided && !desired.addresses.contains(address) {
            changes.push(Change::DeleteAddress(*address));
        }
    }
    changes
}
