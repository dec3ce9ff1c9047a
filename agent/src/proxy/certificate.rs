//! A certificate chain with its key, checked before anything is served with it.
//!
//! # Invariants
//!
//! 1. A [`Loaded`] has at least one certificate, its key is the leaf's, and its names are the
//!    leaf's subject alternative names; the common name counts for nothing (RFC 9525 section 6.3).

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use serde_json::{Value, json};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::name::{canonical, covers};
use super::turn_stream;
use crate::plan::Certificate;

/// ALPN of HTTP/1.1 (RFC 7301 section 6).
const HTTP: &[u8] = b"http/1.1";

/// Why a certificate cannot be served; what was served before goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// There is nothing between BEGIN CERTIFICATE and END CERTIFICATE.
    #[error("certificate {name:?}: its chain holds no certificate")]
    NoCertificate { name: String },
    /// The PEM is broken.
    #[error("certificate {name:?}: its {part} is not PEM that can be read: {source}")]
    Pem { name: String, part: &'static str, source: rustls::pki_types::pem::Error },
    /// The leaf is not a certificate.
    #[error("certificate {name:?}: its first certificate cannot be read")]
    Leaf { name: String },
    /// The key is of an unknown kind, or it is another certificate's.
    #[error("certificate {name:?}: {}", key_fault(source))]
    Key { name: String, source: rustls::Error },
    /// A leaf without names serves nobody.
    #[error("certificate {name:?} has no subject alternative names")]
    NoNames { name: String },
    /// The TLS library refused the configuration.
    #[error("certificate {name:?}: {source}")]
    Tls { name: String, source: rustls::Error },
}

fn key_fault(source: &rustls::Error) -> String {
    match source {
        rustls::Error::InconsistentKeys(_) => "its key does not match its certificate".to_owned(),
        other => format!("its key cannot be used: {other}"),
    }
}

/// What a client may choose with ALPN (RFC 7301). One that offers ALPN and nothing of this is
/// refused, as section 3.2 asks, so where ALPN says nothing of use none is chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Protocols {
    /// HTTP.
    Web,
    /// HTTP or TURN.
    WebAndTurn,
    /// TURN.
    Turn,
    /// Nothing, whatever it offers.
    Unsaid,
}

/// The same pair and the same tickets, once per [`Protocols`].
#[derive(Debug)]
struct Configs {
    web: Arc<ServerConfig>,
    web_and_turn: Arc<ServerConfig>,
    turn: Arc<ServerConfig>,
    unsaid: Arc<ServerConfig>,
}

impl Configs {
    fn new(config: &ServerConfig) -> Self {
        let with = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Self {
            web: with(&[HTTP]),
            web_and_turn: with(&[HTTP, turn_stream::ALPN]),
            turn: with(&[turn_stream::ALPN]),
            unsaid: with(&[]),
        }
    }
}

/// A pair ready to serve.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The site's name for it.
    pub(super) name: String,
    /// Subject alternative names, canonical.
    pub(super) names: Vec<String>,
    /// How to serve it, by what may be chosen with ALPN.
    configs: Configs,
    subject: String,
    issuer: String,
    not_after: x509_parser::time::ASN1Time,
}

impl Loaded {
    /// Reads and checks a pair.
    ///
    /// # Errors
    ///
    /// Returns the first fault.
    pub(super) fn new(certificate: &Certificate) -> Result<Self, LoadError> {
        let name = || certificate.name.clone();
        let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| LoadError::Pem { name: name(), part: "chain", source })?;
        let leaf = chain.first().ok_or_else(|| LoadError::NoCertificate { name: name() })?.clone();
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())
            .map_err(|source| LoadError::Pem { name: name(), part: "key", source })?;
        let provider = provider();
        let pair = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|source| LoadError::Key { name: name(), source })?;
        let (_, leaf) =
            X509Certificate::from_der(&leaf).map_err(|_| LoadError::Leaf { name: name() })?;
        let names = alternative_names(&leaf);
        if names.is_empty() {
            return Err(LoadError::NoNames { name: name() });
        }
        let config = server_config(pair, provider)
            .map_err(|source| LoadError::Tls { name: name(), source })?;
        Ok(Self {
            name: name(),
            names,
            configs: Configs::new(&config),
            subject: leaf.subject().to_string(),
            issuer: leaf.issuer().to_string(),
            not_after: leaf.validity().not_after,
        })
    }

    /// How to serve it.
    pub(super) const fn config(&self, protocols: Protocols) -> &Arc<ServerConfig> {
        match protocols {
            Protocols::Web => &self.configs.web,
            Protocols::WebAndTurn => &self.configs.web_and_turn,
            Protocols::Turn => &self.configs.turn,
            Protocols::Unsaid => &self.configs.unsaid,
        }
    }

    /// Whether its names cover a canonical host name.
    pub(super) fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| covers(name, host))
    }

    /// For status.
    pub(super) fn report(&self, now: i64) -> Value {
        let left = self.not_after.timestamp() - now;
        json!({
            "name": self.name,
            "subject": self.subject,
            "sans": self.names,
            "issuer": self.issuer,
            "not-after": rfc3339(self.not_after.timestamp()),
            "days-left": left.div_euclid(24 * 3600),
            "seconds-left": left,
        })
    }
}

/// A point in time as `2026-01-02T03:04:05Z`.
pub(super) fn rfc3339(seconds: i64) -> String {
    let Ok(time) = x509_parser::time::ASN1Time::from_timestamp(seconds) else {
        return seconds.to_string();
    };
    let time = time.to_datetime();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// Key exchange in order of preference; the rest is the library's default.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..default_provider()
    })
}

fn server_config(
    pair: CertifiedKey,
    provider: Arc<CryptoProvider>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn alternative_names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(canonical(name)),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes)
                    .ok()
                    .map(|it| std::net::Ipv4Addr::from(it).to_string()),
                16 => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|it| std::net::Ipv6Addr::from(it).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}
