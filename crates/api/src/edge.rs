//! The outermost layer: names each exchange, follows it in a span, measures it, turns panics and time-outs into
//! problems, and writes every problem's body.

use std::error::Error;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fettle_domain::forwarded::{self, Network};
use fettle_domain::id::{CorrelationId, RequestId};
use fettle_domain::trace::TraceParent;
use futures::FutureExt;
use tokio::time::Instant;
use tracing::{Instrument, debug, error, field, info_span, warn};
use uuid::Uuid;

use crate::problem::{Code, MEDIA_TYPE, Problem};
use crate::state::ApiState;

pub(crate) const CORRELATION: HeaderName = HeaderName::from_static("x-correlation-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const REQUEST: HeaderName = HeaderName::from_static("x-request-id");
/// Reading the body included. Long polls (25 s) fit in; event streams answer at once and then flow outside of it.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// One HTTP exchange's names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange {
    pub(crate) request: RequestId,
    /// Handed on to the Task that the exchange makes.
    pub(crate) correlation: CorrelationId,
}

pub(crate) async fn exchange(State(api): State<ApiState>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = api.ids.uuid();
    let cause = given_cause(request.headers());
    let correlation = given_correlation(request.headers()).or_else(|| cause.map(|cause| cause.trace.correlation()));
    let correlation = correlation.unwrap_or(CorrelationId::from_uuid(id));
    let names = Exchange { request: RequestId::from_uuid(id), correlation };
    request.extensions_mut().insert(names);
    see_through_proxies(&mut request, &api.trusted_proxies);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let span = info_span!(
        "request",
        request.id = %names.request,
        correlation.id = %correlation,
        http.method = %method,
        http.route = route,
        http.status = field::Empty,
        trace.parent = cause.map(field::display),
    );

    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response = span.in_scope(|| match answer {
        Ok(response) => finished(response, names.request),
        Err(panic) => {
            error!(error = panic_text(&*panic), "a handler panicked");
            Problem::new(Code::Internal, "A bug stopped this request. The operator finds it by the request id.")
                .render(names.request)
        }
    });

    let headers = response.headers_mut();
    headers.insert(CORRELATION, header(&correlation));
    headers.insert(REQUEST, header(&names.request));
    let elapsed = started.elapsed();
    span.record("http.status", response.status().as_u16());
    span.in_scope(|| debug!(elapsed_ms = elapsed.as_millis(), "answered {method} {route}"));
    api.metrics.observe(&method, route, response.status(), elapsed);
    response
}

/// From here on, the other side is whom a trusted proxy says that it passes on.
fn see_through_proxies(request: &mut Request, trusted: &[Network]) {
    let Some(&ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() else { return };
    let told = request.headers().get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let client = forwarded::client(peer.ip(), told, trusted);
    if client != peer.ip().to_canonical() {
        // Its port is not told, and nobody asks.
        request.extensions_mut().insert(ConnectInfo(SocketAddr::new(client, 0)));
    }
}

/// Ends the handler after [`REQUEST_LIMIT`].
pub(crate) async fn time_limit(request: Request, next: Next) -> Response {
    within(REQUEST_LIMIT, next.run(request)).await
}

/// Ends the handler after `limit`.
pub(crate) async fn within(limit: Duration, handler: impl Future<Output = Response>) -> Response {
    match tokio::time::timeout(limit, handler).await {
        Ok(response) => response,
        Err(_) => Problem::new(
            Code::Timeout,
            format!("The request did not come to an end within {} s. Try again.", limit.as_secs()),
        )
        .retry_after(Duration::from_secs(5))
        .into_response(),
    }
}

pub(crate) async fn no_such_route() -> Problem {
    Problem::new(Code::NotFound, "There is nothing at this address; `/api/openapi.json` says what there is.")
}

pub(crate) async fn no_such_method() -> Problem {
    Problem::new(Code::MethodNotAllowed, "This address does not answer to this method; see `/api/openapi.json`.")
}

/// A response ready to leave: problems get their body, and whatever else failed becomes a problem.
fn finished(mut response: Response, request: RequestId) -> Response {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        report(&problem);
        let mut rendered = problem.render(request);
        for (name, value) in response.headers() {
            rendered.headers_mut().entry(name).or_insert_with(|| value.clone());
        }
        rendered.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
        return rendered;
    }
    let status = response.status();
    let typed = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json") || kind == MEDIA_TYPE);
    if status.as_u16() >= StatusCode::BAD_REQUEST.as_u16() && !typed {
        let reason = status.canonical_reason().unwrap_or("refused");
        return Problem::new(Code::of_status(status), reason).render(request);
    }
    response
}

/// Tells the operator the cause of a problem, if it has one.
pub(crate) fn report(problem: &Problem) {
    let Some(cause) = &problem.cause else { return };
    let cause = &**cause as &dyn Error;
    match problem.code {
        Code::Internal | Code::LedgerDamaged | Code::LedgerFull => {
            error!(error = cause, code = problem.code.word(), "a request failed");
        }
        _ => warn!(error = cause, code = problem.code.word(), "a request could not be served now"),
    }
}

/// `corr_…` or a UUID in any usual form. Anything else is replaced by an id of our own, which the answer tells.
fn given_correlation(headers: &HeaderMap) -> Option<CorrelationId> {
    let text = headers.get(CORRELATION)?.to_str().ok()?;
    text.parse().ok().or_else(|| Uuid::try_parse(text).ok().map(CorrelationId::from_uuid))
}

/// Of a caller that is traced itself. Without a correlation id of its own, its trace is the thread.
fn given_cause(headers: &HeaderMap) -> Option<TraceParent> {
    headers.get(TRACE_PARENT)?.to_str().ok()?.parse().ok()
}

fn header(id: &impl ToString) -> HeaderValue {
    HeaderValue::try_from(id.to_string()).expect("an id is a prefix and hex digits")
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without text")
}
