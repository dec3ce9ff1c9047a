//! What the site listens on.

use crate::site::boxes::InterfaceName;

use super::Breaches;

/// A port that something of the site listens on.
pub(super) struct Taken {
    pub(super) port: u16,
    pub(super) nics: Vec<InterfaceName>,
    pub(super) whose: &'static str,
    pub(super) path: &'static str,
}

/// Every port that the site listens on.
pub(super) fn taken(breaches: &Breaches<'_>) -> Vec<Taken> {
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

/// A list of NICs names each once.
pub(super) fn twice(breaches: &mut Breaches<'_>, path: &str, listen: &[InterfaceName]) {
    for (index, name) in listen.iter().enumerate() {
        if listen.iter().take(index).any(|other| other == name) {
            let here = format!("{path}.{index}");
            breaches.error(&here, &[], format!("{name} is here twice"), "name each NIC once");
        }
    }
}
