//! The repository's tests in the agent's own workspace: what the tool `run_tests` shows a model. Never a Proof.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::{Access, CommandEnd, Mount, Sandbox, SandboxError};
use fettle_domain::proof::Granularity;
use tokio_util::sync::CancellationToken;

use super::lab;
use crate::ecosystem::report::Report;
use crate::ecosystem::{Commands, ReportForm, Selection, Suite};
use crate::tools::{TestCounts, TestRunner, TestText};
use crate::workbench::Workbench;

/// Runs the suites of the base's commands in a workspace.
pub struct WorkspaceTests {
    pub sandbox: Arc<dyn Sandbox>,
    /// Of the agent's workspace: verification has a build folder of its own.
    pub bench: Workbench,
    pub commands: Arc<Commands>,
    /// A folder of this Run alone into which runners write reports.
    pub reports: Utf8PathBuf,
    /// Of one suite.
    pub time: Duration,
}

#[async_trait]
impl TestRunner for WorkspaceTests {
    async fn run(
        &self,
        workspace: &Utf8Path,
        target: Option<&str>,
        cancel: &CancellationToken,
    ) -> Result<TestText, SandboxError> {
        let selection = target.map_or(Selection::All, |word| Selection::Word(word.trim().to_owned()));
        let mut notes = Vec::new();
        let mut text = TestText {
            end: CommandEnd::Exited(0),
            counts: None,
            failing: Vec::new(),
            messages: Vec::new(),
            note: None,
            output: Bytes::new(),
            bytes_total: 0,
        };
        let mut output = Vec::new();
        let mut report = Report::default();
        let mut told_apart = false;
        if self.commands.suites.is_empty() {
            notes.push("no test command is known for this repository".to_owned());
            text.end = CommandEnd::Exited(1);
        }
        for suite in &self.commands.suites {
            if suite.command_for(&selection).is_none() {
                notes.push(format!("`{}` cannot run a part; the whole suite ran", suite.command));
            }
            let (run, end, mut bytes, total) = self.suite(suite, workspace, &selection, cancel).await?;
            if text.end == CommandEnd::Exited(0) {
                text.end = end;
            }
            told_apart |= run.granularity == Granularity::Test;
            if run.granularity == Granularity::Test {
                report.merge(run.report);
            }
            output.append(&mut bytes);
            text.bytes_total += total;
        }
        if report.not_built {
            notes.push("some tests could not be compiled or loaded".to_owned());
        }
        if told_apart {
            let counts = report.counts();
            text.counts = Some(TestCounts { passed: counts.passed, failed: counts.failed, skipped: counts.skipped });
        }
        for (id, case) in report.failing() {
            text.failing.push(id.to_owned());
            text.messages.push(case.message.clone());
        }
        text.note = Some(notes.join("; ")).filter(|note| !note.is_empty());
        text.output = output.into();
        Ok(text)
    }
}

impl WorkspaceTests {
    async fn suite(
        &self,
        suite: &Suite,
        workspace: &Utf8Path,
        selection: &Selection,
        cancel: &CancellationToken,
    ) -> Result<(lab::SuiteRun, CommandEnd, Vec<u8>, u64), SandboxError> {
        let shown = suite.command_for(selection).unwrap_or_else(|| suite.command.clone());
        let prepare = async {
            fs_err::tokio::create_dir_all(&self.reports).await?;
            let dir = tempfile::Builder::new().prefix("tests-").tempdir_in(&self.reports)?;
            let path =
                Utf8PathBuf::from_path_buf(dir.path().to_owned()).map_err(|_| std::io::Error::other("not UTF-8"))?;
            Ok::<_, std::io::Error>((dir, path))
        };
        let (_guard, folder) = prepare.await.map_err(|error| SandboxError::Failed(error.into()))?;
        let file = folder.join("report");
        let mut bench = self.bench.clone();
        bench.mounts.push(Mount { host: folder.clone(), inside: folder.clone(), access: Access::ReadWrite });
        let command = lab::with_report(suite, &shown, &file, &mut bench);
        let mut command = bench.shell(workspace, Access::ReadWrite, &format!("exec 2>&1\n{command}"));
        command.limits.time = self.time;
        let output = self.sandbox.run(&command, cancel).await?;
        let written = match &suite.report {
            ReportForm::Pytest | ReportForm::Json { .. } => lab::read_beneath(&folder, &file).await,
            ReportForm::Junit { path } => lab::read_beneath(workspace, &workspace.join(path)).await,
            ReportForm::Libtest | ReportForm::Node | ReportForm::Exit => None,
        };
        let root = self.sandbox.workspace_inside(workspace);
        let said = String::from_utf8_lossy(&output.output).into_owned();
        let run = lab::interpret(suite, output.end, &said, written.as_deref(), root.as_str());
        Ok((run, output.end, output.output, output.bytes_total))
    }
}
