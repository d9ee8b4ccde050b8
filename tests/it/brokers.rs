//! The real programs with a real broker between them: what it brings and tells, and that it can be lost.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;
use std::time::Duration;

use fettle_tests::brokers::rabbitmq::RabbitServer;
use fettle_tests::brokers::redis::{RedisServer, Settings};
use fettle_tests::skip::skip;
use fettle_tests::world::repository;
use fettle_tests::world::{Layout, MAINTAINER, PATIENCE, Setup, TestBox, program};
use futures::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::webhook::assert_solved_once;

fn setup(layout: Layout, broker: &str) -> Setup<'_> {
    Setup { layout, broker: Some(broker), ..Setup::with(repository::solving().script()) }
}

/// `fettle submit --to`, as a person types it.
fn submit(fettle: &TestBox, broker: &str, issue: u64, user: &str) {
    let repo = fettle.forge.clone_url(&fettle.repo);
    let mut command = Command::new(program("fettle").unwrap());
    command.args(["submit", "--to", broker, "--repo", &repo, "--issue", &issue.to_string(), "--user", user]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn soon<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// `kind`s of the announcements of one Task, in their order.
fn told(announced: &[Value]) -> Vec<&str> {
    announced.iter().map(|body| body["kind"].as_str().unwrap()).collect()
}

const WHOLE_STORY: [&str; 4] = ["TaskCreated", "RunCompleted", "PullRequestCreated", "TaskCompleted"];

async fn announced(redis: &RedisServer) -> Vec<Value> {
    type Entry = (String, Vec<String>);
    let entries: Vec<Entry> = redis.say("XRANGE fettle.events - +").await;
    let body = |(_, fields): Entry| {
        let at = fields.iter().position(|field| field == "body").unwrap();
        serde_json::from_str(&fields[at + 1]).unwrap()
    };
    entries.into_iter().map(body).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_on_redis_becomes_a_pull_request_and_others_are_told() {
    let Some(redis) = RedisServer::start(Settings::default()).await else { return };
    let fettle = TestBox::start(setup(Layout::Two, &redis.url())).await.unwrap();
    let issue = fettle.issue();
    submit(&fettle, &redis.url(), issue, MAINTAINER);
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_solved_once(&fettle, issue, &ended).await;
    assert_eq!(ended["trigger"], "foreign", "{ended:#}");

    let story = soon("the end was announced", async || {
        let announced = announced(&redis).await;
        (told(&announced).last() == Some(&"TaskCompleted")).then_some(announced)
    })
    .await;
    assert_eq!(told(&story), WHOLE_STORY);
    for body in &story {
        assert_eq!((&body["v"], &body["task_id"]), (&json!(1), &json!(task)), "{body}");
        assert_eq!(body["correlation_id"], ended["correlation_id"], "{body}");
    }
    assert_eq!(redis.say::<u64>("XLEN agent-tasks").await, 0, "the order was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_on_rabbitmq_becomes_a_pull_request_and_others_are_told() {
    if !RabbitServer::is_installed() {
        return skip("rabbitmq-server is not installed");
    }
    let rabbit = RabbitServer::shared().await.unwrap();
    let vhost = rabbit.vhost().await.unwrap();
    let url = rabbit.url(&vhost);
    let listener = rabbit.connect(&vhost).await.unwrap();
    let channel = listener.create_channel().await.unwrap();
    let exchange = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    let (topic, none) = (lapin::ExchangeKind::Topic, FieldTable::default);
    channel.exchange_declare("fettle.events".into(), topic, exchange, none()).await.unwrap();
    channel.queue_declare("told".into(), QueueDeclareOptions::default(), none()).await.unwrap();
    let bind = QueueBindOptions::default();
    channel.queue_bind("told".into(), "fettle.events".into(), "#".into(), bind, none()).await.unwrap();
    let consume = BasicConsumeOptions::default();
    let mut events = channel.basic_consume("told".into(), "test".into(), consume, none()).await.unwrap();

    // The address holds the user, which a configuration must not.
    let (scheme, rest) = url.split_once("://").unwrap();
    let plain = format!("{scheme}://{}", rest.rsplit('@').next().unwrap());
    let fettle = TestBox::start(setup(Layout::Two, &plain)).await.unwrap();
    let issue = fettle.issue();
    submit(&fettle, &url, issue, MAINTAINER);
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_solved_once(&fettle, issue, &ended).await;
    let mut story = Vec::new();
    while told(&story).last() != Some(&"TaskCompleted") {
        let event = timeout(PATIENCE, events.next()).await.expect("an announcement comes").unwrap().unwrap();
        event.ack(BasicAckOptions::default()).await.unwrap();
        assert!(WHOLE_STORY.contains(&event.routing_key.as_str()), "{}", event.routing_key);
        story.push(serde_json::from_slice::<Value>(&event.data).unwrap());
    }
    assert_eq!(told(&story), WHOLE_STORY);
}

// The broker is empty, then dead, then back: work goes on, since all of it is in the ledger.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_wiped_and_killed_loses_no_task() {
    let Some(redis) = RedisServer::start(Settings::default()).await else { return };
    let mut fettle = TestBox::start(setup(Layout::Dashboard, &redis.url())).await.unwrap();
    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    let hanging = async || redis.say::<u64>("XLEN {fettle}:hints").await;
    soon("a hint hangs", async || (hanging().await == 1).then_some(())).await;

    redis.flush().await;
    soon("the wiped bell is rung again", async || (hanging().await == 1).then_some(())).await;

    redis.kill().await;
    fettle.start_worker(None).unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_solved_once(&fettle, issue, &ended).await;

    redis.go_on().await;
    let other = fettle.issue();
    submit(&fettle, &redis.url(), other, MAINTAINER);
    let task = fettle.api.task_opened(1, PATIENCE).await.unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_eq!(ended["state"], "done", "{ended:#}");
    assert_eq!(fettle.forge.pulls(&fettle.repo).len(), 2, "one for each issue");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_makes_no_task_lies_among_the_dead_with_its_reason() {
    let Some(redis) = RedisServer::start(Settings::default()).await else { return };
    let fettle = TestBox::start(setup(Layout::Dashboard, &redis.url())).await.unwrap();
    let (repo, issue) = (fettle.forge.clone_url(&fettle.repo), fettle.issue());
    let message = |repo: &str, issue: Value, user: &str| {
        json!({ "repo_url": repo, "issue_id": issue, "trigger_user": user }).to_string().into_bytes()
    };
    let bad: Vec<(Vec<u8>, &str)> = vec![
        (b"no json".to_vec(), "not_json"),
        (b"\xff\xfe".to_vec(), "not_utf8"),
        (vec![b'x'; 70_000], "too_large"),
        (br#"{"issue_id":1,"trigger_user":"ann"}"#.to_vec(), "missing_field:repo_url"),
        (message(&repo, json!("one"), MAINTAINER), "bad_field:issue_id"),
        (message("https://elsewhere.example/o/r", json!(issue), MAINTAINER), "unknown_host"),
        (message(&repo.replace("clamp", "nothing"), json!(issue), MAINTAINER), "not_installed"),
        (message(&repo, json!(4711), MAINTAINER), "issue_not_found"),
        (message(&repo, json!(issue), "a-user"), "not_permitted"),
        // The name of who has the key is a login like others.
        (message(&repo, json!(issue), "admin"), "not_permitted"),
    ];
    for (body, _) in &bad {
        let mut add = redis::cmd("XADD");
        redis.ask::<String>(add.arg("agent-tasks").arg("*").arg("payload").arg(&body[..])).await;
    }
    type Dead = (String, Vec<Vec<u8>>);
    let dead: Vec<Dead> = soon("all are buried", async || {
        let dead: Vec<Dead> = redis.say("XRANGE agent-tasks.dead - +").await;
        (dead.len() >= bad.len()).then_some(dead)
    })
    .await;
    assert_eq!(dead.len(), bad.len());
    let field =
        |fields: &[Vec<u8>], name: &[u8]| fields[fields.iter().position(|field| field == name).unwrap() + 1].clone();
    for (body, reason) in &bad {
        let found = dead.iter().any(|(_, fields)| {
            let (buried, why) = (field(fields, b"payload"), String::from_utf8(field(fields, b"reason")).unwrap());
            body.starts_with(&buried[..buried.len().min(60_000)]) && why.starts_with(reason)
        });
        assert!(found, "{reason}");
    }
    assert!(fettle.api.tasks().await.unwrap().is_empty());
    assert_eq!(redis.say::<u64>("XLEN agent-tasks").await, 0, "each was taken");
    submit(&fettle, &redis.url(), issue, MAINTAINER);
    fettle.api.task_opened(0, PATIENCE).await.unwrap();
}
