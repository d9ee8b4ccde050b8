//! A user's own repository: read without copying, and changed in one branch at most.

use fettle_app::ports::git::{BaseRef, CheckoutKind, GitError, Pushed, Repositories};

use crate::support::{
    Folder, KEY, Local, adapter, commit_all, commit_id, fingerprint, git, local_source, repository, spec, tree_id,
    write,
};

#[tokio::test]
async fn names_are_found_as_rev_parse_finds_them_from_a_worktree_or_a_folder_inside() {
    let world = Local::new(|repo| {
        repository(repo, &[("inner/x", "1\n")]);
        git(repo, ["tag", "-a", "v1", "-m", "annotated"]);
        write(repo, "inner/x", "2\n");
        commit_all(repo, "second");
        git(repo, ["worktree", "add", "-q", "-b", "side", "../side", "v1"]);
    })
    .await;
    assert_eq!(world.base.commit, commit_id(&world.repo, "main"));
    assert_eq!(world.base.branch.as_deref(), Some("main"));
    assert_eq!(world.base.committed_at.as_second(), 1_700_000_000);

    let inner = local_source(&world.repo.join("inner"));
    let by_tag = world.git.resolve(&inner, &BaseRef::Named("v1".into())).await.unwrap();
    assert_eq!((by_tag.commit, by_tag.branch), (commit_id(&world.repo, "v1"), None));
    let by_expression = world.git.resolve(&inner, &BaseRef::Named("main~1".into())).await.unwrap();
    assert_eq!(by_expression.commit, by_tag.commit);
    let worktree = local_source(&world.folder.join("side"));
    let by_worktree = world.git.resolve(&worktree, &BaseRef::Default).await.unwrap();
    assert_eq!((by_worktree.commit, by_worktree.branch.as_deref()), (by_tag.commit, Some("side")));
    let by_id = world.git.resolve(&worktree, &BaseRef::Commit(world.base.commit)).await.unwrap();
    assert_eq!(by_id.tree, world.base.tree);
    assert!(matches!(
        world.git.resolve(&inner, &BaseRef::Named("absent".into())).await,
        Err(GitError::NotFound { .. })
    ));

    let objects = fingerprint(world.folder.join("mirrors/local-test.git/objects").as_std_path());
    assert!(objects.keys().all(|path| path.ends_with("info/alternates")), "nothing is copied: {:?}", objects.keys());
}

#[tokio::test]
async fn what_cannot_be_worked_on_says_why() {
    let folder = Folder::new();
    let git_adapter = adapter(folder.path());
    let unborn = folder.join("unborn");
    fs_err::create_dir_all(&unborn).unwrap();
    git(&unborn, ["init", "-q"]);
    let answer = git_adapter.resolve(&local_source(&unborn), &BaseRef::Default).await;
    assert!(matches!(&answer, Err(GitError::Invalid(why)) if why.contains("no commit yet")), "{answer:?}");
    let bare_folder = folder.join("plain");
    fs_err::create_dir_all(&bare_folder).unwrap();
    let answer = git_adapter.resolve(&local_source(&bare_folder), &BaseRef::Default).await;
    assert!(matches!(&answer, Err(GitError::NotFound { what }) if what.contains("git repository")), "{answer:?}");
}

#[tokio::test]
async fn a_shallow_clone_is_enough() {
    let folder = Folder::new();
    let origin = folder.join("origin");
    repository(&origin, &[("x", "1\n")]);
    write(&origin, "x", "2\n");
    let tip = commit_all(&origin, "second");
    git(folder.path(), ["clone", "-q", "--depth", "1", &format!("file://{origin}"), "shallow"]);
    let shallow = folder.join("shallow");
    let git_adapter = adapter(folder.path());
    let base = git_adapter.resolve(&local_source(&shallow), &BaseRef::Default).await.unwrap();
    assert_eq!(base.commit, tip);
    git_adapter.checkout(KEY, base.tree, &folder.join("out"), CheckoutKind::WithPrivateRepository).await.unwrap();
    write(&folder.join("out"), "x", "3\n");
    let tree = git_adapter.snapshot(KEY, base.tree, &folder.join("out")).await.unwrap();
    let commit = git_adapter.commit(KEY, &spec(base.commit, tree)).await.unwrap();
    let answer = git_adapter.publish_local(KEY, &shallow, "ai-agent/x", None, commit).await.unwrap();
    assert_eq!(answer, Pushed::Moved);
    assert_eq!(git(&shallow, ["show", "ai-agent/x:x"]), "3");
}

/// A change upon `HEAD`, committed in the mirror only.
async fn proposal(world: &Local, content: &str) -> fettle_domain::object::CommitId {
    let into = world.folder.join(&format!("out-{content}"));
    world.git.checkout(KEY, world.base.tree, &into, CheckoutKind::Plain).await.unwrap();
    write(&into, "dir/new", content);
    let tree = world.git.snapshot(KEY, world.base.tree, &into).await.unwrap();
    world.git.commit(KEY, &spec(world.base.commit, tree)).await.unwrap()
}

#[tokio::test]
async fn publishing_adds_a_branch_and_touches_nothing_else() {
    let world = Local::new(|repo| {
        repository(repo, &[("a", "a\n"), ("dir/old", "b\n")]);
        git(repo, ["gc", "-q"]);
        write(repo, "loose", "l\n");
        commit_all(repo, "loose objects beside the pack");
        write(repo, "a", "edited, not committed\n");
        write(repo, "dir/old", "staged\n");
        git(repo, ["add", "dir/old"]);
    })
    .await;
    let before = fingerprint(world.repo.as_std_path());
    let commit = proposal(&world, "one").await;
    assert_eq!(
        fingerprint(world.repo.as_std_path()),
        before,
        "reading and committing in the mirror write nothing here"
    );

    let answer = world.git.publish_local(KEY, &world.repo, "ai-agent/fix", None, commit).await.unwrap();
    assert_eq!(answer, Pushed::Moved);
    assert_eq!(commit_id(&world.repo, "ai-agent/fix"), commit);
    git(&world.repo, ["fsck", "--full", "--strict"]);
    let after = fingerprint(world.repo.as_std_path());
    for (path, content) in &before {
        assert_eq!(after.get(path), Some(content), "{}", path.display());
    }
    let added: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    let expected = |path: &str| path.contains("/.git/objects/") || path.ends_with("heads/ai-agent/fix");
    assert!(added.iter().all(|path| expected(path.to_str().unwrap())), "{added:?}");
}

#[tokio::test]
async fn a_local_branch_moves_only_from_where_it_was_expected() {
    let world = Local::new(|repo| {
        repository(repo, &[("a", "a\n")]);
        git(repo, ["worktree", "add", "-q", "-b", "held", "../held"]);
    })
    .await;
    let (one, two) = (proposal(&world, "one").await, proposal(&world, "two").await);
    let publish =
        |branch: &'static str, expected, commit| world.git.publish_local(KEY, &world.repo, branch, expected, commit);

    assert_eq!(publish("ai-agent/x", Some(two), one).await.unwrap(), Pushed::Conflict { found: None });
    assert_eq!(publish("ai-agent/x", None, one).await.unwrap(), Pushed::Moved);
    assert_eq!(publish("ai-agent/x", None, one).await.unwrap(), Pushed::AlreadyThere);
    assert_eq!(publish("ai-agent/x", None, two).await.unwrap(), Pushed::Conflict { found: Some(one) });
    git(&world.repo, ["pack-refs", "--all"]);
    assert_eq!(publish("ai-agent/x", Some(one), two).await.unwrap(), Pushed::Moved);
    assert_eq!(commit_id(&world.repo, "ai-agent/x"), two);

    for held in ["main", "held"] {
        let at = commit_id(&world.repo, held);
        let answer = publish(held, Some(at), one).await;
        assert!(matches!(&answer, Err(GitError::Invalid(text)) if text.contains("checked out")), "{answer:?}");
        assert_eq!(commit_id(&world.repo, held), at);
    }
    assert!(matches!(publish("../HEAD", None, one).await, Err(GitError::Invalid(_))));
    assert_eq!(tree_id(&world.repo, "HEAD"), world.base.tree);
}
