//! Address ranges that are no place to relay to: the IANA special-purpose address registries
//! (RFC 6890 and its updates), and IPv4 addresses hidden inside IPv6 ones.
//!
//! Two grades: what no configuration can open ([`is_never_a_peer`]), and what is only not
//! globally routable ([`is_global`]), which a site may open by naming it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// 64:ff9b::/96 (RFC 6052).
const NAT64: [u16; 6] = [0x64, 0xFF9B, 0, 0, 0, 0];

/// The IPv4 address that a transition form carries: mapped, compatible, 6to4 (RFC 3056), NAT64
/// (RFC 6052) or Teredo (RFC 4380); any other address is its own canonical form.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(ip) = address else {
        return address;
    };
    let segments = ip.segments();
    let pair = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0xFFFF, high, low] => pair(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => pair(high, low),
        // IPv4-translated, RFC 2765.
        [0, 0, 0, 0, 0xFFFF, 0, high, low] => pair(high, low),
        [0x64, 0xFF9B, 0, 0, 0, 0, high, low] => pair(high, low),
        [0x2002, high, low, ..] => pair(high, low),
        // The client's address, inverted.
        [0x2001, 0, _, _, _, _, high, low] => pair(!high, !low),
        _ => address,
    }
}

/// Whether no configuration makes this a peer: this host, this link, groups, reserved space and
/// every IPv6 form that carries an IPv4 address, except NAT64's with a global one.
pub(crate) fn is_never_a_peer(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => is_never_v4(ip),
        IpAddr::V6(ip) => match canonical(address) {
            embedded @ IpAddr::V4(_) => ip.segments()[..6] != NAT64 || !is_global(embedded),
            IpAddr::V6(_) => is_never_v6(ip),
        },
    }
}

fn is_never_v4(ip: Ipv4Addr) -> bool {
    match ip.octets() {
        // "This network", loopback, link-local, groups and reserved space with broadcast.
        [0 | 127 | 224..=255, ..] | [169, 254, ..] => true,
        // IETF protocol assignments, deprecated 6to4 relay anycast.
        [192, 0, 0, _] | [192, 88, 99, _] => true,
        _ => false,
    }
}

fn is_never_v6(ip: Ipv6Addr) -> bool {
    let first = ip.segments()[0];
    // ::/8 holds the unspecified and the loopback address and the old embeddings; NAT64's
    // prefixes are in 64::/16. 100::/8 holds the discard prefix. fe00::/7 has link-local,
    // site-local and groups.
    first < 0x64
        || (0x65..0x2000).contains(&first)
        || first == 0x5F00
        || (0xFE00..=0xFFFF).contains(&first)
}

/// Whether the registries call it globally reachable.
pub(crate) fn is_global(address: IpAddr) -> bool {
    if is_never_a_peer(address) {
        return false;
    }
    match address {
        IpAddr::V4(ip) => !matches!(
            ip.octets(),
            // Private use, shared (RFC 6598), documentation, benchmarking.
            [10, ..]
                | [172, 16..=31, ..]
                | [192, 168, ..]
                | [100, 64..=127, ..]
                | [192, 0, 2, _]
                | [198, 51, 100, _]
                | [203, 0, 113, _]
                | [198, 18..=19, ..]
        ),
        IpAddr::V6(ip) => match ip.segments() {
            // NAT64 with a global IPv4 address: the others are never peers.
            [0x64, 0xFF9B, 0, 0, 0, 0, ..] => true,
            // IETF protocol assignments, documentation.
            [0x2001, 0..=0x01FF | 0x0DB8, ..] | [0x3FFF, 0..=0x0FFF, ..] => false,
            [first, ..] => first & 0xE000 == 0x2000,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{canonical, is_global, is_never_a_peer};

    #[test]
    fn transition_forms_show_the_ipv4_address_inside() {
        for (form, inside) in [
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("::127.0.0.1", "127.0.0.1"),
            ("::ffff:0:127.0.0.1", "127.0.0.1"),
            ("64:ff9b::7f00:1", "127.0.0.1"),
            ("2002:7f00:1::", "127.0.0.1"),
            ("2001:0:4136:e378:8000:63bf:80ff:fffe", "127.0.0.1"),
            ("::1", "::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            let form = form.parse().unwrap();

            assert_eq!(canonical(form), inside.parse::<std::net::IpAddr>().unwrap(), "{form}");
        }
    }

    #[test]
    fn no_configuration_opens_these() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "192.0.0.8",
            "192.88.99.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:127.0.0.1",
            "::7f00:1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "64:ff9b::a00:1",
            "64:ff9b::7f00:1",
            "100::1",
            "5f00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
        ] {
            assert!(is_never_a_peer(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_site_may_name_these_although_they_are_not_global() {
        for address in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "198.18.0.1",
            "198.19.255.255",
            "fc00::1",
            "fd00::1",
            "2001:db8::1",
            "3fff::1",
            "64:ff9b:1::1",
        ] {
            let address = address.parse().unwrap();

            assert!(!is_never_a_peer(address), "{address}");
            assert!(!is_global(address), "{address}");
        }
    }

    #[test]
    fn the_neighbours_of_special_ranges_are_global() {
        for address in [
            "9.255.255.255",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "172.15.255.255",
            "172.32.0.1",
            "192.0.1.1",
            "192.0.3.1",
            "192.167.255.255",
            "192.169.0.1",
            "198.17.255.255",
            "198.20.0.1",
            "223.255.255.255",
            "2001:200::1",
            "2001:db7::1",
            "2001:db9::1",
            "2003::1",
            "2a00::1",
            "3ffe::1",
            "64:ff9b::808:808",
        ] {
            assert!(is_global(address.parse().unwrap()), "{address}");
        }
    }
}
