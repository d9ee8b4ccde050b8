//! Webhook bodies: the emulator's, and every example that GitHub's own SDK publishes.

use std::time::Duration;

use fettle_domain::incoming::{Incoming, IncomingUser, IssueChange};
use fettle_github::webhook::{normalise, sign, verify};
use fettle_tests::{downloads, forge};
use serde_json::Value;

use super::World;

fn issue(event: &str, payload: &Value) -> fettle_domain::incoming::IncomingIssue {
    match normalise(event, payload.to_string().as_bytes()).unwrap() {
        Incoming::Issue(incoming) => *incoming,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_webhook_says_is_what_happened() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    let opened = issue("issues", &world.forge.issue_opened(&world.name, world.issue));
    assert_eq!((opened.change, opened.repo), (IssueChange::Opened, repo));
    assert_eq!((opened.issue.title.as_str(), opened.issue.body.as_str()), ("It breaks", "Badly."));
    assert!(opened.issue.open && !opened.issue.locked && !opened.issue.is_pull_request);
    assert_eq!(opened.sender, opened.issue.author);

    world.forge.label(&world.name, world.issue, "ai-help", "carol");
    let labeled = issue("issues", &world.forge.issue_labeled(&world.name, world.issue, "ai-help", "carol"));
    assert_eq!(labeled.change, IssueChange::Labeled { label: "ai-help".to_owned() });
    let carol = IncomingUser { id: world.forge.add_user("carol"), login: "carol".to_owned(), is_bot: false };
    assert_eq!((labeled.sender, labeled.issue.labels), (carol, vec!["ai-help".to_owned()]));

    let id = world.forge.comment(&world.name, world.issue, "ci[bot]", "@fettle fix");
    let commented = issue("issue_comment", &world.forge.comment_created(&world.name, world.issue, id));
    let IssueChange::Commented { comment } = commented.change else { panic!("{:?}", commented.change) };
    assert_eq!((comment.id, comment.body.as_str(), comment.author.is_bot), (id, "@fettle fix", true));
    assert_eq!(comment.author, commented.sender);
}

#[tokio::test]
async fn a_delivery_carries_a_signature_over_its_bytes() {
    use axum::extract::State;
    let (seen, mut arrivals) = tokio::sync::mpsc::channel(1);
    let receive = async |State(seen): State<tokio::sync::mpsc::Sender<_>>,
                         headers: axum::http::HeaderMap,
                         body: axum::body::Bytes| {
        seen.send((headers, body)).await.unwrap();
        axum::http::StatusCode::ACCEPTED
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/hook", axum::routing::post(receive)).with_state(seen);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, router).await });

    let world = World::with_app().await;
    let payload = world.forge.issue_opened(&world.name, world.issue);
    let answer = world.forge.deliver(&url, "issues", &payload, "s3cret").await.unwrap();
    assert_eq!(answer.status(), 202);
    let (headers, body) = tokio::time::timeout(Duration::from_secs(5), arrivals.recv()).await.unwrap().unwrap();
    let signature = headers["x-hub-signature-256"].to_str().unwrap();
    assert!(verify(&["s3cret".into()], &body, signature));
    assert!(!verify(&["other".into()], &body, signature));
    assert_eq!(sign(&"s3cret".into(), &body), forge::webhook::sign("s3cret", &body));
    assert_eq!(headers["x-github-event"], "issues");
    assert_eq!(normalise("issues", &body).unwrap(), normalise("issues", payload.to_string().as_bytes()).unwrap());
}

#[test]
fn every_published_example_is_understood_or_ignored() {
    let Some(file) = downloads::npm_file("@octokit/webhooks-examples", "7.6.1", "api.github.com/index.json") else {
        return;
    };
    let events: Vec<Value> = serde_json::from_slice(&fs_err::read(file).unwrap()).unwrap();
    let (mut issues, mut others) = (0, 0);
    for event in &events {
        let name = event["name"].as_str().unwrap();
        for example in event["examples"].as_array().unwrap() {
            let meant = normalise(name, example.to_string().as_bytes());
            match meant.unwrap_or_else(|e| panic!("{name}.{}: {e:?}", example["action"])) {
                Incoming::Ping => assert_eq!(name, "ping"),
                Incoming::Other { event, .. } => {
                    assert_eq!(event, name);
                    others += 1;
                }
                Incoming::Issue(incoming) => {
                    issues += 1;
                    let action = example["action"].as_str().unwrap();
                    assert_eq!(incoming.issue.number, example["issue"]["number"].as_u64().unwrap());
                    assert_eq!(incoming.repo.name.to_string(), example["repository"]["full_name"]);
                    assert_eq!(incoming.repo.installation, example["installation"]["id"].as_u64());
                    assert_eq!(incoming.sender.login, example["sender"]["login"]);
                    match (&incoming.change, name, action) {
                        (IssueChange::Opened, "issues", "opened") => {}
                        (IssueChange::Labeled { label }, "issues", "labeled") => {
                            assert_eq!(*label, example["label"]["name"]);
                        }
                        (IssueChange::Commented { comment }, "issue_comment", "created") => {
                            assert_eq!(comment.body, example["comment"]["body"]);
                        }
                        (IssueChange::Other { name: told }, _, _) => assert_eq!(*told, format!("{name}.{action}")),
                        other => panic!("{other:?}"),
                    }
                }
            }
            // Nothing is taken for granted: no part that is missing may panic.
            let object = example.as_object().unwrap();
            for key in object.keys() {
                let mut broken = object.clone();
                broken.insert(key.clone(), Value::Array(Vec::new()));
                let _any = normalise(name, Value::Object(broken.clone()).to_string().as_bytes());
                broken.remove(key);
                let _any = normalise(name, Value::Object(broken).to_string().as_bytes());
            }
        }
    }
    assert!(issues >= 30 && others >= 100, "{issues} issue events and {others} others");
}
