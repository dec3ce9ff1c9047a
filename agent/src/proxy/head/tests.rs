use super::*;

fn judge(request: &[u8]) -> Result<Head, Refusal> {
    let mut scanner = Scanner::default();
    let length = scanner.scan(request)?.ok_or_else(|| bad("incomplete"))?;
    examine(&request[..length])
}

const GET: Head = Head { framing: Framing::Length(0), websocket: false };

#[test]
fn ordinary_requests_pass() {
    for (request, head) in [
        (&b"GET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n"[..], GET),
        (b"\r\nGET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n", GET),
        (b"GET /a/../b/%2e%2e/c?x=%zz&y=[|] HTTP/1.1\r\nhost:a.example.org:443\r\n\r\n", GET),
        (b"GET / HTTP/1.0\r\nHost: a.example.org\r\nConnection: keep-alive\r\n\r\n", GET),
        (b"GET https://a.example.org/x HTTP/1.1\r\nHost: A.example.org\r\n\r\n", GET),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
            Head { framing: Framing::Length(5), websocket: false },
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
            Head { framing: Framing::Chunked, websocket: false },
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            Head { framing: Framing::Length(0), websocket: true },
        ),
        // Without Connection: upgrade, and in HTTP/1.0, Upgrade says nothing (RFC 9110 section 7.8).
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", GET),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", GET),
    ] {
        assert_eq!(judge(request), Ok(head), "{}", request.escape_ascii());
    }
}

const TWO_READINGS: &[(&[u8], u16)] = &[
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost:\ta\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost:\ra\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\x0c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400),
        (b"GET https://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET https://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /../x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a/%2e%2E//../x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, host\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", 417),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\n",
            400,
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x, websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\n\r\n", 400),
    (b"GET https://a./ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET https://a:443/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: .\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"\x00\x01\x00\x00\x21\x12\xa4\x42", 400),
];

#[test]
fn requests_with_two_readings_are_refused() {
    for &(request, status) in TWO_READINGS {
        let refusal = judge(request).expect_err(&request.escape_ascii().to_string());
        assert_eq!(refusal.status.as_u16(), status, "{}: {refusal:?}", request.escape_ascii());
    }
}

#[test]
fn long_heads_are_refused_before_they_end() {
    let mut fields = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
    for number in 0..150 {
        fields.extend_from_slice(format!("X-{number}: 1\r\n").as_bytes());
    }
    let long_target = [b"GET /".to_vec(), vec![b'a'; 9000]].concat();
    let long_field = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 9000]].concat();
    let mut long_head = b"GET / HTTP/1.1\r\n".to_vec();
    for _ in 0..4 {
        long_head
            .extend_from_slice(&[b"X: ".to_vec(), vec![b'a'; 4000], b"\r\n".to_vec()].concat());
    }

    for (raw, status) in [(fields, 431), (long_target, 414), (long_field, 431), (long_head, 431)] {
        assert_eq!(Scanner::default().scan(&raw).unwrap_err().status.as_u16(), status);
    }
}

#[test]
fn a_head_that_trickles_in_is_found_at_the_same_place() {
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next";
    let mut scanner = Scanner::default();

    for end in 0..27 {
        assert_eq!(scanner.scan(&request[..end]), Ok(None), "at {end}");
    }
    assert_eq!(scanner.scan(request), Ok(Some(27)));
}
