//! `fettle submit`: asks a running dashboard for work.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use fettle_broker::Access;
use fettle_domain::task::Mode;
use fettle_runtime::environment::Environment;
use fettle_runtime::secrets;
use serde_json::{Value, json};

use crate::client::{self, Client};
use crate::follow::Until;
use crate::progress::{complain, note, one_line};
use crate::tasks::understand;
use crate::wire::{Summary, Task};
use crate::{Common, log};

/// What the dashboard takes as title and body together.
const MAX_TEXT_BYTES: u64 = 64 * 1024;
/// To connect, and to have one message confirmed.
const BROKER_TIMEOUT: Duration = Duration::from_secs(30);
/// Exit codes beside success and failure; those of `fettle fix`.
const DRAFT: u8 = 3;
const NO_PATCH: u8 = 4;
const USAGE: u8 = 2;

#[derive(clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    client: client::Dashboard,
    /// The repository on the forge: OWNER/NAME or its URL. Only a probe goes without.
    #[arg(long, value_name = "OWNER/NAME")]
    repo: Option<String>,
    /// The issue's number.
    #[arg(long, value_name = "N", conflicts_with = "text", value_parser = clap::value_parser!(u64).range(1..))]
    issue: Option<u64>,
    /// What to do when there is no issue: a text file whose first line is the title, or `-` for standard input.
    #[arg(long, value_name = "FILE|-")]
    text: Option<String>,
    /// How much effort: `quickfix`, `refine`, or `probe`, which does nothing and proves the path.
    #[arg(long, default_value = "quickfix", value_parser = ["quickfix", "refine", "probe"])]
    mode: String,
    /// A model that the dashboard is configured with; default: its first.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Another model that works on it beside the first; repeat it for more. A person then chooses among their patches:
    /// `fettle task runs` and `fettle task choose`.
    #[arg(long, value_name = "NAME")]
    also: Vec<String>,
    /// The branch that the fix starts from; default: the repository's default branch.
    #[arg(long, value_name = "BRANCH")]
    base: Option<String>,
    /// The same key again is the same request: nothing is made twice.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Put the request into the queue of a broker, where a dashboard will find it, instead of asking a dashboard:
    /// `amqp://…` or `redis://…`.
    #[arg(long, value_name = "URL", requires_all = ["repo", "issue", "user"],
          conflicts_with_all = ["text", "model", "also", "base", "idempotency_key", "wait", "json"])]
    to: Option<String>,
    /// The forge login that asks; with --to, its permission decides.
    #[arg(long, value_name = "LOGIN", requires = "to")]
    user: Option<String>,
    /// A file with the broker's password, so that it stands in no list of processes.
    #[arg(long, value_name = "FILE", requires = "to")]
    broker_password_file: Option<camino::Utf8PathBuf>,
    /// The user at the broker.
    #[arg(long, value_name = "NAME", requires = "to")]
    broker_user: Option<String>,
    /// Follow the Task to its end; the exit status then tells how it ended.
    #[arg(long)]
    wait: bool,
    /// Print the Task as one JSON object; with --wait, when it has ended.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(common: &Common, flags: &Flags, environment: &Environment) -> Result<ExitCode> {
    if let Some(url) = &flags.to {
        return to_broker(url, flags).await;
    }
    let order = match order(flags) {
        Ok(order) => order,
        Err(error) => {
            complain(&error);
            return Ok(ExitCode::from(USAGE));
        }
    };
    let client = Client::new(common, &flags.client, environment)?;
    let (_, answer) = client.post(&["api", "v1", "tasks"], Some(&order), flags.idempotency_key.as_deref()).await?;
    let opened = answer.get("opened").and_then(Value::as_str).unwrap_or_default().to_owned();
    let submitted: Summary = understand(answer.get("task").cloned().unwrap_or_default())?;
    if !flags.wait {
        let mut out = std::io::stdout().lock();
        if flags.json {
            writeln!(out, "{answer}")?;
        } else {
            writeln!(out, "{}", told(&opened, &submitted))?;
            writeln!(out, "follow it with `fettle task log -f {}`", one_line(&submitted.id))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    note(&told(&opened, &submitted));
    let end = wait(&client, &submitted.id, flags.json).await?;
    let task: Task = understand(end.clone())?;
    let (code, sentence) = ended(&task);
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{end}")?;
    } else {
        writeln!(out, "{}", one_line(&sentence))?;
    }
    Ok(code)
}

/// As other programs order work: what becomes of it shows at the dashboard, or among the dead letters.
async fn to_broker(url: &str, flags: &Flags) -> Result<ExitCode> {
    let (repo, user) = (flags.repo.as_deref().unwrap_or_default(), flags.user.as_deref().unwrap_or_default());
    let order = json!({ "repo_url": repo, "issue_id": flags.issue, "mode": flags.mode, "trigger_user": user });
    let body = Bytes::from(order.to_string());
    if let Err(refusal) = fettle_domain::foreign::read(&body) {
        complain(&anyhow!("no dashboard would take this: {refusal}"));
        return Ok(ExitCode::from(USAGE));
    }
    let access = Access {
        url: url.to_owned(),
        user: flags.broker_user.clone(),
        password: flags.broker_password_file.as_deref().map(secrets::read).transpose()?,
        ..Access::default()
    };
    tokio::time::timeout(BROKER_TIMEOUT, fettle_broker::submit(&access, &body))
        .await
        .with_context(|| format!("the broker did not answer within {} s", BROKER_TIMEOUT.as_secs()))?
        .context("the broker did not take the request")?;
    writeln!(std::io::stdout().lock(), "the broker has it; a dashboard will open the Task, see `fettle tasks`")?;
    Ok(ExitCode::SUCCESS)
}

/// The Task when it has ended. Events are shown on the way, but not to a program that wants one object.
async fn wait(client: &Client, id: &str, json: bool) -> Result<Value> {
    if json {
        crate::follow::follow(client, id, Until::End, async |_| Ok(())).await?;
    } else {
        log::print(client, id, Until::End, false).await?;
    }
    client.get(&["api", "v1", "tasks", id], &[]).await
}

/// The body of the request. Errors are misuse.
fn order(flags: &Flags) -> Result<Value> {
    let mode: Mode = flags.mode.parse()?;
    if mode != Mode::Probe {
        if flags.repo.is_none() {
            bail!("name the repository: --repo OWNER/NAME");
        }
        if flags.issue.is_none() && flags.text.is_none() {
            bail!("say what to do: --issue N, or --text FILE");
        }
    }
    let text = flags.text.as_deref().map(read_text).transpose()?;
    let text = text.map(|(title, body)| json!({ "title": title, "body": body }));
    Ok(json!({
        "repository": flags.repo,
        "issue": flags.issue,
        "text": text,
        "mode": mode.name(),
        "model": flags.model,
        "further": flags.also.iter().map(|model| json!({ "model": model })).collect::<Vec<_>>(),
        "base": flags.base,
    }))
}

/// Title and body: the first line that is not blank, and the rest.
fn read_text(from: &str) -> Result<(String, String)> {
    let mut text = String::new();
    let limit = MAX_TEXT_BYTES + 1;
    if from == "-" {
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_string(&mut text)
            .context("could not read the text from standard input")?;
    } else {
        let file = fs_err::File::open(from).map_err(|error| anyhow!(error))?;
        file.take(limit).read_to_string(&mut text).with_context(|| format!("could not read {from} as text"))?;
    }
    if text.len() as u64 > MAX_TEXT_BYTES {
        bail!("the text is larger than {} KiB", MAX_TEXT_BYTES / 1024);
    }
    split(&text).ok_or_else(|| anyhow!("the text is empty: write what is wrong, the first line being the title"))
}

fn split(text: &str) -> Option<(String, String)> {
    let text = text.trim();
    let (title, body) = text.split_once('\n').unwrap_or((text, ""));
    let title = title.trim().trim_start_matches('#').trim();
    (!title.is_empty()).then(|| (title.to_owned(), body.trim().to_owned()))
}

fn told(opened: &str, task: &Summary) -> String {
    let id = &task.id;
    one_line(&match opened {
        "joined" => format!("joined {id}, which works on this issue already"),
        "duplicate" => format!("{id} was made by the same request before"),
        _ => format!("submitted {id}: {}", task.title),
    })
}

/// What an ended Task means to whoever waited for it.
fn ended(task: &Task) -> (ExitCode, String) {
    let summary = &task.summary;
    let notes = || match &task.run.result {
        Some(result) => {
            result.notes.iter().filter(|note| !note.trim().is_empty()).cloned().collect::<Vec<_>>().join("; ")
        }
        None => summary.note.clone().unwrap_or_else(|| "see `fettle task show`".to_owned()),
    };
    let outcome = summary.outcome.as_deref().unwrap_or_default();
    match (summary.state.as_str(), outcome, &summary.pull_request) {
        ("cancelled", _, _) => (ExitCode::FAILURE, "CANCELLED".to_owned()),
        (_, "probe_passed", _) => (ExitCode::SUCCESS, "PROBE PASSED".to_owned()),
        (_, "ready_pr", Some(pull_request)) if !pull_request.draft => {
            (ExitCode::SUCCESS, format!("PROVEN: {}", pull_request.url))
        }
        (_, "ready_pr" | "draft_pr", Some(pull_request)) => {
            (ExitCode::from(DRAFT), format!("DRAFT: {} {}", pull_request.url, notes()))
        }
        (_, "ready_pr" | "draft_pr", None) => {
            let withheld = task
                .effects
                .iter()
                .filter(|effect| effect.state == "withheld")
                .find_map(|effect| effect.detail.clone());
            let why = withheld.or_else(|| summary.note.clone()).unwrap_or_else(|| "see `fettle task show`".to_owned());
            (ExitCode::FAILURE, format!("NOT PUBLISHED: {why}"))
        }
        (_, "" | "failed", _) => (ExitCode::FAILURE, format!("FAILED: {}", notes())),
        (_, other, _) => (ExitCode::from(NO_PATCH), format!("NO PATCH: {}. {}", other.replace('_', " "), notes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(state: &str, outcome: Option<&str>, draft: Option<bool>) -> Task {
        let pull_request =
            draft.map(|draft| json!({ "number": 9, "url": "https://forge.example/o/r/pull/9", "draft": draft }));
        let result = outcome.map(|outcome| json!({ "outcome": outcome, "model": "m", "base": null, "change": null, "proof": null, "notes": ["why"] }));
        understand(json!({
            "id": "task_1", "mode": "quickfix", "repository": "o/r", "issue": 7, "issue_url": null, "title": "t", "state": state,
            "outcome": outcome, "note": "it was given up", "pull_request": pull_request, "model": null, "actor": "admin",
            "trigger": "api", "created_at": "2026-11-20T10:00:00Z",
            "effects": [{ "kind": "push", "state": "withheld", "detail": "a person has pushed" }],
            "run": { "id": "run_1", "job_state": "done", "attempts": 1, "crashes": 0, "steps": 1, "result": result,
                "spent": { "calls": 0, "generated_tokens": 0, "prompt_tokens": 0, "wall_s": 0 } },
        }))
        .unwrap()
    }

    #[test]
    fn the_exit_status_tells_how_the_task_ended() {
        let cases = [
            (
                task("done", Some("ready_pr"), Some(false)),
                ExitCode::SUCCESS,
                "PROVEN: https://forge.example/o/r/pull/9",
            ),
            (
                task("done", Some("ready_pr"), Some(true)),
                ExitCode::from(3),
                "DRAFT: https://forge.example/o/r/pull/9 why",
            ),
            (
                task("done", Some("draft_pr"), Some(true)),
                ExitCode::from(3),
                "DRAFT: https://forge.example/o/r/pull/9 why",
            ),
            (task("done", Some("ready_pr"), None), ExitCode::FAILURE, "NOT PUBLISHED: a person has pushed"),
            (task("done", Some("no_change_needed"), None), ExitCode::from(4), "NO PATCH: no change needed. why"),
            (task("done", Some("probe_passed"), None), ExitCode::SUCCESS, "PROBE PASSED"),
            (task("done", None, None), ExitCode::FAILURE, "FAILED: it was given up"),
            (task("cancelled", None, None), ExitCode::FAILURE, "CANCELLED"),
        ];
        for (task, code, sentence) in cases {
            assert_eq!(ended(&task), (code, sentence.to_owned()));
        }
    }

    #[test]
    fn the_first_line_is_the_title() {
        assert_eq!(
            split("\n# Login fails \n\nWith an empty name.\n"),
            Some(("Login fails".into(), "With an empty name.".into()))
        );
        assert_eq!(split("one line"), Some(("one line".into(), String::new())));
        assert_eq!(split(" \n#\n"), None);
    }
}
