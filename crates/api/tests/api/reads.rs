//! What pages read: queue, workers, repositories, models, settings, and a Run's journal.

use std::time::Duration;

use fettle_app::ports::ledger::{Granted, Holder, Leases, Want};
use fettle_domain::budget::Spent;
use fettle_domain::id::{RequestId, WorkerId};
use fettle_domain::job::JobKind;
use fettle_domain::lease::LeaseRef;
use fettle_domain::object::BlobId;
use fettle_domain::step::{StepBody, StepKind, StepRecord};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::world::{ADMIN_KEY, World};

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

#[tokio::test]
async fn a_journal_of_large_steps_is_told_in_answers_of_limited_size_and_whole() {
    let world = World::start().await;
    let task = world.task().await;
    let shown = world.get(&format!("/api/v1/tasks/{task}")).await.json();
    let path = format!("/api/v1/runs/{}/steps", shown["run"]["id"].as_str().unwrap());
    let lease = lease(&world).await;
    let call = json!({ "name": "view", "arguments": { "text": "a".repeat(8_000) } });
    let turn = |calls: usize| json!({ "turn": { "text": "x".repeat(100_000), "calls": vec![call.clone(); calls] } });
    for seq in 0..12 {
        // Some 400 KiB are shown of each, but of one, which has more calls than anybody reads.
        let body = turn(if seq == 5 { 400 } else { 48 });
        world.ledger.record(&lease, &step(seq, StepKind::ModelCall, body)).await.unwrap();
    }
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let page = world.get(&format!("{path}{after}")).await;
        assert!(page.text.len() <= 1_200 * 1024, "{}", page.text.len());
        let page = page.json();
        for item in page["items"].as_array().unwrap() {
            seen.push(item["seq"].as_u64().unwrap());
            assert_eq!(item["calls"].as_array().unwrap().len(), if item["seq"] == 5 { 50 } else { 48 });
            assert_eq!(item["cut"], true);
        }
        match page["next"].as_u64() {
            Some(next) => after = format!("?after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (0..12).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_waits_is_listed_page_by_page() {
    let world = World::start().await;
    for _ in 0..205 {
        world.task().await;
    }
    let mut jobs = Vec::new();
    let mut path = "/api/v1/queue".to_owned();
    let mut sizes = Vec::new();
    loop {
        let page = world.get(&path).await.json();
        let items = page["items"].as_array().unwrap();
        assert_eq!(page["cut"], !page["next"].is_null());
        sizes.push(items.len());
        jobs.extend(items.iter().map(|job| job["job_id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => path = format!("/api/v1/queue?after={next}"),
            None => break,
        }
    }
    assert_eq!(sizes, [100, 100, 5]);
    jobs.sort();
    jobs.dedup();
    assert_eq!(jobs.len(), 205);
    for odd in ["x", "1", "1AAAA"] {
        for list in ["queue", "dead-jobs"] {
            let seen = world.get(&format!("/api/v1/{list}?after={odd}")).await;
            assert_eq!(seen.problem(), (422, "refused".to_owned()), "{list} {odd}");
        }
    }
}

#[tokio::test]
async fn what_has_not_changed_is_not_told_again() {
    let world = World::start().await;
    let task = world.task().await;
    let key = format!("Bearer {ADMIN_KEY}");
    let ask = async |path: &str, known: &str| {
        let headers = [("authorization", key.as_str()), ("if-none-match", known)];
        world.ask(Method::GET, path, &headers, None).await
    };
    let one = format!("/api/v1/tasks/{task}");
    for path in [
        one.clone(),
        format!("{one}/runs"),
        format!("{one}/messages"),
        "/api/v1/tasks".to_owned(),
        "/api/v1/queue".to_owned(),
    ] {
        let first = world.get(&path).await;
        let tag = first.header("etag").to_owned();
        assert!(tag.starts_with("W/\""), "{tag}");
        assert_eq!(first.header("cache-control"), "private, no-cache");
        let again = ask(&path, &tag).await;
        assert_eq!(
            (again.status, again.text.as_str(), again.header("etag")),
            (StatusCode::NOT_MODIFIED, "", tag.as_str())
        );
        assert_eq!(ask(&path, "\"other\"").await.text, first.text);
    }
    let before = world.get(&one).await.header("etag").to_owned();
    world.ledger.settle_pull_request(task, 12);
    let changed = ask(&one, &before).await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_ne!(changed.header("etag"), before);
    // What is wrong has no revision, and accounts are kept by nobody.
    let missing = ask(&format!("{one}/patch"), "*").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let me = world.get("/api/v1/me").await;
    assert_eq!((me.header("cache-control"), me.headers.contains_key("etag")), ("no-store", false));
}

#[tokio::test]
async fn a_head_is_answered_as_a_get_without_its_body() {
    let world = World::start().await;
    let task = world.task().await;
    let key = format!("Bearer {ADMIN_KEY}");
    let headers = [("authorization", key.as_str())];
    for path in ["/api/v1/tasks".to_owned(), format!("/api/v1/tasks/{task}"), "/api/v1/me".to_owned()] {
        let (get, head) = (world.get(&path).await, world.ask(Method::HEAD, &path, &headers, None).await);
        assert_eq!((head.status, head.text.as_str()), (StatusCode::OK, ""), "{path}");
        assert_eq!(head.headers.get("etag"), get.headers.get("etag"), "{path}");
        assert_eq!(head.header("content-length"), get.text.len().to_string());
    }
    assert_eq!(world.ask(Method::HEAD, "/api/v1/tasks", &[], None).await.status, StatusCode::UNAUTHORIZED);
    let missing = format!("/api/v1/tasks/task_{:032}", 99);
    assert_eq!(world.ask(Method::HEAD, &missing, &headers, None).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_task_takes_so_many_messages_and_says_so() {
    let world = World::start().await;
    let path = format!("/api/v1/tasks/{}/messages", world.task().await);
    for nth in 0..200 {
        let seen = world.post(&path, &json!({"text": format!("message {nth}")})).await;
        assert_eq!(seen.status, StatusCode::ACCEPTED, "{nth}: {}", seen.text);
    }
    let refused = world.post(&path, &json!({"text": "one more"})).await;
    assert_eq!(refused.problem(), (409, "not_possible".to_owned()));
    assert!(refused.text.contains("200 messages"), "{}", refused.text);
    assert_eq!(world.get(&path).await.json()["items"].as_array().unwrap().len(), 200);
}
