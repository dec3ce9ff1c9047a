use std::collections::BTreeSet;

use ssh_key::PrivateKey;

use super::*;
use crate::container::assemble;
use crate::device_key::{DeviceKeys, generate_ssh_key};
use crate::manifest::{Confirm, ConfirmMode, Probe};
use crate::sign::{BoxDraft, Draft, payload};
use crate::signature::{SignerKey, TRUST_NAMESPACE, sign};
use crate::trust::Signer;

#[test]
fn a_signed_bundle_is_accepted_by_its_box_and_opens_to_its_own_secrets_only() {
    let lab = Lab::new();
    let bundle = lab.bundle(7);

    let trust = walk_trust(&bundle, &lab.trust).unwrap();
    let verified =
        authenticate(&bundle, &trust).unwrap().accept(&lab.receiver(&lab.hardware())).unwrap();

    assert_eq!(verified.target().name, "edge");
    assert_eq!(verified.manifest().serial, 7);
    assert_eq!(
        verified.signers(),
        [SignerKey::new(lab.key.public_key().clone()).unwrap().fingerprint()]
    );
    assert!(!verified.is_unchanged());
    assert_eq!(verified.site(), "site: example\n");
    assert_eq!(verified.certs().unwrap()["certs/a.pem"], "PEM");
    let secrets = verified.secrets(lab.edge.seal()).unwrap();
    assert_eq!(secrets, Secrets::from([("turn".to_owned(), b"edge-secret".to_vec())]));
    assert_eq!(verified.secrets(lab.inside.seal()), Err(OpenError::Secrets(SealError::OtherKey)));
}

#[test]
fn each_box_of_a_site_opens_its_own_section() {
    let lab = Lab::new();
    let bundle = lab.bundle(7);
    let hardware = Hardware { uuid: Some("4C4C4544-AAAA".into()), ..Hardware::default() };

    let verified = lab.judge(&bundle, &hardware).unwrap();

    let secrets = verified.secrets(lab.inside.seal()).unwrap();
    assert_eq!(secrets, Secrets::from([("tunnel".to_owned(), b"inside-secret".to_vec())]));
}

#[test]
fn every_flipped_bit_is_refused() {
    let lab = Lab::new();
    let bundle = lab.bundle(7);
    for at in 0..bundle.len() {
        for bit in [0x01, 0x20, 0x80] {
            let mut changed = bundle.clone();
            changed[at] ^= bit;
            let verdict = lab.judge(&changed, &lab.hardware());
            assert!(
                verdict.is_err(),
                "byte {at} ^ {bit:#04x} was accepted: {:?}",
                String::from_utf8_lossy(
                    &changed[at.saturating_sub(40)..][..60.min(changed.len() - at)]
                )
            );
        }
    }
}

#[test]
fn every_truncation_is_refused_as_cut_short() {
    let lab = Lab::new();
    let bundle = lab.bundle(7);
    for length in 0..bundle.len() {
        let verdict = lab.judge(&bundle[..length], &lab.hardware());
        assert_eq!(verdict.unwrap_err().code(), "cut-short", "{length} bytes");
    }
}

#[test]
fn a_byte_after_the_end_is_refused() {
    let lab = Lab::new();
    let mut bundle = lab.bundle(7);
    bundle.push(b'\n');

    let error = lab.judge(&bundle, &lab.hardware()).unwrap_err();

    assert_eq!(error, VerifyError::Framing(FramingError::Surplus { surplus: 1 }));
}

#[test]
fn an_unsigned_bundle_is_refused_as_unsigned() {
    let lab = Lab::new();
    let bundle = lab.bundle(7);
    let container = Container::parse(&bundle).unwrap();
    let signatures: usize = container.signatures.iter().map(|one| one.len()).sum();
    let mut unsigned = bundle[..bundle.len() - signatures].to_vec();
    unsigned[16..20].fill(0);

    assert_eq!(lab.judge(&unsigned, &lab.hardware()).unwrap_err().code(), "unsigned");
}

#[test]
fn a_changed_payload_is_refused_as_tampered() {
    let lab = Lab::new();
    let mut bundle = lab.bundle(7);
    let at = bundle.windows(5).position(|w| w == b"site:").unwrap();
    bundle[at] = b'S';

    let error = lab.judge(&bundle, &lab.hardware()).unwrap_err();

    assert_eq!(error.code(), "tampered");
}

#[test]
fn a_signature_by_a_stranger_is_refused_as_unknown_signer() {
    let lab = Lab::new();
    let stranger = generate_ssh_key("stranger").unwrap();
    let bundle = lab.signed_by(7, &[&stranger]);

    assert_eq!(lab.judge(&bundle, &lab.hardware()).unwrap_err().code(), "unknown-signer");
}

#[test]
fn a_signature_by_a_stranger_beside_a_trusted_one_does_no_harm() {
    let lab = Lab::new();
    let stranger = generate_ssh_key("stranger").unwrap();
    let bundle = lab.signed_by(7, &[&stranger, &lab.key]);

    assert_eq!(lab.judge(&bundle, &lab.hardware()).unwrap().signers().len(), 1);
}

#[test]
fn one_key_twice_does_not_make_two_signers() {
    let mut lab = Lab::new();
    let second = generate_ssh_key("second").unwrap();
    let mut blob = lab.trust.current().clone();
    blob.signers.push(Signer {
        key: SignerKey::new(second.public_key().clone()).unwrap(),
        require_uv: false,
    });
    blob.threshold = 2;
    lab.trust = TrustChain::anchored(&blob.to_record(&[]).unwrap()).unwrap();

    let twice = lab.judge(&lab.signed_by(7, &[&lab.key, &lab.key]), &lab.hardware());
    let both = lab.judge(&lab.signed_by(7, &[&lab.key, &second]), &lab.hardware());

    assert_eq!(twice.unwrap_err(), VerifyError::Threshold { found: 1, needed: 2, version: 1 });
    assert_eq!(both.unwrap().signers().len(), 2);
}

#[test]
fn a_revoked_signer_is_refused_but_its_confirmed_bundle_reopens() {
    let mut lab = Lab::new();
    let bundle = lab.bundle(7);
    let digest = authenticate(&bundle, &lab.trust).unwrap().digest().to_owned();
    let second = generate_ssh_key("second").unwrap();
    let mut blob = TrustBlob::first(SignerKey::new(second.public_key().clone()).unwrap());
    let old = lab.trust.current().signers[0].clone();
    blob.revoked = BTreeSet::from([old.key.fingerprint()]);
    blob.signers.push(old);
    lab.trust = TrustChain::anchored(&blob.to_record(&[]).unwrap()).unwrap();

    let judged = lab.judge(&bundle, &lab.hardware());
    let reopened = reopen(&bundle, &digest).unwrap().accept(&lab.receiver(&lab.hardware()));

    assert_eq!(judged.unwrap_err().code(), "revoked-signer");
    assert_eq!(reopened.unwrap().manifest().serial, 7);
    assert_eq!(reopen(&bundle, &"0".repeat(64)).unwrap_err().code(), "other-digest");
}

#[test]
fn a_bundle_for_another_box_is_refused_with_what_it_wants_and_what_this_is() {
    let lab = Lab::new();
    let here = Hardware { serial_number: Some("OTHER\n".into()), ..Hardware::default() };

    let error = lab.judge(&lab.bundle(7), &here).unwrap_err();

    assert_eq!(
        error.to_string(),
        "for another box: it is for edge (serial-number 7RQ2X13), inside (uuid 4c4c4544-aaaa); \
         this is serial-number OTHER, uuid none, macs none"
    );
}

#[test]
fn a_machine_that_two_boxes_match_is_refused() {
    let lab = Lab::new();
    let mut here = lab.hardware();
    here.uuid = Some("4c4c4544-aaaa".into());

    assert_eq!(lab.judge(&lab.bundle(7), &here).unwrap_err().code(), "ambiguous-box");
}

#[test]
fn a_bundle_sealed_to_other_device_keys_is_refused() {
    let lab = Lab::new();
    let mut here = lab.hardware();
    here.seal_key = Some(lab.inside.public().seal.fingerprint());

    assert_eq!(lab.judge(&lab.bundle(7), &here).unwrap_err().code(), "other-seal-key");
}

#[test]
fn serials_at_or_below_the_floor_are_refused_except_the_bundle_in_force() {
    let lab = Lab::new();
    let hardware = lab.hardware();
    let in_force = lab.bundle(7);
    let digest = authenticate(&in_force, &lab.trust).unwrap().digest().to_owned();
    let receiver = Receiver {
        floor: Floor { serial: 7, confirmed: Some((7, digest)) },
        ..lab.receiver(&hardware)
    };
    let accept = |bundle: &[u8]| authenticate(bundle, &lab.trust).unwrap().accept(&receiver);

    assert!(accept(&in_force).unwrap().is_unchanged());
    assert!(!accept(&lab.bundle(8)).unwrap().is_unchanged());
    assert_eq!(
        accept(&lab.bundle(6)).unwrap_err(),
        VerifyError::BelowFloor { offered: 6, floor: 7 }
    );
    assert_eq!(accept(&lab.bundle(7)).unwrap_err().code(), "same-serial-other-digest");
}

#[test]
fn an_older_trust_epoch_and_a_newer_agent_are_refused() {
    let lab = Lab::new();
    let mut blob = lab.trust.current().clone();
    blob.min_epoch = 2;
    let trust = TrustChain::anchored(&blob.to_record(&[]).unwrap()).unwrap();
    let hardware = lab.hardware();
    let old = Receiver { agent: "0.0.1".parse().unwrap(), ..lab.receiver(&hardware) };
    let bundle = lab.bundle(7);

    let epoch = authenticate(&bundle, &trust).unwrap().accept(&lab.receiver(&hardware));
    let agent = authenticate(&bundle, &lab.trust).unwrap().accept(&old);

    assert_eq!(epoch.unwrap_err(), VerifyError::Epoch { found: 1, needed: 2 });
    assert_eq!(agent.unwrap_err().code(), "agent-too-old");
}

#[test]
fn a_signed_payload_whose_sections_do_not_fit_its_manifest_is_refused() {
    let lab = Lab::new();
    let good = payload(&lab.draft(7)).unwrap();
    let sections = Sections::parse(&good).unwrap();
    let exchanged = Sections { site: "site: other\n", ..sections.clone() };
    let fewer = Sections { secrets: sections.secrets[..1].to_vec(), ..sections };
    for (name, sections) in [("site", exchanged), ("secrets", fewer)] {
        let bundle = lab.seal_up(&sections.to_payload().unwrap(), &[&lab.key]);
        let error = lab.judge(&bundle, &lab.hardware()).unwrap_err();
        assert_eq!(error.code(), "section-hash", "{name}");
    }
}

#[test]
fn no_payload_that_a_trusted_key_signed_makes_a_panic() {
    // A bug at the signer's must not take boxes down: what is behind the signatures is hostile too.
    let lab = Lab::new();
    let good = payload(&lab.draft(7)).unwrap();
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 0x11;
        let signature = sign(&lab.key, BUNDLE_NAMESPACE, &changed).unwrap();
        let bundle = assemble(&[], &changed, &[signature]).unwrap();
        if let Ok(verified) = lab.judge(&bundle, &lab.hardware()) {
            // Only texts of the manifest that are free to be anything may differ.
            let secrets = verified.secrets(lab.edge.seal());
            assert!(secrets.is_ok() && verified.certs().is_ok(), "byte {at}");
        }
        let cut = sign(&lab.key, BUNDLE_NAMESPACE, &good[..at]).unwrap();
        let bundle = assemble(&[], &good[..at], &[cut]).unwrap();
        assert!(lab.judge(&bundle, &lab.hardware()).is_err(), "{at} bytes");
    }
}

#[test]
fn a_signature_for_another_purpose_is_refused() {
    let lab = Lab::new();
    let payload = payload(&lab.draft(7)).unwrap();
    let signature = sign(&lab.key, TRUST_NAMESPACE, &payload).unwrap();
    let bundle = assemble(&[], &payload, &[signature]).unwrap();

    let error = lab.judge(&bundle, &lab.hardware()).unwrap_err();

    assert!(matches!(error, VerifyError::Signature(SignatureError::Namespace { .. })));
}

#[test]
fn a_bundle_brings_the_trust_that_its_signer_needs() {
    let lab = Lab::new();
    let second = generate_ssh_key("second").unwrap();
    let mut next = lab.trust.current().clone();
    next.version = 2;
    next.signers[0].key = SignerKey::new(second.public_key().clone()).unwrap();
    let chain = lab.trust.with_stored(&next.to_record(&[&lab.key]).unwrap()).unwrap();
    let payload = payload(&lab.draft(7)).unwrap();
    let signature = sign(&second, BUNDLE_NAMESPACE, &payload).unwrap();
    let bundle = assemble(&chain.for_bundle(), &payload, &[signature]).unwrap();

    let walked = walk_trust(&bundle, &lab.trust).unwrap();

    assert_eq!(walked.version(), 2);
    assert_eq!(walked.to_stored(), next.to_record(&[&lab.key]).unwrap());
    assert!(authenticate(&bundle, &walked).is_ok());
    assert_eq!(authenticate(&bundle, &lab.trust).unwrap_err().code(), "unknown-signer");
}

#[test]
fn a_box_without_a_device_key_gets_no_secrets() {
    let lab = Lab::new();
    let mut draft = lab.draft(7);
    draft.boxes[0].device = None;

    assert_eq!(
        payload(&draft).unwrap_err(),
        crate::sign::DraftError::NoSealKey { name: "edge".into() }
    );

    draft.boxes[0].secrets.clear();
    let bundle = lab.seal_up(&payload(&draft).unwrap(), &[&lab.key]);
    let edge = lab.judge(&bundle, &lab.hardware()).unwrap();
    let inside = Hardware { uuid: Some("4c4c4544-aaaa".into()), ..Hardware::default() };
    let inside = lab.judge(&bundle, &inside).unwrap();

    assert!(edge.secrets(lab.edge.seal()).unwrap().is_empty());
    assert_eq!(inside.secrets(lab.inside.seal()).unwrap().len(), 1);
}

struct Lab {
    key: PrivateKey,
    trust: TrustChain,
    edge: DeviceKeys,
    inside: DeviceKeys,
}

impl Lab {
    fn new() -> Self {
        let key = generate_ssh_key("ops@example.org").unwrap();
        let first = TrustBlob::first(SignerKey::new(key.public_key().clone()).unwrap());
        let trust = TrustChain::anchored(&first.to_record(&[&key]).unwrap()).unwrap();
        let device = |name| DeviceKeys::generate(name).unwrap();
        Self { key, trust, edge: device("edge"), inside: device("inside") }
    }

    fn draft(&self, serial: u64) -> Draft {
        let one = |name: &str, matches, keys: &DeviceKeys, secret: (&str, &str)| BoxDraft {
            name: name.into(),
            matches,
            device: Some(keys.public()),
            secrets: Secrets::from([(secret.0.to_owned(), secret.1.as_bytes().to_vec())]),
        };
        Draft {
            site: "example".into(),
            site_yaml: "site: example\n".into(),
            certs: BTreeMap::from([("certs/a.pem".to_owned(), "PEM".to_owned())]),
            boxes: vec![
                one(
                    "edge",
                    HardwareMatch::SerialNumber("7RQ2X13".into()),
                    &self.edge,
                    ("turn", "edge-secret"),
                ),
                one(
                    "inside",
                    HardwareMatch::Uuid("4c4c4544-aaaa".into()),
                    &self.inside,
                    ("tunnel", "inside-secret"),
                ),
            ],
            serial,
            trust_epoch: 1,
            minimum_agent: AgentVersion::this(),
            created_at: 1_795_000_000,
            confirm: Confirm {
                mode: ConfirmMode::Auto,
                deadline: 120,
                require: vec![Probe::Upstream],
            },
            reason: "test".into(),
        }
    }

    fn bundle(&self, serial: u64) -> Vec<u8> {
        self.signed_by(serial, &[&self.key])
    }

    fn signed_by(&self, serial: u64, keys: &[&PrivateKey]) -> Vec<u8> {
        self.seal_up(&payload(&self.draft(serial)).unwrap(), keys)
    }

    fn seal_up(&self, payload: &[u8], keys: &[&PrivateKey]) -> Vec<u8> {
        let sign_by = |key: &&PrivateKey| sign(key, BUNDLE_NAMESPACE, payload).unwrap();
        let signatures: Vec<_> = keys.iter().map(sign_by).collect();
        assemble(&[], payload, &signatures).unwrap()
    }

    fn hardware(&self) -> Hardware {
        Hardware {
            serial_number: Some("7RQ2X13\n".into()),
            seal_key: Some(self.edge.public().seal.fingerprint()),
            ..Hardware::default()
        }
    }

    fn receiver<'a>(&self, hardware: &'a Hardware) -> Receiver<'a> {
        Receiver {
            target: Target::Hardware(hardware),
            floor: Floor::default(),
            agent: AgentVersion::this(),
        }
    }

    fn judge(&self, bytes: &[u8], hardware: &Hardware) -> Result<VerifiedBundle, VerifyError> {
        let trust = walk_trust(bytes, &self.trust)?;
        authenticate(bytes, &trust)?.accept(&self.receiver(hardware))
    }
}
