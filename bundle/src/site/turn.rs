//! The TURN relay: where it listens, who may use it, whom it reaches and how much it gives.

use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

use super::boxes::{InterfaceName, read_secret, secret_name};
use super::fault::Complaint;
use super::reader::{FromScalar, Reader, Table, unknown};
use super::subnet::Subnet;
use super::tree::{Node, Value};
use super::value::{Name, PortRange, Realm, UserName, short, usable, whole};

/// The TURN relay.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Turn {
    /// Realm of the long-term credentials.
    pub realm: Realm,
    /// NICs that it listens on.
    pub listen: Vec<InterfaceName>,
    /// Port for UDP and TCP.
    pub port: NonZeroU16,
    /// Ports for TLS; 443 is shared with the web proxy where that listens too.
    pub tls_ports: Vec<NonZeroU16>,
    /// Whether UDP 443 is served too.
    pub udp_443: bool,
    /// Ports of allocations.
    pub media_ports: PortRange,
    /// Long-term users.
    pub users: Vec<TurnUser>,
    /// Names of the secrets of time-limited credentials, at most four; each of them counts.
    pub rest_secrets: Vec<Name>,
    /// Declared media servers.
    pub allow: Vec<Subnet>,
    /// Further outside peers that clients on an inside listener may reach.
    pub allow_outside: Vec<Subnet>,
    /// What inside clients are told as their relayed address.
    pub inside_clients_are_told: Told,
    /// Whether TCP allocations are made (RFC 6062).
    pub tcp_relay: bool,
    /// Whether an allocation may follow its client to another address (RFC 8016).
    pub mobility: bool,
    /// How much of everything; what is `None` has the relay's default.
    pub quotas: TurnQuotas,
    /// Which boxes make no new allocation, and where they send clients instead.
    pub drain: Option<TurnDrain>,
}

/// A TURN user.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct TurnUser {
    /// User name.
    pub name: UserName,
    /// Name of the secret that holds the password.
    pub password: Name,
}

/// Which face of an allocation inside clients are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// The static NAT address, as everybody.
    Nat,
    /// LAN1's address.
    Lan1,
}

/// How much clients may have at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct TurnQuotas {
    /// Allocations in all.
    pub total: Option<Quota>,
    /// Allocations of one user name.
    pub per_user: Option<Quota>,
    /// Allocations of one IPv4 address or IPv6 /64.
    pub per_source: Option<Quota>,
    /// Permissions, and channels, of one allocation.
    pub per_allocation: Option<Quota>,
    /// What one allocation relays, each way.
    pub allocation_bandwidth: Option<Bandwidth>,
    /// What all allocations together relay, each way.
    pub total_bandwidth: Option<Bandwidth>,
}

/// How many there may be, 1 to 65536.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct Quota(NonZeroU32);

impl Quota {
    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// Bits per second, 64 kbit/s to 1 Tbit/s; displays with the largest unit that leaves it whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct Bandwidth(u64);

impl Bandwidth {
    /// Octets per second.
    #[must_use]
    pub fn bytes_per_second(self) -> u64 {
        self.0 / 8
    }
}

/// Units of [`Bandwidth`] with their bits per second, largest first.
const UNITS: [(&str, u64); 3] =
    [("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1_000)];

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, scale)| self.0.is_multiple_of(*scale)) {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{}bit/s", self.0),
        }
    }
}

/// Boxes that make no new allocation; what is there goes on until its client ends it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct TurnDrain {
    /// Which boxes; empty: every one.
    pub boxes: Vec<Name>,
    /// Where clients are sent, at most one for each address family; empty: nowhere.
    pub alternate_servers: Vec<AlternateServer>,
}

impl TurnDrain {
    /// Whether it is about that box.
    #[must_use]
    pub fn covers(&self, name: &Name) -> bool {
        self.boxes.is_empty() || self.boxes.contains(name)
    }
}

/// Another TURN server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct AlternateServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None`: the same as here.
    pub port: Option<NonZeroU16>,
}

impl FromScalar for Told {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        match text {
            "nat" => Ok(Self::Nat),
            "lan1" => Ok(Self::Lan1),
            _ => Err(unknown("face", text, ["nat", "lan1"].into_iter())),
        }
    }

    fn stand_in() -> Self {
        Self::Nat
    }
}

impl FromScalar for Quota {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let number = whole(text).filter(|number| *number <= 65_536);
        let number = number.and_then(|number| u32::try_from(number).ok());
        number.and_then(NonZeroU32::new).map(Self).ok_or_else(|| {
            let help = "write a number from 1 to 65536, or leave the key out for the default";
            Complaint::new(format!("`{}` is not a quota", short(text)), help)
        })
    }

    fn stand_in() -> Self {
        Self(NonZeroU32::MIN)
    }
}

impl FromScalar for Bandwidth {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim_start());
        let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
        let complain =
            |why: &str, help: String| Err(Complaint::new(format!("`{}` {why}", short(text)), help));
        match (whole(number), scale) {
            (Some(number), Some(scale)) => match number.checked_mul(scale) {
                Some(bits @ 64_000..=1_000_000_000_000) => Ok(Self(bits)),
                _ => complain(
                    "is too little or too much for a relay",
                    "write a bandwidth from 64kbit/s to 1000Gbit/s".to_owned(),
                ),
            },
            (Some(number), None) => complain("is not a bandwidth", meant(number, unit)),
            (None, _) => complain("is not a bandwidth", USUAL.to_owned()),
        }
    }

    fn stand_in() -> Self {
        Self(1_000_000_000)
    }
}

const USUAL: &str =
    "write bits per second as a whole number with its unit: 500kbit/s, 20Mbit/s, 1Gbit/s";

/// What was meant by another spelling of a unit.
fn meant(number: u64, unit: &str) -> String {
    let (bits, known) = match unit {
        "kB/s" | "KB/s" => (8, "kbit/s"),
        "MB/s" => (8, "Mbit/s"),
        "GB/s" => (8, "Gbit/s"),
        _ => match unit.to_ascii_lowercase().as_str() {
            "k" | "kbit" | "kbit/s" | "kbps" | "kb/s" => (1, "kbit/s"),
            "m" | "mbit" | "mbit/s" | "mbps" | "mb/s" => (1, "Mbit/s"),
            "g" | "gbit" | "gbit/s" | "gbps" | "gb/s" => (1, "Gbit/s"),
            _ => return USUAL.to_owned(),
        },
    };
    format!("write {}{known}; the units are kbit/s, Mbit/s and Gbit/s", number.saturating_mul(bits))
}

impl FromScalar for AlternateServer {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let help = "write an address or address and port, such as 192.0.2.20, 192.0.2.20:3478 or [2001:db8::20]:3478";
        let complain = |why: &str| Complaint::new(format!("`{}` {why}", short(text)), help);
        let (address, port) = match (text.parse::<IpAddr>(), text.parse::<std::net::SocketAddr>()) {
            (Ok(address), _) => (address, None),
            (_, Ok(both)) => match NonZeroU16::new(both.port()) {
                Some(port) => (both.ip(), Some(port)),
                None => return Err(complain("names port 0")),
            },
            _ => return Err(complain("is not the address of a TURN server")),
        };
        match usable(address) {
            Some(why) => Err(complain(why)),
            None => Ok(Self { address, port }),
        }
    }

    fn stand_in() -> Self {
        Self { address: IpAddr::stand_in(), port: None }
    }
}

/// TURN's port (RFC 8656 section 3.1 and RFC 8489 section 8.1).
const TURN_PORT: NonZeroU16 = NonZeroU16::new(3478).expect("3478 is not zero");

/// How many secrets of time-limited credentials there may be: one in use, one to come, and some
/// grace; each of them is tried on every first request.
const MOST_REST_SECRETS: usize = 4;

/// Reads `turn`.
pub(crate) fn read_turn(reader: &mut Reader, path: &str, node: &Node) -> Turn {
    let known = [
        "realm",
        "listen",
        "port",
        "tls-ports",
        "udp-443",
        "media-ports",
        "users",
        "rest-secret",
        "peers",
        "inside-clients-are-told",
        "tcp-relay",
        "mobility",
        "quotas",
        "drain",
    ];
    let table = reader.table(path, node, &known);
    let (allow, allow_outside) = match table.get("peers") {
        Some(node) => {
            let peers = reader.table(&table.at("peers"), node, &["allow", "allow-outside"]);
            (reader.may_scalars(&peers, "allow"), reader.may_scalars(&peers, "allow-outside"))
        }
        None => (Vec::new(), Vec::new()),
    };
    Turn {
        realm: reader.need_scalar(&table, "realm"),
        listen: reader.need_scalars(&table, "listen"),
        port: reader.may_scalar(&table, "port").unwrap_or(TURN_PORT),
        tls_ports: reader.may_scalars(&table, "tls-ports"),
        udp_443: reader.may_scalar(&table, "udp-443").unwrap_or(false),
        media_ports: reader.need_scalar(&table, "media-ports"),
        users: read_users(reader, &table),
        rest_secrets: read_rest_secrets(reader, &table),
        allow,
        allow_outside,
        inside_clients_are_told: reader
            .may_scalar(&table, "inside-clients-are-told")
            .unwrap_or(Told::Nat),
        tcp_relay: reader.may_scalar(&table, "tcp-relay").unwrap_or(false),
        mobility: reader.may_scalar(&table, "mobility").unwrap_or(false),
        quotas: read_quotas(reader, &table),
        drain: read_drain(reader, &table),
    }
}

fn read_users(reader: &mut Reader, table: &Table<'_>) -> Vec<TurnUser> {
    let Some(node) = table.get("users") else { return Vec::new() };
    reader.not_empty(table, "users", node);
    reader.list(&table.at("users"), node, |reader, path, node| {
        let table = reader.table(path, node, &["name", "password"]);
        TurnUser {
            name: reader.need_scalar(&table, "name"),
            password: read_secret(reader, &table, "password"),
        }
    })
}

fn read_rest_secrets(reader: &mut Reader, table: &Table<'_>) -> Vec<Name> {
    const KEY: &str = "rest-secret";
    let Some(node) = table.get(KEY) else { return Vec::new() };
    reader.not_empty(table, KEY, node);
    let secrets = reader.list_or_one(&table.at(KEY), node, secret_name);
    if secrets.len() > MOST_REST_SECRETS {
        let message = format!("{} secrets of time-limited credentials", secrets.len());
        let help = format!("keep the one in use and the one to come; {MOST_REST_SECRETS} at most");
        reader.wrong(&table.at(KEY), Complaint::new(message, help));
    }
    secrets
}

fn read_quotas(reader: &mut Reader, parent: &Table<'_>) -> TurnQuotas {
    let Some(node) = parent.get("quotas") else { return TurnQuotas::default() };
    let known = [
        "total",
        "per-user",
        "per-source",
        "per-allocation",
        "allocation-bandwidth",
        "total-bandwidth",
    ];
    let table = reader.table(&parent.at("quotas"), node, &known);
    TurnQuotas {
        total: reader.may_scalar(&table, "total"),
        per_user: reader.may_scalar(&table, "per-user"),
        per_source: reader.may_scalar(&table, "per-source"),
        per_allocation: reader.may_scalar(&table, "per-allocation"),
        allocation_bandwidth: reader.may_scalar(&table, "allocation-bandwidth"),
        total_bandwidth: reader.may_scalar(&table, "total-bandwidth"),
    }
}

/// Reads `true`, `false` or a table.
fn read_drain(reader: &mut Reader, parent: &Table<'_>) -> Option<TurnDrain> {
    let node = parent.get("drain")?;
    let path = parent.at("drain");
    let mut drain = TurnDrain { boxes: Vec::new(), alternate_servers: Vec::new() };
    match &node.value {
        Value::Scalar { text, .. } if text == "false" => return None,
        Value::Scalar { text, .. } if text == "true" => return Some(drain),
        Value::Map(_) => {}
        Value::Scalar { text, .. } => {
            let message = format!("`{}` does not say how to drain", short(text));
            reader.wrong(&path, Complaint::new(message, HOW_TO_DRAIN));
            return None;
        }
        other => {
            let message = format!("{} does not say how to drain", other.describe());
            reader.wrong(&path, Complaint::new(message, HOW_TO_DRAIN));
            return None;
        }
    }
    let table = reader.table(&path, node, &["boxes", "alternate-server"]);
    if let Some(node) = table.get("boxes") {
        reader.not_empty(&table, "boxes", node);
        drain.boxes = reader.may_scalars(&table, "boxes");
    }
    drain.alternate_servers = reader.may_scalars(&table, "alternate-server");
    Some(drain)
}

const HOW_TO_DRAIN: &str = "write true, false, or { boxes: [NAME], alternate-server: [ADDRESS] }; both keys may be left out";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_is_bits_with_a_decimal_unit() {
        for (text, bytes, shown) in [
            ("64kbit/s", 8_000, "64kbit/s"),
            ("20Mbit/s", 2_500_000, "20Mbit/s"),
            ("20 Mbit/s", 2_500_000, "20Mbit/s"),
            ("2500Mbit/s", 312_500_000, "2500Mbit/s"),
            ("3000kbit/s", 375_000, "3Mbit/s"),
            ("1000Gbit/s", 125_000_000_000, "1000Gbit/s"),
        ] {
            let bandwidth = Bandwidth::from_scalar(text).unwrap();

            assert_eq!(
                (bandwidth.bytes_per_second(), bandwidth.to_string().as_str()),
                (bytes, shown)
            );
        }
    }

    #[test]
    fn another_spelling_of_a_bandwidth_is_refused_with_the_right_one() {
        for (text, help) in [
            ("20Mbps", "write 20Mbit/s;"),
            ("20mbit/s", "write 20Mbit/s;"),
            ("20MB/s", "write 160Mbit/s;"),
            ("1g", "write 1Gbit/s;"),
            ("20", "20Mbit/s, 1Gbit/s"),
            ("fast", "20Mbit/s, 1Gbit/s"),
            ("1.5Mbit/s", "20Mbit/s, 1Gbit/s"),
            ("63kbit/s", "from 64kbit/s"),
            ("1001Gbit/s", "from 64kbit/s"),
            ("99999999999999999999Mbit/s", "20Mbit/s, 1Gbit/s"),
        ] {
            let complaint = Bandwidth::from_scalar(text).unwrap_err();

            assert!(complaint.help.contains(help), "{text}: {complaint:?}");
        }
    }

    #[test]
    fn an_alternate_server_is_an_address_with_or_without_a_port() {
        for (text, address, port) in [
            ("192.0.2.20", "192.0.2.20", None),
            ("192.0.2.20:3479", "192.0.2.20", NonZeroU16::new(3479)),
            ("2001:db8::20", "2001:db8::20", None),
            ("[2001:db8::20]:443", "2001:db8::20", NonZeroU16::new(443)),
        ] {
            let server = AlternateServer::from_scalar(text).unwrap();

            assert_eq!(server, AlternateServer { address: address.parse().unwrap(), port });
        }
        for text in ["turn.example.org", "192.0.2.20:0", "127.0.0.1", "192.0.2.0/24", ""] {
            assert!(AlternateServer::from_scalar(text).is_err(), "{text}");
        }
    }
}
