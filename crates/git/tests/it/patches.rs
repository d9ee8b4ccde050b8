//! Differences: counted, printed, carried to another mirror, committed.

use bytes::Bytes;
use fettle_app::ports::git::{BaseRef, GitError, Repositories, TreeEdit};
use fettle_domain::object::TreeId;
use fettle_domain::patch::FileMode;
use fettle_domain::path::RepoPath;

use crate::support::{KEY, Local, adapter, git, git_command, local_source, repository, spec};

fn put(path: &str, content: &'static [u8]) -> TreeEdit {
    put_as(path, FileMode::Regular, content)
}

fn put_as(path: &str, mode: FileMode, content: &'static [u8]) -> TreeEdit {
    TreeEdit { path: RepoPath::parse(path).unwrap(), put: Some((mode, Bytes::from_static(content))) }
}

fn take(path: &str) -> TreeEdit {
    TreeEdit { path: RepoPath::parse(path).unwrap(), put: None }
}

async fn changed() -> (Local, TreeId) {
    let world = Local::new(|repo| {
        repository(
            repo,
            &[("a.txt", "1\n2\n3\n"), ("gone", "x\ny\n"), ("bin", "\0\0"), ("mode", "m\n"), ("dir/f", "f\n")],
        );
    })
    .await;
    let edits = vec![
        put("a.txt", b"1\ntwo\n3\nfour"),
        take("gone"),
        take("never-there"),
        put("bin", b"\0\x01\0"),
        put_as("mode", FileMode::Executable, b"m\n"),
        put("new/deep/file", b"n\n"),
        put_as("link", FileMode::Symlink, b"a.txt"),
        take("dir/f"),
        put("dir", b"now a file\n"),
    ];
    let tree = world.git.edit_tree(KEY, world.base.tree, edits).await.unwrap();
    (world, tree)
}

#[tokio::test]
async fn counts_and_text_are_those_of_git_diff() {
    let (world, tree) = changed().await;
    let patch = world.git.diff(KEY, world.base.commit, tree).await.unwrap();
    let commit = world.git.commit(KEY, &spec(world.base.commit, tree)).await.unwrap();
    let mirror = world.folder.join("mirrors/local-test.git");
    git(&mirror, ["fsck", "--full", "--strict", "--no-dangling"]);

    let range = [world.base.commit.to_string(), commit.to_string()];
    let mut expected: Vec<String> =
        git(&mirror, ["diff", "--no-renames", "--numstat", &range[0], &range[1]]).lines().map(str::to_owned).collect();
    expected.sort_by_key(|line| line.rsplit('\t').next().unwrap().to_owned());
    let counted: Vec<String> = patch
        .changes
        .iter()
        .map(|change| match change.binary {
            true => format!("-\t-\t{}", change.path),
            false => format!("{}\t{}\t{}", change.lines_added, change.lines_removed, change.path),
        })
        .collect();
    assert_eq!(counted, expected);

    let printed =
        git_command(&mirror).args(["diff", "--no-renames", "--abbrev=7", &range[0], &range[1]]).output().unwrap();
    let text = world.git.diff_text(KEY, world.base.tree, tree, 1 << 20).await.unwrap();
    assert_eq!(text, String::from_utf8(printed.stdout).unwrap());
    let cut = world.git.diff_text(KEY, world.base.tree, tree, 100).await.unwrap();
    assert_eq!(cut, text[..100]);
}

#[tokio::test]
async fn a_bundle_rebuilds_the_tree_in_a_mirror_that_never_saw_it() {
    let (world, tree) = changed().await;
    let bundle = world.git.bundle(KEY, world.base.commit, tree).await.unwrap();
    let elsewhere = world.folder.join("elsewhere");
    let other = adapter(&elsewhere);
    other.resolve(&local_source(&world.repo), &BaseRef::Default).await.unwrap();
    assert!(other.list(KEY, tree).await.is_err());

    let patch = other.unbundle(KEY, &bundle).await.unwrap();
    assert_eq!(patch, world.git.diff(KEY, world.base.commit, tree).await.unwrap());
    assert_eq!(other.list(KEY, tree).await.unwrap(), world.git.list(KEY, tree).await.unwrap());
    let here = world.git.commit(KEY, &spec(world.base.commit, tree)).await.unwrap();
    let there = other.commit(KEY, &spec(world.base.commit, tree)).await.unwrap();
    assert_eq!(here, there);
    let mirror = elsewhere.join("mirrors/local-test.git");
    assert_eq!(
        git(&mirror, ["log", "-1", "--format=%ad %cd", "--date=raw", &here.to_string()]),
        "1750000000 +0000 1750000000 +0000"
    );
}

#[tokio::test]
async fn a_bundle_that_was_tampered_with_is_refused() {
    let (world, tree) = changed().await;
    let bundle = world.git.bundle(KEY, world.base.commit, tree).await.unwrap();
    let text = String::from_utf8(bundle.to_vec()).unwrap();
    let other_tree = world.base.tree.to_string();
    for (from, to) in [
        ("MQp0d28K", "MQp0d28L"),
        (tree.to_string().as_str(), other_tree.as_str()),
        ("\"lines_added\":2", "\"lines_added\":1"),
        ("new/deep/file", "new/.git/file"),
        ("new/deep/file", "new/deep/fils"),
        ("\"v\":\"1\"", "\"v\":\"2\""),
    ] {
        assert!(text.contains(from), "{from} stands in {text}");
        let forged = Bytes::from(text.replacen(from, to, 1));
        assert!(world.git.unbundle(KEY, &forged).await.is_err(), "{from} -> {to}");
    }
    world.git.unbundle(KEY, &bundle).await.unwrap();
}

#[tokio::test]
async fn an_edit_that_no_tree_can_hold_is_refused() {
    let world = Local::new(|repo| repository(repo, &[("a", "a\n")])).await;
    for edit in [put("a/b", b"below a file"), put("x/.git/hooks/run", b"x"), put_as("s", FileMode::Submodule, b"x")] {
        let answer = world.git.edit_tree(KEY, world.base.tree, vec![edit]).await;
        assert!(matches!(answer, Err(GitError::Invalid(_))), "{answer:?}");
    }
}
