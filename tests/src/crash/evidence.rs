//! What must hold in the end, by the forge's own records and by what the API tells.

use std::collections::BTreeSet;

use fettle_domain::effect::comment_marker;
use fettle_domain::id::TaskId;
use serde_json::Value;

use super::text;
use crate::world::TestBox;

/// What a case may cost.
pub(super) struct Limits {
    pub(super) model_calls: usize,
    /// Programs that died or slept, and let a lease lapse.
    pub(super) deaths: usize,
}

/// Leases that lapsed although nobody died: on a machine that is too busy for a lease of one second, a call that was
/// under way then is paid again.
pub(super) fn lost_to_haste(events: &[Value], deaths: usize) -> usize {
    told(events, "run_lapsed").saturating_sub(deaths)
}

/// How the ledger tells that a publisher's lease lapsed.
const PUBLISHER_GONE: &str = "the publisher's lease ended";

/// Every breach in a sentence.
pub(super) async fn judge(
    fettle: &TestBox,
    issue: u64,
    task: &Value,
    events: &[Value],
    limits: &Limits,
) -> anyhow::Result<Vec<String>> {
    let mut breaches = Breaches::default();
    breaches.unless(fettle.api.tasks().await?.len() == 1, || "there is more than one Task".to_owned());
    let end = (text(task, "state"), text(task, "outcome"));
    breaches.unless(end == ("done", "ready_pr"), || format!("the Task ended as {end:?}: {}", task["note"]));
    published_once(fettle, issue, task, &mut breaches);
    journal(task, events, &mut breaches);

    let allowed = limits.model_calls + lost_to_haste(events, limits.deaths);
    let calls = fettle.model.request_count();
    breaches.unless(calls <= allowed, || format!("{calls} model calls were paid, {allowed} were allowed"));
    let (crashes, lapses) = (task["run"]["crashes"].as_u64(), told(events, "run_lapsed") as u64);
    breaches.unless(crashes == Some(lapses), || format!("{lapses} leases lapsed, the Run's job counts {crashes:?}"));
    let attempts = &task["run"]["attempts"];
    breaches.unless(*attempts == 0, || format!("the Run's job spent {attempts} attempts"));
    let failed = |event: &&Value| {
        let what = &event["what"];
        what["type"] == "run_failed" || what["type"] == "publish_failed" && what["why"] != PUBLISHER_GONE
    };
    breaches.0.extend(events.iter().find(failed).map(|event| format!("something failed: {}", event["what"])));
    let strays = fettle.strays();
    breaches.unless(strays.is_empty(), || format!("processes stayed: {strays:?}"));
    Ok(breaches.0)
}

/// `1 branch, 1 pull request, 1 comment, 1 labelling`.
pub(super) fn effects(fettle: &TestBox, issue: u64) -> String {
    let counted = Counted::of(fettle, issue);
    let Counted { moves, pulls, comments, labellings, .. } = &counted;
    format!("push {}, pull {pulls}, comment {comments}, labels {labellings}", moves.len())
}

/// At most one of each: what holds however a Task ends.
pub(super) fn published_at_most_once(fettle: &TestBox, issue: u64) -> Vec<String> {
    let mut breaches = Breaches::default();
    let Counted { moves, pulls, opened, comments, posted, labellings } = Counted::of(fettle, issue);
    for (what, count) in [
        ("moves of the branch", moves.len()),
        ("pull requests", pulls),
        ("requests that opened one", opened),
        ("comments", comments),
        ("requests that posted one", posted),
        ("requests that labelled", labellings),
    ] {
        breaches.unless(count <= 1, || format!("{count} {what}"));
    }
    breaches.0
}

/// What the forge was made to do.
struct Counted {
    /// Name and new commit of each update of a branch that is not the base.
    moves: Vec<(String, String)>,
    pulls: usize,
    opened: usize,
    comments: usize,
    posted: usize,
    labellings: usize,
}

impl Counted {
    fn of(fettle: &TestBox, issue: u64) -> Self {
        let requests = fettle.forge.requests();
        let taken = |method: &str, end: &str| {
            let is = |status: Option<u16>| status.is_none_or(|status| (200..300).contains(&status));
            requests.iter().filter(|r| r.method == method && r.path.ends_with(end) && is(r.status)).count()
        };
        let moves = fettle.forge.ref_updates().into_iter().map(|update| (update.name, update.new));
        Self {
            moves: moves.filter(|(name, _)| name != "refs/heads/main").collect(),
            pulls: fettle.forge.pulls(&fettle.repo).len(),
            opened: taken("POST", "/pulls"),
            comments: fettle.answers_on(issue).len(),
            posted: taken("POST", &format!("/issues/{issue}/comments")),
            labellings: taken("POST", &format!("/issues/{issue}/labels")),
        }
    }
}

fn published_once(fettle: &TestBox, issue: u64, task: &Value, breaches: &mut Breaches) {
    breaches.0.extend(published_at_most_once(fettle, issue));
    let Counted { moves, pulls, comments, labellings, .. } = Counted::of(fettle, issue);
    let all = (moves.len(), pulls, comments, labellings);
    breaches.unless(all == (1, 1, 1, 1), || format!("branch, pull request, comment and label: {all:?}"));

    let effects = task["effects"].as_array().cloned().unwrap_or_default();
    let settled = effects.iter().filter(|effect| effect["state"] == "settled").count();
    breaches.unless(settled == 4 && effects.len() == 4, || format!("not all effects are settled: {effects:?}"));
    let pushed = effects.iter().find(|effect| effect["kind"] == "push").map(|effect| text(effect, "detail"));
    for (name, commit) in &moves {
        let branch = name.trim_start_matches("refs/heads/");
        let recorded = pushed.is_some_and(|detail| detail.contains(branch) && detail.contains(commit.as_str()));
        breaches.unless(recorded, || format!("{branch} moved to {commit}, recorded is {pushed:?}"));
    }
    let pull = fettle.forge.pulls(&fettle.repo).into_iter().next();
    let shown = task["pull_request"]["number"].as_u64();
    breaches.unless(pull.map(|pull| pull.number) == shown, || format!("the Task shows pull request {shown:?}"));
    let marker = text(task, "id").parse::<TaskId>().map(|id| comment_marker(id, "result")).unwrap_or_default();
    let marked = fettle.answers_on(issue).iter().filter(|body| body.contains(&marker)).count();
    breaches.unless(marked == 1 && !marker.is_empty(), || format!("{marked} comments carry the marker"));
}

/// Steps and events without gap or repetition.
fn journal(task: &Value, events: &[Value], breaches: &mut Breaches) {
    let steps: Vec<Option<u64>> = events
        .iter()
        .filter(|event| event["what"]["type"] == "step")
        .map(|event| event["what"]["seq"].as_u64())
        .collect();
    let in_order = steps.iter().zip(0..).all(|(seq, expected)| *seq == Some(expected));
    let counted = task["run"]["steps"].as_u64() == Some(steps.len() as u64);
    breaches.unless(in_order && counted && !steps.is_empty(), || {
        format!("{} steps are counted, told are {steps:?}", task["run"]["steps"])
    });
    let numbers: Vec<Option<u64>> = events.iter().map(|event| event["task_seq"].as_u64()).collect();
    let in_order = numbers.iter().zip(1..).all(|(seq, expected)| *seq == Some(expected));
    breaches.unless(in_order, || format!("the Task's events are numbered {numbers:?}"));
    let fences: Vec<Option<u64>> = events
        .iter()
        .filter(|event| event["what"]["type"] == "run_leased")
        .map(|event| event["what"]["fence"].as_u64())
        .collect();
    let ordered = fences.windows(2).all(|pair| pair[0] < pair[1]) && BTreeSet::from_iter(&fences).len() == fences.len();
    breaches.unless(ordered, || format!("fences do not grow: {fences:?}"));
    for once in ["task_created", "run_ended", "task_done"] {
        let count = told(events, once);
        breaches.unless(count == 1, || format!("{once} is told {count} times"));
    }
}

fn told(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["what"]["type"] == kind).count()
}

#[derive(Default)]
struct Breaches(Vec<String>);

impl Breaches {
    fn unless(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.0.push(otherwise());
        }
    }
}
