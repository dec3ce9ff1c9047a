//! Certificate files: chains that guests see, and roots that upstreams are judged by.
//!
//! Specification: RFC 5280 (profile), RFC 6125 section 6.4 (names), RFC 7468 (PEM).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::site::fault::{Complaint, Severity};

/// How long before its end a certificate is warned of.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// What we need to know of the certificates in one file.
#[derive(Debug)]
pub(super) struct Chain {
    /// DNS names of the first certificate, in lower case.
    pub(super) names: Vec<String>,
    /// SubjectPublicKeyInfo of the first certificate, DER.
    pub(super) public_key: Vec<u8>,
    certificates: Vec<Certificate>,
    newline: bool,
}

#[derive(Debug)]
struct Certificate {
    subject: String,
    issuer: String,
    subject_der: Vec<u8>,
    issuer_der: Vec<u8>,
    from: i64,
    to: i64,
    ca: bool,
    serves: bool,
    rsa_bits: Option<usize>,
}

impl Chain {
    /// Reads PEM text.
    pub(super) fn parse(pem: &str) -> Result<Self, Complaint> {
        let help = "write PEM certificates, leaf first: -----BEGIN CERTIFICATE----- and so on";
        if pem.contains("PRIVATE KEY-----") {
            let help = "move the key into the secrets file: what stands here travels unsealed";
            return Err(Complaint::new("this file holds a private key", help));
        }
        let mut chain = Self {
            names: Vec::new(),
            public_key: Vec::new(),
            certificates: Vec::new(),
            newline: pem.ends_with('\n'),
        };
        for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let der = der.map_err(|error| Complaint::new(format!("not PEM: {error}"), help))?;
            let (_, x509) = X509Certificate::from_der(&der).map_err(|_| {
                let number = chain.certificates.len() + 1;
                Complaint::new(format!("certificate {number} of this file is not X.509"), help)
            })?;
            if chain.certificates.is_empty() {
                chain.names = dns_names(&x509);
                chain.public_key = x509.public_key().raw.to_vec();
            }
            chain.certificates.push(Certificate::new(&x509));
        }
        if chain.certificates.is_empty() {
            return Err(Complaint::new("this file holds no certificate", help));
        }
        Ok(chain)
    }

    /// Judges a chain that guests see.
    pub(super) fn judge(&self, now: SystemTime) -> Vec<(Severity, Complaint)> {
        let mut found = self.judge_dates(now);
        let mut add = |severity, message: String, help: &str| {
            found.push((severity, Complaint::new(message, help)));
        };
        let leaf = &self.certificates[0];
        if self.names.is_empty() {
            let message = format!("the certificate of {} carries no DNS name", leaf.subject);
            add(
                Severity::Error,
                message,
                "have it issued with subject alternative names: browsers look at nothing else",
            );
        }
        if leaf.ca {
            let message = format!("the first certificate, {}, is a CA's", leaf.subject);
            add(Severity::Error, message, "put the server's own certificate first");
        }
        if !leaf.serves {
            let message = format!("the certificate of {} is not for TLS servers", leaf.subject);
            add(Severity::Error, message, "have it issued with the extended key usage serverAuth");
        }
        match leaf.rsa_bits {
            Some(bits @ 4097..) => add(
                Severity::Error,
                format!("the certificate's RSA key has {bits} bits"),
                "use ECDSA P-256, or RSA with 2048 to 4096 bits: every handshake of a guest pays for it",
            ),
            Some(bits @ ..2048) => add(
                Severity::Error,
                format!("the certificate's RSA key has only {bits} bits"),
                "use ECDSA P-256, or RSA with 2048 to 4096 bits",
            ),
            _ => {}
        }
        if leaf.issuer_der == leaf.subject_der {
            let message = format!("the certificate of {} is signed by itself", leaf.subject);
            add(
                Severity::Warning,
                message,
                "guests' browsers refuse it; have a public CA issue one",
            );
        }
        for pair in self.certificates.windows(2) {
            if pair[0].issuer_der != pair[1].subject_der {
                let message = format!(
                    "after {} comes {}, not its issuer {}",
                    pair[0].subject, pair[1].subject, pair[0].issuer
                );
                add(
                    Severity::Error,
                    message,
                    "order the file: the leaf, then the CA that issued it, and so on",
                );
                break;
            }
        }
        if !self.newline {
            add(
                Severity::Error,
                "this file ends without a newline".to_owned(),
                "is it cut short? Otherwise end its last line: `echo >> FILE`",
            );
        }
        found
    }

    /// Judges roots that an upstream must chain to.
    pub(super) fn judge_roots(&self, now: SystemTime) -> Vec<(Severity, Complaint)> {
        let mut found = self.judge_dates(now);
        for root in self.certificates.iter().filter(|root| !root.ca) {
            let message = format!("{} is not a CA's certificate", root.subject);
            let help = "put the certificate of the CA here that issued the upstream's";
            found.push((Severity::Warning, Complaint::new(message, help)));
        }
        found
    }

    fn judge_dates(&self, now: SystemTime) -> Vec<(Severity, Complaint)> {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        };
        let (now, soon) = (seconds(now), seconds(now + SOON));
        let mut found = Vec::new();
        for certificate in &self.certificates {
            let Certificate { subject, from, to, .. } = certificate;
            if *to < now {
                let message = format!("the certificate of {subject} ended on {}", day(*to));
                found.push((Severity::Error, Complaint::new(message, "renew it")));
            } else if *from > now {
                let message = format!("the certificate of {subject} begins on {} only", day(*from));
                found.push((
                    Severity::Error,
                    Complaint::new(message, "wait, or check this machine's clock"),
                ));
            } else if *to < soon {
                let message = format!("the certificate of {subject} ends on {}", day(*to));
                found.push((Severity::Warning, Complaint::new(message, "renew it now")));
            }
        }
        found
    }
}

impl Certificate {
    fn new(x509: &X509Certificate<'_>) -> Self {
        let usage = x509.extended_key_usage().ok().flatten();
        Self {
            subject: name(x509.subject()),
            issuer: name(x509.issuer()),
            subject_der: x509.subject().as_raw().to_vec(),
            issuer_der: x509.issuer().as_raw().to_vec(),
            from: x509.validity().not_before.timestamp(),
            to: x509.validity().not_after.timestamp(),
            ca: x509.is_ca(),
            serves: usage.is_none_or(|usage| usage.value.server_auth || usage.value.any),
            rsa_bits: match x509.public_key().parsed() {
                Ok(PublicKey::RSA(rsa)) => Some(rsa.key_size()),
                _ => None,
            },
        }
    }
}

fn name(name: &x509_parser::x509::X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|common| common.as_str().ok());
    let text = common.map_or_else(|| name.to_string(), str::to_owned);
    let text: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    if text.is_empty() { "(no subject)".to_owned() } else { text }
}

fn dns_names(x509: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = x509.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

/// Whether a name in a certificate covers a host name (RFC 6125 section 6.4: a wildcard stands
/// for exactly one label, the first).
pub(super) fn covers(carried: &str, host: &str) -> bool {
    match carried.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest == parent),
        None => carried == host,
    }
}

/// The day of a time, as `2026-11-22` (days to civil date, proleptic Gregorian calendar).
fn day(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_795_305_600, "2026-11-22"),
            (-1, "1969-12-31"),
        ] {
            assert_eq!(day(seconds), text);
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        assert!(covers("*.example.org", "meet.example.org"));
        assert!(!covers("*.example.org", "a.meet.example.org"));
        assert!(!covers("*.example.org", "example.org"));
        assert!(covers("meet.example.org", "meet.example.org"));
    }
}
