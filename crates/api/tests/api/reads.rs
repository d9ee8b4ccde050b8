//! What pages read: queue, workers, repositories, models, settings, and a Run's journal.

use std::time::Duration;

use fettle_app::ports::ledger::{Granted, Holder, Leases, Want};
use fettle_domain::budget::Spent;
use fettle_domain::id::{RequestId, WorkerId};
use fettle_domain::job::JobKind;
use fettle_domain::lease::LeaseRef;
use fettle_domain::object::BlobId;
use fettle_domain::step::{StepBody, StepKind, StepRecord};
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::world::World;

async fn lease(world: &World) -> LeaseRef {
    let who = Holder { worker: WorkerId::from_uuid(Uuid::from_u128(7)), name: "worker-1".to_owned() };
    let want = Want::anything(JobKind::Run, vec![1]);
    let request = RequestId::from_uuid(Uuid::from_u128(8));
    match world.ledger.lease(&who, &want, 1, Duration::ZERO, request).await.unwrap() {
        Granted::Leased(leases) => leases[0].lease,
        Granted::Idle => panic!("nothing is runnable"),
    }
}

#[tokio::test]
async fn who_holds_what_is_listed_by_job_and_by_worker() {
    let world = World::start().await;
    assert_eq!(world.get("/api/v1/workers").await.json(), json!({ "items": [] }));
    let tasks = [world.task().await.to_string(), world.task().await.to_string()];
    let queue = world.get("/api/v1/queue").await.json();
    let states = |queue: &Value| -> Vec<String> {
        queue["items"].as_array().unwrap().iter().map(|job| job["state"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((states(&queue), &queue["cut"]), (vec!["runnable".to_owned(); 2], &json!(false)));
    assert_eq!(queue["items"][0]["title"], "A title");
    lease(&world).await;
    let queue = world.get("/api/v1/queue").await.json();
    assert_eq!(states(&queue), ["held", "runnable"]);
    let (held, rest) = (&queue["items"][0], &queue["items"][1]);
    assert_eq!((&held["worker"], &held["repository"]), (&json!("worker-1"), &json!("acme/widget")));
    assert!(held["until"].is_string() && held["since"].is_null(), "{held}");
    assert!(rest["since"].is_string() && rest["worker"].is_null(), "{rest}");
    assert!(tasks.contains(&held["task_id"].as_str().unwrap().to_owned()));
    let workers = world.get("/api/v1/workers").await.json();
    assert_eq!((&workers["items"][0]["name"], &workers["items"][0]["jobs"][0]), (&json!("worker-1"), held));
    assert_eq!(workers["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn repositories_are_those_that_were_seen_and_those_that_are_configured() {
    let world = World::start().await;
    world.task().await;
    let newest = world.task().await;
    let list = world.get("/api/v1/repositories").await.json();
    let seen = &list["items"][0];
    assert_eq!(
        (&seen["name"], &seen["configured"], &seen["tasks"], &seen["open"]),
        (&json!("acme/widget"), &json!(true), &json!(2), &json!(2))
    );
    assert_eq!((&seen["newest"]["task_id"], &seen["newest"]["outcome"]), (&json!(newest.to_string()), &Value::Null));
    let unseen =
        json!({ "name": "acme/unseen", "configured": true, "added": false, "tasks": 0, "open": 0, "newest": null });
    assert_eq!((&list["items"][1], list["items"].as_array().unwrap().len()), (&unseen, 2));
}

#[tokio::test]
async fn models_and_settings_are_told_without_their_keys() {
    let world = World::start().await;
    let models = world.get("/api/v1/models").await.json();
    assert_eq!(models["items"][0]["name"], "coder");
    assert_eq!((&models["items"][0]["with_key"], &models["items"][0]["examined"]), (&json!(true), &Value::Null));
    let settings = world.get("/api/v1/system/settings").await.json();
    let item = json!({ "key": "forge.label", "value": "\"ai-help\"", "live": true });
    assert_eq!((&settings["items"], &settings["config_file"]), (&json!([item]), &json!("/etc/fettle.toml")));
    for path in ["devices", "placements", "events"] {
        let seen = world.get(&format!("/api/v1/inference/{path}")).await;
        assert_eq!((seen.status, seen.json()["code"].clone()), (StatusCode::NOT_FOUND, json!("not_found")), "{path}");
    }
}

fn step(seq: u32, kind: StepKind, body: Value) -> StepRecord {
    StepRecord {
        seq,
        kind,
        phase: "fix".to_owned(),
        title: format!("step {seq}"),
        input: BlobId::of(b"input"),
        body: StepBody::Inline(body),
        workspace: None,
        spent: Spent::default(),
        took_ms: 5,
    }
}

#[tokio::test]
async fn a_journal_is_read_page_by_page_with_its_texts_cut() {
    let world = World::start().await;
    let task = world.task().await;
    let shown = world.get(&format!("/api/v1/tasks/{task}")).await.json();
    let path = format!("/api/v1/runs/{}/steps", shown["run"]["id"].as_str().unwrap());
    assert_eq!(world.get(&path).await.json(), json!({ "items": [], "next": null }));
    let lease = lease(&world).await;
    let calls = json!([{ "index": 0, "id": "1", "name": "view", "arguments": { "text": "{\"path\": \"a\"}" } }]);
    let turn = json!({ "text": "I look.", "reasoning": "", "calls": calls, "finish": "stop", "usage": null });
    let said = step(0, StepKind::ModelCall, json!({ "sent": [], "turn": turn }));
    // An `é` has two bytes: what is cut is still text.
    let long = "é".repeat(5_000);
    let did = json!({ "call": { "tool": "view", "path": "a" }, "result": { "ok": false, "text": format!("x{long}") } });
    let steps = [said, step(1, StepKind::ToolCall, did), step(2, StepKind::Decide, json!({ "verdict": "go" }))];
    for step in steps.into_iter().chain((3..60).map(|seq| step(seq, StepKind::Decide, json!(seq)))) {
        world.ledger.record(&lease, &step).await.unwrap();
    }
    let page = world.get(&path).await.json();
    let (call, tool, other) = (&page["items"][0], &page["items"][1], &page["items"][2]);
    assert_eq!((&call["said"], &call["reasoning"]), (&json!("I look."), &Value::Null));
    assert_eq!(call["calls"], json!([{ "tool": "view", "arguments": "{\"path\": \"a\"}" }]));
    assert_eq!(tool["calls"], json!([{ "tool": "view", "arguments": "{\n  \"path\": \"a\"\n}" }]));
    let output = tool["output"].as_str().unwrap();
    assert!(output.len() <= 8 * 1024 && output.ends_with('é'), "{}", output.len());
    assert_eq!((&tool["ok"], &tool["cut"], &call["cut"]), (&json!(false), &json!(true), &json!(false)));
    assert_eq!(other["output"], "{\n  \"verdict\": \"go\"\n}");
    assert_eq!((page["items"].as_array().unwrap().len(), &page["next"]), (50, &json!(49)));
    let rest = world.get(&format!("{path}?after=49")).await.json();
    assert_eq!((&rest["items"][0]["seq"], &rest["next"]), (&json!(50), &Value::Null));
    assert_eq!(rest["items"].as_array().unwrap().len(), 10);
    let unknown = "/api/v1/runs/run_00000000000000000000000000000009/steps";
    assert_eq!(world.get(unknown).await.status, StatusCode::NOT_FOUND);
}
