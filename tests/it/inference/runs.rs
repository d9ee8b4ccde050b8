//! Runs of workers in other processes ask for models at the gateway, each as itself.

use std::ops::ControlFlow;
use std::process::Command;

use fettle_tests::model::{Answer, Script};
use fettle_tests::world::repository::solving;
use fettle_tests::world::{Layout, PATIENCE, Setup, TestBox, program};
use serde_json::Value;

use crate::webhook::assert_solved_once;

async fn dashboard() -> TestBox {
    TestBox::start(Setup { layout: Layout::Dashboard, ..Setup::with(solving().script()) }).await.unwrap()
}

#[tokio::test]
async fn a_worker_asks_at_the_gateway_with_a_token_of_its_run_and_what_it_used_is_the_runs() {
    let mut fettle = dashboard().await;
    let usage = fettle.start_inference(&[]).await.unwrap();
    fettle.start_worker(None).unwrap();
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_solved_once(&fettle, issue, &task).await;

    let calls = fettle.model.request_count();
    let mut records: Vec<Value> = Vec::new();
    for file in usage.read_dir_utf8().unwrap() {
        let text = fs_err::read_to_string(file.unwrap().path()).unwrap();
        records.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    assert_eq!(records.len(), calls, "each call of the model is on record");
    for record in records {
        assert_eq!(record["run"], task["run"]["id"], "{record}");
        assert_eq!(record["correlation"], task["correlation_id"], "{record}");
        assert_eq!((&record["owner"], &record["model"]), (&"octo/clamp".into(), &"scripted".into()), "{record}");
    }
}

#[tokio::test]
async fn a_gateway_with_another_key_refuses_and_the_run_says_what_to_set() {
    let mut fettle = dashboard().await;
    let other = fettle.config().with_file_name("other-key");
    fs_err::write(&other, "a key that the dashboard has never heard of").unwrap();
    fettle.expect_error("failed for good");
    fettle.start_inference(&[("FETTLE_GATEWAY__RUN_TOKEN_KEY_FILE", other.as_str())]).await.unwrap();
    fettle.start_worker(None).unwrap();
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    let mut said = String::new();
    let hear = |event: &Value| {
        said.push_str(&event.to_string());
        ControlFlow::<()>::Continue(())
    };
    fettle.api.follow_task(task["id"].as_str().unwrap(), PATIENCE, hear).await.unwrap();
    assert!(said.contains("answered 401") && said.contains("gateway.run_token_key_file"), "{said}");
    assert_eq!(fettle.model.request_count(), 0);
}

#[tokio::test]
async fn a_run_with_a_model_that_calls_no_tool_ends_before_it_has_cost_anything() {
    let script = Script::always(Answer::text("I would look at the file."));
    let setup = Setup { layout: Layout::Dashboard, ..Setup::with(script) };
    let mut fettle = TestBox::start(setup).await.unwrap();
    let usage = fettle.start_inference(&[]).await.unwrap();
    fettle.start_worker(None).unwrap();
    let data = usage.parent().unwrap();
    let mut check = Command::new(program("fettle").unwrap());
    check.args(["models", "check", "scripted", "--yes", "--data-dir"]).arg(data).arg("--config").arg(fettle.config());
    let checked = check.output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert!(said.contains("fenced: ") && said.contains("scripted: for chat only: native calls were right"), "{said}");

    let asked = fettle.model.request_count();
    fettle.expect_error("failed for good");
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_eq!(task["state"], "done", "{task:#}");
    let comments = fettle.answers_on(issue);
    assert!(comments.iter().any(|comment| comment.contains("for chat only")), "{comments:#?}");
    assert_eq!(fettle.model.request_count(), asked);
}
