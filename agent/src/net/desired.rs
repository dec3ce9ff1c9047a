//! What a plan means on this machine: its NICs found, its addresses, routes and rules with the
//! kernel's indexes in them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::kernel::{Address, Link, MAIN, Route, Rule};
use crate::plan::{LinkPlan, LinkSelector, NetPlan};

/// Priority of the `from ADDRESS` rules: after `local` (0), before `main` (32766).
const RULE_PRIORITY: u32 = 1000;

/// What should be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Desired {
    /// Links that are up.
    pub(crate) up: BTreeSet<u32>,
    /// MTU of links where the plan names one.
    pub(crate) mtu: BTreeMap<u32, u32>,
    /// Links whose addresses are all ours to decide.
    pub(crate) managed: BTreeSet<u32>,
    /// Addresses.
    pub(crate) addresses: BTreeSet<Address>,
    /// Routes.
    pub(crate) routes: BTreeSet<Route>,
    /// Rules.
    pub(crate) rules: BTreeSet<Rule>,
    /// The site's name of each NIC that was found, and the kernel's.
    pub(crate) names: BTreeMap<String, String>,
    /// NICs of the plan that this machine does not have, as sentences.
    pub(crate) missing: Vec<MissingLink>,
}

/// A NIC of the plan that was not found.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum MissingLink {
    /// Nothing matches.
    #[error("{name}: no NIC has {wanted}; this box has {present}")]
    Absent { name: String, wanted: String, present: String },
    /// More than one matches.
    #[error("{name}: {wanted} is on more than one NIC: {links}")]
    Ambiguous { name: String, wanted: String, links: String },
}

/// With which of its addresses a NIC was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum MacSource {
    /// The hardware's own.
    Permanent,
    /// The one in use, because the link has no permanent one (veth).
    Current,
}

impl Desired {
    /// Resolves `plan` against the links that are there.
    pub(crate) fn new(plan: &NetPlan, links: &[Link]) -> Self {
        let mut desired = Self::default();
        for wanted in &plan.links {
            match find(&wanted.name, &wanted.select, links) {
                Ok(link) => desired.add(wanted, link),
                Err(missing) => desired.missing.push(missing),
            }
        }
        desired
    }

    /// The rescue plan: every link is up and nothing of ours is on any of them.
    pub(crate) fn rescue(links: &[Link]) -> Self {
        Self { up: links.iter().map(|link| link.index).collect(), ..Self::default() }
    }

    fn add(&mut self, plan: &LinkPlan, link: &Link) {
        let index = link.index;
        self.names.insert(plan.name.clone(), link.name.clone());
        self.up.insert(index);
        self.managed.insert(index);
        if let Some(mtu) = plan.mtu {
            self.mtu.insert(index, mtu);
        }
        let subnets: BTreeSet<IpNet> = plan.addresses.iter().map(IpNet::trunc).collect();
        for net in &plan.addresses {
            self.addresses.insert(Address { index, net: *net });
            let from = IpNet::from(net.addr());
            self.rules.insert(Rule { from, table: plan.table, priority: RULE_PRIORITY });
        }
        for to in &subnets {
            let metric = metric(to, 0);
            self.routes.insert(Route { table: plan.table, to: *to, metric, via: None, index });
        }
        for route in &plan.routes {
            let to = route.to.trunc();
            // The kernel makes the route to a connected subnet itself, and so did the loop above.
            if route.via.is_none() && subnets.contains(&to) {
                continue;
            }
            for table in [MAIN, plan.table] {
                let metric = metric(&to, route.metric);
                self.routes.insert(Route { table, to, metric, via: route.via, index });
            }
        }
    }

    /// Two routes of the plan that the kernel cannot hold at once.
    pub(crate) fn rivals(&self) -> Option<(Route, Route)> {
        let mut seen = BTreeMap::new();
        self.routes.iter().find_map(|route| Some((seen.insert(route.key(), *route)?, *route)))
    }
}

/// IPv6 has no metric 0: the kernel makes it 1024.
fn metric(to: &IpNet, metric: u32) -> u32 {
    match to {
        IpNet::V6(_) if metric == 0 => 1024,
        _ => metric,
    }
}

/// Finds a NIC by its permanent MAC, by the current one where there is no permanent one, or by
/// its PCI address.
///
/// # Errors
///
/// Says which NICs there are when none or more than one matches.
pub(crate) fn find<'a>(
    name: &str,
    select: &LinkSelector,
    links: &'a [Link],
) -> Result<&'a Link, MissingLink> {
    let matching: Vec<&Link> = links.iter().filter(|link| matches(select, link)).collect();
    let wanted = match select {
        LinkSelector::Mac(mac) => format!("MAC {mac}"),
        LinkSelector::Pci(path) => format!("PCI address {path}"),
    };
    match matching.as_slice() {
        [link] => Ok(link),
        [] => {
            let present: Vec<String> = links.iter().map(describe).collect();
            let present = if present.is_empty() { "none".to_owned() } else { present.join(", ") };
            Err(MissingLink::Absent { name: name.to_owned(), wanted, present })
        }
        several => {
            let links: Vec<&str> = several.iter().map(|link| link.name.as_str()).collect();
            let links = links.join(", ");
            Err(MissingLink::Ambiguous { name: name.to_owned(), wanted, links })
        }
    }
}

fn matches(select: &LinkSelector, link: &Link) -> bool {
    match select {
        LinkSelector::Mac(mac) => {
            mac.eq_ignore_ascii_case(link.permanent_mac.as_ref().unwrap_or(&link.mac))
        }
        LinkSelector::Pci(path) => link.pci.as_ref().is_some_and(|pci| {
            path.rsplit('/').next().is_some_and(|p| p.eq_ignore_ascii_case(pci))
        }),
    }
}

/// How a link was matched when by MAC.
pub(crate) fn mac_source(link: &Link) -> MacSource {
    if link.permanent_mac.is_some() { MacSource::Permanent } else { MacSource::Current }
}

fn describe(link: &Link) -> String {
    let mac = link.permanent_mac.as_ref().unwrap_or(&link.mac);
    match &link.pci {
        Some(pci) => format!("{} (MAC {mac}, PCI {pci})", link.name),
        None => format!("{} (MAC {mac})", link.name),
    }
}
