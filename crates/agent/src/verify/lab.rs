//! Where verification runs commands: fresh checkouts, one at a time, at one place, with everything that ran written down.

use std::time::Duration;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::git::{CheckoutKind, GitError, Repositories};
use fettle_app::ports::sandbox::{Access, CommandEnd, Mount, Sandbox, SandboxError, SandboxOutput};
use fettle_domain::object::{BlobId, TreeId};
use fettle_domain::proof::{CommandSource, Executed, FailureKind, Granularity, Outcome};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::ecosystem::report::{self, Case, Report};
use crate::ecosystem::{CheckCommand, Commands, ReportForm, Selection, Suite};
use crate::prepare::{PYTEST_OPTIONS, PrepareError, Prepared};
use crate::removal::remove;
use crate::workbench::Workbench;

/// A suite beyond this is cut off and the Proof is at most `Weak`.
pub const SUITE_TIME: Duration = Duration::from_secs(30 * 60);
/// A report file larger than this is not read.
const REPORT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// pytest's exit status when it found no tests.
const PYTEST_NO_TESTS: i32 = 5;

/// What verification works with during one Run.
#[derive(Clone, Copy)]
pub struct VerifyContext<'a> {
    pub repositories: &'a dyn Repositories,
    pub sandbox: &'a dyn Sandbox,
    /// The mirror's key.
    pub key: &'a str,
    pub commands: &'a Commands,
    pub prepared: &'a Prepared,
    /// A folder of this Run alone, never visible to the agent's commands. Holds checkouts, build products and logs.
    pub scratch: &'a Utf8Path,
    /// Normally [`SUITE_TIME`].
    pub suite_time: Duration,
    pub progress: &'a (dyn Fn(&str) + Send + Sync),
    pub cancel: &'a CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error("verification cannot use its scratch folder")]
    Scratch(#[source] std::io::Error),
    #[error("verification was cancelled")]
    Cancelled,
}

/// How one run of a suite ended, from the runner's exit status first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuiteEnd {
    Passed,
    /// Some tests failed, and no more than that.
    Failed,
    /// Tests could not be compiled or loaded.
    NotBuilt,
    TimedOut,
    /// The command failed and no test says why: a crash, a limit, or a report that was tampered with.
    Unexplained,
}

/// One run of one suite on one tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuiteRun {
    pub end: SuiteEnd,
    pub granularity: Granularity,
    pub report: Report,
}

impl SuiteRun {
    /// What this run says of a test. One that was not reached because the run fell over counts as failed.
    pub fn outcome(&self, id: &str) -> (Outcome, Option<FailureKind>) {
        match (self.report.cases.get(id), self.end) {
            (Some(case), _) => (case.outcome, case.failure),
            (None, SuiteEnd::NotBuilt) => (Outcome::Failed, Some(FailureKind::Build)),
            (None, SuiteEnd::TimedOut) => (Outcome::Failed, Some(FailureKind::Timeout)),
            (None, SuiteEnd::Unexplained) => (Outcome::Failed, Some(FailureKind::Error)),
            (None, SuiteEnd::Passed | SuiteEnd::Failed) => (Outcome::Absent, None),
        }
    }
}

/// A tree laid out for commands.
pub(super) struct Checkout {
    pub(super) tree: TreeId,
    folder: Utf8PathBuf,
    bench: Workbench,
}

/// Runs and records.
pub(super) struct Lab<'a> {
    pub(super) context: VerifyContext<'a>,
    pub(super) executed: Vec<Executed>,
}

impl<'a> Lab<'a> {
    pub(super) fn new(context: VerifyContext<'a>) -> Self {
        Self { context, executed: Vec::new() }
    }

    /// A fresh plain checkout. It replaces the one before and lies at the same place: build tools compare times and paths, and
    /// a checkout that is younger than every earlier build is rebuilt where it differs.
    pub(super) async fn checkout(&self, tree: TreeId, prepared: &Prepared) -> Result<Checkout, VerifyError> {
        let folder = self.context.scratch.join("tree");
        remove(folder.clone()).await.map_err(VerifyError::Scratch)?;
        fs_err::tokio::create_dir_all(self.reports()).await.map_err(VerifyError::Scratch)?;
        self.context.repositories.checkout(self.context.key, tree, &folder, CheckoutKind::Plain).await?;
        let build_dir = self.context.scratch.join("build");
        let mut bench = prepared.bench_for(self.context.sandbox, &folder, &build_dir).await?;
        bench.mounts.push(Mount { host: self.reports(), inside: self.reports(), access: Access::ReadWrite });
        Ok(Checkout { tree, folder, bench })
    }

    pub(super) async fn check(&mut self, at: &Checkout, check: &CheckCommand) -> Result<Option<i32>, VerifyError> {
        let shown = check.command.clone();
        let output = self.run(at, at.bench.clone(), &check.name, &shown, &shown, check.source).await?;
        Ok(exit_and_signal(output.end).0)
    }

    pub(super) async fn suite(
        &mut self,
        at: &Checkout,
        suite: &Suite,
        selection: &Selection,
        purpose: &str,
    ) -> Result<SuiteRun, VerifyError> {
        let shown = suite.command_for(selection).unwrap_or_else(|| suite.command.clone());
        let file = self.reports().join("report");
        remove(file.clone()).await.map_err(VerifyError::Scratch)?;
        let mut bench = at.bench.clone();
        let command = with_report(suite, &shown, &file, &mut bench);
        let output = self.run(at, bench, purpose, &shown, &command, suite.source).await?;
        let written = match &suite.report {
            ReportForm::Pytest | ReportForm::Json { .. } => read_beneath(&self.reports(), &file).await,
            ReportForm::Junit { path } => read_beneath(&at.folder, &at.folder.join(path)).await,
            ReportForm::Libtest | ReportForm::Node | ReportForm::Exit => None,
        };
        let root = self.context.sandbox.workspace_inside(&at.folder);
        Ok(interpret(suite, output.end, &String::from_utf8_lossy(&output.output), written.as_deref(), root.as_str()))
    }

    async fn run(
        &mut self,
        at: &Checkout,
        bench: Workbench,
        purpose: &str,
        shown: &str,
        command: &str,
        source: CommandSource,
    ) -> Result<SandboxOutput, VerifyError> {
        (self.context.progress)(&format!("{purpose}: {shown}"));
        // One stream, so that a runner's headings stay above the results they belong to.
        let mut command = bench.shell(&at.folder, Access::ReadWrite, &format!("exec 2>&1\n{command}"));
        command.limits.time = self.context.suite_time;
        let output = self.context.sandbox.run(&command, self.context.cancel).await?;
        if output.end == CommandEnd::Cancelled {
            return Err(VerifyError::Cancelled);
        }
        let (exit, signal) = exit_and_signal(output.end);
        let log = self.keep_log(&output.output).await?;
        self.executed.push(Executed {
            purpose: purpose.to_owned(),
            command: shown.to_owned(),
            source,
            tree: at.tree,
            exit,
            signal,
            timed_out: output.end == CommandEnd::TimedOut,
            took_ms: u64::try_from(output.took.as_millis()).unwrap_or(u64::MAX),
            log: Some(log),
            truncated: output.truncated,
        });
        Ok(output)
    }

    /// Logs lie in `scratch/logs`, each named by its content, for whoever stores them.
    async fn keep_log(&self, output: &[u8]) -> Result<BlobId, VerifyError> {
        let folder = self.context.scratch.join("logs");
        fs_err::tokio::create_dir_all(&folder).await.map_err(VerifyError::Scratch)?;
        let id = BlobId::of(output);
        fs_err::tokio::write(folder.join(id.to_string()), output).await.map_err(VerifyError::Scratch)?;
        Ok(id)
    }

    fn reports(&self) -> Utf8PathBuf {
        self.context.scratch.join("reports")
    }
}

/// The command with what makes its runner write a report.
pub(super) fn with_report(suite: &Suite, shown: &str, file: &Utf8Path, bench: &mut Workbench) -> String {
    match &suite.report {
        ReportForm::Pytest => {
            let options = format!("{PYTEST_OPTIONS} --junitxml={file}");
            bench.env.insert("PYTEST_ADDOPTS".into(), options);
            shown.to_owned()
        }
        ReportForm::Json { words } => {
            let words = words.replace("{report}", file.as_str());
            let dashes = if shown.contains(" -- ") { "" } else { "-- " };
            format!("{shown} {dashes}{words}")
        }
        ReportForm::Libtest | ReportForm::Node | ReportForm::Junit { .. } | ReportForm::Exit => shown.to_owned(),
    }
}

/// Reads a file that untrusted code may have placed: only a plain file beneath `root`, and not too large.
pub(super) async fn read_beneath(root: &Utf8Path, file: &Utf8Path) -> Option<String> {
    let root = fs_err::tokio::canonicalize(root).await.ok()?;
    let real = fs_err::tokio::canonicalize(file).await.ok().filter(|real| real.starts_with(&root))?;
    let found = fs_err::tokio::metadata(&real).await.ok()?;
    if !found.is_file() || found.len() > REPORT_BYTES_MAX {
        return None;
    }
    let bytes = Bytes::from(fs_err::tokio::read(&real).await.ok()?);
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a run says, with the runner's exit status above the report.
pub(super) fn interpret(suite: &Suite, end: CommandEnd, output: &str, written: Option<&str>, root: &str) -> SuiteRun {
    let parsed = match &suite.report {
        ReportForm::Libtest => Some(report::parse_libtest(output)),
        ReportForm::Node => Some(report::parse_node(output, root)),
        ReportForm::Pytest | ReportForm::Junit { .. } => written.and_then(report::parse_junit),
        ReportForm::Json { .. } => written.and_then(|text| report::parse_jest(text, root)),
        ReportForm::Exit => None,
    };
    let Some(report) = parsed else {
        return coarse(suite, end);
    };
    let no_tests = suite.report == ReportForm::Pytest && end == CommandEnd::Exited(PYTEST_NO_TESTS);
    let end = match end {
        CommandEnd::TimedOut => SuiteEnd::TimedOut,
        _ if report.not_built => SuiteEnd::NotBuilt,
        _ if no_tests && report.cases.is_empty() => SuiteEnd::Passed,
        CommandEnd::Exited(0) if report.failing().next().is_none() => SuiteEnd::Passed,
        // Failures behind a status of success: someone swallowed it, or the report is forged.
        CommandEnd::Exited(0) => SuiteEnd::Unexplained,
        CommandEnd::Exited(_) if report.failing().next().is_some() => SuiteEnd::Failed,
        _ => SuiteEnd::Unexplained,
    };
    SuiteRun { end, granularity: Granularity::Test, report }
}

/// One case that stands for the whole command.
fn coarse(suite: &Suite, end: CommandEnd) -> SuiteRun {
    let mut report = Report::default();
    let (end, case) = match end {
        CommandEnd::Exited(0) => (SuiteEnd::Passed, Case::passed()),
        CommandEnd::TimedOut => (SuiteEnd::TimedOut, Case::failed(FailureKind::Timeout, "")),
        CommandEnd::Exited(_) => (SuiteEnd::Failed, Case::failed(FailureKind::Error, "")),
        _ => (SuiteEnd::Unexplained, Case::failed(FailureKind::Error, "")),
    };
    report.cases.insert(suite.command.clone(), case);
    SuiteRun { end, granularity: Granularity::Command, report }
}

fn exit_and_signal(end: CommandEnd) -> (Option<i32>, Option<i32>) {
    match end {
        CommandEnd::Exited(status) => (Some(status), None),
        CommandEnd::Signalled(signal) => (None, Some(signal)),
        CommandEnd::TimedOut | CommandEnd::Killed(_) | CommandEnd::Cancelled => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(command: &str) -> Suite {
        Suite::given(command, CommandSource::Operator)
    }

    #[test]
    fn the_exit_status_outranks_what_the_output_claims() {
        let green = "     Running tests/a.rs (target/debug/deps/a-0123456789abcdef)\ntest x ... ok\n";
        let red = green.replace("ok", "FAILED");
        let end =
            |status, output: &str| interpret(&suite("cargo test"), CommandEnd::Exited(status), output, None, "/w").end;
        assert_eq!(end(0, green), SuiteEnd::Passed);
        assert_eq!(end(101, &red), SuiteEnd::Failed);
        assert_eq!(end(101, green), SuiteEnd::Unexplained);
        assert_eq!(end(0, &red), SuiteEnd::Unexplained);
        let no_build = "error: could not compile `x` (test \"a\") due to 1 previous error\n";
        assert_eq!(end(101, no_build), SuiteEnd::NotBuilt);
    }

    #[test]
    fn a_command_without_report_is_one_case() {
        let run = interpret(&suite("./check.sh"), CommandEnd::Exited(1), "whatever", None, "/w");
        assert_eq!((run.end, run.granularity), (SuiteEnd::Failed, Granularity::Command));
        assert_eq!(run.outcome("./check.sh").0, Outcome::Failed);
    }

    #[test]
    fn pytest_without_tests_is_a_green_suite_of_none() {
        let xml = "<testsuites><testsuite tests=\"0\"></testsuite></testsuites>";
        let run = interpret(&suite("python3 -m pytest"), CommandEnd::Exited(5), "", Some(xml), "/w");
        assert_eq!((run.end, run.report.cases.len()), (SuiteEnd::Passed, 0));
    }

    #[tokio::test]
    async fn a_report_that_leads_out_of_its_folder_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        fs_err::create_dir(root.join("in")).unwrap();
        fs_err::write(root.join("secret"), "s").unwrap();
        fs_err::os::unix::fs::symlink(root.join("secret"), root.join("in/report")).unwrap();
        assert_eq!(read_beneath(&root.join("in"), &root.join("in/report")).await, None);
        fs_err::write(root.join("in/plain"), "p").unwrap();
        assert_eq!(read_beneath(&root.join("in"), &root.join("in/plain")).await.as_deref(), Some("p"));
    }
}
