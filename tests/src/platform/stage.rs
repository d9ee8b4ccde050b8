//! What runs beside the machine, in its network: forge and model for one Task, and clients that must not be refused.

use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fettle_domain::repo::RepoName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::fixtures::Project;
use crate::forge::{ForgeEmulator, ForgeOptions, PatAccess, Role};
use crate::model::ModelServer;
use crate::world::LABEL;

const MACHINE_USER: &str = "fettle-machine";
const MAINTAINER: &str = "ann";
const WEBHOOK_SECRET: &str = "known-to-the-machine-and-the-forge";
/// A Task with a scripted model takes seconds.
const TASK_LIMIT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);
/// One request; a service that starts anew takes some seconds, and the socket keeps the connection.
const REQUEST_LIMIT: Duration = Duration::from_secs(40);

/// Says on standard output where forge and model are and what they want to be shown; then plays one Task for each line on
/// standard input, which names the dashboard's address, and says what came of it. Ends with standard input.
pub async fn play() -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("fettle-forge-").tempdir()?;
    let root = camino::Utf8PathBuf::try_from(folder.path().to_owned())?;
    let forge = ForgeEmulator::start(ForgeOptions { folder: Some(root.join("forge")), app: None }).await?;
    let project = Project::SHELL;
    let repo = forge.create_repository("tools/clamp", project.files).await?;
    forge.set_role(&repo, MAINTAINER, Some(Role::Write));
    let model = ModelServer::start(project.solving().script());
    say(&json!({
        "forge": forge.url(),
        "host": forge.address().to_string(),
        "model": model.base_url(),
        "read_token": forge.add_token(MACHINE_USER, PatAccess::Read),
        "write_token": forge.add_token(MACHINE_USER, PatAccess::Write),
        "webhook_secret": WEBHOOK_SECRET,
    }))?;
    let (lines, mut asked) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(address) = asked.recv().await {
        say(&task(&forge, &repo, &project, &address)
            .await
            .unwrap_or_else(|error| json!({ "error": format!("{error:#}") })))?;
    }
    Ok(())
}

fn say(value: &Value) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{value}")?;
    stdout.flush()
}

async fn task(forge: &ForgeEmulator, repo: &RepoName, project: &Project, address: &str) -> anyhow::Result<Value> {
    let before = forge.pulls(repo).len();
    let (title, body) = project.issue.split_once("\n\n").context("an issue has a title")?;
    let issue = forge.create_issue(repo, MAINTAINER, title, body);
    forge.label(repo, issue, LABEL, MAINTAINER);
    let payload = forge.issue_labeled(repo, issue, LABEL, MAINTAINER);
    let answer = forge.deliver(&format!("{address}/webhooks/github"), "issues", &payload, WEBHOOK_SECRET).await?;
    let status = answer.status().as_u16();
    ensure!(status == 202, "the webhook was answered with {status}");
    let begun = Instant::now();
    loop {
        let comments = forge.issue(repo, issue).map_or(0, |issue| issue.comments.len());
        if forge.pulls(repo).len() > before && comments > 0 {
            break;
        }
        ensure!(begun.elapsed() < TASK_LIMIT, "no pull request after {} s", TASK_LIMIT.as_secs());
        tokio::time::sleep(LOOK).await;
    }
    let pull = forge.pulls(repo).pop().context("a pull request was just counted")?;
    let draft = pull.pull.as_ref().is_none_or(|pull| pull.draft);
    Ok(json!({ "draft": draft, "pulls": forge.pulls(repo).len() - before, "body": pull.body }))
}

/// Asks `address` again and again on a new connection each, `per_second` times, until standard input ends; then tells how
/// many were answered and how many were not.
pub async fn hammer(address: &str, per_second: u32) -> anyhow::Result<()> {
    let (ended, mut end) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        let _ = ended.send(());
    });
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    let mut asked = tokio::task::JoinSet::new();
    let (mut answered, mut failed, mut longest) = (0u64, Vec::new(), Duration::ZERO);
    say(&json!({ "hammering": address }))?;
    let mut count = |outcome: Result<anyhow::Result<Duration>, tokio::task::JoinError>| match outcome {
        Ok(Ok(took)) => (answered, longest) = (answered + 1, longest.max(took)),
        Ok(Err(error)) => failed.push(format!("{error:#}")),
        Err(error) => failed.push(error.to_string()),
    };
    loop {
        tokio::select! {
            _ = &mut end => break,
            _ = ticks.tick() => {
                let address = address.to_owned();
                asked.spawn(async move { request(&address).await });
            }
            Some(outcome) = asked.join_next() => count(outcome),
        }
    }
    while let Some(outcome) = asked.join_next().await {
        count(outcome);
    }
    failed.sort();
    say(&json!({
        "answered": answered,
        "failed": failed.len(),
        "longest_ms": longest.as_millis() as u64,
        "first": failed.first(),
    }))?;
    Ok(())
}

/// A connection that is taken and answered, whatever the answer is.
async fn request(address: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let asked = async {
        let mut stream = TcpStream::connect(address).await.context("not connected")?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: fettle\r\nConnection: close\r\n\r\n").await.context("not sent")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.context("cut off")?;
        ensure!(answer.starts_with(b"HTTP/1.1 "), "no answer: {:?}", String::from_utf8_lossy(&answer));
        Ok(begun.elapsed())
    };
    tokio::time::timeout(REQUEST_LIMIT, asked).await.context("no answer in time")?
}
