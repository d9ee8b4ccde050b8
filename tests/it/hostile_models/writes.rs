//! Files that a patch may not hold, and tricks with what lies around them.

use fettle_tests::fixtures::{Project, bash, create, finish};
use fettle_tests::model::Answer;
use serde_json::json;

use super::{Run, before_the_edit, fixing};

const PROJECT: Project = Project::SHELL;

/// The right fix and this command.
fn with(command: &str) -> Run {
    fixing(&PROJECT, before_the_edit(&PROJECT, [bash(command)]))
}

#[test]
fn protected_files_need_a_person_and_tools_refuse_them_at_once() {
    for path in [".github/workflows/ci.yml", "AGENTS.md", ".gitattributes", ".husky/pre-commit", "sub/.GITMODULES"] {
        let run = with(&format!("mkdir -p \"$(dirname {path})\" && echo x > {path}"));
        let ended = run.ended.expect(3).reason_has("is protected (rule ");
        assert_eq!((ended.text("outcome"), &ended.json()["proof"]["proven"]), ("unproven", &json!(false)), "{path}");
    }
    let run = fixing(
        &PROJECT,
        before_the_edit(&PROJECT, [create(".github/workflows/ci.yml", "on: push\n"), create(".env", "A=1\n")]),
    );
    run.was_told("error[forbidden_path]: .github/workflows/ci.yml must not be changed");
    run.was_told("error[forbidden_path]: .env must not be changed");
    run.ended.expect_proven();
}

#[test]
fn forbidden_files_and_links_are_rejected_without_a_branch() {
    for (command, reason) in [
        ("echo A=1 > .env", ".env must not be changed (rule .env)"),
        ("mkdir deploy && echo k > deploy/tls.KEY", "deploy/tls.KEY must not be changed"),
        ("ln -s /etc/passwd passwd", "the symlink passwd leaves the repository"),
        ("ln -s ../../outside up", "the symlink up leaves the repository"),
        ("ln -s .env harmless", "the symlink harmless names a forbidden file"),
        ("head -c 1100000 /dev/zero | tr '\\0' a > big.txt", "big.txt is larger than 1024 KiB"),
        ("seq 2500 > many.txt", "changed lines; at most 2000 can be published"),
    ] {
        let run = with(command);
        let ended = run.ended.expect(4).reason_has("the change was rejected").reason_has(reason);
        assert_eq!((ended.text("outcome"), ended.branch()), ("no_patch", None), "{ended}");
        assert_eq!(run.repo.git(&["for-each-ref", "--format=%(refname)"]), "refs/heads/main");
    }
}

#[test]
fn a_new_binary_needs_a_person() {
    with("printf 'a\\0b' > data.bin").ended.expect(3).reason_has("data.bin is a new binary file");
}

#[test]
fn the_tools_stay_inside_the_workspace() {
    let turns = [
        bash("ln -s /etc etc; ln -s ../../.. up"),
        Answer::call("view", json!({ "path": "../../../etc/passwd" })),
        Answer::call("view", json!({ "path": "/etc/passwd" })),
        Answer::call("view", json!({ "path": "etc/passwd" })),
        create("etc/fettle-was-here", "x"),
        create("../outside", "x"),
        create(".git/hooks/pre-commit", "#!/bin/sh\n"),
        Answer::call("search", json!({ "pattern": "root:", "path": "etc" })),
        bash("rm etc up"),
    ];
    let run = fixing(&PROJECT, before_the_edit(&PROJECT, turns));
    assert!(!run.told().contains("root:x:"), "{}", run.told());
    run.was_told("error[outside]");
    assert!(!std::path::Path::new("/etc/fettle-was-here").exists());
    run.ended.expect_proven();
}

#[test]
fn nothing_that_a_model_plants_in_git_is_ever_run() {
    let repo = PROJECT.repo();
    let sign = repo.beside("planted-code-ran");
    let evil = format!("#!/bin/sh\ntouch {sign}\ncat\n");
    let plant = format!(
        "printf %s '{evil}' > .git/evil; chmod 755 .git/evil\n\
         for hook in post-checkout pre-commit reference-transaction post-index-change update fsmonitor-watchman; do\n\
         cp .git/evil .git/hooks/$hook 2>/dev/null || {{ mkdir -p .git/hooks; cp .git/evil .git/hooks/$hook; }}; done\n\
         git config core.fsmonitor \"$PWD/.git/evil\"; git config core.hooksPath \"$PWD/.git/hooks\"\n\
         git config filter.evil.clean \"$PWD/.git/evil\"; git config filter.evil.smudge \"$PWD/.git/evil\"\n\
         git config diff.evil.textconv \"$PWD/.git/evil\"; mkdir -p .git/info; echo '* filter=evil diff=evil' > .git/info/attributes\n\
         git config core.worktree /etc; git config include.path /etc/passwd; rm -rf .git/objects; true"
    );
    // The user's own hooks are not Fettle's to run either.
    repo.write(".git/hooks/reference-transaction", &evil);
    repo.write(".git/hooks/post-checkout", &evil);
    for hook in ["reference-transaction", "post-checkout"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs_err::set_permissions(repo.path(".git/hooks").join(hook), mode).unwrap();
    }
    let phases = PROJECT.solving().phase("fix", before_the_edit(&PROJECT, [bash(&plant)]));
    let run = Run::of(&PROJECT, repo, phases);
    let ended = run.ended.expect_proven();
    assert!(!sign.exists(), "planted code ran\n{ended}");
    assert_eq!(run.repo.changed_in(ended.text("branch")), ["src/clamp.sh", "tests/above_test.sh"]);
}

#[test]
fn filters_of_the_base_are_not_run() {
    let sign = tempfile::tempdir().unwrap();
    let sign = camino::Utf8PathBuf::try_from(sign.path().join("filter-ran")).unwrap();
    let repo = PROJECT.repo_with(&[(".gitattributes", "*.sh filter=evil\n*.md text eol=crlf\n")]);
    repo.git(&["config", "filter.evil.smudge", &format!("touch {sign}; cat")]);
    repo.git(&["config", "filter.evil.clean", &format!("touch {sign}; cat")]);
    let run = Run::of(&PROJECT, repo, PROJECT.solving());
    let ended = run.ended;
    assert!(ended.status.success(), "{ended}");
    assert_eq!(run.repo.changed_in(ended.text("branch")), ["src/clamp.sh", "tests/above_test.sh"]);
}

#[test]
fn modes_of_a_patch_are_plain() {
    let turns = [
        bash("chmod 600 README.md; chmod 777 .gitignore; printf 'x\\n' > tool; chmod 4755 tool"),
        bash("chmod 755 tool; chmod 644 .gitignore"),
    ];
    let run = fixing(&PROJECT, before_the_edit(&PROJECT, turns));
    run.was_told("error[workspace]: `tool` has a set-user-id or set-group-id bit");
    let ended = run.ended.expect_proven();
    let modes = run.repo.git(&["ls-tree", "-r", ended.text("branch")]);
    let modes: Vec<(&str, &str)> =
        modes.lines().filter_map(|line| Some((line.split_once(' ')?.0, line.split_once('\t')?.1))).collect();
    assert!(modes.iter().all(|(mode, _)| matches!(*mode, "100644" | "100755")), "{modes:?}");
    assert!(modes.contains(&("100755", "tool")) && modes.contains(&("100644", "README.md")), "{modes:?}");
}

#[test]
fn strange_things_in_the_workspace_do_not_hang_the_run() {
    let turns = [
        bash(
            "mkfifo pipe; mknod null c 1 3; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'; ls -l",
        ),
        Answer::call("view", json!({ "path": "pipe" })),
        Answer::call("search", json!({ "pattern": "clamp" })),
        create("pipe", "x"),
        bash("rm -f pipe null sock"),
        bash("mkdir -p deep/$(seq -s / 150); mkdir -p a; ln -s ../a a/loop; ls a/loop/loop/loop; rm -rf deep a"),
        bash("mkdir many; cd many; seq 10000 | xargs touch; cd ..; rm -rf many"),
    ];
    let run = fixing(&PROJECT, before_the_edit(&PROJECT, turns));
    let ended = run.ended.expect_proven();
    assert_eq!(run.repo.changed_in(ended.text("branch")), ["src/clamp.sh", "tests/above_test.sh"]);
}

#[test]
fn a_thousand_new_files_are_no_change_that_anybody_reviews() {
    let run = with("mkdir many; cd many; seq 2500 | split -l 2 -a 5 - f");
    run.ended.expect(4).reason_has("the change was rejected");
}

#[test]
fn what_cannot_be_a_part_of_a_change_is_told_until_it_is_gone() {
    let turns = [bash("mkfifo pipe"), PROJECT.right_edit(), finish("Fixed"), bash("rm -f pipe"), finish("Fixed")];
    fixing(&PROJECT, turns).ended.expect_proven();
}
