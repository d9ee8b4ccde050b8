//! What a model says is read where people watch while it still says it, with the real programs and a server that streams slowly.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ops::ControlFlow;
use std::time::Duration;

use fettle_tests::model::Answer;
use fettle_tests::world::{Layout, PATIENCE, Setup, TestBox, repository};
use serde_json::{Value, json};

use super::webhook::assert_solved_once;

/// Some ten pieces take a second or two.
const PACE: Duration = Duration::from_millis(150);

fn said(words: &Value) -> String {
    let pieces = words["pieces"].as_array().map(Vec::as_slice).unwrap_or_default();
    pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect()
}

async fn words_come_before_their_step(layout: Layout) {
    let look = Answer::call("view", json!({ "path": "src/clamp.sh" }))
        .reasoning("Clamp, so a comparison. ")
        .saying("The comparison with HIGH is suspicious. ")
        .paced(PACE);
    let go = repository::finish("verdict: go – src/clamp.sh prints LOW where it should print HIGH");
    let script = repository::solving().phase("triage", [look, go]).script();
    let fettle = TestBox::start(Setup { layout, ..Setup::with(script) }).await.unwrap();
    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    let (mut seen, mut steps) = (String::new(), 0);
    let first = fettle.api.follow_words(&task, PATIENCE, |told| {
        if told["what"]["type"] == "step" && told["what"]["kind"] == "model_call" {
            steps += 1;
        }
        if told["whole"] == json!(true) {
            seen.clear();
        }
        seen.push_str(&said(told));
        match seen.contains("suspicious") && seen.contains("Clamp, so") {
            true => ControlFlow::Break(told.clone()),
            false => ControlFlow::Continue(()),
        }
    });
    let first = first.await.unwrap().expect("words come before the Task ends");
    assert_eq!((steps, &first["run"]), (0, &json!(1)), "the answer was not whole yet");
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_solved_once(&fettle, issue, &ended).await;
}

#[tokio::test]
async fn words_of_a_worker_in_another_process_are_read_while_they_are_said() {
    words_come_before_their_step(Layout::Two).await;
}

#[tokio::test]
async fn words_are_read_while_they_are_said_in_one_process() {
    words_come_before_their_step(Layout::One).await;
}
