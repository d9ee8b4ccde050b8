//! Looks at each commit of the ledger, from outside: what it remembers of the jobs is its own, and it asks no rule that the
//! ledger has asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use fettle_domain::effect::{Effect, EffectState, Intent};
use fettle_domain::id::{JobId, TaskId};
use fettle_domain::job::{Counters, JobKind, JobState};
use fettle_domain::lease::Fence;
use fettle_domain::object::CommitId;
use fettle_domain::turn::Slots;

use crate::ledger::{Commit, LEASE_PUBLISH, LEASE_RUN, Rows, is_held};
use crate::nature::{Nature, Who, lock};

/// A write to the forge, by what it is known by.
#[derive(Debug)]
pub(crate) enum Write<'a> {
    Push { branch: &'a str, commit: CommitId },
    Pull { head: &'a str },
    Comment { body: &'a str },
    Labels { issue: u64 },
}

impl Write<'_> {
    fn is_meant_by(&self, intent: &Intent) -> bool {
        match (self, intent) {
            (Self::Push { branch, commit }, Intent::Push { branch: meant, commit: new, .. }) => {
                meant.as_str() == *branch && new == commit
            }
            (Self::Pull { head }, Intent::PullRequest { head: meant, .. }) => meant.as_str() == *head,
            (Self::Comment { body }, Intent::Comment { marker, .. } | Intent::Progress { marker, .. }) => {
                body.contains(marker)
            }
            (Self::Labels { issue }, Intent::Labels { issue: meant, .. }) => meant == issue,
            _ => false,
        }
    }
}

/// I6: a durable intent, by a lease that is live in the moment in which the request is sent.
pub(crate) fn may_be_sent(rows: &Rows, write: &Write<'_>) -> Result<(), String> {
    let meant = |(effect, fence): &(Effect, Option<Fence>)| match &effect.state {
        EffectState::Intended { intent } if write.is_meant_by(intent) => Some((effect.task, *fence)),
        _ => None,
    };
    let mut meant = rows.tasks.values().flat_map(|task| task.effects.iter().filter_map(meant)).peekable();
    if meant.peek().is_none() {
        return Err(format!("nobody has intended {write:?}"));
    }
    let live = |(task, fence): (TaskId, Option<Fence>)| {
        let job = rows.newest_publish_job(task).map(|row| &row.job);
        job.is_some_and(|job| is_held(&job.state) && Some(job.fence) == fence)
    };
    if meant.any(live) { Ok(()) } else { Err(format!("the lease that intended {write:?} is gone")) }
}

/// What was last seen of a job.
#[derive(Debug, Clone)]
struct Seen {
    state: &'static str,
    fence: Fence,
    counters: Counters,
}

pub(crate) struct Watch {
    pub(crate) nature: Arc<Nature>,
    pub(crate) slots: Slots,
    seen: Mutex<BTreeMap<JobId, Seen>>,
}

impl Watch {
    pub(crate) fn new(nature: Arc<Nature>, slots: Slots) -> Self {
        Self { nature, slots, seen: Mutex::default() }
    }

    /// Right after the commit.
    pub(crate) fn saw(&self, rows: &Rows, commit: &Commit) {
        let mut seen = lock(&self.seen);
        for row in &rows.jobs {
            let now = Seen { state: row.job.state.name(), fence: row.job.fence, counters: row.job.counters };
            let before = seen.get(&row.job.id);
            self.job(row.job.id, before, &now, commit);
            if before.is_none_or(|before| {
                (before.state, before.fence, before.counters) != (now.state, now.fence, now.counters)
            }) {
                self.nature.note(Who::Outside, || {
                    let fence = now.fence.get() % 1_000_000_000;
                    format!("{} is {} (fence …{fence:09}) by {}", row.job.id, now.state, commit.verb)
                });
                seen.insert(row.job.id, now);
            }
        }
        drop(seen);
        if commit.idle && commit.verb == LEASE_RUN {
            self.nobody_is_turned_away(rows, JobKind::Run);
        }
        if commit.idle && commit.verb == LEASE_PUBLISH {
            self.nobody_is_turned_away(rows, JobKind::Publish);
        }
    }

    fn job(&self, id: JobId, before: Option<&Seen>, now: &Seen, commit: &Commit) {
        let breach = |what: &str| {
            let from = before.map_or("nothing", |seen| seen.state);
            self.nature.breach(format!("{what}: {id} went from {from} to {} by {}", now.state, commit.verb));
        };
        let fresh = Seen { state: "nothing", fence: Fence::NONE, counters: Counters::default() };
        let before = before.unwrap_or(&fresh);
        let is_new_lease = now.state == "leased" && !matches!(before.state, "leased" | "cancelling");
        if is_new_lease && now.fence <= before.fence {
            breach("I2: a lease without a new fence");
        }
        if !is_new_lease && now.fence != before.fence {
            breach("I2: a fence changed without a lease");
        }
        if let Some(by) = commit.by.filter(|by| by.job == id)
            && (by.fence != before.fence || !matches!(before.state, "leased" | "cancelling"))
        {
            breach("I2: a write counted that its holder had no lease for");
        }
        if !is_allowed(before.state, now.state, commit.verb) {
            breach("I5: a way that no job may go");
        }
        let (was, is) = (before.counters, now.counters);
        let by_redrive = matches!(commit.verb, "redrive" | "retry") && is == Counters::default();
        let failed = u16::from(commit.verb == "fail" && commit.by.is_some_and(|by| by.job == id));
        let expired = u16::from(commit.verb == "sweep" && matches!(before.state, "leased" | "cancelling"));
        let expired = if now.state == before.state { 0 } else { expired };
        if !by_redrive && (is.attempts != was.attempts + failed || is.crashes != was.crashes + expired) {
            breach("I7: a counter that grew by something else");
        }
    }

    /// I4 and I8, counted by repository and not by lane: whoever asks gets a job when one can go.
    fn nobody_is_turned_away(&self, rows: &Rows, kind: JobKind) {
        let repo = |task: &TaskId| rows.tasks.get(task).and_then(|task| task.repo.as_ref()).map(|repo| repo.forge_id);
        let mut held: BTreeMap<Option<u64>, usize> = BTreeMap::new();
        for row in rows.jobs.iter().filter(|row| row.job.kind == kind && is_held(&row.job.state)) {
            *held.entry(repo(&row.task)).or_default() += 1;
        }
        let limit = match kind {
            JobKind::Run => usize::try_from(self.slots.per_repository).unwrap_or(usize::MAX),
            JobKind::Publish => 1,
        };
        for row in rows.jobs.iter().filter(|row| row.job.kind == kind && matches!(row.job.state, JobState::Queued)) {
            if held.get(&repo(&row.task)).copied().unwrap_or(0) < limit {
                self.nature.breach(format!("I4: {} can go, somebody asks, and nothing is given", row.job.id));
            }
        }
    }
}

/// The table of the design, by names. A redriven or woken job may be leased before anybody looks again.
fn is_allowed(from: &str, to: &str, verb: &str) -> bool {
    match (from, to) {
        _ if from == to => true,
        ("nothing", "queued") => true,
        // The publication of a Run that came in while it was being cancelled.
        ("nothing", "cancelled") => verb == "complete_run",
        ("queued", "leased") => matches!(verb, LEASE_RUN | LEASE_PUBLISH),
        ("leased" | "cancelling", "done") => matches!(verb, "complete_run" | "complete_publish"),
        ("leased", "queued") => matches!(verb, "release" | "sweep" | "complete_publish"),
        ("leased", "delayed") => matches!(verb, "fail" | "defer"),
        // A patch that is one of several waits to be chosen, and ceases to when another is, or when there is no choice any more.
        ("leased", "waiting") => matches!(verb, "defer" | "complete_run"),
        ("waiting", "done") => {
            matches!(verb, "choose_run" | "stop_run" | "complete_run" | "fail" | "defer" | "release" | "sweep")
        }
        ("leased", "dead") => matches!(verb, "fail" | "sweep"),
        ("leased", "cancelling") => matches!(verb, "cancel" | "stop_run"),
        ("cancelling", "cancelled") => {
            matches!(verb, "fail" | "defer" | "release" | "sweep" | "complete_run" | "complete_publish")
        }
        ("queued" | "delayed" | "waiting", "cancelled") => matches!(verb, "cancel" | "stop_run" | "complete_run"),
        ("delayed", "queued") => verb == "sweep",
        ("waiting", "queued") => matches!(verb, "post_message" | "open_task"),
        ("dead", "queued") => matches!(verb, "redrive" | "retry"),
        _ => false,
    }
}
