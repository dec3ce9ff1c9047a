//! HTTP: small files into memory, packages into the store.

use std::fs;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// Where Linux distributions keep the certificates of the public authorities.
const CA_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The server answered, but not with the file.
    #[error("{url}: the server answers {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status code.
        status: u16,
    },
    /// No answer, or the connection broke.
    #[error("{url}: {reason}")]
    Transport {
        /// What was asked for.
        url: String,
        /// What went wrong.
        reason: String,
    },
}

impl FetchError {
    /// Whether the server said that it has no such file.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Status { status: 404 | 410, .. })
    }
}

/// A client with a proxy and time limits.
#[derive(Clone, Debug)]
pub(crate) struct Client(ureq::Agent);

impl Client {
    /// A client that goes through `proxy`, or through the environment's.
    ///
    /// # Errors
    ///
    /// Returns an error when `proxy` is no address.
    pub(crate) fn new(proxy: Option<&str>) -> Result<Self, FetchError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(RootCerts::Specific(Arc::new(host_authorities())))
            .build();
        let mut config = ureq::Agent::config_builder()
            .tls_config(tls)
            .user_agent("postern")
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .max_idle_connections_per_host(8);
        if let Some(proxy) = proxy {
            let parsed = ureq::Proxy::new(proxy).map_err(|error| FetchError::Transport {
                url: format!("proxy {proxy} of apt's configuration"),
                reason: error.to_string(),
            })?;
            config = config.proxy(Some(parsed));
        }
        Ok(Self(config.build().into()))
    }

    /// Asks for `url`.
    ///
    /// # Errors
    ///
    /// Returns an error when there is no answer or any other than 200.
    pub(crate) fn open(&self, url: &str) -> Result<impl Read + use<>, FetchError> {
        let response = self.0.get(url).call().map_err(|error| match error {
            ureq::Error::StatusCode(status) => FetchError::Status { url: url.to_owned(), status },
            error => transport(url, &error),
        })?;
        Ok(response.into_body().into_reader())
    }

    /// Reads `url` into memory; an answer longer than `limit` bytes is an error.
    ///
    /// # Errors
    ///
    /// Returns an error when there is no answer, any other than 200, or too long a one.
    pub(crate) fn read(&self, url: &str, limit: u64) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        let read = self.open(url)?.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| transport(url, &error))?;
        if bytes.len() as u64 > limit {
            return Err(transport(url, &format!("the answer is longer than {limit} bytes")));
        }
        Ok(bytes)
    }
}

/// A [`FetchError::Transport`] for `url`.
pub(crate) fn transport(url: &str, reason: &dyn std::fmt::Display) -> FetchError {
    FetchError::Transport { url: url.to_owned(), reason: reason.to_string() }
}

/// The host's certificate authorities; none is fine as long as the mirror speaks plain HTTP.
fn host_authorities() -> Vec<Certificate<'static>> {
    let bundle: io::Result<Vec<u8>> =
        CA_BUNDLES.iter().map(fs::read).find(Result::is_ok).unwrap_or_else(|| Ok(Vec::new()));
    parse_pem(&bundle.unwrap_or_default())
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}
