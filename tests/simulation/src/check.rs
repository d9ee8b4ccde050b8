//! What must be true at the end, when everything had the time to come to its end: I1 to I10 of `crates/README.md`.

use std::collections::BTreeMap;

use fettle_app::publishing::texts::carries_trailer;
use fettle_domain::effect::{EffectKind, EffectState, Receipt, comment_marker};
use fettle_domain::id::TaskId;
use fettle_domain::job::{JobKind, JobState};
use fettle_domain::run::RunOutcome;
use fettle_domain::step::StepKind;
use fettle_domain::task::TaskState;

use crate::forge::{REPO_ID, Shown};
use crate::ledger::{Rows, TaskRow};
use crate::nature::lock;
use crate::people::People;
use crate::world::World;

/// What is still open, in words; empty when all have come to their end.
pub(crate) fn unfinished(world: &World, people: &People) -> Vec<String> {
    let rows = world.durable.rows();
    let mut open = Vec::new();
    for row in rows.deliveries.iter().filter(|row| row.verdict.is_none()) {
        open.push(format!("the delivery {} has no verdict", row.delivery.key));
    }
    for task in rows.tasks.values().filter(|task| !task.state.is_final()) {
        open.push(format!("{} is {}", task.id, task.state.name()));
    }
    for row in rows.jobs.iter().filter(|row| !row.job.state.is_final()) {
        open.push(format!("{} is {}", row.job.id, row.job.state.name()));
    }
    for issue in lock(&people.untold).iter().filter(|issue| !was_asked_about(&rows, **issue)) {
        open.push(format!("nobody has found the label of issue {issue}"));
    }
    if !people.all_answered() {
        open.push("a webhook was not answered".to_owned());
    }
    if !world.broker.all_taken() {
        open.push("a foreign message was not taken".to_owned());
    }
    open
}

fn was_asked_about(rows: &Rows, issue: u64) -> bool {
    rows.tasks.values().any(|task| task.place() == Some((REPO_ID, issue)))
}

pub(crate) fn at_the_end(world: &World, people: &People) -> Vec<String> {
    let (rows, shown) = (world.durable.rows(), lock(&world.forge.shown));
    let mut breaches = Vec::new();
    nothing_is_lost(&rows, people, &mut breaches);
    for task in rows.tasks.values() {
        shown_once(world, &shown, task, &mut breaches);
        if task.state == TaskState::Done {
            brought_about(&rows, &shown, task, &mut breaches);
        }
        paid(world, &rows, task, &mut breaches);
        journaled_once(task, &mut breaches);
    }
    breaches
}

/// I5: what was answered is there, and something has come of it.
fn nothing_is_lost(rows: &Rows, people: &People, breaches: &mut Vec<String>) {
    // The last one: somebody has asked in another way since, and has a Task.
    let words = ["opened ", "joined ", "duplicate of ", "the label is older than the issue's last Task"];
    let came = |verdict: &str| words.iter().any(|word| verdict.starts_with(word));
    for key in people.answered() {
        match rows.deliveries.iter().find(|row| row.delivery.key == key).map(|row| row.verdict.as_deref()) {
            None => breaches.push(format!("I5: the webhook {key} was answered and is not in the ledger")),
            Some(Some(verdict)) if came(verdict) => {}
            Some(verdict) => breaches.push(format!("I5: nothing came of the webhook {key}: {verdict:?}")),
        }
    }
    for (id, body) in lock(&people.orders).iter() {
        let found = rows.deliveries.iter().find(|row| row.delivery.body == *body);
        match found.map(|row| row.verdict.as_deref()) {
            None => breaches.push(format!("I5: the order {id:?} was taken from the broker and is not in the ledger")),
            Some(Some(verdict)) if came(verdict) => {}
            Some(verdict) => breaches.push(format!("I5: nothing came of the order {id:?}: {verdict:?}")),
        }
    }
}

/// I10: one branch, at most one pull request of it, one comment.
fn shown_once(world: &World, shown: &Shown, task: &TaskRow, breaches: &mut Vec<String>) {
    let own = |commit| world.mirror.described(commit).is_some_and(|it| carries_trailer(&it.message, task.id));
    let branches: Vec<&String> =
        shown.branches.iter().filter(|(_, commit)| own(**commit)).map(|(branch, _)| branch).collect();
    if branches.len() > 1 {
        breaches.push(format!("I10: {} has the branches {branches:?}", task.id));
    }
    for branch in branches {
        let pulls = shown.pulls.iter().filter(|pull| pull.head == *branch).count();
        if pulls > 1 {
            breaches.push(format!("I10: {branch} has {pulls} pull requests"));
        }
    }
    let comments = comments_of(shown, task.id);
    if comments > 1 {
        breaches.push(format!("I10: {} has {comments} comments", task.id));
    }
    let marker = comment_marker(task.id, "result");
    let mut own = shown.comments.iter().filter(|comment| comment.body.contains(&marker));
    if task.state.is_final() && own.any(|comment| comment.body.contains("Fettle is at work")) {
        breaches.push(format!("{} has ended, and its comment tells that it is worked on", task.id));
    }
}

fn comments_of(shown: &Shown, task: TaskId) -> usize {
    let marker = comment_marker(task, "result");
    shown.comments.iter().filter(|comment| comment.body.contains(&marker)).count()
}

/// I6 and I10: what the ledger says that the forge has, it has; and a Task that is done has shown what it found.
fn brought_about(rows: &Rows, shown: &Shown, task: &TaskRow, breaches: &mut Vec<String>) {
    let published = rows.newest_publish_job(task.id).map(|row| &row.job.state);
    if let Some(JobState::Dead { reason }) = published {
        breaches.push(format!("the publication of {} died though nothing fails any more: {reason}", task.id));
        return;
    }
    let mut breach = |what: String| breaches.push(format!("I6: {}: {what}", task.id));
    for (effect, _) in &task.effects {
        let EffectState::Settled { receipt } = &effect.state else {
            breach(format!("{} is not settled", effect.kind.name()));
            continue;
        };
        match receipt {
            Receipt::Pushed { branch, commit } => {
                if shown.branches.get(branch.as_str()) != Some(commit) {
                    breach(format!("{branch} is not at {}", commit.short()));
                }
            }
            Receipt::PullRequest { number, .. } => {
                if !shown.pulls.iter().any(|pull| pull.number() == *number) {
                    breach(format!("there is no pull request #{number}"));
                }
            }
            Receipt::Progress { id, .. } | Receipt::Comment { id } => {
                if !shown.comments.iter().any(|comment| comment.id == *id) {
                    breach(format!("there is no comment {id}"));
                }
            }
            Receipt::Labels => {}
            Receipt::Withheld { .. } if task.cancelled_by.is_some() => {}
            // The comment of its end has overtaken it.
            Receipt::Withheld { .. } if effect.kind == EffectKind::Progress => {}
            Receipt::Withheld { reason } => breach(format!("{} was withheld: {reason}", effect.kind.name())),
        }
    }
    let wants_pull = task
        .leading()
        .result
        .as_ref()
        .is_some_and(|result| matches!(result.outcome, RunOutcome::ReadyPr | RunOutcome::DraftPr { .. }));
    let wanted = task.effects.iter().filter(|(effect, _)| effect.kind != EffectKind::Progress).count();
    if wants_pull && wanted != 4 {
        breach(format!("a change wants {wanted} effects"));
    }
    if comments_of(shown, task.id) == 0 && task.cancelled_by.is_none() {
        breach("the issue was told nothing".to_owned());
    }
}

/// A crash costs one model call at most: each lease pays for one that is not on record, no more.
fn paid(world: &World, rows: &Rows, task: &TaskRow, breaches: &mut Vec<String>) {
    let steps = task.runs.iter().flat_map(|run| &run.steps);
    let recorded = steps.filter(|(_, step)| step.kind == StepKind::ModelCall).count();
    let paid: u64 = task.runs.iter().map(|run| u64::from(world.meter.paid(run.id))).sum();
    let paid = usize::try_from(paid).unwrap_or(usize::MAX);
    let leases = rows.events.iter().filter(|event| event.task == task.id);
    let leases = leases.filter(|event| matches!(event.body, fettle_domain::event::EventBody::RunLeased { .. })).count();
    if paid > recorded + leases {
        breaches.push(format!("{}: {paid} model calls were paid, {recorded} recorded, in {leases} leases", task.id));
    }
    if !rows.jobs.iter().any(|row| row.task == task.id && row.job.kind == JobKind::Run) {
        breaches.push(format!("I5: {} has no run job", task.id));
    }
}

fn journaled_once(task: &TaskRow, breaches: &mut Vec<String>) {
    for run in &task.runs {
        let mut said: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, step) in run.steps.iter().filter(|(_, step)| step.kind == StepKind::MessageIn) {
            *said.entry(&step.title).or_default() += 1;
        }
        for (text, times) in said {
            let posted = task.messages.iter().filter(|message| text.ends_with(&message.content)).count();
            if times > posted {
                let id = task.id;
                breaches.push(format!("{id}: the message `{text}` came {posted} times and was journaled {times}"));
            }
        }
    }
}
