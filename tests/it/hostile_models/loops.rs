//! Models that get nowhere: stopped at the figure of the rule, with a sentence, and with what was learned.

use fettle_tests::fixtures::{Ended, Project, bash, create, finish, replace};
use fettle_tests::model::{Answer, Conversation};

use super::{Run, fixing};

const PROJECT: Project = Project::SHELL;

/// No test is written and no change is made: the run ends without a patch.
fn idle(choose: impl Fn(&Conversation) -> Answer + Send + Sync + 'static) -> Run {
    let phases = PROJECT
        .solving()
        .phase("reproduce", [finish("no test: a model of this kind writes none")])
        .phase_with("fix", choose)
        .phase("notes", [Answer::text("The limit is handled in src/clamp.sh.")]);
    Run::of(&PROJECT, PROJECT.repo(), phases)
}

#[track_caller]
fn assert_stopped(run: Run, why: &str, calls: usize) -> Ended {
    let ended = run.ended.expect(4);
    assert_eq!(ended.text("outcome"), "no_patch");
    assert!(ended.text("reason").contains(&format!("stopped: the model {why}")), "{ended}");
    assert!(ended.text("reason").ends_with("last words: “The limit is handled in src/clamp.sh.”"), "{ended}");
    assert_eq!(run.server.phase_count("fix"), calls, "{ended}");
    ended
}

#[test]
fn the_same_call_with_the_same_result_stops_at_the_fifth() {
    let run = idle(|_| bash("echo same"));
    run.was_told("This bash call has given the same result 3 times");
    assert_stopped(run, "made the same bash call 5 times", 5);
}

#[test]
fn two_calls_in_turns_stop_at_the_sixth() {
    let run = idle(|talk| bash(if talk.turn() % 2 == 0 { "echo a" } else { "echo b" }));
    assert_stopped(run, "went back and forth between two calls", 6);
}

#[test]
fn a_workspace_that_goes_back_and_forth_is_stopped() {
    let run = idle(|talk| match talk.turn() % 2 {
        0 => replace(PROJECT.code, "echo \"$1\"", "echo $1"),
        _ => replace(PROJECT.code, "echo $1", "echo \"$1\""),
    });
    // It was stopped with a change, which is handed over with what it lacks.
    let ended = run
        .ended
        .expect_unproven("no_new_test")
        .reason_has("the model went back to the same state of the code 3 times");
    assert_eq!(run.server.phase_count("fix"), 7, "{ended}");
}

#[test]
fn turns_without_a_call_stop_at_the_third() {
    assert_stopped(idle(|_| Answer::text("I think it is done.")), "answered 3 times in a row without using a tool", 3);
}

#[test]
fn edits_that_do_not_match_are_shown_the_text_and_stop_at_the_fifth() {
    let run = idle(|talk| replace(PROJECT.code, &format!("elif [ \"$1\" -gt \"$4\" ]; then # {}", talk.turn()), "x"));
    run.was_told("error[no_match]: old does not occur in src/clamp.sh; nothing was changed. Closest regions:");
    run.was_told("str_replace has failed 2 times on src/clamp.sh");
    assert_stopped(run, "called str_replace on src/clamp.sh 5 times", 5);
}

#[test]
fn a_model_that_never_finishes_meets_the_cap_of_each_phase() {
    let phases = PROJECT
        .solving()
        .phase_with("triage", |talk| bash(&format!("echo {}", talk.turn())))
        .phase_with("reproduce", |talk| bash(&format!("echo {}", talk.turn() + 100)))
        .phase_with("fix", |talk| bash(&format!("echo {}", talk.turn() + 200)))
        .phase("notes", [Answer::text("Nothing was found.")]);
    let run = Run::of(&PROJECT, PROJECT.repo(), phases);
    run.was_told("25 calls have brought neither a change nor a new file");
    let ended = run.ended.expect(4).reason_has("no fix was found. Nothing was found.");
    let counts = ["triage", "reproduce", "fix", "notes"].map(|phase| run.server.phase_count(phase));
    assert_eq!((counts, &ended.json()["usage"]["calls"]), ([5, 12, 36, 1], &serde_json::json!(54)), "{ended}");
}

#[test]
fn a_change_made_before_the_stop_is_still_verified() {
    let turns = [PROJECT.right_edit()].into_iter().chain((0..5).map(|_| bash("echo same")));
    let run = fixing(&PROJECT, turns);
    assert!(run.ended.stderr.contains("stopped: the model made the same bash call"), "{}", run.ended);
    run.ended.expect_proven();
}

#[test]
fn triage_may_ask_decline_or_find_nothing_to_do() {
    for (verdict, reason) in [
        ("verdict: ask\nWhich limit?", "the model asks: Which limit?"),
        ("verdict: decline – this is a feature request", "this is a feature request"),
        ("verdict: nothing – src/clamp.sh does it", "no change seems to be needed: src/clamp.sh does it"),
    ] {
        let run = Run::of(&PROJECT, PROJECT.repo(), PROJECT.solving().phase("triage", [finish(verdict)]));
        let ended = run.ended.expect(4).reason_has(reason);
        assert_eq!((ended.text("outcome"), run.server.request_count()), ("no_patch", 1), "{ended}");
    }
}

#[test]
fn triage_and_its_commands_change_nothing() {
    let turns = [create("new.txt", "x"), bash("echo x > new.txt; rm -rf src; ls"), finish("verdict: go")];
    let run = Run::of(&PROJECT, PROJECT.repo(), PROJECT.solving().phase("triage", turns));
    run.was_told("error[read_only]");
    let ended = run.ended.expect_proven();
    assert_eq!(run.repo.changed_in(ended.text("branch")), ["src/clamp.sh", "tests/above_test.sh"]);
}
