//! Repositories of every kind: what is in them stays as it is, byte by byte, and what is wrong with them is told.

use std::os::unix::fs::PermissionsExt;

use fettle_tests::fixtures::{Fix, Project, Repo, bash, create, finish, replace};
use fettle_tests::model::ModelServer;
use serde_json::json;

#[test]
fn only_the_bytes_of_the_edit_change() {
    let project = Project::SHELL;
    let repo = project.repo();
    let crlf = "\u{feff}one\r\ntwo\r\nthree\nno end".as_bytes();
    repo.write("notes/crlf.txt", crlf);
    let latin = b"caf\xe9\none\ncaf\xe9\r\n";
    repo.write("notes/latin.txt", latin);
    repo.write("tool.sh", "#!/bin/sh\necho one\n");
    fs_err::set_permissions(repo.path("tool.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    fs_err::os::unix::fs::symlink("notes/crlf.txt", repo.path("link")).unwrap();
    repo.commit("Files of every kind");
    let edits = [
        project.right_edit(),
        replace("notes/crlf.txt", "two\nthree", "2\nmore\n3"),
        replace("notes/latin.txt", "one", "$1 \\1 &"),
        replace("tool.sh", "echo one", "echo two"),
    ];
    let script = project.solving().phase("fix", edits.into_iter().chain([finish("Edit")]));
    let server = ModelServer::start(script.script());
    let ended = Fix::new(&repo, project.issue).model(&server).run().expect_proven();
    let branch = ended.text("branch");
    let at = |name: &str| repo.file_at(branch, name);
    assert_eq!(at("notes/crlf.txt"), "\u{feff}one\r\n2\r\nmore\r\n3\nno end".as_bytes());
    assert_eq!(at("notes/latin.txt"), b"caf\xe9\n$1 \\1 &\ncaf\xe9\r\n");
    let modes = repo.git(&["ls-tree", branch, "tool.sh", "link", "README.md"]);
    let modes: Vec<&str> = modes.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(modes, ["100644", "120000", "100755"]);
    assert_eq!(repo.changed_in(branch).len(), 5, "{ended}");
}

#[test]
fn a_submodule_of_the_base_stays_where_it_points() {
    let project = Project::SHELL;
    let library = Repo::with(&[("lib.txt", "library\n")]);
    let repo = project.repo();
    repo.git(&["submodule", "--quiet", "add", library.root().as_str(), "vendor/library"]);
    repo.commit("A submodule");
    let server = ModelServer::start(project.solving().script());
    let ended = Fix::new(&repo, project.issue).model(&server).run().expect_proven();
    let entry = |revision: &str| repo.git(&["ls-tree", revision, "vendor/library"]);
    assert_eq!(entry(ended.text("branch")), entry("main"));
    assert_eq!(repo.changed_in(ended.text("branch")), ["src/clamp.sh", "tests/above_test.sh"]);
}

#[test]
fn a_test_that_was_red_before_is_known_and_hinders_nothing() {
    let project = Project::SHELL;
    let repo = project.repo_with(&[("tests/red_test.sh", "test_red() { false; }\n")]);
    let server = ModelServer::start(project.solving().script());
    let ended = Fix::new(&repo, project.issue).model(&server).run().expect_proven();
    let suite = &ended.json()["proof"]["suite"];
    assert_eq!(
        (&suite["known_failures"], &suite["broken"]),
        (&json!(["tests/red_test.sh::test_red"]), &json!([])),
        "{suite}"
    );
}

#[test]
fn a_base_that_does_not_build_is_declined_before_any_model_is_asked() {
    let project = Project::SHELL;
    let config = format!("[build]\ncommand = \"false\"\n{}", project.files[0].1);
    let mostly_red = "test_one() { false; }\ntest_two() { false; }\ntest_three() { false; }\n";
    for (repo, reason) in [
        (
            project.repo_with(&[(".fettle.toml", &config)]),
            "the base does not build: its build command exits with status 1",
        ),
        (project.repo_with(&[("tests/red_test.sh", mostly_red)]), "3 of 5 tests fail on the base"),
        (project.repo_with(&[(".fettle.toml", "[test]\ncomand = \"x\"\n")]), ".fettle.toml, line 2"),
    ] {
        let server = ModelServer::start(project.solving().script());
        let ended = Fix::new(&repo, project.issue).model(&server).run().expect(4).reason_has(reason);
        assert_eq!((ended.text("outcome"), server.request_count()), ("no_patch", 0), "{ended}");
    }
}

#[test]
fn a_flaky_test_is_named_and_counts_for_nothing() {
    let project = Project::SHELL;
    // Passes wherever the bug is, fails the first time it sees the fix, and passes again ever after.
    let flaky = ". ./src/clamp.sh\ntest_flaky() {\n  seen=\"$CARGO_TARGET_DIR.seen\"\n  [ \"$(clamp 12 1 9)\" = 9 ] || return 0\n  \
                 [ -e \"$seen\" ] && return 0\n  touch \"$seen\"\n  return 1\n}\n";
    let repo = project.repo_with(&[("tests/flaky_test.sh", flaky)]);
    let server = ModelServer::start(project.solving().script());
    let ended = Fix::new(&repo, project.issue).model(&server).run().expect_proven();
    let suite = &ended.json()["proof"]["suite"];
    assert_eq!(
        (&suite["flaky"], &suite["broken"]),
        (&json!(["tests/flaky_test.sh::test_flaky"]), &json!([])),
        "{suite}"
    );
}

#[test]
fn a_repository_without_tests_gets_a_patch_that_says_it_is_not_proven() {
    let repo = Repo::with(&[("src/clamp.sh", Project::SHELL.files[3].1)]);
    let script = Project::SHELL.solving().phase("reproduce", [finish("no test: there is no runner")]);
    let server = ModelServer::start(script.script());
    Fix::new(&repo, Project::SHELL.issue).model(&server).run().expect_unproven("no_test_command");
}

#[test]
fn names_that_git_allows_and_people_do_not_expect_survive() {
    let project = Project::SHELL;
    let repo = project.repo_with(&[("with space/ü \"quote\"\\.txt", "one\n"), ("-dash", "one\n"), ("a\nb", "one\n")]);
    let edits = [
        project.right_edit(),
        bash("printf 'two\\n' > -dash; printf 'two\\n' > 'a\nb'"),
        create("with space/neu.txt", "n\n"),
    ];
    let script = project.solving().phase("fix", edits.into_iter().chain([finish("Edit")]));
    let server = ModelServer::start(script.script());
    let ended = Fix::new(&repo, project.issue).model(&server).run().expect_proven();
    let changed = repo.git(&[
        "-c",
        "core.quotePath=false",
        "diff-tree",
        "--no-commit-id",
        "--name-only",
        "-r",
        "-z",
        ended.text("branch"),
    ]);
    let changed: Vec<&str> = changed.split('\0').filter(|name| !name.is_empty()).collect();
    assert_eq!(changed, ["-dash", "a\nb", "src/clamp.sh", "tests/above_test.sh", "with space/neu.txt"]);
    assert_eq!(repo.file_at(ended.text("branch"), "-dash"), b"two\n");
}
