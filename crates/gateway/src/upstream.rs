//! One target as an HTTP server: how it is reached, what it wants to hear, and what it speaks. It decides nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use camino::Utf8PathBuf;
use fettle_app::ports::serving::{Endpoint, ReadyEngine};
use fettle_placement::id::{EngineId, Epoch};
use fettle_protocols::Protocol;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioIo, TokioTimer};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

use crate::settings::{Provider, ProviderKind, SettingsError, Timeouts};

/// Below the 5 s after which servers of engines close a connection that nothing happens on, so that ours is closed first.
const LOCAL_IDLE: Duration = Duration::from_secs(4);
const REMOTE_IDLE: Duration = Duration::from_secs(50);
/// Connections kept for the next request; as many as are open at once on a busy engine.
const IDLE_CONNECTIONS: usize = 1_024;
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const KEY: HeaderName = HeaderName::from_static("x-api-key");
const GOOGLE_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");
/// What the shapes of `protocols` are written for.
const ANTHROPIC_DATE: HeaderValue = HeaderValue::from_static("2023-06-01");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("fettle/", env!("CARGO_PKG_VERSION")));

pub(crate) struct Upstream {
    /// The engine's or provider's.
    pub(crate) name: String,
    pub(crate) engine: Option<(EngineId, Epoch)>,
    pub(crate) recipe: Option<String>,
    /// What an engine calls its model.
    pub(crate) model: Option<String>,
    pub(crate) kind: ProviderKind,
    pub(crate) first_byte: Duration,
    client: Wire,
    scheme: Scheme,
    authority: Authority,
    /// Before every path.
    prefix: String,
    headers: HeaderMap,
}

/// How a request comes to be sent.
pub(crate) struct Sending {
    /// Below the server's root.
    pub(crate) path: String,
    pub(crate) body: Bytes,
    pub(crate) streamed: bool,
    pub(crate) protocol: Protocol,
    /// The caller's, that go along.
    pub(crate) headers: HeaderMap,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("could not connect")]
    Connect(#[source] hyper_util::client::legacy::Error),
    #[error("the connection broke")]
    Broken(#[source] hyper_util::client::legacy::Error),
    #[error("the request cannot be said in HTTP")]
    Unsayable(#[source] http::Error),
}

enum Wire {
    Tcp(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
    Unix(Client<UnixConnector, Full<Bytes>>),
}

/// What all clients share.
pub(crate) struct Wiring {
    tls: Arc<rustls::ClientConfig>,
    tracker: TaskTracker,
}

impl Wiring {
    /// Connections run on `tracker`.
    pub(crate) fn new(tracker: TaskTracker) -> Result<Self, SettingsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(ConfigBuilderExt::try_with_platform_verifier)
            .map_err(|error| SettingsError::Certificates(Box::new(error)))?
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls), tracker })
    }

    fn tcp(&self, connect: Duration, idle: Duration) -> Wire {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.set_connect_timeout(Some(connect));
        http.enforce_http(false);
        let tls = HttpsConnectorBuilder::new().with_tls_config((*self.tls).clone());
        Wire::Tcp(self.builder(idle).build(tls.https_or_http().enable_http1().wrap_connector(http)))
    }

    fn unix(&self, path: Utf8PathBuf, connect: Duration, idle: Duration) -> Wire {
        Wire::Unix(self.builder(idle).build(UnixConnector { path, connect }))
    }

    fn builder(&self, idle: Duration) -> hyper_util::client::legacy::Builder {
        let mut builder = Client::builder(Tracked(self.tracker.clone()));
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(idle).pool_max_idle_per_host(IDLE_CONNECTIONS);
        builder
    }
}

impl Upstream {
    /// `None`: its address or key cannot be sent.
    pub(crate) fn of_engine(engine: &ReadyEngine, timeouts: &Timeouts, wiring: &Wiring) -> Option<Self> {
        let (client, authority) = match &engine.address.at {
            Endpoint::Unix(path) => {
                let authority = Authority::from_static("localhost");
                (wiring.unix(path.clone(), timeouts.connect_local, LOCAL_IDLE), authority)
            }
            Endpoint::Tcp(address) => {
                let authority = Authority::try_from(address.to_string()).ok()?;
                (wiring.tcp(timeouts.connect_local, LOCAL_IDLE), authority)
            }
        };
        let kind = ProviderKind::OpenAiCompatible;
        Some(Self {
            name: engine.engine.as_str().to_owned(),
            engine: Some((engine.engine.clone(), engine.epoch)),
            recipe: Some(engine.recipe.clone()),
            model: Some(engine.address.model.clone()),
            kind,
            first_byte: timeouts.first_byte_local,
            client,
            scheme: Scheme::HTTP,
            authority,
            prefix: String::new(),
            headers: key_headers(kind, engine.address.key.as_ref())?,
        })
    }

    pub(crate) fn of_provider(
        provider: &Provider,
        timeouts: &Timeouts,
        wiring: &Wiring,
    ) -> Result<Self, SettingsError> {
        let name = || provider.name.clone();
        let root = provider.base_url.as_deref().or(provider.kind.root());
        let root = root.and_then(Root::parse).ok_or_else(|| SettingsError::BaseUrl { name: name() })?;
        Ok(Self {
            name: name(),
            engine: None,
            recipe: None,
            model: None,
            kind: provider.kind,
            first_byte: timeouts.first_byte_remote,
            client: wiring.tcp(timeouts.connect_remote, REMOTE_IDLE),
            scheme: root.scheme,
            authority: root.authority,
            prefix: root.prefix,
            headers: key_headers(provider.kind, provider.api_key.as_ref())
                .ok_or_else(|| SettingsError::ApiKey { name: name() })?,
        })
    }

    pub(crate) fn is_local(&self) -> bool {
        self.engine.is_some()
    }

    /// Whether it reads `protocol` as it is.
    pub(crate) fn speaks(&self, protocol: Protocol) -> bool {
        use Protocol::{
            AnthropicMessages, GoogleGenerate, OllamaChat, OllamaGenerate, OpenAiChat, OpenAiCompletions,
            OpenAiEmbeddings, OpenAiResponses,
        };
        match self.kind {
            ProviderKind::OpenAi => {
                matches!(protocol, OpenAiChat | OpenAiCompletions | OpenAiEmbeddings | OpenAiResponses)
            }
            ProviderKind::OpenAiCompatible => matches!(protocol, OpenAiChat | OpenAiCompletions | OpenAiEmbeddings),
            ProviderKind::Anthropic => protocol == AnthropicMessages,
            ProviderKind::Google => protocol == GoogleGenerate,
            ProviderKind::Ollama => {
                matches!(protocol, OpenAiChat | OpenAiCompletions | OpenAiEmbeddings | OllamaChat | OllamaGenerate)
            }
        }
    }

    /// What it is asked in when it does not speak the caller's protocol.
    pub(crate) fn native(&self, plain_text: bool) -> Protocol {
        match self.kind {
            ProviderKind::Anthropic => Protocol::AnthropicMessages,
            ProviderKind::Google => Protocol::GoogleGenerate,
            ProviderKind::OpenAi | ProviderKind::OpenAiCompatible | ProviderKind::Ollama if plain_text => {
                Protocol::OpenAiCompletions
            }
            ProviderKind::OpenAi | ProviderKind::OpenAiCompatible | ProviderKind::Ollama => Protocol::OpenAiChat,
        }
    }

    /// Until the head of the answer is there. Dropped, the connection is closed, which ends the work for it.
    pub(crate) async fn send(&self, sending: Sending) -> Result<Response<Incoming>, SendError> {
        let request = self.request(sending).map_err(SendError::Unsayable)?;
        let sent = match &self.client {
            Wire::Tcp(client) => client.request(request).await,
            Wire::Unix(client) => client.request(request).await,
        };
        sent.map_err(|error| if error.is_connect() { SendError::Connect(error) } else { SendError::Broken(error) })
    }

    fn request(&self, sending: Sending) -> Result<Request<Full<Bytes>>, http::Error> {
        let Sending { path, body, streamed, protocol, headers } = sending;
        let path = PathAndQuery::try_from(format!("{}{path}", self.prefix))?;
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let all = request.headers_mut();
        *all = headers;
        if protocol == Protocol::AnthropicMessages {
            all.entry(ANTHROPIC_VERSION).or_insert(ANTHROPIC_DATE);
        }
        all.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        all.insert(ACCEPT, HeaderValue::from_static(protocol.content_type(streamed)));
        all.insert(USER_AGENT, AGENT);
        for (name, value) in &self.headers {
            all.insert(name, value.clone());
        }
        Ok(request)
    }
}

/// `None`: the key cannot be sent.
fn key_headers(kind: ProviderKind, key: Option<&SecretString>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        let (name, text) = match kind {
            ProviderKind::Anthropic => (KEY, key.expose_secret().to_owned()),
            ProviderKind::Google => (GOOGLE_KEY, key.expose_secret().to_owned()),
            ProviderKind::OpenAi | ProviderKind::OpenAiCompatible | ProviderKind::Ollama => {
                (AUTHORIZATION, format!("Bearer {}", key.expose_secret()))
            }
        };
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Some(headers)
}

struct Root {
    scheme: Scheme,
    authority: Authority,
    prefix: String,
}

impl Root {
    fn parse(url: &str) -> Option<Self> {
        let parts = url.parse::<Uri>().ok()?.into_parts();
        let (scheme, authority) = (parts.scheme?, parts.authority?);
        let plain = scheme == Scheme::HTTP || scheme == Scheme::HTTPS;
        let path = parts.path_and_query?;
        let prefix = path.path().trim_end_matches('/');
        let prefix = prefix.strip_suffix("/v1").unwrap_or(prefix).to_owned();
        (plain && path.query().is_none() && !authority.as_str().contains('@')).then_some(Self {
            scheme,
            authority,
            prefix,
        })
    }
}

/// Connects to one socket whatever it is asked for.
#[derive(Clone)]
struct UnixConnector {
    path: Utf8PathBuf,
    connect: Duration,
}

impl tower::Service<Uri> for UnixConnector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { path, connect } = self.clone();
        Box::pin(async move {
            let stream = tokio::time::timeout(connect, UnixStream::connect(path)).await;
            Ok(TokioIo::new(stream.map_err(|_| std::io::ErrorKind::TimedOut)??))
        })
    }
}

/// The tasks that drive connections end with the gateway.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_what_stands_before_v1_and_says_nothing_secret() {
        let parsed =
            |url| Root::parse(url).map(|root| (root.scheme.to_string(), root.authority.to_string(), root.prefix));
        let root = |scheme: &str, authority: &str, prefix: &str| {
            Some((scheme.to_owned(), authority.to_owned(), prefix.to_owned()))
        };
        assert_eq!(parsed("https://api.example/v1/"), root("https", "api.example", ""));
        assert_eq!(parsed("http://127.0.0.1:8000"), root("http", "127.0.0.1:8000", ""));
        assert_eq!(parsed("https://api.example/api/v1"), root("https", "api.example", "/api"));
        for wrong in ["ftp://x/", "https://a:b@x/v1", "https://x/v1?key=1", "x", ""] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
