//! From an empty configuration to a pull request: access to the forge, a model and a repository are entered while the real programs
//! run, and outlive them sealed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;

use fettle_tests::world::{LABEL, Layout, MAINTAINER, PATIENCE, SERVER, Setup, TestBox, repository};
use serde_json::{Value, json};

use super::admin::{admin, said};
use super::webhook::assert_solved_once;

fn bare() -> Setup<'static> {
    let forge = "intake = 'poll'\npoll_every = '1s'";
    Setup { bare: true, webhooks: false, forge, ..Setup::with(repository::solving().script()) }
}

async fn put(fettle: &TestBox, path: &str, body: &Value) -> (u16, Value) {
    let (status, text) = fettle.api.put(path, body).await.unwrap();
    (status, serde_json::from_str(&text).unwrap())
}

async fn ready(fettle: &TestBox) -> [bool; 3] {
    let ready = fettle.api.get("/api/v1/overview").await.unwrap()["ready"].clone();
    ["forge", "model", "repository"].map(|what| ready[what].as_bool().unwrap())
}

async fn enter_forge_and_model(fettle: &TestBox) {
    let secrets = &fettle.to_enter;
    let tokens = json!({ "read": secrets.read_token, "write": secrets.write_token });
    let (status, taken) = put(fettle, "/api/v1/forge/tokens", &tokens).await;
    assert_eq!((status, &taken["login"]), (200, &json!("fettle-machine")), "{taken}");
    let model = json!({
        "kind": "openai-compatible", "base_url": fettle.model.base_url(), "known_as": "scripted",
        "context_tokens": 65_536, "api_key": secrets.model_key,
    });
    let (status, made) = put(fettle, "/api/v1/models/mine", &model).await;
    assert_eq!(status, 201, "{made}");
}

async fn add_repository(fettle: &TestBox) -> u16 {
    fettle.api.post("/api/v1/repositories", &json!({ "repository": fettle.repo.to_string() })).await.unwrap().0
}

/// The label alone, of which nobody tells.
async fn solved(fettle: &TestBox) -> (u64, Value) {
    let issue = fettle.issue();
    fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    (issue, fettle.api.task_ended(&task, PATIENCE).await.unwrap())
}

#[tokio::test]
async fn what_an_admin_enters_is_enough_to_solve_an_issue_and_outlives_a_kill() {
    let mut fettle = TestBox::start(bare()).await.unwrap();
    assert_eq!(ready(&fettle).await, [false; 3]);
    assert_eq!(add_repository(&fettle).await, 409, "nothing could be written there");
    enter_forge_and_model(&fettle).await;
    assert_eq!(add_repository(&fettle).await, 201);
    assert_eq!(ready(&fettle).await, [true; 3]);

    fettle.kill(SERVER);
    fettle.restart(SERVER, None).await.unwrap();
    assert_eq!(ready(&fettle).await, [true; 3]);
    let (issue, task) = solved(&fettle).await;
    assert_eq!(task["run"]["result"]["model"], json!("mine"), "{task}");
    assert_solved_once(&fettle, issue, &task).await;
}

/// Each shows the gateway a token of its own, for its own model.
#[tokio::test]
async fn runs_of_one_task_ask_different_models() {
    let fettle = TestBox::start(bare()).await.unwrap();
    enter_forge_and_model(&fettle).await;
    let other = json!({
        "kind": "openai-compatible", "base_url": fettle.model.base_url(), "known_as": "another",
        "context_tokens": 65_536, "api_key": fettle.to_enter.model_key,
    });
    assert_eq!(put(&fettle, "/api/v1/models/other", &other).await.0, 201);
    let order = json!({
        "repository": fettle.repo.to_string(), "issue": fettle.issue(), "model": "mine", "further": [{ "model": "other" }],
    });
    let (status, text) = fettle.api.post("/api/v1/tasks", &order).await.unwrap();
    assert_eq!(status, 201, "{text}");
    let id = serde_json::from_str::<Value>(&text).unwrap()["task"]["id"].as_str().unwrap().to_owned();
    let mut ended = 0;
    let both = fettle.api.follow_task(&id, PATIENCE, |event| {
        ended += usize::from(event["what"]["type"] == "run_ended");
        if ended == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    both.await.unwrap().expect("the Task goes on until somebody chooses");
    let runs = fettle.api.get(&format!("/api/v1/tasks/{id}/runs")).await.unwrap();
    let shown: Vec<_> = runs["items"].as_array().unwrap().iter().map(|run| &run["result"]["model"]).collect();
    assert_eq!(shown, [&json!("mine"), &json!("other")]);
    let asked: BTreeSet<String> =
        fettle.model.requests().iter().map(|asked| asked.body["model"].as_str().unwrap().to_owned()).collect();
    assert_eq!(asked, BTreeSet::from(["another".to_owned(), "scripted".to_owned()]));
}

#[tokio::test]
async fn a_gateway_in_another_process_is_told_of_a_model_and_of_its_end() {
    let mut fettle = TestBox::start(Setup { layout: Layout::Dashboard, ..bare() }).await.unwrap();
    fettle.start_inference(&[]).await.unwrap();
    fettle.start_worker(None).unwrap();
    enter_forge_and_model(&fettle).await;
    assert_eq!(add_repository(&fettle).await, 201);
    let (issue, task) = solved(&fettle).await;
    assert_solved_once(&fettle, issue, &task).await;
    for process in 0..fettle.process_count() {
        let log = fettle.process(process).log();
        assert!(!log.iter().any(|line| line.contains(&fettle.to_enter.model_key)), "a key was logged");
    }
}

#[tokio::test]
async fn a_model_is_tried_by_the_way_of_runs_and_says_why_it_does_not_answer() {
    let fettle = TestBox::start(bare()).await.unwrap();
    let tried = async |name: &str| {
        let (status, text) = fettle.api.post(&format!("/api/v1/models/{name}/try"), &json!({})).await.unwrap();
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let add = async |name: &str, more: Value| {
        let mut model = json!({ "kind": "openai-compatible", "known_as": "scripted", "context_tokens": 65_536 });
        model.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(put(&fettle, &format!("/api/v1/models/{name}"), &model).await.0, 201);
    };
    add("mine", json!({ "base_url": fettle.model.base_url(), "api_key": fettle.to_enter.model_key })).await;
    let found = tried("mine").await;
    assert_eq!((&found["answered"], &found["text"]), (&json!(true), &json!("ready")), "{found}");
    add("nowhere", json!({ "base_url": "http://127.0.0.1:9/v1" })).await;
    add("locked", json!({ "base_url": fettle.model.base_url(), "api_key": "wrong" })).await;
    for (name, word) in [("nowhere", "cannot be reached"), ("locked", "does not accept the gateway's key")] {
        let found = tokio::time::timeout(Duration::from_secs(30), tried(name)).await.unwrap();
        assert_eq!(found["answered"], json!(false), "{found}");
        let why = found["why"].as_str().unwrap();
        assert!(why.contains(word), "{name}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_seals_what_was_entered_and_it_still_opens_after_a_restart() {
    let mut fettle = TestBox::start(bare()).await.unwrap();
    enter_forge_and_model(&fettle).await;
    let rotated = admin(&fettle, &["rotate-secrets", "--json"]);
    assert!(rotated.status.success(), "{}", said(&rotated));
    let told: Value = serde_json::from_slice(&rotated.stdout).unwrap();
    assert_eq!((&told["resealed"], &told["lost"], &told["own_file"]), (&json!(3), &json!([]), &json!(true)), "{told}");
    let again = admin(&fettle, &["rotate-secrets"]);
    assert!(
        said(&again).contains("3 secrets were sealed anew") && said(&again).contains("thrown away"),
        "{}",
        said(&again)
    );
    fettle.kill(SERVER);
    fettle.killed(SERVER).await.unwrap();
    fettle.restart(SERVER, None).await.unwrap();
    let (status, text) = fettle.api.post("/api/v1/models/mine/try", &json!({})).await.unwrap();
    assert!(status == 200 && text.contains("\"answered\":true"), "{text}");
    assert_eq!(add_repository(&fettle).await, 201, "the tokens open as well");
}
