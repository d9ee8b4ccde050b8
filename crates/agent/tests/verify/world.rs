//! A repository, its mirror and everything verification needs, in a temporary folder.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_agent::ecosystem::{BaseFiles, Commands, discover};
use fettle_agent::prepare::{PrepareNetwork, PrepareOptions, PrepareRequest, Prepared, prepare};
use fettle_agent::verify::{
    BaseReport, ProveRequest, Reproduction, SUITE_TIME, VerifyContext, WorkspaceTests, base_green, prove, reproduces,
};
use fettle_app::ports::git::{BaseCommit, BaseRef, CheckoutKind, Repositories, Source, TreeEdit};
use fettle_app::ports::sandbox::{
    CommandEnd, Sandbox, SandboxCommand, SandboxError, SandboxLevel, SandboxLimits, SandboxOutput, SandboxReport,
};
use fettle_domain::id::RunId;
use fettle_domain::object::TreeId;
use fettle_domain::patch::FileMode;
use fettle_domain::path::RepoPath;
use fettle_domain::proof::{Level, Proof, ReasonCode};
use fettle_git::{Git, GitOptions};
use tokio_util::sync::CancellationToken;

const KEY: &str = "local-0123456789abcdef";

/// Runs commands on this host without walls: what is tested is what verification concludes, not the sandbox.
pub(crate) struct HostShell {
    report: SandboxReport,
    /// `HOME` and `TMPDIR`, the same for all commands, so that a test can behave differently from run to run.
    home: Utf8PathBuf,
}

#[async_trait]
impl Sandbox for HostShell {
    fn report(&self) -> &SandboxReport {
        &self.report
    }

    fn workspace_inside(&self, workspace: &Utf8Path) -> Utf8PathBuf {
        workspace.to_owned()
    }

    async fn run(&self, command: &SandboxCommand, _: &CancellationToken) -> Result<SandboxOutput, SandboxError> {
        // `timeout` ends the whole process group.
        let seconds = command.limits.time.as_secs().max(1).to_string();
        let started = tokio::time::Instant::now();
        let output = tokio::process::Command::new("timeout")
            .args(["-s", "KILL", &seconds])
            .args(&command.argv)
            .current_dir(&command.workspace)
            .env_clear()
            .envs(&command.env)
            .env("HOME", &self.home)
            .env("TMPDIR", &self.home)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|error| SandboxError::Failed(error.into()))?;
        let end = match output.status.code() {
            _ if started.elapsed() >= command.limits.time => CommandEnd::TimedOut,
            Some(status) => CommandEnd::Exited(status),
            None => CommandEnd::Signalled(9),
        };
        let bytes_total = output.stdout.len() as u64;
        Ok(SandboxOutput {
            end,
            output: output.stdout,
            bytes_total,
            truncated: false,
            denied_hosts: vec![],
            took: started.elapsed(),
        })
    }
}

pub(crate) struct World {
    pub(crate) git: Git,
    pub(crate) sandbox: Arc<HostShell>,
    pub(crate) base: BaseCommit,
    pub(crate) commands: Commands,
    pub(crate) prepared: Prepared,
    pub(crate) report: BaseReport,
    pub(crate) suite_time: Duration,
    root: Utf8PathBuf,
    _guard: tempfile::TempDir,
}

impl World {
    /// A repository of these files, prepared and seen green (or as green as it is).
    pub(crate) async fn new(files: &[(&str, &str)]) -> Self {
        Self::with(files, None, SUITE_TIME).await
    }

    pub(crate) async fn with(files: &[(&str, &str)], operator: Option<&str>, suite_time: Duration) -> Self {
        let guard = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(guard.path().canonicalize().unwrap()).unwrap();
        commit(&root.join("origin"), files);
        let git = Git::new(GitOptions::new(root.join("mirrors"))).unwrap();
        let source = Source { key: KEY.into(), url: root.join("origin").into_string(), token: None };
        let base = git.resolve(&source, &BaseRef::Default).await.unwrap();
        let home = root.join("home");
        fs_err::create_dir_all(&home).unwrap();
        let report = SandboxReport { level: SandboxLevel::Full, cgroup: false, landlock_abi: 0, notes: vec![] };
        let sandbox = Arc::new(HostShell { report, home });
        let files = BaseFiles::load(&git, KEY, base.tree).await.unwrap();
        let commands = discover(&files, operator).unwrap();
        let checkout = root.join("prepare");
        git.checkout(KEY, base.tree, &checkout, CheckoutKind::Plain).await.unwrap();
        let options = PrepareOptions {
            cache_dir: root.join("cache"),
            network: PrepareNetwork::None,
            path: env!("PATH").into(),
            install_env: BTreeMap::new(),
            install_mounts: vec![],
            cargo_config: None,
            limits: SandboxLimits::default(),
        };
        let request = PrepareRequest {
            scope: "fixture",
            files: &files,
            change_of: None,
            commands: &commands,
            checkout: &checkout,
            sandbox: sandbox.as_ref(),
            options: &options,
        };
        let prepared = prepare(request, &|_| {}, &CancellationToken::new()).await.unwrap();
        let mut world =
            Self { report: unobserved(&base), git, sandbox, base, commands, prepared, suite_time, root, _guard: guard };
        world.report = world.base_green().await;
        world
    }

    pub(crate) async fn base_green(&self) -> BaseReport {
        let (scratch, cancel) = (self.root.join("scratch"), CancellationToken::new());
        base_green(self.context(&scratch, &cancel), &self.base, &self.root.join("cache")).await.unwrap()
    }

    /// The base with these files put in or, with `None`, taken out.
    pub(crate) async fn tree(&self, edits: &[(&str, Option<&str>)]) -> TreeId {
        let edit = |(path, text): &(&str, Option<&str>)| TreeEdit {
            path: RepoPath::parse(path).unwrap(),
            put: text.map(|text| (FileMode::Regular, Bytes::copy_from_slice(text.as_bytes()))),
        };
        self.git.edit_tree(KEY, self.base.tree, edits.iter().map(edit).collect()).await.unwrap()
    }

    pub(crate) async fn prove(&self, edits: &[(&str, Option<&str>)]) -> Proof {
        self.prove_with(edits, None).await
    }

    pub(crate) async fn prove_with(&self, edits: &[(&str, Option<&str>)], repro_tree: Option<TreeId>) -> Proof {
        let (scratch, cancel) = (self.root.join("scratch"), CancellationToken::new());
        let request = ProveRequest {
            run: RunId::from_uuid(uuid::Uuid::from_u128(1)),
            base: &self.base,
            base_report: &self.report,
            head_tree: self.tree(edits).await,
            repro_tree,
            head_prepared: None,
        };
        prove(self.context(&scratch, &cancel), request).await.unwrap()
    }

    pub(crate) async fn reproduces(&self, edits: &[(&str, Option<&str>)]) -> Reproduction {
        let (scratch, cancel) = (self.root.join("scratch"), CancellationToken::new());
        let tree = self.tree(edits).await;
        reproduces(self.context(&scratch, &cancel), &self.base, &self.report, tree).await.unwrap()
    }

    /// The agent's own workspace with its test runner.
    pub(crate) async fn workspace(&self, edits: &[(&str, Option<&str>)]) -> (Utf8PathBuf, WorkspaceTests) {
        let workspace = self.root.join("workspace");
        let tree = self.tree(edits).await;
        self.git.checkout(KEY, tree, &workspace, CheckoutKind::Plain).await.unwrap();
        let bench = self.prepared.bench_for(self.sandbox.as_ref(), &workspace, &self.root.join("agent-build")).await;
        let tests = WorkspaceTests {
            sandbox: Arc::clone(&self.sandbox) as Arc<dyn Sandbox>,
            bench: bench.unwrap(),
            commands: Arc::new(self.commands.clone()),
            reports: self.root.join("agent-reports"),
            time: SUITE_TIME,
        };
        (workspace, tests)
    }

    fn context<'a>(&'a self, scratch: &'a Utf8Path, cancel: &'a CancellationToken) -> VerifyContext<'a> {
        VerifyContext {
            repositories: &self.git,
            sandbox: self.sandbox.as_ref(),
            key: KEY,
            commands: &self.commands,
            prepared: &self.prepared,
            scratch,
            suite_time: self.suite_time,
            progress: &|_| {},
            cancel,
        }
    }
}

/// The level and the codes of its reasons.
pub(crate) fn verdict(proof: &Proof) -> (Level, Vec<ReasonCode>) {
    (proof.level, proof.reasons.iter().map(|reason| reason.code).collect())
}

fn commit(folder: &Utf8Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let file = folder.join(path);
        fs_err::create_dir_all(file.parent().unwrap()).unwrap();
        fs_err::write(file, text).unwrap();
    }
    let repository = git2::Repository::init(folder).unwrap();
    let mut index = repository.index().unwrap();
    index.add_all(["*"], git2::IndexAddOption::DEFAULT, None).unwrap();
    let tree = repository.find_tree(index.write_tree().unwrap()).unwrap();
    let time = git2::Time::new(1_700_000_000, 0);
    let who = git2::Signature::new("A", "a@example.test", &time).unwrap();
    repository.commit(Some("HEAD"), &who, &who, "base", &tree, &[]).unwrap();
}

/// Stands in until the base was observed.
fn unobserved(base: &BaseCommit) -> BaseReport {
    BaseReport::empty(base.tree)
}
