//! What the boxes of a site serve beside the TURN relay: certificates and the web proxy.

use std::net::IpAddr;
use std::time::Duration;

use super::boxes::{InterfaceName, secret_name};
use super::fault::Complaint;
use super::reader::{FromScalar, Reader, Table, join, unknown};
use super::subnet::HttpsUrl;
use super::tree::{Node, Value};
use super::value::{FilePath, HttpPath, Name};

/// A certificate chain with its key.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct SiteCertificate {
    /// The site's name for it.
    pub name: Name,
    /// The chain's file, leaf first.
    pub chain: FilePath,
    /// Where the key is.
    pub key: KeySource,
}

/// Where a certificate's key is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeySource {
    /// It travels as the secret of this name.
    Secret(Name),
    /// It was made on the box and never leaves it.
    OnBox,
}

/// The web proxy.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Proxy {
    /// NICs that it listens on.
    pub listen: Vec<InterfaceName>,
    /// Guest URLs, at least one.
    pub guests: Vec<Guest>,
    /// Whether port 80 redirects to https.
    pub redirect_http: bool,
    /// `max-age` of Strict-Transport-Security; `None`: no header.
    pub hsts: Option<Duration>,
}

/// A guest URL.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Guest {
    /// What a guest opens.
    pub url: HttpsUrl,
    /// Where it leads.
    pub upstream: Upstream,
}

/// The web bridge behind a guest URL.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Upstream {
    /// Its URL; the host is what its certificate must carry.
    pub url: HttpsUrl,
    /// Pinned addresses; empty: asked of the split DNS.
    pub addresses: Vec<IpAddr>,
    /// File of the roots that it must chain to; `None`: the system's.
    pub trust: Option<FilePath>,
    /// Path of the health check.
    pub health: Option<HttpPath>,
    /// How a guest stays with one address.
    pub affinity: Affinity,
    /// Which name the upstream sees in Host and Origin.
    pub host: UpstreamHost,
}

/// How a guest stays with one upstream address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Affinity {
    /// By the guest's address.
    Source,
    /// By a cookie.
    Cookie,
}

/// Which name the upstream sees.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UpstreamHost {
    /// The guest URL's.
    Guest,
    /// Its own.
    Upstream,
}

impl FromScalar for Affinity {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        match text {
            "source" => Ok(Self::Source),
            "cookie" => Ok(Self::Cookie),
            _ => Err(unknown("affinity", text, ["source", "cookie"].into_iter())),
        }
    }

    fn stand_in() -> Self {
        Self::Source
    }
}

impl FromScalar for UpstreamHost {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        match text {
            "guest" => Ok(Self::Guest),
            "upstream" => Ok(Self::Upstream),
            _ => Err(unknown("host", text, ["guest", "upstream"].into_iter())),
        }
    }

    fn stand_in() -> Self {
        Self::Guest
    }
}

/// Reads `certificates`.
pub(crate) fn read_certificates(
    reader: &mut Reader,
    path: &str,
    node: &Node,
) -> Vec<SiteCertificate> {
    let all = reader.entries(path, node, "the certificates' names");
    let mut certificates = Vec::new();
    for (key, node) in &all.entries {
        let path = join(path, key);
        let table = reader.table(&path, node, &["chain", "key"]);
        certificates.push(SiteCertificate {
            name: reader.key(&path, key),
            chain: reader.need_scalar(&table, "chain"),
            key: read_key(reader, &table),
        });
    }
    certificates
}

fn read_key(reader: &mut Reader, table: &Table<'_>) -> KeySource {
    let Some(node) = reader.need(table, "key") else { return KeySource::OnBox };
    if matches!(&node.value, Value::Scalar { text, .. } if text == "on-box") {
        return KeySource::OnBox;
    }
    KeySource::Secret(secret_name(reader, &table.at("key"), node))
}

/// Reads `proxy`.
pub(crate) fn read_proxy(reader: &mut Reader, path: &str, node: &Node) -> Proxy {
    let table = reader.table(path, node, &["listen", "guests", "redirect-http", "hsts"]);
    let guests = match reader.need(&table, "guests") {
        Some(node) => {
            reader.not_empty(&table, "guests", node);
            reader.list(&table.at("guests"), node, read_guest)
        }
        None => Vec::new(),
    };
    Proxy {
        listen: reader.need_scalars(&table, "listen"),
        guests,
        redirect_http: reader.may_scalar(&table, "redirect-http").unwrap_or(true),
        hsts: reader.may_scalar::<Hsts>(&table, "hsts").map_or(Some(A_YEAR), |hsts| hsts.0),
    }
}

const A_YEAR: Duration = Duration::from_secs(31_536_000);

struct Hsts(Option<Duration>);

impl FromScalar for Hsts {
    fn from_scalar(text: &str) -> Result<Self, Complaint> {
        if text == "off" {
            return Ok(Self(None));
        }
        Duration::from_scalar(text).map(|duration| Self(Some(duration))).map_err(|complaint| {
            Complaint::new(complaint.message, "write a duration such as 365d, or off")
        })
    }

    fn stand_in() -> Self {
        Self(None)
    }
}

fn read_guest(reader: &mut Reader, path: &str, node: &Node) -> Guest {
    let table = reader.table(path, node, &["url", "upstream"]);
    let url: HttpsUrl = reader.need_scalar(&table, "url");
    if url.port() != 443 && !reader.sheet.is_wrong(&table.at("url")) {
        let help = format!("write https://{}; guests are served on port 443", url.host());
        reader.wrong(&table.at("url"), Complaint::new("the guest URL names a port", help));
    }
    Guest { url, upstream: read_upstream(reader, &table) }
}

fn read_upstream(reader: &mut Reader, parent: &Table<'_>) -> Upstream {
    let Some(node) = reader.need(parent, "upstream") else {
        return Upstream {
            url: HttpsUrl::stand_in(),
            addresses: Vec::new(),
            trust: None,
            health: None,
            affinity: Affinity::Source,
            host: UpstreamHost::Guest,
        };
    };
    let known = ["url", "addresses", "trust", "health", "affinity", "host"];
    let table = reader.table(&parent.at("upstream"), node, &known);
    if let Some(node) = table.get("addresses") {
        reader.not_empty(&table, "addresses", node);
    }
    Upstream {
        url: reader.need_scalar(&table, "url"),
        addresses: reader.may_scalars(&table, "addresses"),
        trust: reader.may_scalar(&table, "trust"),
        health: reader.may_scalar(&table, "health"),
        affinity: reader.may_scalar(&table, "affinity").unwrap_or(Affinity::Source),
        host: reader.may_scalar(&table, "host").unwrap_or(UpstreamHost::Guest),
    }
}
