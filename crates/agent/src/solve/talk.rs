//! The conversation of one Run: a model call, its tool calls, and again, until the phase is finished or a limit ends it.
//!
//! Limits, loop rules and dialect switches are decided here, outside of the model, from what was recorded; a replayed Run
//! decides the same.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use camino::Utf8PathBuf;
use fettle_app::crash::{self, Point};
use fettle_app::ports::chain;
use fettle_app::ports::git::{GitError, Repositories, TreeEdit};
use fettle_app::ports::journal::Stop;
use fettle_app::ports::model::{Message, Model, ModelError, ModelRequest, RawTurn};
use fettle_app::ports::sandbox::Access;
use fettle_app::running::RunEnd;
use fettle_app::words::Speech;
use fettle_domain::budget::{CallRequest, Limit, Limits, Purpose, Spent, admit};
use fettle_domain::loops::{LoopVerdict, LoopWatch, Observation};
use fettle_domain::object::{BlobId, CommitId, TreeId};
use fettle_domain::path::RepoPath;
use fettle_domain::step::{StepKind, WorkspaceState};
use fettle_domain::words::Voice;
use regex::Regex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, info_span};

use super::compaction::{estimate_tokens, fit, working_context};
use super::context;
use super::steps::{Fresh, Steps, digest};
use crate::conformance::Form;
use crate::dialect::{self, Dialect, ParsedCall, ParsedTurn, Retry};
use crate::tools::{self, Call, ToolBox, ToolResult};

/// The output of one ordinary turn; a large file fits.
const TURN_TOKENS: u64 = 8_192;
/// After an answer was cut off, once.
const LARGER_TURN_TOKENS: u64 = 24_576;
/// Malformed turns in a row before the next dialect, and again before the end.
const MALFORMED_IN_A_ROW: u32 = 3;
/// Tries of one model call while the model answers with errors.
const MODEL_TRIES: u32 = 4;
/// The first wait between them, doubling.
const MODEL_PAUSE: Duration = Duration::from_secs(1);
/// A busy model that makes one call wait longer defers the job: its worker may have something else to do.
const LONGEST_HELD: Duration = Duration::from_secs(20);

/// Why a conversation ended before its phase was finished.
pub(crate) enum Ended {
    /// The Run itself ends: lost, cancelled, or to be tried again.
    Run(RunEnd),
    /// A limit or loop rule; what was learned is still to be written down.
    Limit(String),
    /// The record does not fit from this step on.
    Diverged(u32),
}

impl From<RunEnd> for Ended {
    fn from(end: RunEnd) -> Self {
        Self::Run(end)
    }
}

impl From<Stop> for Ended {
    fn from(stop: Stop) -> Self {
        Self::Run(RunEnd::Stopped(stop))
    }
}

impl From<Limit> for Ended {
    fn from(limit: Limit) -> Self {
        Self::Limit(limit.to_string())
    }
}

/// A git failure in the middle of a Run; another try may succeed.
pub(crate) fn git_end(error: GitError) -> RunEnd {
    RunEnd::Retry(chain(&error))
}

/// How one phase is held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phase {
    pub(crate) access: Access,
    pub(crate) in_fix: bool,
}

/// What a phase came to.
pub(crate) enum Said {
    Finished {
        summary: String,
    },
    /// The phase's calls are used up.
    Exhausted,
}

/// The fixed parts of a conversation.
pub(crate) struct TalkParts {
    pub(crate) model: Arc<dyn Model>,
    pub(crate) repositories: Arc<dyn Repositories>,
    pub(crate) key: String,
    pub(crate) base: CommitId,
    pub(crate) base_tree: TreeId,
    pub(crate) workspace: Utf8PathBuf,
    /// Never a part of a patch.
    pub(crate) by_products: Vec<RepoPath>,
    pub(crate) limits: Limits,
    pub(crate) fence_mark: String,
    /// At the beginning.
    pub(crate) form: Form,
    pub(crate) speech: Arc<Speech>,
    pub(crate) cancel: CancellationToken,
}

pub(crate) struct Talk {
    pub(crate) parts: TalkParts,
    pub(crate) steps: Steps,
    pub(crate) tools: ToolBox,
    /// The workspace's tree after the last step.
    pub(crate) tree: TreeId,
    /// The base with the new test, if there is one; nothing before the fix begins.
    pub(crate) fix_starts_from: Option<TreeId>,
    dialect: Dialect,
    messages: Vec<Message>,
    /// Messages already journaled with an earlier model call.
    journaled: usize,
    loops: LoopWatch,
    seen_paths: BTreeSet<RepoPath>,
    malformed: u32,
    switched: bool,
    soft_limit_told: bool,
}

#[derive(Serialize, Deserialize)]
struct ModelCallBody {
    /// What was added to the conversation since the model call before.
    sent: Vec<Message>,
    turn: RawTurn,
}

#[derive(Serialize, Deserialize)]
struct ToolCallBody {
    call: Call,
    result: ToolResult,
    /// Every byte of the output, when the text does not hold it all.
    output: Option<BlobId>,
    tree: TreeId,
}

/// How a model call is repeated once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct How {
    stream: bool,
    max_tokens: u64,
}

impl Talk {
    pub(crate) fn new(parts: TalkParts, steps: Steps, tools: ToolBox, system: String, task: String) -> Self {
        let (tree, dialect) = (parts.base_tree, parts.form.dialect);
        Self {
            parts,
            steps,
            tools,
            tree,
            fix_starts_from: None,
            dialect,
            messages: vec![Message::System { text: system }, Message::User { text: task }],
            journaled: 0,
            loops: LoopWatch::default(),
            seen_paths: BTreeSet::new(),
            malformed: 0,
            switched: false,
            soft_limit_told: false,
        }
    }

    /// Adds what the orchestrator has to say. Consecutive words become one message: some templates insist on turns.
    pub(crate) fn say(&mut self, text: &str) {
        let unsent = self.journaled < self.messages.len();
        match self.messages.last_mut() {
            Some(Message::User { text: last }) if unsent => {
                last.push_str("\n\n");
                last.push_str(text);
            }
            _ => self.messages.push(Message::User { text: text.to_owned() }),
        }
    }

    /// The workspace holds something other than the base, with or without the new test.
    pub(crate) fn has_fix(&self) -> bool {
        self.tree != self.parts.base_tree && self.fix_starts_from.is_some_and(|start| start != self.tree)
    }

    /// Talks until the model finishes the phase or its `calls` are used up, which are counted down.
    pub(crate) async fn converse(&mut self, phase: Phase, calls: &mut u32) -> Result<Said, Ended> {
        let usual = How { stream: self.parts.form.stream, max_tokens: TURN_TOKENS };
        let mut how = usual;
        while *calls > 0 {
            *calls -= 1;
            self.tell_soft_limit();
            let turn = self.ask(Purpose::Work, how).await?;
            let parsed = dialect::parse(&turn, self.dialect, &self.parts.fence_mark);
            if let Some(retry) = self.ask_again(&parsed, how) {
                how = retry;
                continue;
            }
            how = usual;
            self.judge_form(&parsed)?;
            self.messages.push(dialect::render_turn(self.dialect, &self.parts.fence_mark, &parsed));
            let (texts, finished) = self.act(&parsed, phase).await?;
            let results: Vec<(&ParsedCall, &str)> = parsed.calls.iter().zip(texts.iter().map(String::as_str)).collect();
            self.messages.extend(dialect::render_results(self.dialect, &results, &parsed.problems));
            if let Some(summary) = finished {
                return Ok(Said::Finished { summary });
            }
            if parsed.reminder {
                self.remind()?;
            }
        }
        Ok(Said::Exhausted)
    }

    /// The reserved last call: what was learned, in words.
    pub(crate) async fn distil(&mut self) -> Result<String, Ended> {
        self.say(context::DISTIL);
        let turn = self.ask(Purpose::Distil, How { stream: true, max_tokens: TURN_TOKENS }).await?;
        Ok(turn.text.split_whitespace().take(800).collect::<Vec<_>>().join(" "))
    }

    /// The orchestrator put the workspace into another state; what was seen of it is forgotten.
    pub(crate) fn moved_to(&mut self, tree: TreeId, tools: ToolBox) {
        self.tree = tree;
        self.tools = tools;
    }

    /// One different try, where the fault may lie in streaming or in the output limit. It is a call like any other.
    fn ask_again(&self, parsed: &ParsedTurn, how: How) -> Option<How> {
        if !parsed.calls.is_empty() {
            return None;
        }
        match parsed.problems.iter().find_map(|problem| problem.retry)? {
            Retry::WithoutStreaming if how.stream => Some(How { stream: false, ..how }),
            Retry::LargerOutput if how.max_tokens < LARGER_TURN_TOKENS => {
                Some(How { max_tokens: LARGER_TURN_TOKENS, ..how })
            }
            // Asked again in another way, so that a deterministic model does not just repeat itself.
            Retry::Again if how.stream => Some(How { stream: false, ..how }),
            Retry::WithoutStreaming | Retry::LargerOutput | Retry::Again => None,
        }
    }

    /// Rule R3: malformed turns in a row switch the dialect once and then end the Run.
    fn judge_form(&mut self, parsed: &ParsedTurn) -> Result<(), Ended> {
        if !parsed.is_malformed() || !parsed.calls.is_empty() {
            self.malformed = 0;
            return Ok(());
        }
        self.malformed += 1;
        if self.malformed < MALFORMED_IN_A_ROW {
            return Ok(());
        }
        self.malformed = 0;
        match self.dialect.next() {
            Some(next) if !self.switched => {
                self.switched = true;
                self.dialect = next;
                let how = dialect::instructions(next, &tools::specs(), &self.parts.fence_mark);
                self.say(&format!("Your tool calls could not be read. From now on, call tools like this:\n{how}"));
                Ok(())
            }
            _ => Err(stopped_by_rule(
                "R3",
                format!(
                    "the model's tool calls could not be read, {MALFORMED_IN_A_ROW} times in a row in each of two forms; mostly its server, or the model itself, does not support tool calls"
                ),
            )),
        }
    }

    /// Rule R4.
    fn remind(&mut self) -> Result<(), Ended> {
        if let LoopVerdict::Stop { rule, why } = self.loops.silent_turn() {
            return Err(stopped_by_rule(rule, why));
        }
        let how = dialect::instructions(self.dialect, &[], &self.parts.fence_mark);
        self.say(&format!("That turn called no tool, so nothing was done. {how}"));
        Ok(())
    }

    fn tell_soft_limit(&mut self) {
        let spent = self.steps.spent().calls;
        if !self.soft_limit_told && spent >= self.parts.limits.soft_calls {
            self.soft_limit_told = true;
            let text = context::soft_limit(&self.parts.limits, spent);
            self.say(&text);
        }
    }

    async fn ask(&mut self, purpose: Purpose, how: How) -> Result<RawTurn, Ended> {
        self.let_people_in().await?;
        if fit(&mut self.messages, working_context(self.parts.model.info().context_tokens)) {
            self.tools.forget_seen();
        }
        let prompt_tokens = estimate_tokens(&self.messages);
        let wanted = CallRequest { prompt_tokens, max_generated_tokens: how.max_tokens, purpose };
        let max_tokens = admit(&self.parts.limits, &self.steps.spent(), &wanted)?;
        let native = self.dialect == Dialect::Native && purpose == Purpose::Work;
        let request = ModelRequest {
            messages: self.messages.clone(),
            tools: if native { tools::specs() } else { Vec::new() },
            max_tokens,
            stream: how.stream,
        };
        let input = digest(&request);
        if let Some(body) = self.replay::<ModelCallBody>(StepKind::ModelCall, input).await? {
            self.journaled = self.messages.len();
            return Ok(body.turn);
        }
        let started = Instant::now();
        crash::before(Point::WorkerModelCall);
        let turn = self.call(&request).await?;
        crash::after(Point::WorkerModelCall);
        // Usage that a server does not report counts as the most it can have been.
        let (prompt, generated) =
            turn.usage.map_or((prompt_tokens, max_tokens), |u| (u.prompt_tokens, u.generated_tokens));
        let body = ModelCallBody { sent: self.messages[self.journaled.min(self.messages.len())..].to_vec(), turn };
        self.steps
            .record(Fresh {
                kind: StepKind::ModelCall,
                title: format!("model call: {prompt} tokens read, {generated} written"),
                input,
                value: &body,
                spent: Spent { calls: 1, generated_tokens: generated, prompt_tokens: prompt, wall_s: 0 },
                workspace: None,
                took: started.elapsed(),
            })
            .await?;
        self.journaled = self.messages.len();
        Ok(body.turn)
    }

    /// Messages from permitted persons join before the next call, each as a step of its own: the ledger counts these to
    /// know which ones a new holder still has to be given.
    async fn let_people_in(&mut self) -> Result<(), Ended> {
        while self.steps.next_recorded() == Some(StepKind::MessageIn) {
            let message: Option<String> = self.replay(StepKind::MessageIn, digest(&())).await?;
            self.hear(&message.unwrap_or_default());
        }
        if self.steps.replaying() {
            return Ok(());
        }
        for message in self.steps.journal().take_messages() {
            let fresh = Fresh {
                kind: StepKind::MessageIn,
                title: "a message joined".into(),
                input: digest(&()),
                value: &message,
                spent: Spent::default(),
                workspace: None,
                took: Duration::ZERO,
            };
            self.steps.record(fresh).await?;
            self.hear(&message);
        }
        Ok(())
    }

    fn hear(&mut self, message: &str) {
        self.say(&format!("A person with write access adds to the Task:\n{message}"));
    }

    /// The model's answer, with bounded patience for one that is busy or away.
    async fn call(&mut self, request: &ModelRequest) -> Result<RawTurn, Ended> {
        let watch = self.steps.watch().clone();
        let mut pause = MODEL_PAUSE;
        let mut waited = Duration::ZERO;
        let mut tries = 0;
        loop {
            tries += 1;
            let speech = &self.parts.speech;
            speech.begin(self.steps.next_seq());
            let streamed = |voice: Voice, text: &str| {
                watch.streamed(text);
                speech.say(voice, text);
            };
            let answer = self.parts.model.call(request, &streamed, &self.parts.cancel).await;
            speech.end();
            let why = match answer {
                Ok(turn) => return Ok(turn),
                Err(ref error @ ModelError::Busy { retry_after, .. }) => {
                    pause = retry_after.unwrap_or(pause);
                    let why = chain(error);
                    if tries >= MODEL_TRIES || waited + pause > LONGEST_HELD {
                        return Err(RunEnd::Defer { wait: pause.max(LONGEST_HELD), why }.into());
                    }
                    why
                }
                Err(error @ ModelError::Unavailable(_)) => {
                    let why = chain(&error);
                    if tries >= MODEL_TRIES {
                        return Err(RunEnd::Mend(why).into());
                    }
                    why
                }
                Err(ModelError::ContextExceeded) => return Err(Ended::Limit("the model's window is full".into())),
                Err(ModelError::Refused(why)) => {
                    return Err(RunEnd::Never(format!("the model refused the request: {why}")).into());
                }
                Err(ModelError::Cancelled) => return Err(self.stopped()),
            };
            watch.note(&format!("{why}; trying again in {} s", pause.as_secs()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.parts.cancel.cancelled() => return Err(self.stopped()),
            }
            waited += pause;
            pause *= 2;
        }
    }

    fn stopped(&self) -> Ended {
        Ended::from(self.steps.journal().ended().unwrap_or(Stop::Lost))
    }

    /// Executes the turn's calls in order. Gives each call's text and, when the phase was finished, the summary.
    async fn act(&mut self, parsed: &ParsedTurn, phase: Phase) -> Result<(Vec<String>, Option<String>), Ended> {
        let mut texts = Vec::new();
        let mut failed = None;
        let mut all_ok = parsed.problems.is_empty();
        let mut finished = None;
        for (at, parsed_call) in parsed.calls.iter().enumerate() {
            if let Some(number) = failed {
                texts.push(ToolResult::skipped(number).text);
                continue;
            }
            if let Call::Finish { summary } = &parsed_call.call {
                if all_ok {
                    finished = Some(summary.clone());
                    texts.push("Finished; what comes of it follows.".to_owned());
                } else {
                    texts.push("error[skipped]: not finished, because something else in this message failed. Look at it, then finish.".to_owned());
                }
                continue;
            }
            let (result, note) = self.execute(&parsed_call.call, phase).await?;
            all_ok &= result.ok;
            if result.skips_rest(&parsed_call.call) {
                failed = Some(at + 1);
            }
            texts.push(match note {
                Some(note) => format!("{}\n[{note}]", result.text),
                None => result.text,
            });
        }
        Ok((texts, finished))
    }

    async fn execute(&mut self, call: &Call, phase: Phase) -> Result<(ToolResult, Option<String>), Ended> {
        let step = self.steps.next_seq();
        let input = digest(&(step, call, self.tree));
        let body = match self.replay::<ToolCallBody>(StepKind::ToolCall, input).await? {
            Some(body) => {
                let output = match body.output {
                    Some(id) => self.steps.journal().blob(id).await?,
                    None => Bytes::from(body.result.text.clone()),
                };
                self.tools.absorb(step, &body.result, output);
                body
            }
            None => self.do_now(step, input, call, phase).await?,
        };
        self.tree = body.tree;
        let fresh_paths = body.result.seen.iter().filter(|seen| self.seen_paths.insert(seen.path.clone())).count();
        match self.loops.observe(&observation(call, &body, phase, fresh_paths > 0)) {
            LoopVerdict::Continue => Ok((body.result, None)),
            LoopVerdict::Note(note) => Ok((body.result, Some(note))),
            LoopVerdict::Stop { rule, why } => Err(stopped_by_rule(rule, why)),
        }
    }

    async fn do_now(&mut self, step: u32, input: BlobId, call: &Call, phase: Phase) -> Result<ToolCallBody, Ended> {
        let started = Instant::now();
        let span = info_span!("tool", tool.name = call.tool());
        let executed = self.tools.execute(step, call, phase.access, &self.parts.cancel).instrument(span).await;
        if self.parts.cancel.is_cancelled() {
            return Err(self.stopped());
        }
        let executed = executed.map_err(|e| RunEnd::Retry(chain(&e)))?;
        let mut result = executed.result;
        let changes = phase.access == Access::ReadWrite && !matches!(call, Call::View { .. } | Call::Search { .. });
        let mut workspace = None;
        let mut tree = self.tree;
        if changes {
            let seen = match self.snapshot().await {
                Ok(now) if now == self.tree => Ok(None),
                Ok(now) => self.bundle(now).await.map(|bundle| Some((now, bundle))),
                Err(error) => Err(error),
            };
            match seen {
                Ok(None) => {}
                Ok(Some((now, bundle))) => {
                    workspace = Some(self.store(now, bundle).await?);
                    tree = now;
                }
                Err(GitError::Invalid(why)) => {
                    result.ok = false;
                    result.text.push_str(&format!(
                        "\nerror[workspace]: {why}. Remove it: it cannot become a part of a change."
                    ));
                }
                Err(error) => return Err(git_end(error).into()),
            }
        }
        let whole = executed.full_output.len() <= result.text.len();
        let output = if whole { None } else { Some(self.steps.journal().put_blob(executed.full_output).await?) };
        let body = ToolCallBody { call: call.clone(), result, output, tree };
        self.steps
            .record(Fresh {
                kind: StepKind::ToolCall,
                title: call_title(call, &body.result),
                input,
                value: &body,
                spent: Spent::default(),
                workspace,
                took: started.elapsed(),
            })
            .await?;
        Ok(body)
    }

    /// The workspace as a tree, without what the base's commands write by themselves (a lock file that the base lacks).
    async fn snapshot(&self) -> Result<TreeId, GitError> {
        let TalkParts { repositories, key, base_tree, workspace, by_products, .. } = &self.parts;
        let tree = repositories.snapshot(key, *base_tree, workspace).await?;
        if by_products.is_empty() {
            return Ok(tree);
        }
        let gone = by_products.iter().map(|path| TreeEdit { path: path.clone(), put: None }).collect();
        repositories.edit_tree(key, tree, gone).await
    }

    /// Stores `tree` as changes to the base, so that any worker can rebuild the workspace.
    pub(crate) async fn keep(&self, tree: TreeId) -> Result<WorkspaceState, Ended> {
        let bundle = self.bundle(tree).await.map_err(git_end)?;
        self.store(tree, bundle).await
    }

    async fn bundle(&self, tree: TreeId) -> Result<Bytes, GitError> {
        self.parts.repositories.bundle(&self.parts.key, self.parts.base, tree).await
    }

    async fn store(&self, tree: TreeId, bundle: Bytes) -> Result<WorkspaceState, Ended> {
        let bundle = self.steps.journal().put_blob(bundle).await?;
        Ok(WorkspaceState { tree, bundle })
    }

    /// Like [`Steps::replay`], with divergence told apart: the workspace is then already further than the step.
    pub(crate) async fn replay<T: serde::de::DeserializeOwned>(
        &mut self,
        kind: StepKind,
        input: BlobId,
    ) -> Result<Option<T>, Ended> {
        let recorded = self.steps.replaying();
        let at = self.steps.next_seq();
        match self.steps.replay(kind, input).await? {
            Some(value) => Ok(Some(value)),
            None if recorded => Err(Ended::Diverged(at)),
            None => Ok(None),
        }
    }
}

fn call_title(call: &Call, result: &ToolResult) -> String {
    let about = match call {
        Call::Bash { command, .. } => command.lines().next().unwrap_or_default().chars().take(80).collect(),
        Call::Search { pattern, .. } => pattern.chars().take(80).collect(),
        Call::RunTests { target } => target.clone().unwrap_or_default(),
        _ => call.path().unwrap_or_default().to_owned(),
    };
    let end = match (&result.code, result.exit) {
        (Some(code), _) => format!(" → {code}"),
        (None, Some(0) | None) => String::new(),
        (None, Some(exit)) => format!(" → exit {exit}"),
    };
    format!("{} {about}{end}", call.tool()).trim_end().to_owned()
}

/// Times, addresses, process ids and temporary names: what differs between two runs of the same thing.
static VOLATILE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?\s?(?:ms|s|µs|ns|seconds?)\b|\d{2}:\d{2}:\d{2}(?:\.\d+)?|/tmp/\S+|\bpid[ =:]?\d+|\(\d{4,}\)")
        .expect("a constant pattern")
});

fn observation(call: &Call, body: &ToolCallBody, phase: Phase, new_file_seen: bool) -> Observation {
    let stable = VOLATILE.replace_all(&body.result.text, "#");
    let error = body.result.code.clone().map(|code| (code, call.path().unwrap_or_default().to_owned()));
    Observation {
        tool: call.tool().to_owned(),
        call: digest(call),
        result: BlobId::of(stable.as_bytes()),
        error,
        tree: body.tree,
        new_file_seen,
        in_fix_phase: phase.in_fix,
    }
}

/// People are told why; the name of the rule is for the log.
fn stopped_by_rule(rule: &str, why: String) -> Ended {
    info!("loop rule {rule} ends the conversation: {why}");
    Ended::Limit(why)
}
