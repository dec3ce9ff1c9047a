//! From the plan's words to the state machine's.

use std::net::SocketAddr;

use turn::{Config, ConfigError, Drain, Quotas, Settings};

use crate::plan::{Face, RelaySlice, Transport};

/// The configuration that a slice asks for.
///
/// # Errors
///
/// Returns what is wrong with the slice; the planner should have refused the site.
pub(super) fn config(slice: &RelaySlice) -> Result<Config, ConfigError> {
    let (first, last) = slice.media_ports;
    let users = slice.users.iter().map(|user| (user.name.clone(), user.password.clone()));
    Config::new(Settings {
        realm: slice.realm.clone(),
        users: users.collect(),
        rest_secrets: slice.rest_secrets.iter().map(|secret| secret.0.clone()).collect(),
        inside_listeners: slice.inside_addresses.clone(),
        media_ports: Some(first..=last),
        outside: slice.outside.iter().map(face).collect(),
        inside: slice.inside.iter().map(face).collect(),
        inside_clients_are_told_inside: slice.inside_clients_are_told_lan1,
        inside_routes: slice.inside_routes.clone(),
        outside_routes: slice.outside_routes.clone(),
        allow: slice.allow.clone(),
        allow_outside: slice.allow_outside.clone(),
        own_addresses: slice.own_addresses.clone(),
        quotas: Quotas {
            total: slice.quotas.total,
            per_user: slice.quotas.per_user,
            per_source: slice.quotas.per_source,
            per_allocation: slice.quotas.per_allocation,
            allocation_bytes_per_second: slice.quotas.allocation_bytes_per_second,
            total_bytes_per_second: slice.quotas.total_bytes_per_second,
        },
        tcp_relay: slice.tcp_relay,
        mobility: slice.mobility,
        drain: slice.drain.as_ref().map(|drain| Drain { alternate: drain.alternate.clone() }),
        ..Settings::default()
    })
}

/// Where the slice wants UDP clients served.
pub(super) fn udp_listeners(slice: &RelaySlice) -> Vec<SocketAddr> {
    let udp = slice.listeners.iter().filter(|listener| listener.transport == Transport::Udp);
    udp.map(|listener| listener.address).collect()
}

/// Where the slice wants TCP clients served.
pub(super) fn tcp_listeners(slice: &RelaySlice) -> Vec<SocketAddr> {
    let tcp = slice.listeners.iter().filter(|listener| listener.transport == Transport::Tcp);
    tcp.map(|listener| listener.address).collect()
}

fn face(face: &Face) -> turn::Face {
    turn::Face { local: face.local, told: face.told }
}
