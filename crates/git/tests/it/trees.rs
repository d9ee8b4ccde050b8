//! Trees out to files and back in.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::git::{CheckoutKind, GitError, Repositories, TreeEdit};
use fettle_domain::object::TreeId;
use fettle_domain::patch::FileMode;
use fettle_domain::path::RepoPath;
use proptest::prelude::*;

use crate::support::{
    Folder, KEY, Local, commit_all, commit_id, git, git_command, git_with_input, repository, tree_id, write,
};

const SUBMODULE: &str = "1234567890123456789012345678901234567890";

/// Everything that a careless checkout changes: line ends, marks, modes, links, names, attributes with filters.
fn awkward(repo: &Utf8Path) {
    git(repo, ["init", "-q", "-b", "main"]);
    write(repo, "crlf.txt", "one\r\ntwo\r\n");
    write(repo, "mixed.txt", "one\r\ntwo\n");
    write(repo, "bom.txt", "\u{feff}text\n");
    write(repo, "empty", "");
    write(repo, "no-final-newline", "x");
    write(repo, "binary.dat", [0_u8, 255, 10, 13, 10]);
    write(repo, "deep/er/and/deeper.rs", "fn main() {}\n");
    write(repo, "deep.er/dot", "sorts between\n");
    write(repo, "run.sh", "#!/bin/sh\n");
    fs_err::set_permissions(repo.join("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    fs_err::write(Path::new(repo).join(std::ffi::OsStr::from_bytes(b"caf\xe9.txt")), "latin\n").unwrap();
    symlink("deep/er", repo.join("link-to-folder")).unwrap();
    symlink("nowhere", repo.join("dangling")).unwrap();
    symlink("/etc/passwd", repo.join("outside")).unwrap();
    // Added before the attributes, so that git stores the bytes as they are.
    git(repo, ["add", "."]);
    write(repo, ".gitattributes", "*.txt text eol=crlf\n*.dat filter=lfs\n*.rs ident\n");
    git(repo, ["add", ".gitattributes"]);
    git(repo, ["update-index", "--add", "--cacheinfo", &format!("160000,{SUBMODULE},libs/sub")]);
    git(repo, ["commit", "-q", "-m", "awkward"]);
}

#[tokio::test]
async fn a_checkout_is_the_tree_byte_for_byte_and_a_snapshot_of_it_the_same_tree() {
    let world = Local::new(awkward).await;
    let into = world.folder.join("out");
    let report = world.git.checkout(KEY, world.base.tree, &into, CheckoutKind::Plain).await.unwrap();

    let listed = world.git.list(KEY, world.base.tree).await.unwrap();
    assert_eq!(report.files as usize, listed.len() - 1);
    assert_eq!(report.submodules, [RepoPath::parse("libs/sub").unwrap()]);
    let mut bytes = 0;
    for (path, mode, object) in &listed {
        let place = into.as_std_path().join(std::ffi::OsStr::from_bytes(path.as_bytes()));
        let metadata = fs_err::symlink_metadata(&place).unwrap();
        let stored =
            || git_command(&world.repo).args(["cat-file", "blob", &object.to_string()]).output().unwrap().stdout;
        match mode {
            FileMode::Regular | FileMode::Executable => {
                assert_eq!(fs_err::read(&place).unwrap(), stored(), "{path}");
                assert_eq!(metadata.permissions().mode() & 0o100 != 0, *mode == FileMode::Executable, "{path}");
                bytes += metadata.len();
            }
            FileMode::Symlink => {
                assert_eq!(fs_err::read_link(&place).unwrap().as_os_str().as_bytes(), stored(), "{path}")
            }
            FileMode::Submodule => assert!(fs_err::read_dir(&place).unwrap().next().is_none()),
        }
    }
    assert_eq!(report.bytes, bytes);
    assert!(!into.join(".git").exists());
    assert_eq!(world.git.snapshot(KEY, world.base.tree, &into).await.unwrap(), world.base.tree);
    assert!(matches!(
        world.git.checkout(KEY, world.base.tree, &into, CheckoutKind::Plain).await,
        Err(GitError::Invalid(text)) if text.contains("not empty")
    ));
}

#[tokio::test]
async fn a_private_repository_is_clean_sound_and_holds_nothing_but_its_tree() {
    let world = Local::new(|repo| {
        awkward(repo);
        write(repo, "later-secret", "of a later commit\n");
        git(repo, ["add", "later-secret"]);
        git(repo, ["commit", "-q", "-m", "later"]);
    })
    .await;
    let first = commit_id(&world.repo, "HEAD~1");
    let tree = tree_id(&world.repo, &first.to_string());
    let into = world.folder.join("out");
    world.git.checkout(KEY, tree, &into, CheckoutKind::WithPrivateRepository).await.unwrap();

    assert_eq!(git(&into, ["status", "--porcelain"]), "");
    git(&into, ["fsck", "--full", "--strict", "--no-dangling"]);
    assert_eq!(git(&into, ["rev-parse", "HEAD^{tree}"]), tree.to_string());
    assert_eq!(git(&into, ["rev-list", "--all", "--count"]), "1");
    assert_eq!(git(&into, ["remote"]), "");
    assert!(!into.join(".git/objects/info/alternates").exists());
    let reachable = git(&into, ["rev-list", "--objects", "--no-object-names", "HEAD"]).lines().count();
    let stored = git(&into, ["cat-file", "--batch-all-objects", "--batch-check"]).lines().count();
    assert_eq!(stored, reachable);

    write(&into, "no-final-newline", "y");
    assert_eq!(git(&into, ["status", "--porcelain"]), " M no-final-newline");
    assert!(git(&into, ["diff"]).contains("-x\n"));
    let tree_after = world.git.snapshot(KEY, tree, &into).await.unwrap();
    let changed = world.git.diff(KEY, first, tree_after).await.unwrap();
    assert_eq!(changed.changes.iter().map(|change| change.path.lossy()).collect::<Vec<_>>(), ["no-final-newline"]);
}

#[tokio::test]
async fn a_snapshot_takes_what_git_would_track_and_leaves_what_tools_and_ignore_rules_leave_behind() {
    let world = Local::new(|repo| {
        repository(
            repo,
            &[
                (".gitignore", "*.log\n/build/\n!keep.log\n"),
                ("sub/.gitignore", "/only-here\n"),
                ("tracked.log", "tracked though ignored\n"),
                ("build/tracked", "in an ignored folder\n"),
                ("target/source.txt", "not cargo's\n"),
                ("gone.txt", "will be deleted\n"),
                ("a", "becomes a folder\n"),
            ],
        );
    })
    .await;
    let into = world.folder.join("out");
    world.git.checkout(KEY, world.base.tree, &into, CheckoutKind::WithPrivateRepository).await.unwrap();

    write(&into, "tracked.log", "changed\n");
    write(&into, "build/tracked", "changed too\n");
    write(&into, "build/output", "ignored\n");
    write(&into, "debug.log", "ignored\n");
    write(&into, "keep.log", "wanted\n");
    write(&into, "only-here", "not ignored at the root\n");
    write(&into, "sub/only-here", "ignored\n");
    write(&into, "node_modules/x/index.js", "made by npm\n");
    write(&into, "pkg/__pycache__/m.pyc", "made by python\n");
    write(&into, "venv/pyvenv.cfg", "home = /usr\n");
    write(&into, "out/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n");
    write(&into, "out/debug/app", "made by cargo\n");
    write(&into, "target/new.txt", "beside a tracked file\n");
    write(&into, "new/.gitignore", "*\n");
    write(&into, "new/hidden", "cannot hide itself\n");
    fs_err::remove_file(into.join("gone.txt")).unwrap();
    fs_err::remove_file(into.join("a")).unwrap();
    write(&into, "a/b", "in a folder\n");
    symlink("/etc", into.join("etc")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(into.join("pipe")).status().unwrap().success());

    let tree = world.git.snapshot(KEY, world.base.tree, &into).await.unwrap();
    let patch = world.git.diff(KEY, world.base.commit, tree).await.unwrap();
    let seen: Vec<String> = patch
        .changes
        .iter()
        .map(|change| {
            let sign = match (&change.before, &change.after) {
                (None, _) => '+',
                (_, None) => '-',
                _ => '~',
            };
            format!("{sign}{}", change.path)
        })
        .collect();
    assert_eq!(
        seen,
        [
            "-a",
            "+a/b",
            "~build/tracked",
            "+etc",
            "-gone.txt",
            "+keep.log",
            "+new/.gitignore",
            "+new/hidden",
            "+only-here",
            "+target/new.txt",
            "~tracked.log"
        ]
    );
    let (mode, target) = world.git.read_file(KEY, tree, &RepoPath::parse("etc").unwrap()).await.unwrap().unwrap();
    assert_eq!((mode, &target[..]), (FileMode::Symlink, &b"/etc"[..]));

    // Few are looked for one by one, and many by a walk; both say the same of files, folders and nothing.
    let names = ["etc", "a/b", "a", "nowhere", "new/hidden", "new", "keep.log", "keep.log/x", "tracked.log", "etc"];
    let paths: Vec<RepoPath> = names.iter().map(|name| RepoPath::parse(name).unwrap()).collect();
    let mut each = Vec::new();
    for path in &paths {
        each.push(world.git.read_file(KEY, tree, path).await.unwrap());
    }
    assert_eq!(world.git.read_files(KEY, tree, paths[..3].to_vec()).await.unwrap(), each[..3]);
    assert_eq!(world.git.read_files(KEY, tree, paths).await.unwrap(), each);
    assert_eq!(each.iter().map(Option::is_some).collect::<Vec<_>>()[..5], [true, true, false, false, true]);
}

#[tokio::test]
async fn what_a_tree_must_not_hold_is_refused_by_path() {
    let world = Local::new(|repo| repository(repo, &[("tracked", "x\n"), ("sub/x", "x\n")])).await;
    let refusals: [(&str, Harm); 6] = [
        ("vendor/.git", |folder| repository(&folder.join("vendor"), &[("x", "x")])),
        ("sub/.git", |folder| write(folder, "sub/.git", "gitdir: /elsewhere\n")),
        (".GIT", |folder| write(folder, ".GIT/config", "[core]\n")),
        ("suid", |folder| {
            write(folder, "suid", "x");
            fs_err::set_permissions(folder.join("suid"), PermissionsExt::from_mode(0o4755)).unwrap();
        }),
        ("tracked", |folder| {
            fs_err::remove_file(folder.join("tracked")).unwrap();
            assert!(std::process::Command::new("mkfifo").arg(folder.join("tracked")).status().unwrap().success());
        }),
        ("huge", |folder| fs_err::File::create(folder.join("huge")).unwrap().set_len(101 << 20).unwrap()),
    ];
    for (number, (path, harm)) in refusals.into_iter().enumerate() {
        let into = world.folder.join(&format!("out{number}"));
        world.git.checkout(KEY, world.base.tree, &into, CheckoutKind::Plain).await.unwrap();
        harm(&into);
        let answer = world.git.snapshot(KEY, world.base.tree, &into).await;
        assert!(
            matches!(&answer, Err(GitError::Invalid(text)) if text.contains(&format!("`{path}`"))),
            "{path}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_tree_made_to_leave_its_folder_is_refused_before_anything_is_written() {
    let world = Local::new(|repo| repository(repo, &[("x", "x\n")])).await;
    let blob = git_with_input(&world.repo, &["hash-object", "-w", "--stdin"], b"evil\n");
    let raw = hex_bytes(&blob);
    let tree_with = |lines: &[(&str, &[u8])]| -> TreeId {
        let mut data = Vec::new();
        for (mode, name) in lines {
            data.extend_from_slice(format!("{mode} ").as_bytes());
            data.extend_from_slice(name);
            data.push(0);
            data.extend_from_slice(&raw);
        }
        git_with_input(&world.repo, &["hash-object", "-t", "tree", "--literally", "-w", "--stdin"], &data)
            .parse()
            .unwrap()
    };
    let evil: [&[(&str, &[u8])]; 7] = [
        &[("100644", b"..")],
        &[("100644", b".git")],
        &[("100644", b".GiT")],
        &[("100644", "\u{200d}.git".as_bytes())],
        &[("100644", b"git~1")],
        &[("100644", b"a/b")],
        &[("120000", b"twice"), ("100644", b"twice")],
    ];
    for (number, lines) in evil.into_iter().enumerate() {
        let tree = tree_with(lines);
        let into: Utf8PathBuf = world.folder.join(&format!("evil{number}"));
        let answer = world.git.checkout(KEY, tree, &into, CheckoutKind::Plain).await;
        assert!(matches!(answer, Err(GitError::Invalid(_))), "{number}: {answer:?}");
        assert!(!into.exists());
    }
}

fn hex_bytes(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test]
async fn a_large_tree_is_written_by_several_threads_and_read_back() {
    let world = Local::new(|repo| {
        git(repo, ["init", "-q", "-b", "main"]);
        for number in 0..1_500 {
            write(
                repo,
                &format!("d{}/e{}/f{number}", number % 7, number % 31),
                format!("{number}\n").repeat(number % 90),
            );
        }
        commit_all(repo, "large");
    })
    .await;
    let into = world.folder.join("out");
    let report = world.git.checkout(KEY, world.base.tree, &into, CheckoutKind::WithPrivateRepository).await.unwrap();
    assert_eq!(report.files, 1_500);
    assert_eq!(git(&into, ["status", "--porcelain"]), "");
    assert_eq!(world.git.snapshot(KEY, world.base.tree, &into).await.unwrap(), world.base.tree);
}

type Harm = fn(&Utf8Path);

fn any_tree() -> impl Strategy<Value = Vec<(String, FileMode, Vec<u8>)>> {
    let name = prop_oneof!["[a-c]", "[a-c]\\.[a-c]", "[a-c]-", "é"];
    let path = prop::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"));
    let mode = prop_oneof![Just(FileMode::Regular), Just(FileMode::Executable), Just(FileMode::Symlink)];
    prop::collection::vec((path, mode, prop::collection::vec(1_u8..255, 1..40)), 0..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_survives_checkout_and_snapshot(files in any_tree()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let world = Local::new(|repo| repository(repo, &[("x", "x\n")])).await;
            // A path may not be a file and a folder; the first mention wins.
            let mut taken: Vec<String> = vec!["x".into()];
            let mut edits = Vec::new();
            for (path, mode, content) in files {
                let clash = |other: &String| {
                    *other == path || other.starts_with(&format!("{path}/")) || path.starts_with(&format!("{other}/"))
                };
                if taken.iter().any(clash) {
                    continue;
                }
                edits.push(TreeEdit { path: RepoPath::parse(&path).unwrap(), put: Some((mode, Bytes::from(content))) });
                taken.push(path);
            }
            let tree = world.git.edit_tree(KEY, world.base.tree, edits).await.unwrap();
            let into = world.folder.join("out");
            world.git.checkout(KEY, tree, &into, CheckoutKind::WithPrivateRepository).await.unwrap();
            assert_eq!(git(&into, ["status", "--porcelain"]), "");
            assert_eq!(world.git.snapshot(KEY, world.base.tree, &into).await.unwrap(), tree);
        });
    }
}

#[tokio::test]
async fn a_checkout_needs_a_mirror_and_a_key_that_is_a_name() {
    let folder = Folder::new();
    let git = crate::support::adapter(folder.path());
    let tree: TreeId = SUBMODULE.parse().unwrap();
    let into = folder.join("out");
    assert!(matches!(git.checkout("absent", tree, &into, CheckoutKind::Plain).await, Err(GitError::NotFound { .. })));
    assert!(matches!(git.checkout("../up", tree, &into, CheckoutKind::Plain).await, Err(GitError::Invalid(_))));
}
