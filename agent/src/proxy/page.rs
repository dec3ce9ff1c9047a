//! The answers that the proxy gives itself: short pages for people.
//!
//! Whatever came from the request is escaped; nothing about the inside (names, addresses, why an
//! upstream failed) is on a page: that is in the log and in status.

use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;

use super::Body;

/// Builds a page. `paragraphs` are plain text.
pub(super) fn page(status: StatusCode, title: &str, paragraphs: &[&str]) -> Response<Body> {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title></head>\n<body><h1>{0}</h1>\n",
        escape(title)
    );
    for paragraph in paragraphs {
        html.push_str("<p>");
        html.push_str(&escape(paragraph));
        html.push_str("</p>\n");
    }
    html.push_str("</body></html>\n");
    let mut response =
        Response::new(Full::new(Bytes::from(html)).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A request that the head check refused.
pub(super) fn refused(status: StatusCode, reason: &str) -> Response<Body> {
    page(
        status,
        status.canonical_reason().unwrap_or("Bad Request"),
        &[&format!("The request was refused: {reason}.")],
    )
}

/// A request for a name that is not served here.
pub(super) fn misdirected(received: &str, expected: &[&str]) -> Response<Body> {
    page(
        StatusCode::MISDIRECTED_REQUEST,
        "This name is not served here",
        &[
            &format!("Received: {received}"),
            &format!("Expected: {}", expected.join(", ")),
            "Open the address exactly as it was given to you. If you look after this site: the \
             guest URL in the site file and the address that guests are sent must be the same \
             name.",
        ],
    )
}

/// The name is served here, but not by the certificate of this connection.
pub(super) fn other_certificate(received: &str, covered: &[String]) -> Response<Body> {
    page(
        StatusCode::MISDIRECTED_REQUEST,
        "This name needs a connection of its own",
        &[
            &format!("Received: {received}"),
            &format!("Expected: {}", covered.join(", ")),
            "The certificate of this connection does not cover the name that was asked for. \
             Reload the page.",
        ],
    )
}

/// No upstream can be reached.
pub(super) fn unavailable(guest: &str) -> Response<Body> {
    let mut response = page(
        StatusCode::SERVICE_UNAVAILABLE,
        "The conference service cannot be reached",
        &[
            &format!("{guest} is here, but the conference service behind it does not answer."),
            "Your own connection is fine. Try again in a minute; if it stays like this, tell the \
             people who run this site.",
        ],
    );
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
    response
}

/// The upstream took the request and then failed.
pub(super) fn broken(guest: &str, status: StatusCode) -> Response<Body> {
    page(
        status,
        "The conference service did not finish its answer",
        &[
            &format!("{guest} passed your request on, but no complete answer came back."),
            "Reload the page. If it stays like this, tell the people who run this site.",
        ],
    )
}

/// Text that is safe in HTML and short enough for a page and a log line.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}
