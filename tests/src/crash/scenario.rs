//! What no single point tells: a worker that sleeps too long, a dashboard that goes away, a person who cancels.

use std::ops::ControlFlow;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::backend::{Backend, Services};
use super::evidence::{self, Limits};
use super::plan::Scenario;
use super::{Calm, Lived, case, start, text};
use crate::world::{Layout, PATIENCE, SERVER, TestBox, WORKER};

/// Steps after which there is something to lose.
const AMID: usize = 5;

pub(super) async fn run(scenario: Scenario, calm: &Calm, backend: &Backend) -> anyhow::Result<Lived> {
    let services = &mut backend.services().await?;
    match scenario {
        Scenario::WorkerStopped => worker_stopped(calm, services).await,
        Scenario::WorkerSuspended => worker_suspended(calm, services).await,
        Scenario::DashboardKilled => dashboard_killed(calm, services).await,
        Scenario::DatabaseKilled => database_killed(calm, services).await,
        Scenario::Cancelled { after } => cancelled(after, services).await,
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
