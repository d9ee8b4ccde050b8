//! A Task that is hit by crashes: arm, trigger, wait for the death, start again, wait for the end.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::Value;

use super::backend::{Backend, Services};
use super::evidence::{self, Harm, Limits};
use super::plan::{Crash, Programs};
use super::{Calm, Lived, TASK_LIMIT, now, start, text};
use crate::world::{LABEL, Layout, MAINTAINER, PATIENCE, SERVER, TestBox, WORKER};

/// The events of a Task that nothing hits, and its model calls.
pub(super) async fn undisturbed() -> anyhow::Result<(Vec<Value>, usize)> {
    let fettle = start(Layout::Two, None, &Services::none()).await?;
    let issue = fettle.issue();
    fettle.label(issue).await?;
    let (task, events) = ended(&fettle).await?;
    let model_calls = fettle.model.request_count();
    let limits = Limits { model_calls, deaths: 0 };
    let breaches = evidence::judge(&fettle, issue, &task, &events, &limits).await?;
    finish(fettle).await?;
    anyhow::ensure!(breaches.is_empty(), "{}", breaches.join("; "));
    Ok((events, model_calls))
}

pub(super) async fn crashes(
    programs: Programs,
    crashes: &[Crash],
    calm: &Calm,
    backend: &Backend,
) -> anyhow::Result<Lived> {
    let victim = |crash: &Crash| match programs {
        Programs::Apart if crash.hits_worker() => WORKER,
        Programs::Apart | Programs::Together => SERVER,
    };
    let mut armings = [SERVER, WORKER].map(|program| {
        let mine: Vec<String> = crashes.iter().filter(|c| victim(c) == program).map(|c| c.arming()).collect();
        mine.into_iter()
    });
    let layout = match programs {
        Programs::Apart => Layout::Dashboard,
        Programs::Together => Layout::One,
    };
    let services = backend.services().await?;
    let mut fettle = start(layout, armings[SERVER].next().as_deref(), &services).await?;
    // A worker that will die starts when there is work: it would reach its first point without any.
    let mut worker_is_to_come = programs == Programs::Apart;
    if worker_is_to_come && armings[WORKER].len() == 0 {
        fettle.start_worker(None)?;
        worker_is_to_come = false;
    }

    let issue = fettle.issue();
    let delivery = Delivery::of_label(&fettle, issue);
    // Where the dashboard dies before it answers, that is the case.
    let answered = match crashes.iter().any(|crash| crash.hits_order()) {
        true => services.order(&fettle, issue).await,
        false => delivery.send(&fettle).await,
    };
    let mut lived = Lived::default();
    let mut died = Timestamp::MIN;
    for crash in crashes {
        let victim = victim(crash);
        if victim == WORKER && worker_is_to_come {
            fettle.api.task_opened(0, PATIENCE).await?;
            fettle.start_worker(armings[WORKER].next().as_deref())?;
            worker_is_to_come = false;
        }
        fettle.killed(victim).await.with_context(|| format!("{crash} was not reached"))?;
        died = now();
        fettle.restart(victim, armings[victim].next().as_deref()).await.context("while starting it again")?;
        lived.recovered.push(found(&fettle).await?);
        if crash.hits_delivery() {
            // May be hit as well; then the next one is sent after the next death.
            let _perhaps_answered = delivery.send(&fettle).await;
        }
    }
    if worker_is_to_come {
        fettle.start_worker(None)?;
    }
    if !crashes.iter().any(|crash| crash.hits_delivery() || !crash.hits_worker()) {
        answered?;
    }

    let (task, events) = ended(&fettle).await.with_context(|| format!("the logs:\n{}", fettle.tails()))?;
    lived.again_ms = went_on(&events, died);
    lived.paid_twice = fettle.model.request_count().saturating_sub(calm.model_calls);
    lived.effects = evidence::effects(&fettle, issue);
    (lived.faulted, lived.at_work, lived.harm) = (1, 1, Harm::of(&fettle, issue, &task));
    let paid_again = crashes.iter().filter(|crash| crash.pays_again()).count();
    let limits = Limits { model_calls: calm.model_calls + paid_again, deaths: crashes.len() };
    lived.breaches = evidence::judge(&fettle, issue, &task, &events, &limits).await?;
    match evidence::lost_to_haste(&events, crashes.len()) {
        0 => {}
        haste => lived.recovered.push(format!("{haste} leases lapsed by themselves")),
    }
    if let Err(error) = finish(fettle).await {
        lived.breaches.push(format!("{error:#}"));
    }
    Ok(lived)
}

/// A delivery that can be sent again.
struct Delivery {
    id: String,
    payload: Value,
}

impl Delivery {
    fn of_label(fettle: &TestBox, issue: u64) -> Self {
        fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
        let payload = fettle.forge.issue_labeled(&fettle.repo, issue, LABEL, MAINTAINER);
        Self { id: fettle.forge.delivery_id(), payload }
    }

    async fn send(&self, fettle: &TestBox) -> anyhow::Result<()> {
        let (url, secret) = (fettle.api.webhooks(), &fettle.webhook_secret);
        let answer = fettle.forge.redeliver(&url, "issues", &self.payload, secret, &self.id).await?;
        anyhow::ensure!(answer.status() == 202, "the delivery was answered with {}", answer.status());
        Ok(())
    }
}

/// What a restarted program knows of the Task.
async fn found(fettle: &TestBox) -> anyhow::Result<String> {
    let Some(first) = fettle.api.tasks().await?.pop() else { return Ok("no Task".to_owned()) };
    let task = fettle.api.task(text(&first, "id")).await?;
    let effects = task["effects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let reached = effects.iter().rfind(|effect| effect["state"] != "wanted");
    let reached = reached.map(|effect| format!(", {} {}", text(effect, "kind"), text(effect, "state")));
    let (state, steps) = (text(&task, "state"), &task["run"]["steps"]);
    Ok(format!("{state}, {steps} steps{}", reached.unwrap_or_default()))
}

/// Waits for the end of the one Task; itself and its events.
pub(super) async fn ended(fettle: &TestBox) -> anyhow::Result<(Value, Vec<Value>)> {
    ended_within(fettle, TASK_LIMIT).await
}

pub(super) async fn ended_within(fettle: &TestBox, limit: Duration) -> anyhow::Result<(Value, Vec<Value>)> {
    let id = fettle.api.task_opened(0, PATIENCE).await?;
    let mut events = Vec::new();
    let mut keep = |event: &Value| {
        events.push(event.clone());
        ControlFlow::<()>::Continue(())
    };
    fettle.api.follow_task(&id, limit, &mut keep).await?;
    Ok((fettle.api.task(&id).await?, events))
}

/// From the death until something happened to the Task that was not the death's own trace.
fn went_on(events: &[Value], died: Timestamp) -> Option<u64> {
    let trace = ["run_lapsed", "run_failed", "publish_failed"];
    let next = events.iter().find_map(|event| {
        let at: Timestamp = text(event, "at").parse().ok()?;
        (at > died && !trace.contains(&text(&event["what"], "type"))).then_some(at)
    })?;
    u64::try_from(next.duration_since(died).as_millis()).ok()
}

/// Stops the programs; blocks elsewhere, since the forge answers here meanwhile.
pub(super) async fn finish(fettle: TestBox) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || fettle.finish()).await.context("while stopping")?
}
