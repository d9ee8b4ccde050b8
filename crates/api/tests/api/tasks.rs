use std::collections::BTreeSet;

use fettle_app::ports::ledger::{Holder, Leases, Want};
use fettle_domain::event::EventBody;
use fettle_domain::id::WorkerId;
use fettle_domain::job::JobKind;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

use crate::fake::Mood;
use crate::world::{ADMIN_KEY, World};

#[tokio::test]
async fn a_task_is_made_from_an_issue_and_shown() {
    let world = World::start().await;
    let order = json!({"repository": "acme/widget", "issue": 7, "mode": "refine", "model": "coder", "base": "next"});
    let made = world.post("/api/v1/tasks", &order).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let body = made.json();
    assert_eq!((&body["opened"], &body["task"]["mode"]), (&json!("new"), &json!("refine")));
    assert_eq!(body["task"]["correlation_id"], made.header("x-correlation-id"));
    let shown = world.get(made.header("location")).await;
    assert_eq!((shown.status, shown.json()), (StatusCode::OK, body["task"].clone()));
    let request = &world.submitted()[0];
    assert_eq!(
        (request.issue, request.base.as_deref(), request.actor.as_str(), request.trigger),
        (Some(7), Some("next"), "admin", "api")
    );
}

#[tokio::test]
async fn the_foreign_form_is_taken_with_unknown_fields_and_its_user_decides() {
    let world = World::start().await;
    let order = json!({
        "repo_url": "https://forge.example/acme/widget.git", "issue_id": "12", "trigger_user": "ada", "priority": "high",
    });
    assert_eq!(world.post("/api/v1/tasks", &order).await.status, StatusCode::CREATED);
    let request = &world.submitted()[0];
    assert_eq!(
        (request.issue, request.mode.name(), request.actor.as_str(), request.trigger),
        (Some(12), "quickfix", "ada", "foreign")
    );
}

#[tokio::test]
async fn a_refused_field_is_named() {
    let world = World::start().await;
    let cases = [
        (json!({"repository": "acme/widget", "issue": 7, "colour": "red"}), "/colour"),
        (json!({"repository": "acme/widget", "issue": "seven"}), "/issue"),
        (json!({"repository": "acme/widget", "issue": 0}), "/issue"),
        (json!({"repository": "acme/widget"}), "/issue"),
        (json!({"repository": "acme/widget", "issue": 7, "text": {"title": "a", "body": "b"}}), "/issue"),
        (json!({"repository": "acme/widget", "text": {"title": " ", "body": "b"}}), "/text/title"),
        (json!({"repository": "acme/widget", "text": {"title": "a", "body": "b", "x": 1}}), "/text/x"),
        (json!({"repository": "acme/widget", "issue": 7, "mode": "slow"}), "/mode"),
        (json!({"issue": 7}), "/repository"),
        (json!({"repo_url": "https://forge.example/a/b", "issue_id": "x7", "trigger_user": "ada"}), "/issue_id"),
        (json!({"repo_url": "https://forge.example/a/b", "issue_id": 7}), ""),
    ];
    for (order, pointer) in cases {
        let seen = world.post("/api/v1/tasks", &order).await;
        assert_eq!(seen.problem(), (422, "refused".to_owned()), "{order}");
        assert_eq!(seen.json()["errors"][0]["pointer"], pointer, "{order}: {}", seen.text);
    }
    assert_eq!(world.submitted(), []);
}

#[tokio::test]
async fn a_body_that_is_no_json_is_unreadable_and_one_too_large_is_refused() {
    let world = World::start().await;
    let key = format!("Bearer {ADMIN_KEY}");
    let json_headers = [("authorization", key.as_str()), ("content-type", "application/json")];
    let ask = |headers, body: &[u8]| world.ask(Method::POST, "/api/v1/tasks", headers, Some(body.to_vec()));
    assert_eq!(ask(&json_headers, b"{").await.problem(), (400, "bad_request".to_owned()));
    let plain = [json_headers[0], ("content-type", "text/plain")];
    assert_eq!(ask(&plain, b"{}").await.problem(), (415, "unsupported_media_type".to_owned()));
    let large = format!(r#"{{"repository": "{}"}}"#, "x".repeat(1024 * 1024));
    assert_eq!(ask(&json_headers, large.as_bytes()).await.problem(), (413, "too_large".to_owned()));
}

#[tokio::test]
async fn refusals_of_the_use_case_keep_their_meaning() {
    let world = World::start().await;
    let submit = async |name: &str| world.post("/api/v1/tasks", &json!({"repository": name, "issue": 1})).await;
    assert_eq!(submit("acme/unknown").await.problem(), (404, "not_found".to_owned()));
    assert_eq!(submit("acme/forbidden").await.problem(), (403, "forbidden".to_owned()));
    let limited = submit("acme/limited").await;
    assert_eq!((limited.problem(), limited.header("retry-after")), ((503, "unavailable".to_owned()), "7"));
    world.ledger.feel(Mood::Full);
    assert_eq!(submit("acme/widget").await.problem(), (507, "ledger_full".to_owned()));
}

#[tokio::test]
async fn the_same_idempotency_key_gives_the_same_task() {
    let world = World::start().await;
    let key = format!("Bearer {ADMIN_KEY}");
    let headers = [("authorization", key.as_str()), ("content-type", "application/json"), ("idempotency-key", "k-1")];
    let order = json!({"repository": "acme/widget", "text": {"title": "a", "body": ""}}).to_string().into_bytes();
    let first = world.ask(Method::POST, "/api/v1/tasks", &headers, Some(order.clone())).await;
    let again = world.ask(Method::POST, "/api/v1/tasks", &headers, Some(order)).await;
    assert_eq!((first.status, again.status), (StatusCode::CREATED, StatusCode::OK));
    assert_eq!(again.json()["opened"], "duplicate");
    assert_eq!(first.json()["task"]["id"], again.json()["task"]["id"]);
}

// Tasks of the same microsecond, and new ones that come while the list is read.
#[tokio::test]
async fn a_list_read_page_by_page_has_every_old_task_once_and_no_new_one() {
    let world = World::start().await;
    let mut expected = BTreeSet::new();
    for _ in 0..8 {
        expected.insert(world.task().await.to_string());
    }
    let (mut seen, mut path) = (Vec::new(), "/api/v1/tasks?limit=2".to_owned());
    loop {
        let page = world.get(&path).await.json();
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        world.task().await;
        match &page["next"] {
            Value::String(next) => path = format!("/api/v1/tasks?limit=2&after={next}"),
            _ => break,
        }
    }
    assert_eq!(seen.len(), 8, "{seen:?}");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn a_list_is_filtered_by_state_and_refuses_odd_parameters() {
    let world = World::start().await;
    let (task, _) = (world.task().await, world.task().await);
    world.post(&format!("/api/v1/tasks/{task}/cancel"), &json!({})).await;
    let ids = |page: Value| page["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(world.get("/api/v1/tasks?state=cancelled").await.json()), [json!(task.to_string())]);
    for (query, pointer) in [("limit=0", "?limit"), ("limit=201", "?limit"), ("after=zzz", "?after")] {
        let seen = world.get(&format!("/api/v1/tasks?{query}")).await;
        assert_eq!(
            (seen.problem(), &seen.json()["errors"][0]["pointer"]),
            ((422, "refused".to_owned()), &json!(pointer))
        );
    }
}

#[tokio::test]
async fn cancelling_is_at_once_soon_or_too_late() {
    let world = World::start().await;
    let cancel = async |task| world.post(&format!("/api/v1/tasks/{task}/cancel"), &json!({})).await;
    let queued = world.task().await;
    assert_eq!(cancel(queued).await.json()["state"], "cancelled");
    assert_eq!(cancel(queued).await.status, StatusCode::OK, "again changes nothing");
    let leased = world.task().await;
    let who = Holder { worker: WorkerId::from_uuid(Uuid::from_u128(1)), name: "w".to_owned() };
    let want = Want::anything(JobKind::Run, vec![1]);
    let request = fettle_domain::id::RequestId::from_uuid(Uuid::from_u128(1));
    world.ledger.lease(&who, &want, 1, Duration::ZERO, request).await.unwrap();
    assert_eq!(cancel(leased).await.status, StatusCode::ACCEPTED);
    world.ledger.tell(leased, EventBody::TaskDone { outcome: "ready_pr".to_owned(), pull_request: Some(3) });
    assert_eq!(cancel(leased).await.problem(), (409, "too_late".to_owned()));
}

#[tokio::test]
async fn a_finished_task_is_retried_as_a_new_one_and_an_active_one_is_not() {
    let world = World::start().await;
    let task = world.task().await;
    let retry = async || world.post(&format!("/api/v1/tasks/{task}/retry"), &json!({})).await;
    assert_eq!(retry().await.problem(), (409, "not_possible".to_owned()));
    world.ledger.tell(task, EventBody::TaskDone { outcome: "unsolved".to_owned(), pull_request: None });
    let retried = retry().await;
    assert_eq!((retried.status, retried.header("location")), (StatusCode::CREATED, &*format!("/api/v1/tasks/{task}")));
}

#[tokio::test]
async fn a_pull_request_is_shown_with_the_task() {
    let world = World::start().await;
    let task = world.task().await;
    world.ledger.settle_pull_request(task, 31);
    let shown = world.get(&format!("/api/v1/tasks/{task}")).await.json();
    assert_eq!((&shown["pull_request"]["number"], &shown["effects"][0]["state"]), (&json!(31), &json!("settled")));
}
