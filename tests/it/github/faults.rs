//! Calls that fail: what the adapter says about them, and that it never sends a write twice.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use fettle_app::ports::forge::{Forge, ForgeError, ForgeReader, PullSpec};
use fettle_domain::repo::Repo;
use fettle_tests::forge::{Act, Fault};

use super::World;

type Call<'a> = Pin<Box<dyn Future<Output = Result<(), ForgeError>> + Send + 'a>>;

/// The error's name and, for a limit, the seconds to wait.
fn named(result: &Result<(), ForgeError>) -> (&'static str, u64) {
    match result {
        Ok(()) => ("ok", 0),
        Err(ForgeError::NoAnswer(_)) => ("no answer", 0),
        Err(ForgeError::RateLimited { wait }) => ("limited", wait.as_secs()),
        Err(ForgeError::Unavailable(_)) => ("unavailable", 0),
        Err(ForgeError::Refused(_)) => ("refused", 0),
        Err(ForgeError::Denied(_)) => ("denied", 0),
        Err(ForgeError::NotFound(_)) => ("not found", 0),
    }
}

/// What there is to be changed.
struct Scene {
    repo: Repo,
    comment: u64,
    pull: u64,
    spec: PullSpec,
}

impl Scene {
    async fn of(world: &World) -> Self {
        let repo = world.repo().await;
        world.forge.label(&world.name, world.issue, "old", "alice");
        let first = world.branch("ai-agent/first").await;
        world.github.open_pull(&repo, &first).await.unwrap();
        let pull = world.forge.pulls(&world.name)[0].number;
        let comment = world.github.put_comment(&repo, world.issue, None, "old").await.unwrap();
        let spec = world.branch("ai-agent/second").await;
        Self { repo, comment, pull, spec }
    }
}

/// Every write of the port: method, path pattern and the call.
fn writes<'a>(world: &'a World, scene: &'a Scene) -> Vec<(&'static str, &'static str, Call<'a>)> {
    let (github, issue) = (&world.github, world.issue);
    let Scene { repo, comment, pull, spec } = scene;
    let [open, post, edit]: [Call<'a>; 3] = [
        Box::pin(async move { github.open_pull(repo, spec).await.map(drop) }),
        Box::pin(async move { github.put_comment(repo, issue, None, "new").await.map(drop) }),
        Box::pin(async move { github.put_comment(repo, issue, Some(*comment), "new").await.map(drop) }),
    ];
    vec![
        ("POST", "/repos/*/*/pulls", open),
        ("PATCH", "/repos/*/*/pulls/*", github.edit_pull_body(repo, *pull, "new")),
        ("POST", "/repos/*/*/issues/*/comments", post),
        ("PATCH", "/repos/*/*/issues/comments/*", edit),
        (
            "POST",
            "/repos/*/*/issues/*/labels",
            Box::pin(async move { github.add_labels(repo, issue, &["new".to_owned()]).await }),
        ),
        ("DELETE", "/repos/*/*/issues/*/labels/*", github.remove_label(repo, issue, "old")),
        ("DELETE", "/repos/*/*/issues/comments/*", github.delete_comment(repo, *comment)),
    ]
}

/// Calls whose answer tells an id or more: a broken one is no answer.
const READ_ANSWERS: [(&str, &str); 3] =
    [("POST", "/repos/*/*/pulls"), ("POST", "/repos/*/*/issues/*/comments"), ("PATCH", "/repos/*/*/issues/comments/*")];

/// Everything that the writes change, to be compared.
fn traces(world: &World) -> (String, String) {
    let issue = world.forge.issue(&world.name, world.issue).unwrap();
    let comments: Vec<_> = issue.comments.iter().map(|c| (c.id, c.edits, &c.body)).collect();
    let pulls = world.forge.pulls(&world.name);
    let pulls: Vec<_> = pulls.iter().map(|pull| (pull.number, &pull.body)).collect();
    (format!("{comments:?} {:?}", issue.labels), format!("{pulls:?}"))
}

#[tokio::test]
async fn a_write_is_sent_once_and_its_result_told_for_what_it_is() {
    for (act, applied, expected) in [
        (Act::FailAfter(502), true, ("no answer", 0)),
        (Act::DropAfter, true, ("no answer", 0)),
        (Act::Garble, true, ("no answer", 0)),
        (Act::Fail(503), false, ("no answer", 0)),
        (Act::Drop, false, ("no answer", 0)),
        (Act::Fail(422), false, ("refused", 0)),
        (Act::Fail(403), false, ("denied", 0)),
        (Act::TooMany { retry_after: 7 }, false, ("limited", 7)),
        (Act::Secondary { retry_after: Some(42) }, false, ("limited", 42)),
        (Act::Secondary { retry_after: None }, false, ("limited", 60)),
        (Act::TooMany { retry_after: 999_999 }, false, ("limited", 3600)),
    ] {
        // Each act meets a fresh forge; each write within it its own fault.
        let world = World::with_tokens().await;
        let scene = Scene::of(&world).await;
        let writes = writes(&world, &scene);
        assert_eq!(writes.len(), 7);
        for (method, path, call) in writes {
            world.forge.inject(Fault::on(method, path, act));
            let before = (world.forge.requests().len(), traces(&world));
            let result = call.await;
            let context = format!("{method} {path} with {act:?}: {result:?}");
            let whole =
                if act == Act::Garble && !READ_ANSWERS.contains(&(method, path)) { ("ok", 0) } else { expected };
            assert_eq!(named(&result), whole, "{context}");
            let sent = world.forge.requests().split_off(before.0);
            assert_eq!(sent.len(), 1, "{context}: {sent:?}");
            assert_eq!(sent[0].fault, Some(act), "{context}");
            assert_eq!(traces(&world) != before.1, applied, "{context}");
        }
        assert_eq!(world.forge.faults_left(), 0);
    }
}

/// All at once, because each ends only by the adapter's own timeout.
#[tokio::test]
async fn a_write_that_hangs_ends_by_our_timeout_and_is_not_repeated() {
    let world = World::with_tokens().await;
    let scene = Scene::of(&world).await;
    let writes = writes(&world, &scene);
    let (sent, traced) = (world.forge.requests().len(), traces(&world));
    let calls = writes.into_iter().map(|(method, path, call)| {
        world.forge.inject(Fault::on(method, path, Act::HangAfter));
        call
    });
    for result in futures::future::join_all(calls).await {
        assert_eq!(named(&result), ("no answer", 0), "{result:?}");
    }
    let sent = world.forge.requests().split_off(sent);
    assert_eq!(sent.len(), 7);
    assert!(sent.iter().all(|request| request.status.is_none() && request.fault == Some(Act::HangAfter)));
    assert_ne!(traces(&world), traced);
}

#[tokio::test]
async fn a_read_that_fails_is_just_not_available() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    for (act, expected) in [
        (Act::Fail(500), ("unavailable", 0)),
        (Act::Drop, ("unavailable", 0)),
        (Act::Hang, ("unavailable", 0)),
        (Act::Garble, ("unavailable", 0)),
        (Act::Delay(Duration::from_millis(200)), ("ok", 0)),
        (Act::TooMany { retry_after: 5 }, ("limited", 5)),
        (Act::Fail(404), ("not found", 0)),
        (Act::Fail(410), ("not found", 0)),
    ] {
        world.forge.inject(Fault::on("GET", "/repos/*/*/issues/*", act));
        let result = world.github.issue(&repo, world.issue).await.map(drop);
        assert_eq!(named(&result), expected, "{act:?}: {result:?}");
    }
    // The hour's limit is told by the forge's clock.
    world.forge.inject(Fault::on("GET", "/repos/*/*/issues/*", Act::Exhausted { reset_in: 90 }));
    let Err(ForgeError::RateLimited { wait }) = world.github.issue(&repo, world.issue).await else {
        panic!("the limit is told");
    };
    assert!((88..=90).contains(&wait.as_secs()), "{wait:?}");
}

/// Minting a token is no write that anybody sees, even when a write is what it is for.
#[tokio::test]
async fn a_token_that_cannot_be_had_leaves_the_write_unsent() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    world.forge.inject(Fault::on("POST", "/app/installations/*/access_tokens", Act::DropAfter));
    let result = world.github.put_comment(&repo, world.issue, None, "x").await.map(drop);
    assert_eq!(named(&result), ("unavailable", 0));
    assert_eq!(world.sent("POST", "/comments"), 0);
}

#[tokio::test]
async fn a_forge_that_is_away_is_not_a_lost_answer() {
    let world = World::with_tokens().await;
    let repo = world.repo().await;
    let World { forge, github, issue, .. } = world;
    forge.stop().await;
    let result = github.put_comment(&repo, issue, None, "x").await.map(drop);
    assert_eq!(named(&result), ("unavailable", 0));
}
