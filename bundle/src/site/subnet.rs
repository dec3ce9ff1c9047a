//! Addresses with a prefix length, subnets and the URLs of a site file.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::fault::Complaint;
use super::reader::FromScalar;
use super::value::{DomainName, short, usable};

/// An address that a NIC carries, with the prefix length of its subnet.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct InterfaceAddress(IpNet);

impl InterfaceAddress {
    /// The address alone.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.0.addr()
    }

    /// Its subnet.
    #[must_use]
    pub fn subnet(self) -> IpNet {
        self.0.trunc()
    }

    /// Address and prefix length together.
    #[must_use]
    pub fn with_prefix(self) -> IpNet {
        self.0
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromScalar for InterfaceAddress {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let complain =
            |why: &str, help: &str| Err(Complaint::new(format!("`{}` {why}", short(text)), help));
        let help = "write address and prefix length, such as 192.0.2.10/24";
        let Ok(net) = text.parse::<IpNet>() else {
            if text.parse::<IpAddr>().is_ok() {
                return complain(
                    "has no prefix length",
                    &format!("write {}/24, or whatever prefix its subnet has", short(text)),
                );
            }
            return complain("is not an address with a prefix length", help);
        };
        if let Some(why) = usable(net.addr()) {
            return complain(why, help);
        }
        // Subnets of one and two addresses (RFC 3021) have neither network nor broadcast address.
        if let IpNet::V4(v4) = net
            && v4.prefix_len() < 31
        {
            if v4.addr() == v4.network() {
                return complain(
                    "is the network's own address",
                    "write the address of the NIC in it",
                );
            }
            if v4.addr() == v4.broadcast() {
                return complain(
                    "is the broadcast address",
                    "write the address of the NIC in the subnet",
                );
            }
        }
        if net.prefix_len() == 0 {
            return complain("would make the whole Internet one link", help);
        }
        Ok(Self(net))
    }

    fn stand_in() -> Self {
        Self(IpNet::from(IpAddr::stand_in()))
    }
}

/// A subnet: no bit behind the prefix is set.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Subnet(IpNet);

impl Subnet {
    /// The subnet.
    #[must_use]
    pub fn net(self) -> IpNet {
        self.0
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromScalar for Subnet {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let complain =
            |why: &str, help: String| Err(Complaint::new(format!("`{}` {why}", short(text)), help));
        let Ok(net) = text.parse::<IpNet>() else {
            if let Ok(address) = text.parse::<IpAddr>() {
                return complain(
                    "has no prefix length",
                    format!("write {} for this one address", IpNet::from(address)),
                );
            }
            return complain("is not a subnet", "write a subnet such as 192.0.2.0/24".to_owned());
        };
        if net.addr() != net.network() {
            return complain("has bits behind its prefix", format!("write {}", net.trunc()));
        }
        Ok(Self(net))
    }

    fn stand_in() -> Self {
        Self(IpNet::from(IpAddr::stand_in()))
    }
}

/// Whether two subnets share an address.
pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// An `https://` URL of a host and port without user, path, query and fragment.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct HttpsUrl {
    host: DomainName,
    port: u16,
}

impl HttpsUrl {
    /// The host, in lower case.
    #[must_use]
    pub fn host(&self) -> &DomainName {
        &self.host
    }

    /// The port; 443 when the URL names none.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            443 => write!(f, "https://{}", self.host),
            port => write!(f, "https://{}:{port}", self.host),
        }
    }
}

impl FromScalar for HttpsUrl {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        let example = "write a URL such as https://meet.example.org";
        let complain =
            |why: &str, help: &str| Err(Complaint::new(format!("`{}` {why}", short(text)), help));
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => return complain("is not a URL: it has no https://", example),
        };
        if scheme != "https" {
            return complain("is not an https URL", "write https://; port 80 only redirects");
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return complain("has a user in it", example);
        }
        if !matches!(path, "" | "/") {
            let help =
                format!("write https://{authority}; every path below it is passed on as it is");
            return complain("has a path", &help);
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') => (host, Some(port)),
            _ => (authority, None),
        };
        let port = match port.map(|port| port.parse::<u16>().ok().filter(|port| *port > 0)) {
            None => 443,
            Some(Some(port)) => port,
            Some(None) => {
                return complain("has a bad port", "write a port from 1 to 65535, or none for 443");
            }
        };
        match DomainName::from_scalar(host) {
            Ok(host) => Ok(Self { host, port }),
            Err(_) => complain("names no host that a certificate can carry", example),
        }
    }

    fn stand_in() -> Self {
        Self { host: DomainName::stand_in(), port: 443 }
    }
}

/// A time server: a name or an address.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum TimeServer {
    /// By address.
    Address(IpAddr),
    /// By name, asked of the resolver.
    Name(DomainName),
}

impl fmt::Display for TimeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromScalar for TimeServer {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        if text.parse::<IpAddr>().is_ok() {
            return IpAddr::from_scalar(text).map(Self::Address);
        }
        DomainName::from_scalar(text).map(Self::Name).map_err(|_| {
            let help = "write an address or a name such as ntp.example.org";
            Complaint::new(format!("`{}` is not a time server", short(text)), help)
        })
    }

    fn stand_in() -> Self {
        Self::Name(DomainName::stand_in())
    }
}
