//! Many Tasks at a time, and something dies in the middle of them, again and again: whatever was in flight must end as if
//! nothing had been.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::backend::{Backend, Services};
use super::dice::Dice;
use super::evidence::{self, Harm};
use super::plan::{Crowd, Fault};
use super::{Calm, Lived, case, start, text};
use crate::world::{Layout, PATIENCE, SERVER, TestBox, WORKER};

/// Tasks of a crowd: as many as are opened within a second or two, and there is always another one to begin.
const TASKS: usize = 40;
/// As many as a repository may have Tasks at work.
const WORKERS: usize = 4;
/// Faults, each after some more steps of the crowd's.
const STRIKES: usize = 4;
/// How a publication tells that it failed by that.
const LEDGER_AWAY: &str = "the ledger is not available";
/// Of a crowd without any fault, on a machine that others use as well.
const ENDS_WITHIN: Duration = Duration::from_secs(15 * 60);

pub(super) async fn run(crowd: &Crowd, calm: &Calm, backend: &Backend) -> anyhow::Result<Lived> {
    let mut services = backend.services_of_its_own().await?;
    let mut fettle = start(Layout::Dashboard, None, &services).await?;
    for _ in 0..WORKERS {
        fettle.start_worker(None)?;
    }
    // Of a worker that lost its lease and reads what it was to go on from; it has written nothing.
    fettle.expect_error("stale lease: ");
    if crowd.fault == Fault::DatabaseKilled {
        // All programs say so, and go on.
        fettle.expect_error("");
    }
    let issues: Vec<u64> = (0..TASKS).map(|_| fettle.issue()).collect();
    for issue in &issues {
        fettle.label(*issue).await?;
    }
    fettle.api.task_opened(TASKS - 1, PATIENCE).await?;

    let mut dice = Dice(crowd.seed);
    let mut hit = Hit::default();
    for steps in strikes(&mut dice, calm) {
        happened(&fettle, "step", steps).await?;
        hit.look(&fettle.api.tasks().await?);
        let victim = WORKER + dice.below(WORKERS).unwrap_or(0);
        strike(crowd.fault, victim, &mut fettle, &mut services).await?;
    }
    happened(&fettle, "task_done", TASKS).await?;
    let mut lived = judged(&fettle, &issues, calm, crowd.fault).await?;
    lived.faulted = hit.faulted.len();
    lived.at_work = hit.at_work.len();
    lived.recovered.insert(0, format!("{} in flight, {} of them at work", lived.faulted, lived.at_work));
    if let Err(error) = case::finish(fettle).await {
        lived.breaches.push(format!("{error:#}"));
    }
    Ok(lived)
}

/// The Tasks that had not ended at a fault, each once.
#[derive(Default)]
struct Hit {
    faulted: BTreeSet<String>,
    /// Leased by a worker or by the publisher.
    at_work: BTreeSet<String>,
}

impl Hit {
    fn look(&mut self, tasks: &[Value]) {
        for task in tasks.iter().filter(|task| !matches!(text(task, "state"), "done" | "cancelled")) {
            self.faulted.insert(text(task, "id").to_owned());
            if matches!(text(task, "state"), "running" | "publishing") {
                self.at_work.insert(text(task, "id").to_owned());
            }
        }
    }
}

/// After how many steps of the whole crowd something dies, in order; the last ones are left to recover in.
fn strikes(dice: &mut Dice, calm: &Calm) -> Vec<usize> {
    let all = TASKS * calm.all_steps;
    let mut strikes: Vec<usize> = (0..STRIKES).map(|_| 1 + dice.below(all * 4 / 5).unwrap_or(0)).collect();
    strikes.sort_unstable();
    strikes
}

async fn strike(fault: Fault, victim: usize, fettle: &mut TestBox, services: &mut Services) -> anyhow::Result<()> {
    match fault {
        Fault::WorkerKilled => {
            fettle.kill(victim);
            fettle.restart(victim, None).await
        }
        Fault::DashboardKilled => {
            fettle.kill(SERVER);
            fettle.restart(SERVER, None).await
        }
        Fault::DatabaseKilled => services.restart_database().await,
        Fault::BrokerKilled => services.restart_broker().await,
        Fault::BrokerWiped => services.wipe_broker().await,
    }
}

/// Waits until all Tasks together have told so many events of a kind.
async fn happened(fettle: &TestBox, kind: &str, count: usize) -> anyhow::Result<()> {
    let mut left = count;
    let each = |event: &Value| {
        left -= usize::from(event["what"]["type"] == kind);
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let waited = fettle.api.follow_all(ENDS_WITHIN, each).await;
    // What was told until then would be thousands of lines.
    waited.map_err(|error| {
        let (why, logs) = (error.root_cause(), fettle.tails());
        anyhow::anyhow!("{count} events `{kind}` did not come: {why}; the logs:\n{logs}")
    })
}

async fn judged(fettle: &TestBox, issues: &[u64], calm: &Calm, fault: Fault) -> anyhow::Result<Lived> {
    let mut lived = Lived::default();
    let mut excused = vec![evidence::PUBLISHER_GONE];
    // It spends a try of the publication, of which there are five.
    excused.extend((fault == Fault::DatabaseKilled).then_some(LEDGER_AWAY));
    let mut tries = 0;
    let tasks = fettle.api.tasks().await?;
    let by_issue: BTreeMap<u64, &Value> =
        tasks.iter().filter_map(|task| Some((task["issue"].as_u64()?, task))).collect();
    if tasks.len() != issues.len() {
        lived.breaches.push(format!("{} issues have {} Tasks", issues.len(), tasks.len()));
    }
    let mut leases = 0;
    for issue in issues {
        let id = by_issue.get(issue).map(|task| text(task, "id")).with_context(|| format!("#{issue} has no Task"))?;
        let task = fettle.api.task(id).await?;
        let mut events = Vec::new();
        let keep = |event: &Value| {
            events.push(event.clone());
            ControlFlow::<()>::Continue(())
        };
        fettle.api.follow_task(id, PATIENCE, keep).await?;
        let breaches = evidence::judge_task(fettle, *issue, &task, &events, &excused);
        let away = |event: &&Value| text(&event["what"], "why").starts_with(LEDGER_AWAY);
        tries += events.iter().filter(away).count();
        lived.breaches.extend(breaches.into_iter().map(|breach| format!("#{issue}: {breach}")));
        lived.harm += Harm::of(fettle, *issue, &task);
        leases += evidence::told(&events, "run_leased");
    }
    lived.breaches.extend(evidence::unaccounted(fettle, issues));
    if tries > 0 {
        lived.recovered.push(format!("{tries} tries spent while the ledger was away"));
    }
    // A lease that ended too early has one call at most that is not on record.
    let (calm_calls, calls) = (issues.len() * calm.model_calls, fettle.model.request_count());
    let allowed = calm_calls + leases.saturating_sub(issues.len());
    if calls > allowed {
        lived.breaches.push(format!("{calls} model calls were paid, {allowed} were allowed for {leases} leases"));
    }
    lived.paid_twice = calls.saturating_sub(calm_calls);
    lived.effects = format!("{} Tasks, {leases} leases, {calls} calls", tasks.len());
    let strays = fettle.strays();
    if !strays.is_empty() {
        lived.breaches.push(format!("processes stayed: {strays:?}"));
    }
    Ok(lived)
}
