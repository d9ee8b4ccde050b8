//! The comment on an issue while a Run is at work, with the real programs: edited, never doubled, and true at the end.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::mpsc;

use fettle_tests::forge::{Act, Fault};
use fettle_tests::world::{PATIENCE, SERVER, Setup, TestBox, repository};
use serde_json::{Value, json};

use super::webhook::{assert_solved_once, holding};

const EDITS: &str = "progress_every = '100ms'";
const COMMENTS: &str = "/repos/*/*/issues/*/comments";

/// A model that thinks about the change until it is told to go on.
async fn fixing() -> (TestBox, u64, String, mpsc::Sender<()>) {
    let (phases, go) = holding(repository::triage(), "reproduce", repository::reproduction());
    let (phases, fix) = holding(phases, "fix", repository::fixing());
    let fettle = TestBox::start(Setup { forge: EDITS, ..Setup::with(phases.script()) }).await.unwrap();
    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    says(&fettle, issue, "Now: reading the issue and the code.").await;
    go.send(()).unwrap();
    says(&fettle, issue, "Now: writing a test that shows the problem.").await;
    (fettle, issue, task, fix)
}

/// Waits until the one comment says so.
async fn says(fettle: &TestBox, issue: u64, words: &str) {
    let said = |comments: Vec<String>| matches!(&comments[..], [one] if one.contains(words));
    fettle.forge.until(words, PATIENCE, |_| said(fettle.answers_on(issue))).await.unwrap();
}

async fn ended(fettle: &TestBox, task: &str) -> Value {
    fettle.api.task_ended(task, PATIENCE).await.unwrap()
}

#[tokio::test]
async fn the_one_comment_tells_of_each_phase_and_at_last_of_the_pull_request() {
    let (mut fettle, issue, task, go) = fixing().await;
    // Whoever tells of it may be killed.
    fettle.kill(SERVER);
    fettle.restart(SERVER, None).await.unwrap();
    go.send(()).unwrap();
    let task = ended(&fettle, &task).await;
    assert_solved_once(&fettle, issue, &task).await;
    let posted = fettle.forge.requests().iter().filter(|r| r.method == "POST" && r.path.ends_with("/comments")).count();
    assert_eq!(posted, 1, "all others are edits");
    let kinds: Vec<_> = task["effects"].as_array().unwrap().iter().map(|effect| effect["kind"].clone()).collect();
    assert_eq!(kinds, ["progress", "push", "pull_request", "comment", "labels"]);
}

#[tokio::test]
async fn a_stopped_task_does_not_leave_a_comment_that_tells_of_work() {
    let (fettle, issue, task, go) = fixing().await;
    fettle.comment(issue, fettle_tests::world::MAINTAINER, "/stop").await.unwrap();
    says(&fettle, issue, "The work on this was stopped, as asked. No pull request was opened.").await;
    assert_eq!(ended(&fettle, &task).await["state"], json!("cancelled"));
    drop(go);
}

#[tokio::test]
async fn an_edit_whose_answer_is_lost_is_not_a_second_comment() {
    let (fettle, issue, task, go) = fixing().await;
    fettle.forge.inject(Fault::on("PATCH", "/repos/*/*/issues/comments/*", Act::DropAfter).times(2));
    fettle.forge.inject(Fault::on("GET", COMMENTS, Act::Fail(503)));
    go.send(()).unwrap();
    let task = ended(&fettle, &task).await;
    assert_solved_once(&fettle, issue, &task).await;
}
