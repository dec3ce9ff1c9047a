//! Looks at every address of an upstream every few seconds, whether guests come or not.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use tokio::time::{sleep, timeout};

use super::Body;
use super::upstream::{ConnectError, Endpoint, State, Upstream};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// For the answer to the health path.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Watches until nothing else holds the upstream.
pub(super) fn watch(upstream: &Arc<Upstream>) {
    let upstream = Arc::downgrade(upstream);
    tokio::spawn(async move {
        while look(&upstream).await.is_some() {
            sleep(INTERVAL).await;
        }
    });
}

async fn look(upstream: &Weak<Upstream>) -> Option<()> {
    let upstream = upstream.upgrade()?;
    upstream.resolve().await;
    let looks = upstream.endpoints().into_iter().map(|endpoint| {
        let upstream = Arc::clone(&upstream);
        async move {
            endpoint.prune();
            match check(&upstream, &endpoint).await {
                Ok(rtt) => {
                    endpoint.note(&upstream.plan.host, State::Up, String::new(), Some(rtt));
                }
                Err(error) => endpoint.note(&upstream.plan.host, error.state, error.detail, None),
            }
        }
    });
    futures_util::future::join_all(looks).await;
    Some(())
}

async fn check(upstream: &Upstream, endpoint: &Endpoint) -> Result<Duration, ConnectError> {
    let (mut sender, rtt) = upstream.connect(endpoint).await?;
    let Some(path) = &upstream.plan.health else {
        return Ok(rtt);
    };
    let fault = |detail: String| ConnectError { state: State::HttpError, detail };
    let body: Body = Empty::new().map_err(|never| match never {}).boxed();
    let request = Request::get(path)
        .header(header::HOST, &upstream.guest)
        .header(header::USER_AGENT, "postern-health")
        .header(header::CONNECTION, "close")
        .body(body)
        .map_err(|error| fault(format!("health path {path:?}: {error}")))?;
    let response = timeout(ANSWER_TIME, sender.send_request(request))
        .await
        .map_err(|_| fault(format!("{path} gave no answer within {} s", ANSWER_TIME.as_secs())))?
        .map_err(|error| fault(format!("{path}: {error}")))?;
    let status = response.status();
    if status.is_success() || status.is_redirection() {
        return Ok(rtt);
    }
    Err(fault(format!("{path} answers {status}")))
}
