//! One slice made ready to serve: the value behind the pointer that a new slice swaps.
//!
//! # Invariants
//!
//! 1. A [`Serving`] has at least one certificate, and each guest's name is covered by one.
//! 2. Upstreams that two slices have in common are the same object: their connections and what is
//!    known of them outlive the swap.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderValue;

use super::certificate::{LoadError, Loaded};
use super::health;
use super::name::{Authority, canonical};
use super::trust::TrustError;
use super::upstream::Upstream;
use crate::plan::{Generation, ProxySlice};

/// Why a slice cannot be served; what was served before goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SliceError {
    /// TLS cannot be spoken without one.
    #[error("the slice has no certificate")]
    NoCertificate,
    /// A pair is unusable.
    #[error(transparent)]
    Certificate(#[from] LoadError),
    /// Browsers would refuse the connection.
    #[error("no certificate covers guest {host:?}; covered are {}", covered.join(", "))]
    NotCovered { host: String, covered: Vec<String> },
    /// Two guests cannot have one name.
    #[error("guest {host:?} is there twice")]
    Twice { host: String },
    /// The guest URL is not `https://HOST[:PORT]`.
    #[error("guest URL {url:?} is not https://{host}")]
    Url { url: String, host: String },
    /// An upstream cannot be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A listener is missing.
    #[error("cannot listen on {address}: {source}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
}

/// A guest URL ready to serve.
#[derive(Debug)]
pub(super) struct Guest {
    /// Canonical host name.
    pub(super) host: String,
    /// What is sent upstream as Host: the name, and the port unless it is 443.
    pub(super) authority: HeaderValue,
    /// The port of the guest URL.
    pub(super) port: u16,
    /// The guest URL without a trailing slash.
    pub(super) url: String,
    pub(super) upstream: Arc<Upstream>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) generation: Generation,
    pub(super) certificates: Vec<Arc<Loaded>>,
    /// Whether the guests' listeners serve TURN too.
    pub(super) turn_shared: bool,
    /// By canonical host name.
    pub(super) guests: BTreeMap<String, Guest>,
    /// Strict-Transport-Security.
    pub(super) hsts: Option<HeaderValue>,
}

impl Serving {
    /// Checks a slice and makes it ready, with the upstreams of `before` where they are the same.
    /// New upstreams are being watched when it returns.
    ///
    /// # Errors
    ///
    /// Returns the first fault.
    pub(super) fn new(
        generation: Generation,
        slice: &ProxySlice,
        before: Option<&Self>,
    ) -> Result<Self, SliceError> {
        let certificates = slice
            .certificates
            .iter()
            .map(|certificate| Loaded::new(certificate).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() {
            return Err(SliceError::NoCertificate);
        }
        let mut guests = BTreeMap::new();
        let mut new = Vec::new();
        for planned in &slice.guests {
            let host = canonical(&planned.host);
            if !certificates.iter().any(|certificate| certificate.covers(&host)) {
                let covered = certificates.iter().flat_map(|it| it.names.clone()).collect();
                return Err(SliceError::NotCovered { host, covered });
            }
            let (url, port) = guest_url(&planned.url, &host)?;
            let authority = if port == 443 { host.clone() } else { format!("{host}:{port}") };
            let known = before
                .and_then(|before| before.guests.get(&host))
                .filter(|known| known.upstream.plan == planned.upstream)
                .filter(|known| known.upstream.guest == authority);
            let upstream = match known {
                Some(known) => Arc::clone(&known.upstream),
                None => {
                    new.push(Arc::new(Upstream::new(&planned.upstream, &authority)?));
                    Arc::clone(&new[new.len() - 1])
                }
            };
            let header = HeaderValue::from_str(&authority)
                .map_err(|_| SliceError::Url { url: planned.url.clone(), host: host.clone() })?;
            let guest = Guest { host: host.clone(), authority: header, port, url, upstream };
            if guests.insert(host.clone(), guest).is_some() {
                return Err(SliceError::Twice { host });
            }
        }
        for upstream in &new {
            health::watch(upstream);
        }
        let hsts = slice.hsts.map(|age| HeaderValue::from(age.as_secs()));
        let hsts = hsts
            .and_then(|age| HeaderValue::from_bytes(&[b"max-age=", age.as_bytes()].concat()).ok());
        Ok(Self { generation, certificates, turn_shared: slice.turn_shared, guests, hsts })
    }

    /// The certificate for a client that asks for `name`; the first one for a client that does
    /// not say (TURN clients do not). `None`: nobody here has that name.
    pub(super) fn certificate(&self, name: Option<&str>) -> Option<&Arc<Loaded>> {
        match name {
            None => self.certificates.first(),
            Some(name) => {
                let name = canonical(name);
                self.certificates.iter().find(|certificate| certificate.covers(&name))
            }
        }
    }

    /// Names that guests may ask for.
    pub(super) fn guest_names(&self) -> Vec<&str> {
        self.guests.keys().map(String::as_str).collect()
    }
}

/// The guest URL without trailing slash, and its port.
fn guest_url(url: &str, host: &str) -> Result<(String, u16), SliceError> {
    let trimmed = url.trim_end_matches('/');
    trimmed
        .strip_prefix("https://")
        .and_then(|rest| Authority::parse(rest.as_bytes()))
        .filter(|authority| canonical(authority.host) == host)
        .map(|authority| (trimmed.to_owned(), authority.port.unwrap_or(443)))
        .ok_or_else(|| SliceError::Url { url: url.to_owned(), host: host.to_owned() })
}
