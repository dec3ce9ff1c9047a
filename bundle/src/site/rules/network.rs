//! Addresses, routes and name servers of a box.

use std::net::IpAddr;

use crate::site::boxes::{Interface, InterfaceName, SiteBox};
use crate::site::subnet::{InterfaceAddress, overlap};

use super::{Breaches, at};

const BOTH: [InterfaceName; 2] = [InterfaceName::Lan1, InterfaceName::Lan2];

/// Judges the NICs of a box.
pub(super) fn judge(breaches: &mut Breaches<'_>, machine: &SiteBox) {
    apart(breaches, machine);
    hardware(breaches, machine);
    for name in BOTH {
        addresses(breaches, machine, name);
        gateways(breaches, machine, name);
        static_nat(breaches, machine, name);
        routes(breaches, machine, name);
    }
}

fn path(machine: &SiteBox, name: InterfaceName, rest: &str) -> String {
    at(machine, &format!("interfaces.{name}.{rest}"))
}

fn on_link(nic: &Interface, address: IpAddr) -> bool {
    nic.addresses.iter().any(|own| own.subnet().contains(&address))
}

fn subnets(nic: &Interface) -> String {
    let subnets: Vec<String> = nic.addresses.iter().map(|own| own.subnet().to_string()).collect();
    subnets.join(", ")
}

/// LAN1 and LAN2 have nothing in common: a peer's side is decided by its address.
fn apart(breaches: &mut Breaches<'_>, machine: &SiteBox) {
    for (index, outer) in machine.lan2.addresses.iter().enumerate() {
        let at2 = path(machine, InterfaceName::Lan2, &format!("address.{index}"));
        for (index, inner) in machine.lan1.addresses.iter().enumerate() {
            let at1 = path(machine, InterfaceName::Lan1, &format!("address.{index}"));
            if overlap(inner.subnet(), outer.subnet()) {
                let message =
                    format!("LAN2's subnet {} overlaps LAN1's {}", outer.subnet(), inner.subnet());
                let help = "the two NICs must be in different subnets; check both prefix lengths";
                breaches.error(&at2, &[&at1], message, help);
            }
        }
        for (index, route) in machine.lan1.routes.iter().enumerate() {
            let at1 = path(machine, InterfaceName::Lan1, &format!("routes.{index}.to"));
            if route.to.net().prefix_len() > 0 && overlap(route.to.net(), outer.subnet()) {
                let message =
                    format!("this route leads LAN2's subnet {} to the inside", outer.subnet());
                breaches.error(&at1, &[&at2], message, "route only inside networks by LAN1");
            }
        }
    }
}

fn hardware(breaches: &mut Breaches<'_>, machine: &SiteBox) {
    let at1 = path(machine, InterfaceName::Lan1, "match");
    let at2 = path(machine, InterfaceName::Lan2, "match");
    if machine.lan1.hardware == machine.lan2.hardware {
        let help = "give each the permanent MAC or PCI path of its own NIC";
        breaches.error(&at2, &[&at1], "LAN1 and LAN2 are the same NIC", help);
    }
    let site = breaches.site;
    for other in site.boxes.values().take_while(|other| other.name != machine.name) {
        for (name, theirs) in BOTH.into_iter().flat_map(|a| BOTH.map(|b| (a, b))) {
            let (ours, nic) = (machine.interface(name), other.interface(theirs));
            let is_mac = matches!(ours.hardware, crate::site::InterfaceMatch::Mac(_));
            if is_mac && ours.hardware == nic.hardware {
                let cited = path(other, theirs, "match");
                let message = format!("box `{}` has this MAC address too", other.name);
                breaches.error(
                    &path(machine, name, "match"),
                    &[&cited],
                    message,
                    "a MAC address belongs to one NIC",
                );
            }
        }
        for own in BOTH.into_iter().flat_map(|name| {
            machine.interface(name).addresses.iter().enumerate().map(move |(i, a)| (name, i, *a))
        }) {
            let (name, index, own) = own;
            let taken = BOTH.iter().flat_map(|nic| &other.interface(*nic).addresses);
            if taken.into_iter().any(|address| address.address() == own.address()) {
                let message = format!("box `{}` has the address {} too", other.name, own.address());
                let cited = at(other, "interfaces");
                breaches.error(
                    &path(machine, name, &format!("address.{index}")),
                    &[&cited],
                    message,
                    "give each box addresses of its own",
                );
            }
        }
    }
}

fn addresses(breaches: &mut Breaches<'_>, machine: &SiteBox, name: InterfaceName) {
    let own = &machine.interface(name).addresses;
    for (index, address) in own.iter().enumerate() {
        let here = path(machine, name, &format!("address.{index}"));
        for earlier in own.iter().take(index) {
            if earlier.address() == address.address() {
                breaches.error(
                    &here,
                    &[],
                    format!("{} is here twice", address.address()),
                    "keep one of them",
                );
            } else if overlap(earlier.subnet(), address.subnet())
                && earlier.subnet() != address.subnet()
            {
                let message = format!("{address} and {earlier} disagree about the prefix length");
                breaches.error(&here, &[], message, "write the same prefix length for one subnet");
            }
        }
    }
}

fn gateways(breaches: &mut Breaches<'_>, machine: &SiteBox, name: InterfaceName) {
    let nic = machine.interface(name);
    let key = path(machine, name, "gateway");
    let addresses = path(machine, name, "address");
    if name == InterfaceName::Lan1 && !nic.gateways.is_empty() {
        let help =
            "only LAN2 has a default gateway; list the inside networks under lan1's `routes`";
        breaches.error(&key, &[], "a default gateway on LAN1 competes with LAN2's", help);
        return;
    }
    if name == InterfaceName::Lan2 && nic.gateways.is_empty() {
        let help = "add `gateway: ADDRESS`, the router or firewall on LAN2";
        breaches.error(
            &key,
            &[&addresses],
            "LAN2 has no default gateway: guests could not be answered",
            help,
        );
    }
    for (index, gateway) in nic.gateways.iter().enumerate() {
        let here = path(machine, name, &format!("gateway.{index}"));
        if nic.addresses.iter().any(|own| own.address() == *gateway) {
            let message = format!("the gateway {gateway} is the box itself");
            breaches.error(&here, &[&addresses], message, "write the router's address");
        } else if !on_link(nic, *gateway) && !link_local(*gateway) {
            let message =
                format!("the gateway {gateway} is not on {name}'s link ({})", subnets(nic));
            breaches.error(
                &here,
                &[&addresses],
                message,
                "write a router in that subnet, or correct the prefix length",
            );
        }
        let same = |other: &&IpAddr| other.is_ipv6() == gateway.is_ipv6();
        if nic.gateways.iter().take(index).any(|other| same(&other)) {
            let help = "name one IPv4 and at most one IPv6 gateway";
            breaches.error(&here, &[], "a second default gateway of one family", help);
        }
    }
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn static_nat(breaches: &mut Breaches<'_>, machine: &SiteBox, name: InterfaceName) {
    let nats = &machine.interface(name).static_nat;
    for (index, nat) in nats.iter().enumerate() {
        let here = path(machine, name, &format!("static-nat.{index}"));
        let same = |other: &IpAddr| other.is_ipv6() == nat.is_ipv6();
        if name == InterfaceName::Lan1 {
            let help = "move `static-nat` to lan2: it is the address that guests reach";
            breaches.error(&here, &[], "a static NAT address in front of LAN1", help);
        } else if nats.iter().take(index).any(same) {
            let help = "name one IPv4 and at most one IPv6 address";
            breaches.error(&here, &[], "a second static NAT address of one family", help);
        } else {
            outside_nat(breaches, machine, *nat, &here);
        }
    }
}

/// A static NAT address of LAN2 is nowhere but in front of LAN2.
fn outside_nat(breaches: &mut Breaches<'_>, machine: &SiteBox, nat: IpAddr, here: &str) {
    if machine.lan2.first_address(nat.is_ipv6()).is_none() {
        let help = "static NAT maps between addresses of one family";
        breaches.error(
            here,
            &[&path(machine, InterfaceName::Lan2, "address")],
            format!("LAN2 has no address of {nat}'s family"),
            help,
        );
    }
    for other in BOTH {
        let cited = path(machine, other, "address");
        let nic = machine.interface(other);
        if let Some(own) = nic.addresses.iter().find(|own| own.address() == nat) {
            let message = format!("the static NAT address {nat} is {other}'s own ({own})");
            let help = "write the public address that the firewall maps onto LAN2, or remove the key when there is no NAT";
            breaches.error(here, &[&cited], message, help);
        } else if on_link(nic, nat) {
            let message =
                format!("the static NAT address {nat} lies in {other}'s subnet ({})", subnets(nic));
            let help =
                "it belongs to the firewall's other side; no NIC of the box is in its subnet";
            breaches.error(here, &[&cited], message, help);
        }
    }
    for (index, route) in machine.lan1.routes.iter().enumerate() {
        if route.to.net().prefix_len() > 0 && route.to.net().contains(&nat) {
            let cited = path(machine, InterfaceName::Lan1, &format!("routes.{index}"));
            let message =
                format!("LAN1's route to {} leads the static NAT address {nat} inside", route.to);
            breaches.error(
                here,
                &[&cited],
                message,
                "narrow that route: the NAT address is outside",
            );
        }
    }
}

fn routes(breaches: &mut Breaches<'_>, machine: &SiteBox, name: InterfaceName) {
    let nic = machine.interface(name);
    let addresses = path(machine, name, "address");
    for (index, route) in nic.routes.iter().enumerate() {
        let to = path(machine, name, &format!("routes.{index}.to"));
        let via = path(machine, name, &format!("routes.{index}.via"));
        if route.to.net().prefix_len() == 0 {
            let help = match name {
                InterfaceName::Lan1 => {
                    "name the inside networks; the default route is LAN2's gateway"
                }
                InterfaceName::Lan2 => "write it as `gateway:`",
            };
            breaches.error(&to, &[], "a default route among the routes", help);
            continue;
        }
        if route.to.net().addr().is_ipv6() != route.via.is_ipv6() {
            let help = "a route and its router are of one address family";
            breaches.error(
                &via,
                &[&to],
                format!("{} does not lead to {}", route.via, route.to),
                help,
            );
        } else if nic.addresses.iter().any(|own| own.address() == route.via) {
            breaches.error(
                &via,
                &[&addresses],
                format!("the router {} is the box itself", route.via),
                "write the router's address",
            );
        } else if !on_link(nic, route.via) && !link_local(route.via) {
            let message =
                format!("the router {} is not on {name}'s link ({})", route.via, subnets(nic));
            breaches.error(&via, &[&addresses], message, "write a router in that subnet");
        }
        let linked = |own: &InterfaceAddress| own.subnet() == route.to.net();
        if nic.addresses.iter().any(linked) {
            let message = format!("{} is on {name}'s link already", route.to);
            breaches.error(&to, &[&addresses], message, "remove the route");
        }
        let earlier = BOTH.into_iter().take_while(|other| *other != name);
        let others = earlier.flat_map(|other| machine.interface(other).routes.iter());
        if others.chain(nic.routes.iter().take(index)).any(|other| other.to == route.to) {
            breaches.error(&to, &[], format!("a second route to {}", route.to), "keep one of them");
        }
    }
}

/// Judges name and time servers.
pub(super) fn judge_names(breaches: &mut Breaches<'_>, machine: &SiteBox) {
    let dns = &machine.dns;
    let nics = at(machine, "interfaces");
    for (index, split) in dns.split.iter().enumerate() {
        let here = |key: &str| at(machine, &format!("dns.split.{index}.{key}"));
        if dns.split.iter().take(index).any(|other| other.domain == split.domain) {
            let message = format!("`{}` is split twice", split.domain);
            breaches.error(
                &here("domain"),
                &[],
                message,
                "list all servers of a domain in one entry",
            );
        }
        for (number, server) in split.servers.iter().enumerate() {
            let nic = machine.interface(split.interface);
            if split.interface == InterfaceName::Lan1 && !nic.reaches(*server) {
                let message =
                    format!("no route of {} leads to the DNS server {server}", split.interface);
                let help = "add a route on lan1, or name the NIC that reaches it";
                breaches.warning(&here(&format!("servers.{number}")), &[&nics], message, help);
            }
        }
        // The resolver knows servers per NIC, not per domain.
        let earlier = dns.split.iter().take(index);
        for other in earlier.filter(|other| other.interface == split.interface) {
            if other.servers != split.servers {
                let message = format!(
                    "`{}` and `{}` have different servers on {}",
                    other.domain, split.domain, split.interface
                );
                breaches.error(
                    &here("servers"),
                    &[&at(machine, "dns.split")],
                    message,
                    "a NIC has one list of servers; write the same in both entries",
                );
            }
        }
    }
    let own = BOTH.into_iter().flat_map(|name| &machine.interface(name).addresses);
    let own: Vec<IpAddr> = own.map(|address| address.address()).collect();
    for (index, server) in dns.servers.iter().enumerate() {
        let here = at(machine, &format!("dns.servers.{index}"));
        let cannot = |what: &str| format!("the DNS server {server} {what}");
        if own.contains(server) {
            breaches.error(
                &here,
                &[&nics],
                cannot("is the box itself"),
                "write a server that the box can ask",
            );
        } else if !machine.lan2.gateways.is_empty() && !family_served(machine, *server) {
            breaches.warning(
                &here,
                &[&nics],
                cannot("cannot be reached: no NIC has a gateway or subnet for it"),
                "add a gateway of its family to lan2",
            );
        }
        if dns.servers.iter().take(index).any(|other| other == server) {
            breaches.error(&here, &[], cannot("is here twice"), "keep one of them");
        }
    }
}

fn family_served(machine: &SiteBox, address: IpAddr) -> bool {
    BOTH.into_iter().any(|name| {
        let nic = machine.interface(name);
        nic.reaches(address) || nic.gateways.iter().any(|gw| gw.is_ipv6() == address.is_ipv6())
    })
}
