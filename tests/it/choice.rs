//! Several Runs of one Task, from the API to the one pull request that a person chooses, with the real programs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ops::ControlFlow;
use std::time::Duration;

use fettle_tests::world::{PATIENCE, Setup, TestBox, repository};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::webhook::assert_solved_once;

async fn post(fettle: &TestBox, path: &str, body: &Value) -> (u16, Value) {
    let (status, text) = fettle.api.post(path, body).await.unwrap();
    (status, serde_json::from_str(&text).unwrap())
}

/// Whoever only looks at the issue knows what it waits for.
async fn told_of_the_choice(fettle: &TestBox, issue: u64) {
    let until = Instant::now() + PATIENCE;
    while !fettle.answers_on(issue).iter().any(|answer| answer.contains("Several changes for this are ready")) {
        assert!(Instant::now() < until, "{:#?}", fettle.answers_on(issue));
        sleep(Duration::from_millis(50)).await;
    }
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
    told_of_the_choice(&fettle, issue).await;
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

#[tokio::test]
async fn one_run_is_stopped_and_the_chosen_one_is_opened_as_a_draft() {
    let fettle = TestBox::start(Setup::with(repository::solving().script())).await.unwrap();
    let issue = fettle.issue();
    let order = json!({ "repository": fettle.repo.to_string(), "issue": issue, "further": [{}, {}] });
    let (_, made) = post(&fettle, "/api/v1/tasks", &order).await;
    let id = made["task"]["id"].as_str().unwrap().to_owned();
    let runs = format!("/api/v1/tasks/{id}/runs");
    let all = fettle.api.get(&runs).await.unwrap();
    let id_of = |nth: usize| all["items"][nth]["id"].as_str().unwrap().to_owned();
    let (status, stopped) = post(&fettle, &format!("{runs}/{}/stop", id_of(2)), &json!({})).await;
    assert!(matches!(status, 200 | 202), "{stopped}");
    told_of_the_choice(&fettle, issue).await;
    let after = fettle.api.get(&runs).await.unwrap();
    assert_eq!(after["items"][2]["job_state"], "cancelled", "{after:#}");
    let (status, refused) = post(&fettle, &format!("{runs}/{}/stop", id_of(1)), &json!({})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("not_possible")), "it has ended: {refused}");

    let order = json!({ "run_id": id_of(0), "draft": true });
    assert_eq!(post(&fettle, &format!("/api/v1/tasks/{id}/prs"), &order).await.0, 201);
    fettle.api.task_ended(&id, PATIENCE).await.unwrap();
    let pulls = fettle.forge.pulls(&fettle.repo);
    let [pull] = &pulls[..] else { panic!("{pulls:#?}") };
    assert!(pull.pull.as_ref().unwrap().draft);
    assert!(
        pull.body.contains("Proven, and a draft because") && pull.body.contains("asked for a draft"),
        "{}",
        pull.body
    );
    assert!(pull.body.contains(&format!("Refs #{issue}")), "a draft closes nothing: {}", pull.body);
}
