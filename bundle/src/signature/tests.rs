use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ed25519_dalek::Signer as _;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::device_key::generate_ssh_key;

#[test]
fn signatures_by_ssh_keygen_hold_here() {
    for key_type in ["ed25519", "ecdsa"] {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        ssh_keygen(&["-q", "-t", key_type, "-b", "256", "-N", "", "-f", text(&key)], b"");
        let armoured =
            ssh_keygen(&["-Y", "sign", "-f", text(&key), "-n", BUNDLE_NAMESPACE], b"payload");

        let public: SignerKey =
            fs::read_to_string(key.with_extension("pub")).unwrap().parse().unwrap();
        let signature = ParsedSignature::parse(&armoured, BUNDLE_NAMESPACE).unwrap();

        assert!(signature.is_by(&public), "{key_type}");
        assert_eq!(signature.verify(b"payload", false), Ok(()), "{key_type}");
        assert_eq!(
            signature.verify(b"other", false),
            Err(SignatureError::Mismatch { signer: public.fingerprint() }),
        );
        let listed = ssh_keygen(&["-l", "-f", text(&key.with_extension("pub"))], b"");
        assert!(listed.contains(&public.fingerprint().to_string()), "{listed}");
    }
}

#[test]
fn signatures_made_here_hold_for_ssh_keygen() {
    let dir = tempfile::tempdir().unwrap();
    let key = generate_ssh_key("ops@example.org").unwrap();
    let signers = dir.path().join("allowed_signers");
    let public = key.public_key().to_openssh().unwrap();
    fs::write(&signers, format!("ops namespaces=\"{BUNDLE_NAMESPACE}\" {public}\n")).unwrap();
    let signature = dir.path().join("sig");
    fs::write(&signature, sign(&key, BUNDLE_NAMESPACE, b"payload").unwrap()).unwrap();

    let said = ssh_keygen(
        &[
            "-Y",
            "verify",
            "-f",
            text(&signers),
            "-I",
            "ops",
            "-n",
            BUNDLE_NAMESPACE,
            "-s",
            text(&signature),
        ],
        b"payload",
    );

    assert!(said.starts_with("Good \"bundle.v1@postern\" signature for ops"), "{said}");
}

#[test]
fn a_security_key_counts_only_when_its_user_was_present() {
    for (algorithm, make) in [("ed25519", sk_ed25519 as fn(u8) -> String), ("p256", sk_p256)] {
        let verify = |flags, require_uv| {
            let signature = ParsedSignature::parse(&make(flags), BUNDLE_NAMESPACE).unwrap();
            signature.verify(b"payload", require_uv)
        };

        assert!(
            matches!(verify(0, false), Err(SignatureError::UserPresence { .. })),
            "{algorithm}"
        );
        assert_eq!(verify(USER_PRESENT, false), Ok(()), "{algorithm}");
        assert!(
            matches!(verify(USER_PRESENT, true), Err(SignatureError::UserVerification { .. })),
            "{algorithm}"
        );
        assert_eq!(verify(USER_PRESENT | USER_VERIFIED, true), Ok(()), "{algorithm}");
    }
}

#[test]
fn ssh_keygen_and_we_read_the_same_security_key_signatures() {
    // What differs is user presence: ssh-keygen takes a signature without it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sig");
    for armoured in [sk_ed25519(USER_PRESENT), sk_p256(USER_PRESENT)] {
        fs::write(&path, armoured).unwrap();

        let said = ssh_keygen(
            &["-Y", "check-novalidate", "-n", BUNDLE_NAMESPACE, "-s", text(&path)],
            b"payload",
        );

        assert!(said.starts_with("Good"), "{said}");
    }
}

#[test]
fn a_key_without_user_verification_never_meets_a_demand_for_it() {
    let key = generate_ssh_key("ops").unwrap();
    let armoured = sign(&key, BUNDLE_NAMESPACE, b"payload").unwrap();
    let signature = ParsedSignature::parse(&armoured, BUNDLE_NAMESPACE).unwrap();

    assert!(matches!(
        signature.verify(b"payload", true),
        Err(SignatureError::UserVerification { .. })
    ));
}

#[test]
fn other_hashes_and_key_types_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (rsa, ed) = (dir.path().join("rsa"), dir.path().join("ed"));
    ssh_keygen(&["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", text(&rsa)], b"");
    ssh_keygen(&["-q", "-t", "ed25519", "-N", "", "-f", text(&ed)], b"");
    let by_rsa = ssh_keygen(&["-Y", "sign", "-f", text(&rsa), "-n", BUNDLE_NAMESPACE], b"m");
    let sha256 = ssh_keygen(
        &["-Y", "sign", "-f", text(&ed), "-n", BUNDLE_NAMESPACE, "-O", "hashalg=sha256"],
        b"m",
    );

    assert!(matches!(
        ParsedSignature::parse(&by_rsa, BUNDLE_NAMESPACE),
        Err(SignatureError::KeyType { .. })
    ));
    assert!(matches!(
        ParsedSignature::parse(&sha256, BUNDLE_NAMESPACE),
        Err(SignatureError::Hash { .. })
    ));
}

/// What a FIDO token with an ed25519 key answers, made in software.
fn sk_ed25519(flags: u8) -> String {
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let public = wire(&[b"sk-ssh-ed25519@openssh.com", key.verifying_key().as_bytes(), b"ssh:"]);
    let trailer = [flags, 0, 0, 0, 9];
    let raw = key.sign(&sk_signed_data(&trailer)).to_bytes();
    armour(&public, b"sk-ssh-ed25519@openssh.com", &raw, trailer)
}

/// The same with a P-256 key.
fn sk_p256(flags: u8) -> String {
    let key = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
    let name = b"sk-ecdsa-sha2-nistp256@openssh.com";
    let point = key.verifying_key().to_encoded_point(false);
    let public = wire(&[name, b"nistp256", point.as_bytes(), b"ssh:"]);
    let trailer = [flags, 0, 0, 0, 9];
    let signature: p256::ecdsa::Signature = key.sign(&sk_signed_data(&trailer));
    let (r, s) = signature.split_bytes();
    armour(&public, name, &wire(&[&mpint(&r), &mpint(&s)]), trailer)
}

fn sk_signed_data(trailer: &[u8; 5]) -> Vec<u8> {
    let signed = SshSig::signed_data(BUNDLE_NAMESPACE, HashAlg::Sha512, b"payload").unwrap();
    [&Sha256::digest(b"ssh:")[..], trailer, &Sha256::digest(signed)].concat()
}

fn armour(public: &[u8], algorithm: &[u8], raw: &[u8], trailer: [u8; 5]) -> String {
    let signature = [&wire(&[algorithm, raw])[..], &trailer].concat();
    let mut bytes = b"SSHSIG\0\0\0\x01".to_vec();
    bytes.extend(wire(&[public, BUNDLE_NAMESPACE.as_bytes(), b"", b"sha512", &signature]));
    let digits = STANDARD.encode(bytes);
    let lines: Vec<_> =
        digits.as_bytes().chunks(70).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"))
}

fn wire(strings: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for string in strings {
        bytes.extend(u32::try_from(string.len()).unwrap().to_be_bytes());
        bytes.extend(*string);
    }
    bytes
}

fn mpint(bytes: &[u8]) -> Vec<u8> {
    let first = bytes.iter().position(|byte| *byte != 0).unwrap();
    let sign = (bytes[first] >= 0x80).then_some(0);
    sign.into_iter().chain(bytes[first..].iter().copied()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn ssh_keygen(args: &[&str], input: &[u8]) -> String {
    use std::io::Write as _;
    let mut child = Command::new("ssh-keygen")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ssh-keygen is here (package openssh-client)");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
