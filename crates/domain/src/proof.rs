//! What the orchestrator observed about a patch, and the level that follows from it.

use serde::{Deserialize, Serialize};

use crate::id::RunId;
use crate::object::{BlobId, CommitId, TreeId};
use crate::path::RepoPath;

/// Bound to one base and one tree; says nothing about any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub version: u16,
    pub run: RunId,
    pub base: CommitId,
    pub head_tree: TreeId,
    pub env: Environment,
    pub level: Level,
    /// Why the level is not higher; empty exactly when `Proven`, except for notes that waive nothing.
    pub reasons: Vec<Reason>,
    pub new_tests: Vec<NewTest>,
    pub suite: Option<SuiteDelta>,
    pub checks: Vec<Check>,
    pub touched_tests: Vec<TouchedTest>,
    pub commands: Vec<Executed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Unproven,
    Weak,
    Proven,
}

/// Where the commands ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub architecture: String,
    /// `full` or `landlock`.
    pub sandbox_level: String,
    /// `rustc 1.95.0 (…)`, one line a tool.
    pub toolchain: Vec<String>,
    /// Over lockfiles, toolchain, architecture and sandbox level.
    pub digest: BlobId,
}

/// One rule of `Proven` that does not hold: a code for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub code: ReasonCode,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    NoChange,
    NoTestCommand,
    NoNewTest,
    NewTestPassesOnBase,
    NewTestFailsOnHead,
    NewTestOnlyFailsToBuild,
    NewTestFlaky,
    SuiteBroken,
    SuiteVanished,
    SuiteTimeout,
    EnvironmentUnstable,
    CheckWorse,
    TestCommandFromModel,
    TestConfigurationChanged,
    TouchedTestFailsInBaseVersion,
    SandboxLevel,
    CommandGranularity,
    DependenciesChanged,
    /// A note, not a shortfall: no code token changed, so no new test was asked for.
    DocumentationOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Passed,
    Failed,
    Skipped,
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    Assertion,
    Error,
    Build,
    Timeout,
}

/// Runs of each new test on each side.
pub const NEW_TEST_RUNS: usize = 3;

/// A test that the patch adds or changes. Under a command that the operator chose for the task, also an existing one that was
/// red on base; it then stands in [`SuiteDelta::fixed`] too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTest {
    pub id: String,
    /// Up to [`NEW_TEST_RUNS`] outcomes with only the test part of the patch on base.
    pub base: Vec<Outcome>,
    pub base_failure: Option<FailureKind>,
    /// Whether the test names a public symbol that the patch adds; then failing to build on base is a failure.
    pub names_added_symbol: bool,
    pub head: Vec<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// Single tests were told apart.
    Test,
    /// Only the exit status of the whole command is known.
    Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SuiteCounts {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

impl SuiteCounts {
    pub fn total(&self) -> u32 {
        self.passed + self.failed + self.skipped
    }
}

/// The whole suite before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuiteDelta {
    pub granularity: Granularity,
    pub base: SuiteCounts,
    pub head: SuiteCounts,
    /// Failed on base, passes on head.
    pub fixed: Vec<String>,
    /// Passes on base, fails on head, also in every lone rerun.
    pub broken: Vec<String>,
    /// Ran on base, missing or skipped on head.
    pub vanished: Vec<String>,
    /// Failed on base already.
    pub known_failures: Vec<String>,
    /// Mixed outcomes on one tree.
    pub flaky: Vec<String>,
    pub timed_out: bool,
}

/// A build, lint or format command before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub base_exit: Option<i32>,
    pub head_exit: Option<i32>,
}

impl Check {
    /// The name of the check that compiles everything; a patch that breaks it is not proven at all.
    pub const BUILD: &'static str = "build";

    /// It succeeded on base and does not on head.
    pub fn is_worse(&self) -> bool {
        self.base_exit == Some(0) && self.head_exit != Some(0)
    }
}

/// An existing test file that the patch changes, and what its base version says of the new code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchedTest {
    pub path: RepoPath,
    pub how: Touch,
    pub base_version_on_head: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Touch {
    Extended,
    Changed,
    Deleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandSource {
    /// `.fettle.toml` of the base.
    Repository,
    Operator,
    /// The ecosystem's rule.
    Ecosystem,
    /// At most `Weak`.
    Model,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    pub purpose: String,
    pub command: String,
    pub source: CommandSource,
    pub tree: TreeId,
    pub exit: Option<i32>,
    pub signal: Option<i32>,
    pub timed_out: bool,
    pub took_ms: u64,
    /// The full log, where one was kept.
    pub log: Option<BlobId>,
    pub truncated: bool,
}
