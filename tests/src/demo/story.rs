//! The story in its order: an issue, a label, the work as it is told by the API, and what stands on the forge at the end.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::example;
use super::stage::Stage;
use super::tell::Teller;
use crate::world::LABEL;

/// Many times what it takes; a machine that compiles for everybody else may be slow.
const LIMIT: Duration = Duration::from_secs(300);

/// Plays it once. What came of it, read from the forge and the API:
/// `{"pull_request":{…}|null,"proof":{…},"comments":n,"task":{…}}`.
pub async fn play(stage: &Stage, teller: &mut Teller) -> anyhow::Result<Value> {
    teller.title("Fettle: from an issue to a proven pull request, on this machine alone")?;
    teller.line(&format!("  forge   {}  (an emulator with real git)", stage.forge.url()))?;
    teller.line(&format!("  model   {}  (scripted: its answers were written beforehand)", stage.model.base_url()))?;
    teller.line(&format!("  fettle  {}  (`fettle up`, the real program)", stage.api.base()))?;
    teller.line(&format!("  folder  {}", stage.folder().display()))?;

    let issue = stage.forge.create_issue(&stage.repo, example::REPORTER, example::TITLE, example::BODY);
    teller.title(&format!("{} #{issue}: {}", stage.repo, example::TITLE))?;
    teller.quote(example::BODY)?;
    teller.line("")?;
    let status = stage.label(issue, LABEL).await?;
    teller.now(&format!(
        "{} sets the label `{LABEL}`; the signed webhook is answered with {status}",
        example::MAINTAINER
    ))?;
    ensure!(status == 202, "the webhook was refused");

    let task = stage.api.task_opened(0, LIMIT).await?;
    let task = follow(stage, teller, &task).await?;
    let end = outcome(stage, issue, &task).await?;
    show(stage, teller, issue, &end).await?;
    Ok(end)
}

/// Tells each event as it comes; the Task after its end.
async fn follow(stage: &Stage, teller: &mut Teller, task: &str) -> anyhow::Result<Value> {
    let mut phase = String::new();
    let told = stage.api.follow_task(task, LIMIT, |event| match tell(teller, &mut phase, &event["what"]) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(error),
    });
    if let Some(error) = told.await? {
        return Err(error).context("while telling the story");
    }
    stage.api.task(task).await
}

fn tell(teller: &mut Teller, phase: &mut String, what: &Value) -> std::io::Result<()> {
    let text = |key: &str| what[key].as_str().unwrap_or_default();
    match text("type") {
        "task_created" => teller.now(&format!("a Task is opened, mode {}", text("mode"))),
        "run_leased" => teller.now("a worker takes it"),
        "step" => {
            if text("phase") != phase {
                text("phase").clone_into(phase);
                teller.now(&format!("· {}", phase_in_words(phase)))?;
            }
            let took = Duration::from_millis(what["took_ms"].as_u64().unwrap_or(0)).as_secs_f32();
            teller.now(&format!("    {}  ({took:.1} s)", text("title")))
        }
        "run_failed" | "publish_failed" => teller.now(&format!("failed: {}", text("why"))),
        "run_ended" => teller.now(&format!("the Run ends: {}, {}", text("outcome"), text("level"))),
        "effect_settled" => teller.now(&format!("on the forge: {}", text("detail"))),
        "task_done" => teller.now("done"),
        _ => Ok(()),
    }
}

fn phase_in_words(phase: &str) -> &str {
    match phase {
        "base_green" => "base: what the repository's own tests say before anything is changed",
        "triage" => "triage: is this a bug, and where?",
        "reproduce" => "reproduce: a test that fails because of it",
        "fix" => "fix",
        "verify" => "verify: in fresh checkouts, by the orchestrator and not by the model",
        other => other,
    }
}

/// From the forge and the API; nothing is taken from the script.
async fn outcome(stage: &Stage, issue: u64, task: &Value) -> anyhow::Result<Value> {
    let (_, pulls) = stage.api.public(&format!("{}/repos/{}/pulls?state=all", stage.forge.url(), stage.repo)).await?;
    let pulls: Vec<Value> = serde_json::from_str(&pulls).context("while reading the forge's pull requests")?;
    ensure!(pulls.len() <= 1, "there are {} pull requests", pulls.len());
    let pull = pulls.first().map(|pull| {
        json!({
            "number": pull["number"],
            "url": pull["html_url"],
            "title": pull["title"],
            "head": pull["head"]["ref"],
            "base": pull["base"]["ref"],
            "draft": pull["draft"],
        })
    });
    let comments = stage.forge.issue(&stage.repo, issue).context("the issue is still there")?.comments.len();
    let mut proof = task["run"]["result"]["proof"].clone();
    let proven = proof["level"] == "proven";
    if let Some(proof) = proof.as_object_mut() {
        proof.insert("proven".to_owned(), json!(proven));
    } else {
        proof = json!({ "proven": false, "level": null });
    }
    Ok(json!({
        "pull_request": pull,
        "proof": proof,
        "comments": comments,
        "task": { "id": task["id"], "state": task["state"], "outcome": task["outcome"], "note": task["note"] },
    }))
}

async fn show(stage: &Stage, teller: &mut Teller, issue: u64, end: &Value) -> anyhow::Result<()> {
    let pull = &end["pull_request"];
    let Some(number) = pull["number"].as_u64() else {
        teller.title("There is no pull request")?;
        return Ok(teller.quote(end["task"]["note"].as_str().unwrap_or("the Task has no note"))?);
    };
    let text = |key: &str| pull[key].as_str().unwrap_or_default();
    let kind = if pull["draft"] == true { "draft pull request" } else { "pull request, ready for review" };
    teller.title(&format!("#{number}: {}", text("title")))?;
    teller.line(&format!("  {kind}: {} → {}, {}", text("head"), text("base"), text("url")))?;
    let found = stage.forge.issue(&stage.repo, number).context("the pull request is there")?;
    teller.line("")?;
    teller.quote(&found.body)?;

    teller.title("Its diff, from the forge's repository")?;
    let range = format!("{}...{}", text("base"), text("head"));
    teller.quote(&stage.forge.git(&stage.repo, &["diff", &range]).await?)?;

    let asked = stage.forge.issue(&stage.repo, issue).context("the issue is still there")?;
    for comment in &asked.comments {
        teller.title(&format!("The comment on #{issue} by {}", comment.author))?;
        teller.quote(&comment.body)?;
    }
    teller.title("What was real")?;
    teller.line("  Everything but the model: its answers were a script. Tests, git, sandbox, proof and publishing were the real ones.")?;
    teller.line("  With a model of yours, on a repository of yours, and no forge:")?;
    teller.line("      fettle fix --repo . --issue issue.md --model-url http://127.0.0.1:8000/v1")?;
    teller.line("  or for good, in fettle.toml, for `fettle up`:")?;
    teller
        .line("      [[gateway.models]]\n      name = \"my-model\"\n      base_url = \"http://127.0.0.1:8000/v1\"")?;
    Ok(())
}
