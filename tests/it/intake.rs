//! Work that no webhook told of: labels that are looked for, deliveries that are asked for again, with the real programs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;

use fettle_tests::forge::{Act, Fault, Forge};
use fettle_tests::world::{Auth, LABEL, MAINTAINER, PATIENCE, SERVER, Setup, TestBox, message, repository};
use serde_json::Value;

use super::webhook::assert_solved_once;

const LIST: &str = "/repos/octo/clamp/issues";
const ATTEMPTS: &str = "/app/hook/deliveries";

fn polling() -> Setup<'static> {
    Setup {
        webhooks: false,
        forge: "intake = 'poll'\npoll_every = '200ms'",
        ..Setup::with(repository::solving().script())
    }
}

/// An App whose lost deliveries are looked for, beside a look at its repositories.
fn redelivering() -> Setup<'static> {
    Setup {
        auth: Auth::App,
        forge: "poll_every = '300ms'\nredeliver_every = '300ms'",
        ..Setup::with(repository::solving().script())
    }
}

fn answered(forge: &Forge, path: &str, status: u16) -> usize {
    forge.requests().iter().filter(|request| request.path == path && request.status == Some(status)).count()
}

/// Waits for `more` further answers of the forge to a question.
async fn asked_again(fettle: &TestBox, path: &str, more: usize) {
    let answers = |forge: &Forge| answered(forge, path, 200) + answered(forge, path, 304);
    let wanted = answers(&fettle.forge) + more;
    fettle.forge.until("it was asked again", PATIENCE, |forge| answers(forge) >= wanted).await.unwrap();
}

async fn count_tasks(fettle: &TestBox) -> usize {
    fettle.api.tasks().await.unwrap().len()
}

/// The Task that was opened as the `nth`, after its end.
async fn ended(fettle: &TestBox, nth: usize) -> Value {
    let task = fettle.api.task_opened(nth, PATIENCE).await.unwrap();
    fettle.api.task_ended(&task, PATIENCE).await.unwrap()
}

#[tokio::test]
async fn a_label_is_found_without_any_webhook_and_again_only_when_it_is_set_again() {
    let mut fettle = TestBox::start(polling()).await.unwrap();
    let issue = fettle.issue();
    fettle.forge.until("an answer costs nothing", PATIENCE, |forge| answered(forge, LIST, 304) > 0).await.unwrap();
    fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
    let task = ended(&fettle, 0).await;
    assert_solved_once(&fettle, issue, &task).await;
    assert_eq!((task["trigger"].as_str(), task["actor"].as_str()), (Some("label"), Some(MAINTAINER)));

    // Our own comment and label have changed the issue, and so does somebody who says something.
    fettle.forge.comment(&fettle.repo, issue, "a-user", "Thanks!");
    asked_again(&fettle, LIST, 4).await;
    assert_eq!(count_tasks(&fettle).await, 1);

    fettle.kill(SERVER);
    fettle.restart(SERVER, None).await.unwrap();
    asked_again(&fettle, LIST, 4).await;
    assert_eq!(count_tasks(&fettle).await, 1, "found once more after a new start");
    assert_solved_once(&fettle, issue, &task).await;

    fettle.forge.unlabel(&fettle.repo, issue, LABEL, MAINTAINER);
    fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
    let again = ended(&fettle, 1).await;
    assert_eq!((again["generation"].as_u64(), again["outcome"].as_str()), (Some(2), Some("ready_pr")), "{again:#}");
    asked_again(&fettle, LIST, 4).await;
    assert_eq!((count_tasks(&fettle).await, fettle.forge.pulls(&fettle.repo).len()), (2, 2));
}

#[tokio::test]
async fn what_was_labelled_while_nobody_looked_is_found_at_the_next_start() {
    let mut fettle = TestBox::start(polling()).await.unwrap();
    asked_again(&fettle, LIST, 2).await;
    fettle.kill(SERVER);
    let issue = fettle.issue();
    fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
    fettle.restart(SERVER, None).await.unwrap();
    let task = ended(&fettle, 0).await;
    assert_solved_once(&fettle, issue, &task).await;
}

#[tokio::test]
async fn whoever_may_not_ask_is_not_heard_by_looking_either() {
    let fettle = TestBox::start(polling()).await.unwrap();
    let issue = fettle.issue();
    fettle.forge.label(&fettle.repo, issue, LABEL, "a-user");
    let why = fettle.closed_deliveries(1).await.unwrap();
    assert_eq!(why, ["a-user has permission Read, write is needed"]);
    let bots = fettle.issue();
    fettle.forge.label(&fettle.repo, bots, LABEL, "renovate[bot]");
    let why = fettle.closed_deliveries(2).await.unwrap();
    assert_eq!(why[1], "a bot that is not on the allow-list");
    asked_again(&fettle, LIST, 3).await;
    let judged = fettle.log().iter().filter(|line| line.contains(" asks for nothing: ")).count();
    assert_eq!((judged, count_tasks(&fettle).await), (2, 0), "judged once each");
}

#[tokio::test]
async fn a_forge_that_limits_us_is_left_alone_and_asked_again_afterwards() {
    let fettle = TestBox::start(polling()).await.unwrap();
    fettle.forge.inject(Fault::on("GET", LIST, Act::TooMany { retry_after: 2 }));
    let limited = |line: &str| message(line)?.contains("limits our rate").then_some(());
    fettle.process(SERVER).logged("it is limited", PATIENCE, limited).await.unwrap();
    let issue = fettle.issue();
    fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
    let again = |line: &str| message(line)?.contains("poll works again").then_some(());
    fettle.process(SERVER).logged("it looks again", PATIENCE, again).await.unwrap();
    let requests = fettle.forge.requests();
    let limit = requests.iter().position(|request| request.fault.is_some()).unwrap();
    assert_eq!(requests[limit + 1].path, LIST, "something else was asked meanwhile");
    let task = ended(&fettle, 0).await;
    assert_solved_once(&fettle, issue, &task).await;

    let list = fettle.api.get("/api/v1/system/reconcilers").await.unwrap();
    let items = list["items"].as_array().unwrap();
    let names: BTreeSet<&str> = items.iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["accounts", "additions", "audit", "poll", "progress", "sweep"]));
    let poll = items.iter().find(|one| one["name"] == "poll").unwrap();
    assert_eq!((poll["period_s"].as_f64(), poll["failures_in_a_row"].as_u64()), (Some(0.2), Some(0)), "{poll:#}");
    let (_, metrics) = fettle.api.health("/metrics").await.unwrap();
    let failed = "fettle_reconciler_runs_total{name=\"poll\",outcome=\"failed\"} 1\n";
    assert!(metrics.contains(failed), "{metrics}");
}

#[tokio::test]
async fn a_webhook_that_found_nobody_is_fetched_after_the_start() {
    let mut fettle = TestBox::start(redelivering()).await.unwrap();
    fettle.forge.set_hook(&fettle.api.webhooks(), &fettle.webhook_secret);
    let issue = fettle.issue();
    fettle.kill(SERVER);
    // A comment, which nobody looks for: only its delivery can tell of it.
    let comment = fettle.forge.comment(&fettle.repo, issue, MAINTAINER, "/fix");
    let payload = fettle.forge.comment_created(&fettle.repo, issue, comment);
    let guid = fettle.forge.send_hook("issue_comment", &payload).await;
    assert_eq!(fettle.forge.hook_attempts().pop().unwrap().status, 502);
    fettle.restart(SERVER, None).await.unwrap();
    let task = ended(&fettle, 0).await;
    assert_eq!(task["trigger"], "comment");
    assert_solved_once(&fettle, issue, &task).await;

    asked_again(&fettle, ATTEMPTS, 4).await;
    let attempts: Vec<(bool, u16)> =
        fettle.forge.hook_attempts().iter().filter(|a| a.guid == guid).map(|a| (a.redelivery, a.status)).collect();
    assert_eq!(attempts, [(false, 502), (true, 202)], "what has arrived is not asked for again");
    assert_eq!(count_tasks(&fettle).await, 1);
}

#[tokio::test]
async fn a_lost_webhook_a_redelivery_a_look_and_another_webhook_are_one_wish() {
    let mut fettle = TestBox::start(redelivering()).await.unwrap();
    fettle.forge.set_hook(&fettle.api.webhooks(), &fettle.webhook_secret);
    let issue = fettle.issue();
    fettle.kill(SERVER);
    fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
    let labeled = fettle.forge.issue_labeled(&fettle.repo, issue, LABEL, MAINTAINER);
    let lost = fettle.forge.send_hook("issues", &labeled).await;
    fettle.restart(SERVER, None).await.unwrap();
    let task = ended(&fettle, 0).await;
    assert_solved_once(&fettle, issue, &task).await;
    let arrived = |forge: &Forge| forge.hook_attempts().iter().any(|a| a.guid == lost && a.status == 202);
    fettle.forge.until("the lost one arrives", PATIENCE, arrived).await.unwrap();
    fettle.forge.send_hook("issues", &fettle.forge.issue_opened(&fettle.repo, issue)).await;
    // Each way has brought it: two deliveries, and what was found.
    for way in ["already known by github:", "poll:"] {
        let told = |line: &str| message(line)?.contains(way).then_some(());
        fettle.process(SERVER).logged("each way has brought it", PATIENCE, told).await.unwrap();
    }
    asked_again(&fettle, LIST, 4).await;
    asked_again(&fettle, ATTEMPTS, 4).await;
    assert_eq!(count_tasks(&fettle).await, 1);
    assert_solved_once(&fettle, issue, &task).await;
}

#[tokio::test]
async fn a_label_that_is_older_than_the_issues_last_task_is_not_worked_on() {
    let fettle = TestBox::start(Setup { webhooks: true, ..polling() }).await.unwrap();
    let issue = fettle.issue();
    // Found and opened by looking; then the forge forgets to tell of a later wish until it has been fulfilled.
    fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
    let first = ended(&fettle, 0).await;
    assert_solved_once(&fettle, issue, &first).await;
    let labeled = fettle.forge.issue_labeled(&fettle.repo, issue, LABEL, MAINTAINER);
    let set_at = fettle.forge.issue(&fettle.repo, issue).unwrap().events[0].at;
    let later = |forge: &Forge| forge.clock() > set_at;
    fettle.forge.until("the comment is later than the label", PATIENCE, later).await.unwrap();
    fettle.comment(issue, MAINTAINER, "/fix").await.unwrap();
    ended(&fettle, 1).await;
    fettle.deliver("issues", &labeled).await.unwrap();
    let why = fettle.closed_deliveries(1).await.unwrap();
    assert_eq!(why, ["the label is older than the issue's last Task"]);
    assert_eq!(count_tasks(&fettle).await, 2);
}
