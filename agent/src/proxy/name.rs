//! Host names as they come in Host, in an absolute target, in SNI and in certificates.
//!
//! Names are compared in lower case and without one trailing dot; a wildcard stands for exactly
//! one label (RFC 9525 section 6.3).

/// A host with an optional port, as in Host (RFC 9110 section 7.2).
#[derive(Clone, Copy, Debug)]
pub(super) struct Authority<'a> {
    /// As written, without the port.
    pub(super) host: &'a str,
    /// `None` when left out.
    pub(super) port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Reads `name`, `name:port`, `192.0.2.1:port` or `[2001:db8::1]:port`; `None` for anything
    /// else, user information included.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, rest) = match text.strip_prefix('[') {
            Some(inner) => {
                let end = inner.find(']')?;
                inner[..end].parse::<std::net::Ipv6Addr>().ok()?;
                text.split_at(end + 2)
            }
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if matches!(host, "" | ".")
            || host.contains("..")
            || !(host.starts_with('[') || host.bytes().all(name))
        {
            return None;
        }
        let port = match rest.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            None if rest.is_empty() => None,
            _ => return None,
        };
        Some(Self { host, port })
    }

    /// Whether both say the same, letter case aside.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.host.eq_ignore_ascii_case(other.host) && self.port == other.port
    }
}

/// Lower case, without the trailing dot.
pub(super) fn canonical(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether a certificate's name (already canonical, perhaps `*.example.org`) covers `host`
/// (canonical).
pub(super) fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => host
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && !rest.is_empty() && rest == parent),
        None => pattern == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_a_name_and_a_port() {
        let parse =
            |text: &str| Authority::parse(text.as_bytes()).map(|it| (it.host.to_owned(), it.port));
        assert_eq!(parse("example.org"), Some(("example.org".into(), None)));
        assert_eq!(parse("Example.org.:443"), Some(("Example.org.".into(), Some(443))));
        assert_eq!(parse("[2001:db8::1]:8443"), Some(("[2001:db8::1]".into(), Some(8443))));
        for bad in [
            "", ":443", "a b", "a@b", "a/b", "a:", "a:b", "a:1:2", "a:65536", "a:+1", "[::1",
            "[x]", "a,b", "a..b", "ä", "a\"b", ".", ".:443", "[::1]x",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_wildcard_is_one_label() {
        assert!(covers("*.example.org", "a.example.org"));
        assert!(covers("example.org", "example.org"));
        for host in ["example.org", "a.b.example.org", ".example.org", "aexample.org"] {
            assert!(!covers("*.example.org", host), "{host}");
        }
        assert_eq!(canonical("GUEST.example.org."), "guest.example.org");
    }
}
