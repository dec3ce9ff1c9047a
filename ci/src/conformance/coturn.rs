//! Debian's coturn with settings equal to ours, as far as it has them, and where it is known to
//! differ.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};

use super::setting::{
    ALLOWED, ALTERNATE, FRUGAL_PER_USER, LAN1, LAN1_V6, LAN2, LAN2_V6, NAT, REALM, REST_SECRETS,
    Server, USERS,
};
use crate::lab::host::{Daemon, Host};

/// The version that [`known`] is about.
pub(super) const KNOWN_VERSION: &str = "4.6.1";

/// One case per line: its name, then why coturn does not hold it.
const KNOWN: &str = include_str!("coturn.txt");

/// The cases that coturn is known not to hold, and why.
pub(super) fn known() -> BTreeMap<&'static str, &'static str> {
    let lines = KNOWN.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| line.split_once(' ').unwrap_or((line, ""))).collect()
}

/// The version of the program.
pub(super) fn version() -> Result<String> {
    let output = Command::new("turnserver").arg("--version").output();
    let output = output.context("cannot run turnserver of the package coturn")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Starts one server.
pub(super) fn start(edge: &Host, server: Server) -> Result<Daemon> {
    let folder = edge.directory().join(format!("{server:?}"));
    std::fs::create_dir_all(&folder)?;
    let (first, last) = server.media_ports();
    let mut words: Vec<String> = vec![
        "-n".to_owned(),
        "--no-cli".to_owned(),
        "--no-tls".to_owned(),
        "--no-dtls".to_owned(),
        "--no-rfc5780".to_owned(),
        "--no-software-attribute".to_owned(),
        "--no-multicast-peers".to_owned(),
        "--lt-cred-mech".to_owned(),
        "--simple-log".to_owned(),
        "--log-file=stdout".to_owned(),
        "--relay-threads=2".to_owned(),
        format!("--userdb={}/turndb", folder.display()),
        format!("--pidfile={}/pid", folder.display()),
        format!("--realm={REALM}"),
        format!("--listening-port={}", server.port()),
        format!("--min-port={first}"),
        format!("--max-port={last}"),
        format!("--relay-ip={LAN2}"),
        format!("--external-ip={NAT}/{LAN2}"),
        "--denied-peer-ip=0.0.0.0-255.255.255.255".to_owned(),
        "--denied-peer-ip=::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".to_owned(),
        // Its own relays; it tells 403 otherwise.
        format!("--allowed-peer-ip={NAT}"),
        format!("--allowed-peer-ip={LAN2}"),
        format!("--allowed-peer-ip={LAN2_V6}"),
        "--allowed-peer-ip=172.16.85.181".to_owned(),
    ];
    if server != Server::OneFamily {
        words.push(format!("--relay-ip={LAN2_V6}"));
    }
    for ip in [LAN1, LAN2, LAN1_V6, LAN2_V6] {
        words.push(format!("--listening-ip={ip}"));
    }
    for network in ALLOWED {
        let ip = network.split('/').next().unwrap_or(network);
        words.push(format!("--allowed-peer-ip={ip}"));
    }
    if server == Server::Rest {
        words.push("--use-auth-secret".to_owned());
        words.extend(REST_SECRETS.map(|secret| format!("--static-auth-secret={secret}")));
    } else {
        words.extend(USERS.map(|(name, password)| format!("--user={name}:{password}")));
    }
    match server {
        Server::Frugal => {
            words.push(format!("--user-quota={FRUGAL_PER_USER}"));
            words.push("--no-tcp-relay".to_owned());
        }
        Server::Draining => words.push(format!("--alternate-server={ALTERNATE}")),
        _ => {}
    }
    if server != Server::Frugal {
        words.push("--mobility".to_owned());
    }
    edge.daemon(&format!("coturn-{server:?}"), edge.command("turnserver").args(words))
}
