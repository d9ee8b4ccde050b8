//! Several Runs of one Task, from the API to the one pull request that a person chooses, with the real programs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ops::ControlFlow;

use fettle_tests::world::{PATIENCE, Setup, TestBox, repository};
use serde_json::{Value, json};

use super::webhook::assert_solved_once;

async fn post(fettle: &TestBox, path: &str, body: &Value) -> (u16, Value) {
    let (status, text) = fettle.api.post(path, body).await.unwrap();
    (status, serde_json::from_str(&text).unwrap())
}

#[tokio::test]
async fn two_runs_solve_an_issue_and_the_chosen_one_becomes_its_pull_request() {
    let fettle = TestBox::start(Setup::with(repository::solving().script())).await.unwrap();
    let issue = fettle.issue();
    let told = "Keep the change as small as it can be.";
    let order = json!({ "repository": fettle.repo.to_string(), "issue": issue, "further": [{ "instruction": told }] });
    let (status, made) = post(&fettle, "/api/v1/tasks", &order).await;
    assert_eq!(status, 201, "{made}");
    let id = made["task"]["id"].as_str().unwrap().to_owned();
    let mut ended = 0;
    let both = fettle.api.follow_task(&id, PATIENCE, |event| {
        ended += usize::from(event["what"]["type"] == "run_ended");
        if ended == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    both.await.unwrap().expect("the Task goes on until somebody chooses");

    let waiting = fettle.api.task(&id).await.unwrap();
    assert_eq!((&waiting["state"], &waiting["outcome"]), (&json!("waiting"), &Value::Null));
    assert!(fettle.forge.pulls(&fettle.repo).is_empty(), "nothing is published unasked");
    let runs = fettle.api.get(&format!("/api/v1/tasks/{id}/runs")).await.unwrap();
    let runs = runs["items"].as_array().unwrap();
    let shown: Vec<_> = runs.iter().map(|run| (&run["ordinal"], &run["result"]["proof"]["level"])).collect();
    assert_eq!(shown, [(&json!(1), &json!("proven")), (&json!(2), &json!("proven"))]);
    let second = runs[1]["id"].as_str().unwrap();
    for what in ["patch", "proof"] {
        fettle.api.get(&format!("/api/v1/tasks/{id}/{what}?run={second}")).await.unwrap();
    }
    let heard =
        |needle: &str| fettle.model.requests().iter().filter(|asked| asked.body.to_string().contains(needle)).count();
    let (all, instructed) = (fettle.model.requests().len(), heard(told));
    assert_eq!(instructed * 2, all, "what one Run is told, the other is not");

    let (status, chosen) = post(&fettle, &format!("/api/v1/tasks/{id}/prs"), &json!({ "run_id": second })).await;
    assert_eq!((status, &chosen["run"]["id"]), (201, &runs[1]["id"]));
    let task = fettle.api.task_ended(&id, PATIENCE).await.unwrap();
    assert_eq!(task["run"]["ordinal"], 2);
    assert_solved_once(&fettle, issue, &task).await;
    let (status, late) = post(&fettle, &format!("/api/v1/tasks/{id}/runs"), &json!({ "runs": [{}] })).await;
    assert_eq!((status, &late["code"]), (409, &json!("not_possible")));
}
