//! A gateway on a real socket, what it is told and what it tells.

use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use bytes::Bytes;
use camino::Utf8PathBuf;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::serving::{EngineMeter, ReadyEngine, ServedModel, Supply, Unserved, When};
use fettle_app::run_token::{RunBudgets, RunClaims, RunTokenKey};
use fettle_domain::id::{JobId, RunId};
use fettle_domain::lease::Fence;
use fettle_gateway::{Gateway, Parts, Providers, Settings, StaticKey, Told, UsageReader, UsageRecord};
use fettle_placement::id::{ModelId, OwnerId};
use fettle_placement::view::Class;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use prometheus::{Registry, TextEncoder};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) const KEY: &str = "sesame";
pub(crate) const MODEL: &str = "coder";
const SIGNING: &str = "a signing key of forty bytes, all in all";
/// More than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }
}

impl IdSource for Fixed {
    #[expect(clippy::disallowed_methods, reason = "what the port stands for")]
    fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }
}

pub(crate) struct World {
    pub(crate) url: String,
    client: Client<HttpConnector, Full<Bytes>>,
    pub(crate) supply: watch::Sender<Arc<Supply>>,
    pub(crate) meters: watch::Sender<Arc<Vec<EngineMeter>>>,
    pub(crate) told: Told,
    pub(crate) providers: Arc<Providers>,
    usage: UsageReader,
    registry: Registry,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) fn served(engines: Vec<ReadyEngine>) -> Supply {
    Supply { models: vec![ServedModel { id: ModelId::new(MODEL), context_tokens: 8_192, engines, unserved: None }] }
}

pub(crate) fn unserved(why: &str, when: When) -> Supply {
    let mut supply = served(Vec::new());
    supply.models[0].unserved = Some(Unserved { why: why.to_owned(), when });
    supply
}

impl World {
    pub(crate) async fn start(supply: Supply) -> Self {
        Self::with(supply, |_| {}).await
    }

    pub(crate) async fn with(supply: Supply, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::within(folder, supply, change).await
    }

    pub(crate) async fn within(folder: tempfile::TempDir, supply: Supply, change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(0, folder, supply, change).await
    }

    /// `port`: 0 for any.
    pub(crate) async fn on(
        port: u16,
        folder: tempfile::TempDir,
        supply: Supply,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let mut settings = Settings::new(Utf8PathBuf::from_path_buf(folder.path().join("usage")).unwrap());
        settings.keys = vec![StaticKey {
            key: KEY.to_owned().into(),
            owner: OwnerId::new("ada"),
            class: Class::Interactive,
            models: None,
        }];
        settings.run_token_key = Some(RunTokenKey::new(&SIGNING.to_owned().into()).unwrap());
        change(&mut settings);
        let (supply, supplied) = watch::channel(Arc::new(supply));
        let (meters, metered) = watch::channel(Arc::default());
        let (_, examined) = watch::channel(Arc::default());
        let registry = Registry::new();
        let parts = Parts { supply: supplied, meters: metered, examined, clock: Arc::new(Fixed), ids: Arc::new(Fixed) };
        let (gateway, told) = Gateway::new(settings, parts, &registry).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let providers = gateway.providers();
        let (router, usage, shutdown) = (gateway.router(), gateway.usage(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(gateway.run(shutdown.clone()));
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { url, client, supply, meters, told, providers, usage, registry, shutdown, tasks, folder }
    }

    /// Ends as a process does, with its usage written.
    pub(crate) async fn end(mut self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
        self.folder
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = tokio::time::timeout(PATIENCE, self.client.request(request)).await;
        let response = response.expect("an answer within patience").unwrap();
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) fn request(&self, path: &str, key: &str, body: &Value) -> Request<Full<Bytes>> {
        let request = Request::builder().method(Method::POST).uri(format!("{}{path}", self.url));
        let request = request.header("authorization", format!("Bearer {key}"));
        request.body(Full::from(body.to_string())).unwrap()
    }

    pub(crate) fn chat(&self, stream: bool) -> Request<Full<Bytes>> {
        self.request("/v1/chat/completions", KEY, &chat_body(stream))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let request = Request::builder().uri(format!("{}{path}", self.url));
        self.send(request.header("x-api-key", KEY).body(Full::default()).unwrap()).await
    }

    /// The usage records, as soon as there are so many.
    pub(crate) async fn usage(&self, count: usize) -> Vec<UsageRecord> {
        let read = async {
            loop {
                let records = self.usage.read(None).unwrap().records;
                if records.len() >= count {
                    return records;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("so many records within patience")
    }

    pub(crate) async fn waiting(&mut self, requests: u32) {
        let sum =
            |demand: &fettle_app::ports::serving::Demand| demand.waiting.iter().map(|one| one.requests).sum::<u32>();
        let waited = self.told.demand.wait_for(|demand| sum(demand) == requests);
        tokio::time::timeout(PATIENCE, waited).await.expect("so many waiting within patience").unwrap();
    }

    pub(crate) async fn inflight(&mut self, requests: u32) {
        let sum = |load: &fettle_app::ports::serving::Load| load.engines.iter().map(|one| one.inflight).sum::<u32>();
        let waited = self.told.load.wait_for(|load| sum(load) == requests);
        tokio::time::timeout(PATIENCE, waited).await.expect("so many in flight within patience").unwrap();
    }

    pub(crate) fn metrics(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap()
    }
}

pub(crate) fn chat_body(stream: bool) -> Value {
    json!({ "model": MODEL, "messages": [{ "role": "user", "content": "Say hello." }], "max_tokens": 50, "stream": stream })
}

pub(crate) fn token(fence: u64, budgets: RunBudgets, expires: i64) -> String {
    let claims = RunClaims {
        run: RunId::from_uuid(Uuid::from_u128(1)),
        job: JobId::from_uuid(Uuid::from_u128(2)),
        fence: Fence::new(fence),
        models: vec![MODEL.to_owned()],
        budgets,
        repository: "ada/engine".to_owned(),
        class: Class::Batch,
        expires: Timestamp::from_second(expires).unwrap(),
    };
    RunTokenKey::new(&SIGNING.to_owned().into()).unwrap().sign(&claims).expose_secret().to_owned()
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) async fn text(self) -> String {
        let body = tokio::time::timeout(PATIENCE, self.body.collect()).await.expect("its end within patience").unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    pub(crate) async fn json(self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"))
    }

    /// The next bytes of a stream.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("more within patience")?;
        Some(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
    }
}
