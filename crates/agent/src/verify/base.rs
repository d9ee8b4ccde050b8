//! Base-green: what builds and passes before anything is changed, kept for every later Run on the same base.

use camino::Utf8Path;
use fettle_app::ports::git::BaseCommit;
use fettle_domain::object::{BlobId, TreeId};
use fettle_domain::proof::{Check, CommandSource, Executed, Granularity};
use serde::{Deserialize, Serialize};

use super::lab::{Lab, SuiteEnd, SuiteRun, VerifyContext, VerifyError};
use crate::ecosystem::{Commands, Selection};

/// Goes up when the meaning of a stored report changes; older ones are made anew.
const VERSION: u16 = 1;

/// What was observed on the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseReport {
    version: u16,
    pub tree: TreeId,
    /// Exit status per check, in the order of `Commands::checks`.
    pub checks: Vec<(String, Option<i32>)>,
    /// In the order of `Commands::suites`.
    pub suites: Vec<SuiteRun>,
    pub executed: Vec<Executed>,
    /// It was taken from the cache.
    #[serde(skip)]
    pub cached: bool,
}

impl BaseReport {
    /// Nothing was run: there are no commands.
    pub fn empty(tree: TreeId) -> Self {
        Self { version: VERSION, tree, checks: vec![], suites: vec![], executed: vec![], cached: false }
    }
}

/// Builds the base and runs its tests, or finds both done: cached by (repository, tree, environment, commands).
pub async fn base_green(
    context: VerifyContext<'_>,
    base: &BaseCommit,
    cache_dir: &Utf8Path,
) -> Result<BaseReport, VerifyError> {
    let environment = context.prepared.environment.digest;
    let commands = context.commands.digest();
    let name = BlobId::of(format!("{} {} {environment} {commands}", context.key, base.tree).as_bytes());
    let file = cache_dir.join(format!("base-{name}.json"));
    if let Some(report) = stored(&file).await {
        (context.progress)("base: build and tests are known from before");
        return Ok(report);
    }
    let report = observe(context, base).await?;
    // A suite that was cut off says more about the machine's day than about the base.
    if !report.suites.iter().any(|run| run.end == SuiteEnd::TimedOut) {
        store(cache_dir, &file, &report).await.map_err(VerifyError::Scratch)?;
    }
    Ok(report)
}

/// Why no fix is worth paying for on this base; `None`: go on. Single red tests are known failures.
///
/// A command that the operator chose for the task may be as red as it likes: it is the very thing to fix.
pub fn declined(report: &BaseReport, commands: &Commands) -> Option<String> {
    let builds = report.checks.iter().find(|(name, _)| name == Check::BUILD);
    if let Some((_, exit)) = builds.filter(|(_, exit)| *exit != Some(0)) {
        let how = exit.map_or("did not end".to_owned(), |status| format!("exits with status {status}"));
        return Some(format!("the base does not build: its build command {how}"));
    }
    for (run, suite) in report.suites.iter().zip(&commands.suites) {
        if suite.source == CommandSource::Operator {
            continue;
        }
        let counts = run.report.counts();
        let ran = counts.passed + counts.failed;
        if run.end == SuiteEnd::NotBuilt && counts.passed == 0 {
            return Some(format!("the tests of the base do not build: `{}`", suite.command));
        }
        if run.end == SuiteEnd::Unexplained && ran == 0 {
            return Some(format!("the tests of the base do not run: `{}` fails without naming a test", suite.command));
        }
        if run.granularity == Granularity::Test && counts.failed * 2 > ran {
            return Some(format!("{} of {ran} tests fail on the base: `{}`", counts.failed, suite.command));
        }
    }
    None
}

async fn observe(context: VerifyContext<'_>, base: &BaseCommit) -> Result<BaseReport, VerifyError> {
    let mut lab = Lab::new(context);
    let at = lab.checkout(base.tree, context.prepared).await?;
    let mut checks = Vec::new();
    for check in &context.commands.checks {
        checks.push((check.name.clone(), lab.check(&at, check).await?));
    }
    let mut suites = Vec::new();
    for suite in &context.commands.suites {
        suites.push(lab.suite(&at, suite, &Selection::All, "tests on base").await?);
    }
    Ok(BaseReport { version: VERSION, tree: base.tree, checks, suites, executed: lab.executed, cached: false })
}

async fn stored(file: &Utf8Path) -> Option<BaseReport> {
    let bytes = fs_err::tokio::read(file).await.ok()?;
    let report: BaseReport = serde_json::from_slice(&bytes).ok()?;
    (report.version == VERSION).then_some(BaseReport { cached: true, ..report })
}

/// Written beside and renamed, so that a reader never sees half; two writers at once wrote the same.
async fn store(folder: &Utf8Path, file: &Utf8Path, report: &BaseReport) -> std::io::Result<()> {
    fs_err::tokio::create_dir_all(folder).await?;
    let bytes = serde_json::to_vec(report).map_err(std::io::Error::other)?;
    let file = file.to_owned();
    let folder = folder.to_owned();
    let written = tokio::task::spawn_blocking(move || {
        let mut partial = tempfile::NamedTempFile::new_in(&folder)?;
        std::io::Write::write_all(&mut partial, &bytes)?;
        partial.persist(&file).map_err(|error| error.error)?;
        Ok(())
    });
    written.await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ecosystem::Suite;
    use crate::ecosystem::report::{Case, Report};
    use fettle_domain::proof::FailureKind;

    fn report(build: i32, end: SuiteEnd, passed: usize, failed: usize) -> BaseReport {
        let mut cases = Report::default();
        for n in 0..passed {
            cases.add(&format!("p{n}"), Case::passed());
        }
        for n in 0..failed {
            cases.add(&format!("f{n}"), Case::failed(FailureKind::Error, ""));
        }
        BaseReport {
            version: VERSION,
            tree: TreeId::from_bytes([0; 20]),
            checks: vec![(Check::BUILD.into(), Some(build))],
            suites: vec![SuiteRun { end, granularity: Granularity::Test, report: cases }],
            executed: vec![],
            cached: false,
        }
    }

    #[test]
    fn a_base_that_does_not_build_or_mostly_fails_is_declined_and_single_failures_are_not() {
        let by = |source| Commands { suites: vec![Suite::given("cargo test", source)], ..Commands::default() };
        let found = by(CommandSource::Ecosystem);
        assert_eq!(declined(&report(0, SuiteEnd::Passed, 3, 0), &found), None);
        assert_eq!(declined(&report(0, SuiteEnd::Failed, 2, 2), &found), None);
        assert!(declined(&report(0, SuiteEnd::Failed, 1, 2), &found).unwrap().contains("2 of 3"));
        assert!(declined(&report(101, SuiteEnd::Passed, 3, 0), &found).unwrap().contains("does not build"));
        assert!(declined(&report(0, SuiteEnd::NotBuilt, 0, 0), &found).is_some());
        assert_eq!(declined(&report(0, SuiteEnd::Failed, 0, 1), &by(CommandSource::Operator)), None);
    }
}
