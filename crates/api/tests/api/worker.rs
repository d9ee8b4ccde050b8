use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use fettle_api::{WorkerClient, WorkerClientError};
use fettle_app::ports::ledger::{
    Admission, Beat, BeatAnswer, Fenced, Granted, Holder, Leased, Leases, Ledger, LedgerError, Order, Then, Wake, Want,
};
use fettle_domain::budget::Spent;
use fettle_domain::id::{RequestId, WorkerId};
use fettle_domain::job::{JobKind, JobState};
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::object::BlobId;
use fettle_domain::run::{RunOutcome, RunResult};
use fettle_domain::step::{StepBody, StepKind, StepRecord};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::fake::Mood;
use crate::world::{ADMIN_KEY, WORKER_KEY, World, start};

fn who() -> Holder {
    Holder { worker: WorkerId::from_uuid(Uuid::from_u128(5)), name: "host:1".to_owned() }
}

fn want() -> Want {
    Want::anything(JobKind::Run, vec![1])
}

fn request(number: u128) -> RequestId {
    RequestId::from_uuid(Uuid::from_u128(number))
}

async fn lease(client: &WorkerClient, number: u128) -> Leased {
    match client.lease(&who(), &want(), 1, Duration::ZERO, request(number)).await.unwrap() {
        Granted::Leased(mut leases) => leases.pop().unwrap(),
        Granted::Idle => panic!("a job is runnable"),
    }
}

fn step(seq: u32) -> StepRecord {
    StepRecord {
        seq,
        kind: StepKind::ToolCall,
        phase: "fix".to_owned(),
        title: "view src/lib.rs".to_owned(),
        input: BlobId::of(b"input"),
        body: StepBody::Inline(json!({"lines": [1, 2.5, null, "ü"]})),
        workspace: None,
        spent: Spent { calls: 1, generated_tokens: 20, prompt_tokens: 300, wall_s: 4 },
        took_ms: 12,
    }
}

fn result() -> RunResult {
    let outcome = RunOutcome::Unsolved { notes: "no luck".to_owned() };
    RunResult { outcome, base: None, change: None, spent: Spent::default(), model: "coder".to_owned() }
}

#[tokio::test]
async fn a_run_is_leased_journaled_and_completed_over_http_as_in_process() {
    let world = World::start().await;
    let task = world.task().await;
    let client = world.worker();
    let leased = lease(&client, 1).await;
    assert_eq!(leased, lease(&client, 1).await, "the same request again gives the same lease");
    assert_eq!(leased.time_left, Duration::from_secs(30));
    let Order::Run(order) = &leased.order else { panic!("{leased:?}") };
    assert_eq!((order.task, order.issue.number), (task, Some(7)));
    assert_eq!(client.lease(&who(), &want(), 1, Duration::ZERO, request(2)).await.unwrap(), Granted::Idle);

    assert_eq!(client.record(&leased.lease, &step(0)).await.unwrap(), Fenced::Applied);
    assert_eq!(client.record(&leased.lease, &step(0)).await.unwrap(), Fenced::AlreadyApplied);
    assert_eq!(client.record(&leased.lease, &step(1)).await.unwrap(), Fenced::Applied);
    assert_eq!(client.steps(&leased.lease).await.unwrap(), [step(0), step(1)]);

    let admission = client.admit(&leased.lease).await.unwrap();
    let Admission::Go { read_token: Some(read), run_token: Some(run), model: Some(model) } = admission else {
        panic!("the Run may begin, with its tokens")
    };
    assert_eq!((read.expose_secret(), run.expose_secret()), ("read-only-token", "fettle_run.token"));
    assert_eq!((model.name.as_str(), model.context_tokens), ("added", 65_536));

    assert_eq!(client.complete_run(&leased.lease, &result()).await.unwrap(), Fenced::Applied);
    assert_eq!(client.complete_run(&leased.lease, &result()).await.unwrap(), Fenced::AlreadyApplied);
    let shown = world.get(&format!("/api/v1/tasks/{task}")).await.json();
    assert_eq!((&shown["outcome"], &shown["run"]["result"]["notes"]), (&json!("unsolved"), &json!(["no luck"])));
}

#[tokio::test]
async fn a_stale_lease_changes_nothing_and_is_told_so_by_every_write() {
    let world = World::start().await;
    world.task().await;
    let client = world.worker();
    let live = lease(&client, 1).await.lease;
    let stale = LeaseRef { job: live.job, fence: Fence::new(live.fence.get() - 1) };
    assert_eq!(client.record(&stale, &step(0)).await.unwrap(), Fenced::Stale);
    assert_eq!(client.complete_run(&stale, &result()).await.unwrap(), Fenced::Stale);
    assert_eq!(client.fail(&stale, "why", Then::Never).await.unwrap(), Fenced::Stale);
    assert_eq!(client.defer(&stale, Wake::Event, "why").await.unwrap(), Fenced::Stale);
    assert_eq!(client.release(&stale).await.unwrap(), Fenced::Stale);
    assert_eq!(client.steps(&live).await.unwrap(), []);
    assert_eq!(client.release(&live).await.unwrap(), Fenced::Applied);
}

#[tokio::test]
async fn beats_are_answered_in_order() {
    let world = World::start().await;
    let (kept, cancelled) = (world.task().await, world.task().await);
    let client = world.worker();
    let (first, second) = (lease(&client, 1).await, lease(&client, 2).await);
    world.ledger.cancel(cancelled, "admin").await.unwrap();
    world.ledger.post_message(kept, "ada", "also fix the docs").await.unwrap();
    let lost = LeaseRef { job: first.lease.job, fence: Fence::new(1) };
    let beats = [second.lease, lost, first.lease].map(|lease| Beat::new(lease, 3));
    let messages = vec!["also fix the docs".to_owned()];
    assert_eq!(
        client.renew(&beats).await.unwrap(),
        [
            BeatAnswer::Cancel { reason: "cancelled by admin".to_owned() },
            BeatAnswer::Lost,
            BeatAnswer::Renewed { time_left: Duration::from_secs(30), messages, received: Some(1) },
        ]
    );
}

#[tokio::test]
async fn failures_and_deferrals_keep_their_waits() {
    let world = World::start().await;
    for _ in 0..4 {
        world.task().await;
    }
    let client = world.worker();
    let jobs = [lease(&client, 1).await, lease(&client, 2).await, lease(&client, 3).await, lease(&client, 4).await];
    let wait = Duration::from_millis(1_500);
    assert_eq!(client.fail(&jobs[0].lease, "a", Then::RetryAfter(wait)).await.unwrap(), Fenced::Applied);
    assert_eq!(client.fail(&jobs[1].lease, "b", Then::Never).await.unwrap(), Fenced::Applied);
    assert_eq!(client.defer(&jobs[2].lease, Wake::After(wait), "c").await.unwrap(), Fenced::Applied);
    assert_eq!(client.defer(&jobs[3].lease, Wake::Event, "d").await.unwrap(), Fenced::Applied);
    let until = start() + wait;
    let expected = [
        JobState::Delayed { until },
        JobState::Dead { reason: "b".to_owned() },
        JobState::Delayed { until },
        JobState::Waiting { reason: "d".to_owned() },
    ];
    assert_eq!(jobs.map(|job| world.ledger.job_state(job.lease.job)), expected);
}

#[tokio::test]
async fn a_blob_is_checked_on_both_sides() {
    let world = World::start().await;
    let client = world.worker();
    let content = Bytes::from(vec![7; 3 * 1024 * 1024]);
    let id = client.put_blob(content.clone()).await.unwrap();
    assert_eq!(id, BlobId::of(&content));
    assert_eq!(client.blob(id).await.unwrap(), content);
    let missing = BlobId::of(b"missing");
    assert!(matches!(client.blob(missing).await, Err(LedgerError::NotFound(_))));
    let url = format!("{}/worker/v1/blobs/{missing}", world.internal);
    let seen = world.http.put(url).bearer_auth(WORKER_KEY).body("other").send().await.unwrap();
    assert_eq!(seen.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(seen.json::<serde_json::Value>().await.unwrap()["code"], "digest_mismatch");
    assert!(matches!(client.blob(missing).await, Err(LedgerError::NotFound(_))), "nothing was stored");
}

#[tokio::test]
async fn the_worker_api_is_for_the_service_key_and_only_on_the_internal_listener() {
    let world = World::start().await;
    for key in ["wrong", ADMIN_KEY] {
        let client = WorkerClient::new(&world.internal, &SecretString::from(key)).unwrap();
        let refused = client.release(&LeaseRef { job: job(), fence: Fence::new(1) }).await;
        assert!(matches!(refused, Err(LedgerError::Invalid(_))), "{refused:?}");
    }
    let public = WorkerClient::new(&world.public, &SecretString::from(WORKER_KEY)).unwrap();
    assert!(matches!(public.renew(&[]).await, Err(LedgerError::NotFound(_))));
    let publisher = Want::anything(JobKind::Publish, vec![1]);
    let refused = world.worker().lease(&who(), &publisher, 1, Duration::ZERO, request(1)).await;
    assert!(matches!(refused, Err(LedgerError::Invalid(_))), "publish jobs never leave the dashboard");
    for odd in ["", "localhost:1", "ftp://localhost"] {
        let made = WorkerClient::new(odd, &SecretString::from(WORKER_KEY));
        assert!(matches!(made, Err(WorkerClientError::Address(_))), "{odd}");
    }
    assert!(matches!(WorkerClient::new(&world.internal, &SecretString::from(" ")), Err(WorkerClientError::Key)));
}

fn job() -> fettle_domain::id::JobId {
    fettle_domain::id::JobId::from_uuid(Uuid::from_u128(1))
}

#[tokio::test]
async fn the_ledgers_errors_keep_their_meaning_over_http() {
    let world = World::start().await;
    let client = world.worker();
    let unknown = LeaseRef { job: job(), fence: Fence::new(1) };
    assert!(matches!(client.release(&unknown).await, Err(LedgerError::NotFound(_))));
    world.ledger.feel(Mood::Down);
    assert!(matches!(client.renew(&[]).await, Err(LedgerError::Unavailable(_))));
    world.ledger.feel(Mood::Full);
    assert!(matches!(client.release(&unknown).await, Err(LedgerError::Full)));
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = WorkerClient::new(&format!("http://{refused}"), &SecretString::from(WORKER_KEY)).unwrap();
    assert!(matches!(nobody.renew(&[]).await, Err(LedgerError::Unavailable(_))));
}

#[tokio::test]
async fn an_unanswered_lease_is_asked_for_again_with_the_same_request_id() {
    #[derive(Clone, Default)]
    struct Seen(Arc<(AtomicU32, Mutex<Vec<String>>)>);
    async fn answer(State(seen): State<Seen>, headers: HeaderMap, body: String) -> (StatusCode, &'static str) {
        assert_eq!(headers["authorization"], format!("Bearer {WORKER_KEY}"));
        seen.0.1.lock().unwrap().push(body);
        match seen.0.0.fetch_add(1, Ordering::Relaxed) {
            0 => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
            _ => (StatusCode::OK, r#"{"leases":[]}"#),
        }
    }
    let seen = Seen::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let router = Router::new().fallback(answer).with_state(seen.clone());
    tracker.spawn(fettle_api::serve(listener, router, stop.clone(), tracker.clone()));
    let client = WorkerClient::new(&address, &SecretString::from(WORKER_KEY)).unwrap();
    let granted = client.lease(&who(), &want(), 1, Duration::ZERO, request(9)).await.unwrap();
    assert_eq!(granted, Granted::Idle);
    let bodies = seen.0.1.lock().unwrap().clone();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[0], bodies[1]);
    assert!(bodies[0].contains(&request(9).to_string()), "{}", bodies[0]);
    stop.cancel();
}
