//! Tasks and counts as they are shown.

use fettle_app::ports::ledger::{
    DeadJob, Demand, Depth, L, LedgerError, Message, OpenJob, Publication, RunView, SeenRepository, Stands, TaskCursor,
    TaskFilter, TaskView,
};
use fettle_domain::branch::BranchName;
use fettle_domain::effect::EffectKind;
use fettle_domain::id::{JobId, RunId, TaskId};
use fettle_domain::job::{JobKind, JobState};
use fettle_domain::lease::LeaseRef;
use fettle_domain::progress::{self, AtWork};
use fettle_domain::step::StepRecord;
use fettle_domain::task::Mode;
use fettle_domain::turn::Slots;
use jiff::Timestamp;

use super::rows::{JobRow, Rows, TaskRow, is_held};
use super::{any_run, job};

pub(super) fn task(rows: &Rows, id: TaskId) -> L<TaskView> {
    let task = rows.task(id)?;
    Ok(TaskView {
        id,
        correlation: task.correlation,
        mode: task.mode,
        repo: task.repo.clone(),
        issue: task.issue.clone(),
        model: task.model.clone(),
        needs: task.needs.clone(),
        base: task.base.clone(),
        actor: task.actor.clone(),
        trigger: task.trigger.clone(),
        generation: task.generation,
        as_draft: task.as_draft,
        state: task.state,
        note: task.note.clone(),
        created_at: task.created_at,
        updated_at: task.updated_at,
        run: run(rows, task, task.leading)?,
        effects: task.effects.iter().map(|(effect, _)| effect.clone()).collect(),
    })
}

fn run(rows: &Rows, task: &TaskRow, nth: usize) -> L<RunView> {
    let run = &task.runs[nth];
    let job = &rows.jobs[rows.job(run.job)?].job;
    Ok(RunView {
        id: run.id,
        ordinal: rows.ordinal(run.job)?,
        model: run.model.clone(),
        instruction: run.instruction.clone(),
        job: run.job,
        job_state: job.state.name().to_owned(),
        fence: job.fence.get(),
        attempts: job.counters.attempts,
        crashes: job.counters.crashes,
        steps: u32::try_from(run.steps.len()).unwrap_or(u32::MAX),
        spent: run.spent,
        result: run.result.clone(),
    })
}

/// The newest `max`, the newest last.
pub(super) fn messages(rows: &Rows, id: TaskId, max: u16) -> L<Vec<Message>> {
    let all = &rows.task(id)?.messages;
    let shown = all.iter().skip(all.len().saturating_sub(max.into()));
    Ok(shown.map(|one| Message { by: one.author.clone(), at: one.at, text: one.content.clone() }).collect())
}

/// In their order.
pub(super) fn runs(rows: &Rows, id: TaskId) -> L<Vec<RunView>> {
    let task = rows.task(id)?;
    (0..task.runs.len()).map(|nth| run(rows, task, nth)).collect()
}

/// Newest first, strictly after the cursor.
pub(super) fn tasks(rows: &Rows, filter: TaskFilter, after: Option<TaskCursor>, max: u16) -> L<Vec<TaskView>> {
    let wanted = |task: &&super::rows::TaskRow| {
        filter.state.is_none_or(|state| task.state == state)
            && after.is_none_or(|cursor| (task.created_at, task.id) < (cursor.created_at, cursor.id))
    };
    let mut found: Vec<_> = rows.tasks.values().filter(wanted).map(|task| (task.created_at, task.id)).collect();
    found.sort();
    found.into_iter().rev().take(max.into()).map(|(_, id)| self::task(rows, id)).collect()
}

pub(super) fn opened_since(rows: &Rows, installation: Option<u64>, since: Timestamp) -> u64 {
    let counted = |task: &&super::rows::TaskRow| {
        task.created_at >= since
            && task.repo.as_ref().and_then(|repo| repo.installation) == installation
            && matches!(task.trigger.as_str(), "label" | "comment")
    };
    rows.tasks.values().filter(counted).count() as u64
}

pub(super) fn actors(rows: &Rows, repo: u64, issue: u64, max: u16) -> Vec<String> {
    let here = rows.tasks.values().filter(|task| task.place() == Some((repo, issue)));
    let mut tasks: Vec<_> = here.map(|task| (task.created_at, task.id, &task.actor)).collect();
    tasks.sort();
    tasks.into_iter().rev().take(max.into()).map(|(_, _, actor)| actor.clone()).collect()
}

pub(super) fn publication(rows: &Rows, lease: &LeaseRef) -> L<Publication> {
    let row = rows.held_for_reading(lease)?;
    if row.job.kind != JobKind::Publish {
        return Err(LedgerError::Invalid(format!("{} is not a publish job", row.job.id)));
    }
    let task = task(rows, row.task)?;
    let run = &rows.jobs[rows.leading_job(task.id)?].job.state;
    let phase = match run {
        state if state.is_final() => None,
        JobState::Waiting { .. } if task.run.result.is_some() => Some(progress::CHOICE.to_owned()),
        _ => Some(phase(rows.task(task.id)?)),
    };
    let run_failure = match run {
        JobState::Dead { reason } => Some(reason.clone()),
        _ => None,
    };
    let branch = BranchName::of(task.mode, task.issue.number, task.id, task.generation);
    Ok(Publication { task, branch, run_failure, phase })
}

fn phase(task: &TaskRow) -> String {
    task.leading().steps.last().map(|(_, step)| step.phase.clone()).unwrap_or_default()
}

/// Runs under a lease that work on an issue, the longest-standing Task first.
pub(super) fn at_work(rows: &Rows, max: u16) -> L<Vec<AtWork>> {
    let leased = |row: &&JobRow| row.job.kind == JobKind::Run && matches!(row.job.state, JobState::Leased { .. });
    let mut at_work = Vec::new();
    for row in rows.jobs.iter().filter(leased) {
        let task = rows.task(row.task)?;
        if task.place().is_some() && task.mode != Mode::Probe && task.leading().job == row.job.id {
            let mut effects = task.effects.iter().map(|(effect, _)| effect);
            let told = effects.find(|effect| effect.kind == EffectKind::Progress).cloned();
            at_work.push(AtWork { task: row.task, created_at: task.created_at, phase: phase(task), told });
        }
    }
    at_work.sort_by_key(|at_work| (at_work.created_at, at_work.task));
    at_work.truncate(max.into());
    Ok(at_work)
}

/// Whole seconds that the oldest of these has been runnable.
fn oldest(now: Timestamp, runnable: impl Iterator<Item = Timestamp>) -> u64 {
    let waited = runnable.min().map_or(0, |oldest| (now.as_microsecond() - oldest.as_microsecond()) / 1_000_000);
    u64::try_from(waited).unwrap_or(0)
}

/// Counted no further, as by the real ledgers.
const MOST_RUNNABLE: u32 = 1_000;

pub(super) fn demand(rows: &Rows, slots: &Slots, now: Timestamp) -> Demand {
    let runs = || rows.jobs.iter().filter(|row| row.job.kind == JobKind::Run);
    let (mut lapsed, mut leased) = (0, 0);
    for row in runs() {
        match row.job.state {
            JobState::Leased { until, .. } | JobState::Cancelling { until, .. } if until <= now => lapsed += 1,
            JobState::Leased { .. } | JobState::Cancelling { .. } => leased += 1,
            _ => {}
        }
    }
    let runnable = job::count_next(rows, slots, &any_run(), MOST_RUNNABLE);
    Demand {
        runnable: u64::from(runnable) + lapsed,
        leased,
        oldest_runnable_s: oldest(now, runs().filter_map(|row| row.runnable_at)),
    }
}

/// The newest first.
pub(super) fn dead(rows: &Rows, after: Option<JobId>, max: u16) -> Vec<DeadJob> {
    let dead = rows.jobs.iter().rev().skip_while(|row| after.is_some_and(|after| row.job.id != after));
    let dead = dead.skip(usize::from(after.is_some())).filter_map(|row| match &row.job.state {
        JobState::Dead { reason } => Some(DeadJob {
            job: row.job.id,
            kind: row.job.kind,
            task: row.task,
            reason: reason.clone(),
            last_failure: row.last_failure.clone(),
            attempts: row.job.counters.attempts,
            crashes: row.job.counters.crashes,
        }),
        _ => None,
    });
    dead.take(max.into()).collect()
}

fn open_job(rows: &Rows, row: &JobRow) -> L<Option<OpenJob>> {
    let stands = match &row.job.state {
        JobState::Queued => Stands::Runnable { since: row.runnable_at.expect("a queued job is runnable") },
        JobState::Delayed { until } => Stands::Delayed { until: *until },
        JobState::Waiting { .. } => Stands::Waiting,
        JobState::Leased { worker, until } | JobState::Cancelling { worker, until } => Stands::Held {
            by: *worker,
            name: row.holder.clone().unwrap_or_default(),
            until: *until,
            cancelling: matches!(row.job.state, JobState::Cancelling { .. }),
        },
        JobState::Done | JobState::Dead { .. } | JobState::Cancelled => return Ok(None),
    };
    let task = rows.task(row.task)?;
    Ok(Some(OpenJob {
        job: row.job.id,
        kind: row.job.kind,
        task: row.task,
        title: task.issue.title.clone(),
        repo: task.repo.as_ref().map(|repo| repo.name.clone()),
        stands,
        attempts: row.job.counters.attempts,
        crashes: row.job.counters.crashes,
        last_failure: row.last_failure.clone(),
    }))
}

pub(super) fn held(rows: &Rows, max: u16) -> L<Vec<OpenJob>> {
    let until = |row: &&JobRow| match row.job.state {
        JobState::Leased { until, .. } | JobState::Cancelling { until, .. } => Some(until),
        _ => None,
    };
    let mut held: Vec<&JobRow> = rows.jobs.iter().filter(|row| is_held(&row.job.state)).collect();
    held.sort_by_key(until);
    held.into_iter().take(max.into()).filter_map(|row| open_job(rows, row).transpose()).collect()
}

pub(super) fn unheld(rows: &Rows, after: Option<JobId>, max: u16) -> L<Vec<OpenJob>> {
    let behind = rows.jobs.iter().skip_while(|row| after.is_some_and(|after| row.job.id != after));
    let open = behind.skip(usize::from(after.is_some())).filter(|row| !is_held(&row.job.state));
    open.filter_map(|row| open_job(rows, row).transpose()).take(max.into()).collect()
}

pub(super) fn repositories(rows: &Rows, max: u16) -> Vec<SeenRepository> {
    let mut tasks: Vec<(u64, &TaskRow)> =
        rows.tasks.values().filter_map(|task| Some((task.repo.as_ref()?.forge_id, task))).collect();
    tasks.sort_by_key(|(forge_id, task)| (std::cmp::Reverse(task.created_at), *forge_id, std::cmp::Reverse(task.id)));
    let mut seen: Vec<SeenRepository> = Vec::new();
    for (forge_id, task) in tasks {
        let open = u64::from(!task.ended);
        match seen.iter_mut().find(|one| one.forge_id == forge_id) {
            Some(one) => (one.tasks, one.open) = (one.tasks + 1, one.open + open),
            None => seen.push(SeenRepository { forge_id, tasks: 1, open, newest: task.id }),
        }
    }
    seen.truncate(max.into());
    seen
}

pub(super) fn journal(rows: &Rows, run: RunId, from: u32, max: u16) -> L<Vec<StepRecord>> {
    let found = rows.tasks.values().flat_map(|task| &task.runs).find(|row| row.id == run);
    let steps = found.ok_or_else(|| LedgerError::NotFound(run.to_string()))?.steps.iter().map(|(_, step)| step);
    Ok(steps.filter(|step| step.seq >= from).take(max.into()).cloned().collect())
}

pub(super) fn depth(rows: &Rows, now: Timestamp) -> Depth {
    let count = |is: fn(&JobState) -> bool| rows.jobs.iter().filter(|row| is(&row.job.state)).count() as u64;
    Depth {
        runnable: count(|state| matches!(state, JobState::Queued)),
        delayed: count(|state| matches!(state, JobState::Delayed { .. })),
        waiting: count(|state| matches!(state, JobState::Waiting { .. })),
        leased: count(is_held),
        dead: count(|state| matches!(state, JobState::Dead { .. })),
        oldest_runnable_s: oldest(now, rows.jobs.iter().filter_map(|row| row.runnable_at)),
        open_deliveries: rows.deliveries.iter().filter(|row| row.verdict.is_none()).count() as u64,
    }
}
