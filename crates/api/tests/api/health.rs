use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use fettle_api::{
    Contact, ProbeTiming, WorkerClient, WorkerHealth, WorkerHealthParts, internal_router, public_router, router,
};
use fettle_app::ports::ledger::{Leases as _, Ledger};
use fettle_app::vitals::Vitals;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use reqwest::Method;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fake::{FakeLedger, Mood};
use crate::world::{ADMIN_KEY, Residents, SCALE_KEY, Still, WORKER_KEY, World, state, submitting};

// Production times on tokio's paused clock.
#[tokio::test(start_paused = true)]
async fn a_stuck_ledger_shows_within_thirty_seconds_and_recovers() {
    let fake = Arc::new(FakeLedger::new());
    let ledger: Arc<dyn Ledger> = fake.clone();
    let stop = CancellationToken::new();
    let (api, metrics, health, _) = state(
        &ledger,
        submitting(ledger.clone()),
        None,
        &stop,
        ProbeTiming::default(),
        Residents::default(),
        Vec::new(),
    );
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
    let (api, _, _, _) = state(
        &ledger,
        submitting(ledger.clone()),
        None,
        &stop,
        ProbeTiming::default(),
        Residents::default(),
        Vec::new(),
    );
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

#[tokio::test]
async fn a_dashboard_with_an_internal_listener_tells_its_health_only_there() {
    let ledger: Arc<dyn Ledger> = Arc::new(FakeLedger::new());
    let stop = CancellationToken::new();
    let (api, _, health, _) = state(
        &ledger,
        submitting(ledger.clone()),
        None,
        &stop,
        ProbeTiming::default(),
        Residents::default(),
        Vec::new(),
    );
    health.serving();
    let (public, internal, only) = (public_router(api.clone()), internal_router(api.clone()), router(api));
    let status = async |router: &Router, path: &str| {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 9))));
        TowerToHyperService::new(router.clone()).call(request).await.unwrap().status()
    };
    for path in ["/healthz", "/livez", "/health/live", "/readyz", "/health/ready", "/metrics"] {
        assert_eq!(status(&public, path).await, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(status(&internal, path).await, StatusCode::OK, "{path}");
        assert_eq!(status(&only, path).await, StatusCode::OK, "{path}");
    }
    for (router, elsewhere) in [(&public, false), (&internal, true), (&only, false)] {
        assert_eq!(status(router, "/api/openapi.json").await == StatusCode::NOT_FOUND, elsewhere);
        assert_eq!(status(router, "/worker/v1/blobs/x").await == StatusCode::UNAUTHORIZED, elsewhere);
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_ready_while_its_dashboard_answers_and_well_while_its_slots_come_round() {
    let (vitals, contact) = (Arc::new(Vitals::default()), Arc::new(Contact::default()));
    let pulse = vitals.pulse("worker", Duration::from_secs(60));
    let health = Arc::new(
        WorkerHealth::new(WorkerHealthParts {
            clock: Arc::new(Still),
            vitals,
            contact: contact.clone(),
            holdings: Arc::default(),
            away_after: Duration::from_secs(30),
            version: "0.0.0-test",
            registry: prometheus::Registry::new(),
        })
        .unwrap(),
    );
    let service = TowerToHyperService::new(health.clone().router());
    let asked = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = service.call(request).await.unwrap();
        let (status, body) = (answer.status(), to_bytes(answer.into_body(), 10_000).await.unwrap());
        (status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    };
    let (status, body) = asked("/readyz").await;
    assert!(status == 503 && body.contains(r#""detail":"starting""#), "{body}");
    health.serving();
    assert_eq!((asked("/readyz").await.0, asked("/health/ready").await.0, asked("/leased").await.0), (200, 200, 503));

    // Nobody listens at this address.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let client = WorkerClient::new(&address, &SecretString::from(WORKER_KEY)).unwrap().telling(contact);
    client.renew(&[]).await.unwrap_err();
    assert_eq!(asked("/readyz").await.0, 200, "one missed answer is nothing");
    tokio::time::advance(Duration::from_secs(31)).await;
    let (status, body) = asked("/readyz").await;
    assert!(status == 503 && body.contains(r#""name":"dashboard","ok":false"#), "{body}");
    assert_eq!(asked("/healthz").await.0, 200, "starting the worker anew would bring no dashboard back");

    tokio::time::advance(Duration::from_secs(30)).await;
    let (status, body) = asked("/livez").await;
    assert!(status == 503 && body.contains(r#""name":"worker","ok":false"#), "{body}");
    let metrics = asked("/metrics").await.1;
    for line in [
        "fettle_worker_leases 0",
        "fettle_worker_dashboard_away_seconds 6",
        r#"fettle_part_silence_seconds{part="worker"} 6"#,
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    pulse.beat();
    assert_eq!(asked("/health/live").await.0, 200);
}

#[tokio::test]
async fn how_many_workers_are_of_use_is_told_to_those_with_a_key() {
    let world = World::start().await;
    world.task().await;
    for key in [SCALE_KEY, ADMIN_KEY, WORKER_KEY] {
        let bearer = format!("Bearer {key}");
        let seen = world.ask(Method::GET, "/v1/scale", &[("authorization", &bearer)], None).await;
        assert_eq!(seen.status, StatusCode::OK, "{key}");
        let told: serde_json::Value = serde_json::from_str(&seen.text).unwrap();
        let expected = serde_json::json!({ "runnable": 1, "leased": 0, "busy": 1, "oldest_runnable_s": 0 });
        assert_eq!(told, expected);
    }
    let stranger = world.ask(Method::GET, "/v1/scale", &[("authorization", "Bearer guess")], None).await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
    let with_scale_key = [("authorization", &*format!("Bearer {SCALE_KEY}"))];
    let tasks = world.ask(Method::GET, "/api/v1/tasks", &with_scale_key, None).await;
    assert_eq!(tasks.status, StatusCode::UNAUTHORIZED, "it can do nothing else");
}
