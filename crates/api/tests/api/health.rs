use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use fettle_api::{ProbeTiming, router};
use fettle_app::ports::ledger::Ledger;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use reqwest::Method;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fake::{FakeLedger, Mood};
use crate::world::{ADMIN_KEY, World, state, submitting};

// Production times on tokio's paused clock.
#[tokio::test(start_paused = true)]
async fn a_stuck_ledger_shows_within_thirty_seconds_and_recovers() {
    let fake = Arc::new(FakeLedger::new());
    let ledger: Arc<dyn Ledger> = fake.clone();
    let stop = CancellationToken::new();
    let (api, metrics, health) = state(&ledger, submitting(ledger.clone()), None, &stop, ProbeTiming::default());
    health.serving();
    let tracker = TaskTracker::new();
    tracker.spawn({
        let (health, ledger, stop) = (health.clone(), ledger.clone(), stop.clone());
        async move { health.watch(&*ledger, &metrics, &stop).await }
    });
    let service = TowerToHyperService::new(router(api));
    let status = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        service.call(request).await.unwrap().status()
    };
    sleep(Duration::from_secs(60)).await;
    assert_eq!((status("/healthz").await, status("/readyz").await), (StatusCode::OK, StatusCode::OK));

    fake.feel(Mood::Stuck);
    sleep(Duration::from_secs(14)).await;
    assert_eq!(status("/healthz").await, StatusCode::OK, "one slow probe is no failure");
    sleep(Duration::from_secs(16)).await;
    assert_eq!(status("/healthz").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("/livez").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("/health/live").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);

    fake.feel(Mood::Well);
    sleep(Duration::from_secs(16)).await;
    assert_eq!((status("/healthz").await, status("/health/ready").await), (StatusCode::OK, StatusCode::OK));

    fake.feel(Mood::Full);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(status("/healthz").await, StatusCode::SERVICE_UNAVAILABLE, "a full disk takes no write");
    stop.cancel();
    tracker.close();
    tracker.wait().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_takes_too_long_ends_as_a_problem() {
    let ledger: Arc<dyn Ledger> = Arc::new(FakeLedger::new());
    let stop = CancellationToken::new();
    let (api, _, _) = state(&ledger, submitting(ledger.clone()), None, &stop, ProbeTiming::default());
    let request = Request::post("/api/v1/tasks")
        .header("authorization", format!("Bearer {ADMIN_KEY}"))
        .header("content-type", "application/json")
        .body(Body::from(r#"{"repository": "acme/never", "issue": 1}"#))
        .unwrap();
    let answer = timeout(Duration::from_secs(31), TowerToHyperService::new(router(api)).call(request));
    let answer = answer.await.expect("the limit is 30 s").unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let body = to_bytes(answer.into_body(), 10_000).await.unwrap();
    assert!(String::from_utf8_lossy(&body).contains(r#""code":"timeout""#), "{body:?}");
}

#[tokio::test]
async fn ready_means_neither_starting_nor_draining_and_the_check_is_named() {
    let world = World::start().await;
    let ready = world.ask(Method::GET, "/readyz", &[], None).await;
    assert_eq!((ready.status, &ready.json()["status"]), (StatusCode::OK, &"ok".into()));
    world.health.draining();
    let draining = world.ask(Method::GET, "/readyz", &[], None).await;
    assert_eq!(draining.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(draining.json()["checks"][0]["detail"], "draining");
    assert_eq!(world.ask(Method::GET, "/healthz", &[], None).await.status, StatusCode::OK);
}
