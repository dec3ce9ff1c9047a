//! What gets in and what does not.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::setting::{GUEST, Setting, read_head, read_to_end};

#[tokio::test]
async fn a_guest_gets_the_page_and_the_upstream_the_truth() {
    let setting = Setting::new().await;

    let answer = setting
        .send(format!(
            "POST /join?id=7 HTTP/1.1\r\nHost: {GUEST}:443\r\nOrigin: https://{GUEST}\r\n\
             X-Forwarded-For: 192.0.2.66\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\
             Content-Length: 4\r\n\r\nbody"
        ))
        .await;

    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("guest page body"), "{answer}");
    assert!(answer.contains("strict-transport-security: max-age=31536000\r\n"), "{answer}");
    assert!(answer.contains("x-kept: yes\r\n"), "{answer}");
    assert!(!answer.contains("alt-svc") && !answer.contains("keep-alive"), "{answer}");
    let request = setting.bridge.last_request();
    assert!(request.starts_with("POST /join?id=7 HTTP/1.1\r\n"), "{request}");
    for line in [
        "\nhost: guest.example.org\r\n",
        "origin: https://guest.example.org\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: https\r\n",
        "forwarded: for=127.0.0.1;host=guest.example.org;proto=https\r\n",
    ] {
        assert_eq!(request.matches(line).count(), 1, "{line:?} in {request}");
    }
    assert!(!request.contains("192.0.2.66") && !request.contains("x-hop"), "{request}");
}

#[tokio::test]
async fn bodies_stream_in_both_framings_and_connections_are_reused() {
    let setting = Setting::new().await;
    setting.wait_for_state("up").await;
    let before = *setting.bridge.connections.lock().unwrap();
    let mut stream = setting.connect(GUEST).await;

    for _ in 0..3 {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {GUEST}\r\nTransfer-Encoding: chunked\r\n\r\n\
             4\r\nbody\r\n0\r\nX-Trailer: 1\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await.unwrap();
        let length = head.split("content-length: ").nth(1).unwrap();
        let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(body, b"guest page 4\r\nbody\r\n0\r\n\r\n");
    }

    assert!(*setting.bridge.connections.lock().unwrap() <= before + 2);
}

#[tokio::test]
async fn a_name_that_no_certificate_has_is_refused_before_any_signature() {
    let setting = Setting::new().await;

    let error = setting.try_connect("other.example.org").await.unwrap_err();

    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    assert_eq!(setting.proxy.report()["handshakes-unknown-name"], 1);
}

#[tokio::test]
async fn a_wrong_host_gets_a_page_that_names_both_sides() {
    let setting = Setting::new().await;

    for host in ["box.example.org", "cmsweb.inside.example", "127.0.0.1", "guest.example.org:8443"]
    {
        let answer = setting.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;

        assert!(answer.starts_with("HTTP/1.1 421 Misdirected Request\r\n"), "{answer}");
        assert!(answer.contains(&format!("Received: {host}<")), "{answer}");
        assert!(answer.contains(&format!("Expected: {GUEST}<")), "{answer}");
        assert!(answer.contains("strict-transport-security"), "{answer}");
    }
    assert_eq!(
        setting.bridge.requests.lock().unwrap().iter().filter(|it| !it.contains("/health")).count(),
        0
    );
}

/// Each of these is refused by nginx, by HAProxy, or is one that they read differently; what is
/// behind it on the connection is never read as a request.
#[tokio::test]
async fn no_request_with_two_readings_reaches_the_upstream() {
    let setting = Setting::new().await;
    setting.wait_for_state("up").await;
    let host = format!("Host: {GUEST}");
    let chunked = "Transfer-Encoding: chunked";
    let long = "a".repeat(200 * 1024);
    let many: String = (0..150).map(|number| format!("X-{number}: 1\r\n")).collect();
    let smuggled = format!("GET /smuggled HTTP/1.1\r\n{host}\r\n\r\n");

    for (request, status) in [
        (format!("GET / HTTP/1.1\r\n{host}\r\nHost: evil.example\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\n{host}\r\n{host}\r\n\r\n"), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: \r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: <script>\r\n\r\n".to_owned(), 400),
        (format!("GET https://evil.example/ HTTP/1.1\r\n{host}\r\n\r\n"), 400),
        (
            format!("POST / HTTP/1.1\r\n{host}\r\nContent-Length: 3\r\n{chunked}\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (format!("POST / HTTP/1.1\r\n{host}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), 501),
        (format!("POST / HTTP/1.1\r\n{host}\r\n{chunked}, identity\r\n\r\n0\r\n\r\n"), 501),
        (format!("POST / HTTP/1.1\r\n{host}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("POST / HTTP/1.0\r\n{host}\r\n{chunked}\r\n\r\n0\r\n\r\n"), 400),
        (
            format!(
                "POST / HTTP/1.1\r\n{host}\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"
            ),
            400,
        ),
        (format!("POST / HTTP/1.1\r\n{host}\r\nContent-Length: +3\r\n\r\nabc"), 400),
        (format!("GET / HTTP/1.1\r\n{host}\r\nX: 1\r\n folded\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\n{host}\n\n"), 400),
        (format!("GET / HTTP/1.1\r\n{host}\r\nX: {long}\r\n\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\n{host}\r\n\r\n"), 414),
        (format!("GET / HTTP/1.1\r\n{host}\r\n{many}\r\n"), 431),
        (format!("CONNECT {GUEST}:443 HTTP/1.1\r\n{host}\r\n\r\n"), 405),
        (format!("GET /../../etc/passwd HTTP/1.1\r\n{host}\r\n\r\n"), 400),
        (format!("GET / HTTP/2.0\r\n{host}\r\n\r\n"), 505),
        (
            format!(
                "GET /ws HTTP/1.1\r\n{host}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
                 Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nContent-Length: 5\r\n\r\nhello"
            ),
            400,
        ),
    ] {
        let answer = setting.send(format!("{request}{smuggled}")).await;

        let shown: String = request.chars().take(200).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?} got {answer}");
        let answers = answer.lines().filter(|line| line.starts_with("HTTP/1.1 ")).count();
        assert_eq!(answers, 1, "{shown:?} got {answer}");
        assert!(answer.contains("connection: close\r\n"), "{shown:?} got {answer}");
    }

    let requests = setting.bridge.requests.lock().unwrap();
    assert!(requests.iter().all(|it| it.starts_with("GET /health ")), "{requests:?}");
}

#[tokio::test]
async fn a_broken_chunk_ends_both_connections() {
    let setting = Setting::new().await;

    let answer = setting
        .send(format!(
            "POST / HTTP/1.1\r\nHost: {GUEST}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody!\r\n0\r\n\r\n"
        ))
        .await;

    assert!(!answer.contains(" 200 "), "{answer}");
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_their_order() {
    let setting = Setting::new().await;

    let answer = setting
        .send(format!(
            "GET /1 HTTP/1.1\r\nHost: {GUEST}\r\n\r\n\
             POST /2 HTTP/1.1\r\nHost: {GUEST}\r\nContent-Length: 3\r\n\r\ntwo\
             GET /3 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"
        ))
        .await;

    let statuses: Vec<&str> =
        answer.split("HTTP/1.1 ").skip(1).map(|it| it.get(..3).unwrap()).collect();
    assert_eq!(statuses, ["200", "200", "400"], "{answer}");
}

#[tokio::test]
async fn port_80_leads_to_the_guest_url_and_nowhere_else() {
    let setting = Setting::new().await;
    let ask = async |request: String| {
        let mut stream = TcpStream::connect(setting.slice.redirect[0]).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        read_to_end(&mut stream).await
    };

    for host in [GUEST, "GUEST.example.org.", "guest.example.org:80"] {
        let request =
            format!("GET /join/7?a=b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = ask(request).await;
        assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
        assert!(answer.contains("location: https://guest.example.org/join/7?a=b\r\n"), "{answer}");
        assert!(!answer.contains("strict-transport-security"), "{answer}");
    }
    for host in ["evil.example", "guest.example.org:81", "guest.example.org.evil.example"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = ask(request).await;
        assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
        assert!(!answer.contains("location:"), "{answer}");
    }
    let answer = ask(format!("GET / HTTP/1.1\r\nHost: {GUEST}\r\nHost: {GUEST}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

/// Takes ten seconds: it is the real clock that must not be fooled by single bytes.
#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off() {
    let setting = Setting::new().await;
    let stream = setting.connect(GUEST).await;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let trickle = tokio::spawn(async move {
        for byte in "GET / HTTP/1.1\r\nX: ".bytes().chain(std::iter::repeat(b'a')) {
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        }
    });

    let answer = read_to_end(&mut reader).await;

    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(setting.proxy.report()["requests-refused"], 1);
    trickle.abort();
}
