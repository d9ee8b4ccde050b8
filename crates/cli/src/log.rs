//! A Task's events as lines: on standard output, with a moving last line on a terminal that says how things stand.

use std::io::Write as _;

use anyhow::Result;
use jiff::tz::TimeZone;
use serde_json::Value;
use tokio::time::{Duration, Instant};

use crate::client::Client;
use crate::follow::{News, Until, follow};
use crate::progress::{StatusLine, clock, note, one_line};
use crate::tasks::understand;
use crate::wire::{Event, Task, What};

/// How often a silent Task is asked why it waits.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Prints the Task's events until `until`. With `json`, one event of the API per line and nothing else.
pub(crate) async fn print(client: &Client, task: &str, until: Until, json: bool) -> Result<()> {
    let mut watcher = Watcher::new(client, task, json);
    let followed = follow(client, task, until, async |news| watcher.tell(news).await).await;
    watcher.status.clear();
    followed
}

struct Watcher<'a> {
    client: &'a Client,
    task: &'a str,
    json: bool,
    zone: TimeZone,
    status: StatusLine,
    /// The last event and when it came.
    last: String,
    since: Instant,
    looked: Instant,
    /// What was said last about why the Task stands still.
    still: Option<String>,
}

impl<'a> Watcher<'a> {
    fn new(client: &'a Client, task: &'a str, json: bool) -> Self {
        let (status, now) = (StatusLine::new(), Instant::now());
        Self {
            client,
            task,
            json,
            zone: TimeZone::system(),
            status,
            last: String::new(),
            since: now,
            looked: now,
            still: None,
        }
    }

    async fn tell(&mut self, news: News<'_>) -> Result<()> {
        match news {
            News::Event(event) => self.event(event),
            News::Quiet if self.json => Ok(()),
            News::Quiet => {
                self.quiet().await;
                Ok(())
            }
        }
    }

    fn event(&mut self, value: &Value) -> Result<()> {
        self.status.clear();
        (self.since, self.looked, self.still) = (Instant::now(), Instant::now(), None);
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{value}")?;
        } else {
            let event: Event = understand(value.clone())?;
            let (area, text) = words(&event.what);
            let (area, text) = (one_line(&area), one_line(&text));
            let time = event.at.to_zoned(self.zone.clone()).strftime("%H:%M:%S");
            writeln!(out, "{time} {area:<10} {text}")?;
            self.last = format!("{area}: {text}");
        }
        // Whoever reads a pipe wants each event when it happens.
        out.flush()?;
        Ok(())
    }

    /// Nothing happened: says for how long, and from time to time asks why. An answer that does not come is no news.
    async fn quiet(&mut self) {
        if self.looked.elapsed() >= LOOK_AGAIN {
            self.looked = Instant::now();
            let answer = self.client.get(&["api", "v1", "tasks", self.task], &[]).await;
            if let Ok(task) = answer.and_then(understand::<Task>) {
                self.stands(&task);
            }
        }
        let waited = clock(self.since.elapsed());
        let shown = self.still.as_ref().unwrap_or(&self.last);
        self.status.show(&format!("{waited} {shown}"));
    }

    fn stands(&mut self, task: &Task) {
        let reason = task.summary.note.as_deref().map(|note| format!(": {note}")).unwrap_or_default();
        let still = match task.summary.state.as_str() {
            "queued" => Some(format!("queued: no worker has taken it yet{reason}")),
            "waiting" => Some(format!("waiting{reason}")),
            _ => None,
        };
        if still != self.still
            && !self.status.is_terminal()
            && let Some(still) = &still
        {
            note(&one_line(still));
        }
        self.still = still;
    }
}

/// Which part of the work an event belongs to, and what happened.
fn words(what: &What) -> (String, String) {
    let again = |again: bool| if again { "it will be tried again" } else { "it is given up" };
    let (area, text) = match what {
        What::TaskCreated { title, mode, trigger } => ("task", format!("{title} ({mode}, by {trigger})")),
        What::TaskJoined { by, message } => ("task", format!("{by}: {message}")),
        What::RunLeased { run, worker } => return (of_run(*run), format!("taken by {worker}")),
        What::Step { run, kind, phase, title, calls, generated_tokens } => {
            let so_far = if kind == "model_call" {
                format!(" ({calls} calls, {generated_tokens} tokens written so far)")
            } else {
                String::new()
            };
            let phase = phase.replace('_', "-");
            let area = if *run == 1 { phase } else { format!("{} {phase}", of_run(*run)) };
            return (area, format!("{title}{so_far}"));
        }
        What::RunFailed { run, why, again: more } => {
            return (of_run(*run), format!("failed: {why}; {}", again(*more)));
        }
        What::RunLapsed { run, again: more } => {
            return (of_run(*run), format!("its worker was lost; {}", again(*more)));
        }
        What::RunEnded { run, outcome, level } => {
            let proof = level.as_deref().map(|level| format!(", the proof is {level}")).unwrap_or_default();
            return (of_run(*run), format!("ended: {}{proof}", outcome.replace('_', " ")));
        }
        What::EffectIntended { effect, detail } => ("publish", format!("{}: {detail}", effect.replace('_', " "))),
        What::EffectSettled { effect, detail, url } => {
            ("publish", format!("{} done: {detail} {}", effect.replace('_', " "), url.as_deref().unwrap_or_default()))
        }
        What::PublishFailed { why, again: more } => ("publish", format!("failed: {why}; {}", again(*more))),
        What::CancelRequested { by } => ("task", format!("{by} asks to cancel it")),
        What::TaskCancelled => ("task", "cancelled".to_owned()),
        What::TaskDone { outcome, pull_request } => {
            let link = pull_request.map(|number| format!(", pull request #{number}")).unwrap_or_default();
            ("task", format!("done: {}{link}", outcome.replace('_', " ")))
        }
        What::Redriven { by } => ("task", format!("{by} starts it again")),
        What::RunsAdded { by, models } => {
            let models: Vec<_> = models.iter().map(|model| model.as_deref().unwrap_or("the first model")).collect();
            ("task", format!("{by} lets {} work on it, too", models.join(", ")))
        }
        What::RunChosen { by, run, draft: false } => ("task", format!("{by} chooses run {run}")),
        What::RunChosen { by, run, draft: true } => ("task", format!("{by} chooses run {run}, as a draft")),
        What::RunStopped { by, run } => ("task", format!("{by} stops run {run}")),
        What::Unknown => {
            ("task", "something that this version of fettle has no words for; see it with --json".to_owned())
        }
    };
    (area.to_owned(), text)
}

/// Most Tasks have one Run, whose number says nothing.
fn of_run(ordinal: u16) -> String {
    if ordinal == 1 { "run".to_owned() } else { format!("run {ordinal}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_told_in_words_and_unknown_ones_are_not_lost() {
        for (what, area, text) in [
            (
                json!({"type": "step", "seq": 1, "kind": "tool_call", "phase": "base_green", "title": "view a.rs", "calls": 2,
                    "generated_tokens": 9, "prompt_tokens": 1, "took_ms": 3}),
                "base-green",
                "view a.rs",
            ),
            (
                json!({"type": "step", "seq": 2, "kind": "model_call", "phase": "fix", "title": "model call", "calls": 2,
                    "generated_tokens": 9, "prompt_tokens": 1, "took_ms": 3}),
                "fix",
                "model call (2 calls, 9 tokens written so far)",
            ),
            (json!({"type": "run_lapsed", "again": true}), "run", "its worker was lost; it will be tried again"),
            (json!({"type": "run_lapsed", "run": 2, "again": false}), "run 2", "its worker was lost; it is given up"),
            (json!({"type": "run_chosen", "run": 2, "by": "ada"}), "task", "ada chooses run 2"),
            (
                json!({"type": "task_done", "outcome": "ready_pr", "pull_request": 4}),
                "task",
                "done: ready pr, pull request #4",
            ),
            (
                json!({"type": "candidate_chosen", "run": "x"}),
                "task",
                "something that this version of fettle has no words for; see it with --json",
            ),
        ] {
            let event = json!({"seq": 1, "task_id": "t", "task_seq": 1, "at": "2026-11-20T10:00:00Z", "correlation_id": "c", "what": what});
            assert_eq!(words(&understand::<Event>(event).unwrap().what), (area.to_owned(), text.to_owned()));
        }
    }
}
