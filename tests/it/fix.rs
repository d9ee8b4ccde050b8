//! `fettle fix` from issue to branch, on real repositories and with a scripted model. Each run is also checked for what must
//! hold however it ends: the checkout it was pointed at is as before, and neither a process nor a working folder stays.

#![expect(clippy::unwrap_used, reason = "in a test, a panic with its place is the report")]

mod dependencies;
mod ends;
mod repositories;

use fettle_tests::fixtures::{Ended, Fix, Project, Repo, finish, replace};
use fettle_tests::forge::{ForgeEmulator, ForgeOptions};
use fettle_tests::model::ModelServer;
use serde_json::{Value, json};

/// A run with the script that solves `project`, in its own repository.
fn solve(project: &Project) -> (Repo, ModelServer, Ended) {
    let repo = project.repo();
    let server = ModelServer::start(project.solving().script());
    let ended = Fix::new(&repo, project.issue).model(&server).with(&["--issue-id", "7"]).run();
    (repo, server, ended)
}

fn assert_whole_report(project: &Project) {
    let (repo, server, ended) = solve(project);
    let ended = ended.expect_proven();
    let report = ended.json();
    let branch = "ai-agent/quickfix-issue-7";
    assert_eq!(report["branch"], branch);
    assert_eq!(report["commit"], repo.git(&["rev-parse", branch]), "{ended}");
    assert_eq!(repo.git(&["rev-parse", &format!("{branch}^")]), repo.git(&["rev-parse", "main"]));
    let mut changed = [project.code, project.test];
    changed.sort_unstable();
    assert_eq!((ended.files(), repo.changed_in(branch)), (changed.to_vec(), changed.map(str::to_owned).to_vec()));
    assert_eq!(repo.file_at(branch, project.test), project.test_text.as_bytes());
    let message = repo.git(&["log", "-1", "--format=%an%n%B", branch]);
    assert!(message.starts_with("Fettle\nClamp to the upper limit\n") && message.contains("Refs #7"), "{message}");

    let proof = &report["proof"];
    assert_eq!((&proof["level"], &proof["base"]), (&json!("proven"), &json!(repo.git(&["rev-parse", "main"]))));
    assert_eq!(proof["head_tree"], repo.git(&["rev-parse", &format!("{branch}^{{tree}}")]));
    let [test] = proof["new_tests"].as_array().unwrap().as_slice() else { panic!("one new test\n{ended}") };
    assert!(test["id"].as_str().unwrap().contains("above"), "{test}");
    assert_eq!(
        (&test["base"], &test["head"]),
        (&json!(["failed", "failed", "failed"]), &json!(["passed", "passed", "passed"])),
        "{test}"
    );
    let suite = &proof["suite"];
    let counts = |side: &str| (suite[side]["passed"].as_u64(), suite[side]["failed"].as_u64());
    assert_eq!((counts("base"), counts("head")), ((Some(2), Some(0)), (Some(3), Some(0))), "{suite}");
    assert_eq!(suite["broken"], json!([]));
    let commands = proof["commands"].as_array().unwrap();
    assert!(commands.len() > 4 && commands.iter().all(|command| command["command"].is_string()), "{commands:?}");
    assert_eq!(report["usage"]["calls"], server.request_count());
}

#[test]
fn an_issue_of_a_rust_project_becomes_a_proven_branch() {
    assert_whole_report(&Project::RUST);
}

#[test]
fn an_issue_of_a_python_project_becomes_a_proven_branch() {
    assert_whole_report(&Project::PYTHON);
}

#[test]
fn an_issue_of_a_javascript_project_becomes_a_proven_branch() {
    assert_whole_report(&Project::JAVASCRIPT);
}

#[test]
fn an_issue_of_a_project_with_commands_of_its_own_becomes_a_proven_branch() {
    assert_whole_report(&Project::SHELL);
}

#[test]
fn what_is_not_committed_neither_takes_part_nor_is_touched() {
    let project = Project::SHELL;
    let repo = project.repo();
    repo.write("src/clamp.sh", "clamp() { echo 9; }\n");
    repo.write("staged", "staged\n");
    repo.git(&["add", "staged"]);
    repo.write("untracked", "untracked\n");
    repo.write("tests/broken_test.sh", "test_broken() { false; }\n");
    let server = ModelServer::start(project.solving().script());
    let ended = Fix::new(&repo, project.issue).model(&server).run().expect_proven();
    assert_eq!(repo.changed_in(ended.text("branch")), ["src/clamp.sh", "tests/above_test.sh"]);
    assert_eq!(ended.json()["proof"]["suite"]["base"]["failed"], 0);
}

#[test]
fn a_linked_worktree_gives_its_own_head_as_the_base() {
    let project = Project::SHELL;
    let repo = project.repo();
    repo.git(&["branch", "other"]);
    let linked = repo.beside("linked");
    repo.git(&["worktree", "add", "-q", linked.as_str(), "other"]);
    repo.write("README.md", "main has moved\n");
    repo.commit("Main moves");
    let server = ModelServer::start(project.solving().script());
    let fix = Fix::new(&repo, project.issue).model(&server).on(linked);
    let ended = fix.run().expect_proven();
    assert_eq!(ended.json()["proof"]["base"], repo.git(&["rev-parse", "other"]), "{ended}");
}

#[test]
fn each_run_leaves_a_branch_of_its_own() {
    let project = Project::SHELL;
    let repo = project.repo();
    let server = ModelServer::start(project.solving().script());
    let branches = [(); 2].map(|()| {
        let ended = Fix::new(&repo, project.issue).model(&server).with(&["--issue-id", "7"]).run().expect_proven();
        ended.text("branch").to_owned()
    });
    assert_eq!(branches, ["ai-agent/quickfix-issue-7", "ai-agent/quickfix-issue-7-g2"]);
    let ended = Fix::new(&repo, project.issue).model(&server).run().expect_proven();
    assert!(ended.text("branch").starts_with("ai-agent/quickfix-task-"), "{ended}");
}

#[test]
fn a_named_branch_is_made_and_never_overwritten() {
    let project = Project::SHELL;
    let repo = project.repo();
    let server = ModelServer::start(project.solving().script());
    let fix = || Fix::new(&repo, project.issue).model(&server).with(&["--branch", "mine/fix"]);
    assert_eq!(fix().run().expect_proven().text("branch"), "mine/fix");
    let (calls, before) = (server.request_count(), repo.git(&["rev-parse", "mine/fix"]));
    let ended = fix().run().expect(2);
    assert!(ended.stderr.contains("the branch mine/fix exists already") && ended.stdout.is_empty(), "{ended}");
    assert_eq!((server.request_count(), repo.git(&["rev-parse", "mine/fix"])), (calls, before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_gets_its_branch_in_a_copy_and_nothing_is_pushed() {
    let project = Project::SHELL;
    let repo = project.repo();
    let forge = ForgeEmulator::start(ForgeOptions { app: None, folder: None }).await.unwrap();
    let url = forge.clone_url(&forge.import_repository("octo/clamp", repo.root()).await.unwrap());
    let server = ModelServer::start(project.solving().script());
    let fix = Fix::new(&repo, project.issue).model(&server).with(&["--issue-id", "7"]).on(url);
    let ended = tokio::task::block_in_place(|| fix.start().wait()).expect_proven();
    let (copy, branch) = (ended.text("repository"), ended.text("branch"));
    repo.git(&["fetch", "--quiet", copy, branch]);
    assert_eq!(repo.git(&["rev-parse", "FETCH_HEAD"]), ended.text("commit"));
    assert_eq!((branch, forge.ref_updates().len()), ("ai-agent/quickfix-issue-7", 0));
}

#[test]
fn the_base_may_be_named_and_the_issue_may_come_by_standard_input() {
    let project = Project::SHELL;
    let repo = project.repo();
    repo.git(&["tag", "-a", "v1", "-m", "one"]);
    repo.write("src/clamp.sh", "clamp() { echo rewritten; }\n");
    repo.write("tests/clamp_test.sh", "test_nothing() { true; }\n");
    repo.commit("Something else");
    let server = ModelServer::start(project.solving().script());
    let fix = Fix::new(&repo, project.issue).model(&server).with(&["--base", "v1"]).issue_from_stdin();
    let ended = fix.run().expect_proven();
    assert_eq!(ended.json()["proof"]["base"], repo.git(&["rev-parse", "v1^{commit}"]));
    let prompt = &server.requests()[0].conversation().messages[1].text;
    assert!(
        prompt.contains("Title: clamp gives the lower limit") && prompt.contains("I expected clamp(12, 1, 9)"),
        "{prompt}"
    );
}

#[test]
fn the_operators_test_command_decides() {
    let project = Project::PYTHON;
    let repo = project.repo_with(&[("tests/test_red.py", "def test_red():\n    assert False\n")]);
    let server = ModelServer::start(project.solving().script());
    let narrow = "python3 -m pytest -q --ignore tests/test_red.py";
    let ended = Fix::new(&repo, project.issue).model(&server).with(&["--test", narrow]).run().expect_proven();
    let commands = ended.json()["proof"]["commands"].as_array().unwrap();
    assert!(commands.iter().all(|c| c["command"] == narrow && c["source"] == "operator"), "{commands:?}");
    assert_eq!(ended.json()["proof"]["suite"]["base"]["failed"], 0);
    // A command that is green whatever the code does shows nothing.
    let reproducing = project.reproducing().into_iter().chain([finish("no test: whatever I write passes")]);
    let server =
        ModelServer::start(project.solving().phase("reproduce", reproducing).otherwise(finish("As before")).script());
    let ended = Fix::new(&repo, project.issue).model(&server).with(&["--test", "true"]).run();
    ended.expect_unproven("no_new_test");
}

#[test]
fn a_refuted_fix_is_repaired_with_what_was_seen() {
    let project = Project::SHELL;
    let repo = project.repo();
    let wrong = replace(project.code, project.wrong, "-gt \"$3\" ]; then echo 10");
    let mended = replace(project.code, "echo 10", "echo \"$3\"");
    let script = project
        .solving()
        .phase("fix", [wrong, finish("A first try")])
        .phase("repair", [mended, finish("Clamp to the upper limit")]);
    let server = ModelServer::start(script.script());
    let ended = Fix::new(&repo, project.issue).model(&server).with(&["--mode", "refine"]).run().expect_proven();
    assert!(ended.text("branch").starts_with("ai-agent/refine-task-"), "{ended}");
    let asked =
        server.requests().into_iter().map(|request| request.conversation()).find(|c| c.phase() == Some("repair"));
    let asked = asked.expect("a repair was asked for");
    assert!(asked.last_text().contains("a new test fails on the patched code"), "{}", asked.last_text());
    assert_eq!(repo.git(&["log", "-1", "--format=%s", ended.text("branch")]), "Clamp to the upper limit");
}

#[test]
fn standard_output_is_one_object_and_progress_is_plain_lines_beside_it() {
    let (repo, server, ended) = solve(&Project::SHELL);
    let ended = ended.expect_proven();
    assert_eq!(ended.stdout.lines().count(), 1, "{ended}");
    assert!(serde_json::from_str::<Value>(&ended.stdout).is_ok_and(|report| report.is_object()));
    for phase in ["base-green", "triage", "reproduce", "fix", "verify"] {
        assert!(ended.stderr.lines().any(|line| line.ends_with(&format!("── {phase}"))), "no {phase}\n{ended}");
    }
    assert!(!ended.stderr.contains(['\u{1b}', '\r']), "{ended}");
    let text = Fix::new(&repo, Project::SHELL.issue).model(&server).as_text().run().expect(0);
    assert!(text.stdout.starts_with("PROVEN: branch ai-agent/quickfix-task-"), "{text}");
    assert!(text.stdout.contains("failed 3/3 before, passed 3/3 after") && text.stdout.contains("usage:"), "{text}");
}
