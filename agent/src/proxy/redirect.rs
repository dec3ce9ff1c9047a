//! Port 80: leads guests to their URL and answers nobody else.

use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::exchange::{guest_of, misdirected, refuse};
use super::guard::Verdicts;
use super::page;
use super::{Body, Shared};

/// Answers 308 to the configured guest URL when Host names a guest, 421 otherwise; a Location is
/// never made from a name that the site file does not have.
pub(super) fn answer(
    shared: &Arc<Shared>,
    client: std::net::SocketAddr,
    verdicts: &Verdicts,
    request: &Request<Incoming>,
) -> Response<Body> {
    shared.counters.requests.add();
    // Before anything may answer: a verdict that stays behind would judge the next request.
    match verdicts.take() {
        Some(Ok(_)) => {}
        Some(Err(refusal)) => return refuse(shared, client, refusal),
        None => return page::refused(StatusCode::BAD_REQUEST, "it came out of turn"),
    }
    let Some(serving) = shared.serving.load_full() else {
        return page::refused(StatusCode::SERVICE_UNAVAILABLE, "nothing is served yet");
    };
    let Some(guest) = guest_of(&serving, request, 80) else {
        return misdirected(shared, &serving, request);
    };
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let location = format!("{}{target}", guest.url);
    match HeaderValue::from_str(&location) {
        Ok(value) => {
            let mut response = page::page(
                StatusCode::PERMANENT_REDIRECT,
                "This site is served over HTTPS",
                &[&guest.url],
            );
            response.headers_mut().insert(header::LOCATION, value);
            response
        }
        Err(_) => page::refused(StatusCode::BAD_REQUEST, "the target"),
    }
}
