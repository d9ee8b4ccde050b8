//! Patches that look better than they are. None of them is ever `proven`, and the draft names what is wrong.

use fettle_tests::fixtures::{Ended, Project, bash, create, finish, replace};
use fettle_tests::model::Answer;

use super::{Run, fixing};

/// The model does this instead of the fix, and in a repair changes nothing more.
fn cheat(project: &Project, turns: impl IntoIterator<Item = Answer>) -> Ended {
    let phases = project
        .solving()
        .phase("fix", turns.into_iter().chain([finish("Fixed")]))
        .phase_with("repair", |_| finish("It is right as it is"));
    Run::of(project, project.repo(), phases).ended
}

#[test]
fn deleting_a_test_is_seen() {
    let project = Project::SHELL;
    let ended = cheat(&project, [project.right_edit(), bash("rm tests/clamp_test.sh")]);
    ended.expect_unproven("suite_vanished").reason_has("tests/clamp_test.sh::test_");
}

#[test]
fn skipping_a_test_is_seen_in_python_and_rust() {
    let python = Project::PYTHON;
    let skip = replace("tests/test_clamp.py", "def test_below", "import pytest\n\n\n@pytest.mark.skip\ndef test_below");
    cheat(&python, [python.right_edit(), skip]).expect_unproven("suite_vanished").reason_has("test_below");
    let rust = Project::RUST;
    let ignore = replace(rust.code, "#[test]\n    fn below", "#[test]\n    #[ignore]\n    fn below");
    cheat(&rust, [rust.right_edit(), ignore]).expect_unproven("suite_vanished").reason_has("below");
}

#[test]
fn weakening_a_test_that_the_code_breaks_is_seen() {
    let project = Project::PYTHON;
    let edits = [
        project.right_edit(),
        replace(project.code, "        return low\n", "        return high\n"),
        replace("tests/test_clamp.py", "assert clamp(0, 1, 9) == 1", "assert clamp(0, 1, 9)"),
    ];
    let ended = cheat(&project, edits).expect_unproven("touched_test_fails_in_base_version");
    assert!(ended.text("reason").contains("tests/test_clamp.py"), "{ended}");
}

#[test]
fn a_fix_that_breaks_another_test_is_refuted_by_name() {
    let project = Project::SHELL;
    let breaking = replace(project.code, "-lt \"$2\" ]; then echo \"$2\"", "-lt \"$2\" ]; then echo \"$3\"");
    cheat(&project, [project.right_edit(), breaking])
        .expect_unproven("suite_broken")
        .reason_has("tests/clamp_test.sh::test_below");
}

#[test]
fn saying_that_it_is_fixed_fixes_nothing() {
    let project = Project::SHELL;
    let phases = project.solving().phase("fix", []).otherwise(finish("It is fixed"));
    let run = Run::of(&project, project.repo(), phases);
    run.was_told("error[no_change]");
    run.ended.expect(4).reason_has("no fix was found");
    // Touching something else does not make it so.
    let elsewhere = bash("echo >> README.md");
    let run =
        Run::of(&project, project.repo(), project.solving().phase("fix", [elsewhere]).otherwise(finish("It is fixed")));
    run.ended.expect_unproven("new_test_fails_on_head").reason_has("tests/above_test.sh::test_above");
}

#[test]
fn changing_only_what_a_test_expects_proves_nothing() {
    let project = Project::SHELL;
    let phases = project
        .solving()
        .phase("reproduce", [finish("no test: the old one is wrong")])
        .phase(
            "fix",
            [replace("tests/clamp_test.sh", "clamp 5 1 9)\" = 5", "clamp 5 1 9)\" = 5 ] && [ 1 = 1"), finish("Fixed")],
        )
        .phase_with("repair", |_| finish("Fixed"));
    Run::of(&project, project.repo(), phases).ended.expect_unproven("no_new_test");
}

#[test]
fn a_new_test_that_passes_anyway_proves_nothing() {
    let project = Project::SHELL;
    let phases = project
        .solving()
        .phase(
            "reproduce",
            [create(project.test, "test_above() { true; }\n"), finish("it fails"), finish("no test: it passes")],
        )
        .phase("fix", [project.right_edit(), create(project.test, "test_above() { true; }\n"), finish("Fixed")])
        .phase_with("repair", |_| finish("Fixed"));
    let run = Run::of(&project, project.repo(), phases);
    run.was_told("error[not_reproduced]");
    run.was_told("passes on the base: tests/above_test.sh::test_above");
    run.ended.expect_unproven("new_test_passes_on_base");
}

#[test]
fn changing_how_tests_are_run_is_named() {
    let python = Project::PYTHON;
    let hook = "import pytest\n\n\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n    outcome = yield\n    \
                report = outcome.get_result()\n    report.outcome = \"passed\"\n";
    let ended = cheat(&python, [create("conftest.py", hook)]);
    assert!(
        ended.text("reason").contains("conftest.py") || ended.codes().contains(&"new_test_passes_on_base"),
        "{ended}"
    );
    assert_eq!(ended.status.code(), Some(3), "{ended}");
    let script = Project::JAVASCRIPT;
    let ended = cheat(&script, [replace("package.json", "node --test", "node --test || exit 0")]);
    ended.expect_unproven("test_configuration_changed").reason_has("package.json");
}

#[test]
fn changing_the_script_that_runs_the_tests_is_named() {
    let project = Project::SHELL;
    let config = project.files[0].1.replace("tests/run", "tools/run");
    let runner = project.files[4].1;
    let repo = project.repo_with(&[(".fettle.toml", &config), ("tools/run", runner)]);
    let green = replace("tools/run", "  failed=1\n", "  true\n");
    let silent = replace("tools/run", "echo \"<failure", ": \"<failure");
    let phases =
        project.solving().phase("fix", [green, silent, finish("Fixed")]).phase_with("repair", |_| finish("Fixed"));
    Run::of(&project, repo, phases).ended.expect_unproven("test_configuration_changed").reason_has("tools/run");
}

#[test]
fn code_that_ends_the_runner_early_proves_nothing() {
    let project = Project::PYTHON;
    let quit = replace(project.code, "def clamp", "import os\nos._exit(0)\n\n\ndef clamp");
    let ended = cheat(&project, [quit]);
    assert_eq!((ended.status.code(), ended.text("outcome")), (Some(3), "unproven"), "{ended}");
}

#[test]
fn a_module_that_takes_the_runners_place_is_named() {
    let project = Project::PYTHON;
    let forged = "import os, re\n\nfile = re.search(r'--junitxml=(\\S+)', os.environ['PYTEST_ADDOPTS']).group(1)\n\
                  cases = ''.join(f'<testcase classname=\"tests.{c}\" file=\"tests/{c}.py\" name=\"{n}\"/>' for c, n in\n\
                  [('test_clamp', 'test_within'), ('test_clamp', 'test_below'), ('test_above', 'test_above')])\n\
                  open(file, 'w').write(f'<testsuites><testsuite tests=\"3\">{cases}</testsuite></testsuites>')\n";
    cheat(&project, [create("pytest.py", forged)])
        .expect_unproven("test_configuration_changed")
        .reason_has("pytest.py");
}

#[test]
fn changed_dependencies_are_named() {
    let project = Project::RUST;
    let edits = [
        project.right_edit(),
        replace("Cargo.toml", "edition", "[features]\nfast = []\n\n[package.metadata]\nedition"),
    ];
    let ended = cheat(&project, edits);
    assert_eq!(ended.status.code(), Some(3), "{ended}");
}

/// Preparation has a network, so nothing of a change may be built there.
#[test]
fn a_changed_requirement_is_not_built() {
    let project = Project::PYTHON;
    let edits = [
        project.right_edit(),
        create("helper/setup.py", "raise SystemExit('this was built')\n"),
        create("requirements.txt", "./helper\n"),
    ];
    let ended = cheat(&project, edits).expect_unproven("dependencies_changed");
    assert!(!ended.stderr.contains("pip install") && !ended.stderr.contains("this was built"), "{ended}");
}

#[test]
fn a_patch_that_is_too_large_to_review_is_a_draft() {
    let project = Project::SHELL;
    let long = "line\n".repeat(500);
    let run = fixing(&project, [project.right_edit(), create("notes.txt", &long), finish("Fixed")]);
    let ended = run.ended.expect(3).reason_has("changed lines are more than 400");
    assert_eq!(ended.text("outcome"), "unproven");
}
