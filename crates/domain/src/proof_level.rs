//! The level of a Proof: a pure rule from what was observed to `Proven`, `Weak` or `Unproven`, with a reason per rule not met.
//!
//! Each broken rule has a ceiling. The level is the lowest ceiling; without a broken rule it is `Proven`.

use crate::proof::{
    Check, FailureKind, Granularity, Level, NEW_TEST_RUNS, NewTest, Outcome, Reason, ReasonCode, SuiteDelta,
    TouchedTest,
};

/// Flaky tests up to this many, or one in a hundred of the suite, are named and tolerated.
pub const FLAKY_TOLERATED: u32 = 5;

/// Names in one sentence; the lists themselves stand in the Proof.
const NAMES_SHOWN: usize = 3;

/// All that the rule looks at. What is absent was not observed.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The patch changes no file.
    pub empty: bool,
    /// No code token changed; then no new test is asked for.
    pub documentation_only: bool,
    /// The patch changes tests, or the phase 2 tree did.
    pub has_test_part: bool,
    pub new_tests: &'a [NewTest],
    /// `None`: there was no test command.
    pub suite: Option<&'a SuiteDelta>,
    pub checks: &'a [Check],
    pub touched_tests: &'a [TouchedTest],
    pub command_from_model: bool,
    /// The command was found by rule, not chosen by a person. Then its bare exit status is not enough for `Proven`.
    pub command_found_by_rule: bool,
    /// Changed files that decide which tests run, or how.
    pub changed_configuration: &'a [String],
    /// Changed lockfiles and dependency lists.
    pub changed_dependencies: &'a [String],
    /// Why the sandbox could not run every test, if so.
    pub sandbox_lacks: Option<&'a str>,
}

/// The level and, in the order of the rules, why it is not higher. `DocumentationOnly` is a note and lowers nothing.
pub fn level(seen: &Observed<'_>) -> (Level, Vec<Reason>) {
    let mut verdict = Verdict { level: Level::Proven, reasons: Vec::new() };
    if seen.empty {
        verdict.cap(Level::Unproven, ReasonCode::NoChange, "the patch changes nothing".to_owned());
        return (verdict.level, verdict.reasons);
    }
    let Some(suite) = seen.suite else {
        verdict.cap(Level::Unproven, ReasonCode::NoTestCommand, "no command is known that runs the tests".to_owned());
        judge_checks(seen.checks, &mut verdict);
        return (verdict.level, verdict.reasons);
    };
    if seen.documentation_only {
        let text = "only documentation changed, so no new test was asked for".to_owned();
        verdict.reasons.push(Reason { code: ReasonCode::DocumentationOnly, text });
    } else {
        judge_new_tests(seen, suite, &mut verdict);
    }
    judge_suite(suite, &mut verdict);
    judge_checks(seen.checks, &mut verdict);
    judge_circumstances(seen, &mut verdict);
    (verdict.level, verdict.reasons)
}

struct Verdict {
    level: Level,
    reasons: Vec<Reason>,
}

impl Verdict {
    fn cap(&mut self, ceiling: Level, code: ReasonCode, text: String) {
        self.level = self.level.min(ceiling);
        self.reasons.push(Reason { code, text });
    }
}

/// One good new test is enough; with none, every kind of shortfall is told once.
fn judge_new_tests(seen: &Observed<'_>, suite: &SuiteDelta, verdict: &mut Verdict) {
    if seen.new_tests.iter().any(|test| shortfall(test).is_none()) {
        let fails: Vec<_> = named(seen.new_tests, ReasonCode::NewTestFailsOnHead);
        if !fails.is_empty() {
            let text = format!("a new test fails on the patched code: {}", names(&fails));
            verdict.cap(Level::Unproven, ReasonCode::NewTestFailsOnHead, text);
        }
        return;
    }
    let kinds: [(ReasonCode, Level, &str); 4] = [
        (ReasonCode::NewTestFailsOnHead, Level::Unproven, "a new test fails on the patched code"),
        (ReasonCode::NewTestFlaky, Level::Weak, "a new test gave mixed results on one tree"),
        (
            ReasonCode::NewTestOnlyFailsToBuild,
            Level::Weak,
            "on the base the new test only fails to build, and it names no public symbol that the patch adds",
        ),
        (ReasonCode::NewTestPassesOnBase, Level::Weak, "the new test does not fail on the base"),
    ];
    for (code, ceiling, sentence) in kinds {
        let ids = named(seen.new_tests, code);
        if !ids.is_empty() {
            verdict.cap(ceiling, code, format!("{sentence}: {}", names(&ids)));
        }
    }
    if seen.new_tests.is_empty() {
        let text = match (seen.has_test_part, suite.fixed.as_slice()) {
            (true, []) => "the patch changes tests, but no test fails on the base and passes with the patch".to_owned(),
            (false, []) => "the patch brings no new test".to_owned(),
            (_, fixed) => format!(
                "the patch brings no new test; tests that failed on the base pass now: {}",
                names(&fixed.iter().map(String::as_str).collect::<Vec<_>>())
            ),
        };
        verdict.cap(Level::Weak, ReasonCode::NoNewTest, text);
    }
}

/// Why this test does not show the fix; `None` when it does.
fn shortfall(test: &NewTest) -> Option<ReasonCode> {
    let all = |outcomes: &[Outcome], wanted| outcomes.len() == NEW_TEST_RUNS && outcomes.iter().all(|&o| o == wanted);
    let mixed = |outcomes: &[Outcome]| outcomes.contains(&Outcome::Passed) && outcomes.contains(&Outcome::Failed);
    if mixed(&test.base) || mixed(&test.head) {
        Some(ReasonCode::NewTestFlaky)
    } else if test.head.iter().any(|&outcome| outcome != Outcome::Passed) {
        Some(ReasonCode::NewTestFailsOnHead)
    } else if !all(&test.base, Outcome::Failed) {
        // Such a test is not run again: however often it passes, it shows nothing.
        Some(ReasonCode::NewTestPassesOnBase)
    } else if !all(&test.head, Outcome::Passed) {
        Some(ReasonCode::NewTestFailsOnHead)
    } else if test.base_failure == Some(FailureKind::Build) && !test.names_added_symbol {
        Some(ReasonCode::NewTestOnlyFailsToBuild)
    } else {
        None
    }
}

fn judge_suite(suite: &SuiteDelta, verdict: &mut Verdict) {
    if suite.timed_out {
        let text = "the test suite did not end within its time limit".to_owned();
        verdict.cap(Level::Weak, ReasonCode::SuiteTimeout, text);
    }
    if !suite.broken.is_empty() {
        let text = format!("the patch breaks {}", counted(&suite.broken));
        verdict.cap(Level::Unproven, ReasonCode::SuiteBroken, text);
    }
    if !suite.vanished.is_empty() {
        let text = format!("ran on the base and not with the patch: {}", counted(&suite.vanished));
        verdict.cap(Level::Weak, ReasonCode::SuiteVanished, text);
    }
    let tolerated = FLAKY_TOLERATED.max(suite.base.total() / 100);
    if u32::try_from(suite.flaky.len()).unwrap_or(u32::MAX) > tolerated {
        let text = format!("more than {tolerated} tests gave mixed results on one tree: {}", counted(&suite.flaky));
        verdict.cap(Level::Weak, ReasonCode::EnvironmentUnstable, text);
    }
    if suite.granularity == Granularity::Command && suite.base.failed > 0 && suite.head.failed > 0 {
        let text = "the test command fails before and after, and single tests could not be told apart".to_owned();
        verdict.cap(Level::Unproven, ReasonCode::CommandGranularity, text);
    }
}

fn judge_checks(checks: &[Check], verdict: &mut Verdict) {
    for check in checks.iter().filter(|check| check.is_worse()) {
        let ceiling = if check.name == Check::BUILD { Level::Unproven } else { Level::Weak };
        let text = format!("`{}` succeeds on the base and fails with the patch", check.name);
        verdict.cap(ceiling, ReasonCode::CheckWorse, text);
    }
}

fn judge_circumstances(seen: &Observed<'_>, verdict: &mut Verdict) {
    if seen.command_from_model {
        let text = "the test command was suggested by the model".to_owned();
        verdict.cap(Level::Weak, ReasonCode::TestCommandFromModel, text);
    }
    let coarse = seen.suite.is_some_and(|suite| suite.granularity == Granularity::Command);
    if coarse && seen.command_found_by_rule {
        let text = "only the exit status of the whole test command is known".to_owned();
        verdict.cap(Level::Weak, ReasonCode::CommandGranularity, text);
    }
    if !seen.changed_configuration.is_empty() {
        let text = format!("the patch changes how tests are run: {}", counted(seen.changed_configuration));
        verdict.cap(Level::Weak, ReasonCode::TestConfigurationChanged, text);
    }
    let contradicted: Vec<_> = seen
        .touched_tests
        .iter()
        .filter(|t| t.base_version_on_head == Outcome::Failed)
        .map(|t| t.path.lossy())
        .collect();
    if !contradicted.is_empty() {
        let text = format!(
            "an existing test was changed, and as it was it fails on the patched code: {}",
            counted(&contradicted)
        );
        verdict.cap(Level::Weak, ReasonCode::TouchedTestFailsInBaseVersion, text);
    }
    if !seen.changed_dependencies.is_empty() {
        let text = format!("the patch changes dependencies: {}", counted(seen.changed_dependencies));
        verdict.cap(Level::Weak, ReasonCode::DependenciesChanged, text);
    }
    if let Some(lacks) = seen.sandbox_lacks {
        verdict.cap(Level::Weak, ReasonCode::SandboxLevel, lacks.to_owned());
    }
}

fn named(tests: &[NewTest], code: ReasonCode) -> Vec<&str> {
    tests.iter().filter(|test| shortfall(test) == Some(code)).map(|test| test.id.as_str()).collect()
}

fn counted(ids: &[String]) -> String {
    names(&ids.iter().map(String::as_str).collect::<Vec<_>>())
}

fn names(ids: &[&str]) -> String {
    let shown = ids.iter().take(NAMES_SHOWN).map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
    match ids.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::RepoPath;
    use crate::proof::{SuiteCounts, Touch};

    fn good() -> NewTest {
        NewTest {
            id: "parser::empty_line".into(),
            base: vec![Outcome::Failed; 3],
            base_failure: Some(FailureKind::Assertion),
            names_added_symbol: false,
            head: vec![Outcome::Passed; 3],
        }
    }

    fn green() -> SuiteDelta {
        SuiteDelta {
            granularity: Granularity::Test,
            base: SuiteCounts { passed: 10, failed: 0, skipped: 1 },
            head: SuiteCounts { passed: 11, failed: 0, skipped: 1 },
            fixed: vec![],
            broken: vec![],
            vanished: vec![],
            known_failures: vec![],
            flaky: vec![],
            timed_out: false,
        }
    }

    fn seen<'a>(new_tests: &'a [NewTest], suite: &'a SuiteDelta) -> Observed<'a> {
        Observed {
            empty: false,
            documentation_only: false,
            has_test_part: !new_tests.is_empty(),
            new_tests,
            suite: Some(suite),
            checks: &[],
            touched_tests: &[],
            command_from_model: false,
            command_found_by_rule: true,
            changed_configuration: &[],
            changed_dependencies: &[],
            sandbox_lacks: None,
        }
    }

    fn codes((level, reasons): (Level, Vec<Reason>)) -> (Level, Vec<ReasonCode>) {
        (level, reasons.into_iter().map(|r| r.code).collect())
    }

    #[test]
    fn a_new_test_that_fails_before_and_passes_after_with_a_green_suite_is_proven_without_reasons() {
        assert_eq!(level(&seen(&[good()], &green())), (Level::Proven, vec![]));
    }

    #[test]
    fn each_way_a_new_test_can_fall_short_has_its_code_and_ceiling() {
        use Outcome::{Absent, Failed, Passed};
        let cases = [
            (
                NewTest { base: vec![Passed; 3], base_failure: None, ..good() },
                Level::Weak,
                ReasonCode::NewTestPassesOnBase,
            ),
            (
                NewTest { base: vec![Absent; 3], base_failure: None, ..good() },
                Level::Weak,
                ReasonCode::NewTestPassesOnBase,
            ),
            (
                NewTest { base: vec![Passed], base_failure: None, head: vec![Passed], ..good() },
                Level::Weak,
                ReasonCode::NewTestPassesOnBase,
            ),
            (NewTest { base: vec![Failed; 2], ..good() }, Level::Weak, ReasonCode::NewTestPassesOnBase),
            (NewTest { head: vec![Failed; 3], ..good() }, Level::Unproven, ReasonCode::NewTestFailsOnHead),
            (NewTest { head: vec![], ..good() }, Level::Unproven, ReasonCode::NewTestFailsOnHead),
            (NewTest { base: vec![Failed, Passed, Failed], ..good() }, Level::Weak, ReasonCode::NewTestFlaky),
            (NewTest { head: vec![Passed, Passed, Failed], ..good() }, Level::Weak, ReasonCode::NewTestFlaky),
            (
                NewTest { base_failure: Some(FailureKind::Build), ..good() },
                Level::Weak,
                ReasonCode::NewTestOnlyFailsToBuild,
            ),
        ];
        for (test, ceiling, code) in cases {
            assert_eq!(codes(level(&seen(std::slice::from_ref(&test), &green()))), (ceiling, vec![code]), "{test:?}");
            let both = [test, good()];
            let (with_a_good_one, _) = level(&seen(&both, &green()));
            let expected = if ceiling == Level::Unproven { Level::Unproven } else { Level::Proven };
            assert_eq!(with_a_good_one, expected, "{:?}", both[0]);
        }
    }

    #[test]
    fn failing_to_build_counts_when_the_test_names_what_the_patch_adds() {
        let test = NewTest { base_failure: Some(FailureKind::Build), names_added_symbol: true, ..good() };
        assert_eq!(level(&seen(&[test], &green())).0, Level::Proven);
    }

    #[test]
    fn a_green_suite_without_a_new_test_is_weak_and_says_so() {
        assert_eq!(codes(level(&seen(&[], &green()))), (Level::Weak, vec![ReasonCode::NoNewTest]));
    }

    #[test]
    fn an_existing_test_that_merely_turned_green_is_named_and_proves_nothing() {
        let suite = SuiteDelta { fixed: vec!["old".into()], ..green() };
        let (found, reasons) = level(&seen(&[], &suite));
        assert_eq!((found, reasons[0].code), (Level::Weak, ReasonCode::NoNewTest));
        assert!(reasons[0].text.contains("`old`"), "{}", reasons[0].text);
    }

    #[test]
    fn every_other_rule_lowers_a_good_patch_to_its_ceiling() {
        let tests = [good()];
        let suites = [
            (SuiteDelta { broken: vec!["b".into()], ..green() }, Level::Unproven, ReasonCode::SuiteBroken),
            (SuiteDelta { vanished: vec!["v".into()], ..green() }, Level::Weak, ReasonCode::SuiteVanished),
            (SuiteDelta { timed_out: true, ..green() }, Level::Weak, ReasonCode::SuiteTimeout),
            (SuiteDelta { flaky: vec!["f".into(); 6], ..green() }, Level::Weak, ReasonCode::EnvironmentUnstable),
        ];
        for (suite, ceiling, code) in suites {
            assert_eq!(codes(level(&seen(&tests, &suite))), (ceiling, vec![code]));
        }
        let five_flaky = SuiteDelta { flaky: vec!["f".into(); 5], ..green() };
        assert_eq!(level(&seen(&tests, &five_flaky)).0, Level::Proven);

        let suite = green();
        let plain = seen(&tests, &suite);
        let build = [Check { name: Check::BUILD.into(), base_exit: Some(0), head_exit: Some(101) }];
        let lint = [Check { name: "lint".into(), base_exit: Some(0), head_exit: Some(1) }];
        let red_before = [Check { name: "lint".into(), base_exit: Some(1), head_exit: Some(1) }];
        let path = RepoPath::parse("tests/a.py").unwrap();
        let touched = [TouchedTest { path, how: Touch::Changed, base_version_on_head: Outcome::Failed }];
        let files = ["x".to_owned()];
        let circumstances = [
            (Observed { checks: &build, ..plain }, Level::Unproven, ReasonCode::CheckWorse),
            (Observed { checks: &lint, ..plain }, Level::Weak, ReasonCode::CheckWorse),
            (Observed { touched_tests: &touched, ..plain }, Level::Weak, ReasonCode::TouchedTestFailsInBaseVersion),
            (Observed { command_from_model: true, ..plain }, Level::Weak, ReasonCode::TestCommandFromModel),
            (Observed { changed_configuration: &files, ..plain }, Level::Weak, ReasonCode::TestConfigurationChanged),
            (Observed { changed_dependencies: &files, ..plain }, Level::Weak, ReasonCode::DependenciesChanged),
            (Observed { sandbox_lacks: Some("no loopback"), ..plain }, Level::Weak, ReasonCode::SandboxLevel),
            (Observed { suite: None, ..plain }, Level::Unproven, ReasonCode::NoTestCommand),
            (Observed { empty: true, ..plain }, Level::Unproven, ReasonCode::NoChange),
        ];
        for (observed, ceiling, code) in circumstances {
            assert_eq!(codes(level(&observed)), (ceiling, vec![code]));
        }
        assert_eq!(level(&Observed { checks: &red_before, ..plain }), (Level::Proven, vec![]));
    }

    #[test]
    fn a_bare_exit_status_proves_only_when_a_person_chose_the_command() {
        let (tests, suite) = ([good()], SuiteDelta { granularity: Granularity::Command, ..green() });
        assert_eq!(codes(level(&seen(&tests, &suite))), (Level::Weak, vec![ReasonCode::CommandGranularity]));
        assert_eq!(level(&Observed { command_found_by_rule: false, ..seen(&tests, &suite) }), (Level::Proven, vec![]));
    }

    #[test]
    fn documentation_needs_no_new_test_and_says_so() {
        let (found, reasons) = level(&Observed { documentation_only: true, ..seen(&[], &green()) });
        assert_eq!((found, reasons[0].code), (Level::Proven, ReasonCode::DocumentationOnly));
    }
}
