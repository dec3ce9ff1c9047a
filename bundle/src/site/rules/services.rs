//! Administration, TURN relay and web proxy: ports that collide, peers that must not be reached,
//! names that lead nowhere.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::site::boxes::{InterfaceName, SiteBox};
use crate::site::services::{Affinity, KeySource, Turn, UpstreamHost};
use crate::site::subnet::overlap;

use super::{Breaches, at};

/// A port that something of the site listens on.
struct Taken {
    port: u16,
    nics: Vec<InterfaceName>,
    whose: &'static str,
    path: &'static str,
}

fn taken(breaches: &Breaches<'_>) -> Vec<Taken> {
    let site = breaches.site;
    let mut taken = Vec::new();
    if let Some(proxy) = &site.proxy {
        let nics = proxy.listen.clone();
        taken.push(Taken {
            port: 443,
            nics: nics.clone(),
            whose: "the web proxy's",
            path: "proxy",
        });
        if proxy.redirect_http {
            taken.push(Taken { port: 80, nics, whose: "the web proxy's redirect", path: "proxy" });
        }
    }
    if let Some(turn) = &site.turn {
        let mut take = |port, whose, path| {
            taken.push(Taken { port, nics: turn.listen.clone(), whose, path });
        };
        take(turn.port.get(), "TURN's", "turn.port");
        for port in &turn.tls_ports {
            take(port.get(), "TURN's over TLS", "turn.tls-ports");
        }
        if turn.udp_443 {
            take(443, "TURN's over UDP", "turn.udp-443");
        }
    }
    taken
}

/// Judges the administration page of a box.
pub(super) fn judge_admin(breaches: &mut Breaches<'_>, machine: &SiteBox) {
    let admin = &machine.admin;
    let here = at(machine, "admin.port");
    let interface = at(machine, "admin.interface");
    if admin.interface == InterfaceName::Lan2 {
        let help = "write `interface: lan1`; the outside never reaches the administration";
        breaches.error(
            &interface,
            &[],
            "the administration page would be open to the Internet",
            help,
        );
    }
    let taken = taken(breaches);
    let collides =
        |taken: &&Taken| taken.port == admin.port.get() && taken.nics.contains(&admin.interface);
    if let Some(other) = taken.iter().find(collides) {
        let message = format!("port {} on {} is {}", admin.port, admin.interface, other.whose);
        breaches.error(
            &here,
            &[&interface, other.path],
            message,
            "choose a free port for the administration, such as 445",
        );
    }
    if let Some(turn) = &breaches.site.turn {
        if turn.media_ports.contains(admin.port.get()) {
            let message =
                format!("port {} lies among the media ports {}", admin.port, turn.media_ports);
            breaches.error(
                &here,
                &["turn.media-ports"],
                message,
                "choose a port outside of them, such as 445",
            );
        }
        for (index, user) in turn.users.iter().enumerate() {
            if user.name == admin.user {
                let path = at(machine, "admin.user");
                let message = format!("`{}` is a TURN user too", admin.user);
                breaches.error(
                    &path,
                    &[&format!("turn.users.{index}")],
                    message,
                    "give the administrator a name that no conference server knows",
                );
            }
        }
    }
}

/// Judges the TURN relay against the addresses of a box.
pub(super) fn judge_turn(breaches: &mut Breaches<'_>, machine: &SiteBox) {
    let Some(turn) = &breaches.site.turn else { return };
    let nics = at(machine, "interfaces");
    let own = |nic: InterfaceName| machine.interface(nic).addresses.iter().map(|a| a.address());
    let own: Vec<IpAddr> = own(InterfaceName::Lan1).chain(own(InterfaceName::Lan2)).collect();
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

/// Judges the web proxy against the addresses and names of a box.
pub(super) fn judge_proxy(breaches: &mut Breaches<'_>, machine: &SiteBox) {
    let Some(proxy) = &breaches.site.proxy else { return };
    let nics = at(machine, "interfaces");
    for (index, guest) in proxy.guests.iter().enumerate() {
        let here = |key: &str| format!("proxy.guests.{index}.upstream.{key}");
        let upstream = &guest.upstream;
        for (number, address) in upstream.addresses.iter().enumerate() {
            let here = here(&format!("addresses.{number}"));
            let nics_of_box = [&machine.lan1, &machine.lan2];
            let own = nics_of_box
                .iter()
                .any(|nic| nic.addresses.iter().any(|own| own.address() == *address));
            if own || machine.lan2.static_nat.contains(address) {
                let message = format!("the upstream {address} is the box itself");
                breaches.error(
                    &here,
                    &[&nics],
                    message,
                    "write the address of the web bridge inside",
                );
            } else if !machine.lan1.reaches(*address) {
                let message = format!("no route of lan1 leads to the upstream {address}");
                breaches.warning(
                    &here,
                    &[&nics],
                    message,
                    "add a route on lan1, or check the address",
                );
            }
        }
        let name = upstream.url.host();
        if upstream.addresses.is_empty()
            && !machine.dns.split.iter().any(|split| split.covers(name))
        {
            let message = format!(
                "nothing says where `{name}` is: no address is pinned and no split DNS covers it"
            );
            let help = format!(
                "add `addresses: [...]` here, or `{}` to dns.split of box `{}`",
                parent(name),
                machine.name
            );
            breaches.error(
                &here("url"),
                &[&at(machine, "dns.split"), &here("addresses")],
                message,
                help,
            );
        }
    }
}

fn parent(name: &str) -> &str {
    name.split_once('.').map_or(name, |(_, parent)| parent)
}

/// Judges what does not depend on a box.
pub(super) fn judge_site(breaches: &mut Breaches<'_>) {
    let site = breaches.site;
    if let Some(turn) = &site.turn {
        judge_turn_ports(breaches, turn);
        judge_turn_users(breaches, turn);
        judge_turn_peers(breaches, turn);
        twice(breaches, "turn.listen", &turn.listen);
    }
    if let Some(proxy) = &site.proxy {
        twice(breaches, "proxy.listen", &proxy.listen);
        judge_guests(breaches);
        if site.certificates.is_empty() {
            let help = "add `certificates:` with a chain and a key";
            breaches.error(
                "proxy",
                &["certificates"],
                "the web proxy has no certificate to show",
                help,
            );
        }
    }
    for certificate in &site.certificates {
        if certificate.key == KeySource::OnBox {
            let path = format!("certificates.{}.key", certificate.name);
            let help = "a bundle that comes before the box has made the key is refused there";
            breaches.warning(&path, &[], "the box must have made this key already", help);
        }
    }
}

fn twice(breaches: &mut Breaches<'_>, path: &str, listen: &[InterfaceName]) {
    for (index, name) in listen.iter().enumerate() {
        if listen.iter().take(index).any(|other| other == name) {
            let here = format!("{path}.{index}");
            breaches.error(&here, &[], format!("{name} is here twice"), "name each NIC once");
        }
    }
}

fn judge_turn_ports(breaches: &mut Breaches<'_>, turn: &Turn) {
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

fn judge_turn_users(breaches: &mut Breaches<'_>, turn: &Turn) {
    if turn.users.is_empty() && turn.rest_secret.is_none() {
        let help = "add `users: [{ name: ..., password: { secret: ... } }]` or `rest-secret: { secret: ... }`";
        breaches.error(
            "turn",
            &["turn.users", "turn.rest-secret"],
            "nobody can use the TURN relay",
            help,
        );
    }
    if turn.rest_secret.is_some() {
        let help = "declare `users` for now";
        breaches.warning(
            "turn.rest-secret",
            &[],
            "time-limited credentials are not served yet",
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

fn judge_turn_peers(breaches: &mut Breaches<'_>, turn: &Turn) {
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

fn judge_guests(breaches: &mut Breaches<'_>) {
    let Some(proxy) = &breaches.site.proxy else { return };
    for (index, guest) in proxy.guests.iter().enumerate() {
        let here = format!("proxy.guests.{index}.url");
        let host = guest.url.host();
        if proxy.guests.iter().take(index).any(|other| other.url.host() == host) {
            breaches.error(
                &here,
                &[],
                format!("{} is here twice", guest.url),
                "one guest URL leads to one upstream",
            );
        }
        if ["local", "internal", "localhost", "lan", "home.arpa"].iter().any(|private| {
            host.strip_suffix(private).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        }) {
            let message = format!(
                "guests outside cannot open `{host}`: public DNS and public CAs know no such name"
            );
            breaches.error(
                &here,
                &[],
                message,
                "write the public name here; the internal one belongs to `upstream`",
            );
        }
        let upstream = |key: &str| format!("proxy.guests.{index}.upstream.{key}");
        if guest.upstream.affinity == Affinity::Cookie {
            breaches.warning(
                &upstream("affinity"),
                &[],
                "affinity by cookie is not served yet",
                "write `affinity: source` for now",
            );
        }
        if guest.upstream.host == UpstreamHost::Upstream {
            breaches.warning(
                &upstream("host"),
                &[],
                "`host: upstream` is not served yet",
                "the upstream sees the guest's Host for now",
            );
        }
        let addresses = &guest.upstream.addresses;
        for (number, address) in addresses.iter().enumerate() {
            if addresses.iter().take(number).any(|other| other == address) {
                let here = upstream(&format!("addresses.{number}"));
                breaches.error(&here, &[], format!("{address} is here twice"), "name it once");
            }
        }
    }
    let hsts = proxy.hsts.map(|hsts| hsts.as_secs());
    if hsts.is_some_and(|seconds| seconds < 86_400) {
        let help = "write a year, 365d, or `hsts: off`";
        breaches.warning("proxy.hsts", &[], "browsers forget HSTS within a day", help);
    }
}
