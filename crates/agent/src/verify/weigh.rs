//! One suite weighed: the new tests on both sides, what the patch breaks and loses, and what the old tests say of the new code.

use std::collections::BTreeMap;

use fettle_domain::object::TreeId;
use fettle_domain::path::RepoPath;
use fettle_domain::proof::{
    CommandSource, FailureKind, Granularity, NEW_TEST_RUNS, NewTest, Outcome, SuiteDelta, Touch, TouchedTest,
};

use super::lab::{Lab, SuiteEnd, SuiteRun, VerifyError};
use super::split::Split;
use crate::ecosystem::{Selection, Suite};
use crate::prepare::Prepared;

/// New tests beyond this are not followed one by one; a patch of more is no quick fix.
const NEW_TESTS_MAX: usize = 50;
/// Suspects beyond this are run again together instead of alone.
const ALONE_MAX: usize = 5;
/// Names kept per list of a Proof; the counts tell the rest.
const NAMES_MAX: usize = 500;
/// Reruns of a suspect on each side.
const RERUNS: usize = 3;

/// The trees that are compared.
#[derive(Clone)]
pub(super) struct Trees<'a> {
    pub(super) base: TreeId,
    pub(super) head: TreeId,
    /// The base with the test part of the patch.
    pub(super) test: Option<TreeId>,
    pub(super) test_files: Vec<RepoPath>,
    /// The head with the existing tests as they were.
    pub(super) old: Option<TreeId>,
    pub(super) base_prepared: &'a Prepared,
    pub(super) head_prepared: &'a Prepared,
}

/// What one suite, or all of them, have shown.
pub(super) struct Findings {
    pub(super) delta: SuiteDelta,
    pub(super) new_tests: Vec<NewTest>,
    pub(super) touched: Vec<TouchedTest>,
}

pub(super) async fn weigh(
    lab: &mut Lab<'_>,
    suite: &Suite,
    base: &SuiteRun,
    trees: &Trees<'_>,
    split: &Split,
) -> Result<Findings, VerifyError> {
    let at = lab.checkout(trees.head, trees.head_prepared).await?;
    let head = lab.suite(&at, suite, &Selection::All, "tests on head").await?;
    let mut delta = compare(suite, base, &head);
    let suspects = suspects(base, &head);
    if head.end != SuiteEnd::NotBuilt && head.end != SuiteEnd::TimedOut && !suspects.is_empty() {
        let verdict = rerun(lab, suite, trees, &suspects, Outcome::Failed).await?;
        delta.broken.extend(verdict.steady);
        delta.flaky.extend(verdict.mixed);
    }
    let mut new_tests = match trees.test {
        Some(test) => new_tests(lab, suite, base, &head, (test, trees), split).await?,
        None => Vec::new(),
    };
    if suite.source == CommandSource::Operator && new_tests.is_empty() && !delta.fixed.is_empty() {
        let verdict = rerun(lab, suite, trees, &delta.fixed.clone(), Outcome::Passed).await?;
        delta.fixed.retain(|id| verdict.steady.contains(id));
        new_tests = verdict.steady.iter().map(|id| turned_green(id, base)).collect();
        delta.flaky.extend(verdict.mixed);
    }
    for test in new_tests.iter().filter(|test| is_mixed(&test.base) || is_mixed(&test.head)) {
        delta.flaky.push(test.id.clone());
    }
    let touched = old_tests(lab, suite, base, trees, split).await?;
    trim(&mut delta);
    Ok(Findings { delta, new_tests, touched })
}

/// The suite before and after, without the reruns that decide what is broken.
fn compare(suite: &Suite, base: &SuiteRun, head: &SuiteRun) -> SuiteDelta {
    let mut delta = SuiteDelta {
        granularity: coarser(base.granularity, head.granularity),
        base: base.report.counts(),
        head: head.report.counts(),
        fixed: Vec::new(),
        broken: Vec::new(),
        vanished: Vec::new(),
        known_failures: Vec::new(),
        flaky: Vec::new(),
        timed_out: base.end == SuiteEnd::TimedOut || head.end == SuiteEnd::TimedOut,
    };
    for (id, case) in &base.report.cases {
        // A file that could not be loaded stands in the report as a test, and goes when it can be.
        let unloaded = case.failure == Some(FailureKind::Build);
        let now = head.report.cases.get(id).map_or(Outcome::Absent, |case| case.outcome);
        match (case.outcome, now) {
            (Outcome::Failed, Outcome::Passed) => delta.fixed.push(id.clone()),
            (Outcome::Failed, Outcome::Failed) => delta.known_failures.push(id.clone()),
            (Outcome::Passed, Outcome::Absent | Outcome::Skipped) => delta.vanished.push(id.clone()),
            (Outcome::Failed, Outcome::Absent | Outcome::Skipped) if !unloaded => delta.vanished.push(id.clone()),
            _ => {}
        }
    }
    let fell_over = match head.end {
        SuiteEnd::NotBuilt => Some("the tests no longer build"),
        SuiteEnd::Unexplained => Some("the command fails without naming a test"),
        SuiteEnd::Passed | SuiteEnd::Failed | SuiteEnd::TimedOut => None,
    };
    if let Some(how) = fell_over.filter(|_| base.end != head.end) {
        delta.broken.push(format!("{} ({how})", suite.command));
    }
    delta
}

/// Tests that passed on the base and fail on the head, by name.
fn suspects(base: &SuiteRun, head: &SuiteRun) -> Vec<String> {
    let failing = head.report.failing().filter(|(id, _)| base.outcome(id).0 == Outcome::Passed);
    failing.map(|(id, _)| id.to_owned()).collect()
}

struct Verdict {
    /// The head's outcome in every rerun there, and the opposite in every rerun on the base.
    steady: Vec<String>,
    mixed: Vec<String>,
}

/// Runs tests again on both sides: `on_head` is what they did there, and the base did the opposite.
async fn rerun(
    lab: &mut Lab<'_>,
    suite: &Suite,
    trees: &Trees<'_>,
    ids: &[String],
    on_head: Outcome,
) -> Result<Verdict, VerifyError> {
    let on_base = if on_head == Outcome::Failed { Outcome::Passed } else { Outcome::Failed };
    let sides = [
        (trees.head, trees.head_prepared, on_head, "again on head"),
        (trees.base, trees.base_prepared, on_base, "again on base"),
    ];
    let mut steady = ids.to_vec();
    let mut mixed = Vec::new();
    for (tree, prepared, expected, purpose) in sides {
        if steady.is_empty() {
            break;
        }
        let at = lab.checkout(tree, prepared).await?;
        let groups: Vec<Vec<String>> =
            if steady.len() > ALONE_MAX || suite.command_for(&Selection::Cases(steady[..1].to_vec())).is_none() {
                vec![steady.clone()]
            } else {
                steady.iter().map(|id| vec![id.clone()]).collect()
            };
        for group in groups {
            for _ in 0..RERUNS {
                let run = lab.suite(&at, suite, &Selection::Cases(group.clone()), purpose).await?;
                for id in &group {
                    if steady.contains(id) && run.outcome(id).0 != expected {
                        steady.retain(|other| other != id);
                        mixed.push(id.clone());
                    }
                }
                if !group.iter().any(|id| steady.contains(id)) {
                    break;
                }
            }
        }
    }
    Ok(Verdict { steady, mixed })
}

/// An existing test under the operator's own command: red in every run on the base, green in every run on the head.
fn turned_green(id: &str, base: &SuiteRun) -> NewTest {
    NewTest {
        id: id.to_owned(),
        base: vec![Outcome::Failed; NEW_TEST_RUNS],
        base_failure: base.outcome(id).1,
        names_added_symbol: false,
        head: vec![Outcome::Passed; NEW_TEST_RUNS],
    }
}

/// The tests that the patch adds or changes: three runs with only the test part on the base, three on the head.
async fn new_tests(
    lab: &mut Lab<'_>,
    suite: &Suite,
    base: &SuiteRun,
    head: &SuiteRun,
    (test, trees): (TreeId, &Trees<'_>),
    split: &Split,
) -> Result<Vec<NewTest>, VerifyError> {
    let names_added_symbol = split.tests_name_an_added_symbol();
    let at = lab.checkout(test, trees.base_prepared).await?;
    let files = Selection::Files(trees.test_files.clone());
    let first = lab.suite(&at, suite, &files, "new tests on base").await?;
    let mut found: BTreeMap<String, NewTest> = BTreeMap::new();
    for id in candidates(base, &first, head) {
        let (outcome, base_failure) = first.outcome(&id);
        let now = head.outcome(&id).0;
        found
            .insert(id.clone(), NewTest { id, base: vec![outcome], base_failure, names_added_symbol, head: vec![now] });
    }
    // A test that passes with the test part alone proves nothing, however often it does so.
    let worth: Vec<String> = found.values().filter(|t| t.base[0] == Outcome::Failed).map(|t| t.id.clone()).collect();
    if worth.is_empty() {
        return Ok(found.into_values().collect());
    }
    let alone = Selection::Cases(worth.clone());
    let alone = if suite.command_for(&alone).is_some() { alone } else { files.clone() };
    // What does not build has no tests to choose from, so the same selection runs again.
    let again = match first.end {
        SuiteEnd::NotBuilt | SuiteEnd::Unexplained | SuiteEnd::TimedOut => files,
        SuiteEnd::Passed | SuiteEnd::Failed => alone.clone(),
    };
    for _ in 1..NEW_TEST_RUNS {
        let run = lab.suite(&at, suite, &again, "new tests on base").await?;
        for id in &worth {
            found.entry(id.clone()).and_modify(|test| test.base.push(run.outcome(id).0));
        }
    }
    let at = lab.checkout(trees.head, trees.head_prepared).await?;
    for _ in 1..NEW_TEST_RUNS {
        let run = lab.suite(&at, suite, &alone, "new tests on head").await?;
        for id in &worth {
            found.entry(id.clone()).and_modify(|test| test.head.push(run.outcome(id).0));
        }
    }
    Ok(found.into_values().collect())
}

/// Tests that the head runs and the base lacks, and those that passed on the base and fail there with the test part.
fn candidates(base: &SuiteRun, test: &SuiteRun, head: &SuiteRun) -> Vec<String> {
    let mut worth = Vec::new();
    let mut rest = Vec::new();
    for (id, case) in &head.report.cases {
        if !matches!(case.outcome, Outcome::Passed | Outcome::Failed) || case.failure == Some(FailureKind::Build) {
            continue;
        }
        let before = base.outcome(id).0;
        let with_tests = test.outcome(id).0;
        let is_new = base.report.cases.get(id).is_none_or(|case| case.outcome == Outcome::Skipped);
        match with_tests {
            Outcome::Failed if is_new || (before == Outcome::Passed && test.report.cases.contains_key(id)) => {
                worth.push(id.clone());
            }
            // Not there with the test part alone: it stands in what the split left with the code.
            Outcome::Passed | Outcome::Failed if is_new => rest.push(id.clone()),
            _ => {}
        }
    }
    worth.extend(rest);
    worth.truncate(NEW_TESTS_MAX);
    worth
}

/// Existing tests as they were, on the new code.
async fn old_tests(
    lab: &mut Lab<'_>,
    suite: &Suite,
    base: &SuiteRun,
    trees: &Trees<'_>,
    split: &Split,
) -> Result<Vec<TouchedTest>, VerifyError> {
    let Some(old) = trees.old else { return Ok(Vec::new()) };
    let at = lab.checkout(old, trees.head_prepared).await?;
    let files: Vec<RepoPath> = split.touched.iter().map(|(path, _)| path.clone()).collect();
    let run = lab.suite(&at, suite, &Selection::Files(files), "old tests on head").await?;
    let failing: Vec<&str> =
        run.report.failing().map(|(id, _)| id).filter(|id| base.outcome(id).0 == Outcome::Passed).collect();
    let fell_over = !matches!(run.end, SuiteEnd::Passed | SuiteEnd::Failed) && run.end != base.end;
    let touched = |(path, how): &(RepoPath, Touch)| {
        let name = path.lossy();
        // Where ids begin with a file, a failure elsewhere says nothing about this one.
        let concerns = |id: &str| !id.contains(['/', '.']) || id.starts_with(&name) || !names_a_file(id);
        let failed = fell_over || failing.iter().any(|id| concerns(id));
        let outcome = if failed { Outcome::Failed } else { Outcome::Passed };
        TouchedTest { path: path.clone(), how: *how, base_version_on_head: outcome }
    };
    Ok(split.touched.iter().map(touched).collect())
}

/// `tests/test_a.py::test_b`, `src/a.test.js > group > test`.
fn names_a_file(id: &str) -> bool {
    let first = id.split("::").next().and_then(|part| part.split(" > ").next()).unwrap_or(id);
    first != id && [".py", ".js", ".ts", ".jsx", ".tsx", ".mjs", ".cjs"].iter().any(|end| first.ends_with(end))
}

impl Findings {
    /// Two suites of one repository together; the coarser one says how fine the whole is.
    pub(super) fn and(mut self, other: Self) -> Self {
        let (mine, theirs) = (&mut self.delta, other.delta);
        mine.granularity = coarser(mine.granularity, theirs.granularity);
        for (counts, more) in [(&mut mine.base, theirs.base), (&mut mine.head, theirs.head)] {
            counts.passed += more.passed;
            counts.failed += more.failed;
            counts.skipped += more.skipped;
        }
        mine.fixed.extend(theirs.fixed);
        mine.broken.extend(theirs.broken);
        mine.vanished.extend(theirs.vanished);
        mine.known_failures.extend(theirs.known_failures);
        mine.flaky.extend(theirs.flaky);
        mine.timed_out |= theirs.timed_out;
        self.new_tests.extend(other.new_tests);
        for touched in other.touched {
            match self.touched.iter_mut().find(|mine| mine.path == touched.path) {
                Some(mine) if touched.base_version_on_head == Outcome::Failed => *mine = touched,
                Some(_) => {}
                None => self.touched.push(touched),
            }
        }
        self
    }
}

fn coarser(a: Granularity, b: Granularity) -> Granularity {
    if a == Granularity::Command || b == Granularity::Command { Granularity::Command } else { Granularity::Test }
}

fn is_mixed(outcomes: &[Outcome]) -> bool {
    outcomes.contains(&Outcome::Passed) && outcomes.contains(&Outcome::Failed)
}

fn trim(delta: &mut SuiteDelta) {
    for list in [&mut delta.fixed, &mut delta.broken, &mut delta.vanished, &mut delta.known_failures, &mut delta.flaky]
    {
        list.sort();
        list.dedup();
        list.truncate(NAMES_MAX);
    }
}
