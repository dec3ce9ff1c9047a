//! Whom the proxy believes to be an upstream: the site's roots, or the system's.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::certificate::provider;

/// The system's certificate authorities (Debian's ca-certificates).
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why an upstream cannot be trusted at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// Neither a DNS name nor an IP address.
    #[error("upstream {host:?} is neither a host name nor an address")]
    Name { host: String },
    /// No root certificate in the PEM text.
    #[error("upstream {host:?}: its trust holds no certificate that can be used")]
    NoRoots { host: String },
    /// The PEM is broken or the file cannot be read.
    #[error("upstream {host:?}: its trust cannot be read: {source}")]
    Pem { host: String, source: rustls::pki_types::pem::Error },
    /// The TLS library refused the configuration.
    #[error("upstream {host:?}: {source}")]
    Tls { host: String, source: rustls::Error },
}

/// TLS towards an upstream: `trust` is PEM, `None` means the system's roots.
///
/// # Errors
///
/// Returns why no certificate could ever be believed.
pub(super) fn client_config(
    host: &str,
    trust: Option<&str>,
) -> Result<Arc<ClientConfig>, TrustError> {
    let pem = |source| TrustError::Pem { host: host.to_owned(), source };
    let roots: Vec<CertificateDer<'static>> = match trust {
        Some(text) => CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>(),
        None => CertificateDer::pem_file_iter(SYSTEM_ROOTS).and_then(Iterator::collect),
    }
    .map_err(pem)?;
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(roots);
    if added == 0 {
        return Err(TrustError::NoRoots { host: host.to_owned() });
    }
    let tls = |source| TrustError::Tls { host: host.to_owned(), source };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(tls)?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
