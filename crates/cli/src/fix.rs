//! `fettle fix`: one issue, one local repository, no forge. Leaves a branch and touches nothing else of the repository.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_agent::solve::{Agent, Brief};
use fettle_app::live::Live;
use fettle_app::ports::clock::{Clock as _, IdSource as _};
use fettle_app::ports::git::{BaseRef, CommitSpec, GitError, Pushed, Repositories, Source};
use fettle_app::ports::model::Model;
use fettle_app::publishing::proposal::{Outgoing, judge};
use fettle_app::publishing::texts::{Identity, trailer};
use fettle_app::running::{RunContext, RunEnd};
use fettle_domain::branch::BranchName;
use fettle_domain::budget::{Limits, MIN_CONTEXT_TOKENS, Spent};
use fettle_domain::id::{RunId, TaskId};
use fettle_domain::issue::IssueSnapshot;
use fettle_domain::object::{BlobId, CommitId};
use fettle_domain::outgoing;
use fettle_domain::proof::{Level, Proof};
use fettle_domain::proposal::Verdict;
use fettle_domain::run::{ProvenChange, RunOutcome, RunResult};
use fettle_domain::secret::KnownSecrets;
use fettle_domain::task::Mode;
use fettle_git::{Git, GitOptions, is_branch_name};
use fettle_runtime::config::{Config, ModelConfig};
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::{secrets, shutdown, system};
use fettle_worker::AgentParts;
use reqwest::StatusCode;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::Common;
use crate::journal::MemoryJournal;
use crate::progress::{Progress, one_line};
use crate::served::{self, Away, Listed};

/// An issue larger than this is no issue.
const MAX_ISSUE_BYTES: u64 = 1024 * 1024;
/// Branch names tried: `…-issue-7`, `…-issue-7-g2` and so on.
const BRANCH_TRIES: u32 = 50;
/// A server lists its models at once, unless an answer that it is writing keeps it busy.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// The name for a server that lists no model: those serve one, and mostly ignore the name.
const UNNAMED: &str = "default";
/// Exit codes beside success and failure.
const UNPROVEN: u8 = 3;
const NO_PATCH: u8 = 4;
const USAGE: u8 = 2;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// A local repository, or the URL of one.
    #[arg(long, value_name = "PATH_OR_URL")]
    repo: String,
    /// The issue: a text file whose first line is the title, or `-` for standard input.
    #[arg(long, value_name = "FILE|-")]
    issue: String,
    /// The issue's number, for the branch name and references.
    #[arg(long, value_name = "NUMBER", value_parser = issue_number)]
    issue_id: Option<u64>,
    #[arg(long, default_value = "quickfix", value_parser = ["quickfix", "refine"])]
    mode: String,
    /// A model of the configuration; default: its first.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model_url", "model_name", "model_key_file"])]
    model: Option<String>,
    /// An OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
    #[arg(long, value_name = "URL")]
    model_url: Option<String>,
    /// The name that this server knows the model by; default: the one model that it lists.
    #[arg(long, requires = "model_url")]
    model_name: Option<String>,
    /// A file with the server's API key.
    #[arg(long, requires = "model_url")]
    model_key_file: Option<Utf8PathBuf>,
    /// The model's window in tokens, with --model-url.
    #[arg(long, requires = "model_url", default_value_t = 65_536)]
    model_context: u64,
    /// The command that runs the tests; default: found in the repository.
    #[arg(long, value_name = "CMD")]
    test: Option<String>,
    /// What the fix starts from: branch, tag or commit; default: the repository's HEAD.
    #[arg(long, value_name = "REF")]
    base: Option<String>,
    /// The branch to leave; default: ai-agent/<mode>-issue-<id>.
    #[arg(long)]
    branch: Option<String>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Keep the working folder for a look.
    #[arg(long)]
    keep: bool,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Report {
    outcome: &'static str,
    reason: String,
    /// Where the branch lies: the user's repository, or the copy of one that a URL named.
    repository: Option<Utf8PathBuf>,
    branch: Option<String>,
    commit: Option<CommitId>,
    files: Vec<String>,
    proof: ProofReport,
    usage: Spent,
    #[serde(skip)]
    summary: String,
}

#[derive(Serialize)]
struct ProofReport {
    proven: bool,
    #[serde(flatten)]
    proof: Option<Proof>,
}

pub(crate) async fn run(common: &Common, flags: &Flags, environment: &Environment) -> Result<ExitCode> {
    let ids = system::RandomIds;
    let mode: Mode = flags.mode.parse()?;
    let config = Config::load(common.config.as_deref(), environment)?;
    let data = DataDir::open(common.data_dir.as_deref(), &config, environment)?;
    let issue = match read_issue(flags) {
        Ok(issue) => issue,
        Err(error) => return Ok(misuse(&error)),
    };
    let mut models = match models(flags, &config) {
        Ok(models) => models,
        Err(error) => return Ok(misuse(&error)),
    };
    let source = match source(&flags.repo, &config) {
        Ok(source) => source,
        Err(error) => return Ok(misuse(&error)),
    };
    let git = Git::new(GitOptions { plain_http_on_loopback: true, ..GitOptions::new(data.worker_mirrors()) })?;
    let repositories: Arc<dyn Repositories> = Arc::new(git);
    let base = flags.base.clone().map_or(BaseRef::Default, BaseRef::Named);
    match repositories.resolve(&source, &base).await {
        Ok(_) => {}
        Err(error @ (GitError::NotFound { .. } | GitError::Invalid(_) | GitError::Denied { .. })) => {
            return Ok(misuse(&error.into()));
        }
        Err(error) => return Err(error.into()),
    }
    if let Some(branch) = &flags.branch
        && let Err(error) = check_branch(&*repositories, &source, branch).await
    {
        return Ok(misuse(&error));
    }
    if let Some(given) = given(flags) {
        match name_on_server(flags, given).await? {
            Ok(named) => models = vec![fettle_worker::model(&named)?],
            Err(error) => return Ok(misuse(&error)),
        }
    }
    let cancel = CancellationToken::new();
    // Nothing to reload; caught, a hangup does not end the work.
    let _hangups = shutdown::on_signals(cancel.clone())?;
    let run = RunId::from_uuid(ids.uuid());
    let progress = Arc::new(Progress::new());
    let process = format!("fix-{}", run.as_uuid().simple());
    let parts = AgentParts {
        config: &config,
        environment,
        data: &data,
        repositories: repositories.clone(),
        watch: progress.clone(),
        process: &process,
        keep: flags.keep,
        paths: Live::new(config.forge.paths.clone()),
        gateway: None,
    };
    let agent = fettle_worker::agent(parts, models).await?;
    let brief = Brief {
        run,
        source: source.clone(),
        base,
        issue,
        mode,
        limits: Limits::for_mode(mode),
        test_command: flags.test.clone(),
    };
    let journal = Arc::new(MemoryJournal::new(cancel.clone()));
    let context = RunContext {
        journal: journal.clone(),
        recorded: Vec::new(),
        read_token: None,
        run_token: None,
        model: None,
        speech: Arc::default(),
        cancel: cancel.clone(),
    };
    let solved = solve(&agent, flags, &brief, &context).await;
    progress.done();
    if flags.keep {
        progress_note(&format!("the working folder is kept in {}", data.scratch(&process)));
    } else {
        fs_err::tokio::remove_dir_all(data.scratch(&process)).await.context("while removing the working folder")?;
    }
    let result = match solved {
        Ok(result) => result,
        Err(RunEnd::Stopped(stop)) => bail!("stopped: {stop}"),
        Err(end) => return Err(anyhow!(end)),
    };
    let known = known_secrets(flags, &config)?;
    let leave = Leave {
        repositories: &*repositories,
        flags,
        config: &config,
        data: &data,
        source: &source,
        brief: &brief,
        known: &known,
    };
    let report = leave.report(result, &ids).await?;
    print(&report, flags.json)?;
    Ok(match report.outcome {
        "proven" => ExitCode::SUCCESS,
        "unproven" => ExitCode::from(UNPROVEN),
        _ => ExitCode::from(NO_PATCH),
    })
}

async fn solve(agent: &Agent, flags: &Flags, brief: &Brief, context: &RunContext) -> Result<RunResult, RunEnd> {
    let model = agent.model(flags.model.as_deref())?;
    agent.solve(&model, brief, context).await
}

fn misuse(error: &anyhow::Error) -> ExitCode {
    crate::progress::complain(error);
    ExitCode::from(USAGE)
}

fn progress_note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn issue_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it must be the issue's number, such as 7".to_owned())
}

/// Title and body from the file: the first line that is not blank, and the rest.
fn read_issue(flags: &Flags) -> Result<IssueSnapshot> {
    let mut text = String::new();
    let limit = MAX_ISSUE_BYTES + 1;
    if flags.issue == "-" {
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_string(&mut text)
            .context("while reading the issue from standard input")?;
    } else {
        let file = fs_err::File::open(&flags.issue).context("could not read the issue")?;
        file.take(limit).read_to_string(&mut text).context("the issue is not text")?;
    }
    if text.len() as u64 > MAX_ISSUE_BYTES {
        bail!("the issue is larger than {} KiB", MAX_ISSUE_BYTES / 1024);
    }
    let text = text.trim();
    if text.is_empty() {
        bail!("the issue is empty: write what is wrong, the first line being the title");
    }
    let (title, body) = text.split_once('\n').unwrap_or((text, ""));
    Ok(IssueSnapshot {
        number: flags.issue_id,
        title: title.trim().trim_start_matches('#').trim().to_owned(),
        body: body.trim().to_owned(),
        author: "the operator".into(),
        url: None,
        comments: Vec::new(),
        taken_at: system::SystemClock.now(),
    })
}

/// The model that the flags describe; its name may still have to be asked for.
fn given(flags: &Flags) -> Option<ModelConfig> {
    let name = flags.model_name.clone().unwrap_or_else(|| UNNAMED.into());
    let model = ModelConfig::elsewhere(name, flags.model_url.clone()?, flags.model_context);
    Some(ModelConfig { api_key_file: flags.model_key_file.clone(), ..model })
}

/// Asks the server which models it has, before anything is built for a model that cannot be asked.
///
/// The outer error is a failure, the inner one wrong usage.
async fn name_on_server(flags: &Flags, mut model: ModelConfig) -> Result<Result<ModelConfig>> {
    let (url, named) = (served::address(&model)?, flags.model_name.is_some());
    let listed = match served::listed(&model, LIST_LIMIT).await {
        Ok(listed) => listed,
        // A server that is busy with another answer may list nothing meanwhile; whoever gave the name needs no list.
        Err(error) if named && error.downcast_ref::<Away>().is_some_and(|away| away.busy) => return Ok(Ok(model)),
        Err(error) if error.is::<Away>() => bail!("{error}; start the model's server, or correct --model-url"),
        Err(error) => return Err(error),
    };
    match listed {
        // Some keys may use models and not list them.
        Listed::Refused(StatusCode::FORBIDDEN) if named => {}
        Listed::Refused(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) => {
            bail!(
                "{url} answers {status}: {}",
                match &flags.model_key_file {
                    Some(file) =>
                        format!("it does not accept the key in {file}; name another file with --model-key-file"),
                    None => "it wants a key; name a file that holds it with --model-key-file".to_owned(),
                }
            )
        }
        Listed::Foreign(kind) => {
            bail!(
                "{url} answers with {kind}, not as a model's server does; correct --model-url, which mostly ends in /v1"
            )
        }
        Listed::Names(names) if !named => match names.as_slice() {
            [] => {}
            [only] => {
                progress_note(&format!("model: {}, the one that {url} lists", one_line(only)));
                model.name.clone_from(only);
            }
            several => {
                return Ok(Err(anyhow!(
                    "{url} lists {} models: {}; choose one with --model-name",
                    several.len(),
                    one_line(&served::told(several))
                )));
            }
        },
        // Not every server lists its models, and one that still loads its model is asked again by the Run.
        Listed::Names(_) | Listed::Refused(_) => {}
    }
    Ok(Ok(model))
}

fn models(flags: &Flags, config: &Config) -> Result<Vec<Arc<dyn Model>>> {
    if let Some(model) = given(flags) {
        if model.context < MIN_CONTEXT_TOKENS {
            bail!(
                "--model-context {} is too small: the prompt alone would fill it, and {MIN_CONTEXT_TOKENS} tokens are needed",
                model.context
            );
        }
        return Ok(vec![fettle_worker::model(&model)?]);
    }
    let known: Vec<&str> = config.gateway.models.iter().map(|model| model.name.as_str()).collect();
    match &flags.model {
        _ if known.is_empty() => {
            bail!("no model: give --model-url URL, or add a [[gateway.models]] entry to the configuration")
        }
        Some(name) if !known.contains(&name.as_str()) => {
            bail!("no model is called `{name}`; known: {}", known.join(", "))
        }
        _ => fettle_worker::models(config, None),
    }
}

fn known_secrets(flags: &Flags, config: &Config) -> Result<KnownSecrets> {
    let files = config.gateway.models.iter().filter_map(|m| m.api_key_file.as_ref()).chain(&flags.model_key_file);
    let keys =
        files.chain(&config.forge.read_token_file).map(|file| secrets::read(file)).collect::<Result<Vec<_>, _>>()?;
    Ok(KnownSecrets::new(keys.iter().map(|key| ("key file", key.expose_secret()))))
}

fn is_url(repo: &str) -> bool {
    repo.starts_with("https://") || repo.starts_with("http://")
}

/// `git@host:owner/name`, `ssh://…` and the like, which git takes and Fettle does not.
fn is_other_address(repo: &str) -> bool {
    let scp = repo.split_once(':').is_some_and(|(host, _)| host.contains('@') && !host.contains('/'));
    scp || repo.contains("://")
}

fn source(repo: &str, config: &Config) -> Result<Source> {
    if is_url(repo) {
        let token = config.forge.read_token_file.as_deref().map(secrets::read).transpose()?;
        return Ok(Source {
            key: format!("url-{}", &BlobId::of(repo.as_bytes()).to_string()[..32]),
            url: repo.to_owned(),
            token,
        });
    }
    let path = Utf8Path::new(repo);
    let path = match path.canonicalize_utf8() {
        Ok(path) => path,
        Err(_) if is_other_address(repo) => {
            bail!(
                "`{repo}` is no path and no https:// address; --repo takes one of these. For a repository that needs ssh, give the path of a clone"
            )
        }
        Err(error) => return Err(error).with_context(|| format!("there is no repository at {path}")),
    };
    Ok(Source {
        key: format!("local-{}", &BlobId::of(path.as_str().as_bytes()).to_string()[..32]),
        url: path.into_string(),
        token: None,
    })
}

/// A branch that somebody named must be free; it is never overwritten.
async fn check_branch(repositories: &dyn Repositories, source: &Source, branch: &str) -> Result<()> {
    if !is_branch_name(branch) {
        bail!("`{}` is not a valid branch name; name another with --branch", one_line(branch));
    }
    match repositories.resolve(source, &BaseRef::Named(format!("refs/heads/{branch}"))).await {
        Ok(found) => {
            bail!("the branch {branch} exists already, at {}; name another with --branch", found.commit.short())
        }
        Err(GitError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Turns a result into a branch and a report.
struct Leave<'a> {
    repositories: &'a dyn Repositories,
    flags: &'a Flags,
    config: &'a Config,
    data: &'a DataDir,
    source: &'a Source,
    brief: &'a Brief,
    known: &'a KnownSecrets,
}

impl Leave<'_> {
    async fn report(&self, result: RunResult, ids: &system::RandomIds) -> Result<Report> {
        let usage = result.spent;
        let nothing = |reason: String, proof: Option<Proof>| Report {
            outcome: "no_patch",
            reason,
            repository: None,
            branch: None,
            commit: None,
            files: Vec::new(),
            proof: ProofReport { proven: false, proof },
            usage,
            summary: String::new(),
        };
        let change = match result.change {
            Some(change) => change,
            None => return Ok(nothing(why(&result.outcome), None)),
        };
        let task = TaskId::from_uuid(ids.uuid());
        let named = BranchName::of(self.brief.mode, self.flags.issue_id, task, 1);
        let message = self.message(&change, task);
        let outgoing = Outgoing {
            key: &self.source.key,
            patch: &change.patch,
            proof: &change.proof,
            branch: &named,
            texts: &[("commit message", &message)],
        };
        let verdict = judge(self.repositories, outgoing, &self.config.forge.paths, self.known).await?;
        if let Verdict::Reject(reasons) = &verdict {
            return Ok(nothing(format!("the change was rejected: {}", reasons.join("; ")), Some(change.proof)));
        }
        let commit = self.commit(&change, message).await?;
        let branch = self.leave(commit, task).await?;
        let proven = change.proof.level == Level::Proven && verdict == Verdict::Publish;
        let reasons = match (&result.outcome, verdict) {
            (RunOutcome::DraftPr { reasons }, _) if !reasons.is_empty() => reasons.clone(),
            (_, Verdict::Draft(reasons) | Verdict::NeedsHuman(reasons)) => reasons,
            (_, Verdict::Publish | Verdict::Reject(_)) => {
                vec!["a new test fails before the change and passes after it".into()]
            }
        };
        Ok(Report {
            outcome: if proven { "proven" } else { "unproven" },
            reason: reasons.join("; "),
            repository: Some(self.destination()),
            branch: Some(branch),
            commit: Some(commit),
            files: change.patch.changes.iter().map(|c| c.path.lossy()).collect(),
            proof: ProofReport { proven, proof: Some(change.proof) },
            usage,
            summary: change.summary,
        })
    }

    fn message(&self, change: &ProvenChange, task: TaskId) -> String {
        let refs = self.flags.issue_id.map_or_else(String::new, |id| format!("\nRefs #{id}\n"));
        let (title, summary) = (outgoing::title(&change.title), outgoing::paragraph(&change.summary, 20, 4_000));
        format!("{title}\n\n{summary}\n{refs}\n{}\n", trailer(task))
    }

    async fn commit(&self, change: &ProvenChange, message: String) -> Result<CommitId, GitError> {
        let spec = CommitSpec {
            parent: change.proof.base,
            tree: change.proof.head_tree,
            message,
            author_name: Identity::NAME.into(),
            author_email: Identity::EMAIL.into(),
            at: system::SystemClock.now(),
        };
        self.repositories.commit(&self.source.key, &spec).await
    }

    /// Nothing is ever pushed: what a URL names gets its branch in our own copy.
    fn destination(&self) -> Utf8PathBuf {
        if is_url(&self.source.url) {
            self.data.worker_mirrors().join(format!("{}.git", self.source.key))
        } else {
            Utf8PathBuf::from(&self.source.url)
        }
    }

    /// Makes the branch: the one that was named, or the first free one of this issue.
    async fn leave(&self, commit: CommitId, task: TaskId) -> Result<String> {
        let path = self.destination();
        for generation in 1..=BRANCH_TRIES {
            let branch = match &self.flags.branch {
                Some(branch) => branch.clone(),
                None => BranchName::of(self.brief.mode, self.flags.issue_id, task, generation).as_str().to_owned(),
            };
            match self.repositories.publish_local(&self.source.key, &path, &branch, None, commit).await? {
                Pushed::Moved | Pushed::AlreadyThere => return Ok(branch),
                Pushed::Conflict { .. } if self.flags.branch.is_some() => {
                    bail!("the branch {branch} came into being meanwhile")
                }
                Pushed::Conflict { .. } => {}
            }
        }
        bail!("{BRANCH_TRIES} branches for this issue exist already; remove some")
    }
}

fn why(outcome: &RunOutcome) -> String {
    match outcome {
        RunOutcome::ReadyPr | RunOutcome::ProbePassed => "there is no change".into(),
        RunOutcome::DraftPr { reasons } => reasons.join("; "),
        RunOutcome::Question { questions } => format!("the model asks: {}", questions.join(" ")),
        RunOutcome::NoChangeNeeded { why } => format!("no change seems to be needed: {why}"),
        RunOutcome::Declined { reason } => reason.clone(),
        RunOutcome::Unsolved { notes } => format!("no fix was found. {notes}"),
        RunOutcome::Stopped { limit, notes } if notes.trim().is_empty() => format!("stopped: {limit}"),
        RunOutcome::Stopped { limit, notes } => format!("stopped: {limit}. The model's last words: “{}”", notes.trim()),
    }
}

fn print(report: &Report, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        return Ok(());
    }
    // Names, reasons and summaries are foreign text, and none of it may move the terminal's cursor.
    let mut text = Vec::new();
    tell(&mut text, report)?;
    write!(out, "{}", outgoing::visible(&String::from_utf8_lossy(&text)))?;
    Ok(())
}

fn tell(out: &mut impl std::io::Write, report: &Report) -> std::io::Result<()> {
    match (&report.repository, &report.branch, &report.commit) {
        (Some(repository), Some(branch), Some(commit)) => {
            writeln!(out, "{}: branch {branch}, commit {}", report.outcome.to_uppercase(), commit.short())?;
            writeln!(out, "  {}", report.reason)?;
            if !report.summary.is_empty() {
                writeln!(out, "\n{}", report.summary)?;
            }
            writeln!(out, "\nfiles:")?;
            for file in &report.files {
                writeln!(out, "  {}", one_line(file))?;
            }
            if let Some(proof) = &report.proof.proof {
                tell_proof(out, proof)?;
            }
            let inside = Utf8Path::new(".").canonicalize_utf8().is_ok_and(|here| here.starts_with(repository));
            let at = if inside { String::new() } else { format!(" -C {repository}") };
            writeln!(out, "\nlook at it: git{at} show {branch}")?;
            if repository.extension() == Some("git") {
                writeln!(out, "take it:    git fetch {repository} {branch}")?;
            }
        }
        _ => writeln!(out, "NO PATCH: {}", report.reason)?,
    }
    let Spent { calls, generated_tokens, prompt_tokens, wall_s } = report.usage;
    writeln!(out, "usage: {calls} model calls, {prompt_tokens} tokens read, {generated_tokens} written, {wall_s} s")
}

fn tell_proof(out: &mut impl std::io::Write, proof: &Proof) -> std::io::Result<()> {
    use fettle_domain::proof::Outcome;
    writeln!(out, "\nproof, on base {} (sandbox {}):", proof.base.short(), proof.env.sandbox_level)?;
    for test in &proof.new_tests {
        let count = |outcomes: &[Outcome], wanted| outcomes.iter().filter(|o| **o == wanted).count();
        let (failed, passed) = (count(&test.base, Outcome::Failed), count(&test.head, Outcome::Passed));
        writeln!(
            out,
            "  new test {}: failed {failed}/{} before, passed {passed}/{} after",
            one_line(&test.id),
            test.base.len(),
            test.head.len()
        )?;
    }
    if let Some(suite) = &proof.suite {
        let (before, after) = (suite.base, suite.head);
        writeln!(
            out,
            "  suite: {} ok, {} failed before; {} ok, {} failed after",
            before.passed, before.failed, after.passed, after.failed
        )?;
    }
    for check in &proof.checks {
        let word = |exit: Option<i32>| {
            exit.map_or("not ended".to_owned(), |code| if code == 0 { "ok".into() } else { format!("exit {code}") })
        };
        writeln!(out, "  {}: {} before, {} after", check.name, word(check.base_exit), word(check.head_exit))?;
    }
    Ok(())
}
