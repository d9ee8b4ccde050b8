//! One Run, from an issue to a proven change: base, triage, reproduce, fix, verify, repair.
//!
//! The story stands in [`story`]; the conversation with the model in [`talk`]; what is journaled, and how a Run goes on
//! after a crash, in [`steps`].

mod compaction;
mod context;
mod folder;
mod ground;
mod steps;
mod story;
mod talk;

pub(crate) use compaction::estimate_tokens;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use fettle_app::live::Live;
use fettle_app::ports::git::{BaseRef, Repositories, Source};
use fettle_app::ports::ledger::RunOrder;
use fettle_app::ports::model::{Model, ModelInfo, RunAccess};
use fettle_app::ports::sandbox::Sandbox;
use fettle_app::running::{RunContext, RunEnd, Runner};
use fettle_domain::budget::{Limits, MIN_CONTEXT_TOKENS};
use fettle_domain::id::RunId;
use fettle_domain::issue::{CommentSnapshot, IssueSnapshot};
use fettle_domain::path_policy::PathPolicy;
use fettle_domain::run::{RunOutcome, RunResult};
use fettle_domain::task::Mode;
use secrecy::SecretString;

pub use folder::clear_leftovers;
pub use steps::{Unwatched, Watch};

use crate::prepare::PrepareOptions;
use story::Story;
use talk::Ended;

/// A Task that needs a model which is not configured looks again after this.
const NO_MODEL_WAIT: Duration = Duration::from_secs(60);
/// A record that fits nowhere is left behind this often before the Run is given up.
const MAX_DIVERGENCES: usize = 3;

/// The built-in agent with everything it works with.
pub struct Agent {
    pub repositories: Arc<dyn Repositories>,
    pub sandbox: Arc<dyn Sandbox>,
    /// The first is used unless a Task names another.
    pub models: Vec<Arc<dyn Model>>,
    /// Reaches models that only the gateway knows. `None`: without a gateway.
    pub through_gateway: Option<Arc<ThroughGateway>>,
    pub options: AgentOptions,
    pub watch: Arc<dyn Watch>,
}

/// The client of a model at the gateway. Errors with a sentence.
pub type ThroughGateway = dyn Fn(ModelInfo) -> Result<Arc<dyn Model>, String> + Send + Sync;

#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Holds one folder per Run, gone when the Run ends.
    pub scratch: Utf8PathBuf,
    /// What is known of bases, for later Runs.
    pub base_cache: Utf8PathBuf,
    pub prepare: PrepareOptions,
    /// The longest run of a whole test suite.
    pub suite_time: Duration,
    /// Taken once for each Run.
    pub paths: Live<PathPolicy>,
    /// What workers read repositories with when the dashboard gives no token.
    pub read_token: Option<SecretString>,
    /// Folders of Runs stay, for a person who wants to look.
    pub keep_folders: bool,
}

/// What a Run is to do.
#[derive(Debug, Clone)]
pub struct Brief {
    pub run: RunId,
    pub source: Source,
    pub base: BaseRef,
    pub issue: IssueSnapshot,
    pub mode: Mode,
    pub limits: Limits,
    /// The operator's test command for this one Run.
    pub test_command: Option<String>,
}

#[async_trait]
impl Runner for Agent {
    async fn run(&self, order: &RunOrder, context: RunContext) -> Result<RunResult, RunEnd> {
        let Some(repo) = order.repo.as_ref().filter(|_| order.mode != Mode::Probe) else {
            return Ok(RunResult {
                outcome: RunOutcome::ProbePassed,
                base: None,
                change: None,
                spent: order.spent,
                model: String::new(),
            });
        };
        let brief = Brief {
            run: order.run,
            source: Source {
                key: format!("forge-{}", repo.forge_id),
                url: repo.clone_url.clone(),
                token: context.read_token.clone().or_else(|| self.options.read_token.clone()),
            },
            base: BaseRef::Named(order.base.clone().unwrap_or_else(|| repo.default_branch.clone())),
            issue: told(order),
            mode: order.mode,
            limits: Limits::for_mode(order.mode),
            test_command: None,
        };
        let model = match context.model.clone() {
            Some(info) => self.at_gateway(info)?,
            None => self.model(order.model.as_deref())?,
        };
        let model = model.for_run(RunAccess {
            token: context.run_token.clone(),
            run: order.run,
            correlation: order.correlation,
        });
        self.solve(&model, &brief, &context).await
    }
}

/// The issue, and what this Run alone is told, as the last word on it.
fn told(order: &RunOrder) -> IssueSnapshot {
    let mut issue = order.issue.clone();
    let word = order.instruction.clone();
    issue.comments.extend(word.map(|body| CommentSnapshot { author: "whoever ordered this Run".to_owned(), body }));
    issue
}

impl Agent {
    /// The named model, or the first.
    pub fn model(&self, name: Option<&str>) -> Result<Arc<dyn Model>, RunEnd> {
        let found = match name {
            Some(name) => self.models.iter().find(|model| model.info().name == name),
            None => self.models.first(),
        };
        // An operator can add one at any time, so the Task waits and loses nothing.
        found.cloned().ok_or_else(|| RunEnd::Defer {
            wait: NO_MODEL_WAIT,
            why: match name {
                Some(name) => format!("no model is called `{name}` on this worker; see [[gateway.models]]"),
                None => "there is no model yet; add one in the browser (page Models), or under [[gateway.models]]"
                    .to_owned(),
            },
        })
    }

    fn at_gateway(&self, info: ModelInfo) -> Result<Arc<dyn Model>, RunEnd> {
        let defer = |why| RunEnd::Defer { wait: NO_MODEL_WAIT, why };
        let Some(through) = &self.through_gateway else {
            let why = format!(
                "the model `{}` was added in the browser, and this worker asks no gateway: set gateway.url",
                info.name
            );
            return Err(defer(why));
        };
        through(info).map_err(defer)
    }

    /// Carries out the Run; steps of earlier leases are replayed, not repeated.
    pub async fn solve(
        &self,
        model: &Arc<dyn Model>,
        brief: &Brief,
        context: &RunContext,
    ) -> Result<RunResult, RunEnd> {
        let window = model.info().context_tokens;
        if window < MIN_CONTEXT_TOKENS {
            return Err(RunEnd::Never(format!(
                "the model `{}` has a window of {window} tokens; {MIN_CONTEXT_TOKENS} are needed. Set `context` of its [[gateway.models]] entry to what the server really offers",
                model.info().name
            )));
        }
        let mut recorded = context.recorded.clone();
        for _ in 0..MAX_DIVERGENCES {
            let story = Story { agent: self, model, brief, context };
            match story.tell(recorded.clone()).await {
                Ok(result) => return Ok(result),
                Err(Ended::Run(end)) => return Err(end),
                Err(Ended::Limit(limit)) => {
                    return Err(RunEnd::Retry(format!("ended before the model was asked: {limit}")));
                }
                Err(Ended::Diverged(at)) => recorded.truncate(at as usize),
            }
        }
        Err(RunEnd::Retry("the record of this Run does not fit what is done now".into()))
    }
}
