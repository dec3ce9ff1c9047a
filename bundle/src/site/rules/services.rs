//! Administration and web proxy: ports that collide, names that lead nowhere.

use crate::site::boxes::{InterfaceName, SiteBox};
use crate::site::services::{Affinity, KeySource, UpstreamHost};

use super::ports::{Taken, taken, twice};
use super::{Breaches, at};

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
