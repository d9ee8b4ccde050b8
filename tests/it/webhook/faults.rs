//! A forge whose writes go wrong: whatever happens to each of them, people see everything once.

use std::time::Duration;

use fettle_tests::forge::{Act, Fault};
use fettle_tests::world::{Setup, TestBox, repository};

use super::assert_solved_once;

/// Every write that a solved issue needs.
const WRITES: [&str; 4] = [
    "/octo/clamp.git/git-receive-pack",
    "/repos/octo/clamp/pulls",
    "/repos/octo/clamp/issues/*/comments",
    "/repos/octo/clamp/issues/*/labels",
];

async fn assert_survived(act: Act, lag: Duration) {
    let fettle = TestBox::start(Setup::with(repository::solving().script())).await.unwrap();
    let issue = fettle.issue();
    fettle.forge.set_read_lag(lag);
    for write in WRITES {
        fettle.forge.inject(Fault::on("POST", write, act));
    }
    let task = fettle.solve(issue).await.unwrap();
    assert_eq!(fettle.forge.faults_left(), 0, "not every write met its fault");
    assert_solved_once(&fettle, issue, &task).await;
    assert_eq!(fettle.forge.ref_updates().len(), 1);
}

#[tokio::test]
async fn writes_that_fail_are_repeated() {
    assert_survived(Act::Fail(502), Duration::ZERO).await;
}

#[tokio::test]
async fn writes_whose_connection_is_cut_before_are_repeated() {
    assert_survived(Act::Drop, Duration::ZERO).await;
}

#[tokio::test]
async fn writes_whose_answer_is_lost_are_found_and_not_repeated() {
    assert_survived(Act::DropAfter, Duration::ZERO).await;
}

#[tokio::test]
async fn writes_that_were_applied_and_answered_with_an_error_are_not_repeated() {
    assert_survived(Act::FailAfter(504), Duration::ZERO).await;
}

#[tokio::test]
async fn writes_whose_answer_is_lost_are_not_repeated_while_lists_lag() {
    assert_survived(Act::DropAfter, Duration::from_millis(1_500)).await;
}

#[tokio::test]
async fn a_limit_of_the_forge_is_waited_for() {
    assert_survived(Act::TooMany { retry_after: 1 }, Duration::ZERO).await;
}
