//! The phases in order. Read this to know what a Run does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use fettle_app::crash::{self, Point};
use fettle_app::ports::chain;
use fettle_app::ports::git::CheckoutKind;
use fettle_app::ports::journal::Stop;
use fettle_app::ports::model::{Model, ToolCalls};
use fettle_app::ports::sandbox::Access;
use fettle_app::running::{RunContext, RunEnd};
use fettle_domain::budget::Spent;
use fettle_domain::object::TreeId;
use fettle_domain::patch::Patch;
use fettle_domain::path_policy::{PathPolicy, glob_matches};
use fettle_domain::proof::{Level, Proof, ReasonCode};
use fettle_domain::run::{ProvenChange, RunOutcome, RunResult};
use fettle_domain::step::{StepKind, StepRecord};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{Instrument as _, info_span};

use super::compaction::working_context;
use super::folder::RunFolder;
use super::ground::{Footing, Ground, describe};
use super::steps::{Fresh, Steps, digest};
use super::talk::{Ended, Phase, Said, Talk, TalkParts, git_end};
use super::{Agent, Brief, context};
use crate::conformance::Form;
use crate::removal;
use crate::tools::{ToolBox, ToolBoxOptions, specs};
use crate::verify::{ProveRequest, WorkspaceTests, prove, reproduces};

const READ: Phase = Phase { access: Access::ReadOnly, in_fix: false };
const TEST: Phase = Phase { access: Access::ReadWrite, in_fix: false };
const FIX: Phase = Phase { access: Access::ReadWrite, in_fix: true };

/// One attempt at telling the Run from its beginning, with what is on record.
pub(super) struct Story<'a> {
    pub(super) agent: &'a Agent,
    pub(super) model: &'a Arc<dyn Model>,
    pub(super) brief: &'a Brief,
    pub(super) context: &'a RunContext,
}

/// What phase 2 observed; journaled.
#[derive(Serialize, Deserialize)]
struct Reproduced {
    fails: bool,
    text: String,
    /// The base with only the test part.
    tree: Option<TreeId>,
}

/// A verified state of the workspace.
struct Verified {
    tree: TreeId,
    proof: Proof,
}

impl Story<'_> {
    pub(super) async fn tell(&self, recorded: Vec<StepRecord>) -> Result<RunResult, Ended> {
        let options = &self.agent.options;
        let folder = RunFolder::make(&options.scratch, self.brief.run, options.keep_folders).await;
        let folder = folder.map_err(|e| RunEnd::Retry(e.to_string()))?;
        let last_workspace = recorded.iter().rev().find_map(|step| step.workspace);
        let mut steps = Steps::new(self.context.journal.clone(), self.agent.watch.clone(), recorded);
        let ground = match self.ground(&mut steps, &folder).await? {
            Footing::Firm(ground) => ground,
            Footing::None { base, outcome } => {
                return Ok(self.result(outcome, base.map(|b| b.commit), None, steps.spent()));
            }
        };
        // The workspace is put to where the record ends; replayed steps then find it as they left it.
        let mut tree_on_disk = ground.base.tree;
        if let Some(state) = last_workspace {
            let bundle = self.context.journal.blob(state.bundle).await?;
            self.agent.repositories.unbundle(self.key(), &bundle).await.map_err(git_end)?;
            tree_on_disk = state.tree;
        }
        let form = self.form(&mut steps).await?;
        let tools = self.lay_out(&ground, &folder, tree_on_disk).await?;
        let mut talk = self.talk(&ground, steps, tools, &folder, form);
        let result = self.phases(&ground, &mut talk, &folder).await;
        match result {
            Err(Ended::Limit(limit)) => self.stopped_by(limit, &ground, &mut talk, &folder).await,
            other => other,
        }
    }

    async fn phases(&self, ground: &Ground, talk: &mut Talk, folder: &RunFolder) -> Result<RunResult, Ended> {
        if let Some(outcome) = self.triage(talk).await? {
            return Ok(self.result(outcome, Some(ground.base.commit), None, talk.steps.spent()));
        }
        let repro = self.reproduce(ground, talk, folder).await?;
        let summary = self.fix(talk, &repro).await?;
        // A test alone, that fails, helps nobody.
        if !talk.has_fix() {
            let notes = talk.distil().await?;
            let outcome = RunOutcome::Unsolved { notes };
            return Ok(self.result(outcome, Some(ground.base.commit), None, talk.steps.spent()));
        }
        let (best, summary) = self.verify_and_repair(ground, talk, folder, &repro, summary).await?;
        self.hand_over(ground, talk, best, summary, &[]).await
    }

    /// Phase 0. `None`: go.
    async fn triage(&self, talk: &mut Talk) -> Result<Option<RunOutcome>, Ended> {
        talk.steps.enter("triage");
        talk.say(&context::triage(&self.brief.limits));
        let mut calls = self.brief.limits.triage_calls;
        match talk.converse(READ, &mut calls).await? {
            Said::Exhausted => Ok(None),
            Said::Finished { summary } => Ok(verdict(&summary)),
        }
    }

    /// Phase 2: a test that fails on the base. Whatever else was changed is dropped.
    async fn reproduce(
        &self,
        ground: &Ground,
        talk: &mut Talk,
        folder: &RunFolder,
    ) -> Result<Option<Reproduced>, Ended> {
        talk.steps.enter("reproduce");
        talk.say(&context::reproduce(&self.brief.limits));
        let mut calls = self.brief.limits.reproduce_calls;
        let mut reproduced = None;
        while let Said::Finished { summary } = talk.converse(TEST, &mut calls).await? {
            if summary.trim_start().to_lowercase().starts_with("no test") {
                break;
            }
            let seen = self.observe_reproduction(ground, talk, folder).await?;
            if seen.fails {
                reproduced = Some(seen);
                break;
            }
            talk.say(&format!(
                "error[not_reproduced]: the new test does not show the issue on the unchanged code.\n{}\nChange the test, or finish with `no test:` and the reason.",
                seen.text
            ));
        }
        let start = reproduced.as_ref().and_then(|seen| seen.tree).unwrap_or(ground.base.tree);
        self.put_workspace(ground, talk, folder, start).await?;
        talk.fix_starts_from = Some(start);
        Ok(reproduced)
    }

    async fn observe_reproduction(
        &self,
        ground: &Ground,
        talk: &mut Talk,
        folder: &RunFolder,
    ) -> Result<Reproduced, Ended> {
        let input = digest(&("reproduce", talk.tree));
        if let Some(seen) = talk.replay::<Reproduced>(StepKind::Decide, input).await? {
            return Ok(seen);
        }
        let started = Instant::now();
        let scratch = folder.join("reproduce");
        let note = |text: &str| self.agent.watch.note(text);
        let verify = self.verify_context(&ground.commands, &ground.prepared, &scratch, &note);
        let found =
            reproduces(verify, &ground.base, &ground.report, talk.tree).await.map_err(|e| self.verify_end(e))?;
        let seen = Reproduced { fails: found.fails(), text: found.text, tree: found.tree };
        let title = if seen.fails { "the new test fails on the base" } else { "the issue is not reproduced" };
        self.decide(talk, title, input, &seen, None, started).await?;
        Ok(seen)
    }

    /// Phase 3: until there is a change and the model says that it is done. Gives its summary, if it came to one.
    async fn fix(&self, talk: &mut Talk, repro: &Option<Reproduced>) -> Result<Option<String>, Ended> {
        talk.steps.enter("fix");
        let shown = repro
            .as_ref()
            .map(|seen| format!("The new test fails on the unchanged code, as it should:\n{}", seen.text));
        talk.say(&context::fix(&self.brief.limits, shown.as_deref()));
        let mut calls = self.brief.limits.fix_calls;
        loop {
            match talk.converse(FIX, &mut calls).await? {
                Said::Exhausted => return Ok(None),
                Said::Finished { summary } if talk.has_fix() => return Ok(Some(summary)),
                Said::Finished { .. } => {
                    talk.say("error[no_change]: the code is as it was before this phase, so nothing can be fixed yet. Make the change, then finish.");
                }
            }
        }
    }

    /// Phases 4 and 5: a Proof, and while calls are left, a repair of exactly what it lacks. Gives the best state seen.
    async fn verify_and_repair(
        &self,
        ground: &Ground,
        talk: &mut Talk,
        folder: &RunFolder,
        repro: &Option<Reproduced>,
        mut summary: Option<String>,
    ) -> Result<(Verified, Option<String>), Ended> {
        let mut best = self.verify(ground, talk, folder, repro).await?;
        for _ in 0..self.brief.limits.repairs {
            let failures = repairable(&best.proof);
            if best.proof.level == Level::Proven || failures.is_empty() {
                break;
            }
            talk.steps.enter("repair");
            talk.say(&context::repair(&self.brief.limits, &failures));
            let mut calls = self.brief.limits.repair_calls;
            match talk.converse(FIX, &mut calls).await {
                Ok(Said::Finished { summary: new }) => summary = Some(new),
                Ok(Said::Exhausted) => {}
                // The change is verified already; a limit during its repair does not take that away.
                Err(Ended::Limit(limit)) => {
                    talk.steps.watch().note(&format!("repair ended: {limit}"));
                    break;
                }
                Err(other) => return Err(other),
            }
            if talk.tree == best.tree || !talk.has_fix() {
                continue;
            }
            let repaired = self.verify(ground, talk, folder, repro).await?;
            if repaired.proof.level >= best.proof.level {
                best = repaired;
            }
        }
        Ok((best, summary))
    }

    async fn verify(
        &self,
        ground: &Ground,
        talk: &mut Talk,
        folder: &RunFolder,
        repro: &Option<Reproduced>,
    ) -> Result<Verified, Ended> {
        talk.steps.enter("verify");
        let tree = talk.tree;
        let repro_tree = repro.as_ref().and_then(|seen| seen.tree);
        let input = digest(&("verify", tree, repro_tree));
        if let Some(proof) = talk.replay::<Proof>(StepKind::Verify, input).await? {
            return Ok(Verified { tree, proof });
        }
        let started = Instant::now();
        let scratch = folder.join("verify");
        let note = |text: &str| self.agent.watch.note(text);
        let head_prepared = self.prepare_head(ground, folder, tree).await?;
        let verify = self.verify_context(&ground.commands, &ground.prepared, &scratch, &note);
        let request = ProveRequest {
            run: self.brief.run,
            base: &ground.base,
            base_report: &ground.report,
            head_tree: tree,
            repro_tree,
            head_prepared: head_prepared.as_ref(),
        };
        let proving = prove(verify, request).instrument(info_span!("verify"));
        let proof = proving.await.map_err(|e| self.verify_end(e))?;
        self.keep_logs(&proof, &scratch.join("logs")).await?;
        let title = match proof.level {
            Level::Proven => "proven".to_owned(),
            Level::Weak => format!("weak: {}", reasons(&proof).join("; ")),
            Level::Unproven => format!("unproven: {}", reasons(&proof).join("; ")),
        };
        let took = started.elapsed();
        let fresh = Fresh {
            kind: StepKind::Verify,
            title,
            input,
            value: &proof,
            spent: Spent::default(),
            workspace: None,
            took,
        };
        talk.steps.record(fresh).await?;
        Ok(Verified { tree, proof })
    }

    /// The logs that the Proof names, so that they outlive the Run's folder.
    async fn keep_logs(&self, proof: &Proof, folder: &Utf8Path) -> Result<(), Ended> {
        let logs: BTreeSet<_> = proof.commands.iter().filter_map(|command| command.log).collect();
        for log in logs {
            // Logs of base commands that an earlier Run made are not here; they were kept then.
            if let Ok(content) = fs_err::tokio::read(folder.join(log.to_string())).await {
                self.context.journal.put_blob(content.into()).await?;
            }
        }
        Ok(())
    }

    /// A limit or loop rule ended the conversation. What was changed is still verified; what was learned is written down.
    async fn stopped_by(
        &self,
        limit: String,
        ground: &Ground,
        talk: &mut Talk,
        folder: &RunFolder,
    ) -> Result<RunResult, Ended> {
        talk.steps.watch().note(&format!("stopped: {limit}"));
        if talk.has_fix() {
            let best = self.verify(ground, talk, folder, &None).await?;
            return self.hand_over(ground, talk, best, None, std::slice::from_ref(&limit)).await;
        }
        let notes = match talk.distil().await {
            Ok(notes) => notes,
            Err(Ended::Limit(_)) => String::new(),
            Err(other) => return Err(other),
        };
        let outcome = RunOutcome::Stopped { limit, notes };
        Ok(self.result(outcome, Some(ground.base.commit), None, talk.steps.spent()))
    }

    async fn hand_over(
        &self,
        ground: &Ground,
        talk: &mut Talk,
        best: Verified,
        summary: Option<String>,
        stopped_by: &[String],
    ) -> Result<RunResult, Ended> {
        let repositories = &self.agent.repositories;
        let patch = repositories.diff(self.key(), ground.base.commit, best.tree).await.map_err(git_end)?;
        if let Some(notes) = forbidden_by_repository(&patch, &ground.commands.paths.forbidden) {
            let base = Some(ground.base.commit);
            return Ok(self.result(RunOutcome::Unsolved { notes }, base, None, talk.steps.spent()));
        }
        crash::before(Point::WorkerBundle);
        let bundle = talk.keep(best.tree).await?.bundle;
        crash::after(Point::WorkerBundle);
        let outcome = if best.proof.level == Level::Proven {
            RunOutcome::ReadyPr
        } else {
            let stops = stopped_by.iter().map(|limit| format!("the run was stopped: {limit}"));
            RunOutcome::DraftPr { reasons: stops.chain(reasons(&best.proof)).collect() }
        };
        let (title, summary) = title_and_summary(summary.as_deref(), &self.brief.issue.title);
        let change = ProvenChange { patch, bundle, proof: best.proof, title, summary };
        Ok(self.result(outcome, Some(ground.base.commit), Some(change), talk.steps.spent()))
    }

    /// Puts the workspace to `tree` and says so in the record. A replayed Run finds it there already.
    async fn put_workspace(
        &self,
        ground: &Ground,
        talk: &mut Talk,
        folder: &RunFolder,
        tree: TreeId,
    ) -> Result<(), Ended> {
        if talk.tree == tree {
            return Ok(());
        }
        let input = digest(&("workspace", talk.tree, tree));
        let replayed = talk.replay::<TreeId>(StepKind::Decide, input).await?.is_some();
        let tools = if replayed {
            self.tools(ground, folder).await?
        } else {
            let state = talk.keep(tree).await?;
            self.decide(talk, "only the test is kept", input, &tree, Some(state), Instant::now()).await?;
            self.lay_out(ground, folder, tree).await?
        };
        talk.moved_to(tree, tools);
        Ok(())
    }

    async fn decide<T: Serialize>(
        &self,
        talk: &mut Talk,
        title: &str,
        input: fettle_domain::object::BlobId,
        value: &T,
        workspace: Option<fettle_domain::step::WorkspaceState>,
        started: Instant,
    ) -> Result<(), Ended> {
        let title = title.to_owned();
        let took = started.elapsed();
        let fresh = Fresh { kind: StepKind::Decide, title, input, value, spent: Spent::default(), workspace, took };
        Ok(talk.steps.record(fresh).await?)
    }

    /// The workspace with `tree` in it, and a private repository whose one commit is the base.
    async fn lay_out(&self, ground: &Ground, folder: &RunFolder, tree: TreeId) -> Result<ToolBox, Ended> {
        let (workspace, beside) = (folder.join("workspace"), folder.join("workspace.new"));
        let io = |error: std::io::Error| Ended::from(RunEnd::Retry(error.to_string()));
        if workspace.exists() {
            removal::remove(workspace.clone()).await.map_err(io)?;
        }
        let repositories = &self.agent.repositories;
        let private = CheckoutKind::WithPrivateRepository;
        repositories.checkout(self.key(), ground.base.tree, &workspace, private).await.map_err(git_end)?;
        if tree != ground.base.tree {
            repositories.checkout(self.key(), tree, &beside, CheckoutKind::Plain).await.map_err(git_end)?;
            fs_err::tokio::rename(workspace.join(".git"), beside.join(".git")).await.map_err(io)?;
            removal::remove(workspace.clone()).await.map_err(io)?;
            fs_err::tokio::rename(&beside, &workspace).await.map_err(io)?;
        }
        self.tools(ground, folder).await
    }

    async fn tools(&self, ground: &Ground, folder: &RunFolder) -> Result<ToolBox, Ended> {
        let workspace = folder.join("workspace");
        let build = folder.join("build");
        let sandbox = &self.agent.sandbox;
        let bench =
            ground.prepared.bench_for(&**sandbox, &workspace, &build).await.map_err(|e| RunEnd::Retry(chain(&e)))?;
        let mut paths = PathPolicy::clone(&self.agent.options.paths.now());
        paths.forbidden.extend(ground.commands.paths.forbidden.iter().cloned());
        let options = ToolBoxOptions {
            workspace,
            out_dir: folder.join("out"),
            sandbox: sandbox.clone(),
            bench: bench.clone(),
            path_rules: Arc::new(move |path| paths.refuses_write(path)),
            tests: Arc::new(WorkspaceTests {
                sandbox: sandbox.clone(),
                bench,
                commands: Arc::new(ground.commands.clone()),
                reports: folder.join("reports"),
                time: self.agent.options.suite_time,
            }),
            working_context_tokens: working_context(self.model.info().context_tokens),
        };
        Ok(ToolBox::new(options).map_err(|e| RunEnd::Retry(chain(&e)))?)
    }

    /// How the model is asked for calls. What was known when the Run began stays so for all of it.
    async fn form(&self, steps: &mut Steps) -> Result<Form, Ended> {
        let input = digest(&"how the model calls tools");
        if steps.replaying() {
            // Only where something was known is it on record; the next step is then a model call.
            let known = steps.next_recorded() == Some(StepKind::Decide);
            let form = if known { steps.replay::<Form>(StepKind::Decide, input).await? } else { None };
            return Ok(form.unwrap_or_default());
        }
        let name = &self.model.info().name;
        let (form, title) = match self.model.tool_calls().await {
            None => return Ok(Form::default()),
            Some(ToolCalls::ChatOnly { why }) => {
                return Err(RunEnd::Never(format!("the model `{name}` is for chat only: {why}")).into());
            }
            Some(ToolCalls::Form { dialect, edits, stream, right, asked }) => {
                let Some(form) = Form::named(&dialect, &edits, stream) else { return Ok(Form::default()) };
                (form, format!("tools are called in the {dialect} form: {right} of {asked} were right in it"))
            }
        };
        let (spent, took) = (Spent::default(), Duration::ZERO);
        let fresh = Fresh { kind: StepKind::Decide, title, input, value: &form, spent, workspace: None, took };
        steps.record(fresh).await?;
        Ok(form)
    }

    fn talk(&self, ground: &Ground, steps: Steps, tools: ToolBox, folder: &RunFolder, form: Form) -> Talk {
        let issue_mark = context::mark(self.brief.run, "issue");
        let fence_mark = context::mark(self.brief.run, "fence");
        let system = context::rules(&form.instructions(&specs(), &fence_mark), &issue_mark);
        let facts = context::RepositoryFacts {
            commands: &ground.commands,
            guide: ground.guide.clone(),
            paths: ground.files.paths().map(str::to_owned).collect(),
            base_results: describe(&ground.report),
            toolchain: &ground.prepared.environment.toolchain,
        };
        let task = context::task(&facts, &self.brief.issue, &issue_mark);
        let parts = TalkParts {
            model: self.model.clone(),
            repositories: self.agent.repositories.clone(),
            key: self.key().to_owned(),
            base: ground.base.commit,
            base_tree: ground.base.tree,
            workspace: folder.join("workspace"),
            by_products: ground.commands.by_products.clone(),
            limits: self.brief.limits,
            fence_mark,
            form,
            speech: self.context.speech.clone(),
            cancel: self.context.cancel.clone(),
        };
        Talk::new(parts, steps, tools, system, task)
    }

    pub(super) fn key(&self) -> &str {
        &self.brief.source.key
    }

    pub(super) fn stopped(&self) -> Ended {
        Ended::from(self.context.journal.ended().unwrap_or(Stop::Lost))
    }

    fn result(
        &self,
        outcome: RunOutcome,
        base: Option<fettle_domain::object::CommitId>,
        change: Option<ProvenChange>,
        spent: Spent,
    ) -> RunResult {
        RunResult { outcome, base, change, spent, model: self.model.info().name.clone() }
    }
}

/// What triage decided; `None`: go. A summary without a verdict is read as one to go on.
fn verdict(summary: &str) -> Option<RunOutcome> {
    let summary = summary.trim();
    let after = |word: &str| {
        let rest = summary
            .get(..8)
            .filter(|start| start.eq_ignore_ascii_case("verdict:"))
            .map(|_| summary[8..].trim_start())?;
        let end =
            rest.get(..word.len()).filter(|start| start.eq_ignore_ascii_case(word)).map(|_| &rest[word.len()..])?;
        Some(end.trim_start_matches([' ', '–', '-', ':', '—', '\n']).trim().to_owned())
    };
    if let Some(text) = after("ask") {
        let questions =
            text.lines().map(|l| l.trim_start_matches(['-', '*', ' ']).to_owned()).filter(|l| !l.is_empty());
        return Some(RunOutcome::Question { questions: questions.take(3).collect() });
    }
    if let Some(reason) = after("decline") {
        return Some(RunOutcome::Declined { reason });
    }
    after("nothing").map(|why| RunOutcome::NoChangeNeeded { why })
}

fn reasons(proof: &Proof) -> Vec<String> {
    proof.reasons.iter().map(|reason| reason.text.clone()).collect()
}

/// The reasons that another change could remove, one a line; empty when none.
fn repairable(proof: &Proof) -> String {
    let by_a_change = |code: ReasonCode| match code {
        ReasonCode::NoNewTest
        | ReasonCode::NewTestPassesOnBase
        | ReasonCode::NewTestFailsOnHead
        | ReasonCode::NewTestOnlyFailsToBuild
        | ReasonCode::NewTestFlaky
        | ReasonCode::SuiteBroken
        | ReasonCode::SuiteVanished
        | ReasonCode::CheckWorse
        | ReasonCode::TouchedTestFailsInBaseVersion => true,
        ReasonCode::NoChange
        | ReasonCode::NoTestCommand
        | ReasonCode::SuiteTimeout
        | ReasonCode::EnvironmentUnstable
        | ReasonCode::TestCommandFromModel
        | ReasonCode::TestConfigurationChanged
        | ReasonCode::SandboxLevel
        | ReasonCode::CommandGranularity
        | ReasonCode::DependenciesChanged
        | ReasonCode::DocumentationOnly => false,
    };
    let lines =
        proof.reasons.iter().filter(|reason| by_a_change(reason.code)).map(|reason| format!("- {}", reason.text));
    lines.collect::<Vec<_>>().join("\n")
}

/// The first line, and the rest; the issue's title where the model gave none.
fn title_and_summary(summary: Option<&str>, issue_title: &str) -> (String, String) {
    let text = summary.unwrap_or_default().trim();
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let first = first.trim().trim_start_matches("title:").trim_start_matches("Title:").trim_start_matches('#').trim();
    let title = if first.is_empty() { issue_title } else { first };
    let rest = if rest.trim().is_empty() { first } else { rest.trim() };
    (title.to_owned(), rest.to_owned())
}

/// The file tools refuse such a change at once; a command may have made it all the same.
fn forbidden_by_repository(patch: &Patch, globs: &[String]) -> Option<String> {
    patch.changes.iter().find_map(|change| {
        let rule = globs.iter().find(|glob| glob_matches(glob, &change.path.lossy()))?;
        Some(format!("The change touches {}, which `.fettle.toml` forbids (rule {rule}).", change.path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_by_a_command_of_what_the_repository_forbids_is_found() {
        let change = |path: &str| fettle_domain::patch::Change {
            path: fettle_domain::path::RepoPath::parse(path).unwrap(),
            before: None,
            after: None,
            lines_added: 1,
            lines_removed: 0,
            binary: false,
        };
        let object = [1; 20];
        let patch = Patch {
            base: fettle_domain::object::CommitId::from_bytes(object),
            base_tree: TreeId::from_bytes(object),
            head_tree: TreeId::from_bytes(object),
            changes: vec![change("src/lib.rs"), change("infra/prod/main.tf")],
        };
        assert_eq!(forbidden_by_repository(&patch, &["docs/**".into()]), None);
        let said = forbidden_by_repository(&patch, &["infra/**".into()]).unwrap();
        assert!(said.contains("infra/prod/main.tf") && said.contains("(rule infra/**)"), "{said}");
    }

    #[test]
    fn a_verdict_is_read_and_anything_else_means_go() {
        assert_eq!(verdict("verdict: go – off by one in parse"), None);
        assert_eq!(verdict("The bug is in parse."), None);
        assert_eq!(
            verdict("Verdict: ask\n- Which format?\n- Which version?\n\nthird\nfourth"),
            Some(RunOutcome::Question {
                questions: vec!["Which format?".into(), "Which version?".into(), "third".into()]
            })
        );
        assert_eq!(verdict("verdict: decline – not a bug"), Some(RunOutcome::Declined { reason: "not a bug".into() }));
        assert!(matches!(verdict("verdict: nothing – see lib.rs"), Some(RunOutcome::NoChangeNeeded { .. })));
    }

    #[test]
    fn a_title_is_the_first_line_or_the_issues() {
        assert_eq!(title_and_summary(Some("# Fix it\n\nBecause."), "t"), ("Fix it".into(), "Because.".into()));
        assert_eq!(title_and_summary(None, "The issue"), ("The issue".into(), String::new()));
    }
}
