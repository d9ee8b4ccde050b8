//! The compare-and-swap push, raced, refused and cut off.

use axum::http::StatusCode;
use bytes::Bytes;
use camino::Utf8PathBuf;
use fettle_app::ports::git::{
    BaseCommit, BaseRef, PushError, PushTarget, Pushed, RefPush, Repositories, Source, TreeEdit,
};
use fettle_domain::object::CommitId;
use fettle_domain::patch::FileMode;
use fettle_domain::path::RepoPath;
use fettle_git::Git;
use secrecy::SecretString;

use crate::support::{Folder, Server, TOKEN, adapter, commit_all, commit_id, git, git_command, spec, write};

const BRANCH: &str = "ai-agent/quickfix-issue-7";

struct World {
    server: Server,
    work: Utf8PathBuf,
    git: Git,
    base: BaseCommit,
    to: PushTarget,
    _folder: Folder,
}

impl World {
    async fn new() -> Self {
        let server = Server::start().await;
        let work = server.repository("a", &[("x", "1\n")]);
        let folder = Folder::new();
        let git = adapter(folder.path());
        let base = git.resolve(&server.source("a"), &BaseRef::Default).await.unwrap();
        let to = target(server.source("a"), BRANCH);
        Self { server, work, git, base, to, _folder: folder }
    }

    /// A commit upon the base, in the mirror only.
    async fn commit(&self, content: &'static str) -> CommitId {
        let edit = TreeEdit {
            path: RepoPath::parse("x").unwrap(),
            put: Some((FileMode::Regular, Bytes::from_static(content.as_bytes()))),
        };
        let key = &self.to.source.key;
        let tree = self.git.edit_tree(key, self.base.tree, vec![edit]).await.unwrap();
        self.git.commit(key, &spec(self.base.commit, tree)).await.unwrap()
    }

    async fn push(&self, expected: Option<CommitId>, new: CommitId) -> Result<Pushed, PushError> {
        self.git.push(&self.to, expected, new).await
    }

    /// Where the branch really is.
    fn tip(&self) -> Option<String> {
        let output =
            git_command(&self.server.bare("a")).args(["rev-parse", "-q", "--verify", BRANCH]).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    /// Somebody else's move of the branch, between our push's sending and the server's looking at it.
    fn race(&self, to: CommitId) {
        let bare = self.server.bare("a");
        self.server.script(|script| {
            script.before_receive = Some(Box::new(move || {
                drop(git(&bare, ["update-ref", &format!("refs/heads/{BRANCH}"), &to.to_string()]))
            }));
        });
    }
}

fn target(source: Source, branch: &str) -> PushTarget {
    PushTarget { source, branch: serde_json::from_value(branch.into()).unwrap() }
}

#[tokio::test]
async fn a_branch_moves_from_the_expected_place_and_from_no_other() {
    let world = World::new().await;
    let (one, two) = (world.commit("one\n").await, world.commit("two\n").await);
    assert_eq!(world.git.remote_tip(&world.to).await.unwrap(), None);
    assert_eq!(world.push(Some(two), one).await.unwrap(), Pushed::Conflict { found: None });
    assert_eq!(world.tip(), None);
    assert_eq!(world.push(None, one).await.unwrap(), Pushed::Moved);
    assert_eq!(world.tip(), Some(one.to_string()));
    assert_eq!(world.git.remote_tip(&world.to).await.unwrap(), Some(one));
    assert_eq!(world.push(None, one).await.unwrap(), Pushed::AlreadyThere);
    assert_eq!(world.push(None, two).await.unwrap(), Pushed::Conflict { found: Some(one) });
    // Not a fast-forward: both stand upon the base.
    assert_eq!(world.push(Some(one), two).await.unwrap(), Pushed::Moved);
    assert_eq!(world.tip(), Some(two.to_string()));
    git(&world.server.bare("a"), ["fsck", "--full", "--strict"]);
    assert_eq!(
        git(&world.server.bare("a"), ["for-each-ref", "--format=%(refname)"]),
        format!("refs/heads/{BRANCH}\nrefs/heads/main")
    );
}

#[tokio::test]
async fn a_move_after_the_advertisement_is_a_conflict_and_stays() {
    let world = World::new().await;
    let (one, two) = (world.commit("one\n").await, world.commit("two\n").await);
    let theirs = world.base.commit;

    world.race(theirs);
    assert_eq!(world.push(None, one).await.unwrap(), Pushed::Conflict { found: Some(theirs) }, "a raced create");
    assert_eq!(world.tip(), Some(theirs.to_string()));

    assert_eq!(world.push(Some(theirs), one).await.unwrap(), Pushed::Moved);
    world.race(theirs);
    assert_eq!(world.push(Some(one), two).await.unwrap(), Pushed::Conflict { found: Some(theirs) }, "a raced move");
    assert_eq!(world.tip(), Some(theirs.to_string()));
}

#[tokio::test]
async fn a_lost_answer_is_no_answer_and_the_next_try_finds_it_done() {
    let world = World::new().await;
    let one = world.commit("one\n").await;
    world.server.script(|script| script.lose_push_answers = true);
    assert!(matches!(world.push(None, one).await, Err(PushError::NoAnswer(_))));
    world.server.script(|script| script.lose_push_answers = false);
    assert_eq!(world.tip(), Some(one.to_string()));
    assert_eq!(world.push(None, one).await.unwrap(), Pushed::AlreadyThere);
}

#[tokio::test]
async fn refusals_say_who_must_act() {
    let world = World::new().await;
    let one = world.commit("one\n").await;
    let mut texts = String::new();

    let hook = world.server.bare("a").join("hooks/update");
    fs_err::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    fs_err::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let answer = world.push(None, one).await;
    assert!(matches!(&answer, Err(PushError::Refused(text)) if text.contains("hook declined")), "{answer:?}");
    texts.push_str(&format!("{answer:?}"));
    fs_err::remove_file(&hook).unwrap();

    let wrong = Source { token: Some(SecretString::from("wrong")), ..world.to.source.clone() };
    let answer = world.git.push(&target(wrong, BRANCH), None, one).await;
    assert!(matches!(answer, Err(PushError::Denied)), "{answer:?}");

    world.server.script(|script| script.status = Some(StatusCode::SERVICE_UNAVAILABLE));
    let answer = world.push(None, one).await;
    assert!(matches!(answer, Err(PushError::Unavailable(_))), "{answer:?}");
    texts.push_str(&format!("{answer:?}"));
    world.server.script(|script| script.status = None);

    let seen = world.server.seen().len();
    for foreign in ["main", "ai-agent/../main", "refs/heads/main", "ai-agent/x:refs/heads/main"] {
        let answer = world.git.push(&target(world.to.source.clone(), foreign), None, one).await;
        assert!(matches!(answer, Err(PushError::Refused(_))), "{foreign}: {answer:?}");
    }
    assert_eq!(world.server.seen().len(), seen, "refused before connecting");
    assert!(!texts.contains(TOKEN));
    assert_eq!(world.tip(), None);
}

#[tokio::test]
async fn only_what_is_new_is_sent_though_the_remote_has_moved_on() {
    let world = World::new().await;
    let one = world.commit("one\n").await;
    // Noise that does not compress, and so would show in the size of a pack with the whole history.
    let noise: String = (0..20_000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    write(&world.work, "noise", noise);
    commit_all(&world.work, "moved on");
    git(&world.work, ["push", "-q", "origin", "main"]);

    assert_eq!(world.push(None, one).await.unwrap(), Pushed::Moved);
    let sent =
        world.server.seen().iter().rfind(|seen| seen.line.contains("POST /a.git/git-receive-pack")).unwrap().body_bytes;
    assert!(sent < 2_000, "{sent}");
    let listed =
        git(&world.server.bare("a"), ["rev-list", "--objects", "--no-object-names", &one.to_string(), "^main"]);
    assert_eq!(listed.lines().count(), 3, "a commit, a tree and a content");
    assert_eq!(commit_id(&world.server.bare("a"), BRANCH), one);
}
