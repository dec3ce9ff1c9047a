//! The words, numbers and texts of a site file as types that cannot hold a bad one.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use super::fault::Complaint;
use super::reader::FromScalar;

/// Declares a type that wraps a checked text.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $stand_in:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl $name {
            fn stand_in_text() -> Self {
                Self($stand_in.to_owned())
            }
        }
    };
}

text_type!(
    /// A name that the site gives to a thing: one label of a host name (RFC 1123 section 2.1), in
    /// lower case.
    Name,
    ""
);
text_type!(
    /// A domain or host name of one or more labels, in lower case, without a trailing dot.
    DomainName,
    ""
);
text_type!(
    /// The realm of TURN's credentials (RFC 8489 section 14.9), at most 127 characters.
    Realm,
    ""
);
text_type!(
    /// A user name, 1 to 64 printable ASCII characters without colon and space: HTTP Basic and
    /// time-limited TURN credentials use the colon.
    UserName,
    ""
);
text_type!(
    /// A path beside the site file, below its folder: `certs/vcse.pem`.
    FilePath,
    ""
);
text_type!(
    /// The path of an HTTP request, beginning with a slash.
    HttpPath,
    "/"
);
text_type!(
    /// A serial number as the machine's firmware gives it (SMBIOS type 1).
    SerialNumber,
    ""
);
text_type!(
    /// A machine's UUID in lower case (SMBIOS type 1).
    Uuid,
    ""
);
text_type!(
    /// A PCI path: domain, bus, device and function such as `0000:00:03.0`.
    PciPath,
    ""
);

/// Shortens foreign text for a message.
pub(crate) fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_domain(text: &str) -> bool {
    // A last label of digits alone would be an IPv4 address in disguise.
    text.len() <= 253
        && text.split('.').all(is_label)
        && text.rsplit('.').next().is_some_and(|last| !last.bytes().all(|b| b.is_ascii_digit()))
}

impl FromScalar for Name {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        if is_label(text) {
            return Ok(Self(text.to_owned()));
        }
        let help = "write 1 to 63 lower-case letters, digits and inner hyphens";
        Err(Complaint::new(format!("`{}` is not a name", short(text)), help))
    }

    fn stand_in() -> Self {
        Self::stand_in_text()
    }
}

impl FromScalar for DomainName {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if is_domain(&name) {
            return Ok(Self(name));
        }
        let help = "write a name such as example.org: labels of letters, digits and hyphens";
        Err(Complaint::new(format!("`{}` is not a domain name", short(text)), help))
    }

    fn stand_in() -> Self {
        Self::stand_in_text()
    }
}

impl FromScalar for Realm {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        if (1..=127).contains(&text.chars().count())
            && !text.chars().any(|c| c.is_control() || c == '"')
        {
            return Ok(Self(text.to_owned()));
        }
        let help = "write 1 to 127 characters without quotes, often a domain name";
        Err(Complaint::new(format!("`{}` is not a realm", short(text)), help))
    }

    fn stand_in() -> Self {
        Self::stand_in_text()
    }
}

impl FromScalar for UserName {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        if (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b':')
        {
            return Ok(Self(text.to_owned()));
        }
        let help = "write 1 to 64 ASCII letters, digits or signs, without space and colon";
        Err(Complaint::new(format!("`{}` is not a user name", short(text)), help))
    }

    fn stand_in() -> Self {
        Self::stand_in_text()
    }
}

impl FromScalar for FilePath {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let fine = (1..=255).contains(&text.len())
            && !text.chars().any(char::is_control)
            && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if fine {
            return Ok(Self(text.to_owned()));
        }
        if text.contains("-----BEGIN") {
            let help = "put the PEM text into a file beside the site file and write its path";
            return Err(Complaint::new("this is a certificate, not a path", help));
        }
        let help =
            "write a path below the site file's folder, such as certs/edge.pem, without `..`";
        Err(Complaint::new(
            format!("`{}` is not a path inside the site's folder", short(text)),
            help,
        ))
    }

    fn stand_in() -> Self {
        Self::stand_in_text()
    }
}

impl FromScalar for HttpPath {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let fine = text.starts_with('/')
            && text.len() <= 1024
            && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if fine {
            return Ok(Self(text.to_owned()));
        }
        let help = "write a path that begins with a slash, such as / or /status";
        Err(Complaint::new(format!("`{}` is not the path of a request", short(text)), help))
    }

    fn stand_in() -> Self {
        Self::stand_in_text()
    }
}

impl FromScalar for SerialNumber {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        if (1..=64).contains(&text.len())
            && text.bytes().all(|b| (0x20..0x7f).contains(&b))
            && text.trim() == text
        {
            return Ok(Self(text.to_owned()));
        }
        let help = "write it as the firmware shows it: 1 to 64 ASCII characters, in quotes";
        Err(Complaint::new(format!("`{}` is not a serial number", short(text)), help))
    }

    fn stand_in() -> Self {
        Self::stand_in_text()
    }
}

impl FromScalar for Uuid {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('-').collect();
        let fine = parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
            && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_hexdigit()));
        if fine {
            return Ok(Self(lower));
        }
        let help = "write 32 hex digits as 01234567-89ab-cdef-0123-456789abcdef";
        Err(Complaint::new(format!("`{}` is not a UUID", short(text)), help))
    }

    fn stand_in() -> Self {
        Self::stand_in_text()
    }
}

impl FromScalar for PciPath {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let lower = text.to_ascii_lowercase();
        let hex = |part: &str, digits: usize| {
            part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let fine = lower.rsplit_once('.').is_some_and(|(path, function)| {
            let parts: Vec<&str> = path.split(':').collect();
            matches!(parts[..], [a, b, c] if hex(a, 4) && hex(b, 2) && hex(c, 2))
                && matches!(function.as_bytes(), [b'0'..=b'7'])
        });
        if fine {
            return Ok(Self(lower));
        }
        let help = "write domain:bus:device.function, such as 0000:00:03.0 (lspci -D shows it)";
        Err(Complaint::new(format!("`{}` is not a PCI path", short(text)), help))
    }

    fn stand_in() -> Self {
        Self::stand_in_text()
    }
}

/// A unicast MAC address; displays in lower case with colons.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The six bytes.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromScalar for MacAddress {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let help = "write six pairs of hex digits, such as \"52:54:00:12:34:56\"";
        let complain = |why: &str| Complaint::new(format!("`{}` {why}", short(text)), help);
        let parts: Vec<&str> = text.split([':', '-']).collect();
        let mut octets = [0; 6];
        if parts.len() != 6 {
            return Err(complain("is not a MAC address"));
        }
        for (octet, part) in octets.iter_mut().zip(parts) {
            *octet = match part.len() {
                2 => u8::from_str_radix(part, 16).map_err(|_| complain("is not a MAC address"))?,
                _ => return Err(complain("is not a MAC address")),
            };
        }
        if octets == [0; 6] || octets[0] & 1 == 1 {
            return Err(complain("is not the address of one NIC"));
        }
        Ok(Self(octets))
    }

    fn stand_in() -> Self {
        Self([0; 6])
    }
}

/// The bundle's number, at least 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Serial(u64);

impl Serial {
    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl FromScalar for Serial {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        // JSON readers agree on whole numbers up to 2^53 - 1 only (RFC 8259 section 6).
        match whole(text) {
            Some(number @ 1..=9_007_199_254_740_991) => Ok(Self(number)),
            _ => {
                let help = "write a whole number from 1 on, greater than that of the last bundle";
                Err(Complaint::new(
                    format!("`{}` is not a serial number of a bundle", short(text)),
                    help,
                ))
            }
        }
    }

    fn stand_in() -> Self {
        Self(1)
    }
}

/// A whole number without sign or leading zero.
pub(crate) fn whole(text: &str) -> Option<u64> {
    let fine = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // 010 is eight to some readers and ten to others.
    (fine && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok())?
}

impl FromScalar for NonZeroU16 {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        whole(text).and_then(|n| u16::try_from(n).ok()).and_then(Self::new).ok_or_else(|| {
            Complaint::new(
                format!("`{}` is not a port", short(text)),
                "write a number from 1 to 65535",
            )
        })
    }

    fn stand_in() -> Self {
        Self::MAX
    }
}

impl FromScalar for bool {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(Complaint::new(
                format!("`{}` is neither true nor false", short(text)),
                "write true or false",
            )),
        }
    }

    fn stand_in() -> Self {
        false
    }
}

impl FromScalar for Duration {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let scale = match unit {
            "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            "d" => Some(86_400),
            _ => None,
        };
        let seconds = whole(number).zip(scale).and_then(|(n, scale)| n.checked_mul(scale));
        // A hundred years; nothing in a site file lasts longer.
        match seconds.filter(|seconds| *seconds <= 3_155_760_000) {
            Some(seconds) => Ok(Self::from_secs(seconds)),
            None => {
                let help = "write a whole number with its unit: 90s, 5m, 2h or 365d";
                Err(Complaint::new(format!("`{}` is not a duration", short(text)), help))
            }
        }
    }

    fn stand_in() -> Self {
        Self::from_secs(60)
    }
}

/// A range of ports, first and last included; never empty.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The first port, at least 1.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The last port, not below the first.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether a port lies inside.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether two ranges share a port.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// How many ports there are.
    #[must_use]
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromScalar for PortRange {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let help = "write the first and the last port, such as 24000-29999";
        let port =
            |part: &str| whole(part.trim()).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        let Some((first, last)) =
            text.split_once('-').and_then(|(first, last)| Some((port(first)?, port(last)?)))
        else {
            return Err(Complaint::new(format!("`{}` is not a range of ports", short(text)), help));
        };
        if first > last {
            let message = format!("the range `{}` is empty: it ends before it begins", short(text));
            return Err(Complaint::new(message, format!("write {last}-{first}")));
        }
        Ok(Self { first, last })
    }

    fn stand_in() -> Self {
        Self { first: 65_535, last: 65_535 }
    }
}

impl FromScalar for IpAddr {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let help = "write an address such as 192.0.2.10 or 2001:db8::10";
        let complain = |why: &str| Complaint::new(format!("`{}` {why}", short(text)), help);
        let Ok(address) = text.parse::<Self>() else {
            return Err(complain(match text.contains('/') {
                true => "is a subnet where one address is meant",
                false => "is not an IP address",
            }));
        };
        match usable(address) {
            Some(why) => Err(complain(why)),
            None => Ok(address),
        }
    }

    fn stand_in() -> Self {
        Self::V4(std::net::Ipv4Addr::UNSPECIFIED)
    }
}

/// Why an address cannot be one machine's on a network; `None` when it can.
pub(crate) fn usable(address: IpAddr) -> Option<&'static str> {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let first = matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240);
    if mapped {
        Some("is an IPv4 address in IPv6's clothes; write it as IPv4")
    } else if address.is_unspecified() || first {
        Some("is not an address that a machine can have")
    } else if address.is_loopback() {
        Some("is a loopback address")
    } else if address.is_multicast() {
        Some("is a multicast address")
    } else {
        None
    }
}
