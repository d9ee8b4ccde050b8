//! Connections, records and faults: everything between a socket and an answer.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use fettle_domain::repo::RepoName;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, ETAG, IF_NONE_MATCH};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::{Caller, Credential, Need};
use super::fault::Act;
use super::git::{self, GitPath};
use super::refusal::Refusal;
use super::rest::{self, RestRequest};
use super::state::{Forge, now};

/// Far above any issue or pull request.
const MAX_REST_BODY: usize = 8 * 1024 * 1024;
/// An App's hourly limit.
const RATE_LIMIT: u64 = 5000;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub method: String,
    /// Without `/api/v3`.
    pub path: String,
    pub query: String,
    /// As JSON; bodies of git requests are not kept.
    pub body: Option<Value>,
    pub credential: Credential,
    pub api_version: Option<String>,
    /// `None` when the caller got no answer.
    pub status: Option<u16>,
    /// The answer as JSON.
    pub answer: Option<Value>,
    pub fault: Option<Act>,
}

/// The connection is cut instead of answering.
#[derive(Debug, thiserror::Error)]
#[error("the forge cuts the connection")]
struct Cut;

pub(super) async fn serve(listener: TcpListener, forge: Arc<Forge>, cancel: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else {
            // Out of sockets: the next one may be free.
            tokio::task::yield_now().await;
            continue;
        };
        let (forge, cancel, requests) = (Arc::clone(&forge), cancel.clone(), connections.clone());
        connections.spawn(async move {
            let service = service_fn(|request| {
                let (forge, cancel) = (Arc::clone(&forge), cancel.clone());
                // A forge carries out what it was asked, whether or not somebody is left to hear of it.
                let exchanged =
                    requests.spawn(async move { cancel.run_until_cancelled(exchange(&forge, request)).await });
                async move { exchanged.await.ok().flatten().unwrap_or(Err(Cut)) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Ends with the caller's or our own cut; neither is news.
            let _ended = cancel.run_until_cancelled(connection).await;
        });
    }
    connections.close();
    connections.wait().await;
}

async fn exchange(forge: &Forge, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
    let path = request.uri().path().strip_prefix("/api/v3").unwrap_or(request.uri().path()).to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let git = GitPath::parse(&path, Some(&query));
    let (parts, body) = request.into_parts();
    let header = |name| parts.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let known = header(IF_NONE_MATCH.as_str()).map(str::to_owned);
    let arrived = Recorded {
        method: parts.method.to_string(),
        path: path.clone(),
        query: query.clone(),
        body: None,
        credential: Credential::Anonymous,
        api_version: header("x-github-api-version").map(str::to_owned),
        status: None,
        answer: None,
        fault: None,
    };
    let (at, caller, act) = {
        let mut inner = forge.lock();
        let caller = Caller::identify(&inner, forge.app.as_ref(), header(AUTHORIZATION.as_str()));
        let act = inner.faults.iter_mut().find_map(|fault| fault.strike(&arrived.method, &path));
        inner.requests.push(Recorded { credential: caller.credential.clone(), fault: act, ..arrived });
        (inner.requests.len() - 1, caller, act)
    };
    forge.changed();
    if let Some(early) = before(act).await {
        return finish(forge, at, early);
    }
    let response = match git {
        Some(git) => serve_git(forge, &caller, &git, Request::from_parts(parts, body)).await,
        None => {
            let Ok(bytes) = Limited::new(body, MAX_REST_BODY).collect().await.map(|body| body.to_bytes()) else {
                return Err(Cut);
            };
            let body: Option<Value> = serde_json::from_slice(&bytes).ok();
            record(forge, at, |entry| entry.body.clone_from(&body));
            let request = RestRequest::new(parts.method.as_str(), &path, &query, body);
            tagged(&parts.method, known.as_deref(), rest::answer(forge, &caller, &request).await)
        }
    };
    let late = after(act, response).await;
    finish(forge, at, late)
}

/// Every answer to a read has a tag, and whoever shows the right one gets nothing else.
fn tagged(method: &Method, known: Option<&str>, mut response: Response<Body>) -> Response<Body> {
    let Some(body) = response.extensions().get::<Value>().filter(|_| *method == Method::GET) else { return response };
    if response.status() != StatusCode::OK {
        return response;
    }
    let tag = format!("W/\"{}\"", hex::encode(Sha256::digest(body.to_string())));
    if known == Some(tag.as_str()) {
        response = Response::new(bytes_body(""));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    response.headers_mut().insert(ETAG, HeaderValue::try_from(tag).expect("digits"));
    response
}

/// An answer that needs nothing of the forge, or none at all.
enum Early {
    Answer(Response<Body>),
    Cut,
}

async fn before(act: Option<Act>) -> Option<Early> {
    let told = |refusal: Refusal| Some(Early::Answer(refusal.into_response()));
    match act? {
        Act::Fail(status) => {
            told(Refusal::new(status, "We couldn't respond to your request in time. Sorry about that."))
        }
        Act::Drop => Some(Early::Cut),
        Act::Hang => std::future::pending().await,
        Act::TooMany { retry_after } => {
            told(Refusal::new(429, "Too many requests.").with("retry-after", retry_after.to_string()))
        }
        Act::Exhausted { reset_in } => {
            let reset = now().as_second() + i64::try_from(reset_in).unwrap_or(i64::MAX / 2);
            let refusal = Refusal::new(403, "API rate limit exceeded for installation ID 815.");
            told(refusal.with("x-ratelimit-remaining", "0".to_owned()).with("x-ratelimit-reset", reset.to_string()))
        }
        Act::Secondary { retry_after } => {
            let words = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.";
            let refusal = Refusal::new(403, words);
            told(match retry_after {
                Some(seconds) => refusal.with("retry-after", seconds.to_string()),
                None => refusal,
            })
        }
        Act::Delay(time) => {
            tokio::time::sleep(time).await;
            None
        }
        Act::FailAfter(_) | Act::DropAfter | Act::HangAfter | Act::Garble | Act::Left(_) => None,
    }
}

async fn after(act: Option<Act>, mut response: Response<Body>) -> Early {
    if let Some(Act::Left(remaining)) = act {
        response.headers_mut().insert("x-ratelimit-remaining", remaining.into());
    }
    let Some(act @ (Act::FailAfter(_) | Act::DropAfter | Act::HangAfter | Act::Garble)) = act else {
        return Early::Answer(response);
    };
    // Applied means to the end: a pack that is still being sent was not.
    let (parts, body) = response.into_parts();
    let Ok(bytes) = body.collect().await.map(|body| body.to_bytes()) else {
        return Early::Cut;
    };
    match act {
        Act::FailAfter(status) => Early::Answer(Refusal::new(status, "Server Error").into_response()),
        Act::HangAfter => std::future::pending().await,
        Act::Garble => Early::Answer(Response::from_parts(parts, bytes_body(bytes.slice(..bytes.len() / 2)))),
        _ => Early::Cut,
    }
}

fn finish(forge: &Forge, at: usize, outcome: Early) -> Result<Response<Body>, Cut> {
    let result = match outcome {
        Early::Cut => Err(Cut),
        Early::Answer(mut response) => {
            let status = response.status().as_u16();
            let answer = response.extensions().get::<Value>().cloned();
            record(forge, at, |entry| (entry.status, entry.answer) = (Some(status), answer));
            standard_headers(at, &mut response);
            Ok(response)
        }
    };
    forge.changed();
    result
}

/// The entry may have been forgotten meanwhile.
fn record(forge: &Forge, at: usize, change: impl FnOnce(&mut Recorded)) {
    if let Some(entry) = forge.lock().requests.get_mut(at) {
        change(entry);
    }
}

fn standard_headers(served: usize, response: &mut Response<Body>) {
    let used = (served as u64 + 1) % RATE_LIMIT;
    let date = now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let reset = now().as_second() / 3600 * 3600 + 3600;
    for (name, value) in [
        (DATE.as_str(), date),
        ("x-ratelimit-limit", RATE_LIMIT.to_string()),
        ("x-ratelimit-remaining", (RATE_LIMIT - used).to_string()),
        ("x-ratelimit-used", used.to_string()),
        ("x-ratelimit-reset", reset.to_string()),
        ("x-ratelimit-resource", "core".to_owned()),
        ("x-github-request-id", format!("EMUL:{served:X}")),
    ] {
        if !response.headers().contains_key(name) {
            let name = http::HeaderName::try_from(name).expect("a header name");
            response.headers_mut().insert(name, HeaderValue::try_from(value).expect("a header value"));
        }
    }
}

async fn serve_git(forge: &Forge, caller: &Caller, path: &GitPath, request: Request<Incoming>) -> Response<Body> {
    let found = {
        let inner = forge.lock();
        inner.find(&path.owner, &path.name).map(|at| {
            let repository = &inner.repositories[at];
            (repository.name.clone(), repository.id, repository.private)
        })
    };
    let need = Need { permission: "contents", write: path.writes };
    let allowed = match &found {
        Some((_, id, private)) => caller.may(*id, *private, need),
        None => Err(Refusal::not_found()),
    };
    match (found, allowed) {
        (Some((name, ..)), Ok(())) => run_git(forge, &name, path, request).await,
        // GitHub asks a stranger for a password before it says that something is absent.
        (_, Err(_)) if matches!(caller.credential, Credential::Anonymous | Credential::Invalid) => {
            plain(StatusCode::UNAUTHORIZED, "Repository not found.", Some("Basic realm=\"GitHub\""))
        }
        (Some(_), Err(refusal)) if refusal.status == 403 => {
            plain(StatusCode::FORBIDDEN, "Write access to repository not granted.", None)
        }
        _ => plain(StatusCode::NOT_FOUND, "Repository not found.", None),
    }
}

async fn run_git(forge: &Forge, repo: &RepoName, path: &GitPath, request: Request<Incoming>) -> Response<Body> {
    match git::serve(forge, repo, path, request).await {
        Ok(response) => response,
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}"), None),
    }
}

fn plain(status: StatusCode, text: &str, challenge: Option<&str>) -> Response<Body> {
    let mut builder = Response::builder().status(status).header(CONTENT_TYPE, "text/plain");
    if let Some(challenge) = challenge {
        builder = builder.header("www-authenticate", challenge);
    }
    builder.body(bytes_body(format!("{text}\n"))).expect("constant headers")
}

/// JSON, whose value the record keeps.
pub(super) fn json_response(status: u16, value: Value) -> Response<Body> {
    let mut response = Response::new(bytes_body(value.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status of ours");
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.extensions_mut().insert(value);
    response
}

pub(super) fn bytes_body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(super) fn io_error(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}
