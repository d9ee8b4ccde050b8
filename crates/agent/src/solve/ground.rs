//! What a Run stands on before a model is asked: the base commit, its commands, the prepared environment and what the
//! base's own build and tests say.

use fettle_app::crash::{self, Point};
use fettle_app::ports::chain;
use fettle_app::ports::git::{BaseCommit, BaseRef, CheckoutKind, GitError, TreeEdit};
use fettle_app::running::RunEnd;
use fettle_domain::budget::Spent;
use fettle_domain::object::TreeId;
use fettle_domain::patch::FileMode;
use fettle_domain::path::RepoPath;
use fettle_domain::run::RunOutcome;
use fettle_domain::step::StepKind;
use tokio::time::Instant;
use tracing::{Instrument as _, info_span};

use super::folder::RunFolder;
use super::steps::{Fresh, Steps, digest};
use super::story::Story;
use super::talk::{Ended, git_end};
use crate::ecosystem::{BaseFiles, Commands, discover};
use crate::prepare::{PrepareError, PrepareRequest, Prepared, prepare};
use crate::verify::{BaseReport, VerifyContext, VerifyError, base_green, declined};

/// Files in which a repository says how it wants to be worked on, first found wins.
const GUIDES: [&str; 2] = ["AGENTS.md", "CLAUDE.md"];

/// Files from which package managers fetch without running anything of the repository.
const FETCHED_FROM: [&[u8]; 5] =
    [b"Cargo.lock", b"Cargo.toml", b"npm-shrinkwrap.json", b"package-lock.json", b"package.json"];
/// The locks of npm, which builds what it fetches by git, and so runs it. What a manifest says and its lock does not, `npm ci`
/// refuses. cargo runs nothing while it fetches.
const NPM_LOCKS: [&[u8]; 2] = [b"npm-shrinkwrap.json", b"package-lock.json"];
const GIT_SOURCES: [&str; 4] = ["git+", "git://", "git@", "github:"];

pub(super) struct Ground {
    pub(super) base: BaseCommit,
    pub(super) files: BaseFiles,
    pub(super) commands: Commands,
    pub(super) prepared: Prepared,
    pub(super) report: BaseReport,
    pub(super) guide: Option<String>,
}

/// Ground to stand on, or why there is none and what people are told.
pub(super) enum Footing {
    Firm(Box<Ground>),
    None { base: Option<BaseCommit>, outcome: RunOutcome },
}

impl Story<'_> {
    pub(super) async fn ground(&self, steps: &mut Steps, folder: &RunFolder) -> Result<Footing, Ended> {
        steps.enter("base_green");
        let base = match self.base(steps).await? {
            Ok(base) => base,
            Err(reason) => return Ok(Footing::None { base: None, outcome: RunOutcome::Declined { reason } }),
        };
        let none =
            |reason: String| Footing::None { base: Some(base.clone()), outcome: RunOutcome::Declined { reason } };
        let files = BaseFiles::load(&*self.agent.repositories, self.key(), base.tree).await.map_err(git_end)?;
        let commands = match discover(&files, self.brief.test_command.as_deref()) {
            Ok(commands) => commands,
            Err(error) => return Ok(none(chain(&error))),
        };
        let prepared = match self.prepare(&base, &files, None, &commands, folder).await? {
            Ok(prepared) => prepared,
            Err(reason) => return Ok(none(reason)),
        };
        for note in &prepared.notes {
            steps.watch().note(note);
        }
        let report = self.base_report(steps, &base, &commands, &prepared, folder).await?;
        if let Some(reason) = declined(&report, &commands) {
            return Ok(none(reason));
        }
        let guide = self.guide(&base).await?;
        Ok(Footing::Firm(Box::new(Ground { base, files, commands, prepared, report, guide })))
    }

    /// The commit that the Run starts from, the same at every lease.
    async fn base(&self, steps: &mut Steps) -> Result<Result<BaseCommit, String>, Ended> {
        let input = digest(&(self.key(), &self.brief.base));
        let recorded = steps.replaying();
        let at = steps.next_seq();
        if let Some(base) = steps.replay::<BaseCommit>(StepKind::Base, input).await? {
            let again = BaseRef::Commit(base.commit);
            self.agent.repositories.resolve(&self.brief.source, &again).await.map_err(git_end)?;
            return Ok(Ok(base));
        }
        if recorded {
            return Err(Ended::Diverged(at));
        }
        let started = Instant::now();
        crash::before(Point::WorkerResolve);
        let base = match self.agent.repositories.resolve(&self.brief.source, &self.brief.base).await {
            Ok(base) => base,
            Err(error @ (GitError::NotFound { .. } | GitError::Invalid(_))) => return Ok(Err(chain(&error))),
            Err(error) => return Err(git_end(error).into()),
        };
        crash::after(Point::WorkerResolve);
        let title = format!("base {}", base.commit.short());
        let took = started.elapsed();
        let fresh =
            Fresh { kind: StepKind::Base, title, input, value: &base, spent: Spent::default(), workspace: None, took };
        steps.record(fresh).await?;
        Ok(Ok(base))
    }

    async fn prepare(
        &self,
        base: &BaseCommit,
        files: &BaseFiles,
        change_of: Option<&BaseFiles>,
        commands: &Commands,
        folder: &RunFolder,
    ) -> Result<Result<Prepared, String>, Ended> {
        let checkout = folder.join(&format!("prepare-{}", base.tree.short()));
        crash::before(Point::WorkerCheckout);
        self.agent
            .repositories
            .checkout(self.key(), base.tree, &checkout, CheckoutKind::Plain)
            .await
            .map_err(git_end)?;
        crash::after(Point::WorkerCheckout);
        let request = PrepareRequest {
            scope: self.key(),
            files,
            change_of,
            commands,
            checkout: &checkout,
            sandbox: &*self.agent.sandbox,
            options: &self.agent.options.prepare,
        };
        let watch = &self.agent.watch;
        match prepare(request, &|text| watch.note(text), &self.context.cancel).await {
            Ok(prepared) => Ok(Ok(prepared)),
            Err(PrepareError::Cancelled) => Err(self.stopped()),
            Err(
                error @ (PrepareError::MissingToolchain { .. }
                | PrepareError::NetworkNotAllowed { .. }
                | PrepareError::InstallFailed { .. }
                | PrepareError::TooSlow { .. }),
            ) => Ok(Err(chain(&error))),
            Err(error @ (PrepareError::Cache(_) | PrepareError::Sandbox(_))) => {
                Err(RunEnd::Retry(chain(&error)).into())
            }
        }
    }

    /// The environment of a change that touches what dependencies are made from; `None`: the base's will do.
    ///
    /// Preparation has a network, and nothing of a change may run there: it could carry the repository away. So only manifests
    /// and locks of Cargo and npm are taken from it, the rest of the tree is the base's, and what is not prepared shows as a
    /// failure when it is missed.
    pub(super) async fn prepare_head(
        &self,
        ground: &Ground,
        folder: &RunFolder,
        tree: TreeId,
    ) -> Result<Option<Prepared>, Ended> {
        let repositories = &self.agent.repositories;
        let patch = repositories.diff(self.key(), ground.base.commit, tree).await.map_err(git_end)?;
        let paths = patch.changes.into_iter().map(|change| change.path);
        let fetched: Vec<RepoPath> = paths.filter(|path| FETCHED_FROM.contains(&path.file_name())).collect();
        if fetched.is_empty() {
            return Ok(None);
        }
        let contents = repositories.read_files(self.key(), tree, fetched.clone()).await.map_err(git_end)?;
        let mut versions = fetched.iter().zip(&contents);
        if versions
            .any(|(path, version)| version.as_ref().is_some_and(|(mode, text)| !may_be_fetched(path, *mode, text)))
        {
            self.agent.watch.note("the changed dependencies are not prepared: a manifest is a link, or npm would run what it fetches by git");
            return Ok(None);
        }
        self.agent.watch.note("the change touches dependencies; preparing them again");
        let edits = fetched.into_iter().zip(contents).map(|(path, put)| TreeEdit { path, put }).collect();
        let manifests = repositories.edit_tree(self.key(), ground.base.tree, edits).await.map_err(git_end)?;
        let head = BaseCommit { tree: manifests, ..ground.base.clone() };
        let files = BaseFiles::load(&**repositories, self.key(), manifests).await.map_err(git_end)?;
        let commands = Commands { setup: None, ..ground.commands.clone() };
        match self.prepare(&head, &files, Some(&ground.files), &commands, folder).await? {
            Ok(prepared) => Ok(Some(prepared)),
            Err(why) => {
                self.agent.watch.note(&format!("the changed dependencies could not be prepared: {why}"));
                Ok(None)
            }
        }
    }

    async fn base_report(
        &self,
        steps: &mut Steps,
        base: &BaseCommit,
        commands: &Commands,
        prepared: &Prepared,
        folder: &RunFolder,
    ) -> Result<BaseReport, Ended> {
        let input = digest(&("base_green", base.tree, prepared.environment.digest, commands.digest()));
        let recorded = steps.replaying();
        let at = steps.next_seq();
        if let Some(report) = steps.replay::<BaseReport>(StepKind::Base, input).await? {
            return Ok(report);
        }
        if recorded {
            return Err(Ended::Diverged(at));
        }
        let started = Instant::now();
        let scratch = folder.join("base");
        let note = |text: &str| self.agent.watch.note(text);
        let verify = self.verify_context(commands, prepared, &scratch, &note);
        let looking = base_green(verify, base, &self.agent.options.base_cache).instrument(info_span!("verify"));
        let report = looking.await.map_err(|e| self.verify_end(e))?;
        let title = format!("base: {}", describe(&report));
        let took = started.elapsed();
        let fresh = Fresh {
            kind: StepKind::Base,
            title,
            input,
            value: &report,
            spent: Spent::default(),
            workspace: None,
            took,
        };
        steps.record(fresh).await?;
        Ok(report)
    }

    pub(super) fn verify_context<'a>(
        &'a self,
        commands: &'a Commands,
        prepared: &'a Prepared,
        scratch: &'a camino::Utf8Path,
        progress: &'a (dyn Fn(&str) + Send + Sync),
    ) -> VerifyContext<'a> {
        VerifyContext {
            repositories: &*self.agent.repositories,
            sandbox: &*self.agent.sandbox,
            key: self.key(),
            commands,
            prepared,
            scratch,
            suite_time: self.agent.options.suite_time,
            progress,
            cancel: &self.context.cancel,
        }
    }

    pub(super) fn verify_end(&self, error: VerifyError) -> Ended {
        match error {
            VerifyError::Cancelled | VerifyError::Prepare(PrepareError::Cancelled) => self.stopped(),
            error if self.context.cancel.is_cancelled() => {
                tracing::debug!("verification ended by cancellation: {error}");
                self.stopped()
            }
            error => RunEnd::Retry(chain(&error)).into(),
        }
    }

    async fn guide(&self, base: &BaseCommit) -> Result<Option<String>, Ended> {
        for name in GUIDES {
            let path = RepoPath::parse(name).expect("a file name is a path");
            let found = self.agent.repositories.read_file(self.key(), base.tree, &path).await.map_err(git_end)?;
            if let Some((_, content)) = found {
                return Ok(Some(String::from_utf8_lossy(&content).into_owned()));
            }
        }
        Ok(None)
    }
}

fn may_be_fetched(path: &RepoPath, mode: FileMode, content: &[u8]) -> bool {
    let text = String::from_utf8_lossy(content);
    let runs_code = NPM_LOCKS.contains(&path.file_name()) && GIT_SOURCES.iter().any(|source| text.contains(source));
    matches!(mode, FileMode::Regular | FileMode::Executable) && !runs_code
}

/// What the base's own tests said, in a line.
pub(super) fn describe(report: &BaseReport) -> String {
    if report.suites.is_empty() {
        return "no tests are known".to_owned();
    }
    let parts: Vec<String> = report
        .suites
        .iter()
        .map(|run| {
            let counts = run.report.counts();
            format!("{} tests pass, {} fail, {} are skipped", counts.passed, counts.failed, counts.skipped)
        })
        .collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lock_of_npm_with_a_source_in_git_and_a_link_are_not_fetched_from() {
        let may = |path: &str, mode, text: &str| may_be_fetched(&RepoPath::parse(path).unwrap(), mode, text.as_bytes());
        let git = r#"{"resolved": "git+ssh://git@forge.example/o/r.git#1a2b"}"#;
        assert!(!may("web/package-lock.json", FileMode::Regular, git));
        assert!(may("package-lock.json", FileMode::Regular, r#"{"version": "https://forge.example/a.tgz"}"#));
        assert!(may(
            "package.json",
            FileMode::Regular,
            r#"{"repository": {"url": "git+https://forge.example/o/r.git"}}"#
        ));
        assert!(may("Cargo.lock", FileMode::Executable, "source = \"git+https://forge.example/o/r#1a2b\""));
        assert!(!may("Cargo.toml", FileMode::Symlink, "../elsewhere"));
    }
}
