//! Upstreams that come and go, tunnels, and slices that change under them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::setting::{
    Authority, Bridge, GUEST, Setting, UPSTREAM, free_address, read_head, upstream,
};

async fn websocket(setting: &Setting) -> TlsStream<TcpStream> {
    let mut stream = setting.connect(GUEST).await;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {GUEST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // What the upstream sent right behind its 101.
    expect(&mut stream, b"hello ").await;
    stream
}

async fn expect(stream: &mut TlsStream<TcpStream>, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    let arrived = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut read)).await;
    arrived.unwrap().unwrap();
    assert!(read == expected, "{} bytes differ", expected.len());
}

#[tokio::test]
async fn a_websocket_carries_bytes_both_ways() {
    let setting = Setting::new().await;
    let mut stream = websocket(&setting).await;

    for length in [1, 100, 16 * 1024, 300 * 1024] {
        let message: Vec<u8> =
            (0..length).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut read = vec![0; length];
        let (written, arrived) =
            tokio::join!(writer.write_all(&message), reader.read_exact(&mut read));
        written.unwrap();
        arrived.unwrap();
        assert!(read == message);
        stream = reader.unsplit(writer);
    }

    assert_eq!(setting.proxy.report()["websockets"]["open"], 1);
    stream.shutdown().await.unwrap();
    drop(stream);
    for _ in 0..100 {
        if setting.proxy.report()["websockets"]["open"] == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the tunnel is still there");
}

#[tokio::test]
async fn a_refused_upgrade_closes_the_connection() {
    let setting = Setting::new().await;

    let answer = setting
        .send(format!(
            "GET /no-websocket HTTP/1.1\r\nHost: {GUEST}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: {GUEST}\r\n\r\n"
        ))
        .await;

    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    let requests = setting.bridge.requests.lock().unwrap();
    assert!(!requests.iter().any(|request| request.contains("smuggled")));
}

#[tokio::test]
async fn a_websocket_outlives_changes_of_everything_else() {
    let mut setting = Setting::new().await;
    let mut stream = websocket(&setting).await;

    for serial in 2..30 {
        setting.authority = Authority::new();
        let certificate = setting.authority.certificate("new", &[GUEST]);
        setting.slice.certificates = vec![certificate];
        setting.slice.guests[0].upstream.health = None;
        if serial % 7 == 0 {
            setting.slice.tls = vec![free_address()];
        }
        setting.serve(serial);
        assert!(setting.get("/").await.ends_with("guest page "), "serial {serial}");
        stream.write_all(b"still here").await.unwrap();
        expect(&mut stream, b"still here").await;
    }

    assert_eq!(setting.proxy.report()["certificates"][0]["name"], "new");
    assert_eq!(setting.proxy.report()["certificates"][0]["sans"][0], GUEST);
    assert_eq!(setting.proxy.report()["generation"]["serial"], 29);
}

#[tokio::test]
async fn an_upstream_that_is_down_has_a_page_of_its_own() {
    let mut setting = Setting::new().await;
    setting.slice.guests[0].upstream = upstream(&setting.authority, free_address());
    setting.serve(2);

    let answer = setting.get("/").await;

    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("conference service cannot be reached"), "{answer}");
    assert!(answer.contains("retry-after: 10\r\n"), "{answer}");
    assert!(answer.contains("strict-transport-security: "), "{answer}");
    assert!(!answer.contains(UPSTREAM) && !answer.contains("127.0.0.1"), "{answer}");
    setting.wait_for_state("refused").await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_asked_for_again() {
    let setting = Setting::new().await;

    let answer = setting.get("/half").await;

    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    let requests = setting.bridge.requests.lock().unwrap();
    assert_eq!(requests.iter().filter(|request| request.contains("/half")).count(), 1);
}

#[tokio::test]
async fn status_tells_what_is_wrong_with_an_upstream() {
    let mut setting = Setting::new().await;
    setting.wait_for_state("up").await;
    let stranger = Authority::new();
    let elsewhere = Bridge::start(&setting.authority, "elsewhere.inside.example").await;
    let unknown = Bridge::start(&stranger, UPSTREAM).await;
    let good = setting.slice.guests[0].upstream.clone();

    for (serial, address, wanted) in [
        (2, elsewhere.address, "wrong-name"),
        (3, unknown.address, "unknown-ca"),
        (4, free_address(), "refused"),
    ] {
        setting.slice.guests[0].upstream = upstream(&setting.authority, address);
        setting.serve(serial);
        setting.wait_for_state(wanted).await;
        assert!(setting.get("/").await.starts_with("HTTP/1.1 503 "), "{wanted}");
    }
    setting.slice.guests[0].upstream.port = good.port;
    setting.slice.guests[0].upstream.health = Some("/half".to_owned());
    setting.serve(5);
    setting.wait_for_state("http-error").await;
    setting.slice.guests[0].upstream = good;
    setting.serve(6);
    setting.wait_for_state("up").await;
    let report = setting.proxy.report();
    assert!(report["guests"][0]["upstream"]["addresses"][0]["rtt-micros"].is_u64(), "{report}");
    assert_eq!(report["upstreams"][0]["reachable"], true, "{report}");
}

#[tokio::test]
async fn a_name_that_is_not_found_is_said_in_status() {
    let mut setting = Setting::new().await;
    setting.slice.guests[0].upstream.addresses.clear();
    setting.slice.guests[0].upstream.host = "nobody.invalid".to_owned();
    setting.serve(2);

    assert!(setting.get("/").await.starts_with("HTTP/1.1 503 "));
    for _ in 0..200 {
        let report = setting.proxy.report()["upstreams"][0].clone();
        if report["reachable"] == false {
            let reason = report["reason"].as_str().unwrap();
            assert!(reason.starts_with("its name is not found: "), "{report}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the upstream is still thought of: {}", setting.proxy.report());
}
