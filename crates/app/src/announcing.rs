//! Tells other programs what happened to Tasks. The ledger's own events are the outbox, and one number in the ledger says how
//! far it was told: no event is skipped, and after a crash the last ones are told again, under the same ids.

use std::sync::Arc;
use std::time::Duration;

use fettle_domain::effect::EffectKind;
use fettle_domain::event::{Event, EventBody};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::crash::{self, Point};
use crate::ports::chain;
use crate::ports::ledger::Ledger;
use crate::ports::transport::{Announcement, Announcer};
use crate::reconciling::{Reconciler, Reconcilers};
use crate::vitals::Pulse;

/// Of the body that other programs read; a change that they would not understand raises it.
const VERSION: u8 = 1;
/// Events of one confirmed message set.
const BATCH: u16 = 200;
/// A look without a reason: another dashboard may have written.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A look reads one page and sends it, each with a timeout of seconds.
pub const ANNOUNCED_WITHIN: Duration = Duration::from_secs(3 * 60);

/// Announces until `shutdown`.
pub fn announce(
    ledger: Arc<dyn Ledger>,
    announcer: Arc<dyn Announcer>,
    reconcilers: &Arc<Reconcilers>,
    pulse: Pulse,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let announcements = reconcilers.register("announcements", LOOK_EVERY);
    async move { run(&*ledger, &*announcer, &announcements, &pulse, &shutdown).await }
}

async fn run(
    ledger: &dyn Ledger,
    announcer: &dyn Announcer,
    announcements: &Reconciler,
    pulse: &Pulse,
    shutdown: &CancellationToken,
) {
    let mut newest = ledger.newest_event();
    let mut pause = PAUSE;
    while !shutdown.is_cancelled() {
        newest.mark_unchanged();
        pulse.beat();
        match announcements.run(page(ledger, announcer)).await {
            Ok(told) => {
                pause = PAUSE;
                if told == usize::from(BATCH) {
                    continue;
                }
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    _ = newest.changed() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
            Err(why) => {
                warn!("other programs are not told of events for now, and will be later: {why}");
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// How many events were read.
async fn page(ledger: &dyn Ledger, announcer: &dyn Announcer) -> Result<usize, String> {
    let from = ledger.announced().await.map_err(|error| error.to_string())?;
    let events = ledger.events(None, from, BATCH).await.map_err(|error| error.to_string())?;
    let Some(last) = events.last() else { return Ok(0) };
    let told: Vec<Announcement> = events.iter().filter_map(announcement).collect();
    crash::before(Point::Announce);
    if !told.is_empty() {
        announcer.announce(&told).await.map_err(|error| chain(&error))?;
    }
    crash::after(Point::Announce);
    // Another dashboard that told the same page has told it twice, which its readers must bear anyway.
    ledger.set_announced(from, last.seq).await.map_err(|error| error.to_string())?;
    Ok(events.len())
}

/// What other programs are told of an event. `None`: it is nobody else's business.
fn announcement(event: &Event) -> Option<Announcement> {
    let (kind, mut body) = match &event.body {
        EventBody::TaskCreated { title, mode, trigger } => {
            ("TaskCreated", json!({ "title": title, "mode": mode, "trigger": trigger }))
        }
        EventBody::TaskDone { outcome, pull_request } => {
            ("TaskCompleted", json!({ "outcome": outcome, "pull_request": pull_request }))
        }
        EventBody::TaskCancelled => ("TaskCompleted", json!({ "outcome": "cancelled", "pull_request": null })),
        EventBody::RunEnded { ordinal, outcome, level } => {
            ("RunCompleted", json!({ "run": ordinal, "outcome": outcome, "proof": level }))
        }
        EventBody::RunFailed { ordinal, why, again: false } => {
            ("RunCompleted", json!({ "run": ordinal, "outcome": "failed", "proof": null, "reason": why }))
        }
        EventBody::RunLapsed { ordinal, again: false } => (
            "RunCompleted",
            json!({ "run": ordinal, "outcome": "failed", "proof": null, "reason": "its workers died" }),
        ),
        EventBody::EffectSettled { effect, url: Some(url), .. } if effect == EffectKind::PullRequest.name() => {
            ("PullRequestCreated", json!({ "url": url }))
        }
        EventBody::TaskJoined { .. }
        | EventBody::RunLeased { .. }
        | EventBody::Step { .. }
        | EventBody::RunFailed { again: true, .. }
        | EventBody::RunLapsed { again: true, .. }
        | EventBody::EffectIntended { .. }
        | EventBody::EffectSettled { .. }
        | EventBody::PublishFailed { .. }
        | EventBody::CancelRequested { .. }
        | EventBody::Redriven { .. }
        | EventBody::RunsAdded { .. }
        | EventBody::RunChosen { .. }
        | EventBody::RunStopped { .. } => return None,
    };
    let told = [
        ("v", json!(VERSION)),
        ("kind", json!(kind)),
        ("id", json!(id(event))),
        ("task_id", json!(event.task.to_string())),
        ("task_seq", json!(event.task_seq)),
        ("correlation_id", json!(event.correlation.to_string())),
        ("at", json!(event.at.to_string())),
    ];
    if let Value::Object(fields) = &mut body {
        fields.extend(told.map(|(key, value)| (key.to_owned(), value)));
    }
    Some(Announcement {
        kind: kind.to_owned(),
        id: id(event),
        correlation: event.correlation.to_string(),
        body: body.to_string(),
    })
}

/// The same whenever and by whomever it is told.
fn id(event: &Event) -> String {
    format!("{}.{}", event.task, event.task_seq)
}
