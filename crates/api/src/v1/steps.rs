//! The journal of a Run as people read it.

use axum::Json;
use axum::extract::State;
use fettle_domain::id::RunId;
use fettle_domain::step::{StepBody, StepRecord};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::extract::{Named, Parameters};
use crate::problem::{Code, Problem, ProblemBody};
use crate::state::ApiState;

/// Of one answer.
const PAGE: u16 = 50;
/// Bytes of one answer's texts, as they are shown; what does not fit is on the next page. A step that is larger alone has one for
/// itself.
const MAX_PAGE_BYTES: usize = 1024 * 1024;
/// Read at once: a step's body in the journal has up to 256 KiB, and one in a blob is read by itself.
const STEPS_AT_ONCE: u16 = 10;
/// Of one step that are shown: a turn calls a handful.
const MAX_CALLS: usize = 50;
/// Bytes of each text that is shown; a person reads no further on a page, and the journal keeps the rest.
const MAX_TEXT_BYTES: usize = 8 * 1024;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StepParameters {
    /// Only steps with a greater number: `next` of the page before.
    after: Option<u32>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = StepPage)]
pub(crate) struct StepsBody {
    /// At most 50, in order, and some megabyte.
    items: Vec<ShownStep>,
    /// `after` of the next page; null when there is no further step, or not yet.
    next: Option<u32>,
}

/// All texts are foreign, and end after 8 KiB.
#[derive(Serialize, ToSchema)]
#[schema(as = Step)]
struct ShownStep {
    seq: u32,
    /// `base`, `model_call`, `tool_call`, `verify`, `decide` or `message_in`.
    kind: String,
    phase: String,
    title: String,
    took_ms: u64,
    /// By the Run so far, this step included.
    generated_tokens: u64,
    prompt_tokens: u64,
    /// What a model said.
    said: Option<String>,
    /// What it thought before, where its provider tells.
    reasoning: Option<String>,
    /// Of a model call: what it calls. Of a tool call: the one that was carried out.
    calls: Vec<ShownCall>,
    /// What a tool gave back; of another step whatever it holds, as JSON.
    output: Option<String>,
    /// Of a tool call: whether it did what was asked.
    ok: Option<bool>,
    /// A text is longer than what is shown.
    cut: bool,
}

#[derive(Serialize, ToSchema)]
#[schema(as = StepCall)]
struct ShownCall {
    tool: String,
    /// As JSON.
    arguments: String,
}

/// Cuts texts to what is shown, and remembers whether it had to.
#[derive(Default)]
struct Cutter {
    cut: bool,
}

impl Cutter {
    fn text(&mut self, text: &str) -> Option<String> {
        let end = text.floor_char_boundary(MAX_TEXT_BYTES);
        self.cut |= end < text.len();
        (!text.trim().is_empty()).then(|| text[..end].to_owned())
    }

    fn json(&mut self, value: &Value) -> String {
        let text = serde_json::to_string_pretty(value).expect("a value is JSON");
        self.text(&text).unwrap_or_default()
    }

    fn call(&mut self, tool: Option<&str>, arguments: &Value) -> ShownCall {
        let arguments = match arguments.as_str() {
            Some(text) => self.text(text).unwrap_or_default(),
            None => self.json(arguments),
        };
        ShownCall { tool: tool.unwrap_or_default().to_owned(), arguments }
    }
}

impl ShownStep {
    /// What a body does not have, as one of another version, is left out.
    fn new(step: StepRecord, body: &Value) -> Self {
        let mut cutter = Cutter::default();
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
        let (mut said, mut reasoning, mut calls, mut output, mut ok) = (None, None, Vec::new(), None, None);
        match step.kind.name() {
            "model_call" => {
                said = text("/turn/text").and_then(|text| cutter.text(text));
                reasoning = text("/turn/reasoning").and_then(|text| cutter.text(text));
                let called = body.pointer("/turn/calls").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                cutter.cut |= called.len() > MAX_CALLS;
                for call in called.iter().take(MAX_CALLS) {
                    let arguments = call.pointer("/arguments/text").or_else(|| call.pointer("/arguments/json"));
                    calls.push(cutter.call(call["name"].as_str(), arguments.unwrap_or(&Value::Null)));
                }
            }
            "tool_call" => {
                let mut arguments = body["call"].clone();
                let tool = arguments.as_object_mut().and_then(|call| call.remove("tool"));
                calls.push(cutter.call(tool.as_ref().and_then(Value::as_str), &arguments));
                output = text("/result/text").and_then(|text| cutter.text(text));
                ok = body.pointer("/result/ok").and_then(Value::as_bool);
            }
            _ => output = Some(cutter.json(body)).filter(|text| !text.is_empty()),
        }
        Self {
            seq: step.seq,
            kind: step.kind.name().to_owned(),
            phase: step.phase,
            title: step.title,
            took_ms: step.took_ms,
            generated_tokens: step.spent.generated_tokens,
            prompt_tokens: step.spent.prompt_tokens,
            said,
            reasoning,
            calls,
            output,
            ok,
            cut: cutter.cut,
        }
    }

    /// Of its texts.
    fn bytes(&self) -> usize {
        let texts = [&self.said, &self.reasoning, &self.output].into_iter().flatten().map(String::len);
        let calls = self.calls.iter().map(|call| call.tool.len() + call.arguments.len());
        self.phase.len() + self.title.len() + texts.chain(calls).sum::<usize>()
    }
}

/// What a Run has done so far: model calls, tool calls with what came of them, and the orchestrator's own steps.
#[utoipa::path(
    get, path = "/api/v1/runs/{run_id}/steps", operation_id = "list_steps", tag = "tasks",
    params(("run_id" = String, Path, description = "`run_…`"), StepParameters), security(("admin_key" = [])),
    responses(
        (status = 200, description = "A page of the journal", body = StepsBody),
        (status = 404, description = "There is no such Run", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_steps(
    State(api): State<ApiState>,
    Named(run): Named<RunId>,
    Parameters(parameters): Parameters<StepParameters>,
) -> Result<Json<StepsBody>, Problem> {
    let mut from = parameters.after.map_or(0, |after| after.saturating_add(1));
    let (mut items, mut bytes) = (Vec::new(), 0);
    // One more than is wanted, to know whether there is one.
    loop {
        let steps = api.ledger.journal(run, from, STEPS_AT_ONCE).await?;
        let last = steps.len() < STEPS_AT_ONCE.into();
        for step in steps {
            from = step.seq.saturating_add(1);
            if items.len() >= PAGE.into() {
                return Ok(page(items, true));
            }
            let shown = show(&api, step).await?;
            bytes += shown.bytes();
            if bytes > MAX_PAGE_BYTES && !items.is_empty() {
                return Ok(page(items, true));
            }
            items.push(shown);
        }
        if last {
            return Ok(page(items, false));
        }
    }
}

fn page(items: Vec<ShownStep>, more: bool) -> Json<StepsBody> {
    let next = items.last().filter(|_| more).map(|last| last.seq);
    Json(StepsBody { items, next })
}

async fn show(api: &ApiState, step: StepRecord) -> Result<ShownStep, Problem> {
    match &step.body {
        StepBody::Inline(value) => {
            let value = value.clone();
            Ok(ShownStep::new(step, &value))
        }
        StepBody::Blob(id) => {
            // Held until only what is shown is left of it.
            let Ok(_permit) = api.blobs_in_flight.acquire().await else {
                return Err(Problem::new(Code::Unavailable, "The process is shutting down."));
            };
            let blob = api.ledger.blob(*id).await?;
            let value = serde_json::from_slice(&blob).unwrap_or(Value::Null);
            drop(blob);
            Ok(ShownStep::new(step, &value))
        }
    }
}
