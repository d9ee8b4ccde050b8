//! What must hold in the end, by the forge's own records and by what the API tells.

use std::collections::BTreeSet;
use std::ops::AddAssign;

use fettle_domain::effect::comment_marker;
use fettle_domain::id::TaskId;
use serde::Serialize;
use serde_json::Value;

use super::text;
use crate::forge::Issue;
use crate::world::TestBox;

/// What nobody of ours moves.
const BASE: &str = "refs/heads/main";

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
pub(super) const PUBLISHER_GONE: &str = "the publisher's lease ended";

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
    breaches.0.extend(judge_task(fettle, issue, task, events, &[PUBLISHER_GONE]));
    breaches.0.extend(unaccounted(fettle, &[issue]));
    let allowed = limits.model_calls + lost_to_haste(events, limits.deaths);
    let calls = fettle.model.request_count();
    breaches.unless(calls <= allowed, || format!("{calls} model calls were paid, {allowed} were allowed"));
    let strays = fettle.strays();
    breaches.unless(strays.is_empty(), || format!("processes stayed: {strays:?}"));
    Ok(breaches.0)
}

/// The same of one Task among many; what they cost together is not looked at. `excused` are beginnings of what a
/// publication may have failed by.
pub(super) fn judge_task(
    fettle: &TestBox,
    issue: u64,
    task: &Value,
    events: &[Value],
    excused: &[&str],
) -> Vec<String> {
    let mut breaches = Breaches::default();
    let end = (text(task, "state"), text(task, "outcome"));
    breaches.unless(end == ("done", "ready_pr"), || format!("the Task ended as {end:?}: {}", task["note"]));
    published_once(fettle, issue, task, &mut breaches);
    journal(task, events, &mut breaches);
    let (crashes, lapses) = (task["run"]["crashes"].as_u64(), told(events, "run_lapsed") as u64);
    breaches.unless(crashes == Some(lapses), || format!("{lapses} leases lapsed, the Run's job counts {crashes:?}"));
    let attempts = &task["run"]["attempts"];
    breaches.unless(*attempts == 0, || format!("the Run's job spent {attempts} attempts"));
    let failed = |event: &&Value| {
        let what = &event["what"];
        let excused = || excused.iter().any(|why| text(what, "why").starts_with(why));
        what["type"] == "run_failed" || what["type"] == "publish_failed" && !excused()
    };
    breaches.0.extend(events.iter().find(failed).map(|event| format!("something failed: {}", event["what"])));
    breaches.0
}

/// Branches and pull requests that belong to none of these issues.
pub(super) fn unaccounted(fettle: &TestBox, issues: &[u64]) -> Option<String> {
    let of_none = |head: &str| !issues.iter().any(|issue| is_branch_of(head, *issue));
    let moved = fettle.forge.ref_updates().into_iter().map(|update| update.name);
    let heads = fettle.forge.pulls(&fettle.repo).into_iter().filter_map(|pull| Some(pull.pull?.head));
    let others: Vec<String> = moved.filter(|name| name != BASE).chain(heads).filter(|head| of_none(head)).collect();
    (!others.is_empty()).then(|| format!("branches of nobody: {others:?}"))
}

/// Whether a branch, with or without `refs/heads/`, is that of an issue's Task, of whatever generation.
fn is_branch_of(name: &str, issue: u64) -> bool {
    let Some((_, number)) = name.rsplit_once("-issue-") else { return false };
    number.split_once("-g").map_or(number, |(number, _)| number) == issue.to_string()
}

/// What must be nothing, counted over Tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Harm {
    /// Tasks that were accepted and did not end with what they should.
    pub lost: usize,
    pub second_pulls: usize,
    pub second_pushes: usize,
    pub comment_copies: usize,
}

impl Harm {
    pub(super) fn of(fettle: &TestBox, issue: u64, task: &Value) -> Self {
        let Counted { moves, pulls, comments, .. } = Counted::of(fettle, issue);
        Self {
            lost: usize::from(text(task, "state") != "done" || pulls == 0),
            second_pulls: pulls.saturating_sub(1),
            second_pushes: moves.len().saturating_sub(1),
            comment_copies: comments.saturating_sub(1),
        }
    }
}

impl AddAssign for Harm {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.second_pulls += other.second_pulls;
        self.second_pushes += other.second_pushes;
        self.comment_copies += other.comment_copies;
    }
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

/// What the forge was made to do for one issue.
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
        let posted = |end: &str, about: &dyn Fn(&Value) -> bool| {
            // One whose body did not come whole was not carried out.
            let is = |status: Option<u16>| status.is_some_and(|status| (200..300).contains(&status));
            let to = requests.iter().filter(|r| r.method == "POST" && r.path.ends_with(end) && is(r.status));
            to.filter(|request| about(request.body.as_ref().unwrap_or(&Value::Null))).count()
        };
        let own = |body: &Value| is_branch_of(text(body, "head"), issue);
        let pulls = fettle.forge.pulls(&fettle.repo).into_iter().filter_map(|pull| pull.pull);
        let moves = fettle.forge.ref_updates().into_iter().map(|update| (update.name, update.new));
        Self {
            moves: moves.filter(|(name, _)| is_branch_of(name, issue)).collect(),
            pulls: pulls.filter(|pull| is_branch_of(&pull.head, issue)).count(),
            opened: posted("/pulls", &own),
            comments: fettle.answers_on(issue).len(),
            posted: posted(&format!("/issues/{issue}/comments"), &|_| true),
            labellings: posted(&format!("/issues/{issue}/labels"), &|_| true),
        }
    }
}

fn published_once(fettle: &TestBox, issue: u64, task: &Value, breaches: &mut Breaches) {
    breaches.0.extend(published_at_most_once(fettle, issue));
    let Counted { moves, pulls, comments, labellings, .. } = Counted::of(fettle, issue);
    let all = (moves.len(), pulls, comments, labellings);
    breaches.unless(all == (1, 1, 1, 1), || format!("branch, pull request, comment and label: {all:?}"));

    let effects = task["effects"].as_array().cloned().unwrap_or_default();
    // Where a Run takes long, its progress is told as well, unless it ends just then.
    let (progress, others): (Vec<&Value>, Vec<&Value>) =
        effects.iter().partition(|effect| effect["kind"] == "progress");
    let settled = others.len() == 4 && others.iter().all(|effect| effect["state"] == "settled");
    let told = progress.iter().all(|effect| matches!(text(effect, "state"), "settled" | "withheld"));
    breaches.unless(settled && told, || format!("not all effects are settled: {effects:?}"));
    let pushed = effects.iter().find(|effect| effect["kind"] == "push").map(|effect| text(effect, "detail"));
    for (name, commit) in &moves {
        let branch = name.trim_start_matches("refs/heads/");
        let recorded = pushed.is_some_and(|detail| detail.contains(branch) && detail.contains(commit.as_str()));
        breaches.unless(recorded, || format!("{branch} moved to {commit}, recorded is {pushed:?}"));
    }
    let own = |pull: &Issue| pull.pull.as_ref().is_some_and(|pull| is_branch_of(&pull.head, issue));
    let pull = fettle.forge.pulls(&fettle.repo).into_iter().find(own);
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

pub(super) fn told(events: &[Value], kind: &str) -> usize {
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
