//! Kernel settings of a box: Linux's weak host model made strict, and room for the relay.
//!
//! NICs are named `@lan1` and `@lan2` as path components; `postern-net` puts the kernel's names in.

use bundle::site::{InterfaceName, Site, SiteBox};

/// Bytes that one socket may queue: 50 ms of 500 Mbit/s.
const SOCKET_BUFFER: u32 = 4 * 1024 * 1024;

/// Path relative to /proc/sys and value, sorted by path.
pub(super) fn sysctls(site: &Site, machine: &SiteBox) -> Vec<(String, String)> {
    let mut settings: Vec<(String, String)> = Vec::new();
    let mut set = |path: String, value: &str| settings.push((path, value.to_owned()));
    for (path, value) in [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
        // The kernel joins these two of `all` and of the NIC by OR.
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        // A connection that waits on a closing listener goes to the next one.
        ("net/ipv4/tcp_migrate_req", "1"),
    ] {
        set(path.to_owned(), value);
    }
    for nic in [InterfaceName::Lan1, InterfaceName::Lan2] {
        for (key, value) in [
            ("accept_redirects", "0"),
            ("accept_source_route", "0"),
            ("arp_announce", "2"),
            ("arp_ignore", "1"),
            ("promote_secondaries", "1"),
            ("rp_filter", "2"),
            ("send_redirects", "0"),
        ] {
            set(format!("net/ipv4/conf/@{nic}/{key}"), value);
        }
        let v6 = machine.interface(nic).addresses.iter().any(|own| own.address().is_ipv6());
        for (key, value) in [
            ("accept_ra", "0"),
            ("accept_redirects", "0"),
            ("autoconf", "0"),
            ("disable_ipv6", if v6 { "0" } else { "1" }),
        ] {
            set(format!("net/ipv6/conf/@{nic}/{key}"), value);
        }
    }
    if let Some(turn) = &site.turn {
        set("net/ipv4/ip_local_reserved_ports".to_owned(), &turn.media_ports.to_string());
        for direction in ["rmem_max", "wmem_max"] {
            set(format!("net/core/{direction}"), &SOCKET_BUFFER.to_string());
        }
    }
    settings.sort();
    settings
}
