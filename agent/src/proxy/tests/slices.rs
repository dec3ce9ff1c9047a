//! Slices as they come from the agent, good and bad.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::super::{Proxy, attend};
use super::setting::{Authority, GUEST, Setting, connect, free_address, generation};
use crate::ipc::{Channel, seal};
use crate::message::{SliceReply, SliceRequest};
use crate::plan::ProxySlice;

#[tokio::test]
async fn a_key_of_another_certificate_is_refused_and_the_old_pair_serves_on() {
    let mut setting = Setting::new().await;
    setting.slice.certificates[0].key = setting.authority.issue(&[GUEST]).1;

    let refused = setting.proxy.serve(generation(2), &setting.slice, BTreeMap::new());

    let reason = refused.unwrap_err().to_string();
    assert_eq!(reason, "certificate \"box\": its key does not match its certificate");
    assert!(setting.get("/").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(setting.proxy.report()["generation"]["serial"], 1);
}

#[tokio::test]
async fn slices_that_cannot_work_are_refused_with_the_reason() {
    let setting = Setting::new().await;
    let change = |change: &dyn Fn(&mut ProxySlice)| {
        let mut slice = setting.slice.clone();
        change(&mut slice);
        setting.proxy.serve(generation(2), &slice, BTreeMap::new()).unwrap_err().to_string()
    };

    for (reason, expected) in [
        (change(&|slice| slice.certificates.clear()), "the slice has no certificate"),
        (change(&|slice| slice.certificates[0].chain.clear()), "its chain holds no certificate"),
        (change(&|slice| slice.certificates[0].key.clear()), "its key is not PEM"),
        (
            change(&|slice| {
                slice.certificates[0] = Authority::new().certificate("x", &["a.example"]);
            }),
            "no certificate covers guest \"guest.example.org\"; covered are a.example",
        ),
        (change(&|slice| slice.guests.push(slice.guests[0].clone())), "is there twice"),
        (
            change(&|slice| slice.guests[0].url = "http://guest.example.org".into()),
            "is not https://",
        ),
        (
            change(&|slice| slice.guests[0].upstream.trust = Some(String::new())),
            "its trust holds no certificate",
        ),
        (change(&|slice| slice.tls = vec!["192.0.2.1:4443".parse().unwrap()]), "cannot listen on"),
    ] {
        assert!(reason.contains(expected), "{reason}");
    }
    assert!(setting.get("/").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn the_agent_hands_over_slices_and_asks_for_status() {
    let setting = Setting::new().await;
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (agent, channel) = (Channel::from_fd(ours), Channel::from_fd(theirs));
    let handle = tokio::runtime::Handle::current();
    let thread = std::thread::spawn(move || {
        let _context = handle.enter();
        attend(&channel, &Proxy::new("/nonexistent/streams"), Path::new("/nonexistent/net"))
    });
    let agent = Arc::new(agent);
    let ask = async |request: SliceRequest, fd: Option<OwnedFd>| {
        let agent = Arc::clone(&agent);
        let exchange = tokio::task::spawn_blocking(move || {
            let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
            agent.send(&request, &fds).unwrap();
            agent.receive::<SliceReply>().unwrap().unwrap().0
        });
        exchange.await.unwrap()
    };
    let sealed =
        |slice: &ProxySlice| Some(seal("slice", &serde_json::to_vec(slice).unwrap()).unwrap());
    let mut slice = setting.slice.clone();
    (slice.tls, slice.redirect) = (vec![free_address()], Vec::new());

    let ready = ask(SliceRequest::Serve(generation(8)), sealed(&slice)).await;
    assert!(matches!(ready, SliceReply::Ready(it) if it == generation(8)));
    connect(&setting.authority.pem, slice.tls[0], GUEST).await.unwrap();

    let failed = ask(SliceRequest::Serve(generation(9)), None).await;
    assert!(matches!(failed, SliceReply::Failed(_, reason) if reason.contains("no slice came")));
    let mut privileged = slice.clone();
    privileged.tls = vec!["127.0.0.1:443".parse().unwrap()];
    let failed = ask(SliceRequest::Serve(generation(9)), sealed(&privileged)).await;
    assert!(matches!(failed, SliceReply::Failed(_, reason) if reason.contains("postern-net")));
    let SliceReply::Report(report) = ask(SliceRequest::Report, None).await else {
        panic!("no report")
    };
    assert_eq!(report["generation"]["serial"], 8);
    assert_eq!(report["listeners"][0]["kind"], "tls");
    assert!(report["certificates"][0]["days-left"].as_i64().unwrap() > 300);

    assert!(matches!(ask(SliceRequest::Stop, None).await, SliceReply::Stopped));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(connect(&setting.authority.pem, slice.tls[0], GUEST).await.is_err());
    drop(agent);
    thread.join().unwrap().unwrap();
}
