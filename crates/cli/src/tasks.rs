//! `fettle tasks` and `fettle task …`: what a running dashboard knows of its Tasks.

use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use fettle_app::ports::clock::Clock as _;
use fettle_domain::id::TaskId;
use fettle_domain::outgoing::visible;
use fettle_runtime::environment::Environment;
use fettle_runtime::system;
use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::Common;
use crate::client::{self, Client};
use crate::follow::Until;
use crate::log;
use crate::progress::{columns, one_line};
use crate::wire::{Page, Proof, Run, Runs, Summary, Task};

/// A title is cut to no less, however narrow the terminal.
const MIN_TITLE_CHARS: usize = 16;

#[derive(clap::Args)]
pub(crate) struct ListFlags {
    #[command(flatten)]
    client: client::Dashboard,
    /// Only Tasks in this state.
    #[arg(long, value_parser = ["queued", "running", "waiting", "publishing", "done", "cancelled"])]
    state: Option<String>,
    /// Tasks of a page.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=200))]
    limit: u16,
    /// Goes on after a page: the `next` that it ended with.
    #[arg(long, value_name = "NEXT")]
    after: Option<String>,
    /// Print the page as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct TaskFlags {
    #[command(flatten)]
    client: client::Dashboard,
    #[command(subcommand)]
    command: TaskCommand,
    /// Print JSON: one object, or with `log` one event per line.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum TaskCommand {
    /// Show one Task: its state, Run, proof and what was published.
    Show {
        #[arg(value_name = "TASK")]
        id: TaskId,
    },
    /// Cancel a Task, at once or at its worker's next sign of life.
    Cancel {
        #[arg(value_name = "TASK")]
        id: TaskId,
    },
    /// Go on with a Task that was given up, or try an ended one anew.
    Retry {
        #[arg(value_name = "TASK")]
        id: TaskId,
    },
    /// Show a Task's Runs side by side: model, outcome, proof, size and cost.
    Runs {
        #[arg(value_name = "TASK")]
        id: TaskId,
    },
    /// Let further models work on a Task, each in a Run of its own.
    AddRuns {
        #[arg(value_name = "TASK")]
        id: TaskId,
        /// One for each Run; without any, the first configured one.
        #[arg(long = "model", value_name = "NAME")]
        models: Vec<String>,
        /// What these Runs are told and the others are not.
        #[arg(long, value_name = "TEXT")]
        instruction: Option<String>,
    },
    /// Make the pull request from one of a Task's Runs, by its number in `fettle task runs`.
    Choose {
        #[arg(value_name = "TASK")]
        id: TaskId,
        #[arg(value_name = "RUN", value_parser = clap::value_parser!(u16).range(1..))]
        run: u16,
        /// As a draft, whatever its proof says.
        #[arg(long)]
        draft: bool,
    },
    /// Stop one of a Task's Runs, by its number in `fettle task runs`; the others go on.
    StopRun {
        #[arg(value_name = "TASK")]
        id: TaskId,
        #[arg(value_name = "RUN", value_parser = clap::value_parser!(u16).range(1..))]
        run: u16,
    },
    /// Say something to a Task: each of its Runs is told before its next model call.
    Say {
        #[arg(value_name = "TASK")]
        id: TaskId,
        text: String,
    },
    /// Print what happened to a Task.
    Log {
        #[arg(value_name = "TASK")]
        id: TaskId,
        /// Go on until the Task has ended.
        #[arg(long, short)]
        follow: bool,
    },
}

pub(crate) async fn list(common: &Common, flags: &ListFlags, environment: &Environment) -> Result<ExitCode> {
    let client = Client::new(common, &flags.client, environment)?;
    let limit = flags.limit.to_string();
    let mut query = vec![("limit", limit.as_str())];
    query.extend(flags.state.as_deref().map(|state| ("state", state)));
    query.extend(flags.after.as_deref().map(|after| ("after", after)));
    let answer = client.get(&["api", "v1", "tasks"], &query).await?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{answer}")?;
    } else {
        let page: Page = understand(answer)?;
        if out.is_terminal() {
            table(&mut out, &page, system::SystemClock.now(), usize::from(columns(std::io::stdout())))?;
        } else {
            plain(&mut out, &page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn one(common: &Common, flags: &TaskFlags, environment: &Environment) -> Result<ExitCode> {
    let client = Client::new(common, &flags.client, environment)?;
    let address = |id: &TaskId| ["api".to_owned(), "v1".to_owned(), "tasks".to_owned(), id.to_string()];
    let (answer, sentence) = match &flags.command {
        TaskCommand::Log { id, follow } => {
            let until = if *follow { Until::End } else { Until::Now };
            log::print(&client, &id.to_string(), until, flags.json).await?;
            return Ok(ExitCode::SUCCESS);
        }
        TaskCommand::Runs { id } => {
            let answer = client.get(&["api", "v1", "tasks", &id.to_string(), "runs"], &[]).await?;
            let mut out = std::io::stdout().lock();
            match flags.json {
                true => writeln!(out, "{answer}")?,
                false => runs(&mut out, &understand(answer)?)?,
            }
            return Ok(ExitCode::SUCCESS);
        }
        TaskCommand::AddRuns { id, models, instruction } => {
            let run = |model: Option<&String>| json!({ "model": model, "instruction": instruction });
            let wanted = if models.is_empty() { vec![run(None)] } else { models.iter().map(Some).map(run).collect() };
            let id = id.to_string();
            let body = json!({ "runs": wanted });
            let (_, answer) = client.post(&["api", "v1", "tasks", &id, "runs"], Some(&body), None).await?;
            let count = wanted.len();
            (answer, Some(format!("{count} more at {id}; compare them with `fettle task runs {id}`")))
        }
        TaskCommand::StopRun { id, run } => {
            let id = id.to_string();
            let stopped = numbered(&client, &id, *run).await?;
            let way = ["api", "v1", "tasks", &id, "runs", &stopped, "stop"];
            let (status, answer) = client.post(&way, None, None).await?;
            let sentence = match status {
                StatusCode::ACCEPTED => format!("stopping run {run}: its worker stops at its next sign of life"),
                _ => format!("stopped run {run}"),
            };
            (answer, Some(sentence))
        }
        TaskCommand::Choose { id, run, draft } => {
            let id = id.to_string();
            let body = json!({ "run_id": numbered(&client, &id, *run).await?, "draft": draft });
            let (_, answer) = client.post(&["api", "v1", "tasks", &id, "prs"], Some(&body), None).await?;
            (answer, Some(format!("run {run} is published; follow it with `fettle task log -f {id}`")))
        }
        TaskCommand::Say { id, text } => {
            let id = id.to_string();
            let body = json!({ "text": text });
            let (_, answer) = client.post(&["api", "v1", "tasks", &id, "messages"], Some(&body), None).await?;
            (answer, Some(format!("{id} will be told")))
        }
        TaskCommand::Show { id } => (client.get(&address(id).each_ref().map(String::as_str), &[]).await?, None),
        TaskCommand::Cancel { id } => {
            let id = id.to_string();
            let (status, answer) = client.post(&["api", "v1", "tasks", &id, "cancel"], None, None).await?;
            let sentence = match status {
                StatusCode::ACCEPTED => format!("cancelling {id}: its worker stops at its next sign of life"),
                _ => format!("cancelled {id}"),
            };
            (answer, Some(sentence))
        }
        TaskCommand::Retry { id } => {
            let id = id.to_string();
            let (status, answer) = client.post(&["api", "v1", "tasks", &id, "retry"], None, None).await?;
            let new = answer.get("id").and_then(Value::as_str).unwrap_or_default();
            let sentence = match status {
                StatusCode::CREATED => format!("tried anew as {new}; follow it with `fettle task log -f {new}`"),
                _ => format!("{id} goes on; follow it with `fettle task log -f {id}`"),
            };
            (answer, Some(sentence))
        }
    };
    let mut out = std::io::stdout().lock();
    match sentence {
        _ if flags.json => writeln!(out, "{answer}")?,
        Some(sentence) => writeln!(out, "{}", one_line(&sentence))?,
        None => show(&mut out, &understand(answer)?, system::SystemClock.now())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The id of a Task's Run of this number.
async fn numbered(client: &Client, task: &str, run: u16) -> Result<String> {
    let all: Runs = understand(client.get(&["api", "v1", "tasks", task, "runs"], &[]).await?)?;
    let count = all.items.len();
    let found = all.items.into_iter().find(|item| item.ordinal == run);
    Ok(found.with_context(|| format!("{task} has {count} Runs and no number {run}"))?.id)
}

pub(crate) fn understand<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer).context("the dashboard's answer is not understood; is it of another version?")
}

/// Columns for people.
fn table(out: &mut impl Write, page: &Page, now: Timestamp, width: usize) -> std::io::Result<()> {
    if page.items.is_empty() {
        return writeln!(out, "no Tasks here; `fettle submit --repo OWNER/NAME --issue N` makes one");
    }
    let head = ["TASK", "STATE", "ISSUE", "TITLE", "AGE", "OUTCOME"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(page.items.iter().map(|task| {
        [task.id.clone(), task.state.clone(), place(task), task.title.clone(), age(now, task.created_at), outcome(task)]
            .map(|cell| one_line(&cell))
    }));
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut widths = [0, 1, 2, 3, 4, 5].map(widest);
    let others: usize = widths.iter().sum::<usize>() - widths[3] + 2 * (widths.len() - 1);
    widths[3] = widths[3].min(width.saturating_sub(others).max(MIN_TITLE_CHARS));
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{:<width$}", cut(cell, width))).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    if let Some(next) = &page.next {
        writeln!(out, "\nmore: fettle tasks --after {}", one_line(next))?;
    }
    Ok(())
}

/// Lines for programs: the table's columns between tabs, nothing cut, the time instead of the age.
fn plain(out: &mut impl Write, page: &Page) -> std::io::Result<()> {
    for task in &page.items {
        let cells = [
            task.id.clone(),
            task.state.clone(),
            place(task),
            task.title.clone(),
            format!("{:.0}", task.created_at),
            outcome(task),
        ];
        writeln!(out, "{}", cells.map(|cell| one_line(&cell)).join("\t"))?;
    }
    Ok(())
}

/// A Task's Runs as columns; the leading one is marked.
fn runs(out: &mut impl Write, runs: &Runs) -> std::io::Result<()> {
    let head = ["RUN", "MODEL", "STATE", "OUTCOME", "PROOF", "CHANGE", "CALLS", "TOKENS", "SECONDS"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(runs.items.iter().map(|run| {
        let mark = if run.id == runs.leading { "*" } else { "" };
        let result = run.result.as_ref();
        let change = result.and_then(|result| result.change.as_ref());
        let dash = || "-".to_owned();
        [
            format!("{}{mark}", run.ordinal),
            model(run),
            run.job_state.clone(),
            result.map_or_else(dash, |result| result.outcome.replace('_', " ")),
            result.and_then(|result| result.proof.as_ref()).map_or_else(dash, |proof| proof.level.clone()),
            change.map_or_else(dash, |change| format!("+{} -{}", change.lines_added, change.lines_removed)),
            run.spent.calls.to_string(),
            run.spent.generated_tokens.to_string(),
            run.spent.wall_s.to_string(),
        ]
        .map(|cell| one_line(&cell))
    }));
    for row in &rows {
        let widest = |nth: usize| rows.iter().map(|row| row[nth].chars().count()).max().unwrap_or(0);
        let cells: Vec<String> = row.iter().enumerate().map(|(nth, cell)| format!("{cell:<0$}", widest(nth))).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// What worked on it, else what was asked to.
fn model(run: &Run) -> String {
    let used = run.result.as_ref().map(|result| &result.model).filter(|model| !model.is_empty());
    used.or(run.model.as_ref()).cloned().unwrap_or_else(|| "-".to_owned())
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// `owner/name#7`, `owner/name` for a Task made from text, `-` for a probe.
fn place(task: &Summary) -> String {
    match (&task.repository, task.issue) {
        (Some(repository), Some(issue)) => format!("{repository}#{issue}"),
        (Some(repository), None) => repository.clone(),
        _ => "-".to_owned(),
    }
}

fn outcome(task: &Summary) -> String {
    match (&task.pull_request, &task.outcome) {
        (Some(pull_request), _) => {
            format!("#{}{}", pull_request.number, if pull_request.draft { " draft" } else { "" })
        }
        (None, Some(outcome)) => outcome.replace('_', " "),
        (None, None) => "-".to_owned(),
    }
}

/// The largest whole unit: `3d`, `2h`, `5m`, `12s`.
fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.duration_since(then).max(SignedDuration::ZERO).as_secs();
    let (count, unit) = match seconds {
        86_400.. => (seconds / 86_400, "d"),
        3_600.. => (seconds / 3_600, "h"),
        60.. => (seconds / 60, "m"),
        _ => (seconds, "s"),
    };
    format!("{count}{unit}")
}

fn show(out: &mut impl Write, task: &Task, now: Timestamp) -> std::io::Result<()> {
    let Task { summary, run, effects } = task;
    let mut line = |name: &str, text: String| writeln!(out, "  {name:<9} {}", one_line(&text));
    line("task", summary.id.clone())?;
    line("title", summary.title.clone())?;
    let ended = summary.outcome.as_ref().map(|outcome| format!(" ({})", outcome.replace('_', " ")));
    line("state", format!("{}{}", summary.state, ended.unwrap_or_default()))?;
    if let Some(note) = &summary.note {
        line("note", note.clone())?;
    }
    if summary.repository.is_some() {
        line("issue", format!("{} {}", place(summary), summary.issue_url.as_deref().unwrap_or_default()))?;
    }
    let model = run.result.as_ref().map(|result| &result.model).or(summary.model.as_ref());
    let model = model.filter(|model| !model.is_empty()).map_or_else(String::new, |model| format!(", model {model}"));
    line("mode", format!("{}{model}", summary.mode))?;
    if !summary.needs.is_empty() {
        line("needs", format!("a worker with {}", summary.needs.join(", ")))?;
    }
    let created = summary.created_at;
    line("asked", format!("by {} ({}), {} ago, {created:.0}", summary.actor, summary.trigger, age(now, created)))?;
    let setbacks = [(run.attempts, "failed tries"), (run.crashes, "lost workers")];
    let setbacks: String =
        setbacks.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}")).collect();
    line("run", format!("{}: {}, {} steps{setbacks}", run.id, run.job_state, run.steps))?;
    let spent = &run.spent;
    line(
        "spent",
        format!(
            "{} model calls, {} tokens read, {} written, {} s",
            spent.calls, spent.prompt_tokens, spent.generated_tokens, spent.wall_s
        ),
    )?;
    if let Some(pull_request) = &summary.pull_request {
        line(
            "pull",
            format!(
                "#{}{} {}",
                pull_request.number,
                if pull_request.draft { " (draft)" } else { "" },
                pull_request.url
            ),
        )?;
    }
    for effect in effects {
        line(
            "publish",
            format!(
                "{} {} {}",
                effect.kind.replace('_', " "),
                effect.state,
                effect.detail.as_deref().unwrap_or_default()
            ),
        )?;
    }
    let Some(result) = &run.result else { return Ok(()) };
    if let Some(base) = &result.base {
        line("base", base.clone())?;
    }
    for note in result.notes.iter().filter(|note| !note.trim().is_empty()) {
        line("reason", note.clone())?;
    }
    if let Some(proof) = &result.proof {
        show_proof(&mut line, proof)?;
    }
    if let Some(change) = &result.change {
        line(
            "change",
            format!("{} files, +{} -{}: {}", change.files, change.lines_added, change.lines_removed, change.title),
        )?;
        writeln!(out, "\n{}", visible(change.summary.trim()))?;
    }
    Ok(())
}

fn show_proof(line: &mut impl FnMut(&str, String) -> std::io::Result<()>, proof: &Proof) -> std::io::Result<()> {
    line("proof", proof.level.clone())?;
    for reason in &proof.reasons {
        line("", format!("- {}", reason.text))?;
    }
    for test in &proof.new_tests {
        line("new test", test.clone())?;
    }
    if let Some(suite) = &proof.suite {
        let (before, after) = (&suite.base, &suite.head);
        line(
            "suite",
            format!(
                "{} ok, {} failed before; {} ok, {} failed after",
                before.passed, before.failed, after.passed, after.failed
            ),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn summary(title: &str, pull_request: Option<Value>) -> Value {
        json!({
            "id": "task_019aa0c5a3c07d6b9f0e2f3a4b5c6d7e", "mode": "quickfix", "repository": "o/r", "issue": 7,
            "issue_url": "https://forge.example/o/r/issues/7", "title": title, "state": "done", "outcome": "draft_pr",
            "note": null, "pull_request": pull_request, "model": null, "actor": "admin", "trigger": "api",
            "generation": 1, "created_at": "2026-11-20T10:00:00.123456Z", "updated_at": "2026-11-20T11:00:00Z",
        })
    }

    fn text(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn page() -> Page {
        let long = format!("Fix \u{1b}[31m{}", "x".repeat(200));
        let pull_request = json!({ "number": 9, "url": "https://forge.example/o/r/pull/9", "draft": true });
        understand(json!({ "items": [summary(&long, Some(pull_request)), summary("short", None)], "next": "1abc" }))
            .unwrap()
    }

    #[test]
    fn a_table_fits_the_terminal_and_foreign_text_stays_in_its_cell() {
        let now: Timestamp = "2026-11-20T12:30:00Z".parse().unwrap();
        let table = text(|out| table(out, &page(), now, 100));
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{table}");
        assert!(
            lines[0].starts_with("TASK") && lines[1].ends_with("2h   #9 draft") && lines[2].ends_with("2h   draft pr"),
            "{table}"
        );
        assert!(lines[1].contains("o/r#7  Fix [31mxxx") && lines[1].contains("x…  2h"), "{table}");
        assert_eq!(lines[4], "more: fettle tasks --after 1abc");
    }

    #[test]
    fn programs_get_whole_cells_between_tabs() {
        let plain = text(|out| plain(out, &page()));
        let rows: Vec<Vec<&str>> = plain.lines().map(|line| line.split('\t').collect()).collect();
        assert_eq!(rows[0][3].len(), "Fix [31m".len() + 200);
        assert_eq!(
            rows[1],
            ["task_019aa0c5a3c07d6b9f0e2f3a4b5c6d7e", "done", "o/r#7", "short", "2026-11-20T10:00:00Z", "draft pr"]
        );
    }

    #[test]
    fn an_ended_task_is_shown_with_its_proof_and_reasons() {
        let mut task = summary("Fix login", None);
        task["effects"] = json!([{ "id": "effect_1", "kind": "pull_request", "state": "withheld", "detail": "the issue was closed" }]);
        task["run"] = json!({
            "id": "run_1", "job_state": "done", "attempts": 1, "crashes": 0, "steps": 12,
            "spent": { "calls": 4, "generated_tokens": 50, "prompt_tokens": 900, "wall_s": 75 },
            "result": {
                "outcome": "draft_pr", "model": "coder", "base": null, "notes": ["no new test"],
                "change": { "title": "Check the token", "summary": "It was not checked.", "files": 2, "lines_added": 3, "lines_removed": 1 },
                "proof": { "level": "weak", "reasons": [{ "code": "no_new_test", "text": "There is no new test." }], "new_tests": [],
                    "suite": { "base": { "passed": 5, "failed": 1 }, "head": { "passed": 6, "failed": 0 } } },
            },
        });
        let shown = text(|out| show(out, &understand(task).unwrap(), "2026-11-20T10:00:30.5Z".parse().unwrap()));
        for line in [
            "  state     done (draft pr)",
            "  mode      quickfix, model coder",
            "  asked     by admin (api), 30s ago, 2026-11-20T10:00:00Z",
            "  run       run_1: done, 12 steps, 1 failed tries",
            "  publish   pull request withheld the issue was closed",
            "  reason    no new test",
            "  proof     weak",
            "            - There is no new test.",
            "  suite     5 ok, 1 failed before; 6 ok, 0 failed after",
            "  change    2 files, +3 -1: Check the token",
            "It was not checked.",
        ] {
            assert!(shown.lines().any(|found| found == line), "{line:?} in\n{shown}");
        }
    }
}
