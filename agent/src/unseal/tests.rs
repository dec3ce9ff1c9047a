//! Whole requests over a real socket pair, with a real bundle of a real site.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use bundle::container::assemble;
use bundle::device_key::{DeviceKeys, generate_ssh_key};
use bundle::manifest::{AgentVersion, Confirm, ConfirmMode, HardwareMatch};
use bundle::seal::Secrets;
use bundle::sign::{BoxDraft, Draft, payload};
use bundle::signature::{BUNDLE_NAMESPACE, SignerKey, sign};
use bundle::trust::{TrustBlob, TrustChain};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::*;
use crate::ipc::Listener;
use crate::message::LastKnownGood;
use crate::plan::{ProxySlice, RelaySlice};

#[test]
fn an_accepted_bundle_gives_the_plan_to_net_and_slices_to_the_agent() {
    let place = Place::new();
    let bundle = place.bundle(7, SITE);

    let answer = place.ask(&UnsealRequest::Judge, &bundle);

    let UnsealReply::Accepted { generation, summary, slices, unchanged, auto_confirm, .. } =
        answer.reply
    else {
        panic!("{:?}", answer.reply)
    };
    assert_eq!(generation.serial, 7);
    assert_eq!(summary["box"], "edge1");
    assert_eq!(slices, [Service::Relay, Service::Proxy]);
    assert!(!unchanged && auto_confirm);
    assert_eq!(answer.planned, [generation]);
    let relay: RelaySlice = serde_json::from_slice(&answer.memfds[0]).unwrap();
    assert_eq!(relay.users[0].password, "TURN-n0t-for-guests-8812");
    let proxy: ProxySlice = serde_json::from_slice(&answer.memfds[1]).unwrap();
    assert_eq!(proxy.guests[0].host, "guest.example.org");
    assert_eq!(answer.memfds.len(), 2);
}

#[test]
fn a_refusal_names_its_reason_and_nothing_reaches_net() {
    let place = Place::new();
    let good = place.bundle(7, SITE);
    let mut tampered = good.clone();
    let at = tampered.windows(8).position(|window| window == b"site    ").unwrap();
    tampered[at + 20] ^= 1;
    let stranger = generate_ssh_key("stranger").unwrap();
    let by_stranger = place.signed_by(&stranger, 7, SITE);
    let cases: [(&str, &[u8]); 4] = [
        ("cut-short", &good[..good.len() - 1]),
        ("tampered", &tampered),
        ("unknown-signer", &by_stranger),
        ("malformed", b"not a bundle"),
    ];
    for (expected, bytes) in cases {
        let answer = place.ask(&UnsealRequest::Judge, bytes);

        let UnsealReply::Refused { code, reason } = answer.reply else { panic!("{expected}") };
        assert_eq!(code, expected, "{reason}");
        assert!(answer.planned.is_empty() && answer.memfds.is_empty(), "{expected}");
    }
}

#[test]
fn a_bundle_for_another_box_is_refused() {
    let place = Place::new();
    fs::write(place.path("credentials/dmi-serial"), "OTHER\n").unwrap();

    let answer = place.ask(&UnsealRequest::Judge, &place.bundle(7, SITE));

    assert_eq!(answer.refusal(), "other-box");
}

#[test]
fn the_confirmed_bundle_reopens_and_older_ones_are_refused() {
    let place = Place::new();
    let confirmed = place.bundle(7, SITE);
    let UnsealReply::Accepted { generation, .. } =
        place.ask(&UnsealRequest::Judge, &confirmed).reply
    else {
        panic!("refused")
    };
    assert_eq!(place.ask(&UnsealRequest::Reopen, &confirmed).refusal(), "not-confirmed");
    let lkg = LastKnownGood { generation, floor: 7 };
    fs::write(place.path("lkg"), serde_json::to_vec(&lkg).unwrap()).unwrap();

    for request in [UnsealRequest::Judge, UnsealRequest::Reopen] {
        let answer = place.ask(&request, &confirmed);
        assert!(matches!(answer.reply, UnsealReply::Accepted { unchanged: true, .. }));
    }
    let lower = SITE.replace("serial: 7", "serial: 6");
    let refused = place.ask(&UnsealRequest::Judge, &place.bundle(6, &lower));
    assert_eq!(refused.refusal(), "below-serial-floor");
    let same = place.ask(&UnsealRequest::Judge, &place.bundle(7, SITE));
    assert_eq!(same.refusal(), "same-serial-other-digest");
    let other = place.ask(&UnsealRequest::Reopen, &place.bundle(7, SITE));
    // A damaged trust file keeps no box from coming up; it only stops new bundles.
    fs::write(place.path("stored-trust"), "damaged").unwrap();
    assert_eq!(place.ask(&UnsealRequest::Judge, &confirmed).refusal(), "not-ready");
    let reopened = place.ask(&UnsealRequest::Reopen, &confirmed);
    assert!(matches!(reopened.reply, UnsealReply::Accepted { unchanged: true, .. }));
    assert_eq!(other.refusal(), "other-digest");
}

#[test]
fn newer_trust_comes_back_even_with_a_refusal_and_sticks() {
    let place = Place::new();
    let second = generate_ssh_key("second").unwrap();
    let mut next = place.trust.current().clone();
    next.version = 2;
    next.signers[0].key = SignerKey::new(second.public_key().clone()).unwrap();
    let chain = place.trust.with_stored(&next.to_record(&[&place.key]).unwrap()).unwrap();
    let draft = payload(&place.draft(7, SITE)).unwrap();
    let by_revoked = sign(&place.key, BUNDLE_NAMESPACE, &draft).unwrap();
    let bundle = assemble(&chain.for_bundle(), &draft, &[by_revoked]).unwrap();

    let mut answer = place.ask(&UnsealRequest::Judge, &bundle);

    assert_eq!(answer.refusal(), "unknown-signer");
    let stored = answer.memfds.pop().unwrap();
    assert_eq!(stored, chain.to_stored());
    fs::write(place.path("stored-trust"), stored).unwrap();
    let old_signer = place.ask(&UnsealRequest::Judge, &place.bundle(8, SITE));
    assert_eq!(old_signer.refusal(), "unknown-signer");
    assert!(old_signer.memfds.is_empty());
}

#[test]
fn a_site_that_its_manifest_belies_is_refused() {
    let place = Place::new();

    let answer = place.ask(&UnsealRequest::Judge, &place.bundle(8, SITE));

    let UnsealReply::Refused { code, reason } = answer.reply else { panic!("accepted") };
    assert_eq!(code, "site");
    assert!(reason.contains("serial 7"), "{reason}");
}

#[test]
fn faults_of_a_signed_site_are_told_with_their_place() {
    let place = Place::new();
    let wrong = SITE.replace("media-ports: 24000-29999", "media-ports: 29999-24000");

    let answer = place.ask(&UnsealRequest::Judge, &place.bundle(7, &wrong));

    let UnsealReply::Refused { code, reason } = answer.reply else { panic!("accepted") };
    assert_eq!(code, "site");
    assert!(reason.contains("line 33 column"), "{reason}");
}

#[test]
fn without_trust_in_the_image_no_bundle_is_judged() {
    let place = Place::new();
    fs::remove_file(place.path("image-trust")).unwrap();

    let answer = place.ask(&UnsealRequest::Judge, &place.bundle(7, SITE));

    assert_eq!(answer.refusal(), "not-ready");
}

#[test]
fn a_plan_that_net_does_not_take_is_a_refusal() {
    let place = Place::new();
    let socket = place.path("net");
    let listener = Listener::bind(&socket).unwrap();
    let net = thread::spawn(move || {
        let channel = listener.accept().unwrap();
        let (request, mut fds) = channel.receive::<NetRequest>().unwrap().unwrap();
        let plan = read_sealed(fds.pop().unwrap(), 1 << 20).unwrap();
        channel.send(&NetReply::Failed("no such verb".into()), &[]).unwrap();
        (request, plan)
    });
    let inputs = place.inputs().unwrap();
    let bundle = place.bundle(7, SITE);
    let ready = judge::judge(&UnsealRequest::Judge, &bundle, &inputs).outcome.unwrap();

    let refusal = hand_over(&socket, &ready.generation, &ready.derived).unwrap_err();

    assert_eq!(refusal.reason, "postern-net did not take the plan: no such verb");
    let (request, plan) = net.join().unwrap();
    assert!(matches!(request, NetRequest::Plan(generation) if generation == ready.generation));
    let plan: crate::plan::NetPlan = serde_json::from_slice(&plan).unwrap();
    assert_eq!(plan, ready.derived.net);
    for secret in ["TURN-n0t-for-guests-8812", "PRIVATE KEY"] {
        assert!(!serde_json::to_string(&plan).unwrap().contains(secret));
    }
}

struct Answer {
    reply: UnsealReply,
    memfds: Vec<Vec<u8>>,
    planned: Vec<Generation>,
}

impl Answer {
    fn refusal(&self) -> &str {
        match &self.reply {
            UnsealReply::Refused { code, .. } => code,
            other => panic!("not refused: {other:?}"),
        }
    }
}

/// A box's files in a folder.
struct Place {
    dir: tempfile::TempDir,
    key: ssh_key::PrivateKey,
    trust: TrustChain,
    device: DeviceKeys,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = generate_ssh_key("ops@example.org").unwrap();
        let first = TrustBlob::first(SignerKey::new(key.public_key().clone()).unwrap());
        let record = first.to_record(&[]).unwrap();
        let trust = TrustChain::anchored(&record).unwrap();
        let place = Self { dir, key, trust, device: DeviceKeys::generate("edge1").unwrap() };
        fs::write(place.path("image-trust"), record).unwrap();
        fs::create_dir(place.path("credentials")).unwrap();
        fs::write(place.path("credentials/seal"), place.device.seal_text()).unwrap();
        fs::write(place.path("credentials/dmi-serial"), "7RQ2X13\n").unwrap();
        fs::write(place.path("credentials/dmi-uuid"), "unknown").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn inputs(&self) -> Result<Inputs, Refusal> {
        Inputs::read_from(
            &self.path("image-trust"),
            &self.path("stored-trust"),
            &self.path("lkg"),
            Some(&self.path("credentials")),
            &self.path("sys"),
        )
    }

    /// Sends a request as the agent does.
    fn ask(&self, request: &UnsealRequest, bundle: &[u8]) -> Answer {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let agent = Channel::from_fd(ours);
        let memfd = seal("bundle", bundle).unwrap();
        agent.send(request, &[memfd.as_fd()]).unwrap();
        let planned = Mutex::new(Vec::new());

        serve(&Channel::from_fd(theirs), || self.inputs(), &|generation, _| {
            planned.lock().unwrap().push(generation.clone());
            Ok(())
        })
        .unwrap();

        let (reply, fds) = agent.receive::<UnsealReply>().unwrap().unwrap();
        let memfds = fds.into_iter().map(|fd| read_sealed(fd, 1 << 20).unwrap()).collect();
        Answer { reply, memfds, planned: planned.into_inner().unwrap() }
    }

    fn bundle(&self, serial: u64, site: &str) -> Vec<u8> {
        self.signed_by(&self.key, serial, site)
    }

    fn signed_by(&self, key: &ssh_key::PrivateKey, serial: u64, site: &str) -> Vec<u8> {
        let payload = payload(&self.draft(serial, site)).unwrap();
        let signature = sign(key, BUNDLE_NAMESPACE, &payload).unwrap();
        assemble(&[], &payload, &[signature]).unwrap()
    }

    fn draft(&self, serial: u64, site: &str) -> Draft {
        let secret = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        Draft {
            site: "example".into(),
            site_yaml: site.into(),
            certs: BTreeMap::from([("certs/edge.pem".to_owned(), "CERTIFICATE".to_owned())]),
            boxes: vec![BoxDraft {
                name: "edge1".into(),
                matches: HardwareMatch::SerialNumber("7RQ2X13".into()),
                device: Some(self.device.public()),
                secrets: Secrets::from([
                    secret("admin-password", "$argon2id$v=19$..."),
                    secret("turn-password", "TURN-n0t-for-guests-8812"),
                    secret("edge-key", "-----BEGIN PRIVATE KEY-----\n"),
                ]),
            }],
            serial,
            trust_epoch: 1,
            minimum_agent: AgentVersion::this(),
            created_at: 1_795_000_000,
            confirm: Confirm { mode: ConfirmMode::Auto, deadline: 120, require: Vec::new() },
            reason: "test".into(),
        }
    }
}

const SITE: &str = r#"site: example
serial: 7
confirm: { mode: auto, deadline: 120s, require: [upstream] }
boxes:
  edge1:
    role: edge
    match: { serial-number: "7RQ2X13" }
    host-name: edge1
    domain: example.org
    interfaces:
      lan1:
        match: { mac: "52:54:00:00:01:68" }
        address: [192.0.2.10/25]
      lan2:
        match: { mac: "52:54:00:00:02:61" }
        address: [192.0.2.130/26]
        gateway: 192.0.2.129
        static-nat: 203.0.113.10
    dns:
      servers: [198.51.100.53]
    time: { servers: [198.51.100.123] }
    admin: { interface: lan1, port: 445, user: admin, password: { secret: admin-password } }
certificates:
  edge:
    chain: certs/edge.pem
    key: { secret: edge-key }
turn:
  realm: example.org
  listen: [lan1, lan2]
  port: 3478
  users: [{ name: turnuser, password: { secret: turn-password } }]
  peers: { allow: [192.0.2.20/32] }
  media-ports: 24000-29999
proxy:
  listen: [lan2]
  guests:
    - url: https://guest.example.org
      upstream:
        url: https://bridge.example.org
        addresses: [192.0.2.20]
"#;
