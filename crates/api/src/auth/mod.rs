//! Who asks: keys compared by digest and in constant time, accounts by their cookie, token or key; and what they may.

pub(crate) mod cookie;
pub(crate) mod limits;
pub(crate) mod oidc;
pub(crate) mod routes;

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL, USER_AGENT};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use fettle_app::doorkeeping::{API_KEY_PREFIX, Known, Origin};
use fettle_domain::access::{self, Action, Actor, Object, Refusal, Role, Via};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::Instrument as _;

use crate::problem::{Code, Problem};
use crate::state::ApiState;
use crate::v1::tasks::ADMIN;
use cookie::Place;

const API_KEY: &str = "x-api-key";

/// The digest of a key. Comparing digests hides the key's length as well.
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(key: &SecretString) -> Self {
        Self(Sha256::digest(key.expose_secret().trim().as_bytes()).into())
    }

    /// Whether the request carries this key as its bearer token. An empty token never matches.
    pub(crate) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = bearer(headers) else {
            return false;
        };
        let digest: [u8; 32] = Sha256::digest(token).into();
        bool::from(digest.ct_eq(&self.0))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

/// Who asks, and from where.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) actor: Actor,
    /// `None` for the holder of the admin key.
    pub(crate) known: Option<Known>,
    pub(crate) origin: Origin,
}

impl Caller {
    /// What is not the caller's to know of does not exist.
    pub(crate) fn may(&self, action: Action, object: Object) -> Result<(), Problem> {
        access::may(&self.actor, action, object).map_err(|refusal| match refusal {
            Refusal::NotYours => Problem::new(Code::NotFound, "There is no such thing here."),
            Refusal::Role(_) | Refusal::Scope(_) => Problem::new(Code::Forbidden, format!("Not allowed: {refusal}.")),
        })
    }
}

/// What each operation of `/api/v1` does. One that is not here is for nobody. A `HEAD` is a read whose body is not sent.
pub(crate) fn action(method: &Method, route: &str) -> Option<Action> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    Some(match (method.as_str(), route.strip_prefix("/api/v1/")?) {
        (
            "GET",
            "tasks"
            | "tasks/{task_id}"
            | "tasks/{task_id}/events"
            | "tasks/{task_id}/patch"
            | "tasks/{task_id}/proof"
            | "tasks/{task_id}/runs"
            | "tasks/{task_id}/messages"
            | "runs/{run_id}/steps"
            | "events"
            | "live"
            | "overview"
            | "repositories"
            | "models",
        ) => Action::TasksRead,
        ("POST", "tasks") => Action::TasksCreate,
        ("POST", "tasks/{task_id}/cancel" | "tasks/{task_id}/runs/{run_id}/stop") => Action::TasksCancel,
        ("POST", "tasks/{task_id}/retry") => Action::TasksRetry,
        ("POST", "tasks/{task_id}/runs") => Action::RunsCreate,
        ("POST", "tasks/{task_id}/messages") => Action::MessagesCreate,
        ("POST", "tasks/{task_id}/prs") => Action::PullRequestsCreate,
        ("GET", "dead-jobs" | "queue" | "workers" | "pods" | "pods/{name}/log") => Action::JobsRead,
        ("POST", "jobs/{job_id}/redrive") => Action::JobsRedrive,
        ("GET", "audit") => Action::LedgerAudit,
        ("GET", "forge" | "system/reconcilers" | "inference/devices" | "inference/placements" | "inference/events") => {
            Action::SystemRead
        }
        ("PUT" | "DELETE", "models/{name}") => Action::ModelsChange,
        ("POST", "models/{name}/try") => Action::ModelsTry,
        ("POST", "repositories") | ("DELETE", "repositories/{owner}/{name}") => Action::RepositoriesChange,
        ("PUT" | "DELETE", "forge/tokens") => Action::ForgeChange,
        ("POST", "secrets/rotate") => Action::SecretsRotate,
        ("GET", "system/settings") => Action::SettingsRead,
        ("GET", "me") => Action::MeRead,
        ("POST", "me/password") => Action::MePassword,
        ("GET", "sessions") => Action::SessionsRead,
        ("DELETE", "sessions/{session_id}") => Action::SessionsEnd,
        ("GET", "api-keys" | "users/{user_id}/keys") => Action::ApiKeysRead,
        ("POST", "api-keys") => Action::ApiKeysCreate,
        ("DELETE", "api-keys/{key_id}" | "users/{user_id}/keys/{key_id}") => Action::ApiKeysEnd,
        ("GET", "users") => Action::UsersRead,
        ("POST", "users") => Action::UsersCreate,
        ("PATCH", "users/{user_id}") => Action::UsersChange,
        ("GET", "audit-log" | "audit-log/export") => Action::AuditLogRead,
        _ => return None,
    })
}

const LIVE: &str = "/api/v1/live";
/// Before a key among the protocols that are offered for a WebSocket.
const OFFERED_KEY: &str = "fettle-key.";

/// A browser can send no header of a page's own with a WebSocket but the protocols that it offers, so a key may be one of them.
fn show_offered_key(headers: &mut HeaderMap) {
    if headers.contains_key(AUTHORIZATION) || headers.contains_key(API_KEY) {
        return;
    }
    let offered = headers.get(SEC_WEBSOCKET_PROTOCOL).and_then(|offered| offered.to_str().ok()).unwrap_or_default();
    let key = offered.split(',').find_map(|one| one.trim().strip_prefix(OFFERED_KEY));
    let key = key.and_then(|key| BASE64_URL_SAFE_NO_PAD.decode(key).ok());
    let shown = key.and_then(|key| HeaderValue::from_bytes(&[b"Bearer ", key.as_slice()].concat()).ok());
    if let Some(mut shown) = shown {
        shown.set_sensitive(true);
        headers.insert(AUTHORIZATION, shown);
    }
}

/// Guards `/api/v1`: recognises who asks, and lets through what they may. Whose a thing is, is asked where it is known.
pub(crate) async fn require_actor(State(api): State<ApiState>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if route == LIVE {
        show_offered_key(request.headers_mut());
    }
    let (headers, peer) = (request.headers().clone(), peer(&request));
    let caller = match recognise(&api, &method, &headers, peer).await {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    let Some(action) = action(&method, &route) else {
        return Problem::new(Code::Forbidden, "Nobody may do this.").into_response();
    };
    // What changes accounts is written down where it is done; the rest here, with whatever was refused.
    let noted = matches!(
        action,
        Action::TasksCreate
            | Action::TasksCancel
            | Action::TasksRetry
            | Action::RunsCreate
            | Action::MessagesCreate
            | Action::PullRequestsCreate
            | Action::JobsRedrive
            | Action::ModelsChange
            | Action::ModelsTry
            | Action::RepositoriesChange
            | Action::ForgeChange
            | Action::SecretsRotate
    );
    if let Err(problem) = caller.may(action, Object::Shared) {
        note_refusal(&api, &caller, action, &path).await;
        return problem.into_response();
    }
    request.extensions_mut().insert(caller.clone());
    if !noted {
        let response = next.run(request).await;
        if response.status() == StatusCode::FORBIDDEN {
            note_refusal(&api, &caller, action, &path).await;
        }
        return response;
    }
    // Whoever hangs up before the answer has still done it, and that is written down.
    let (noting, span) = (api.noting.clone(), tracing::Span::current());
    let done = async move {
        let response = next.run(request).await;
        let result = if response.status().is_success() { "done" } else { "refused" };
        let detail = response.extensions().get::<Detail>().map(|Detail(detail)| detail.as_str());
        note(&api, &caller, action, &path, result, detail.unwrap_or_default()).await;
        response
    };
    match noting.spawn(done.instrument(span)).await {
        Ok(response) => response,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Problem::new(Code::Unavailable, "Fettle is shutting down.").into_response(),
        },
    }
}

/// Of one account within a minute; whoever is refused more often tells the log nothing new.
const REFUSALS_NOTED: u32 = 30;

async fn note_refusal(api: &ApiState, caller: &Caller, action: Action, path: &str) {
    if api.limits.take(format!("refused {}", caller.actor.name), REFUSALS_NOTED).is_ok() {
        note(api, caller, action, path, "refused", "").await;
    }
}

/// What a write was about, for the audit log: as an extension of its answer, where the path does not tell it. Never a secret.
#[derive(Clone)]
pub(crate) struct Detail(pub(crate) String);

async fn note(api: &ApiState, caller: &Caller, action: Action, path: &str, result: &str, detail: &str) {
    let Some(door) = &api.door else { return };
    if let Err(error) = door.record(&caller.actor.name, action.word(), path, result, detail, &caller.origin).await {
        tracing::error!(error = &error as &dyn std::error::Error, "could not write the audit log");
    }
}

/// Where the request came from.
fn peer(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip().to_canonical())
}

pub(crate) fn origin(headers: &HeaderMap, peer: Option<IpAddr>) -> Origin {
    let agent = headers.get(USER_AGENT).map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned());
    Origin { address: peer.map(|peer| peer.to_string()).unwrap_or_default(), user_agent: agent.unwrap_or_default() }
}

/// A key that is shown counts, also when it is wrong; the cookie only without one.
pub(crate) async fn recognise(
    api: &ApiState,
    method: &Method,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
) -> Result<Caller, Problem> {
    let origin = origin(headers, peer);
    if api.admin_key.admits(headers) {
        let actor = Actor { user: None, name: ADMIN.to_owned(), role: Role::Admin, scope: None, via: Via::AdminKey };
        return Ok(Caller { actor, known: None, origin });
    }
    let unknown =
        || Problem::new(Code::Unauthenticated, "Sign in, or send a key: `Authorization: Bearer …` or `X-API-Key: …`.");
    let Some(door) = &api.door else { return Err(unknown()) };
    let shown = headers.contains_key(AUTHORIZATION) || headers.contains_key(API_KEY);
    let known = if shown {
        let text = bearer(headers).or_else(|| headers.get(API_KEY).map(|key| key.as_bytes().trim_ascii()));
        match text.and_then(|text| std::str::from_utf8(text).ok()) {
            Some(key) if key.starts_with(API_KEY_PREFIX) => door.by_api_key(&key.into()).await?,
            Some(token) if !headers.contains_key(API_KEY) => door.by_access_token(token).await?,
            _ => None,
        }
    } else {
        match Place::of(headers, peer).find(headers) {
            None => None,
            Some(secret) => {
                let known = door.by_session(&secret).await?;
                if known.is_some() && !cookie::counts(method, headers) {
                    return Err(foreign_page());
                }
                known
            }
        }
    };
    let known = known.ok_or_else(unknown)?;
    Ok(Caller { actor: known.actor.clone(), known: Some(known), origin })
}

pub(crate) fn foreign_page() -> Problem {
    Problem::new(
        Code::Forbidden,
        "A cookie changes something only with `X-Fettle-Request: 1` and from a page of this very origin.",
    )
}

/// Guards `/worker/v1`.
pub(crate) async fn require_worker(State(api): State<ApiState>, request: Request, next: Next) -> Response {
    if api.worker_key.admits(request.headers()) {
        next.run(request).await
    } else {
        Problem::new(
            Code::Unauthenticated,
            "Send the service key of `auth.worker_key_file`: `Authorization: Bearer …`.",
        )
        .into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn with(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))])
    }

    #[test]
    fn only_the_whole_key_as_a_bearer_token_is_admitted() {
        let key = Key::new(&SecretString::from("open-sesame\n"));
        assert!(key.admits(&with("Bearer open-sesame")));
        assert!(key.admits(&with("bearer open-sesame")));
        for wrong in
            ["Bearer open-sesam", "Bearer open-sesame2", "Basic open-sesame", "open-sesame", "Bearer", "Bearer "]
        {
            assert!(!key.admits(&with(wrong)), "{wrong}");
        }
        assert!(!key.admits(&HeaderMap::new()));
    }

    #[test]
    fn an_empty_key_file_admits_nobody() {
        let key = Key::new(&SecretString::from(""));
        assert!(!key.admits(&with("Bearer ")));
        assert!(!key.admits(&HeaderMap::new()));
    }
}
