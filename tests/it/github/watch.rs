//! What is looked for without having been told.

use std::collections::BTreeSet;

use fettle_app::ports::forge::{Changed, ForgeError, ForgeReader, ForgeWatch};
use fettle_github::GitHubAuth;
use fettle_tests::forge::{Act, Fault, PatAccess};
use jiff::{SignedDuration, Timestamp};

use super::{World, github};

async fn names(forge: &dyn ForgeWatch, max: usize) -> (BTreeSet<String>, bool) {
    let reach = forge.reachable(max).await.unwrap();
    (reach.repositories.iter().map(|repo| repo.name.to_string()).collect(), reach.more)
}

#[tokio::test]
async fn an_app_reaches_where_it_is_installed_and_a_token_where_it_may_write() {
    let world = World::with_app().await;
    world.forge.create_repository("octo/other", &[("README.md", "# Other\n")]).await.unwrap();
    world.forge.set_private(&world.name, true);
    let both = BTreeSet::from(["octo/hello".to_owned(), "octo/other".to_owned()]);
    assert_eq!(names(&world.github, 10).await, (both.clone(), false));
    assert_eq!(names(&world.github, 2).await, (both.clone(), false));
    let (one, more) = names(&world.github, 1).await;
    assert!(one.len() == 1 && more, "{one:?}");
    let found = world.github.reachable(10).await.unwrap().repositories;
    assert!(found.iter().all(|repo| repo.installation == Some(815)));
    assert!(found.contains(&world.repo().await));

    let world = World::with_tokens().await;
    assert_eq!(names(&world.github, 10).await.0.len(), 1);
    let read = Some(world.forge.add_token("fettle-user", PatAccess::Read).into());
    let reader = github(&world.forge, GitHubAuth::Tokens { read, write: None });
    assert!(matches!(reader.reachable(10).await, Err(ForgeError::Denied(_))));
}

#[tokio::test]
async fn hundreds_of_repositories_come_in_pages() {
    let world = World::with_app().await;
    for number in 0..105 {
        world.forge.create_repository(&format!("octo/r{number}"), &[("README.md", "#\n")]).await.unwrap();
    }
    let (all, more) = names(&world.github, 300).await;
    assert!(all.len() == 106 && !more);
    let (some, more) = names(&world.github, 50).await;
    assert!(some.len() == 50 && more);
}

/// Numbers, whether there are more, and the tag.
async fn changed(world: &World, since: Timestamp, seen: Option<&str>) -> Option<(Vec<u64>, bool, Option<String>)> {
    let repo = world.repo().await;
    match world.github.changed_issues(&repo, "AI-help", since, seen).await.unwrap() {
        Changed::Nothing => None,
        Changed::Issues { issues, cut, tag, at } => {
            assert!(issues.iter().all(|issue| issue.updated_at <= at && issue.open));
            Some((issues.into_iter().map(|issue| issue.number).collect(), cut, tag))
        }
    }
}

#[tokio::test]
async fn open_issues_with_the_label_are_listed_once_until_something_changes() {
    let world = World::with_app().await;
    let long_ago = Timestamp::UNIX_EPOCH;
    let (none, cut, tag) = changed(&world, long_ago, None).await.unwrap();
    assert!(none.is_empty() && !cut);
    assert_eq!(changed(&world, long_ago, tag.as_deref()).await, None, "nothing has changed");
    let answered = world.forge.requests().pop().unwrap();
    assert_eq!((answered.status, answered.answer), (Some(304), None));

    world.forge.label(&world.name, world.issue, "ai-help", "alice");
    let closed = world.forge.create_issue(&world.name, "bob", "Done", "");
    world.forge.label(&world.name, closed, "ai-help", "alice");
    world.forge.set_open(&world.name, closed, false, "alice");
    let (found, _, again) = changed(&world, long_ago, tag.as_deref()).await.unwrap();
    assert_eq!(found, [world.issue]);
    assert_ne!(again, tag);
    let later = world.forge.issue(&world.name, world.issue).unwrap().updated_at + SignedDuration::from_secs(1);
    assert_eq!(changed(&world, later, None).await.unwrap().0, [0; 0]);
}

#[tokio::test]
async fn looking_stops_while_little_is_left_of_the_hour_and_tasks_go_on() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    world.forge.inject(Fault::on("GET", "/repos/*/*/issues", Act::Left(500)));
    assert!(changed(&world, Timestamp::UNIX_EPOCH, None).await.is_some());
    let asked = world.forge.requests().len();
    let again = world.github.changed_issues(&repo, "ai-help", Timestamp::UNIX_EPOCH, None).await;
    assert!(matches!(again, Err(ForgeError::RateLimited { wait }) if wait.as_secs() <= 3600), "{again:?}");
    assert_eq!(world.forge.requests().len(), asked, "the forge was not asked");
    world.github.issue(&repo, world.issue).await.unwrap();
}

#[tokio::test]
async fn a_thousand_changed_issues_are_listed_oldest_first_and_the_rest_is_said_to_be_there() {
    let world = World::with_tokens().await;
    for number in 0..1_001 {
        let issue = world.forge.create_issue(&world.name, "alice", &number.to_string(), "");
        world.forge.label(&world.name, issue, "ai-help", "alice");
    }
    let (found, cut, _) = changed(&world, Timestamp::UNIX_EPOCH, None).await.unwrap();
    assert!(found.len() == 1_000 && cut && found.is_sorted(), "{} {cut}", found.len());
}

#[tokio::test]
async fn an_app_knows_what_became_of_its_deliveries_and_has_one_sent_again() {
    let world = World::with_app().await;
    assert_eq!(world.github.hook_attempts(None).await.unwrap().attempts, []);
    // Nobody listens at this port.
    world.forge.set_hook("http://127.0.0.1:9/hook", "s3cret");
    let payload = world.forge.issue_opened(&world.name, world.issue);
    let guid = world.forge.send_hook("issues", &payload).await;
    let log = world.github.hook_attempts(None).await.unwrap();
    let [(event, attempt)] = &log.attempts[..] else { panic!("{log:?}") };
    assert_eq!((event.as_str(), attempt.guid.as_str(), attempt.arrived), ("issues", guid.as_str(), false));
    assert!(attempt.at <= log.at);

    world.github.redeliver(attempt.id).await.unwrap();
    let attempts = world.forge.hook_attempts();
    assert_eq!(
        attempts.iter().map(|a| (a.guid.as_str(), a.redelivery)).collect::<Vec<_>>(),
        [(guid.as_str(), false), (guid.as_str(), true)]
    );
    assert!(matches!(world.github.redeliver(1).await, Err(ForgeError::NotFound(_))));

    let world = World::with_tokens().await;
    assert!(matches!(world.github.hook_attempts(None).await, Err(ForgeError::Denied(_))));
}

#[tokio::test]
async fn the_log_of_deliveries_is_read_as_far_back_as_it_is_asked_for() {
    let world = World::with_app().await;
    world.forge.set_hook("http://127.0.0.1:9/hook", "s3cret");
    let payload = world.forge.issue_opened(&world.name, world.issue);
    for _ in 0..230 {
        world.forge.send_hook("issues", &payload).await;
    }
    let read = async |since| {
        let before = world.sent("GET", "/app/hook/deliveries");
        let log = world.github.hook_attempts(since).await.unwrap();
        (log.attempts.len(), world.sent("GET", "/app/hook/deliveries") - before)
    };
    assert_eq!(read(None).await, (230, 3));
    let newest = world.forge.hook_attempts().pop().unwrap().at;
    assert_eq!(read(Some(newest + SignedDuration::from_secs(1))).await, (100, 1));
}
