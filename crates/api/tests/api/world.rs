//! Both listeners on real sockets, a fake ledger behind them, and a client that checks every answer against the document.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fettle_api::{
    About, AboutForge, ApiState, ConfiguredModel, Health, HttpMetrics, Parts, ProbeTiming, Setting, WebhookSecrets,
    WorkerClient,
};
use fettle_app::adding::Adding;
use fettle_app::auditing::{AuditForge, ForgeAudit};
use fettle_app::doorkeeping::Doorkeeper;
use fettle_app::live::Live;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::{L, Ledger, Opened, TaskPlan, TaskView};
use fettle_app::ports::model::{Answered, TryModel};
use fettle_app::ports::pods::ShowPods;
use fettle_app::publishing::PublishOptions;
use fettle_app::reconciling::Reconcilers;
use fettle_app::showing::{ShowChange, ShowError};
use fettle_app::submit::{FurtherRun, Missing, NewTask, SubmitError, SubmitTask, Submitted};
use fettle_app::submitting::{add_plans, plan_run};
use fettle_app::words::Ear;
use fettle_domain::forwarded::Network;
use fettle_domain::id::{CorrelationId, JobId, RunId, TaskId};
use fettle_domain::issue::IssueSnapshot;
use fettle_domain::label::Labels;
use fettle_domain::repo::Repo;
use fettle_domain::run::ProvenChange;
use fettle_domain::secret::KnownSecrets;
use fettle_domain::task::Mode;
use hmac::{Hmac, Mac};
use jiff::Timestamp;
use prometheus::Registry;
use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::contract;
use crate::fake::FakeLedger;

pub(crate) const GATEWAY_KEY: &str = "the gateway's secret";
pub(crate) const ADMIN_KEY: &str = "admin-key-of-the-tests";
pub(crate) const WORKER_KEY: &str = "service-key-of-the-tests";
pub(crate) const SCALE_KEY: &str = "scale-key-of-the-tests";
pub(crate) const SECRET: &str = "webhook secret";
pub(crate) const OLD_SECRET: &str = "webhook secret before";

/// When everything in these tests happens.
pub(crate) fn start() -> Timestamp {
    Timestamp::from_second(1_763_600_000).unwrap()
}

pub(crate) struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        start()
    }
}

/// 1, 2, 3, …
#[derive(Default)]
pub(crate) struct Counted(AtomicU64);

impl From<u64> for Counted {
    fn from(first: u64) -> Self {
        Self(AtomicU64::new(first))
    }
}

impl IdSource for Counted {
    fn uuid(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.0.fetch_add(1, Ordering::Relaxed)) + 1)
    }
}

/// Makes the Task that was asked for; refuses by the repository's name.
pub(crate) struct Submitting {
    ledger: Arc<dyn Ledger>,
    ids: Counted,
    seen: Mutex<Vec<(NewTask, TaskId)>>,
}

#[async_trait]
impl SubmitTask for Submitting {
    async fn submit(&self, request: NewTask) -> Result<Submitted, SubmitError> {
        match request.repository.as_deref() {
            Some("acme/unknown") => return Err(SubmitError::NotFound(Missing::Repository("acme/unknown".to_owned()))),
            Some("acme/forbidden") => return Err(SubmitError::NotPermitted(request.actor)),
            Some("acme/limited") => {
                let retry_after = Duration::from_secs(7);
                return Err(SubmitError::Unavailable {
                    what: "the forge".to_owned(),
                    retry_after,
                    cause: "away".into(),
                });
            }
            Some("acme/panic") => panic!("a handler's bug"),
            Some("acme/never") => std::future::pending().await,
            _ => {}
        }
        let known = |(seen, task): &(NewTask, TaskId)| {
            (seen.idempotency_key.is_some() && seen.idempotency_key == request.idempotency_key).then_some(*task)
        };
        if let Some(task) = self.seen.lock().unwrap().iter().find_map(known) {
            return Ok(Submitted { task, opened: Opened::Duplicate { task } });
        }
        let plan = plan(&self.ids, &request);
        let opened = self.ledger.open_task(None, &plan).await.map_err(SubmitError::Ledger)?;
        self.seen.lock().unwrap().push((request, plan.id));
        Ok(Submitted { task: plan.id, opened })
    }

    async fn add_runs(
        &self,
        task: TaskId,
        by: &str,
        runs: Vec<FurtherRun>,
        key: Option<&str>,
    ) -> Result<Vec<RunId>, SubmitError> {
        let plans = runs.into_iter().map(|run| plan_run(&self.ids, run)).collect();
        add_plans(&*self.ledger, task, by, plans, key).await
    }
}

fn plan(ids: &Counted, request: &NewTask) -> TaskPlan {
    let (title, body) = request.text.clone().unwrap_or(("A title".to_owned(), "A body".to_owned()));
    TaskPlan {
        id: TaskId::from_uuid(ids.uuid()),
        run: RunId::from_uuid(ids.uuid()),
        job: JobId::from_uuid(ids.uuid()),
        correlation: request.correlation,
        intent: format!("test:{}", ids.uuid()),
        mode: request.mode,
        needs: Labels::default(),
        repo: request.repository.as_ref().map(|_| Repo {
            forge_id: 1,
            name: "acme/widget".parse().unwrap(),
            clone_url: "https://forge.example/acme/widget.git".to_owned(),
            default_branch: "main".to_owned(),
            private: false,
            installation: None,
        }),
        issue: IssueSnapshot {
            number: request.issue,
            title,
            body,
            author: request.actor.clone(),
            url: None,
            comments: Vec::new(),
            taken_at: start(),
        },
        said: None,
        model: request.model.clone(),
        base: request.base.clone(),
        actor: request.actor.clone(),
        trigger: request.trigger.to_owned(),
        at: start(),
        further: request.further.iter().map(|run| plan_run(ids, run.clone())).collect(),
    }
}

/// Who has accounts, and what they added.
#[derive(Default)]
pub(crate) struct Residents {
    door: Option<Arc<Doorkeeper>>,
    adding: Option<Arc<Adding>>,
    /// As where no key of run tokens is configured.
    workers_are_gateways: bool,
    pods: Option<Arc<dyn ShowPods>>,
}

impl Residents {
    fn of(door: Doorkeeper, adding: Arc<Adding>) -> Self {
        Self { door: Some(Arc::new(door)), adding: Some(adding), ..Self::default() }
    }
}

pub(crate) struct World {
    pub(crate) ledger: Arc<FakeLedger>,
    pub(crate) health: Arc<Health>,
    pub(crate) reconcilers: Arc<Reconcilers>,
    pub(crate) public: String,
    pub(crate) internal: String,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) http: reqwest::Client,
    submitting: Arc<Submitting>,
    ids: Counted,
}

impl World {
    pub(crate) async fn start() -> Self {
        let secrets =
            WebhookSecrets { current: SecretString::from(SECRET), previous: Some(SecretString::from(OLD_SECRET)) };
        Self::with(Some(secrets)).await
    }

    pub(crate) async fn with(webhook: Option<WebhookSecrets>) -> Self {
        let fake = Arc::new(FakeLedger::new());
        Self::build(fake.clone(), fake, webhook, Residents::default(), Vec::new()).await
    }

    /// With another ledger than the fake.
    pub(crate) async fn on(ledger: Arc<dyn Ledger>) -> Self {
        let secrets = WebhookSecrets { current: SecretString::from(SECRET), previous: None };
        Self::build(Arc::new(FakeLedger::new()), ledger, Some(secrets), Residents::default(), Vec::new()).await
    }

    /// In a cluster.
    pub(crate) async fn among(pods: Arc<dyn ShowPods>) -> Self {
        let fake = Arc::new(FakeLedger::new());
        let residents = Residents { pods: Some(pods), ..Residents::default() };
        Self::build(fake.clone(), fake, None, residents, Vec::new()).await
    }

    /// With accounts.
    pub(crate) async fn behind(door: Doorkeeper, adding: Arc<Adding>) -> Self {
        let fake = Arc::new(FakeLedger::new());
        Self::build(fake.clone(), fake, None, Residents::of(door, adding), Vec::new()).await
    }

    /// With accounts, where workers can make what a gateway shows.
    pub(crate) async fn behind_with_workers_as_gateways(door: Doorkeeper, adding: Arc<Adding>) -> Self {
        let fake = Arc::new(FakeLedger::new());
        let residents = Residents { workers_are_gateways: true, ..Residents::of(door, adding) };
        Self::build(fake.clone(), fake, None, residents, Vec::new()).await
    }

    /// With accounts, and trusting what this machine says of others.
    pub(crate) async fn behind_proxy(door: Doorkeeper, adding: Arc<Adding>) -> Self {
        let fake = Arc::new(FakeLedger::new());
        let trusted = vec!["127.0.0.1".parse().unwrap()];
        Self::build(fake.clone(), fake, None, Residents::of(door, adding), trusted).await
    }

    async fn build(
        fake: Arc<FakeLedger>,
        ledger: Arc<dyn Ledger>,
        webhook: Option<WebhookSecrets>,
        residents: Residents,
        trusted: Vec<Network>,
    ) -> Self {
        let submitting = submitting(ledger.clone());
        let shutdown = CancellationToken::new();
        let tracker = TaskTracker::new();
        let (api, metrics, health, reconcilers) =
            state(&ledger, submitting.clone(), webhook, &shutdown, ProbeTiming::for_tests(), residents, trusted);
        health.serving();
        tracker.spawn({
            let (health, ledger, stop) = (health.clone(), ledger.clone(), shutdown.clone());
            async move { health.watch(&*ledger, &metrics, &stop).await }
        });
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let internal = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (public_url, internal_url) = (address(&public), address(&internal));
        let router = fettle_api::router(api.clone());
        tracker.spawn(fettle_api::serve(public, router, shutdown.clone(), tracker.clone()));
        tracker.spawn(fettle_api::serve(internal, fettle_api::internal_router(api), shutdown.clone(), tracker.clone()));
        tracker.close();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy().build().unwrap();
        let (public, internal, ids) = (public_url, internal_url, Counted::default());
        Self { ledger: fake, health, reconcilers, public, internal, shutdown, tracker, http, submitting, ids }
    }

    pub(crate) fn worker(&self) -> WorkerClient {
        WorkerClient::new(&self.internal, &SecretString::from(WORKER_KEY)).unwrap()
    }

    /// A Task, made past the API.
    pub(crate) async fn task(&self) -> TaskId {
        let request = NewTask {
            further: Vec::new(),
            repository: Some("acme/widget".to_owned()),
            issue: Some(7),
            text: None,
            mode: Mode::Quickfix,
            model: None,
            base: None,
            actor: "admin".to_owned(),
            trigger: "api",
            idempotency_key: None,
            correlation: CorrelationId::from_uuid(self.ids.uuid()),
        };
        self.submitting.submit(request).await.unwrap().task
    }

    pub(crate) fn submitted(&self) -> Vec<NewTask> {
        self.submitting.seen.lock().unwrap().iter().map(|(request, _)| request.clone()).collect()
    }

    /// As the holder of the admin key.
    pub(crate) async fn get(&self, path: &str) -> Seen {
        self.ask(Method::GET, path, &[("authorization", &format!("Bearer {ADMIN_KEY}"))], None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Seen {
        let authorization = format!("Bearer {ADMIN_KEY}");
        let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        self.ask(Method::POST, path, &headers, Some(body.to_string().into_bytes())).await
    }

    /// Sends exactly this and checks the answer against the OpenAPI document.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Seen {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.public));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let seen = Seen::read(request.send().await.unwrap()).await;
        contract::check(&method, path, &seen);
        seen
    }

    /// As GitHub would.
    pub(crate) async fn deliver(&self, event: &str, delivery: &str, body: &[u8], secret: &str) -> Seen {
        let signature = sign(secret, body);
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", event),
            ("x-github-delivery", delivery),
            ("x-hub-signature-256", &signature),
        ];
        self.ask(Method::POST, "/webhooks/github", &headers, Some(body.to_vec())).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn state(
    ledger: &Arc<dyn Ledger>,
    submit: Arc<dyn SubmitTask>,
    webhook: Option<WebhookSecrets>,
    shutdown: &CancellationToken,
    timing: ProbeTiming,
    residents: Residents,
    trusted: Vec<Network>,
) -> (ApiState, HttpMetrics, Arc<Health>, Arc<Reconcilers>) {
    let registry = Registry::new();
    let metrics = HttpMetrics::register(&registry).unwrap();
    let health = Arc::new(Health::new(timing, Arc::new(Still), Arc::default()));
    let reconcilers = Arc::new(Reconcilers::new(Arc::new(Still)));
    let options =
        Live::new(PublishOptions { secrets: KnownSecrets::new([("webhook", SECRET)]), ..PublishOptions::default() });
    let api = ApiState::new(Parts {
        ledger: ledger.clone(),
        words: Arc::new(Ear::new(ledger.clone(), options.clone())),
        submit,
        audit: Arc::new(NothingWritten),
        changes: Arc::new(NothingWritten),
        clock: Arc::new(Still),
        ids: Arc::new(Counted::default()),
        trusted_proxies: trusted,
        door: residents.door,
        admin_key: SecretString::from(ADMIN_KEY),
        scale_key: Some(SecretString::from(SCALE_KEY)),
        worker_key: SecretString::from(WORKER_KEY),
        webhook,
        health: health.clone(),
        reconcilers: reconcilers.clone(),
        metrics: metrics.clone(),
        registry,
        inference: None,
        pods: residents.pods,
        publishing: options.clone(),
        about: about(),
        adding: residents.adding,
        tries: Some(Arc::new(Answers)),
        gateway_key: Some(SecretString::from(GATEWAY_KEY)),
        workers_are_gateways: residents.workers_are_gateways,
        version: "0.0.0-test",
        shutdown: shutdown.clone(),
    });
    (api, metrics, health, reconcilers)
}

/// Each model says its name.
struct Answers;

#[async_trait]
impl TryModel for Answers {
    async fn try_model(&self, name: &str) -> Result<Answered, String> {
        match name {
            "mute" => Err("The server answered 401.".to_owned()),
            _ => Ok(Answered { took: Duration::from_millis(7), text: format!("I am {name}") }),
        }
    }
}

fn about() -> About {
    let model = ConfiguredModel {
        name: "coder".to_owned(),
        kind: "openai-compatible".to_owned(),
        here: false,
        server: Some("http://127.0.0.1:8000/v1".to_owned()),
        known_as: None,
        context_tokens: 65_536,
        parallel: Some(2),
        with_key: true,
        pinned: false,
    };
    About {
        config_file: Some("/etc/fettle.toml".to_owned()),
        settings: vec![Setting { key: "forge.label".to_owned(), value: "\"ai-help\"".to_owned(), live: true }],
        repositories: vec!["acme/unseen".to_owned(), "acme/widget".to_owned()],
        models: vec![model],
        forge: AboutForge::default(),
    }
}

/// A forge that was never written to.
struct NothingWritten;

#[async_trait::async_trait]
impl AuditForge for NothingWritten {
    async fn audit(&self, _tasks: u16) -> L<ForgeAudit> {
        Ok(ForgeAudit::default())
    }
}

#[async_trait::async_trait]
impl ShowChange for NothingWritten {
    async fn diff(&self, _task: &TaskView, _change: &ProvenChange) -> Result<String, ShowError> {
        Ok("diff --git a/a b/a\n".to_owned())
    }
}

pub(crate) fn submitting(ledger: Arc<dyn Ledger>) -> Arc<Submitting> {
    Arc::new(Submitting { ledger, ids: Counted::default(), seen: Mutex::default() })
}

pub(crate) fn sign(secret: &str, body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap().chain_update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// An answer, read to its end.
pub(crate) struct Seen {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Seen {
    pub(crate) async fn read(answer: reqwest::Response) -> Self {
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.unwrap();
        Self { status, headers, text: String::from_utf8_lossy(&body).into_owned() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let name: HeaderName = name.parse().unwrap();
        self.headers.get(&name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers)).to_str().unwrap()
    }

    /// Status and code of a problem.
    pub(crate) fn problem(&self) -> (u16, String) {
        (self.status.as_u16(), self.json()["code"].as_str().expect("a problem has a code").to_owned())
    }
}
