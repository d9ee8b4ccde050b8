//! The paths of a Task over HTTP on the real ledger.

use std::collections::BTreeSet;
use std::time::Duration;

use fettle_app::ports::ledger::{Fenced, Granted, Holder, Leases, Ledger, LedgerError, Order, Want};
use fettle_domain::budget::Spent;
use fettle_domain::id::{RequestId, WorkerId};
use fettle_domain::job::JobKind;
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::object::BlobId;
use fettle_domain::run::{RunOutcome, RunResult};
use fettle_domain::step::{StepBody, StepKind, StepRecord};
use fettle_store_sqlite::{Options, SqliteLedger};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

use crate::world::{ADMIN_KEY, Counted, SECRET, Still, World};

pub(crate) async fn open(dir: &tempfile::TempDir) -> Arc<SqliteLedger> {
    let options = Options::new(Arc::new(Still), Arc::new(Counted::from(1_000_000)));
    Arc::new(SqliteLedger::open(dir.path().to_str().unwrap(), options).await.unwrap())
}

#[tokio::test]
async fn a_probe_goes_from_the_api_through_a_worker_to_its_result() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let world = World::on(ledger.clone()).await;
    let made = world.post("/api/v1/tasks", &json!({"mode": "probe"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let task = made.header("location").to_owned();

    let client = world.worker();
    let who = Holder { worker: WorkerId::from_uuid(Uuid::from_u128(5)), name: "host:1".to_owned() };
    let want = Want::anything(JobKind::Run, vec![1]);
    let request = RequestId::from_uuid(Uuid::from_u128(6));
    let granted = client.lease(&who, &want, 1, Duration::from_secs(5), request).await.unwrap();
    let Granted::Leased(leases) = granted else { panic!("the probe is runnable") };
    let (lease, Order::Run(order)) = (leases[0].lease, &leases[0].order) else { panic!("{leases:?}") };
    assert_eq!(world.get(&task).await.json()["state"], "running");
    assert_eq!(order.correlation.to_string(), made.header("x-correlation-id"));

    let step = StepRecord {
        seq: 0,
        kind: StepKind::Decide,
        phase: "triage".to_owned(),
        title: "probe".to_owned(),
        input: BlobId::of(b"input"),
        body: StepBody::Inline(json!({"ok": true})),
        workspace: None,
        spent: Spent::default(),
        took_ms: 1,
    };
    assert_eq!(client.record(&lease, &step).await.unwrap(), Fenced::Applied);
    assert_eq!(client.steps(&lease).await.unwrap(), std::slice::from_ref(&step));
    let older = LeaseRef { fence: Fence::new(lease.fence.get() - 1), ..lease };
    assert_eq!(client.record(&older, &step).await.unwrap(), Fenced::Stale);
    let (outcome, model) = (RunOutcome::ProbePassed, "none".to_owned());
    let result = RunResult { outcome, base: None, change: None, spent: Spent::default(), model };
    assert_eq!(client.complete_run(&lease, &result).await.unwrap(), Fenced::Applied);
    assert_eq!(client.complete_run(&lease, &result).await.unwrap(), Fenced::AlreadyApplied);

    let shown = world.get(&task).await.json();
    assert_eq!((&shown["outcome"], &shown["run"]["steps"]), (&json!("probe_passed"), &json!(1)));
    let blob = client.put_blob("content".into()).await.unwrap();
    assert_eq!(client.blob(blob).await.unwrap(), "content");
    assert!(matches!(client.blob(BlobId::of(b"none")).await, Err(LedgerError::NotFound(_))));
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn several_runs_work_on_a_task_and_one_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let world = World::on(ledger.clone()).await;
    let order = json!({"repository": "acme/widget", "issue": 7, "model": "first", "further": [{"model": "second"}]});
    let made = world.post("/api/v1/tasks", &order).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let task = made.header("location").to_owned();
    let (runs, prs) = (format!("{task}/runs"), format!("{task}/prs"));
    let added = world.post(&runs, &json!({"runs": [{"instruction": "mind the tests"}]})).await;
    assert_eq!((added.status, added.json()["run_ids"].as_array().map(Vec::len)), (StatusCode::CREATED, Some(1)));
    for (refused, pointer) in [
        (json!({"runs": []}), "/runs"),
        (json!({"runs": [{"model": ""}]}), "/runs/0/model"),
        (json!({"runs": [{"instruction": "x".repeat(4_001)}]}), "/runs/0/instruction"),
        (json!({"runs": vec![json!({}); 9]}), "/runs"),
        (json!({"runs": [{"colour": "red"}]}), "/runs/0/colour"),
    ] {
        let answer = world.post(&runs, &refused).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
        assert!(answer.text.contains(pointer), "{}", answer.text);
    }
    let many = world.post(&runs, &json!({"runs": vec![json!({}); 6]})).await;
    assert_eq!(many.problem(), (409, "not_possible".to_owned()));

    let shown = world.get(&runs).await.json();
    let told: Vec<_> =
        shown["items"].as_array().unwrap().iter().map(|run| (&run["model"], &run["instruction"])).collect();
    let none = Value::Null;
    assert_eq!(told, [(&json!("first"), &none), (&json!("second"), &none), (&none, &json!("mind the tests"))]);
    let id = |nth: usize| json!({"run_id": shown["items"][nth]["id"]});
    assert_eq!(world.post(&prs, &id(0)).await.problem(), (409, "not_possible".to_owned()));

    let who = Holder { worker: WorkerId::from_uuid(Uuid::from_u128(5)), name: "host:1".to_owned() };
    let request = RequestId::from_uuid(Uuid::from_u128(6));
    let want = Want::anything(JobKind::Run, vec![1]);
    let granted = world.worker().lease(&who, &want, 3, Duration::from_secs(5), request).await.unwrap();
    let Granted::Leased(leases) = granted else { panic!("three are runnable") };
    assert_eq!(leases.len(), 3);
    for leased in &leases {
        let result = RunResult {
            outcome: RunOutcome::DraftPr { reasons: vec![] },
            base: None,
            change: None,
            spent: Spent::default(),
            model: "m".to_owned(),
        };
        assert_eq!(world.worker().complete_run(&leased.lease, &result).await.unwrap(), Fenced::Applied);
    }
    assert_eq!(world.get(&task).await.json()["state"], "waiting");
    let said = world.post(&format!("{task}/messages"), &json!({"text": "I like the second"})).await;
    assert_eq!((said.status, &said.json()["items"][0]["text"]), (StatusCode::ACCEPTED, &json!("I like the second")));
    assert_eq!(world.get(&task).await.json()["state"], "waiting", "what waits to be chosen has done its work");
    let blank = world.post(&format!("{task}/messages"), &json!({"text": " "})).await;
    assert_eq!(blank.status, StatusCode::UNPROCESSABLE_ENTITY);
    let chosen = world.post(&prs, &id(1)).await;
    assert_eq!((chosen.status, chosen.json()["state"].clone()), (StatusCode::CREATED, json!("publishing")));
    assert_eq!(chosen.json()["run"]["ordinal"], 2);
    assert_eq!(world.post(&prs, &id(1)).await.status, StatusCode::OK, "the same choice again");
    assert_eq!(world.post(&prs, &id(0)).await.problem(), (409, "not_possible".to_owned()));
    assert_eq!(world.get(&runs).await.json()["leading"], shown["items"][1]["id"]);
    let other = world.post("/api/v1/tasks", &json!({"mode": "probe"})).await.header("location").to_owned();
    world.post(&format!("{other}/cancel"), &json!({})).await;
    let late = world.post(&format!("{other}/messages"), &json!({"text": "hello"})).await;
    assert_eq!(late.problem(), (409, "too_late".to_owned()));
    let unknown = world.get(&format!("{task}/patch?run=run_{}", Uuid::from_u128(9).simple())).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn deliveries_and_pages_come_back_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let world = World::on(ledger.clone()).await;
    let body = br#"{"action":"labeled"}"#;
    assert_eq!(world.deliver("issues", "d-1", body, SECRET).await.json()["verdict"], "new");
    assert_eq!(world.deliver("issues", "d-1", body, SECRET).await.json()["verdict"], "duplicate");
    let open = ledger.open_deliveries(10).await.unwrap();
    assert_eq!(open.iter().map(|delivery| &delivery.body[..]).collect::<Vec<_>>(), [body]);

    let mut made = BTreeSet::new();
    for _ in 0..5 {
        let seen = world.post("/api/v1/tasks", &json!({"mode": "probe"})).await;
        made.insert(seen.json()["task"]["id"].as_str().unwrap().to_owned());
    }
    let (mut seen, mut path) = (Vec::new(), "/api/v1/tasks?limit=2".to_owned());
    loop {
        let page = world.get(&path).await.json();
        seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match &page["next"] {
            Value::String(next) => path = format!("/api/v1/tasks?limit=2&after={next}"),
            _ => break,
        }
    }
    assert_eq!(seen.len(), 5);
    assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), made);

    let cancelled = world.post(&format!("/api/v1/tasks/{}/cancel", seen[0]), &json!({})).await;
    assert_eq!((cancelled.status, &cancelled.json()["state"]), (StatusCode::OK, &json!("cancelled")));
    let feed = world.get(&format!("/api/v1/tasks/{}/events", seen[0])).await;
    let (first, end) = (feed.text.find("task_created"), feed.text.find("event: end"));
    assert!(first.is_some() && first < feed.text.find("task_cancelled") && end.is_some(), "{}", feed.text);
    let retried = world.post(&format!("/api/v1/tasks/{}/retry", seen[1]), &json!({})).await;
    assert_eq!(retried.problem(), (409, "not_possible".to_owned()));
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn runs_that_are_asked_for_again_with_the_same_key_are_added_once() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let world = World::on(ledger.clone()).await;
    let order = json!({"repository": "acme/widget", "issue": 7, "model": "first"});
    let path = format!("{}/runs", world.post("/api/v1/tasks", &order).await.header("location"));
    let admin = format!("Bearer {ADMIN_KEY}");
    let add = async |key: &str, runs: Value| {
        let headers =
            [("authorization", admin.as_str()), ("content-type", "application/json"), ("idempotency-key", key)];
        world.ask(Method::POST, &path, &headers, Some(json!({"runs": runs}).to_string().into_bytes())).await
    };
    let two = json!([{"model": "second"}, {"model": "second", "instruction": "small"}]);
    let (one, other) = tokio::join!(add("a key", two.clone()), add("a key", two.clone()));
    assert_eq!((one.status, one.json()), (StatusCode::CREATED, other.json()), "{}", other.text);
    assert_eq!(add("a key", two.clone()).await.json(), one.json());
    for others in [json!([{"model": "third"}]), json!([{"model": "second"}]), json!([{"model": "second"}, {}, {}])] {
        assert_eq!(add("a key", others).await.problem(), (422, "refused".to_owned()));
    }
    assert_eq!(add("", two.clone()).await.problem(), (422, "refused".to_owned()));
    assert_ne!(add("another key", two).await.json(), one.json());
    assert_eq!(world.get(&path).await.json()["items"].as_array().unwrap().len(), 5);
    ledger.close().await.unwrap();
}
