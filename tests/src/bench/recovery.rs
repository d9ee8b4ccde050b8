//! How soon a Run goes on after its worker is gone, and which model calls are paid again: the real programs, with the leases
//! of production, so half a minute passes before a killed worker is missed. Many wait side by side.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fettle_app::ports::clock::Clock as _;
use fettle_runtime::system::SystemClock;
use fettle_test_kit::measure::process::load_average;
use fettle_test_kit::measure::report::{Figure, Report, Target};
use jiff::Timestamp;
use serde_json::Value;

use crate::model::{Answer, Fault, Script};
use crate::world::{LABEL, Layout, Leases, MAINTAINER, Setup, TestBox, WORKER, repository};

/// Workers that are killed, and as many that wait.
const KILLED: usize = 12;
/// Of those that took over, the ones that are asked to end.
const STOPPED: usize = 6;
/// A model takes its time, so that a worker is mostly hit in the middle of a call.
const ANSWERS_AFTER: Duration = Duration::from_secs(5);
/// Between one death and the next: no multiple of a heartbeat, so that each falls at another time after the last renewal.
const APART: Duration = Duration::from_millis(1_300);
/// Until a Task has gone so far, or to its end: minutes on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(10 * 60);

const AFTER_KILL: &str = "leased again after kill -9, s";
const AFTER_STOP: &str = "leased again after SIGTERM, s";
const PAID_AGAIN: &str = "model calls paid again after kill -9";

/// Errors when a Task is lost, or done twice.
pub async fn recovery() -> anyhow::Result<Report> {
    let load = load_average()?;
    let setup = Setup {
        layout: Layout::Dashboard,
        agent: "per_repository = 64",
        leases: Leases::Real,
        ..Setup::with(slowly(repository::solving().script()))
    };
    let mut fettle = TestBox::start(setup).await?.checked_by_its_owner();
    start_workers(&mut fettle, KILLED)?;
    let killed = ask(&fettle, KILLED, 0).await?;
    let held = holders(&fettle, &killed).await?;
    // They find nothing to do until somebody dies.
    start_workers(&mut fettle, KILLED)?;
    let mut deaths = BTreeMap::new();
    let mut every = tokio::time::interval(APART);
    for (task, worker) in &held {
        every.tick().await;
        fettle.kill(*worker);
        deaths.insert(task.clone(), now());
    }
    let after_kill = leased_again(&fettle, &deaths).await?;
    for (_, worker) in &held {
        fettle.restart(*worker, None).await?;
    }
    let mut paid_again = Vec::new();
    for (issue, task) in &killed {
        paid_again.push(paid_again_for(&fettle, *issue, task).await?);
    }

    let stopped = ask(&fettle, STOPPED, KILLED).await?;
    let held = holders(&fettle, &stopped).await?;
    let mut deaths = BTreeMap::new();
    for (task, worker) in &held {
        every.tick().await;
        deaths.insert(task.clone(), now());
        fettle.process(*worker).terminate();
    }
    let after_stop = leased_again(&fettle, &deaths).await?;
    for (_, task) in &stopped {
        ended(&fettle, task).await?;
    }
    let pulls = fettle.forge.pulls(&fettle.repo).len();
    ensure!(pulls == KILLED + STOPPED, "{} Tasks have {pulls} pull requests", KILLED + STOPPED);
    tokio::task::spawn_blocking(move || fettle.finish()).await.context("while stopping")??;
    report(load, after_kill, after_stop, paid_again)
}

fn report(load: f64, after_kill: Vec<f64>, after_stop: Vec<f64>, paid_again: Vec<f64>) -> anyhow::Result<Report> {
    let worst = |seen: &[f64]| vec![seen.iter().copied().fold(0.0, f64::max)];
    let figures = vec![
        Figure::of("leased again after kill -9, p50", "s", Some(Target::AtMost(32.0)), after_kill.clone()),
        Figure::of("leased again after kill -9, p99", "s", Some(Target::AtMost(35.0)), worst(&after_kill)),
        Figure::of("leased again after SIGTERM, longest", "s", Some(Target::AtMost(1.0)), worst(&after_stop)),
        Figure::of("model calls paid again after kill -9, median", "", Some(Target::AtMost(1.0)), paid_again.clone()),
    ];
    let note = format!(
        "leased again: {KILLED} workers killed and {STOPPED} asked to end in the middle of their Runs, with leases of \
         production, until another worker has the Run; the p99 is the longest, and a killed worker is missed 30 s after its \
         last renewal"
    );
    let samples = [(AFTER_KILL, after_kill), (AFTER_STOP, after_stop), (PAID_AGAIN, paid_again)];
    let samples = samples.map(|(name, seen)| (name.to_owned(), vec![seen]));
    Ok(Report::new("recovery", load, figures, vec![note])?.with_samples(samples.into()))
}

fn now() -> Timestamp {
    SystemClock.now()
}

/// The same answers, each after a while.
fn slowly(script: Script) -> Script {
    Script::from_fn(move |conversation| {
        let answer: Answer = script.answer(conversation);
        answer.with_fault(Fault::Stall(ANSWERS_AFTER))
    })
}

fn start_workers(fettle: &mut TestBox, count: usize) -> anyhow::Result<()> {
    (0..count).try_for_each(|_| fettle.start_worker(None))
}

/// A title that only this issue has.
fn title(nth: usize) -> String {
    format!("{} (report {nth:04})", repository::TITLE)
}

/// Labels so many new issues; their places and the ids of their Tasks. `before` have been asked for already.
async fn ask(fettle: &TestBox, count: usize, before: usize) -> anyhow::Result<Vec<(usize, String)>> {
    let mut asked = Vec::new();
    for nth in before..before + count {
        let issue = fettle.forge.create_issue(&fettle.repo, "a-user", &title(nth), repository::BODY);
        fettle.forge.label(&fettle.repo, issue, LABEL, MAINTAINER);
        let payload = fettle.forge.issue_labeled(&fettle.repo, issue, LABEL, MAINTAINER);
        fettle.deliver("issues", &payload).await?;
        asked.push((nth, fettle.api.task_opened(nth, LIMIT).await?));
    }
    Ok(asked)
}

/// By Task, the worker whose Run has begun: its model has been asked.
async fn holders(fettle: &TestBox, tasks: &[(usize, String)]) -> anyhow::Result<Vec<(String, usize)>> {
    let mut held = Vec::new();
    for (_, task) in tasks {
        let mut holder = String::new();
        let each = |event: &Value| {
            let what = &event["what"];
            if what["type"] == "run_leased" {
                holder = what["worker"].as_str().unwrap_or_default().to_owned();
            }
            if what["type"] == "step" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        fettle.api.follow_task(task, LIMIT, each).await?.context("a Task ended without a step")?;
        let of_holder = |nth: &usize| holder.ends_with(&format!("/{}", fettle.process(*nth).id()));
        let worker = (WORKER..fettle.process_count()).find(of_holder);
        held.push((task.clone(), worker.with_context(|| format!("`{holder}` is none of the workers"))?));
    }
    Ok(held)
}

/// In seconds from each Task's death until another worker had its Run.
async fn leased_again(fettle: &TestBox, deaths: &BTreeMap<String, Timestamp>) -> anyhow::Result<Vec<f64>> {
    let mut seen = Vec::new();
    for (task, died) in deaths {
        let each = |event: &Value| match event["at"].as_str().and_then(|at| at.parse::<Timestamp>().ok()) {
            Some(at) if at > *died && event["what"]["type"] == "run_leased" => ControlFlow::Break(at),
            _ => ControlFlow::Continue(()),
        };
        let again = fettle.api.follow_task(task, LIMIT, each).await?;
        let again = again.with_context(|| format!("{task} ended before its worker died"))?;
        seen.push(again.duration_since(*died).as_secs_f64());
    }
    Ok(seen)
}

/// After its end, its events.
async fn ended(fettle: &TestBox, task: &str) -> anyhow::Result<Vec<Value>> {
    let mut events = Vec::new();
    let keep = |event: &Value| {
        events.push(event.clone());
        ControlFlow::<()>::Continue(())
    };
    fettle.api.follow_task(task, LIMIT, keep).await?;
    let end = fettle.api.task(task).await?;
    ensure!(end["outcome"] == "ready_pr", "{task} ended as {}: {}", end["outcome"], end["note"]);
    Ok(events)
}

/// Calls that the model was asked and that are not on record.
async fn paid_again_for(fettle: &TestBox, nth: usize, task: &str) -> anyhow::Result<f64> {
    let events = ended(fettle, task).await?;
    let recorded = events.iter().filter(|event| event["what"]["kind"] == "model_call").count();
    let about = title(nth);
    let asked = fettle.model.requests();
    let paid = asked.iter().filter(|request| request.body.to_string().contains(&about)).count();
    ensure!(paid >= recorded, "{task} has {recorded} calls on record, and {paid} were asked");
    Ok((paid - recorded) as f64)
}
