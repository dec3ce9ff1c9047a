//! What of a message's fields crosses the proxy.
//!
//! Hop-by-hop fields end here (RFC 9110 section 7.6.1). What a client says about itself in
//! forwarding fields is not believed: it is removed, in every spelling that a web framework maps
//! to the same variable, and the truth is put in its place (RFC 7239 and the older names).

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Fields that concern one connection only, and `Proxy`, which some servers take for a setting.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Removes what must not reach the upstream.
pub(super) fn clean_request(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| is_claim(name.as_str())).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

/// Removes what must not reach the guest.
pub(super) fn clean_response(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    // It would send browsers to a port or a name that only the upstream has.
    headers.remove(header::ALT_SVC);
}

/// Says who asks, for what name, and that it was over TLS.
pub(super) fn add_forwarded(headers: &mut HeaderMap, client: IpAddr, host: &HeaderValue) {
    let name = host.to_str().unwrap_or_default();
    let node = match client {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let quoted = if name.contains(':') { format!("\"{name}\"") } else { name.to_owned() };
    for (field, value) in [
        ("x-forwarded-for", HeaderValue::from_str(&client.to_string())),
        ("forwarded", HeaderValue::from_str(&format!("for={node};host={quoted};proto=https"))),
    ] {
        if let Ok(value) = value {
            headers.insert(field, value);
        }
    }
    headers.insert("x-forwarded-host", host.clone());
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Whether a field claims something about the client or the route that only we know.
fn is_claim(name: &str) -> bool {
    let name = name.replace('_', "-");
    name.starts_with("x-forwarded-")
        || matches!(
            name.as_str(),
            "forwarded" | "x-real-ip" | "x-client-ip" | "true-client-ip" | "proxy"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn claims_and_hop_by_hop_fields_end_here() {
        let mut request = headers(&[
            ("accept", "*/*"),
            ("connection", "close, X-Secret-Hop"),
            ("x-secret-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-forwarded-for", "192.0.2.66"),
            ("x_forwarded_for", "192.0.2.66"),
            ("x-forwarded-anything", "1"),
            ("forwarded", "for=192.0.2.66"),
            ("x-real-ip", "192.0.2.66"),
            ("origin", "https://guest.example.org"),
            ("cookie", "a=b"),
        ]);

        clean_request(&mut request);

        let mut left: Vec<&str> = request.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "cookie", "origin"]);
    }

    #[test]
    fn the_upstream_learns_the_truth() {
        let mut request = HeaderMap::new();
        let host = HeaderValue::from_static("guest.example.org:8443");

        add_forwarded(&mut request, "2001:db8::7".parse().unwrap(), &host);

        assert_eq!(request["x-forwarded-for"], "2001:db8::7");
        assert_eq!(request["x-forwarded-proto"], "https");
        assert_eq!(request["x-forwarded-host"], "guest.example.org:8443");
        assert_eq!(
            request["forwarded"],
            "for=\"[2001:db8::7]\";host=\"guest.example.org:8443\";proto=https"
        );
    }
}
