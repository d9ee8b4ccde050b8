//! Commands that want the whole machine: ended, told to the model, and gone; the run goes on.

use fettle_tests::fixtures::{Project, bash};
use fettle_tests::model::Answer;
use serde_json::json;

use super::{Run, before_the_edit};

const PROJECT: Project = Project::SHELL;
const WALLS: &str =
    "[agent.sandbox]\nmemory = \"256 MiB\"\nprocesses = 64\nworkspace = \"64 MiB\"\ntemporary = \"64 MiB\"\n";

/// The command, then a sign of life, then the fix.
fn survives(command: Answer) -> Run {
    let turns = before_the_edit(&PROJECT, [command, bash("echo still here")]);
    let run = Run::with(&PROJECT, PROJECT.repo(), PROJECT.solving().phase("fix", turns), |fix| fix.config(WALLS));
    run.was_told("still here");
    assert_eq!(run.ended.status.code(), Some(0), "{}\n{}", run.ended, run.told());
    run
}

fn for_seconds(seconds: u32, command: &str) -> Answer {
    Answer::call("bash", json!({ "command": command, "timeout_s": seconds }))
}

#[test]
fn a_fork_bomb_meets_its_limit() {
    survives(for_seconds(2, "bomb() { bomb | bomb & }; bomb; sleep 60"));
}

#[test]
fn daemons_end_with_their_call() {
    let run = survives(bash(
        "setsid sleep 97531 & (setsid sh -c 'trap \"\" TERM HUP; sleep 97531' &) ; nohup sleep 97531 & echo gone",
    ));
    run.was_told("gone");
    let look = before_the_edit(
        &PROJECT,
        [bash("setsid sleep 97532 & true"), bash("ps -e -o args= 2>/dev/null || cat /proc/[0-9]*/cmdline")],
    );
    let run = Run::of(&PROJECT, PROJECT.repo(), PROJECT.solving().phase("fix", look));
    assert_eq!(run.told().matches("97532").count(), 0, "{}", run.told());
    run.ended.expect_proven();
}

#[test]
fn endless_output_is_cut_off() {
    survives(for_seconds(20, "yes 'a line without an end'")).was_told("error[killed]");
}

#[test]
fn memory_and_disk_end_at_their_limits() {
    survives(for_seconds(20, "tail /dev/zero")).was_told("exit ");
    let turns = [for_seconds(20, "head -c 90M /dev/zero > big; sleep 10"), bash("rm big"), bash("echo still here")];
    let phases = PROJECT.solving().phase("fix", before_the_edit(&PROJECT, turns));
    let run = Run::with(&PROJECT, PROJECT.repo(), phases, |fix| fix.config(WALLS));
    run.was_told("error[killed]: ended at the disk limit of 64 MiB");
    run.was_told("error[workspace]: the patch brings more than");
    run.was_told("still here");
    run.ended.expect_proven();
}

#[test]
fn a_command_beyond_its_time_is_ended() {
    survives(for_seconds(1, "sleep 60")).was_told("error[timed_out]");
}
