//! `fettle workers …`: the pods that workers run in, where Fettle runs in a cluster, and what they have logged.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use fettle_app::ports::clock::Clock as _;
use fettle_runtime::environment::Environment;
use fettle_runtime::system::SystemClock;
use jiff::Timestamp;
use serde::Deserialize;

use crate::Common;
use crate::client::{self, Client};
use crate::progress::{note, one_line};
use crate::table::table;
use crate::tasks::understand;

#[derive(clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    client: client::Dashboard,
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List the pods of workers.
    Pods,
    /// Show the end of what the worker in a pod has logged.
    Logs {
        #[arg(value_name = "POD")]
        pod: String,
        /// How many of the newest lines.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=2000))]
        lines: u16,
    },
}

pub(crate) async fn run(common: &Common, flags: &Flags, environment: &Environment) -> Result<ExitCode> {
    let client = Client::new(common, &flags.client, environment)?;
    match &flags.command {
        Command::Pods => pods(&client, flags.json).await?,
        Command::Logs { pod, lines } => logs(&client, pod, *lines, flags.json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Deserialize)]
struct PodList {
    items: Vec<Pod>,
    cut: bool,
}

#[derive(Deserialize)]
struct Pod {
    name: String,
    phase: String,
    ready: bool,
    restarts: u32,
    node: Option<String>,
    created_at: Timestamp,
    why: Option<String>,
}

async fn pods(client: &Client, json: bool) -> Result<()> {
    let answer = client.get(&["api", "v1", "pods"], &[]).await?;
    let mut out = std::io::stdout().lock();
    if json {
        return Ok(writeln!(out, "{answer}")?);
    }
    let list: PodList = understand(answer)?;
    write!(out, "{}", text(&list.items, SystemClock.now()))?;
    if list.cut {
        note("there are more");
    }
    Ok(())
}

fn text(pods: &[Pod], now: Timestamp) -> String {
    if pods.is_empty() {
        return "no worker has a pod now\n".to_owned();
    }
    let rows: Vec<[String; 7]> = pods
        .iter()
        .map(|pod| {
            [
                one_line(&pod.name),
                one_line(&pod.phase),
                if pod.ready { "yes" } else { "no" }.to_owned(),
                pod.restarts.to_string(),
                pod.node.as_deref().map_or("-".to_owned(), one_line),
                age(now.duration_since(pod.created_at).as_secs()),
                pod.why.as_deref().map_or(String::new(), one_line),
            ]
        })
        .collect();
    let mut text = String::new();
    table(&mut text, &["POD", "PHASE", "READY", "RESTARTS", "NODE", "AGE", "WHY"], &rows);
    text
}

/// In the largest unit of which it has some.
fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[derive(Deserialize)]
struct Log {
    text: String,
    cut: bool,
    hidden_lines: usize,
}

async fn logs(client: &Client, pod: &str, lines: u16, json: bool) -> Result<()> {
    let answer = client.get(&["api", "v1", "pods", pod, "log"], &[("lines", &lines.to_string())]).await?;
    let mut out = std::io::stdout().lock();
    if json {
        return Ok(writeln!(out, "{answer}")?);
    }
    let log: Log = understand(answer)?;
    if log.cut {
        note("the first of these lines are left out: they are too long together");
    }
    for line in log.text.lines() {
        writeln!(out, "{}", one_line(line))?;
    }
    if log.hidden_lines > 0 {
        note(&format!("lines that may hold a secret and are not shown: {}", log.hidden_lines));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_a_line_with_its_age_and_the_reason_why_it_does_not_run() {
        let pod = Pod {
            name: "fettle-worker-x".to_owned(),
            phase: "Pending".to_owned(),
            ready: false,
            restarts: 0,
            node: None,
            created_at: "2026-11-30T12:00:00Z".parse().unwrap(),
            why: Some("0/1 nodes\u{1b}[2J are available".to_owned()),
        };
        let text = text(&[pod], "2026-11-30T12:03:10Z".parse().unwrap());
        let line = "fettle-worker-x  Pending  no     0         -     3m   0/1 nodes[2J are available";
        assert_eq!(text.lines().nth(1), Some(line));
        assert_eq!([age(-5), age(119), age(7_199), age(172_799), age(172_800)], ["0s", "119s", "119m", "47h", "2d"]);
    }
}
