//! The worker API, `/worker/v1`: the verbs of a lease holder over HTTP, for workers in other processes.
//!
//! Behind the service key, on the internal listener only. A worker leases Runs; publish jobs never leave the dashboard. A
//! stale lease is 409 `stale`; 503 with `Retry-After` means: keep working, and try again.

pub(crate) mod wire;

use std::time::Duration;

use axum::Json;
use axum::body::Body as RawBody;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Router, body};
use fettle_app::ports::ledger::{Beat, Fenced, Granted, Holder, MAX_BLOB_BYTES, MAX_LEASE_WAIT, Then, Wake, Want};
use fettle_app::ports::words::{Heard, Listen as _};
use fettle_app::words::{MAX_TOLD_BYTES, MAX_TOLD_PIECES};
use fettle_domain::id::JobId;
use fettle_domain::job::JobKind;
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::object::BlobId;
use serde::Deserialize;
use tokio::task::spawn_blocking;

use crate::extract::{Body, Named, Parameters};
use crate::problem::{Code, Problem};
use crate::state::ApiState;
use crate::{auth, edge};
use wire::{
    AdmissionBody, BeatAnswerBody, BlobBody, CompleteRequest, DeferRequest, FailRequest, FencedBody, FencedWord,
    HeardBody, LeaseBody, LeaseRequest, LeasedBody, LeasesBody, RecordRequest, RenewBody, RenewRequest, ResultBody,
    StepBody, StepsBody, WordsRequest,
};

/// A step's body is at most 256 KiB, a result holds a patch's listing and a proof's commands; contents are blobs.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
/// What a worker tells at once, each byte of it escaped, and the names around.
const MAX_WORDS_BYTES: usize = 6 * MAX_TOLD_BYTES + MAX_TOLD_PIECES * 64 + 4 * 1024;
/// 64 MiB over a slow link between two hosts.
const BLOB_LIMIT: Duration = Duration::from_secs(120);
const MAX_LEASES: u8 = 32;

pub(crate) fn routes(api: &ApiState) -> Router<ApiState> {
    let verbs = Router::new()
        .route("/worker/v1/lease", post(lease))
        .route("/worker/v1/renew", post(renew))
        .route("/worker/v1/steps", post(record).get(steps))
        .route("/worker/v1/complete", post(complete))
        .route("/worker/v1/fail", post(fail))
        .route("/worker/v1/defer", post(defer))
        .route("/worker/v1/release", post(release))
        .route("/worker/v1/admit", post(admit))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .route("/worker/v1/words", post(hear).layer(DefaultBodyLimit::max(MAX_WORDS_BYTES)))
        .route_layer(middleware::from_fn(edge::time_limit));
    let blobs = Router::new()
        .route("/worker/v1/blobs/{sha256}", put(put_blob).merge(get(get_blob)))
        .route_layer(middleware::from_fn(|request: Request, next: Next| edge::within(BLOB_LIMIT, next.run(request))));
    verbs.merge(blobs).route_layer(middleware::from_fn_with_state(api.clone(), auth::require_worker))
}

/// Words of workers are for people; longer ones would be copied into events and hold up the ledger. They are cut and not refused,
/// since a Run must not fail by what it says.
const MAX_NAME_CHARS: usize = 200;
const MAX_PHASE_CHARS: usize = 40;
const MAX_TITLE_CHARS: usize = 1_000;
const MAX_WHY_CHARS: usize = 8_000;
/// No limit of anybody's lasts longer.
const MAX_DELAY: Duration = Duration::from_secs(24 * 3600);

fn cut(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).collect()
}

/// Waits up to `wait_ms` for work; 503 when the server drains meanwhile.
async fn lease(State(api): State<ApiState>, Body(body): Body<LeaseRequest>) -> Result<Json<LeasesBody>, Problem> {
    let wait = Duration::from_millis(body.wait_ms);
    if wait > MAX_LEASE_WAIT {
        return Err(Problem::refused("/wait_ms", format!("At most {} ms.", MAX_LEASE_WAIT.as_millis())));
    }
    if !(1..=MAX_LEASES).contains(&body.max) {
        return Err(Problem::refused("/max", format!("1 to {MAX_LEASES}.")));
    }
    let who = Holder { worker: body.worker, name: cut(&body.name, MAX_NAME_CHARS) };
    let want = Want { kind: JobKind::Run, versions: body.versions, labels: Some(body.labels) };
    let granted = tokio::select! {
        // What the ledger grants to a dropped wait is not lost: the same request id gets it from the next process.
        () = api.shutdown.cancelled() => {
            return Err(Problem::new(Code::Unavailable, "The dashboard is stopping. Ask again with the same request.")
                .retry_after(Duration::from_secs(2)));
        }
        granted = api.ledger.lease(&who, &want, body.max, wait, body.request) => granted?,
    };
    let leases = match granted {
        Granted::Leased(leases) => leases,
        Granted::Idle => Vec::new(),
    };
    let leases: Result<Vec<LeasedBody>, _> = leases.into_iter().map(LeasedBody::try_from).collect();
    let leases = leases.map_err(|error| Problem::new(Code::Internal, "The ledger granted no Run.").because(error))?;
    Ok(Json(LeasesBody { leases }))
}

async fn renew(State(api): State<ApiState>, Body(body): Body<RenewRequest>) -> Result<Json<RenewBody>, Problem> {
    if body.beats.len() > usize::from(MAX_LEASES) {
        return Err(Problem::refused("/beats", format!("At most {MAX_LEASES}.")));
    }
    let beats: Vec<Beat> = body.beats.into_iter().map(Beat::from).collect();
    let answers = api.ledger.renew(&beats).await?;
    Ok(Json(RenewBody { answers: answers.into_iter().map(BeatAnswerBody::from).collect() }))
}

async fn record(State(api): State<ApiState>, Body(body): Body<RecordRequest>) -> Result<Json<FencedBody>, Problem> {
    let StepBody::V1 { mut record } = body.step;
    record.phase = cut(&record.phase, MAX_PHASE_CHARS);
    record.title = cut(&record.title, MAX_TITLE_CHARS);
    fenced(api.ledger.record(&body.lease.into(), &record).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepsParameters {
    job: JobId,
    fence: u64,
}

async fn steps(
    State(api): State<ApiState>,
    Parameters(of): Parameters<StepsParameters>,
) -> Result<Json<StepsBody>, Problem> {
    let lease = LeaseRef { job: of.job, fence: Fence::new(of.fence) };
    let steps = api.ledger.steps(&lease).await?;
    Ok(Json(StepsBody { steps: steps.into_iter().map(|record| StepBody::V1 { record }).collect() }))
}

async fn complete(State(api): State<ApiState>, Body(body): Body<CompleteRequest>) -> Result<Json<FencedBody>, Problem> {
    let ResultBody::V1 { run } = body.result;
    fenced(api.ledger.complete_run(&body.lease.into(), &run).await?)
}

async fn fail(State(api): State<ApiState>, Body(body): Body<FailRequest>) -> Result<Json<FencedBody>, Problem> {
    let then = match body.then.into() {
        Then::RetryAfter(wait) => Then::RetryAfter(wait.min(MAX_DELAY)),
        Then::Never => Then::Never,
    };
    fenced(api.ledger.fail(&body.lease.into(), &cut(&body.why, MAX_WHY_CHARS), then).await?)
}

async fn defer(State(api): State<ApiState>, Body(body): Body<DeferRequest>) -> Result<Json<FencedBody>, Problem> {
    let until = match body.until.into() {
        Wake::After(wait) => Wake::After(wait.min(MAX_DELAY)),
        Wake::Event => Wake::Event,
    };
    fenced(api.ledger.defer(&body.lease.into(), until, &cut(&body.why, MAX_WHY_CHARS)).await?)
}

async fn release(State(api): State<ApiState>, Body(body): Body<LeaseBody>) -> Result<Json<FencedBody>, Problem> {
    fenced(api.ledger.release(&body.into()).await?)
}

async fn admit(State(api): State<ApiState>, Body(body): Body<LeaseBody>) -> Result<Json<AdmissionBody>, Problem> {
    Ok(Json(api.ledger.admit(&body.into()).await?.into()))
}

/// What a model says now. Kept for those who watch, until the call has ended.
async fn hear(State(api): State<ApiState>, Body(body): Body<WordsRequest>) -> Result<Json<HeardBody>, Problem> {
    let words: fettle_app::ports::words::Words = body.into();
    // Nothing that is heard costs more than what an honest worker says.
    let bytes: usize = words.pieces.iter().map(|piece| piece.text.len()).sum();
    if words.pieces.len() > MAX_TOLD_PIECES
        || bytes > MAX_TOLD_BYTES
        || words.pieces.iter().any(|piece| piece.text.is_empty())
    {
        let why = format!(
            "At most {MAX_TOLD_PIECES} pieces with {MAX_TOLD_BYTES} bytes are heard at a time, and none that is empty."
        );
        return Err(Problem::refused("/pieces", why));
    }
    match api.words.hear(words).await? {
        Heard::Has(has) => Ok(Json(HeardBody { has })),
        Heard::Stale => Err(stale()),
    }
}

/// Stored only when the content is what its address says.
async fn put_blob(
    State(api): State<ApiState>,
    Named(id): Named<BlobId>,
    content: RawBody,
) -> Result<Json<BlobBody>, Problem> {
    // Held while the worker sends: it bounds the memory, and the time limit bounds the hold.
    let _permit = api.blobs_in_flight.acquire().await.expect("the semaphore is never closed");
    let content = body::to_bytes(content, MAX_BLOB_BYTES).await.map_err(|error| {
        let too_large = format!("The content ended early or is above {MAX_BLOB_BYTES} bytes.");
        Problem::new(Code::TooLarge, too_large).because(error)
    })?;
    let (found, content) = spawn_blocking(move || (BlobId::of(&content), content))
        .await
        .map_err(|error| Problem::new(Code::Internal, "The content could not be read.").because(error))?;
    if found != id {
        return Err(Problem::new(Code::DigestMismatch, format!("The content is {found}, the address says {id}.")));
    }
    let blob = api.ledger.put_blob(content).await?;
    Ok(Json(BlobBody { blob }))
}

async fn get_blob(State(api): State<ApiState>, Named(id): Named<BlobId>) -> Result<Response, Problem> {
    let _permit = api.blobs_in_flight.acquire().await.expect("the semaphore is never closed");
    let content = api.ledger.blob(id).await?;
    Ok((StatusCode::OK, [(CONTENT_TYPE, "application/octet-stream")], content).into_response())
}

fn fenced(fenced: Fenced) -> Result<Json<FencedBody>, Problem> {
    let fenced = match fenced {
        Fenced::Applied => FencedWord::Applied,
        Fenced::AlreadyApplied => FencedWord::AlreadyApplied,
        Fenced::Stale => return Err(stale()),
    };
    Ok(Json(FencedBody { fenced }))
}

fn stale() -> Problem {
    Problem::new(Code::Stale, "No live lease has this fence; nothing changed. Stop this work.")
}
