//! The verbs of a lease holder over HTTP: what a worker in another process uses in the ledger's place.
//!
//! Every verb is safe to repeat (a lease by its request id, a write by its fence), so a lost answer is asked for again
//! within the verb's time. What stays unanswered is `Unavailable`, and the worker keeps working.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::chain;
use fettle_app::ports::ledger::{
    Admission, Beat, BeatAnswer, Fenced, Granted, Holder, L, Leased, Leases, LedgerError, MAX_BLOB_BYTES, Then, Wake,
    Want,
};
use fettle_app::ports::words::{Heard, Listen, Words};
use fettle_domain::id::RequestId;
use fettle_domain::job::JobKind;
use fettle_domain::lease::LeaseRef;
use fettle_domain::object::BlobId;
use fettle_domain::run::RunResult;
use fettle_domain::step::StepRecord;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::problem::ProblemBody;
use crate::worker::wire::{
    AdmissionBody, BeatBody, BlobBody, CompleteRequest, DeferRequest, FailRequest, FencedBody, HeardBody, LeaseBody,
    LeaseRequest, LeasesBody, RecordRequest, RenewBody, RenewRequest, ResultBody, StepBody, StepsBody, WordsRequest,
};

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Between two tries; doubles. A `Retry-After` is honoured up to [`PAUSE_CAP`].
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_CAP: Duration = Duration::from_secs(2);
/// The journal of a long Run: hundreds of steps of up to 256 KiB.
const MAX_ANSWER_BYTES: u64 = 256 * 1024 * 1024;

/// How patient a verb is: the time of one try, and how many there are.
struct Patience {
    limit: Duration,
    tries: u32,
}

/// A heartbeat that is not answered in 3 s is missed; the next one is 5 s after it.
const RENEW: Patience = Patience { limit: Duration::from_secs(3), tries: 1 };
const WRITE: Patience = Patience { limit: Duration::from_secs(10), tries: 3 };
/// What comes too late is told with the next.
const TELL: Patience = Patience { limit: Duration::from_secs(3), tries: 1 };
/// The dashboard asks the forge two questions of 10 s each.
const ADMIT: Patience = Patience { limit: Duration::from_secs(30), tries: 2 };
const READ_JOURNAL: Patience = Patience { limit: Duration::from_secs(60), tries: 2 };
const BLOB: Patience = Patience { limit: Duration::from_secs(120), tries: 2 };
/// What an answer to `lease` may take beyond the wait that was asked for.
const LEASE_SLACK: Duration = Duration::from_secs(10);

/// Whether the dashboard answers, as its clients see it.
#[derive(Debug, Default)]
pub struct Contact(Mutex<Option<Instant>>);

impl Contact {
    /// How long nothing has been answered; zero after an answer of any kind, and before the first question.
    pub fn away(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn note(&self, answered: bool) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            *since = None;
        } else {
            since.get_or_insert_with(Instant::now);
        }
    }
}

/// [`Leases`] over the worker API.
pub struct WorkerClient {
    http: reqwest::Client,
    base: Url,
    authorization: HeaderValue,
    contact: Arc<Contact>,
}

/// The client cannot be made from this configuration.
#[derive(Debug, thiserror::Error)]
pub enum WorkerClientError {
    #[error("`{0}` is not the http or https address of a dashboard's internal listener")]
    Address(String),
    #[error("the service key is empty or holds characters that no header can carry")]
    Key,
    #[error("could not set up the HTTP client")]
    Setup(#[source] reqwest::Error),
}

impl WorkerClient {
    /// `base_url` is the internal listener's: `http://127.0.0.1:8081`.
    pub fn new(base_url: &str, service_key: &SecretString) -> Result<Self, WorkerClientError> {
        let address = || WorkerClientError::Address(base_url.to_owned());
        let mut base = Url::parse(base_url).map_err(|_| address())?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(address());
        }
        base.set_path("/worker/v1/");
        let key = service_key.expose_secret().trim();
        if key.is_empty() {
            return Err(WorkerClientError::Key);
        }
        let mut authorization = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| WorkerClientError::Key)?;
        authorization.set_sensitive(true);
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .redirect(Policy::none())
            .no_proxy()
            .user_agent("fettle-worker")
            .build()
            .map_err(WorkerClientError::Setup)?;
        Ok(Self { http, base, authorization, contact: Arc::default() })
    }

    /// Tells `contact` of every answer, and of every question without one.
    pub fn telling(self, contact: Arc<Contact>) -> Self {
        Self { contact, ..self }
    }

    async fn post<A: DeserializeOwned>(&self, verb: &str, patience: &Patience, body: &(impl Serialize + Sync)) -> L<A> {
        let answer = self.ask(patience, || self.http.request(Method::POST, self.url(verb)).json(body)).await;
        read(&answer.map_err(Failed::into_error)?)
    }

    async fn write(&self, verb: &str, body: &(impl Serialize + Sync)) -> L<Fenced> {
        match self.ask(&WRITE, || self.http.request(Method::POST, self.url(verb)).json(body)).await {
            Ok(answer) => read::<FencedBody>(&answer).map(|body| body.fenced.into()),
            Err(Failed::Stale) => Ok(Fenced::Stale),
            Err(Failed::Error { error, .. }) => Err(error),
        }
    }

    /// Asks until there is an answer, a refusal, or no try left.
    async fn ask(
        &self,
        patience: &Patience,
        request: impl Fn() -> RequestBuilder + Send + Sync,
    ) -> Result<Bytes, Failed> {
        let mut pause = PAUSE;
        let mut tries = 1;
        loop {
            let try_once = self.try_once(request().timeout(patience.limit));
            let failed = match try_once.await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            match &failed {
                Failed::Error { error: LedgerError::Unavailable(_), wait } if tries < patience.tries => {
                    sleep(wait.unwrap_or(pause).min(PAUSE_CAP)).await;
                }
                _ => return Err(failed),
            }
            tries += 1;
            pause *= 2;
        }
    }

    async fn try_once(&self, request: RequestBuilder) -> Result<Bytes, Failed> {
        let request = request.header(AUTHORIZATION, self.authorization.clone());
        let sent = request.send().await;
        self.contact.note(sent.is_ok());
        let mut answer = sent.map_err(unanswered)?;
        let status = answer.status();
        let wait = retry_after(answer.headers());
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unanswered)? {
            if body.len() as u64 + chunk.len() as u64 > MAX_ANSWER_BYTES {
                return Err(Failed::of(LedgerError::Invalid(format!("the answer is above {MAX_ANSWER_BYTES} bytes"))));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() { Ok(body.into()) } else { Err(failed(status, wait, &body)) }
    }

    fn url(&self, path: &str) -> Url {
        self.base.join(path).expect("a verb is a relative path")
    }
}

/// A try without a good answer.
enum Failed {
    Stale,
    Error { error: LedgerError, wait: Option<Duration> },
}

impl Failed {
    fn of(error: LedgerError) -> Self {
        Self::Error { error, wait: None }
    }

    /// For the verbs that do not answer with [`Fenced`].
    fn into_error(self) -> LedgerError {
        match self {
            Self::Stale => LedgerError::Invalid("the lease is no longer live".to_owned()),
            Self::Error { error, .. } => error,
        }
    }
}

/// The URL is left out of the text: it is in the configuration, and reqwest repeats it in every message.
fn unanswered(error: reqwest::Error) -> Failed {
    Failed::of(LedgerError::Unavailable(chain(&error.without_url())))
}

fn failed(status: StatusCode, wait: Option<Duration>, body: &[u8]) -> Failed {
    let problem = serde_json::from_slice::<ProblemBody>(body).ok();
    let code = problem.as_ref().map_or("", |problem| problem.code.as_str());
    let text = match &problem {
        Some(problem) => format!("{} ({}, {})", problem.detail, status.as_u16(), problem.request_id),
        None => format!("the dashboard answered {status}"),
    };
    let error = match (status, code) {
        (_, "stale") => return Failed::Stale,
        (_, "ledger_full") => LedgerError::Full,
        (_, "ledger_damaged") => LedgerError::Corrupt(text),
        // Only a problem of ours: a proxy's 404 says nothing about the ledger.
        (StatusCode::NOT_FOUND, "not_found") => LedgerError::NotFound(text),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => LedgerError::Invalid(format!(
            "{text}: the dashboard does not accept this worker's key; auth.worker_key_file must name the file that the dashboard has, or a copy of it"
        )),
        (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS, _) => LedgerError::Unavailable(text),
        (status, _) if status.is_server_error() => LedgerError::Unavailable(text),
        _ => LedgerError::Invalid(text),
    };
    Failed::Error { error, wait }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// An answer that cannot be read comes from another version or another program: asking again does not help.
fn read<A: DeserializeOwned>(answer: &[u8]) -> L<A> {
    serde_json::from_slice(answer)
        .map_err(|error| LedgerError::Invalid(format!("the dashboard's answer cannot be read: {error}")))
}

#[async_trait]
impl Leases for WorkerClient {
    async fn lease(&self, who: &Holder, want: &Want, max: u8, wait: Duration, request: RequestId) -> L<Granted> {
        match want.kind {
            JobKind::Run => {}
            JobKind::Publish => return Err(LedgerError::Invalid("publish jobs are not leased over HTTP".to_owned())),
        }
        let body = LeaseRequest {
            worker: who.worker,
            name: who.name.clone(),
            versions: want.versions.clone(),
            labels: want.labels.clone().unwrap_or_default(),
            max,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            request,
        };
        let patience = Patience { limit: wait + LEASE_SLACK, tries: 2 };
        let granted: LeasesBody = self.post("lease", &patience, &body).await?;
        let leases: Vec<Leased> = granted.leases.into_iter().map(Leased::from).collect();
        Ok(if leases.is_empty() { Granted::Idle } else { Granted::Leased(leases) })
    }

    async fn renew(&self, beats: &[Beat]) -> L<Vec<BeatAnswer>> {
        let body = RenewRequest { beats: beats.iter().map(BeatBody::from).collect() };
        let answer: RenewBody = self.post("renew", &RENEW, &body).await?;
        if answer.answers.len() != beats.len() {
            return Err(LedgerError::Invalid("the dashboard did not answer each beat".to_owned()));
        }
        Ok(answer.answers.into_iter().map(BeatAnswer::from).collect())
    }

    async fn record(&self, lease: &LeaseRef, step: &StepRecord) -> L<Fenced> {
        let body = RecordRequest { lease: (*lease).into(), step: StepBody::V1 { record: step.clone() } };
        self.write("steps", &body).await
    }

    async fn steps(&self, lease: &LeaseRef) -> L<Vec<StepRecord>> {
        let mut url = self.url("steps");
        url.query_pairs_mut()
            .append_pair("job", &lease.job.to_string())
            .append_pair("fence", &lease.fence.get().to_string());
        let answer = self.ask(&READ_JOURNAL, || self.http.get(url.clone())).await.map_err(Failed::into_error)?;
        let body: StepsBody = read(&answer)?;
        Ok(body.steps.into_iter().map(|StepBody::V1 { record }| record).collect())
    }

    async fn complete_run(&self, lease: &LeaseRef, result: &RunResult) -> L<Fenced> {
        let result = ResultBody::V1 { run: Box::new(result.clone()) };
        self.write("complete", &CompleteRequest { lease: (*lease).into(), result }).await
    }

    async fn fail(&self, lease: &LeaseRef, why: &str, then: Then) -> L<Fenced> {
        self.write("fail", &FailRequest { lease: (*lease).into(), why: why.to_owned(), then: then.into() }).await
    }

    async fn defer(&self, lease: &LeaseRef, until: Wake, why: &str) -> L<Fenced> {
        self.write("defer", &DeferRequest { lease: (*lease).into(), until: until.into(), why: why.to_owned() }).await
    }

    async fn release(&self, lease: &LeaseRef) -> L<Fenced> {
        self.write("release", &LeaseBody::from(*lease)).await
    }

    async fn put_blob(&self, content: Bytes) -> L<BlobId> {
        if content.len() > MAX_BLOB_BYTES {
            return Err(LedgerError::Invalid(format!("a blob has at most {MAX_BLOB_BYTES} bytes")));
        }
        let id = BlobId::of(&content);
        let url = self.url(&format!("blobs/{id}"));
        let answer = self.ask(&BLOB, || self.http.put(url.clone()).body(content.clone())).await;
        let stored: BlobBody = read(&answer.map_err(Failed::into_error)?)?;
        if stored.blob != id {
            return Err(LedgerError::Corrupt(format!("blob {id} was stored as {}", stored.blob)));
        }
        Ok(id)
    }

    async fn blob(&self, id: BlobId) -> L<Bytes> {
        let url = self.url(&format!("blobs/{id}"));
        let content = self.ask(&BLOB, || self.http.get(url.clone())).await.map_err(Failed::into_error)?;
        let found = BlobId::of(&content);
        if found != id {
            return Err(LedgerError::Corrupt(format!("blob {id} came as {found}")));
        }
        Ok(content)
    }

    async fn admit(&self, lease: &LeaseRef) -> L<Admission> {
        let answer: AdmissionBody = self.post("admit", &ADMIT, &LeaseBody::from(*lease)).await?;
        Ok(answer.into())
    }
}

#[async_trait]
impl Listen for WorkerClient {
    async fn hear(&self, words: Words) -> L<Heard> {
        let body = WordsRequest::from(words);
        match self.ask(&TELL, || self.http.request(Method::POST, self.url("words")).json(&body)).await {
            Ok(answer) => read::<HeardBody>(&answer).map(|body| Heard::Has(body.has)),
            Err(Failed::Stale) => Ok(Heard::Stale),
            Err(Failed::Error { error, .. }) => Err(error),
        }
    }
}
