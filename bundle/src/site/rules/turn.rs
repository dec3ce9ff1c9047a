//! The TURN relay: ports that collide, peers that must not be reached, quotas and redirections that
//! lead nowhere.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::site::boxes::{InterfaceName, SiteBox};
use crate::site::subnet::overlap;
use crate::site::turn::{Told, Turn, TurnDrain};

use super::ports::{taken, twice};
use super::{Breaches, at};

/// Judges what does not depend on a box.
pub(super) fn judge_site(breaches: &mut Breaches<'_>) {
    let Some(turn) = &breaches.site.turn else { return };
    judge_ports(breaches, turn);
    judge_tls(breaches, turn);
    judge_users(breaches, turn);
    judge_peers(breaches, turn);
    judge_quotas(breaches, turn);
    twice(breaches, "turn.listen", &turn.listen);
    if let Some(drain) = &turn.drain {
        judge_drain(breaches, drain);
    }
}

/// Judges the TURN relay against the addresses of a box.
pub(super) fn judge_box(breaches: &mut Breaches<'_>, machine: &SiteBox) {
    let Some(turn) = &breaches.site.turn else { return };
    let nics = at(machine, "interfaces");
    let own = |nic: InterfaceName| machine.interface(nic).addresses.iter().map(|a| a.address());
    let own: Vec<IpAddr> = own(InterfaceName::Lan1).chain(own(InterfaceName::Lan2)).collect();
    judge_faces(breaches, machine, turn);
    for (index, peer) in turn.allow.iter().enumerate() {
        let here = format!("turn.peers.allow.{index}");
        if let Some(address) = own.iter().find(|own| peer.net().contains(*own)) {
            let message = format!("{peer} holds the box's own address {address}");
            breaches.error(
                &here,
                &[&nics],
                message,
                "name the media servers alone; relays of the box are always allowed",
            );
        } else if let Some(nat) =
            machine.lan2.static_nat.iter().find(|nat| peer.net().contains(*nat))
        {
            let message = format!("{peer} holds the static NAT address {nat}");
            breaches.error(
                &here,
                &[&nics],
                message,
                "name the media servers alone; relays of the box are always allowed",
            );
        } else if never(peer.net()).is_none() && !machine.lan1.reaches(peer.net().addr()) {
            let message = format!("no route of lan1 leads to the media server {peer}");
            breaches.warning(
                &here,
                &[&nics],
                message,
                "add a route on lan1; without one it is reached by LAN2",
            );
        }
    }
    for (index, peer) in turn.allow_outside.iter().enumerate() {
        let here = format!("turn.peers.allow-outside.{index}");
        let linked = machine.lan1.addresses.iter().map(|own| own.subnet());
        let inside = linked.chain(machine.lan1.routes.iter().map(|route| route.to.net()));
        if let Some(inside) = inside
            .into_iter()
            .find(|inside| inside.prefix_len() > 0 && overlap(*inside, peer.net()))
        {
            let message = format!("{peer} covers the inside network {inside}");
            breaches.error(
                &here,
                &[&nics],
                message,
                "name outside networks here, and inside media servers under `allow`",
            );
        }
    }
    if let Some(range) = machine.dns.request_ports {
        let here = at(machine, "dns.request-ports");
        if range.overlaps(turn.media_ports) {
            let message = format!(
                "the ports of DNS requests {range} overlap the media ports {}",
                turn.media_ports
            );
            breaches.error(
                &here,
                &["turn.media-ports"],
                message,
                "choose a range that nothing else uses",
            );
        }
    }
    if let Some(range) = machine.dns.request_ports
        && range.first() < 1024
    {
        let here = at(machine, "dns.request-ports");
        breaches.error(
            &here,
            &[],
            format!("the ports {range} begin below 1024"),
            "choose ports from 1024 on",
        );
    }
}

/// An allocation has an outside face in each family that it relays, and an inside one beside it.
fn judge_faces(breaches: &mut Breaches<'_>, machine: &SiteBox, turn: &Turn) {
    let nics = at(machine, "interfaces");
    let has = |v6: bool| {
        machine.lan1.first_address(v6).is_some() && machine.lan2.first_address(v6).is_some()
    };
    if turn.inside_clients_are_told == Told::Lan1 && !has(false) && !has(true) {
        breaches.error(
            "turn.inside-clients-are-told",
            &[&nics],
            format!("no address family is on both NICs of box `{}`", machine.name),
            "write nat, or give lan1 an address of a family that lan2 has",
        );
    }
    for (index, peer) in turn.allow.iter().enumerate() {
        let v6 = peer.net().addr().is_ipv6();
        if machine.lan2.first_address(v6).is_none() {
            let family = if v6 { "IPv6" } else { "IPv4" };
            let message = format!("no client can ask for {family}: lan2 has no address of it");
            let help = format!("give lan2 an {family} address, or remove this media server");
            breaches.warning(&format!("turn.peers.allow.{index}"), &[&nics], message, help);
        }
    }
}

fn judge_ports(breaches: &mut Breaches<'_>, turn: &Turn) {
    let media = turn.media_ports;
    const HERE: &str = "turn.media-ports";
    if media.first() < 1024 {
        let help = "begin at 1024 or above; 24000-29999 is usual";
        breaches.error(HERE, &[], format!("the media ports {media} are privileged"), help);
    } else if media.count() < 100 {
        let help = "a guest takes one port or more; give it a thousand";
        breaches.warning(HERE, &[], format!("only {} media ports", media.count()), help);
    }
    for other in taken(breaches) {
        if media.contains(other.port) {
            let message =
                format!("the media ports {media} swallow port {}, {}", other.port, other.whose);
            breaches.error(
                HERE,
                &[other.path],
                message,
                format!("end the range before {0} or begin it after {0}", other.port),
            );
        }
    }
    for (index, port) in turn.tls_ports.iter().enumerate() {
        let here = format!("turn.tls-ports.{index}");
        if *port == turn.port {
            let help = "TLS has a port of its own: 5349, and 443";
            breaches.error(
                &here,
                &["turn.port"],
                format!("port {port} is TURN's without TLS"),
                help,
            );
        }
        if turn.tls_ports.iter().take(index).any(|other| other == port) {
            breaches.error(&here, &[], format!("port {port} is here twice"), "name it once");
        }
    }
    if breaches.site.proxy.is_some() && matches!(turn.port.get(), 80 | 443) {
        let help = "write 3478; tls-ports and udp-443 serve clients behind strict firewalls";
        breaches.error(
            "turn.port",
            &["proxy"],
            format!("port {} is the web proxy's", turn.port),
            help,
        );
    }
}

/// Judges the ports of TURN over TLS, which the proxy process serves.
fn judge_tls(breaches: &mut Breaches<'_>, turn: &Turn) {
    let site = breaches.site;
    if !turn.tls_ports.is_empty() && site.certificates.is_empty() && site.proxy.is_none() {
        breaches.error(
            "turn.tls-ports",
            &["certificates"],
            "TURN over TLS has no certificate to show",
            "add `certificates:` with a chain and a key, or remove `tls-ports`",
        );
    }
    let Some(proxy) = &site.proxy else { return };
    let both = proxy.listen.iter().find(|nic| turn.listen.contains(nic));
    let alone = proxy.listen.iter().find(|nic| !turn.listen.contains(nic));
    let cites = ["turn.listen", "proxy.listen"];
    for (index, port) in turn.tls_ports.iter().enumerate() {
        let here = format!("turn.tls-ports.{index}");
        match (port.get(), both, alone) {
            (80, Some(nic), _) if proxy.redirect_http => breaches.error(
                &here,
                &[cites[0], cites[1], "proxy.redirect-http"],
                format!("port 80 on {nic} is the web proxy's redirect"),
                "write 5349, and 443, which TURN shares with the web proxy",
            ),
            // Whether a connection to port 443 is TURN's is seen in its first bytes, and all
            // listeners of the web proxy look alike.
            (443, Some(_), Some(nic)) => breaches.error(
                &here,
                &cites,
                format!("TURN shares port 443 with the web proxy, but does not listen on {nic}"),
                format!("add {nic} to turn's `listen`, or take it out of the proxy's"),
            ),
            _ => {}
        }
    }
}

/// A quota that another one makes void is not what its writer thinks.
fn judge_quotas(breaches: &mut Breaches<'_>, turn: &Turn) {
    let quotas = turn.quotas;
    let at = |key: &str| format!("turn.quotas.{key}");
    let void = "lower it, or leave it out";
    if let Some(total) = quotas.total {
        for (key, part) in [("per-user", quotas.per_user), ("per-source", quotas.per_source)] {
            if let Some(part) = part.filter(|part| *part > total) {
                let message =
                    format!("{} is never reached: all have {} together", part.get(), total.get());
                breaches.warning(&at(key), &[&at("total")], message, void);
            }
        }
        if total.get() > turn.media_ports.count() {
            let message = format!(
                "{} is never reached: there are {} media ports",
                total.get(),
                turn.media_ports.count()
            );
            breaches.warning(&at("total"), &["turn.media-ports"], message, void);
        }
    }
    if let (Some(one), Some(all)) = (quotas.allocation_bandwidth, quotas.total_bandwidth)
        && one > all
    {
        let here = at("allocation-bandwidth");
        let message = format!("{one} is never reached: all have {all} together");
        breaches.warning(&here, &[&at("total-bandwidth")], message, void);
    }
}

/// Clients are sent to a server that takes them.
fn judge_drain(breaches: &mut Breaches<'_>, drain: &TurnDrain) {
    let site = breaches.site;
    for (index, name) in drain.boxes.iter().enumerate() {
        let here = format!("turn.drain.boxes.{index}");
        if !site.boxes.contains_key(name) {
            let known: Vec<&str> = site.boxes.keys().map(|name| name.as_str()).collect();
            let help = format!("the boxes are {}", known.join(", "));
            breaches.error(&here, &["boxes"], format!("the site has no box `{name}`"), help);
        }
        if drain.boxes.iter().take(index).any(|other| other == name) {
            breaches.error(&here, &[], format!("`{name}` is here twice"), "name it once");
        }
    }
    for (index, server) in drain.alternate_servers.iter().enumerate() {
        let here = format!("turn.drain.alternate-server.{index}");
        let same = |v6: bool| server.address.is_ipv6() == v6;
        if drain.alternate_servers.iter().take(index).any(|o| same(o.address.is_ipv6())) {
            let help = "name one IPv4 and at most one IPv6 server: a client is told one";
            breaches.error(&here, &[], "a second alternate server of one family", help);
        }
        let draining = site.boxes.values().filter(|machine| drain.covers(&machine.name));
        for machine in draining {
            let nics = [&machine.lan1, &machine.lan2];
            let own = nics.iter().any(|nic| {
                nic.static_nat.contains(&server.address)
                    || nic.addresses.iter().any(|own| own.address() == server.address)
            });
            if own {
                let message =
                    format!("{} is box `{}`, which drains itself", server.address, machine.name);
                let help = "name the box that takes its clients, or say under `boxes` which drain";
                breaches.error(&here, &["boxes", "turn.drain.boxes"], message, help);
            }
        }
    }
}

fn judge_users(breaches: &mut Breaches<'_>, turn: &Turn) {
    if turn.users.is_empty() && turn.rest_secrets.is_empty() {
        let help = "add `users: [{ name: ..., password: { secret: ... } }]` or `rest-secret: { secret: ... }`";
        breaches.error(
            "turn",
            &["turn.users", "turn.rest-secret"],
            "nobody can use the TURN relay",
            help,
        );
    }
    for (index, user) in turn.users.iter().enumerate() {
        if turn.users.iter().take(index).any(|other| other.name == user.name) {
            let here = format!("turn.users.{index}.name");
            breaches.error(
                &here,
                &[],
                format!("the user `{}` is here twice", user.name),
                "give each user a name of its own",
            );
        }
    }
}

fn judge_peers(breaches: &mut Breaches<'_>, turn: &Turn) {
    for (list, peers) in [("allow", &turn.allow), ("allow-outside", &turn.allow_outside)] {
        for (index, peer) in peers.iter().enumerate() {
            let here = format!("turn.peers.{list}.{index}");
            if let Some(why) = never(peer.net()) {
                let message = format!("{peer} holds {why}, which the relay never reaches");
                breaches.error(
                    &here,
                    &[],
                    message,
                    "name the media servers or networks, as narrow as they are",
                );
            } else if list == "allow" && wide(peer.net()) {
                let message = format!("every guest may reach all of {peer}");
                breaches.warning(&here, &[], message, "name the media servers alone");
            }
        }
    }
}

fn wide(net: IpNet) -> bool {
    match net {
        IpNet::V4(v4) => v4.prefix_len() < 16,
        IpNet::V6(v6) => v6.prefix_len() < 48,
    }
}

/// Addresses that no peer has.
fn never(net: IpNet) -> Option<&'static str> {
    const NEVER: [(&str, &str); 10] = [
        ("0.0.0.0/8", "\"this network\""),
        ("127.0.0.0/8", "loopback addresses"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast addresses"),
        ("240.0.0.0/4", "reserved addresses"),
        ("::/127", "loopback addresses"),
        ("::ffff:0:0/96", "IPv4-mapped addresses"),
        ("64:ff9b::/96", "translated IPv4 addresses"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast addresses"),
    ];
    let holds = |range: &str| range.parse().is_ok_and(|range: IpNet| overlap(range, net));
    NEVER.iter().find(|(range, _)| holds(range)).map(|(_, what)| *what)
}
