//! Every webhook body that GitHub's own SDK publishes, sent to a running `fettle up`.

use std::collections::BTreeMap;

use fettle_tests::downloads;
use fettle_tests::forge::Role;
use fettle_tests::model::Script;
use fettle_tests::world::repository::finish;
use fettle_tests::world::{PATIENCE, Setup, TestBox};
use serde_json::Value;

/// The label that the published examples set.
const THEIR_LABEL: &str = "bug";
const THEIR_USER: &str = "Codertocat";

fn examples() -> Option<Vec<(String, Value)>> {
    let file = downloads::npm_file("@octokit/webhooks-examples", "7.6.1", "api.github.com/index.json")?;
    let events: Vec<Value> = serde_json::from_str(&fs_err::read_to_string(file).unwrap()).unwrap();
    let of = |event: &Value| {
        let name = event["name"].as_str().unwrap().to_owned();
        event["examples"].as_array().unwrap().iter().map(move |body| (name.clone(), body.clone())).collect::<Vec<_>>()
    };
    Some(events.iter().flat_map(of).collect())
}

/// Sends all; how often each event was answered with each verdict.
async fn send(fettle: &TestBox, examples: &[(String, Value)]) -> BTreeMap<(String, String), usize> {
    let mut verdicts = BTreeMap::new();
    for (event, body) in examples {
        let answer = fettle.forge.deliver(&fettle.api.webhooks(), event, body, &fettle.webhook_secret).await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{event} was answered with {status}: {text}");
        let said: Value = serde_json::from_str(&text).unwrap();
        let verdict = said["verdict"].as_str().unwrap().to_owned();
        assert_eq!((event == "ping"), verdict == "pong" && status == 200, "{event}: {status} {text}");
        *verdicts.entry((event.clone(), verdict)).or_default() += 1;
    }
    verdicts
}

fn stored(verdicts: &BTreeMap<(String, String), usize>) -> usize {
    verdicts.iter().filter(|((_, verdict), _)| verdict == "new").map(|(_, count)| count).sum()
}

#[tokio::test]
async fn published_examples_about_repositories_that_we_do_not_know_are_closed() {
    let Some(examples) = examples() else { return };
    let setup = Setup::with(Script::always(finish("verdict: decline – an example")));
    let fettle = TestBox::start(Setup { label: THEIR_LABEL, ..setup }).await.unwrap();
    let verdicts = send(&fettle, &examples).await;
    let about_issues = |event: &str| matches!(event, "issues" | "issue_comment");
    assert_eq!(stored(&verdicts), examples.iter().filter(|(event, _)| about_issues(event)).count(), "{verdicts:#?}");
    let why = fettle.closed_deliveries(stored(&verdicts)).await.unwrap();
    let unknown = why.iter().filter(|why| why.contains("the forge has no such")).count();
    let asks = |(event, body): &&(String, Value)| {
        let has_label =
            || body["issue"]["labels"].as_array().is_some_and(|all| all.iter().any(|l| l["name"] == THEIR_LABEL));
        event == "issues"
            && match body["action"].as_str().unwrap_or_default() {
                "labeled" => body["label"]["name"] == THEIR_LABEL,
                "opened" => has_label(),
                _ => false,
            }
    };
    assert_eq!(unknown, examples.iter().filter(asks).count(), "{why:#?}");
    assert!(unknown > 0, "no example asks for work");
    assert!(fettle.api.tasks().await.unwrap().is_empty());
}

#[tokio::test]
async fn published_examples_about_an_issue_that_exists_open_one_task() {
    let Some(examples) = examples() else { return };
    let setup = Setup::with(Script::always(finish("verdict: decline – an example")));
    let fettle = TestBox::start(Setup { label: THEIR_LABEL, ..setup }).await.unwrap();
    let repo = fettle.forge.create_repository("Codertocat/Hello-World", &[("README.md", "# Hello\n")]).await.unwrap();
    fettle.forge.set_role(&repo, THEIR_USER, Some(Role::Admin));
    let issue = fettle.forge.create_issue(
        &repo,
        THEIR_USER,
        "Spelling error in the README file",
        "It looks like you accidently spelled 'commit' with two 't's.",
    );
    fettle.forge.label(&repo, issue, THEIR_LABEL, THEIR_USER);
    let about_issues: Vec<_> = examples.into_iter().filter(|(event, _)| event.starts_with("issue")).collect();
    send(&fettle, &about_issues).await;
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_eq!((ended["repository"].as_str(), ended["issue"].as_u64()), (Some("Codertocat/Hello-World"), Some(issue)));
    assert_eq!((ended["state"].as_str(), ended["outcome"].as_str()), (Some("done"), Some("declined")), "{ended:#}");
    assert_eq!(fettle.api.tasks().await.unwrap().len(), 1);
}
