//! How a run ends when something outside of it goes wrong: a sentence, the right exit status, and no traces.

use std::time::Duration;

use fettle_tests::fixtures::{Fix, Project, Snapshot, bash, eventually, run_of};
use fettle_tests::model::{Answer, Fault, ModelServer, Script};

/// A run reaches the point of a test within seconds; on a busy machine it takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn an_interrupt_while_the_model_writes_leaves_no_process_and_no_folder() {
    let project = Project::SHELL;
    let repo = project.repo();
    let stalled = Answer::text("…").with_fault(Fault::Stall(PATIENCE));
    let server = ModelServer::start(project.solving().phase("fix", [stalled]).script());
    let before = Snapshot::of(&repo);
    let running = Fix::new(&repo, project.issue).model(&server);
    let started = running.start();
    assert!(eventually(PATIENCE, || server.phase_count("fix") == 1), "the fix phase was not reached");
    started.interrupt();
    let ended = started.wait().expect(1);
    before.assert_untouched(&repo, None);
    assert!(ended.stderr.contains("error: stopped") && ended.stdout.is_empty(), "{ended}");
}

#[test]
fn an_interrupt_while_a_command_runs_ends_the_command() {
    let project = Project::SHELL;
    let repo = project.repo();
    let sleeping = bash("setsid sleep 86321 & sleep 86321");
    let server = ModelServer::start(project.solving().phase("fix", [sleeping]).script());
    let fix = Fix::new(&repo, project.issue).model(&server);
    let started = fix.start();
    let sleeps = || run_of(&fix.data_dir()).iter().filter(|process| process.contains(" sleep 86321")).count();
    assert!(eventually(PATIENCE, || sleeps() >= 2), "the command was not reached: {:?}", run_of(&fix.data_dir()));
    started.interrupt();
    let ended = started.wait().expect(1);
    assert!(ended.stderr.contains("error: stopped"), "{ended}");
}

#[test]
fn a_model_that_is_away_is_told_at_once_by_url_and_after_a_few_tries_by_configuration() {
    let project = Project::SHELL;
    let repo = project.repo();
    let url = ModelServer::start(project.solving().script()).base_url();
    let error_of = |fix: Fix<'_>| {
        let ended = fix.run().expect(1);
        let error = ended.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(error.contains(&url) && error.contains("connect"), "{ended}");
        (error.to_owned(), ended.stderr.contains("trying again in"))
    };
    let (error, tried_again) = error_of(Fix::new(&repo, project.issue).with(&["--model-url", &url]));
    assert!(error.contains("--model-url") && !tried_again, "{error}");
    let known = format!("[[gateway.models]]\nname = \"one\"\nbase_url = \"{url}\"\n");
    assert!(error_of(Fix::new(&repo, project.issue).config(&known)).1);
}

#[test]
fn the_name_of_a_model_is_asked_for_and_chosen_when_there_are_several() {
    let project = Project::SHELL;
    let repo = project.repo();
    let by_url = |server: &ModelServer| Fix::new(&repo, project.issue).with(&["--model-url", &server.base_url()]);
    let server = ModelServer::start(project.solving().script().listing_models(&["only/one"]));
    let ended = by_url(&server).run().expect_proven();
    assert!(server.requests().iter().all(|request| request.body["model"] == "only/one"), "{ended}");
    let server = ModelServer::start(project.solving().script().listing_models(&["one", "two"]));
    let ended = by_url(&server).run().expect(2);
    assert!(ended.stderr.contains("lists 2 models: one, two; choose one with --model-name"), "{ended}");
    assert_eq!(server.request_count(), 0);
    by_url(&server).with(&["--model-name", "two"]).run().expect_proven();
}

#[test]
fn a_model_that_refuses_the_key_or_the_request_is_told_at_once() {
    let project = Project::SHELL;
    let repo = project.repo();
    let server = ModelServer::start(project.solving().script().requiring_key("right"));
    let key = repo.beside("key");
    fs_err::write(&key, "wrong-key-1234567890\n").unwrap();
    let ended = Fix::new(&repo, project.issue).model(&server).with(&["--model-key-file", key.as_str()]).run().expect(1);
    assert!(ended.stderr.contains("error: ") && ended.stderr.contains("401"), "{ended}");
    assert!(ended.stderr.contains("--model-key-file") && server.request_count() == 0, "{ended}");
    assert!(!ended.stderr.contains("wrong-key"), "{ended}");
    let server = ModelServer::start(Script::always(Answer::empty().with_fault(Fault::status(400, "no such model"))));
    let ended = Fix::new(&repo, project.issue).model(&server).run().expect(1);
    assert!(ended.stderr.contains("no such model") && server.request_count() == 1, "{ended}");
}

#[test]
fn faults_that_pass_are_waited_for() {
    let project = Project::SHELL;
    let repo = project.repo();
    let mut fixing = project.fixing();
    fixing[0] = fixing[0].clone().failing_first(1, Fault::busy(Some(1)));
    fixing[1] = fixing[1].clone().failing_first(1, Fault::CutAfter { pieces: 2 });
    let mut reproducing = project.reproducing();
    reproducing[0] = reproducing[0].clone().failing_first(1, Fault::status(503, "loading"));
    let script = project.solving().phase("reproduce", reproducing).phase("fix", fixing);
    let server = ModelServer::start(script.script());
    let ended = Fix::new(&repo, project.issue).model(&server).run().expect_proven();
    let busy = ended.stderr.lines().find(|line| line.contains("the model is busy"));
    assert!(busy.is_some_and(|line| line.contains("trying again in 1 s")), "{ended}");
    // What failed is not counted as a call of the run.
    assert_eq!((server.request_count(), &ended.json()["usage"]["calls"]), (8, &serde_json::json!(5)), "{ended}");
}

#[test]
fn wrong_use_is_told_in_a_sentence_before_anything_is_done() {
    let project = Project::SHELL;
    let repo = project.repo();
    let server = ModelServer::start(project.solving().script());
    let fix = |issue: &'static str| Fix::new(&repo, issue);
    let known = format!("[[gateway.models]]\nname = \"one\"\nbase_url = \"{}\"\n", server.base_url());
    for (what, fix) in [
        ("there is no repository at", fix(project.issue).model(&server).on(repo.beside("nothing"))),
        ("a git repository at / does not exist", fix(project.issue).model(&server).on("/")),
        ("`nowhere` in the repository", fix(project.issue).model(&server).with(&["--base", "nowhere"])),
        ("the issue is empty", fix(" \n\n").model(&server)),
        ("no model is called `other`; known: one", fix(project.issue).config(&known).with(&["--model", "other"])),
        ("no model: give --model-url", fix(project.issue)),
        (
            "`git@x.example:a/b` is no path and no https:// address",
            fix(project.issue).model(&server).on("git@x.example:a/b"),
        ),
        ("`a..b c` is not a valid branch name", fix(project.issue).model(&server).with(&["--branch", "a..b c"])),
        ("the issue's number, such as 7", fix(project.issue).model(&server).with(&["--issue-id", "abc"])),
        ("--model-context 1000 is too small", fix(project.issue).model(&server).with(&["--model-context", "1000"])),
        ("--mode", fix(project.issue).model(&server).with(&["--mode", "fast"])),
        ("unexpected argument", fix(project.issue).model(&server).with(&["--nonsense"])),
    ] {
        let ended = fix.run();
        assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(2), ""), "{what}\n{ended}");
        assert!(ended.stderr.contains(what) && ended.stderr.starts_with("error: "), "{what}\n{ended}");
    }
    assert_eq!(server.request_count(), 0);
}
