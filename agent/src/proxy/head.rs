//! The strict look at an HTTP/1.1 request head, before hyper sees it.
//!
//! hyper reads as leniently as the world's clients write; a proxy that forwards what it tolerates
//! lets two servers disagree about where a request ends or whom it is for. So a request passes
//! only in the one form that has one meaning: whatever nginx or HAProxy refuses is refused, and
//! what they merely tidy up (bare line feeds, folded lines, both length headers) is refused too.
//!
//! # Specifications
//!
//! - [RFC 9112](https://www.rfc-editor.org/rfc/rfc9112): section 2.2 (lines), 3 (request line),
//!   5 (fields), 6 (length of the body).
//! - [RFC 9110](https://www.rfc-editor.org/rfc/rfc9110): sections 5.1 and 5.5 (names, values),
//!   7.2 (Host), 7.6.1 (Connection), 7.8 (Upgrade).
//!
//! # Invariants
//!
//! 1. Bytes in, a verdict out: no I/O, no clock.
//! 2. A head that passes has exactly one Host and at most one of Content-Length and
//!    Transfer-Encoding, and hyper computes the same body length from it as [`Framing`] says.

use http::StatusCode;
use http::uri::PathAndQuery;

use super::name::Authority;

/// Longest request or header line with its line end; nginx' `large_client_header_buffers`.
const MAX_LINE: usize = 8 * 1024;
/// Longest head; HAProxy's buffer (16 KiB) less its reserve (1 KiB).
pub(super) const MAX_HEAD: usize = 15 * 1024;
/// Most header fields; HAProxy's `tune.http.maxhdr`.
pub(super) const MAX_FIELDS: usize = 100;

/// Why a request was refused; the connection is closed after the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    /// Status of the answer.
    pub(super) status: StatusCode,
    /// What is wrong with it, for the page and the log.
    pub(super) reason: &'static str,
}

/// How the body of a request ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Framing {
    /// After this many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
}

/// What the layers above need to know of a head that passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Head {
    /// Where the body ends.
    pub(super) framing: Framing,
    /// Whether it asks for a WebSocket (RFC 6455 section 4.1).
    pub(super) websocket: bool,
}

fn bad(reason: &'static str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, reason }
}

/// Looks for the end of a head in bytes that arrive in pieces; it never looks at a byte twice.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    scanned: usize,
    line: usize,
    lines: usize,
}

impl Scanner {
    /// The length of the head at the start of `raw`, line ends included; `None`: more is needed.
    ///
    /// `raw` is what it was at the last call with more bytes at its end.
    ///
    /// # Errors
    ///
    /// Returns why no continuation can make it a head that passes.
    pub(super) fn scan(&mut self, raw: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(offset) = raw[self.scanned..].iter().position(|&byte| byte == b'\n') {
            let end = self.scanned + offset + 1;
            let line = &raw[self.line..end];
            self.check_length(line.len(), end)?;
            if !line.ends_with(b"\r\n") {
                return Err(bad("a line ends in a bare line feed"));
            }
            let empty = line.len() == 2;
            (self.scanned, self.line) = (end, end);
            match (empty, self.lines) {
                // One empty line before the request line is forgiven (RFC 9112 section 2.2).
                (true, 0) if end == 2 => {}
                (true, 0) => return Err(bad("empty lines before the request line")),
                (true, _) => return Ok(Some(end)),
                (false, _) => self.lines += 1,
            }
            if self.lines > MAX_FIELDS + 1 {
                return Err(Refusal {
                    status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    reason: "more than 100 header fields",
                });
            }
        }
        self.scanned = raw.len();
        self.check_length(raw.len() - self.line, raw.len())?;
        if self.lines == 0
            && raw.get(self.line).is_some_and(|byte| !matches!(byte, b'A'..=b'Z' | b'\r'))
        {
            return Err(bad("this is not an HTTP request"));
        }
        Ok(None)
    }

    fn check_length(&self, line: usize, total: usize) -> Result<(), Refusal> {
        if line > MAX_LINE && self.lines == 0 {
            return Err(Refusal {
                status: StatusCode::URI_TOO_LONG,
                reason: "the request line is above 8 KiB",
            });
        }
        if line > MAX_LINE || total > MAX_HEAD {
            return Err(Refusal {
                status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                reason: "a header field is above 8 KiB or all of them above 15 KiB",
            });
        }
        Ok(())
    }
}

/// Judges a whole head, as [`Scanner`] found it.
///
/// # Errors
///
/// Returns the first reason to refuse it.
pub(super) fn examine(head: &[u8]) -> Result<Head, Refusal> {
    let text = head.strip_prefix(b"\r\n").unwrap_or(head);
    let text = text.strip_suffix(b"\r\n\r\n").ok_or_else(|| bad("the head is cut short"))?;
    let mut lines = split_lines(text);
    let request_line = lines.next().unwrap_or_default();
    let (request, target_authority) = request_line_parts(request_line)?;
    let mut fields = Fields::default();
    for line in lines {
        fields.add(line)?;
    }
    fields.verdict(request, target_authority)
}

fn split_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    // Line feeds were checked by the scanner: each follows a carriage return.
    text.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// What the request line says, as far as the fields depend on it.
#[derive(Clone, Copy)]
struct RequestLine {
    is_get: bool,
    is_http_1_1: bool,
}

fn request_line_parts(line: &[u8]) -> Result<(RequestLine, Option<Authority<'_>>), Refusal> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad("the request line is not method, target and version"));
    };
    if method.is_empty() || !method.iter().all(|byte| matches!(byte, b'A'..=b'Z' | b'-')) {
        return Err(bad("the method is not in capital letters"));
    }
    let is_http_1_1 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ if version.starts_with(b"HTTP/") => {
            return Err(Refusal {
                status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                reason: "the version is neither HTTP/1.1 nor HTTP/1.0",
            });
        }
        _ => return Err(bad("the request line does not end in a version")),
    };
    if matches!(method, b"CONNECT" | b"TRACE") {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: "CONNECT and TRACE are not served",
        });
    }
    let authority = target_authority(target)?;
    Ok((RequestLine { is_get: method == b"GET", is_http_1_1 }, authority))
}

/// Checks the target and returns the authority of an absolute one.
fn target_authority(target: &[u8]) -> Result<Option<Authority<'_>>, Refusal> {
    if !target.iter().all(|byte| matches!(byte, 0x21..=0x7e)) {
        return Err(bad("the target holds a byte outside visible ASCII"));
    }
    if target.contains(&b'#') {
        return Err(bad("the target holds a fragment"));
    }
    let (authority, path) = if target.starts_with(b"/") {
        (None, target)
    } else {
        let rest = [&b"https://"[..], b"http://"]
            .iter()
            .find_map(|scheme| target.strip_prefix(*scheme))
            .ok_or_else(|| bad("the target is neither a path nor an http or https URL"))?;
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let authority = Authority::parse(&rest[..end]).ok_or_else(|| bad("the target's host"))?;
        (Some(authority), &rest[end..])
    };
    if !path.is_empty() && PathAndQuery::try_from(path).is_err() {
        return Err(bad("the target holds a character that a URL must escape"));
    }
    check_path(path)?;
    Ok(authority)
}

/// Refuses what nginx refuses when it normalises: bad escapes, an escaped zero byte, dot segments
/// that climb above the root.
fn check_path(target: &[u8]) -> Result<(), Refusal> {
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let hex = rest.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let value = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
            .ok_or_else(|| bad("the path holds a broken percent escape"))?;
        if value == 0 {
            return Err(bad("the path holds an escaped zero byte"));
        }
        decoded.push(value);
        rest = &rest[2..];
    }
    let mut depth = 0_usize;
    for segment in decoded.split(|&byte| byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." if depth == 0 => return Err(bad("the path climbs above the root")),
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    Ok(())
}

/// The fields that decide what a request means.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    connection_upgrade: bool,
    websocket: bool,
    websocket_key: bool,
}

impl<'a> Fields<'a> {
    fn add(&mut self, line: &'a [u8]) -> Result<(), Refusal> {
        let (name, value) = field(line)?;
        match name.to_ascii_lowercase().as_slice() {
            b"host" if self.host.is_some() => return Err(bad("more than one Host")),
            b"host" => self.host = Some(value),
            b"content-length" if self.length.is_some() => {
                return Err(bad("more than one Content-Length"));
            }
            b"content-length" => self.length = Some(content_length(value)?),
            b"transfer-encoding" => {
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal {
                        status: StatusCode::NOT_IMPLEMENTED,
                        reason: "a Transfer-Encoding other than chunked",
                    });
                }
                if std::mem::replace(&mut self.chunked, true) {
                    return Err(bad("more than one Transfer-Encoding"));
                }
            }
            b"connection" => self.connection(value)?,
            b"upgrade" => {
                let mut protocols = value.split(|&byte| byte == b',');
                self.websocket |=
                    protocols.any(|it| it.trim_ascii().eq_ignore_ascii_case(b"websocket"));
            }
            b"sec-websocket-key" if self.websocket_key || !is_websocket_key(value) => {
                return Err(bad("Sec-WebSocket-Key is not 16 bytes in base64, once"));
            }
            b"sec-websocket-key" => self.websocket_key = true,
            b"expect" if !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(Refusal {
                    status: StatusCode::EXPECTATION_FAILED,
                    reason: "an Expect other than 100-continue",
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Connection may not nominate the fields that frame or route the request: a hop that strips
    /// them would see another request (RFC 9110 section 7.6.1).
    fn connection(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for option in value.split(|&byte| byte == b',') {
            match option.trim_ascii().to_ascii_lowercase().as_slice() {
                b"upgrade" => self.connection_upgrade = true,
                b"host" | b"content-length" | b"transfer-encoding" => {
                    return Err(bad("Connection names a field that is not hop-by-hop"));
                }
                option if option.iter().copied().all(is_token) => {}
                _ => return Err(bad("Connection holds something that is not a name")),
            }
        }
        Ok(())
    }

    fn verdict(
        self,
        request: RequestLine,
        target_authority: Option<Authority<'_>>,
    ) -> Result<Head, Refusal> {
        let host = self.host.ok_or_else(|| bad("no Host"))?;
        let host = Authority::parse(host).ok_or_else(|| bad("Host is not a name and a port"))?;
        if target_authority.is_some_and(|target| !target.is_same(&host)) {
            return Err(bad("the target's host is not the one in Host"));
        }
        if self.chunked && self.length.is_some() {
            return Err(bad("both Content-Length and Transfer-Encoding"));
        }
        if self.chunked && !request.is_http_1_1 {
            return Err(bad("Transfer-Encoding in HTTP/1.0"));
        }
        let framing = match self.length {
            _ if self.chunked => Framing::Chunked,
            length => Framing::Length(length.unwrap_or(0)),
        };
        let websocket = self.websocket && self.connection_upgrade && request.is_http_1_1;
        if websocket && framing != Framing::Length(0) {
            return Err(bad("an Upgrade with a body"));
        }
        if websocket && !self.websocket_key {
            return Err(bad("an Upgrade to WebSocket without Sec-WebSocket-Key"));
        }
        if websocket && !request.is_get {
            return Err(bad("an Upgrade to WebSocket that is not a GET"));
        }
        Ok(Head { framing, websocket })
    }
}

/// Splits and checks a field line; also used for the trailer fields of a chunked body.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(bad("a folded header line"));
    }
    let colon = line
        .iter()
        .position(|&byte| byte == b':')
        .ok_or_else(|| bad("a header line without a colon"))?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(bad("a header name with a character that no name has"));
    }
    if value.iter().any(|&byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f) {
        return Err(bad("a control character in a header value"));
    }
    Ok((name, trim_spaces(value)))
}

/// Spaces only: to nginx, a tab around a Host is a part of it.
fn trim_spaces(mut value: &[u8]) -> &[u8] {
    while let Some(rest) = value.strip_prefix(b" ").or_else(|| value.strip_suffix(b" ")) {
        value = rest;
    }
    value
}

/// `tchar` of RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// 16 bytes in base64 (RFC 6455 section 4.1).
fn is_websocket_key(value: &[u8]) -> bool {
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    value.len() == 24 && value.ends_with(b"==") && value[..22].iter().all(base64)
}

fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = !value.is_empty() && value.len() < 19 && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value)
        .ok()
        .filter(|_| digits)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| bad("Content-Length is not a number"))
}

#[cfg(test)]
mod tests;
