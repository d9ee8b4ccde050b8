//! The endpoint's addresses: what is asked where, and errors in the shape of whatever API they belong to.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use fettle_app::ports::model::ToolCalls;
use fettle_protocols::{
    ErrorAnswer, Failure, Family, ModelEntry, Peek, Protocol, write_count_tokens, write_error, write_model,
    write_models, write_ollama_show, write_ollama_version,
};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use tracing::{Instrument as _, debug};

use crate::bodies::{BODY_LIMIT, SMALL_BODY};
use crate::front::{Front, status_class};
use crate::thread::Thread;

const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub(crate) fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/responses", post(responses))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/api/chat", post(ollama_chat))
        .route("/api/generate", post(ollama_generate))
        .route("/api/tags", get(ollama_tags))
        .route("/api/ps", get(ollama_running))
        .route("/api/show", post(ollama_show))
        .route("/api/version", get(ollama_version))
        .route("/healthz", get(healthz))
        .route("/", get(healthz))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(front)
}

macro_rules! inference {
    ($($name:ident = $protocol:ident),* $(,)?) => {$(
        async fn $name(State(front): State<Arc<Front>>, request: Request) -> Response {
            infer(front, Protocol::$protocol, request).await
        }
    )*};
}

inference! {
    chat = OpenAiChat,
    completions = OpenAiCompletions,
    embeddings = OpenAiEmbeddings,
    responses = OpenAiResponses,
    messages = AnthropicMessages,
    ollama_chat = OllamaChat,
    ollama_generate = OllamaGenerate,
}

async fn infer(front: Arc<Front>, protocol: Protocol, request: Request) -> Response {
    let thread = Thread::of(request.headers(), &*front.ids).traced(request.headers());
    let answered = front.answer(protocol, request, &thread).instrument(thread.span.clone()).await;
    if let Err(failure) = &answered {
        front.metrics.rejected.with_label_values(&[reason(failure)]).inc();
    }
    let mut response = answered.unwrap_or_else(|failure| refuse(protocol, &failure));
    thread.tell_caller(response.headers_mut());
    let status = response.status();
    thread.span.record("http.status", status.as_u16());
    front.metrics.requests.with_label_values(&[word(protocol), status_class(status)]).inc();
    debug!(
        request.id = thread.request(),
        correlation.id = thread.correlation(),
        http.status = status.as_u16(),
        "answered a request for a model"
    );
    response
}

async fn count_tokens(State(front): State<Arc<Front>>, request: Request) -> Response {
    let protocol = Protocol::AnthropicMessages;
    about(front, protocol, request, async |_front, _headers, body| {
        let peek = Peek::of(protocol, &body)?;
        Ok(write_count_tokens(peek.prompt_tokens))
    })
    .await
}

async fn models(State(front): State<Arc<Front>>, request: Request) -> Response {
    let protocol = by_headers(request.headers());
    about(front, protocol, request, async |front, headers, _body| {
        Ok(write_models(protocol.family(), &listed(front, &headers)?))
    })
    .await
}

async fn model(State(front): State<Arc<Front>>, Path(id): Path<String>, request: Request) -> Response {
    let protocol = by_headers(request.headers());
    about(front, protocol, request, async |front, headers, _body| {
        Ok(write_model(protocol.family(), &one(front, &headers, id)?))
    })
    .await
}

async fn ollama_tags(State(front): State<Arc<Front>>, request: Request) -> Response {
    about(front, Protocol::OllamaChat, request, async |front, headers, _body| {
        Ok(write_models(Family::Ollama, &listed(front, &headers)?))
    })
    .await
}

/// Models of this machine that are loaded.
async fn ollama_running(State(front): State<Arc<Front>>, request: Request) -> Response {
    about(front, Protocol::OllamaChat, request, async |front, headers, _body| {
        let supply = front.floor.known();
        let loaded = |id: &str| supply.models.iter().any(|one| one.id.as_str() == id && !one.engines.is_empty());
        let mut models = listed(front, &headers)?;
        models.retain(|one| loaded(&one.id));
        Ok(write_models(Family::Ollama, &models))
    })
    .await
}

async fn ollama_show(State(front): State<Arc<Front>>, request: Request) -> Response {
    #[derive(Deserialize)]
    struct Named {
        #[serde(alias = "name")]
        model: String,
    }
    about(front, Protocol::OllamaChat, request, async |front, headers, body| {
        let named: Named = serde_json::from_slice(&body).map_err(|_| Failure::BadBody {
            field: Some("model".to_owned()),
            sentence: "The body must name a model.".to_owned(),
        })?;
        Ok(write_ollama_show(&one(front, &headers, named.model)?))
    })
    .await
}

async fn ollama_version() -> Response {
    json(write_ollama_version(env!("CARGO_PKG_VERSION")))
}

async fn healthz() -> &'static str {
    "Fettle's gateway is running\n"
}

async fn unknown_path(State(front): State<Arc<Front>>, request: Request) -> Response {
    elsewhere(&front, &request, &Failure::UnknownPath)
}

async fn wrong_method(State(front): State<Arc<Front>>, request: Request) -> Response {
    elsewhere(&front, &request, &Failure::WrongMethod)
}

fn elsewhere(front: &Front, request: &Request, failure: &Failure) -> Response {
    let protocol = match request.uri().path() {
        path if path.starts_with("/api/") => Protocol::OllamaChat,
        path if path.starts_with("/v1/messages") => Protocol::AnthropicMessages,
        _ => by_headers(request.headers()),
    };
    let mut response = refuse(protocol, failure);
    Thread::of(request.headers(), &*front.ids).tell_caller(response.headers_mut());
    response
}

/// A question that is answered here. Its body is read as far as `POST` has one.
async fn about(
    front: Arc<Front>,
    protocol: Protocol,
    request: Request,
    answer: impl AsyncFnOnce(&Front, HeaderMap, Bytes) -> Result<Bytes, Failure>,
) -> Response {
    let thread = Thread::of(request.headers(), &*front.ids);
    let (parts, body) = request.into_parts();
    let limit = match parts.uri.path() {
        "/v1/messages/count_tokens" => BODY_LIMIT,
        _ => SMALL_BODY,
    };
    let answered = async {
        front.access.identify(&parts.headers, front.clock.now())?;
        let body = match parts.method {
            Method::POST => Some(front.bodies.read(&parts.headers, body, limit).await?),
            _ => None,
        };
        let bytes = body.as_ref().map_or_else(Bytes::new, |body| body.bytes.clone());
        answer(&front, parts.headers, bytes).await
    };
    let mut response = answered.await.map_or_else(|failure| refuse(protocol, &failure), json);
    thread.tell_caller(response.headers_mut());
    response
}

/// What the caller may ask for.
fn listed(front: &Front, headers: &HeaderMap) -> Result<Vec<ModelEntry>, Failure> {
    let caller = front.access.identify(headers, front.clock.now())?;
    let mut models = front.names.now().list(&front.floor.known());
    models.retain(|model| caller.may_ask(&model.id).is_ok());
    let examined = front.examined.borrow();
    models.iter_mut().for_each(|model| tell_of(model, &examined));
    Ok(models)
}

fn one(front: &Front, headers: &HeaderMap, id: String) -> Result<ModelEntry, Failure> {
    let caller = front.access.identify(headers, front.clock.now())?;
    let found = front.names.now().find_entry(&id, &front.floor.known());
    let found = found.filter(|model| caller.may_ask(&model.id).is_ok());
    let mut model = found.ok_or(Failure::UnknownModel { model: id })?;
    tell_of(&mut model, &front.examined.borrow());
    Ok(model)
}

/// What was found of the model's tool calls, if anything was.
fn tell_of(model: &mut ModelEntry, examined: &BTreeMap<String, ToolCalls>) {
    if let Some(calls) = examined.get(&model.id) {
        model.tools = matches!(calls, ToolCalls::Form { .. });
        model.fettle = Some(serde_json::json!({ "tool_calls": calls }));
    }
}

fn by_headers(headers: &HeaderMap) -> Protocol {
    if headers.contains_key(ANTHROPIC_VERSION) { Protocol::AnthropicMessages } else { Protocol::OpenAiChat }
}

fn json(body: Bytes) -> Response {
    ([(CONTENT_TYPE, JSON)], body).into_response()
}

fn refuse(protocol: Protocol, failure: &Failure) -> Response {
    let ErrorAnswer { status, headers, body } = write_error(protocol, failure);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// For metrics.
const fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::OpenAiChat => "openai_chat",
        Protocol::OpenAiCompletions => "openai_completions",
        Protocol::OpenAiEmbeddings => "openai_embeddings",
        Protocol::OpenAiResponses => "openai_responses",
        Protocol::AnthropicMessages => "anthropic_messages",
        Protocol::OllamaChat => "ollama_chat",
        Protocol::OllamaGenerate => "ollama_generate",
        Protocol::GoogleGenerate => "google_generate",
    }
}

const fn reason(failure: &Failure) -> &'static str {
    match failure {
        Failure::BadBody { .. } => "bad_body",
        Failure::BodyTooLarge { .. } => "body_too_large",
        Failure::ContextTooLong { .. } => "context_too_long",
        Failure::BadKey { .. } => "bad_key",
        Failure::NotAllowed { .. } => "not_allowed",
        Failure::UnknownModel { .. } => "unknown_model",
        Failure::UnknownPath => "unknown_path",
        Failure::WrongMethod => "wrong_method",
        Failure::QueueFull { .. } => "queue_full",
        Failure::RateLimited { .. } => "rate_limited",
        Failure::BudgetSpent { .. } => "budget_spent",
        Failure::CannotPlaceNow { .. } => "cannot_place_now",
        Failure::CannotPlaceEver { .. } => "cannot_place_ever",
        Failure::UpstreamFailed { .. } => "upstream_failed",
        Failure::UpstreamSlow { .. } => "upstream_slow",
        Failure::Internal => "internal",
    }
}
