//! Private keys against their certificates. No complaint repeats a byte of a key.

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use crate::site::fault::Complaint;

/// Judges the PEM text of a key; `leaf` is the public key that it must have.
pub(super) fn judge(name: &str, bytes: &[u8], leaf: Option<&[u8]>) -> Vec<Complaint> {
    let mut found = Vec::new();
    let mut add = |message: String, help: &str| found.push(Complaint::new(message, help));
    if !bytes.ends_with(b"\n") {
        let help = "is it cut short? Otherwise end its last line: `echo >> FILE`, or `|` in YAML";
        add(format!("the key `{name}` ends without a newline"), help);
    }
    let text = String::from_utf8_lossy(bytes);
    if text.contains("ENCRYPTED") {
        let help = "decrypt it first: `openssl pkey -in FILE -out FILE.plain`; it travels sealed";
        add(format!("the key `{name}` is encrypted with a passphrase"), help);
        return found;
    }
    if text.matches("PRIVATE KEY-----").count() > 2 {
        add(
            format!("`{name}` holds more than one key"),
            "keep the one that belongs to the certificate",
        );
    }
    let Ok(key) = PrivateKeyDer::from_pem_slice(bytes) else {
        let help = "write a PEM key: PKCS#8, PKCS#1 or SEC1";
        add(format!("`{name}` is not a PEM private key"), help);
        return found;
    };
    let Ok(key) = any_supported_type(&key) else {
        let help = "use ECDSA P-256, P-384 or P-521, RSA with 2048 to 4096 bits, or Ed25519";
        add(format!("the key `{name}` is of a kind that TLS servers here cannot use"), help);
        return found;
    };
    if let (Some(leaf), Some(public)) = (leaf, key.public_key())
        && public.as_ref() != leaf
    {
        let help = "use the key that the certificate was requested with, or the new certificate";
        add(format!("the key `{name}` does not belong to this certificate"), help);
    }
    found
}
