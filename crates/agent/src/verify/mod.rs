//! The Proof of a patch, made only from what was observed: fresh checkouts, the prepared environment, the sandbox.
//!
//! No sentence of a model and no file of the agent's workspace has a say. Which commands run comes from the base; what they said
//! comes from exit statuses first and reports second; the level follows by the pure rule in `domain`.

mod base;
mod influence;
mod inline;
mod lab;
mod reproduce;
mod runner;
pub mod split;
mod symbols;
mod weigh;

use bytes::Bytes;
use fettle_app::ports::git::BaseCommit;
use fettle_app::ports::sandbox::SandboxLevel;
use fettle_domain::id::RunId;
use fettle_domain::object::TreeId;
use fettle_domain::patch::{FileMode, Patch};
use fettle_domain::path::RepoPath;
use fettle_domain::proof::{Check, CommandSource, Executed, Proof};
use fettle_domain::proof_level::{self, Observed};

pub use base::{BaseReport, base_green, declined};
pub use lab::{SUITE_TIME, SuiteEnd, SuiteRun, VerifyContext, VerifyError};
pub use reproduce::{Reproduction, reproduces};
pub use runner::WorkspaceTests;

use crate::prepare::Prepared;
use lab::Lab;
use split::{FileChange, Split, TestPaths};
use weigh::{Findings, Trees};

const PROOF_VERSION: u16 = 1;

/// What is proven.
#[derive(Clone, Copy)]
pub struct ProveRequest<'a> {
    pub run: RunId,
    pub base: &'a BaseCommit,
    pub base_report: &'a BaseReport,
    /// The tree that would be pushed.
    pub head_tree: TreeId,
    /// The tree of phase 2, when it showed the failure: stands in where no test part can be told apart in the patch.
    pub repro_tree: Option<TreeId>,
    /// When the patch changes lockfiles: the environment prepared for the head, with install scripts off.
    pub head_prepared: Option<&'a Prepared>,
}

/// Observes the patch and says what that proves. Logs of all commands lie in `scratch/logs`, named by their content.
pub async fn prove(context: VerifyContext<'_>, request: ProveRequest<'_>) -> Result<Proof, VerifyError> {
    let patch = context.repositories.diff(context.key, request.base.commit, request.head_tree).await?;
    let split = split_patch(&context, &patch).await?;
    let trees = lay_out(&context, &request, &split).await?;
    let mut lab = Lab::new(context);
    let mut checks = Vec::new();
    let mut findings: Option<Findings> = None;
    if !patch.is_empty() {
        checks = compare_checks(&mut lab, &request).await?;
        for (index, suite) in context.commands.suites.iter().enumerate() {
            let Some(base_run) = request.base_report.suites.get(index) else { continue };
            let found = weigh::weigh(&mut lab, suite, base_run, &trees, &split).await?;
            findings = Some(match findings {
                None => found,
                Some(others) => others.and(found),
            });
        }
    }
    Ok(proof(&context, &request, &split, Seen { patch, trees, checks, findings, executed: lab.executed }))
}

struct Seen<'a> {
    patch: Patch,
    trees: Trees<'a>,
    checks: Vec<Check>,
    findings: Option<Findings>,
    executed: Vec<Executed>,
}

/// Applies the level's rule to what was seen; nothing is added.
fn proof(context: &VerifyContext<'_>, request: &ProveRequest<'_>, split: &Split, seen: Seen<'_>) -> Proof {
    let (suite, new_tests, touched_tests) = match seen.findings {
        Some(found) => (Some(found.delta), found.new_tests, found.touched),
        None => (None, Vec::new(), Vec::new()),
    };
    let sources: Vec<CommandSource> = context.commands.suites.iter().map(|suite| suite.source).collect();
    let lacks = (context.sandbox.report().level == SandboxLevel::Landlock)
        .then_some("the sandbox level `landlock` opens no socket, so tests that need loopback could not run");
    let (level, reasons) = proof_level::level(&Observed {
        empty: seen.patch.is_empty(),
        documentation_only: split.documentation_only,
        has_test_part: seen.trees.test.is_some(),
        new_tests: &new_tests,
        suite: suite.as_ref(),
        checks: &seen.checks,
        touched_tests: &touched_tests,
        command_from_model: sources.contains(&CommandSource::Model),
        command_found_by_rule: sources.contains(&CommandSource::Ecosystem),
        changed_configuration: &split.configuration,
        changed_dependencies: &split.dependencies,
        sandbox_lacks: lacks,
    });
    let mut commands = request.base_report.executed.clone();
    commands.extend(seen.executed);
    Proof {
        version: PROOF_VERSION,
        run: request.run,
        base: request.base.commit,
        head_tree: request.head_tree,
        env: request.head_prepared.unwrap_or(context.prepared).environment.clone(),
        level,
        reasons,
        new_tests,
        suite,
        checks: seen.checks,
        touched_tests,
        commands,
    }
}

/// Build, lint and format commands on the head, beside what they said on the base.
async fn compare_checks(lab: &mut Lab<'_>, request: &ProveRequest<'_>) -> Result<Vec<Check>, VerifyError> {
    let prepared = request.head_prepared.unwrap_or(lab.context.prepared);
    let at = lab.checkout(request.head_tree, prepared).await?;
    let mut checks = Vec::new();
    for check in &lab.context.commands.checks {
        let before = request.base_report.checks.iter().find(|(name, _)| *name == check.name);
        let head_exit = lab.check(&at, check).await?;
        checks.push(Check { name: check.name.clone(), base_exit: before.and_then(|(_, exit)| *exit), head_exit });
    }
    Ok(checks)
}

/// The trees that are compared: with the new tests on the base, and with the old tests on the head.
async fn lay_out<'a>(
    context: &VerifyContext<'a>,
    request: &ProveRequest<'a>,
    split: &Split,
) -> Result<Trees<'a>, VerifyError> {
    let repositories = context.repositories;
    let mut test = None;
    let mut test_files = split.test_files.clone();
    if !split.test_part.is_empty() {
        let tree = repositories.edit_tree(context.key, request.base.tree, split.test_part.clone()).await?;
        test = Some(tree).filter(|tree| *tree != request.base.tree);
    }
    if test.is_none()
        && let Some(repro) = request.repro_tree
        && let Some(files) = unchanged_since(context, request, repro).await?
    {
        test = Some(repro);
        test_files = files;
    }
    let old = match split.old_tests.is_empty() {
        true => None,
        false => Some(repositories.edit_tree(context.key, request.head_tree, split.old_tests.clone()).await?),
    };
    Ok(Trees {
        base: request.base.tree,
        head: request.head_tree,
        test,
        test_files,
        old,
        base_prepared: context.prepared,
        head_prepared: request.head_prepared.unwrap_or(context.prepared),
    })
}

/// The files of the phase 2 tree, if each stands in the head as it was.
async fn unchanged_since(
    context: &VerifyContext<'_>,
    request: &ProveRequest<'_>,
    repro: TreeId,
) -> Result<Option<Vec<RepoPath>>, VerifyError> {
    let then = context.repositories.diff(context.key, request.base.commit, repro).await?;
    let files: Vec<RepoPath> = then.changes.into_iter().map(|change| change.path).collect();
    let now = context.repositories.read_files(context.key, request.head_tree, files.clone()).await?;
    let was = context.repositories.read_files(context.key, repro, files.clone()).await?;
    Ok(Some(files).filter(|files| now == was && !files.is_empty()))
}

/// Both versions of every changed file, taken apart.
async fn split_patch(context: &VerifyContext<'_>, patch: &Patch) -> Result<Split, VerifyError> {
    let paths: Vec<RepoPath> = patch.changes.iter().map(|change| change.path.clone()).collect();
    let before = context.repositories.read_files(context.key, patch.base_tree, paths.clone()).await?;
    let after = context.repositories.read_files(context.key, patch.head_tree, paths).await?;
    let file = |side: Option<(FileMode, Bytes)>| side.filter(|(mode, _)| *mode != FileMode::Submodule);
    let sides = before.into_iter().map(file).zip(after.into_iter().map(file));
    let changes: Vec<FileChange> = patch
        .changes
        .iter()
        .zip(sides)
        .map(|(change, (before, after))| FileChange { path: change.path.clone(), before, after })
        .collect();
    let tests = TestPaths::new(&context.commands.paths.tests);
    let mut split = split::split(&changes, &tests);
    // A script that a command runs decides what that command says. One among the tests takes part in their comparison.
    let named =
        |change: &&FileChange| !tests.contains(&change.path) && context.commands.name_file(&change.path.lossy());
    split.configuration.extend(changes.iter().filter(named).map(|change| change.path.lossy()));
    split.configuration.sort();
    split.configuration.dedup();
    Ok(split)
}
