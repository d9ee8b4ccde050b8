//! Whatever strangers send is answered, never by a panic or a 5xx, and costs a limited amount of memory: headers, addresses,
//! cursors, filters and bodies at random, through all layers but the socket, on the real store.
//!
//! A binary of its own: the memory of its process is what it measures.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderName, HeaderValue, Method, Request};
use fettle_api::{About, ApiState, Health, HttpMetrics, Parts, ProbeTiming, WebhookSecrets};
use fettle_app::auditing::{AuditForge, ForgeAudit};
use fettle_app::doorkeeping::{Doorkeeper, Registration};
use fettle_app::live::Live;
use fettle_app::ports::clock::{Clock, IdSource, SecretSource};
use fettle_app::ports::ledger::{L, TaskView};
use fettle_app::publishing::PublishOptions;
use fettle_app::reconciling::Reconcilers;
use fettle_app::showing::{ShowChange, ShowError};
use fettle_app::submit::{FurtherRun, NewTask, SubmitError, SubmitTask, Submitted};
use fettle_app::words::Ear;
use fettle_domain::id::{RunId, TaskId};
use fettle_domain::run::ProvenChange;
use fettle_store_sqlite::{Options, SqliteLedger};
use hmac::{Hmac, Mac as _};
use jiff::Timestamp;
use prometheus::Registry;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use secrecy::SecretString;
use sha2::Sha256;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use uuid::Uuid;

const ADMIN_KEY: &str = "admin-key-of-the-tests";
const SECRET: &str = "webhook secret";
/// What is made at random; making it takes longer than answering.
const CASES: u32 = 7_000;
/// Each is sent as it is, with a door that opens or does not, and as a body for somebody else.
const REQUESTS: u32 = 3 * CASES;
/// By which the process may grow beyond what it had after the first thousand. The largest body is 1 MiB, and as JSON values 32
/// times that.
const MAX_GROWTH_KIB: u64 = 96 * 1024;
/// Of an answer to a stranger: pages of an empty ledger and problems. The first page and the document are larger, and fixed.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_763_600_000).unwrap()
    }
}

#[derive(Default)]
struct Counted(AtomicU64);

impl IdSource for Counted {
    fn uuid(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.0.fetch_add(1, Ordering::Relaxed)) + 1)
    }
}

impl SecretSource for Counted {
    fn secret(&self) -> [u8; 32] {
        [self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes()[0]; 32]
    }
}

/// Nothing is made or shown: what comes so far was read.
struct Nothing;

#[async_trait]
impl SubmitTask for Nothing {
    async fn submit(&self, request: NewTask) -> Result<Submitted, SubmitError> {
        Err(SubmitError::NotPermitted(request.actor))
    }

    async fn add_runs(
        &self,
        _: TaskId,
        by: &str,
        _: Vec<FurtherRun>,
        _: Option<&str>,
    ) -> Result<Vec<RunId>, SubmitError> {
        Err(SubmitError::NotPermitted(by.to_owned()))
    }
}

#[async_trait]
impl AuditForge for Nothing {
    async fn audit(&self, _tasks: u16) -> L<ForgeAudit> {
        Ok(ForgeAudit::default())
    }
}

#[async_trait]
impl ShowChange for Nothing {
    async fn diff(&self, _: &TaskView, _: &ProvenChange) -> Result<String, ShowError> {
        Ok(String::new())
    }
}

async fn router(data: &tempfile::TempDir) -> Router {
    let ids = Arc::<Counted>::default();
    let store = SqliteLedger::open(data.path().to_str().unwrap(), Options::new(Arc::new(Still), ids.clone()));
    let store = Arc::new(store.await.unwrap());
    let door = Doorkeeper::open(store.clone(), Arc::new(Still), ids.clone(), ids.clone(), Registration::Open);
    let (door, _) = door.await.unwrap();
    let registry = Registry::new();
    let secret = SecretString::from(SECRET);
    fettle_api::router(ApiState::new(Parts {
        words: Arc::new(Ear::new(store.clone(), Live::new(PublishOptions::default()))),
        ledger: store,
        submit: Arc::new(Nothing),
        audit: Arc::new(Nothing),
        changes: Arc::new(Nothing),
        clock: Arc::new(Still),
        ids,
        door: Some(Arc::new(door)),
        trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
        admin_key: SecretString::from(ADMIN_KEY),
        worker_key: SecretString::from("service-key-of-the-tests"),
        scale_key: None,
        webhook: Some(WebhookSecrets { current: secret, previous: None }),
        health: Arc::new(Health::new(ProbeTiming::for_tests(), Arc::new(Still), Arc::default())),
        reconcilers: Arc::new(Reconcilers::new(Arc::new(Still))),
        metrics: HttpMetrics::register(&registry).unwrap(),
        registry,
        inference: None,
        pods: None,
        publishing: Live::new(PublishOptions::default()),
        about: About::default(),
        adding: None,
        tries: None,
        gateway_key: None,
        workers_are_gateways: false,
        version: "0.0.0-test",
        shutdown: CancellationToken::new(),
    }))
}

#[derive(Debug, Clone)]
struct Asked {
    method: Method,
    target: String,
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
    signed: bool,
}

/// Text of a grammar that comes near what is expected, or anything at all.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        select(vec![
            "Bearer ",
            "bearer",
            "Basic ",
            ADMIN_KEY,
            "fettle_key_",
            "fettle_session=",
            "__Host-fettle_session=",
            "; ",
            "=",
            ",",
            "\"",
            "W/\"",
            "*",
            "sha256=",
            "127.0.0.1",
            "[::1]",
            "::ffff:1.2.3.4",
            "for=",
            "unknown",
            ":65536",
            "https://",
            "localhost",
            "null",
            "task_",
            "task_00000000000000000000000000000001",
            "user_",
            "1",
            "1AAAA",
            "AAAAAAAAAAAA",
            "-1",
            "18446744073709551616",
            "eyJhbGciOiJub25lIn0.",
            ".",
            "..",
            "%00",
            "%ff",
            "%",
            "{",
            "}",
            "[",
            "]",
            "\\u0000",
            "{\"type\":",
            "ö",
            "\u{202e}",
            "😀",
        ])
        .prop_map(|word| word.as_bytes().to_vec()),
        vec(any::<u8>(), 0..12),
        "[a-zA-Z0-9_.=,;:/ -]{0,24}".prop_map(String::into_bytes),
    ];
    prop_oneof![
        400 => vec(word.clone(), 0..6).prop_map(|words| words.concat()),
        1 => (word, 0..1_000_usize).prop_map(|(word, times)| word.repeat(times)),
    ]
}

fn target() -> impl Strategy<Value = String> {
    let path = select(vec![
        "/api/v1/tasks",
        "/api/v1/tasks/{}",
        "/api/v1/tasks/{}/runs",
        "/api/v1/tasks/{}/messages",
        "/api/v1/tasks/{}/patch",
        "/api/v1/tasks/{}/proof",
        "/api/v1/tasks/{}/prs",
        "/api/v1/tasks/{}/cancel",
        "/api/v1/runs/{}/steps",
        "/api/v1/queue",
        "/api/v1/dead-jobs",
        "/api/v1/jobs/{}/redrive",
        "/api/v1/users",
        "/api/v1/users/{}",
        "/api/v1/users/{}/keys",
        "/api/v1/users/{}/keys/{}",
        "/api/v1/sessions",
        "/api/v1/sessions/{}",
        "/api/v1/api-keys",
        "/api/v1/api-keys/{}",
        "/api/v1/audit-log",
        "/api/v1/audit",
        "/api/v1/me",
        "/api/v1/live",
        "/api/auth/state",
        "/api/auth/refresh",
        "/api/auth/logout",
        "/api/auth/session",
        "/api/auth/oidc/callback",
        "/webhooks/github",
        "/{}",
        "/api/{}",
    ]);
    let name = select(vec!["limit", "after", "state", "run", "user", "actor", "action", "forge", "tasks", "code", "x"]);
    (path, vec(text(), 2), vec((name, text()), 0..3)).prop_map(|(path, parts, query)| {
        let mut parts = parts.into_iter();
        let mut target = String::new();
        for (nth, piece) in path.split("{}").enumerate() {
            if nth > 0 {
                target.push_str(&percent(&parts.next().unwrap_or_default()));
            }
            target.push_str(piece);
        }
        for (nth, (name, value)) in query.iter().enumerate() {
            target.push(if nth == 0 { '?' } else { '&' });
            target.push_str(&format!("{name}={}", percent(value)));
        }
        // What is longer, the server refuses before anybody looks at it.
        target.truncate(60_000);
        target
    })
}

/// Most of it as it would be written, some as it must not be.
fn percent(bytes: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'%' => char::from(*byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    bytes.iter().map(one).collect()
}

fn json() -> impl Strategy<Value = Vec<u8>> {
    let name = select(vec![
        "repository",
        "issue",
        "text",
        "title",
        "body",
        "mode",
        "model",
        "further",
        "base",
        "repo_url",
        "issue_id",
        "runs",
        "instruction",
        "run_id",
        "username",
        "password",
        "email",
        "token",
        "refreshToken",
        "name",
        "scopes",
        "role",
        "active",
        "action",
        "label",
        "sender",
        "login",
        "number",
        "installation",
        "id",
    ]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        text().prop_map(|text| String::from_utf8_lossy(&text).into_owned().into()),
    ];
    let value = leaf.prop_recursive(3, 12, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Into::into),
            vec((name.clone(), inner), 0..4)
                .prop_map(|fields| fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    });
    prop_oneof![
        200 => value.prop_map(|value: serde_json::Value| value.to_string().into_bytes()),
        40 => text(),
        // As deep, as long and as wide as they come.
        1 => (1..500_usize).prop_map(|depth| b"[".repeat(depth * 1_000)),
        1 => (1..200_usize).prop_map(|length| [b"[".to_vec(), b"0,".repeat(length * 1_000), b"0]".to_vec()].concat()),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    let method =
        select(vec![Method::GET, Method::GET, Method::POST, Method::POST, Method::PATCH, Method::DELETE, Method::HEAD]);
    let header = select(vec![
        "authorization",
        "x-api-key",
        "cookie",
        "x-forwarded-for",
        "x-forwarded-proto",
        "host",
        "origin",
        "sec-fetch-site",
        "x-fettle-request",
        "last-event-id",
        "if-none-match",
        "idempotency-key",
        "x-correlation-id",
        "content-type",
        "content-length",
        "x-github-event",
        "x-github-delivery",
        "x-hub-signature-256",
        "user-agent",
        "upgrade",
        "connection",
        "sec-websocket-key",
        "sec-websocket-version",
    ]);
    // With the admin key a request reaches what is behind the door.
    let key = prop_oneof![3 => Just(true), 1 => Just(false)];
    (method, target(), vec((header, text()), 0..5), json(), key, any::<bool>()).prop_map(
        |(method, target, mut headers, body, key, signed)| {
            if key {
                headers.push(("authorization", format!("Bearer {ADMIN_KEY}").into_bytes()));
            }
            if signed {
                headers.push(("content-type", b"application/json".to_vec()));
                headers.push(("x-github-event", b"issues".to_vec()));
                headers.push(("x-github-delivery", b"0b9c5ff0".to_vec()));
            }
            Asked { method, target, headers, body, signed }
        },
    )
}

fn variants(asked: &Asked) -> [Asked; 3] {
    let mut other = asked.clone();
    match other.headers.iter().position(|(_, value)| value.ends_with(ADMIN_KEY.as_bytes())) {
        Some(place) => drop(other.headers.remove(place)),
        None => other.headers.push(("authorization", format!("Bearer {ADMIN_KEY}").into_bytes())),
    }
    let mut elsewhere = asked.clone();
    elsewhere.method = Method::POST;
    let posts = ["/webhooks/github", "/api/v1/tasks", "/api/auth/refresh", "/api/auth/logout", "/api/v1/users"];
    elsewhere.target = posts[asked.target.len() % posts.len()].to_owned();
    [asked.clone(), other, elsewhere]
}

fn request(asked: &Asked) -> Option<Request<Body>> {
    let mut request = Request::builder().method(asked.method.clone()).uri(&asked.target);
    // What the wire does not let through, the server never hands on.
    for (name, value) in &asked.headers {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            request = request.header(HeaderName::from_static(name), value);
        }
    }
    if asked.signed && asked.target.starts_with("/webhooks") {
        let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap().chain_update(&asked.body);
        request = request.header("x-hub-signature-256", format!("sha256={}", hex::encode(mac.finalize().into_bytes())));
    }
    let mut request = request.body(Body::from(asked.body.clone())).ok()?;
    request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 50_000))));
    Some(request)
}

/// The most that the process had at once, in KiB.
fn peak_kib() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn whatever_strangers_send_is_answered_and_costs_a_limited_amount_of_memory() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let data = tempfile::tempdir().unwrap();
    let router = runtime.block_on(router(&data));
    let (mut seen, mut answered, mut begun) = (0_u32, std::collections::BTreeMap::<u16, u32>::new(), 0);
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let outcome = std::cell::RefCell::new((&mut seen, &mut answered, &mut begun));
    let ran = runner.run(&asked(), |asked| {
        for asked in variants(&asked) {
            let Some(request) = request(&asked) else { continue };
            let (status, size) = runtime.block_on(async {
                let answer = router.clone().oneshot(request).await.unwrap();
                let status = answer.status().as_u16();
                // A feed has no end.
                let feed = answer.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
                let size = if feed { 0 } else { to_bytes(answer.into_body(), usize::MAX).await.unwrap().len() };
                (status, size)
            });
            // 503: there is no provider of sign-ins or inference here.
            prop_assert!(status < 500 || status == 503, "{status} {asked:?}");
            prop_assert!(size <= MAX_ANSWER_BYTES || !asked.target.starts_with("/api/v1"), "{size} bytes");
            let mut outcome = outcome.borrow_mut();
            *outcome.0 += 1;
            *outcome.1.entry(status).or_default() += 1;
            if *outcome.0 == 1_000 {
                *outcome.2 = peak_kib();
            }
        }
        Ok(())
    });
    ran.unwrap();
    let growth = peak_kib() - begun;
    assert!(growth <= MAX_GROWTH_KIB, "the process grew by {growth} KiB");
    assert!(seen > REQUESTS * 9 / 10, "{seen}");
    // Neither the door nor the first check turned all away.
    for status in [200, 400, 401, 404, 415, 422] {
        assert!(answered.get(&status).is_some_and(|count| *count >= 50), "{answered:?}");
    }
    drop((router, data));
}
