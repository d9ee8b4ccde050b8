//! What no single point tells: a worker that sleeps too long, a dashboard that goes away, a person who cancels.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fettle_app::ports::transport::Transport as Bell;
use fettle_domain::lease::Timing;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::backend::{Backend, Services};
use super::evidence::{self, Harm, Limits};
use super::plan::Scenario;
use super::{Calm, Lived, TASK_LIMIT, case, start, start_with, text};
use crate::model::{Answer, Fault};
use crate::world::{Layout, PATIENCE, SERVER, TestBox, WORKER, repository};

/// Steps after which there is something to lose.
const AMID: usize = 5;
/// Model calls that a long job spends its time in.
const SLOW_TURNS: u32 = 10;
/// Beside a long job: far more often than a dashboard rings.
const RINGS_EVERY: Duration = Duration::from_millis(200);
/// Whether this machine still runs us.
const LOOKS_EVERY: Duration = Duration::from_millis(50);

pub(super) async fn run(scenario: Scenario, calm: &Calm, backend: &Backend) -> anyhow::Result<Lived> {
    if let Scenario::LongJob { leases } = scenario {
        return long_job(leases, calm, &backend.services_of_its_own().await?).await;
    }
    let services = &mut backend.services().await?;
    match scenario {
        Scenario::WorkerStopped => worker_stopped(calm, services).await,
        Scenario::WorkerSuspended => worker_suspended(calm, services).await,
        Scenario::DashboardKilled => dashboard_killed(calm, services).await,
        Scenario::DatabaseKilled => database_killed(calm, services).await,
        Scenario::Cancelled { after } => cancelled(after, services).await,
        Scenario::LongJob { .. } => unreachable!("it has services of its own"),
    }
}

async fn worker_stopped(calm: &Calm, services: &Services) -> anyhow::Result<Lived> {
    let (mut fettle, issue, task) = amid_the_work(services).await?;
    fettle.process(WORKER).terminate();
    fettle.ended(WORKER).await?;
    let state = fettle.api.task(&task).await?["run"]["job_state"].clone();
    fettle.restart(WORKER, None).await?;
    // The call that was under way is broken off.
    let limits = Limits { model_calls: calm.model_calls + 1, deaths: 0 };
    let mut lived = judged(fettle, issue, calm, limits, &format!("job {state}")).await?;
    if state != "queued" {
        lived.breaches.push(format!("the job of a stopped worker is {state}"));
    }
    Ok(lived)
}

async fn worker_suspended(calm: &Calm, services: &Services) -> anyhow::Result<Lived> {
    let (mut fettle, issue, task) = amid_the_work(services).await?;
    fettle.process(WORKER).suspend();
    seen(&fettle, &task, "run_lapsed", 1).await?;
    fettle.start_worker(None)?;
    seen(&fettle, &task, "run_leased", 2).await?;
    // Now both believe for a moment that the Run is theirs.
    fettle.process(WORKER).resume();
    // What was in flight may be paid again, and the sleeper may ask once before it hears that it is late.
    let limits = Limits { model_calls: calm.model_calls + 2, deaths: 1 };
    judged(fettle, issue, calm, limits, "leased to another").await
}

async fn dashboard_killed(calm: &Calm, services: &Services) -> anyhow::Result<Lived> {
    let (mut fettle, issue, task) = amid_the_work(services).await?;
    fettle.kill(SERVER);
    fettle.restart(SERVER, None).await?;
    let limits = Limits { model_calls: calm.model_calls, deaths: 0 };
    let fence = fettle.api.task(&task).await?["run"]["fence"].clone();
    judged(fettle, issue, calm, limits, &format!("kept at fence {fence}")).await
}

/// Nobody could renew meanwhile, and nobody takes the job from its holder for that.
async fn database_killed(calm: &Calm, services: &mut Services) -> anyhow::Result<Lived> {
    let (mut fettle, issue, task) = amid_the_work(services).await?;
    // Both sides say so, and go on.
    fettle.expect_error("");
    let before = fettle.api.task(&task).await?["run"]["fence"].clone();
    services.restart_database().await?;
    let (ended, _) = case::ended(&fettle).await?;
    let after = &ended["run"]["fence"];
    let limits = Limits { model_calls: calm.model_calls + 1, deaths: 1 };
    judged(fettle, issue, calm, limits, &format!("fence {before}, then {after}")).await
}

/// Nothing of it is the broker's: not who has the job, nor for how long. Somebody rings all the time, and an idle worker
/// asks for whatever could be handed out twice.
async fn long_job(leases: u32, calm: &Calm, services: &Services) -> anyhow::Result<Lived> {
    let lasts = Timing::for_tests().lease * leases;
    let turns = (0..SLOW_TURNS).map(|turn| {
        let look = Answer::call("bash", json!({ "command": format!("echo {turn}") }));
        look.with_fault(Fault::Stall(lasts / SLOW_TURNS))
    });
    let slow: Vec<Answer> = turns.chain(repository::fixing()).collect();
    let script = repository::triage().phase("reproduce", repository::reproduction()).phase("fix", slow).script();
    let mut fettle = start_with(script, Layout::Two, None, services).await?;
    let issue = fettle.issue();
    fettle.label(issue).await?;
    let task = fettle.api.task_opened(0, PATIENCE).await?;
    seen(&fettle, &task, "run_leased", 1).await?;
    fettle.start_worker(None)?;

    let bell = services.bell()?;
    let ringing = async {
        let mut every = tokio::time::interval(RINGS_EVERY);
        loop {
            every.tick().await;
            // Away in the middle.
            let _rung = bell.ring(1).await;
        }
    };
    let stood_still = Cell::new(Duration::ZERO);
    let watching = async {
        let mut every = tokio::time::interval(LOOKS_EVERY);
        let mut last = every.tick().await;
        loop {
            every.tick().await;
            let now = Instant::now();
            stood_still.set(stood_still.get().max(now - last));
            last = now;
        }
    };
    let limit = lasts + TASK_LIMIT;
    let living = async {
        let asked = || fettle.model.request_count();
        let half = async {
            let mut every = tokio::time::interval(RINGS_EVERY);
            while asked() < calm.model_calls / 2 + usize::try_from(SLOW_TURNS / 2)? {
                every.tick().await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(limit, half).await.context("the job does not come to its half")??;
        services.restart_broker().await?;
        case::ended_within(&fettle, limit).await
    };
    let (task, events) = tokio::select! {
        lived = living => lived?,
        () = ringing => unreachable!("it rings for ever"),
        () = watching => unreachable!("it watches for ever"),
    };
    let model_calls = calm.model_calls + usize::try_from(SLOW_TURNS)?;
    let limits = Limits { model_calls, deaths: 0 };
    let mut breaches = evidence::judge(&fettle, issue, &task, &events, &limits).await?;
    let mut recovered = vec![format!("kept for {} s", lasts.as_secs())];
    let leased = evidence::told(&events, "run_leased");
    match stood_still.get() {
        _ if leased == 1 => {}
        // Nothing here ran for so long, and so no heartbeat did.
        still if still > Timing::for_tests().margin => {
            recovered.push(format!("leased {leased} times on a machine that stood still for {} ms", still.as_millis()));
        }
        _ => breaches.push(format!("it was leased {leased} times, and nobody died")),
    }
    breaches.extend(still_hanging(&*bell).await);
    let mut lived = Lived {
        recovered,
        paid_twice: fettle.model.request_count().saturating_sub(model_calls),
        effects: evidence::effects(&fettle, issue),
        faulted: 1,
        at_work: 1,
        harm: Harm::of(&fettle, issue, &task),
        breaches,
        ..Lived::default()
    };
    if let Err(error) = case::finish(fettle).await {
        lived.breaches.push(format!("{error:#}"));
    }
    Ok(lived)
}

/// The idle worker takes every hint that hangs. What it does not take within [`PATIENCE`] is a breach.
async fn still_hanging(bell: &dyn Bell) -> Option<String> {
    let mut every = tokio::time::interval(RINGS_EVERY);
    let empty = async {
        loop {
            every.tick().await;
            if matches!(bell.depth().await, Ok(0)) {
                return;
            }
        }
    };
    let emptied = tokio::time::timeout(PATIENCE, empty).await;
    emptied.err().map(|_| "hints still hang at the broker".to_owned())
}

/// Whoever comes second has no effect: the Task is either cancelled or done, and nothing is published twice or half.
async fn cancelled(after: &str, services: &Services) -> anyhow::Result<Lived> {
    let fettle = start(Layout::Two, None, services).await?;
    let issue = fettle.issue();
    fettle.label(issue).await?;
    let task = fettle.api.task_opened(0, PATIENCE).await?;
    seen(&fettle, &task, after, 1).await?;
    let (status, answer) = fettle.api.post(&format!("/api/v1/tasks/{task}/cancel"), &json!({})).await?;
    const TOO_LATE: u16 = 409;
    ensure!(matches!(status, 200 | 202 | TOO_LATE), "cancelling was answered with {status}: {answer}");
    let (task, _) = case::ended(&fettle).await?;
    let state = text(&task, "state").to_owned();
    let mut breaches = evidence::published_at_most_once(&fettle, issue);
    breaches.extend(evidence::unaccounted(&fettle, &[issue]));
    let has_pull = !fettle.forge.pulls(&fettle.repo).is_empty();
    match (state.as_str(), has_pull) {
        ("done", true) | ("cancelled", _) => {}
        _ => breaches.push(format!("the Task is {state}, its pull request {}", task["pull_request"])),
    }
    let told = task["pull_request"]["number"].as_u64();
    let there = fettle.forge.pulls(&fettle.repo).first().map(|pull| pull.number);
    if told != there {
        breaches.push(format!("the Task shows pull request {told:?}, the forge has {there:?}"));
    }
    let effects = evidence::effects(&fettle, issue);
    if let Err(error) = case::finish(fettle).await {
        breaches.push(format!("{error:#}"));
    }
    Ok(Lived { recovered: vec![state], effects, breaches, ..Lived::default() })
}

/// A box, an issue and the id of its Task, when its Run has come some way.
async fn amid_the_work(services: &Services) -> anyhow::Result<(TestBox, u64, String)> {
    let fettle = start(Layout::Two, None, services).await?;
    let issue = fettle.issue();
    fettle.label(issue).await?;
    let task = fettle.api.task_opened(0, PATIENCE).await?;
    seen(&fettle, &task, "step", AMID).await?;
    Ok((fettle, issue, task))
}

async fn judged(fettle: TestBox, issue: u64, calm: &Calm, limits: Limits, recovered: &str) -> anyhow::Result<Lived> {
    let (task, events) = case::ended(&fettle).await?;
    let mut lived = Lived {
        recovered: vec![recovered.to_owned()],
        again_ms: None,
        paid_twice: fettle.model.request_count().saturating_sub(calm.model_calls),
        effects: evidence::effects(&fettle, issue),
        faulted: 1,
        at_work: 1,
        harm: Harm::of(&fettle, issue, &task),
        breaches: evidence::judge(&fettle, issue, &task, &events, &limits).await?,
    };
    if let Err(error) = case::finish(fettle).await {
        lived.breaches.push(format!("{error:#}"));
    }
    Ok(lived)
}

/// Waits until a Task has told so many events of a kind.
async fn seen(fettle: &TestBox, task: &str, kind: &str, count: usize) -> anyhow::Result<()> {
    let mut left = count;
    let each = |event: &Value| {
        left -= usize::from(event["what"]["type"] == kind);
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    fettle.api.follow_task(task, PATIENCE, each).await?.with_context(|| format!("the Task ended before {kind}"))
}
