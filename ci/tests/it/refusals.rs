//! What a box does not take: each with its exact reason, and what ran before goes on running.

use std::fs;
use std::path::{Path, PathBuf};

use postern_ci::end_to_end;
use postern_ci::lab::Lab;
use postern_ci::lab::edge::NamespaceEdge;
use postern_ci::lab::topology::{InnerPath, Nics};

use crate::{must, one_at_a_time, start};

#[test]
fn a_bad_bundle_is_refused_with_its_reason_and_changes_nothing() {
    let _turn = one_at_a_time();
    let lab = start(Nics::Veth, InnerPath::DeclaredPeer);
    let edge = lab.namespace_edge().unwrap();
    let good = lab.sign(7).unwrap();
    must("the bundle is applied and confirmed", edge.apply(&good));
    let bytes = fs::read(&good).unwrap();

    let cut = write(&lab, "cut.postern", &bytes[..bytes.len() - 100]);
    refused(&edge, "cut short", &cut, &["cut", "length", "truncated", "short"]);

    let mut tampered = bytes.clone();
    let at = find(&tampered, b"realm: turnuser");
    tampered[at + 7] ^= 0x20;
    let tampered = write(&lab, "tampered.postern", &tampered);
    refused(&edge, "tampered with", &tampered, &["signature"]);

    let unsigned = write(&lab, "unsigned.postern", &without_signatures(&bytes));
    refused(&edge, "unsigned", &unsigned, &["sign"]);

    refused(&edge, "by an unknown signer", &by_a_stranger(&lab), &["signer", "trust"]);
    refused(&edge, "for another box", &for_another_box(&lab), &["box", "hardware", "7rq2x13"]);
    refused(&edge, "below the serial floor", &lab.sign(6).unwrap(), &["serial"]);

    let status = must("status", edge.status());
    assert_eq!(status["bundle"]["serial"], 7, "{status:#}");
    must("the page still loads", end_to_end::page_loads(&lab));
    must("the relay still relays", end_to_end::relay_to_relay(&lab));
}

#[track_caller]
fn refused(edge: &NamespaceEdge, what: &str, bundle: &Path, words: &[&str]) {
    let reason = match edge.apply(bundle) {
        Ok(said) => panic!("a bundle {what} was taken: {said}"),
        Err(error) => format!("{error:#}").to_lowercase(),
    };
    assert!(words.iter().any(|word| reason.contains(word)), "{what}: {reason}");
    println!("ok: {what}: {reason}");
}

fn write(lab: &Lab, name: &str, bytes: &[u8]) -> PathBuf {
    let path = lab.site.folder().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).unwrap()
}

/// The same payload with an empty signature part, lengths corrected.
fn without_signatures(bytes: &[u8]) -> Vec<u8> {
    let length = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let end = 20 + length(8) + length(12);
    let mut cut = bytes[..end].to_vec();
    cut[16..20].copy_from_slice(&0u32.to_be_bytes());
    cut
}

/// Serial 8, signed with a key that the box was never told of.
fn by_a_stranger(lab: &Lab) -> PathBuf {
    lab.site.postern(&["bundle", "keygen", "stranger"]).unwrap();
    lab.site.sign_as("stranger", 8).unwrap()
}

/// Serial 9 for a box with another serial number.
fn for_another_box(lab: &Lab) -> PathBuf {
    let bundle = lab.sign(9).unwrap();
    let site = lab.site.folder().join("octavio.site.yaml");
    let text = fs::read_to_string(&site).unwrap().replace("7RQ2X13", "8WB4K20");
    fs::write(&site, text).unwrap();
    fs::remove_file(&bundle).unwrap();
    lab.site.sign_current("signer", &bundle).unwrap();
    bundle
}
