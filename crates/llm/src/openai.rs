//! A model behind an OpenAI-compatible chat endpoint: llama-server, vLLM, SGLang, ollama, a gateway, a provider.
//!
//! One call is one request. Dropping or cancelling it closes the connection, which makes engines stop generating.
//! Prompts, answers and keys are never logged, and redirects are never followed: the key stays with its server.

mod calls;
mod decode;
mod failure;
mod request;
mod turn;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_app::ports::model::{Model, ModelError, ModelInfo, ModelRequest, Progress, RawTurn, RunAccess, ToolCalls};
use fettle_domain::trace::{SpanId, TraceId, TraceParent};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, field, info_span};

use decode::{DecodeError, Decoder, Flow};
use failure::{Asked, Complaint};

/// How long a server may send no byte. A queued or long prompt on a busy engine answers late; beyond this it hangs.
pub const STALL_LIMIT: Duration = Duration::from_secs(15 * 60);
/// An engine on the machine or a provider accepts at once; more means that nobody is there.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait for usage and end mark once the model has finished: some servers send neither and stay connected.
const AFTER_FINISH_LIMIT: Duration = Duration::from_secs(10);
/// The gateway knows its list by heart. A Run that is told nothing goes on all the same.
const LISTED_LIMIT: Duration = Duration::from_secs(5);
/// By which the gateway finds where a conversation's beginning is warm.
const SESSION: HeaderName = HeaderName::from_static("x-session-id");
const CORRELATION: HeaderName = HeaderName::from_static("x-correlation-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
/// How much of a failure is read, and for how long: a sentence and its code.
const MAX_FAILURE_BYTES: usize = 64 * 1024;
const FAILURE_BODY_LIMIT: Duration = Duration::from_secs(10);
/// How much of an answer is kept in case that it is none.
const HEAD_BYTES: usize = 1024;

/// What an operator configures for one model (`[[gateway.models]]` with `kind = "openai-compatible"`).
#[derive(Debug, Clone)]
pub struct OpenAiOptions {
    pub info: ModelInfo,
    /// The API's root as the server documents it, usually ending in `/v1`. `/chat/completions` is appended to its path
    /// and nothing else is added or guessed; a slash at the end is ignored and a query is kept.
    pub base_url: String,
    /// The model's name on the wire.
    pub model: String,
    /// Sent as a bearer token. Local engines need none.
    pub api_key: Option<SecretString>,
    /// The server is Fettle's gateway: a Run shows its own token instead of `api_key`, and says which Run it is. Other
    /// servers are told nothing of Runs.
    pub is_gateway: bool,
    /// Sampling parameters of the model's bundle, put into each request as they are (`temperature`, `top_p`, …).
    pub extra: Map<String, Value>,
    /// [`STALL_LIMIT`], but for tests.
    pub stall_limit: Duration,
}

impl OpenAiOptions {
    /// Without key and sampling parameters, with the stall limit of production.
    pub fn new(info: ModelInfo, base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            info,
            base_url: base_url.into(),
            model: model.into(),
            api_key: None,
            is_gateway: false,
            extra: Map::new(),
            stall_limit: STALL_LIMIT,
        }
    }
}

/// Why a model cannot be set up: the operator's configuration is wrong.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("the base_url of model {model} must be an http or https URL without user name and password")]
    BaseUrl { model: String },
    #[error("the API key of model {model} holds characters that cannot be sent")]
    ApiKey { model: String },
    #[error("could not set up the HTTP client of model {model}")]
    Client { model: String, source: reqwest::Error },
}

#[derive(Clone)]
pub struct OpenAiCompatible {
    info: ModelInfo,
    client: Client,
    url: Url,
    /// The base URL for people.
    shown: String,
    model: String,
    /// What is sent as the key.
    key: Option<SecretString>,
    /// The key, and who asks.
    headers: HeaderMap,
    is_gateway: bool,
    /// Of the Run that asks.
    trace: Option<TraceId>,
    extra: Map<String, Value>,
    stall_limit: Duration,
}

impl OpenAiCompatible {
    pub fn new(options: OpenAiOptions) -> Result<Self, OptionsError> {
        let OpenAiOptions { info, base_url, model, api_key, is_gateway, extra, stall_limit } = options;
        let named = || info.name.clone();
        let url = completions_url(&base_url).ok_or_else(|| OptionsError::BaseUrl { model: named() })?;

        let shown = shown(&base_url);
        let mut headers = HeaderMap::new();
        if let Some(key) = &api_key {
            headers.insert(AUTHORIZATION, bearer(key).ok_or_else(|| OptionsError::ApiKey { model: named() })?);
        }
        let mut client = Client::builder()
            .user_agent(concat!("fettle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .redirect(redirect::Policy::none());
        // What is our own is reached without anybody between, who would read keys and code.
        if is_gateway || is_loopback(&url) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|source| OptionsError::Client { model: named(), source })?;
        Ok(Self { info, client, url, shown, model, key: api_key, headers, is_gateway, trace: None, extra, stall_limit })
    }

    /// What the gateway says of the model.
    async fn listed(&self) -> Result<Listed, reqwest::Error> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop().pop().extend(["models", &self.model]);
        }
        let answer = self.client.get(url).headers(self.headers.clone()).send().await?.error_for_status()?;
        answer.json().await
    }

    /// One request, in a span that the gateway's hangs on to.
    async fn ask(&self, request: &ModelRequest, progress: &Progress<'_>) -> Result<RawTurn, ModelError> {
        let own = getrandom::u64().ok().and_then(SpanId::from_digits);
        let span = info_span!(
            "model",
            model.name = %self.info.name,
            model.stream = request.stream,
            span.id = own.map(field::display),
            tokens.prompt = field::Empty,
            tokens.output = field::Empty,
            outcome = field::Empty,
        );
        let parent = self.trace.zip(own).map(|(trace, span)| TraceParent { trace, span });
        let answer = self.exchange(request, progress, parent).instrument(span.clone()).await;
        if let Some(usage) = answer.as_ref().ok().and_then(|turn| turn.usage) {
            span.record("tokens.prompt", usage.prompt_tokens);
            span.record("tokens.output", usage.generated_tokens);
        }
        span.record("outcome", if answer.is_ok() { "complete" } else { "failed" });
        answer
    }

    async fn exchange(
        &self,
        request: &ModelRequest,
        progress: &Progress<'_>,
        parent: Option<TraceParent>,
    ) -> Result<RawTurn, ModelError> {
        let accept = if request.stream { "text/event-stream" } else { "application/json" };
        let body = request::body(&self.model, &self.extra, request);
        let mut asking = self.client.post(self.url.clone()).headers(self.headers.clone()).header(ACCEPT, accept);
        if let Some(parent) = parent {
            asking = asking.header(TRACE_PARENT, parent.to_string());
        }
        let sent = asking.json(&body).send();
        let response = match timeout(self.stall_limit, sent).await {
            Err(_) => return Err(self.stalled(self.stall_limit)),
            Ok(Err(error)) => return Err(self.broken(error)),
            Ok(Ok(response)) => response,
        };
        debug!(model.name = %self.info.name, http.status = response.status().as_u16(), "the model's server answered");
        if response.status().is_success() {
            self.read_turn(response, progress).await
        } else {
            Err(self.read_failure(response).await)
        }
    }

    async fn read_turn(&self, mut response: Response, progress: &Progress<'_>) -> Result<RawTurn, ModelError> {
        let mut decoder = Decoder::new();
        let kind =
            response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("no content type");
        let mut begun = Begun { status: response.status().as_u16(), kind: kind.to_owned(), head: Vec::new() };
        loop {
            let finished = decoder.has_finish();
            let limit = if finished { AFTER_FINISH_LIMIT.min(self.stall_limit) } else { self.stall_limit };
            match timeout(limit, response.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    let room = HEAD_BYTES - begun.head.len();
                    begun.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    match decoder.push(&bytes, progress) {
                        Ok(Flow::More) => {}
                        Ok(Flow::Complete) => break,
                        Err(error) => return Err(self.undecodable(error, &begun)),
                    }
                }
                Ok(Ok(None)) => break,
                // Only usage and end mark are missing; the turn itself is whole.
                Ok(Err(_)) | Err(_) if finished => break,
                Ok(Err(error)) => return Err(self.broken(error)),
                Err(_) => return Err(self.stalled(limit)),
            }
        }
        decoder.end(progress).map_err(|error| self.undecodable(error, &begun))
    }

    async fn read_failure(&self, mut response: Response) -> ModelError {
        let status = response.status().as_u16();
        let retry_after = failure::retry_after(response.headers());
        let mut body = Vec::new();
        // A body that breaks or ends late still leaves its status; what came of it is used.
        let read = async {
            while let Ok(Some(bytes)) = response.chunk().await {
                let room = MAX_FAILURE_BYTES - body.len();
                body.extend_from_slice(&bytes[..bytes.len().min(room)]);
                if body.len() == MAX_FAILURE_BYTES {
                    break;
                }
            }
        };
        if timeout(FAILURE_BODY_LIMIT.min(self.stall_limit), read).await.is_err() {
            debug!(model.name = %self.info.name, http.status = status, "the reason of a failure came too slowly");
        }
        failure::of_status(status, retry_after, &Complaint::of_body(&body), self.asked())
    }

    fn asked(&self) -> Asked<'_> {
        Asked { url: &self.shown, key: self.key.as_ref(), is_gateway: self.is_gateway }
    }

    fn undecodable(&self, error: DecodeError, begun: &Begun) -> ModelError {
        match error {
            DecodeError::Reported { complaint, nothing_said } => {
                failure::reported(&complaint, nothing_said, self.asked())
            }
            // What a model wrote is never shown, so the beginning of its answer is not either, however it went wrong.
            DecodeError::TooLong => ModelError::Unavailable(Box::new(DecodeError::TooLong)),
            error @ DecodeError::NotJson(_) if begun.is_of_a_model() => ModelError::Unavailable(Box::new(error)),
            error @ (DecodeError::NotJson(_) | DecodeError::NoChoice) => {
                failure::foreign(begun.status, &begun.kind, &begun.head, error, self.asked())
            }
        }
    }

    fn stalled(&self, limit: Duration) -> ModelError {
        ModelError::Unavailable(Box::new(Stalled { url: self.shown.clone(), limit }))
    }

    /// A URL's query may hold a key, so the cause is without it.
    fn broken(&self, error: reqwest::Error) -> ModelError {
        let url = self.shown.clone();
        let connecting = error.is_connect();
        let source = error.without_url();
        ModelError::Unavailable(Box::new(match connecting {
            true => Broken::Unreached { url, source },
            false => Broken::Off { url, source },
        }))
    }
}

/// An entry of the gateway's list, as far as it is of interest here.
#[derive(Deserialize)]
struct Listed {
    fettle: Option<ListedByFettle>,
}

#[derive(Deserialize)]
struct ListedByFettle {
    tool_calls: Option<ToolCalls>,
}

/// How an answer with a success status began.
struct Begun {
    status: u16,
    kind: String,
    head: Vec<u8>,
}

impl Begun {
    /// By its content type, it is what was asked for.
    fn is_of_a_model(&self) -> bool {
        ["application/json", "text/event-stream"].iter().any(|kind| self.kind.starts_with(kind))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{url} sent nothing for {limit:?}")]
struct Stalled {
    url: String,
    limit: Duration,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{url} could not be reached")]
    Unreached { url: String, source: reqwest::Error },
    #[error("the connection to {url} broke")]
    Off { url: String, source: reqwest::Error },
}

#[async_trait]
impl Model for OpenAiCompatible {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn tool_calls(&self) -> Option<ToolCalls> {
        if !self.is_gateway {
            return None;
        }
        let said = timeout(LISTED_LIMIT, self.listed()).await;
        match said {
            Ok(Ok(listed)) => listed.fettle.and_then(|own| own.tool_calls),
            Ok(Err(error)) => {
                debug!(model.name = %self.info.name, "the gateway does not tell of it: {}", error.without_url());
                None
            }
            Err(_) => None,
        }
    }

    fn for_run(&self, run: RunAccess) -> Arc<dyn Model> {
        let mut own = self.clone();
        if self.is_gateway {
            let said = |text: String| HeaderValue::from_str(&text).expect("an id is plain text");
            own.headers.insert(SESSION, said(run.run.to_string()));
            own.headers.insert(CORRELATION, said(run.correlation.to_string()));
            own.trace = TraceId::of(run.correlation);
            // A token that cannot be sent was not made by our dashboard; the gateway will say that one is missing.
            if let Some((token, value)) = run.token.and_then(|token| bearer(&token).map(|value| (token, value))) {
                own.headers.insert(AUTHORIZATION, value);
                own.key = Some(token);
            }
        }
        Arc::new(own)
    }

    async fn call(
        &self,
        request: &ModelRequest,
        progress: &Progress<'_>,
        cancel: &CancellationToken,
    ) -> Result<RawTurn, ModelError> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ModelError::Cancelled),
            // May be dropped at any await: the connection closes and nothing else was begun.
            answer = self.ask(request, progress) => answer,
        }
    }
}

fn bearer(key: &SecretString) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The base URL without user, password, query and fragment: some providers take a key in the query.
fn shown(base_url: &str) -> String {
    let Ok(mut url) = Url::parse(base_url.trim()) else { return "the model's server".to_owned() };
    let _no_host = url.set_username("").and_then(|()| url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    url.as_str().trim_end_matches('/').to_owned()
}

fn completions_url(base_url: &str) -> Option<Url> {
    let mut url = Url::parse(base_url.trim()).ok()?;
    let plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    if !plain {
        return None;
    }
    url.path_segments_mut().ok()?.pop_if_empty().extend(["chat", "completions"]);
    url.set_fragment(None);
    Some(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_appended_to_the_base_url_and_nothing_is_guessed() {
        for (base, url) in [
            ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1/chat/completions"),
            ("http://localhost/v1/", "http://localhost/v1/chat/completions"),
            ("http://engine:8000", "http://engine:8000/chat/completions"),
            ("https://x.example/openai?api-version=1", "https://x.example/openai/chat/completions?api-version=1"),
        ] {
            assert_eq!(completions_url(base).as_ref().map(Url::as_str), Some(url));
        }
        for refused in ["engine:8000", "ftp://x/v1", "http://user:pass@x/v1", "", "/v1"] {
            assert_eq!(completions_url(refused), None, "{refused}");
        }
    }

    #[test]
    fn a_url_is_shown_without_what_may_be_secret_in_it() {
        assert_eq!(shown(" http://user:pass@x:1/v1/?key=canary#part"), "http://x:1/v1");
    }

    #[test]
    fn loopback_is_known_by_name_and_address() {
        let loopback = |url: &str| is_loopback(&Url::parse(url).unwrap());
        assert!(loopback("http://127.0.0.9:1/v1") && loopback("http://[::1]:1") && loopback("http://localhost/"));
        assert!(!loopback("http://10.0.0.1/") && !loopback("https://localhost.example/"));
    }
}
