//! The invariants of `crates/README.md`, looked for in the rows: one sentence for each breach.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fettle_domain::effect::EffectState;
use fettle_domain::event::EventBody;
use fettle_domain::job::{JobKind, JobState};
use fettle_domain::retry::{MAX_ATTEMPTS, MAX_CRASHES};
use fettle_domain::task::TaskState;
use fettle_domain::turn::Slots;
use jiff::Timestamp;

use super::rows::{Rows, TaskRow, is_held};
use super::time::until;

/// A sweep runs every half second; a lease that lapsed this long ago means that none does.
const LATE: Duration = Duration::from_secs(60);

pub(crate) fn audit(rows: &Rows, slots: &Slots, now: Timestamp) -> Vec<String> {
    let mut breaches = Vec::new();
    identities(rows, &mut breaches);
    held_slots(rows, slots, &mut breaches);
    jobs(rows, now, &mut breaches);
    for task in rows.tasks.values() {
        journals(rows, task, &mut breaches);
        events(rows, task, &mut breaches);
    }
    breaches
}

fn identities(rows: &Rows, breaches: &mut Vec<String>) {
    let mut issues = BTreeSet::new();
    for task in rows.tasks.values().filter(|task| !task.ended) {
        if let Some(place) = task.place()
            && !issues.insert(place)
        {
            breaches.push(format!("I1: issue #{} has two active Tasks, one is {}", place.1, task.id));
        }
    }
    let mut publishing = BTreeSet::new();
    for row in rows.jobs.iter().filter(|row| row.job.kind == JobKind::Publish && !row.job.state.is_final()) {
        if !publishing.insert(row.task) {
            breaches.push(format!("I1: {} has two unfinished publish jobs", row.task));
        }
    }
    let mut keys = BTreeSet::new();
    for row in &rows.deliveries {
        if !keys.insert(&row.delivery.key) {
            breaches.push(format!("I1: the delivery {} is stored twice", row.delivery.key));
        }
    }
}

fn held_slots(rows: &Rows, slots: &Slots, breaches: &mut Vec<String>) {
    let mut held: BTreeMap<&str, u32> = BTreeMap::new();
    let mut of_model: BTreeMap<&str, u32> = BTreeMap::new();
    for row in rows.jobs.iter().filter(|row| is_held(&row.job.state)) {
        let lane = &rows.lanes[row.lane];
        *held.entry(&lane.slots_of).or_default() += 1;
        if lane.kind == JobKind::Run {
            *of_model.entry(&lane.model).or_default() += 1;
        }
    }
    for (slots_of, count) in held {
        if count > slots.of(slots_of) {
            breaches.push(format!("I4: {count} jobs hold slots of {slots_of}"));
        }
    }
    for (model, count) in of_model {
        if count > slots.of_model(model) {
            breaches.push(format!("I4: {count} Runs are at the model `{model}`"));
        }
    }
}

fn jobs(rows: &Rows, now: Timestamp, breaches: &mut Vec<String>) {
    for row in &rows.jobs {
        let (job, counters) = (&row.job, row.job.counters);
        if job.ended_by.is_some_and(|ended_by| ended_by > job.fence) {
            breaches.push(format!("I2: {} was ended under a fence newer than its newest", job.id));
        }
        if is_held(&job.state) != row.holder.is_some() || is_held(&job.state) != row.request.is_some() {
            breaches.push(format!("I3: {} has a holder without being leased, or the reverse", job.id));
        }
        if matches!(job.state, JobState::Queued) != row.runnable_at.is_some() {
            breaches.push(format!("I4: {} stands in no line, or wrongly in one", job.id));
        }
        let ended = matches!(job.state, JobState::Dead { .. } | JobState::Cancelled);
        if counters.crashes_since_step > counters.crashes
            || counters.crashes > MAX_CRASHES
            || counters.attempts > MAX_ATTEMPTS
            || (counters.attempts == MAX_ATTEMPTS && !ended)
        {
            breaches.push(format!("I7: {} has counters that no sequence of failures and crashes gives", job.id));
        }
        if let JobState::Leased { until: deadline, .. } | JobState::Cancelling { until: deadline, .. } = job.state
            && until(deadline, now) > LATE
        {
            breaches.push(format!("I8: the lease of {} lapsed more than {} s ago", job.id, LATE.as_secs()));
        }
    }
}

fn journals(rows: &Rows, task: &TaskRow, breaches: &mut Vec<String>) {
    for run in &task.runs {
        let Some(job) = rows.find_job(run.job).map(|index| &rows.jobs[index].job) else {
            breaches.push(format!("I5: {} of {} has no run job", run.id, task.id));
            continue;
        };
        if matches!(job.state, JobState::Done) && run.result.is_none() {
            breaches.push(format!("I5: a Run of {} is done without a result", task.id));
        }
        if run.steps.iter().enumerate().any(|(seq, (_, step))| usize::try_from(step.seq) != Ok(seq)) {
            breaches.push(format!("I5: a journal of {} has a gap", task.id));
        }
        if run.steps.iter().any(|(fence, _)| *fence > job.fence) {
            breaches.push(format!("I2: {} has a step of a fence that was never issued", task.id));
        }
    }
    let open = task.effects.iter().any(|(effect, _)| !matches!(effect.state, EffectState::Settled { .. }));
    if open && rows.newest_publish_job(task.id).is_some_and(|row| matches!(row.job.state, JobState::Done)) {
        breaches.push(format!("I6: {} is published with an effect that is not settled", task.id));
    }
}

fn events(rows: &Rows, task: &TaskRow, breaches: &mut Vec<String>) {
    let own = || rows.events.iter().filter(|event| event.task == task.id);
    if !own().map(|event| event.task_seq).eq(1..=task.event_seq) {
        breaches.push(format!("I9: the events of {} have a gap", task.id));
    }
    let folded = rows.fold(task.id).unwrap_or(task.state);
    if folded != task.state || folded.is_final() != task.ended {
        breaches.push(format!("I9: {} is shown as {} and its jobs say {}", task.id, task.state.name(), folded.name()));
    }
    let told = own().rev().find_map(|event| match event.body {
        EventBody::TaskDone { .. } => Some(Some(TaskState::Done)),
        EventBody::TaskCancelled => Some(Some(TaskState::Cancelled)),
        EventBody::TaskCreated { .. } | EventBody::Redriven { .. } | EventBody::RunsAdded { .. } => Some(None),
        _ => None,
    });
    if folded.is_final() && told.flatten() != Some(folded) {
        breaches.push(format!("I9: {} is {} and its events tell of another end", task.id, folded.name()));
    }
}
