//! The GitHub adapter against the forge emulator: every port method, every way a call goes wrong, and the emulator's
//! own git. What both sides say to each other is held against GitHub's own description.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod description;
mod faults;
mod git;
mod watch;
mod webhooks;

use std::time::Duration;

use fettle_app::ports::forge::{Forge, ForgeAccess, ForgeError, ForgeReader, Permission, PullOpened, PullSpec};
use fettle_domain::repo::{Repo, RepoName};
use fettle_github::{GitHub, GitHubAuth, GitHubOptions, Timeouts};
use fettle_tests::forge::{AppKey, AppOptions, Credential, ForgeEmulator, ForgeOptions, PatAccess, PullState, Role};
use secrecy::{ExposeSecret, SecretString};

/// Long enough for a loaded machine, short enough to see a hanging call end.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), answer: Duration::from_secs(3) };

/// A forge with one repository and one issue, and the adapter that talks to it.
struct World {
    forge: ForgeEmulator,
    github: GitHub,
    name: RepoName,
    issue: u64,
}

fn github(forge: &ForgeEmulator, auth: GitHubAuth) -> GitHub {
    let base_url = Some(forge.url().parse().unwrap());
    GitHub::new(GitHubOptions { base_url, auth, timeouts: TIMEOUTS }).unwrap()
}

impl World {
    /// With an App installed.
    async fn with_app() -> Self {
        Self::with_app_tokens_of(Duration::from_secs(3600)).await
    }

    async fn with_app_tokens_of(token_life: Duration) -> Self {
        let (private_key, public_key) = AppKey::generate().unwrap();
        let app = AppOptions { token_life, ..AppOptions::new(public_key) };
        let auth = GitHubAuth::App { app_id: app.id, private_key: private_key.into() };
        Self::start(Some(app), |_| auth).await
    }

    /// With one token that reads and one that writes, both of `fettle-user`.
    async fn with_tokens() -> Self {
        Self::start(None, |forge| GitHubAuth::Tokens {
            read: Some(forge.add_token("fettle-user", PatAccess::Read).into()),
            write: Some(forge.add_token("fettle-user", PatAccess::Write).into()),
        })
        .await
    }

    async fn start(app: Option<AppOptions>, auth: impl FnOnce(&ForgeEmulator) -> GitHubAuth) -> Self {
        let forge = ForgeEmulator::start(ForgeOptions { app, ..ForgeOptions::default() }).await.unwrap();
        let name = forge.create_repository("octo/hello", &[("README.md", "# Hello\n")]).await.unwrap();
        let issue = forge.create_issue(&name, "alice", "It breaks", "Badly.");
        let github = github(&forge, auth(&forge));
        Self { forge, github, name, issue }
    }

    async fn repo(&self) -> Repo {
        self.github.repository(&self.name).await.unwrap()
    }

    /// A branch with a commit, ready for a pull request.
    async fn branch(&self, name: &str) -> PullSpec {
        self.forge.commit(&self.name, name, &[("fix.txt", name)]).await.unwrap();
        PullSpec {
            title: "Fix it".to_owned(),
            body: "With proof.".to_owned(),
            head: name.to_owned(),
            base: "main".to_owned(),
            draft: true,
        }
    }

    fn sent(&self, method: &str, suffix: &str) -> usize {
        self.forge.requests().iter().filter(|r| r.method == method && r.path.ends_with(suffix)).count()
    }
}

#[tokio::test]
async fn intake_reads_a_private_repository_through_the_app() {
    let world = World::with_app().await;
    world.forge.set_private(&world.name, true);
    let repo = world.repo().await;
    let expected = Repo {
        forge_id: world.forge.repository_id(&world.name),
        name: world.name.clone(),
        clone_url: world.forge.clone_url(&world.name),
        default_branch: "main".to_owned(),
        private: true,
        installation: Some(815),
    };
    assert_eq!(repo, expected);

    world.forge.label(&world.name, world.issue, "ai-help", "alice");
    world.forge.set_locked(&world.name, world.issue, true);
    let issue = world.github.issue(&repo, world.issue).await.unwrap();
    assert_eq!((issue.number, issue.title.as_str(), issue.body.as_str()), (world.issue, "It breaks", "Badly."));
    assert_eq!((issue.author.as_str(), issue.labels.as_slice()), ("alice", ["ai-help".to_owned()].as_slice()));
    assert!(issue.open && issue.locked && !issue.is_pull_request);
    assert_eq!(issue.url, format!("{}/octo/hello/issues/{}", world.forge.url(), world.issue));

    assert_eq!(world.github.own_login().await.unwrap(), "fettle[bot]");
    assert!(matches!(world.github.issue(&repo, 99).await, Err(ForgeError::NotFound(what)) if what == "issue 99"));
    let absent = world.github.repository(&"octo/absent".parse().unwrap()).await;
    assert!(matches!(absent, Err(ForgeError::NotFound(what)) if what.contains("octo/absent")));

    // Each installation token was for this repository alone and for no more than it needed.
    for request in world.forge.requests() {
        if let Credential::Installation { permissions } = &request.credential {
            assert!(permissions.values().all(|level| level == "read"), "{request:?}");
        }
        if request.path.ends_with("/access_tokens") {
            let body = request.body.unwrap();
            let narrowed = body["repository_ids"] == serde_json::json!([repo.forge_id])
                || body["repositories"] == serde_json::json!(["hello"]);
            assert!(narrowed, "{body}");
        }
    }
}

#[tokio::test]
async fn the_newest_two_hundred_comments_are_read_oldest_first() {
    let world = World::with_tokens().await;
    let repo = world.repo().await;
    assert_eq!(world.github.comments(&repo, world.issue).await.unwrap(), []);
    let ids: Vec<u64> =
        (0..257).map(|n| world.forge.comment(&world.name, world.issue, "bob", &format!("comment {n}"))).collect();
    let read = world.github.comments(&repo, world.issue).await.unwrap();
    assert_eq!(read.iter().map(|c| c.id).collect::<Vec<_>>(), ids[57..]);
    assert_eq!((read[0].body.as_str(), read[0].author.as_str(), read[0].author_is_bot), ("comment 57", "bob", false));
    world.forge.comment(&world.name, world.issue, "ci[bot]", "green");
    assert!(world.github.comments(&repo, world.issue).await.unwrap().last().unwrap().author_is_bot);
}

#[tokio::test]
async fn a_label_is_known_by_the_event_that_set_it_last() {
    let world = World::with_tokens().await;
    let repo = world.repo().await;
    let labeled = async || world.github.labeled(&repo, world.issue, "ai-help").await.unwrap();
    assert_eq!(labeled().await, None);
    world.forge.label(&world.name, world.issue, "ai-help", "alice");
    world.forge.unlabel(&world.name, world.issue, "ai-help", "alice");
    let again = world.forge.label(&world.name, world.issue, "ai-help", "carol");
    let found = labeled().await.unwrap();
    assert_eq!((found.id, found.actor.login.as_str(), found.actor.is_bot), (again, "carol", false));
    // Two more pages of events of another label: the search goes back through them.
    for _ in 0..130 {
        world.forge.label(&world.name, world.issue, "busy", "bob");
        world.forge.unlabel(&world.name, world.issue, "busy", "bob");
    }
    assert_eq!(labeled().await.unwrap().id, again);
}

#[tokio::test]
async fn only_what_the_forge_confirms_is_a_permission() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    for (login, role, permission, may) in [
        ("admin", Some(Role::Admin), Permission::Admin, true),
        ("maintainer", Some(Role::Maintain), Permission::Write, true),
        ("writer", Some(Role::Write), Permission::Write, true),
        ("triager", Some(Role::Triage), Permission::Triage, false),
        ("reader", Some(Role::Read), Permission::Read, false),
        ("stranger", None, Permission::Read, false),
    ] {
        world.forge.set_role(&world.name, login, role);
        let found = world.github.permission(&repo, login).await.unwrap();
        assert_eq!((found, found.may_trigger()), (permission, may), "{login}");
    }
    assert_eq!(world.github.permission(&repo, "nobody-there").await.unwrap(), Permission::None);
    assert_eq!(world.github.permission(&repo, "fettle[bot]").await.unwrap(), Permission::None);
}

#[tokio::test]
async fn a_permission_holds_five_minutes_and_an_error_never_counts() {
    use fettle_tests::forge::{Act, Fault};
    let world = World::with_tokens().await;
    let repo = world.repo().await;
    let path = "/repos/octo/hello/collaborators/writer/permission";
    world.forge.set_role(&world.name, "writer", Some(Role::Write));
    world.forge.inject(Fault::on("GET", path, Act::Fail(500)));
    assert!(matches!(world.github.permission(&repo, "writer").await, Err(ForgeError::Unavailable(_))));
    assert_eq!(world.github.permission(&repo, "writer").await.unwrap(), Permission::Write);
    world.forge.set_role(&world.name, "writer", None);
    assert_eq!(world.github.permission(&repo, "WRITER").await.unwrap(), Permission::Write);
    assert_eq!(world.sent("GET", "/permission"), 2);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(300)).await;
    tokio::time::resume();
    assert_eq!(world.github.permission(&repo, "writer").await.unwrap(), Permission::Read);
}

#[tokio::test]
async fn a_pull_request_is_opened_once_and_found_in_any_state() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    let spec = world.branch("ai-agent/quickfix-issue-1").await;
    assert_eq!(world.github.pulls_by_head(&repo, &spec.head).await.unwrap(), []);
    let PullOpened::Created(pull) = world.github.open_pull(&repo, &spec).await.unwrap() else {
        panic!("the first is created");
    };
    assert!(pull.open && pull.draft && !pull.merged);
    assert_eq!(Some(&pull.head_sha), world.forge.tip(&world.name, &spec.head).await.unwrap().as_ref());
    assert_eq!((pull.base.as_str(), pull.body.as_str()), ("main", "With proof."));
    assert_eq!(world.github.open_pull(&repo, &spec).await.unwrap(), PullOpened::Exists);
    assert_eq!(world.github.pulls_by_head(&repo, &spec.head).await.unwrap(), std::slice::from_ref(&pull));
    assert_eq!(world.github.pulls_by_head(&repo, "ai-agent/other").await.unwrap(), []);

    world.github.edit_pull_body(&repo, pull.number, "With more proof.").await.unwrap();
    world.forge.set_pull_state(&world.name, pull.number, PullState::Merged);
    let merged = &world.github.pulls_by_head(&repo, &spec.head).await.unwrap()[0];
    assert!(merged.merged && !merged.open && merged.body == "With more proof.");
    assert!(world.github.issue(&repo, pull.number).await.unwrap().is_pull_request);

    let headless = PullSpec { head: "no-such-branch".to_owned(), ..spec };
    assert!(matches!(world.github.open_pull(&repo, &headless).await, Err(ForgeError::Refused(_))));
    assert_eq!(world.forge.pulls(&world.name).len(), 1);
}

#[tokio::test]
async fn own_comments_are_found_by_author_and_marker_whatever_their_age() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    let marker = "<!-- fettle:task_1:progress -->";
    let put = async |id, text: &str| world.github.put_comment(&repo, world.issue, id, text).await.unwrap();
    let first = put(None, &format!("started {marker}")).await;
    // Somebody quotes us, and buries us under two pages.
    world.forge.comment(&world.name, world.issue, "alice", &format!("> started {marker}"));
    for n in 0..150 {
        world.forge.comment(&world.name, world.issue, "bob", &format!("me too {n}"));
    }
    let second = put(None, &format!("copy {marker}")).await;
    put(None, "another matter").await;
    assert_eq!(put(Some(first), &format!("done {marker}")).await, first);
    let own = world.github.own_comments(&repo, world.issue, marker).await.unwrap();
    assert_eq!(own.iter().map(|c| c.id).collect::<Vec<_>>(), [first, second]);
    assert!(own[0].body.starts_with("done") && own[0].author == "fettle[bot]" && own[0].author_is_bot);

    world.github.delete_comment(&repo, second).await.unwrap();
    assert!(matches!(world.github.delete_comment(&repo, second).await, Err(ForgeError::NotFound(_))));
    assert_eq!(world.github.own_comments(&repo, world.issue, marker).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_fresh_comment_is_missing_from_a_lagging_list() {
    let world = World::with_tokens().await;
    let repo = world.repo().await;
    let lag = Duration::from_secs(5);
    world.forge.set_read_lag(lag);
    let id = world.github.put_comment(&repo, world.issue, None, "<!-- m -->").await.unwrap();
    assert_eq!(world.github.own_comments(&repo, world.issue, "<!-- m -->").await.unwrap(), []);
    tokio::time::pause();
    tokio::time::advance(lag).await;
    tokio::time::resume();
    assert_eq!(world.github.own_comments(&repo, world.issue, "<!-- m -->").await.unwrap()[0].id, id);
}

#[tokio::test]
async fn labels_are_set_and_taken_off_again_with_any_name() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    let labels = ["ai: done/√ 100%?".to_owned(), "a+b".to_owned()];
    let shown = || world.forge.issue(&world.name, world.issue).unwrap().labels;
    world.github.add_labels(&repo, world.issue, &labels).await.unwrap();
    assert_eq!(shown(), labels.iter().cloned().collect());
    for label in &labels {
        world.github.remove_label(&repo, world.issue, label).await.unwrap();
        world.github.remove_label(&repo, world.issue, label).await.unwrap();
    }
    assert!(shown().is_empty());
    let before = world.forge.requests().len();
    world.github.add_labels(&repo, world.issue, &[]).await.unwrap();
    assert_eq!(world.forge.requests().len(), before);
}

#[tokio::test]
async fn app_tokens_are_kept_until_they_are_too_old_to_hand_out() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    world.forge.forget_requests();
    let first = world.github.read_token(&repo).await.unwrap().unwrap();
    let second = world.github.read_token(&repo).await.unwrap().unwrap();
    assert_eq!(first.expose_secret(), second.expose_secret());
    let write = world.github.write_token(&repo).await.unwrap();
    assert_ne!(first.expose_secret(), write.expose_secret());
    assert_eq!(world.sent("POST", "/access_tokens"), 2);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600 - 300)).await;
    tokio::time::resume();
    let third = world.github.read_token(&repo).await.unwrap().unwrap();
    assert_ne!(first.expose_secret(), third.expose_secret());
}

#[tokio::test]
async fn an_app_token_that_the_forge_takes_back_is_replaced_once() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    let stale = world.github.write_token(&repo).await.unwrap();
    world.forge.revoke_token(stale.expose_secret());
    world.github.put_comment(&repo, world.issue, None, "hello").await.unwrap();
    assert_eq!(world.forge.issue(&world.name, world.issue).unwrap().comments.len(), 1);
    assert_eq!(world.sent("POST", "/comments"), 2);
}

#[tokio::test]
async fn configured_tokens_never_change_hands() {
    let world = World::with_tokens().await;
    let repo = world.repo().await;
    let read = world.github.read_token(&repo).await.unwrap().unwrap();
    let write = world.github.write_token(&repo).await.unwrap();
    assert_ne!(read.expose_secret(), write.expose_secret());
    assert_eq!(world.github.own_login().await.unwrap(), "fettle-user");

    let reader = github(&world.forge, GitHubAuth::Tokens { read: Some(read), write: None });
    assert!(matches!(reader.write_token(&repo).await, Err(ForgeError::Denied(_))));
    assert!(matches!(reader.put_comment(&repo, world.issue, None, "x").await, Err(ForgeError::Denied(_))));
    let writer = github(&world.forge, GitHubAuth::Tokens { read: None, write: Some(write) });
    assert!(writer.read_token(&repo).await.unwrap().is_none());
    assert_eq!(writer.issue(&repo, world.issue).await.unwrap().number, world.issue);
    let weak = SecretString::from(world.forge.add_token("mallory", PatAccess::Read));
    let mistaken = github(&world.forge, GitHubAuth::Tokens { read: None, write: Some(weak) });
    assert!(matches!(mistaken.put_comment(&repo, world.issue, None, "x").await, Err(ForgeError::Denied(_))));
    assert!(world.forge.issue(&world.name, world.issue).unwrap().comments.is_empty());
}

/// Of an App that was given less, no token that writes is even made; of a token that may not, the forge says so.
#[tokio::test]
async fn who_may_not_write_is_told_so_before_a_repository_is_taken() {
    for writes_contents in [true, false] {
        let (private_key, public_key) = AppKey::generate().unwrap();
        let app = AppOptions { writes_contents, ..AppOptions::new(public_key) };
        let auth = GitHubAuth::App { app_id: app.id, private_key: private_key.into() };
        let world = World::start(Some(app), |_| auth).await;
        let repo = world.repo().await;
        let may = world.github.may_write(&repo).await;
        assert_eq!(may.is_ok(), writes_contents, "{may:?}");
        assert!(writes_contents || matches!(may, Err(ForgeError::Denied(_))), "{may:?}");
    }
    let world = World::with_tokens().await;
    let repo = world.repo().await;
    world.github.may_write(&repo).await.unwrap();
    let weak = SecretString::from(world.forge.add_token("mallory", PatAccess::Read));
    let mistaken = github(&world.forge, GitHubAuth::Tokens { read: None, write: Some(weak) });
    assert!(matches!(mistaken.may_write(&repo).await, Err(ForgeError::Denied(_))));
}

#[tokio::test]
async fn without_credentials_public_repositories_are_read_and_nothing_else() {
    let world = World::with_tokens().await;
    let anonymous = github(&world.forge, GitHubAuth::Anonymous);
    let repo = anonymous.repository(&world.name).await.unwrap();
    assert!(anonymous.read_token(&repo).await.unwrap().is_none());
    assert_eq!(anonymous.issue(&repo, world.issue).await.unwrap().number, world.issue);
    assert!(matches!(anonymous.permission(&repo, "alice").await, Err(ForgeError::Denied(_))));
    assert!(matches!(anonymous.own_login().await, Err(ForgeError::Denied(_))));
    assert!(matches!(anonymous.put_comment(&repo, world.issue, None, "x").await, Err(ForgeError::Denied(_))));
    world.forge.set_private(&world.name, true);
    assert!(matches!(anonymous.repository(&world.name).await, Err(ForgeError::NotFound(_))));
}

#[tokio::test]
async fn a_wrong_key_is_told_before_and_at_the_first_use() {
    let world = World::with_app().await;
    let unreadable = GitHubAuth::App { app_id: 4711, private_key: "not a key".into() };
    let options = GitHubOptions { base_url: None, auth: unreadable, timeouts: TIMEOUTS };
    assert!(GitHub::new(options).is_err());
    let (strange, _) = AppKey::generate().unwrap();
    let stranger = github(&world.forge, GitHubAuth::App { app_id: 4711, private_key: strange.into() });
    assert!(matches!(stranger.repository(&world.name).await, Err(ForgeError::Denied(_))));
}

#[tokio::test]
async fn an_enterprise_server_answers_below_its_path() {
    let world = World::with_tokens().await;
    let base_url = Some(format!("{}/api/v3/", world.forge.url()).parse().unwrap());
    let auth = GitHubAuth::Anonymous;
    let enterprise = GitHub::new(GitHubOptions { base_url, auth, timeouts: TIMEOUTS }).unwrap();
    assert_eq!(enterprise.repository(&world.name).await.unwrap().name, world.name);
}

/// A Task keeps the name that the repository had when it began.
#[tokio::test]
async fn a_renamed_repository_is_still_read_and_written() {
    let world = World::with_app().await;
    let repo = world.repo().await;
    let spec = world.branch("ai-agent/quickfix-issue-1").await;
    let renamed = world.forge.rename(&world.name, "octo/goodbye").unwrap();
    assert_eq!(world.github.issue(&repo, world.issue).await.unwrap().number, world.issue);
    assert!(matches!(world.github.open_pull(&repo, &spec).await.unwrap(), PullOpened::Created(_)));
    assert_eq!(world.github.pulls_by_head(&repo, &spec.head).await.unwrap().len(), 1);
    world.github.add_labels(&repo, world.issue, &["done".to_owned()]).await.unwrap();
    assert!(world.forge.issue(&renamed, world.issue).unwrap().labels.contains("done"));
    assert_eq!(world.github.repository(&renamed).await.unwrap().forge_id, repo.forge_id);
}
