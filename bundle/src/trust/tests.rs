use super::*;
use crate::device_key::generate_ssh_key;

#[test]
fn the_walk_needs_roots_of_the_old_and_of_the_new_version() {
    let (old, new) = (key("old"), key("new"));
    let start = anchored(&TrustBlob::first(public(&old)));
    let next = TrustBlob { version: 2, ..TrustBlob::first(public(&new)) };

    let only_old = start.with_stored(&next.to_record(&[&old]).unwrap());
    let only_new = start.with_stored(&next.to_record(&[&new]).unwrap());
    let both = start.with_stored(&next.to_record(&[&old, &new]).unwrap());

    let threshold = |by| TrustError::Threshold { version: 2, by, found: 0, needed: 1 };
    assert_eq!(only_old.unwrap_err(), threshold(2));
    assert_eq!(only_new.unwrap_err(), threshold(1));
    assert_eq!(both.unwrap().version(), 2);
}

#[test]
fn a_gap_names_the_version_that_is_missing() {
    let root = key("root");
    let start = anchored(&TrustBlob::first(public(&root)));
    let third = TrustBlob { version: 3, ..TrustBlob::first(public(&root)) };

    let error = start.with_stored(&third.to_record(&[&root]).unwrap()).unwrap_err();

    assert_eq!(error, TrustError::Gap { needed: 2, found: 3 });
    assert!(error.to_string().starts_with("needs trust version 2"));
}

#[test]
fn the_higher_of_image_and_stored_counts() {
    let root = key("root");
    let version = |version| TrustBlob { version, ..TrustBlob::first(public(&root)) };
    let stored: Vec<u8> =
        [2, 3].iter().flat_map(|v| version(*v).to_record(&[&root]).unwrap()).collect();

    for (image, reached) in [(1, 3), (2, 3), (3, 3), (5, 5)] {
        let chain = anchored(&version(image)).with_stored(&stored).unwrap();
        assert_eq!(chain.version(), reached, "image with version {image}");
        // An older image in the other slot can still walk from what is stored.
        assert_eq!(chain.to_stored(), stored);
    }
}

#[test]
fn a_changed_blob_is_refused() {
    let root = key("root");
    let start = anchored(&TrustBlob::first(public(&root)));
    let next = TrustBlob { version: 2, ..TrustBlob::first(public(&root)) };
    let mut record = next.to_record(&[&root]).unwrap();
    let at = record.windows(11).position(|w| w == b"\"min-epoch\"").unwrap() + 13;
    assert_eq!(record[at], b'1');
    record[at] = b'0';

    let error = start.with_stored(&record).unwrap_err();

    assert!(matches!(
        error,
        TrustError::Signature { version: 2, error: SignatureError::Mismatch { .. } }
    ));
}

#[test]
fn versions_that_do_not_follow_each_other_are_refused() {
    let root = key("root");
    let start = anchored(&TrustBlob::first(public(&root)));
    let version = |version| TrustBlob { version, ..TrustBlob::first(public(&root)) };
    let records: Vec<u8> =
        [2, 2].iter().flat_map(|v| version(*v).to_record(&[&root]).unwrap()).collect();

    assert_eq!(
        start.with_stored(&records).unwrap_err(),
        TrustError::NotConsecutive { before: 2, found: 2 }
    );
}

#[test]
fn blobs_that_could_never_work_are_refused() {
    let root = key("root");
    let good = TrustBlob::first(public(&root));
    let bad = [
        TrustBlob { version: 0, ..good.clone() },
        TrustBlob { root_threshold: 0, ..good.clone() },
        TrustBlob { root_threshold: 2, ..good.clone() },
        TrustBlob { threshold: 0, ..good.clone() },
        TrustBlob { threshold: 2, ..good.clone() },
        TrustBlob { roots: vec![public(&root), public(&root)], ..good.clone() },
        TrustBlob { revoked: BTreeSet::from([public(&root).fingerprint()]), ..good.clone() },
    ];
    for blob in bad {
        let json = serde_json::to_vec(&blob).unwrap();
        assert!(matches!(TrustBlob::parse(&json), Err(TrustError::Blob { .. })), "{blob:?}");
    }
    let mut json = serde_json::to_value(&good).unwrap();
    json["extra"] = true.into();
    assert!(matches!(TrustBlob::parse(json.to_string().as_bytes()), Err(TrustError::Json { .. })));
}

fn key(comment: &str) -> PrivateKey {
    generate_ssh_key(comment).unwrap()
}

fn public(key: &PrivateKey) -> SignerKey {
    SignerKey::new(key.public_key().clone()).unwrap()
}

fn anchored(blob: &TrustBlob) -> TrustChain {
    TrustChain::anchored(&blob.to_record(&[]).unwrap()).unwrap()
}
