//! What test runners print, read into outcomes per test.
//!
//! Code under test writes into the same output, so a report is never trusted alone: the exit status comes from the runner,
//! and a report that contradicts it counts as a failure of the whole command.

mod jest;
mod junit;
mod libtest;
mod node;

use std::collections::BTreeMap;

use fettle_domain::proof::{FailureKind, Granularity, Outcome, SuiteCounts};
use serde::{Deserialize, Serialize};

pub use jest::parse as parse_jest;
pub use junit::parse as parse_junit;
pub use libtest::parse as parse_libtest;
pub use node::parse as parse_node;

/// Enough of a failure to see what it says.
const MESSAGE_CHARS_MAX: usize = 600;
/// A report with more tests than this is cut; the largest suites known have a tenth of it.
const CASES_MAX: usize = 1_000_000;

/// One test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    pub outcome: Outcome,
    /// How it failed; absent unless it failed.
    pub failure: Option<FailureKind>,
    pub message: String,
}

/// Tests by id. An id is unique and the same on every tree: a second test of the same name ends in `#2`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    pub cases: BTreeMap<String, Case>,
    /// Some tests were never reached, because a file of tests could not be compiled or loaded.
    pub not_built: bool,
}

impl Report {
    pub(crate) fn add(&mut self, id: &str, case: Case) {
        if self.cases.len() >= CASES_MAX {
            return;
        }
        if !self.cases.contains_key(id) {
            self.cases.insert(id.to_owned(), case);
            return;
        }
        let free = (2u32..).map(|n| format!("{id}#{n}")).find(|id| !self.cases.contains_key(id));
        self.cases.insert(free.expect("fewer tests than numbers"), case);
    }

    pub fn counts(&self) -> SuiteCounts {
        let count = |wanted| self.cases.values().filter(|case| case.outcome == wanted).count();
        let count = |wanted| u32::try_from(count(wanted)).unwrap_or(u32::MAX);
        SuiteCounts { passed: count(Outcome::Passed), failed: count(Outcome::Failed), skipped: count(Outcome::Skipped) }
    }

    pub fn failing(&self) -> impl Iterator<Item = (&str, &Case)> {
        self.cases.iter().filter(|(_, case)| case.outcome == Outcome::Failed).map(|(id, case)| (id.as_str(), case))
    }

    /// Adds another command's tests, told apart by its name when ids meet.
    pub(crate) fn merge(&mut self, other: Self) {
        self.not_built |= other.not_built;
        for (id, case) in other.cases {
            self.add(&id, case);
        }
    }

    /// Single tests were told apart.
    pub fn granularity(&self) -> Granularity {
        if self.cases.is_empty() { Granularity::Command } else { Granularity::Test }
    }
}

impl Case {
    pub(crate) fn passed() -> Self {
        Self { outcome: Outcome::Passed, failure: None, message: String::new() }
    }

    pub(crate) fn skipped() -> Self {
        Self { outcome: Outcome::Skipped, failure: None, message: String::new() }
    }

    pub(crate) fn failed(kind: FailureKind, message: &str) -> Self {
        let message = message.trim();
        Self {
            outcome: Outcome::Failed,
            failure: Some(kind),
            message: message.chars().take(MESSAGE_CHARS_MAX).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(report: &Report) -> Vec<String> {
        let show = |(id, case): (&String, &Case)| match case.failure {
            Some(kind) => format!("{id} = {:?} {kind:?}", case.outcome),
            None => format!("{id} = {:?}", case.outcome),
        };
        report.cases.iter().map(show).collect()
    }

    #[test]
    fn cargo_test_output_gives_one_id_per_test_and_binary() {
        let report = parse_libtest(include_str!("samples/cargo.txt"));
        let expected = [
            "fx (doc)::src/lib.rs - = Passed",
            "fx (doc)::src/lib.rs - add = Failed Assertion",
            "fx::tests::bad = Failed Assertion",
            "fx::tests::good = Passed",
            "fx::tests::later = Skipped",
            "fx::tests::panics = Passed",
            "fx::tests::unwraps = Failed Error",
            "it::outer = Passed",
        ];
        assert_eq!(shown(&report), expected);
        assert!(report.cases["fx::tests::bad"].message.contains("left: 2"));
        assert!(!report.not_built);
    }

    #[test]
    fn cargo_output_of_tests_that_do_not_compile_says_so() {
        let report = parse_libtest(include_str!("samples/cargo_no_build.txt"));
        assert!(report.not_built && report.cases.is_empty());
    }

    #[test]
    fn equal_binaries_of_two_packages_keep_their_tests_apart() {
        let one = "     Running tests/it.rs (target/debug/deps/it-91a660321255027c)\n\nrunning 1 test\ntest a ... ok\n";
        let two =
            "     Running tests/it.rs (target/debug/deps/it-0123456789abcdef)\n\nrunning 1 test\ntest a ... FAILED\n";
        let report = parse_libtest(&format!("{one}{two}"));
        assert_eq!(shown(&report), ["it#2::a = Failed Error", "it::a = Passed"]);
    }

    #[test]
    fn pytest_junit_gives_node_ids() {
        let report = parse_junit(include_str!("samples/pytest.xml")).unwrap();
        let expected = [
            "tests/test_a.py::TestC::test_p[1] = Passed",
            "tests/test_a.py::TestC::test_p[2] = Failed Assertion",
            "tests/test_a.py::TestU::test_u = Failed Assertion",
            "tests/test_a.py::test_bad = Failed Assertion",
            "tests/test_a.py::test_err = Failed Error",
            "tests/test_a.py::test_ok = Passed",
            "tests/test_a.py::test_skip = Skipped",
        ];
        assert_eq!(shown(&report), expected);
    }

    #[test]
    fn a_python_file_that_cannot_be_imported_is_a_failed_build() {
        let report = parse_junit(include_str!("samples/pytest_collect.xml")).unwrap();
        assert!(report.not_built);
        assert_eq!(shown(&report), ["tests/test_b.py = Failed Build"]);
    }

    #[test]
    fn node_tap_gives_leaves_with_their_groups() {
        let report = parse_node(include_str!("samples/node.tap"), "/workspace");
        let expected = [
            "adds = Passed",
            "breaks = Failed Assertion",
            "group > inner = Passed",
            "group > later = Skipped",
            "group > throws = Failed Error",
            "test/b.test.js = Failed Build",
        ];
        assert_eq!(shown(&report), expected);
        assert!(report.not_built);
    }

    #[test]
    fn node_spec_lines_give_the_same_tests_as_tap() {
        let spec = parse_node(include_str!("samples/node.spec"), "/workspace");
        let tap = parse_node(include_str!("samples/node.tap"), "/workspace");
        assert_eq!(shown(&spec), shown(&tap));
    }

    #[test]
    fn jest_and_vitest_json_give_ids_with_their_file() {
        for (sample, folder) in [(include_str!("samples/jest.json"), "j"), (include_str!("samples/vitest.json"), "v")] {
            let report = parse_jest(sample, "/workspace").unwrap();
            let expected = [
                format!("{folder}/a.test.js > adds = Passed"),
                format!("{folder}/a.test.js > g > bad = Failed Assertion"),
                format!("{folder}/a.test.js > g > later = Skipped"),
                format!("{folder}/b.test.js = Failed Build"),
            ];
            assert_eq!(shown(&report), expected);
            assert!(report.not_built);
        }
    }

    #[test]
    fn reports_that_are_no_reports_are_refused_or_empty() {
        assert!(parse_junit("<html").is_none());
        assert!(parse_jest("[]", "/w").is_none());
        assert!(parse_libtest("test result: ok.\ntest a\n").cases.is_empty());
        assert!(parse_node("hello", "/w").cases.is_empty());
    }
}
