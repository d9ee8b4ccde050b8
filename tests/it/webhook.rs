//! From a webhook to a pull request with the real programs: `fettle up`, or dashboard and worker.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faults;
mod octokit;
mod start;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, mpsc};

use fettle_tests::forge::{Credential, Issue, Role};
use fettle_tests::model::{Answer, Fault, Phases};
use fettle_tests::world::repository::{self, finish};
use fettle_tests::world::{Auth, LABEL, Layout, MAINTAINER, PATIENCE, Setup, TestBox};
use serde_json::{Value, json};

/// Everything that a proven fix leaves on the forge, once.
pub(crate) async fn assert_solved_once(fettle: &TestBox, issue: u64, task: &Value) {
    let ended = (task["state"].as_str(), task["outcome"].as_str(), task["run"]["result"]["proof"]["level"].as_str());
    assert_eq!(ended, (Some("done"), Some("ready_pr"), Some("proven")), "{task:#}");
    let pulls = fettle.forge.pulls(&fettle.repo);
    let [Issue { number, body, pull: Some(pull), .. }] = &pulls[..] else { panic!("not one pull request: {pulls:#?}") };
    assert!(!pull.draft && pull.base == "main" && pull.commits == 1, "{pull:?}");
    assert!(body.contains(&format!("Fixes #{issue}")) && body.contains("**Proof: PROVEN**"), "{body}");
    let files = fettle.forge.git(&fettle.repo, &["diff", "--name-only", "main", &pull.head]).await.unwrap();
    assert_eq!(files, "src/clamp.sh\ntests/above_test.sh\n");
    let comments = fettle.answers_on(issue);
    assert!(
        comments.len() == 1 && comments[0].contains(&format!("Pull request #{number} fixes this")),
        "{comments:#?}"
    );
    assert_eq!(outcome_labels(fettle, issue), ["fettle: proven"]);
}

fn outcome_labels(fettle: &TestBox, issue: u64) -> Vec<String> {
    let labels = fettle.forge.issue(&fettle.repo, issue).unwrap().labels;
    labels.into_iter().filter(|label| label.starts_with("fettle:")).collect()
}

/// Nothing was written but what people can read on the issue.
fn assert_nothing_pushed(fettle: &TestBox) {
    assert_eq!(fettle.forge.ref_updates(), []);
    assert!(fettle.forge.pulls(&fettle.repo).is_empty());
}

/// A model that answers the first turn of a phase when the test says so.
pub(crate) fn holding(phases: Phases, phase: &str, then: Vec<Answer>) -> (Phases, mpsc::Sender<()>) {
    let (go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let phases = phases.phase_with(phase, move |conversation| {
        if conversation.turn() == 0 {
            // A test that is over has dropped its end.
            let _ = held.lock().unwrap().recv_timeout(PATIENCE);
        }
        then[conversation.turn()].clone()
    });
    (phases, go)
}

#[tokio::test]
async fn a_label_gets_one_proven_pull_request_one_comment_and_a_label_however_often_it_is_told() {
    let fettle = TestBox::start(Setup::with(repository::solving().script())).await.unwrap();
    let issue = fettle.issue();
    fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
    let (opened, labeled) = (
        fettle.forge.issue_opened(&fettle.repo, issue),
        fettle.forge.issue_labeled(&fettle.repo, issue, LABEL, MAINTAINER),
    );
    let id = fettle.forge.delivery_id();
    for _ in 0..2 {
        let (url, secret) = (fettle.api.webhooks(), &fettle.webhook_secret);
        let answer = fettle.forge.redeliver(&url, "issues", &labeled, secret, &id).await.unwrap();
        assert_eq!(answer.status(), 202);
    }
    fettle.deliver("issues", &opened).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_solved_once(&fettle, issue, &ended).await;

    fettle.deliver("issues", &labeled).await.unwrap();
    let known = |line: &str| line.contains("already known by").then_some(());
    fettle.process(0).logged("the late delivery is known", PATIENCE, known).await.unwrap();
    assert_eq!(fettle.api.tasks().await.unwrap().len(), 1);
    assert_solved_once(&fettle, issue, &ended).await;
}

#[tokio::test]
async fn dashboard_and_worker_do_the_same_in_two_processes() {
    let setup = Setup { layout: Layout::Two, ..Setup::with(repository::solving().script()) };
    let fettle = TestBox::start(setup).await.unwrap();
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_solved_once(&fettle, issue, &task).await;
}

#[tokio::test]
async fn an_app_writes_with_tokens_of_its_installation_and_workers_read_with_narrower_ones() {
    let setup = Setup { layout: Layout::Two, auth: Auth::App, ..Setup::with(repository::solving().script()) };
    let fettle = TestBox::start(setup).await.unwrap();
    fettle.forge.set_private(&fettle.repo, true);
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_solved_once(&fettle, issue, &task).await;
    let mut readers = 0;
    for request in fettle.forge.requests() {
        let Credential::Installation { permissions } = &request.credential else {
            assert_eq!(request.credential, Credential::App, "{} {}", request.method, request.path);
            continue;
        };
        let may_write = permissions.values().any(|level| level == "write");
        let writes = request.path.ends_with("/git-receive-pack");
        assert!(may_write || !writes, "{} {} with {permissions:?}", request.method, request.path);
        readers += usize::from(request.path.ends_with("/git-upload-pack") && !may_write);
    }
    assert!(readers > 0, "nobody fetched with a token that only reads");
}

#[tokio::test]
async fn whoever_may_not_ask_gets_nothing_and_the_delivery_is_closed() {
    let fettle = TestBox::start(Setup::with(repository::solving().script())).await.unwrap();
    let issue = fettle.issue();
    fettle.forge.set_role(&fettle.repo, "a-user", Some(Role::Triage));
    fettle.forge.label(&fettle.repo, issue, LABEL, "a-user");
    let labeled = fettle.forge.issue_labeled(&fettle.repo, issue, LABEL, "a-user");
    fettle.deliver("issues", &labeled).await.unwrap();
    for (author, text) in [
        ("a-user", "/fix"),
        ("renovate[bot]", "/fix"),
        ("fettle-machine", "/fix"),
        (MAINTAINER, "/fix\n<!-- fettle:task_1:result -->"),
        (MAINTAINER, "I would say\n/fix"),
        (MAINTAINER, "/stop"),
    ] {
        fettle.comment(issue, author, text).await.unwrap();
    }
    let mut why = fettle.closed_deliveries(7).await.unwrap();
    why.sort();
    assert_eq!(
        why,
        [
            "a bot that is not on the allow-list",
            "a comment without a command in its first line",
            "a-user has permission Triage, write is needed",
            "a-user has permission Triage, write is needed",
            "fettle-machine has permission Read, write is needed",
            "nothing to stop",
            "our own comment",
        ]
    );
    let forged = fettle.forge.deliver(&fettle.api.webhooks(), "issues", &labeled, "a secret of somebody else").await;
    assert_eq!(forged.unwrap().status(), 401);
    assert_eq!((fettle.api.tasks().await.unwrap(), fettle.model.request_count()), (vec![], 0));
    assert_nothing_pushed(&fettle);
    // Those that the test itself wrote under the names of bots.
    assert_eq!(fettle.answers_on(issue), ["/fix", "/fix"]);
}

#[tokio::test]
async fn a_comment_chooses_the_mode_and_a_second_wish_joins() {
    let triage = vec![finish("verdict: go – src/clamp.sh")];
    let (phases, go) = holding(repository::solving(), "triage", triage);
    let fettle = TestBox::start(Setup::with(phases.script())).await.unwrap();
    let issue = fettle.issue();
    fettle.comment(issue, MAINTAINER, "/fix refine\n\nPlease keep it POSIX.").await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    fettle.label(issue).await.unwrap();
    let joined = |event: &Value| match event["what"]["type"] == "task_joined" {
        true => ControlFlow::Break(event["what"]["by"].clone()),
        false => ControlFlow::Continue(()),
    };
    assert_eq!(fettle.api.follow_task(&task, PATIENCE, joined).await.unwrap(), Some(json!(MAINTAINER)));
    go.send(()).unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_eq!((ended["mode"].as_str(), ended["trigger"].as_str()), (Some("refine"), Some("comment")));
    let asked =
        fettle.model.requests().iter().any(|request| request.conversation().messages[1].text.contains("keep it POSIX"));
    assert!(asked, "the model never saw what stands below the command");
    assert_eq!(fettle.api.tasks().await.unwrap().len(), 1);
    assert_solved_once(&fettle, issue, &ended).await;
    let head = fettle.forge.pulls(&fettle.repo)[0].pull.clone().unwrap().head;
    assert_eq!(head, format!("ai-agent/refine-issue-{issue}"));
}

#[tokio::test]
async fn stop_ends_a_run_at_once_and_its_workspace_is_gone() {
    let hangs = Answer::empty().with_fault(Fault::Stall(PATIENCE * 2));
    let script = repository::triage().phase("reproduce", [hangs]).script();
    let fettle = TestBox::start(Setup::with(script)).await.unwrap();
    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    assert!(fettle.model.wait_for_requests(3, PATIENCE).await);
    assert_eq!(fettle.workspaces().len(), 1);
    fettle.comment(issue, MAINTAINER, "/stop").await.unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_eq!(ended["state"], "cancelled", "{ended:#}");
    let let_go = |line: &str| line.contains("letting go of").then_some(());
    fettle.process(0).logged("the worker has let go", PATIENCE, let_go).await.unwrap();
    assert_eq!(fettle.workspaces(), [""; 0]);
    assert!(fettle.model.wait_for_abandoned(1, PATIENCE).await);
    assert_nothing_pushed(&fettle);
}

/// What a person does to the issue while a Run works on it; then nothing is pushed and the comment says why.
async fn assert_withheld(change: impl FnOnce(&TestBox, u64), why: &str) {
    let (phases, go) = holding(repository::solving(), "fix", repository::fixing());
    let fettle = TestBox::start(Setup::with(phases.script())).await.unwrap();
    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    let in_fix = |event: &Value| match event["what"]["title"] == "the new test fails on the base" {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    assert_eq!(fettle.api.follow_task(&task, PATIENCE, in_fix).await.unwrap(), Some(()));
    change(&fettle, issue);
    go.send(()).unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_eq!(ended["state"], "done");
    assert_nothing_pushed(&fettle);
    let comments = fettle.answers_on(issue);
    assert!(comments.len() == 1 && comments[0].contains(why), "{comments:#?}");
    assert_eq!(outcome_labels(&fettle, issue), ["fettle: needs a person"]);
}

#[tokio::test]
async fn an_issue_closed_meanwhile_gets_no_push() {
    let close = |fettle: &TestBox, issue| fettle.forge.set_open(&fettle.repo, issue, false, "a-user");
    assert_withheld(close, "the issue was closed meanwhile").await;
}

#[tokio::test]
async fn a_bot_on_the_list_may_ask_though_no_forge_says_that_it_may_write() {
    let bot = "renovate[bot]";
    let setup = Setup { allowed_bot: Some(bot), ..Setup::with(repository::solving().script()) };
    let fettle = TestBox::start(setup).await.unwrap();
    let issue = fettle.issue();
    fettle.comment(issue, bot, "/fix").await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_eq!((ended["actor"].as_str(), ended["outcome"].as_str()), (Some(bot), Some("ready_pr")), "{ended:#}");
}

#[tokio::test]
async fn an_issue_closed_before_a_worker_came_costs_no_model_call() {
    let setup = Setup { layout: Layout::Dashboard, ..Setup::with(repository::solving().script()) };
    let mut fettle = TestBox::start(setup).await.unwrap();
    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    fettle.forge.set_open(&fettle.repo, issue, false, "a-user");
    fettle.start_worker(None).unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_eq!((ended["outcome"].as_str(), fettle.model.request_count()), (Some("declined"), 0), "{ended:#}");
    assert_nothing_pushed(&fettle);
    let comments = fettle.answers_on(issue);
    assert!(comments.len() == 1 && comments[0].contains("the issue was closed meanwhile"), "{comments:#?}");
}

#[tokio::test]
async fn a_label_taken_off_meanwhile_takes_the_wish_back() {
    let unlabel = |fettle: &TestBox, issue| fettle.forge.unlabel(&fettle.repo, issue, LABEL, MAINTAINER);
    assert_withheld(unlabel, "was taken off meanwhile").await;
}

#[tokio::test]
async fn a_model_that_never_fixes_leaves_a_comment_with_what_it_learned() {
    let script = repository::triage()
        .phase("reproduce", repository::reproduction())
        .phase_with("fix", |_| finish("I changed nothing"))
        .phase("notes", [Answer::text("The comparison with HIGH in src/clamp.sh prints $2.")])
        .script();
    let fettle = TestBox::start(Setup::with(script)).await.unwrap();
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_nothing_pushed(&fettle);
    let comments = fettle.answers_on(issue);
    assert!(comments.len() == 1 && comments[0].contains("> The comparison with HIGH in src/clamp.sh"), "{comments:#?}");
    assert_eq!(outcome_labels(&fettle, issue), ["fettle: needs a person"], "{task:#}");
}

#[tokio::test]
async fn a_fix_without_a_test_is_a_draft_that_says_so() {
    let script = repository::triage()
        .phase("reproduce", [finish("no test: there is no way to test this")])
        .phase("fix", repository::fixing())
        .phase_with("repair", |_| finish("Clamp to the upper limit"))
        .script();
    let fettle = TestBox::start(Setup::with(script)).await.unwrap();
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_eq!(task["outcome"], "draft_pr", "{task:#}");
    let pulls = fettle.forge.pulls(&fettle.repo);
    assert!(pulls.len() == 1 && pulls[0].pull.as_ref().is_some_and(|pull| pull.draft), "{pulls:#?}");
    let body = &pulls[0].body;
    assert!(body.starts_with("**Not proven:**\n\n- ") && body.contains(&format!("Refs #{issue}")), "{body}");
    let comments = fettle.answers_on(issue);
    assert!(comments.len() == 1 && comments[0].starts_with("Draft pull request #"), "{comments:#?}");
    assert_eq!(outcome_labels(&fettle, issue), ["fettle: draft"]);
}

#[tokio::test]
async fn what_a_model_looks_for_in_the_sandbox_holds_no_secret() {
    let prying = "env; cat /proc/*/environ ~/.netrc ../../*/* ../../../../*/* /tmp/*/* 2>/dev/null | head -c 20000; id";
    let answers = Arc::new([Answer::call("bash", json!({ "command": prying })), finish("verdict: decline – I pry")]);
    let script = Phases::default().phase("triage", answers.to_vec()).script();
    let fettle = TestBox::start(Setup::with(script)).await.unwrap();
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_eq!(task["outcome"], "declined", "{task:#}");
    // The box looks for its secrets in what the model read; here only that it read anything at all.
    let told = fettle.model.requests()[1].conversation().last_text().to_owned();
    assert!(told.contains("uid="), "{told}");
}
