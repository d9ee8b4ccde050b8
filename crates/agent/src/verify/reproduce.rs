//! Phase 2: does the new test fail on the base? Asked at once, so that a test which proves nothing is told before a fix is paid for.

use fettle_app::ports::git::BaseCommit;
use fettle_domain::object::TreeId;
use fettle_domain::proof::{FailureKind, Outcome};

use super::base::BaseReport;
use super::lab::{Lab, SuiteEnd, VerifyContext, VerifyError};
use crate::ecosystem::Selection;

/// Messages of failing tests that are shown.
const MESSAGES_SHOWN: usize = 3;

/// What the new tests do on the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reproduction {
    /// The base with only the test part of the workspace; `None`: no test was added or changed.
    pub tree: Option<TreeId>,
    /// How the first one fails; `None`: nothing fails that did not fail before.
    pub failure: Option<FailureKind>,
    /// Ids of new or changed tests that fail.
    pub failing: Vec<String>,
    /// Ids of new tests that pass.
    pub passing: Vec<String>,
    /// What a person or a model is shown.
    pub text: String,
}

impl Reproduction {
    pub fn fails(&self) -> bool {
        self.failure.is_some()
    }
}

/// Runs the tests that `workspace_tree` adds or changes on the base, once. Its other changes are dropped.
pub async fn reproduces(
    context: VerifyContext<'_>,
    base: &BaseCommit,
    report: &BaseReport,
    workspace_tree: TreeId,
) -> Result<Reproduction, VerifyError> {
    let patch = context.repositories.diff(context.key, base.commit, workspace_tree).await?;
    let split = super::split_patch(&context, &patch).await?;
    let tree = context.repositories.edit_tree(context.key, base.tree, split.test_part.clone()).await?;
    let mut found = Reproduction { tree: None, failure: None, failing: vec![], passing: vec![], text: String::new() };
    if tree == base.tree {
        found.text = "no test was added or changed".to_owned();
        return Ok(found);
    }
    found.tree = Some(tree);
    let mut lab = Lab::new(context);
    let at = lab.checkout(tree, context.prepared).await?;
    let mut messages = Vec::new();
    for (suite, before) in context.commands.suites.iter().zip(&report.suites) {
        let run = lab.suite(&at, suite, &Selection::Files(split.test_files.clone()), "new tests on base").await?;
        for (id, case) in &run.report.cases {
            match (before.outcome(id).0, case.outcome) {
                (Outcome::Passed | Outcome::Absent | Outcome::Skipped, Outcome::Failed) => {
                    found.failure.get_or_insert(case.failure.unwrap_or(FailureKind::Error));
                    found.failing.push(id.clone());
                    messages.push(format!("{id}: {}", case.message));
                }
                (Outcome::Absent | Outcome::Skipped, Outcome::Passed) => found.passing.push(id.clone()),
                _ => {}
            }
        }
        if before.end == run.end {
            continue;
        }
        let fell_over = match run.end {
            SuiteEnd::Passed | SuiteEnd::Failed => None,
            SuiteEnd::NotBuilt => Some((FailureKind::Build, "the tests do not build on the base")),
            SuiteEnd::TimedOut => Some((FailureKind::Timeout, "the tests did not end within their time")),
            SuiteEnd::Unexplained => Some((FailureKind::Error, "the test command failed without naming a test")),
        };
        if let Some((kind, sentence)) = fell_over {
            found.failure.get_or_insert(kind);
            messages.push(sentence.to_owned());
        }
    }
    let dropped = messages.len().saturating_sub(MESSAGES_SHOWN);
    messages.truncate(MESSAGES_SHOWN);
    if dropped > 0 {
        messages.push(format!("… and {dropped} more"));
    }
    if messages.is_empty() {
        messages.push(match found.passing.as_slice() {
            [] => "no new test ran on the base".to_owned(),
            ids => format!(
                "passes on the base: {}",
                ids.iter().take(MESSAGES_SHOWN).cloned().collect::<Vec<_>>().join(", ")
            ),
        });
    }
    found.text = messages.join("\n");
    Ok(found)
}
