//! `fettle admin …`: what an operator asks of a running dashboard, and a ledger's way from one kind of store to the other.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use fettle_domain::id::JobId;
use fettle_runtime::environment::Environment;
use serde::Deserialize;

use crate::Common;
use crate::carry;
use crate::client::{self, Client};
use crate::progress::{note, one_line};
use crate::tasks::understand;
use crate::users;

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
    /// List jobs that were given up, and why.
    Dead,
    /// Take dead jobs up again, with their journals.
    Redrive {
        #[arg(value_name = "JOB", required_unless_present = "all", conflicts_with = "all")]
        jobs: Vec<JobId>,
        /// Every dead job; those whose issue has another Task at work stay dead.
        #[arg(long)]
        all: bool,
    },
    /// Check the ledger's invariants, and with --forge what was written to the forge.
    #[command(after_help = "Exit status: 0 when nothing is wrong, 1 when something is, or could not be asked.")]
    Audit {
        /// Compare the newest Tasks with the forge.
        #[arg(long)]
        forge: bool,
        /// How many.
        #[arg(long, default_value_t = 50, requires = "forge", value_parser = clap::value_parser!(u16).range(1..=100))]
        tasks: u16,
    },
    /// Accounts: list them, make one, change one, set a password. Whoever has the admin key needs none.
    Users {
        #[command(subcommand)]
        command: users::Command,
    },
    /// Show what was done and refused, the newest first, or check that the log is whole.
    #[command(after_help = "Exit status: 0 when nothing is wrong, 1 when something is, or could not be asked.")]
    AuditLog(users::LogFlags),
    /// Seal all secrets that people entered in the browser with another key. Where the keys are a file of yours, put the new one
    /// into it first, as its last line.
    #[command(after_help = "Exit status: 0 when every secret is sealed anew, 1 when one could not be opened.")]
    RotateSecrets,
    /// Write the whole ledger into one file, while no dashboard runs on it.
    Export(carry::ExportFlags),
    /// Fill an empty database with a file that `export` wrote.
    Import(carry::ImportFlags),
}

pub(crate) async fn run(common: &Common, flags: &Flags, environment: &Environment) -> Result<ExitCode> {
    match &flags.command {
        Command::Dead => dead(&Client::new(common, &flags.client, environment)?, flags.json).await,
        Command::Redrive { jobs, all } => {
            let client = Client::new(common, &flags.client, environment)?;
            redrive(&client, jobs, *all, flags.json).await
        }
        Command::Audit { forge, tasks } => {
            let client = Client::new(common, &flags.client, environment)?;
            audit(&client, *forge, *tasks, flags.json).await
        }
        Command::Users { command } => {
            users::run(&Client::new(common, &flags.client, environment)?, command, flags.json).await
        }
        Command::AuditLog(log) => {
            users::audit_log(&Client::new(common, &flags.client, environment)?, log, flags.json).await
        }
        Command::RotateSecrets => rotate(&Client::new(common, &flags.client, environment)?, flags.json).await,
        Command::Export(export) => carry::export(common, export, environment, flags.json).await,
        Command::Import(import) => carry::import(common, import, environment, flags.json).await,
    }
}

#[derive(Deserialize)]
struct DeadJobs {
    items: Vec<DeadJob>,
    /// Absent from dashboards that list no further ones.
    next: Option<String>,
}

#[derive(Deserialize)]
struct DeadJob {
    job_id: String,
    kind: String,
    task_id: String,
    reason: String,
    last_failure: Option<String>,
    attempts: u16,
    crashes: u16,
}

async fn dead(client: &Client, json: bool) -> Result<ExitCode> {
    let answer = client.get(&["api", "v1", "dead-jobs"], &[]).await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{answer}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let DeadJobs { items, next } = understand(answer)?;
    for job in &items {
        let DeadJob { job_id, kind, task_id, reason, .. } = job;
        let spent = format!("{} failed attempts, {} crashes", job.attempts, job.crashes);
        writeln!(out, "{job_id}  {kind} of {task_id}: {} ({spent})", one_line(reason))?;
        if let Some(last) = job.last_failure.as_ref().filter(|last| *last != reason) {
            writeln!(out, "    last: {}", one_line(last))?;
        }
    }
    if items.is_empty() {
        writeln!(out, "no dead jobs")?;
    } else {
        if next.is_some() {
            note("there are more; these are the newest");
        }
        note("`fettle admin redrive JOB` takes one up again");
    }
    Ok(ExitCode::SUCCESS)
}

async fn redrive(client: &Client, named: &[JobId], all: bool, json: bool) -> Result<ExitCode> {
    let mut jobs: Vec<String> = named.iter().map(ToString::to_string).collect();
    if all {
        let mut after: Option<String> = None;
        loop {
            let query: Vec<(&str, &str)> = after.iter().map(|after| ("after", after.as_str())).collect();
            let DeadJobs { items, next } = understand(client.get(&["api", "v1", "dead-jobs"], &query).await?)?;
            jobs.extend(items.into_iter().map(|job| job.job_id));
            after = next;
            if after.is_none() {
                break;
            }
        }
    }
    let (mut redriven, mut refused) = (Vec::new(), Vec::new());
    for job in jobs {
        match client.post(&["api", "v1", "jobs", &job, "redrive"], None, None).await {
            Ok(_) => redriven.push(job),
            Err(error) => refused.push((job, format!("{error:#}"))),
        }
    }
    let mut out = std::io::stdout().lock();
    if json {
        let refused: Vec<_> =
            refused.iter().map(|(job, why)| serde_json::json!({ "job_id": job, "why": why })).collect();
        writeln!(out, "{}", serde_json::json!({ "redriven": redriven, "refused": refused }))?;
    } else {
        redriven.iter().try_for_each(|job| writeln!(out, "{job} is queued again"))?;
        refused.iter().for_each(|(job, why)| note(&format!("{job} stays as it is: {}", one_line(why))));
        if redriven.is_empty() && refused.is_empty() {
            writeln!(out, "no dead jobs")?;
        }
    }
    Ok(if refused.is_empty() || all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Deserialize)]
struct Rotated {
    key: String,
    resealed: u32,
    lost: Vec<String>,
    retired: Vec<String>,
    own_file: bool,
}

async fn rotate(client: &Client, json: bool) -> Result<ExitCode> {
    let (_, answer) = client.post(&["api", "v1", "secrets", "rotate"], None, None).await?;
    let text = answer.to_string();
    let Rotated { key, resealed, lost, retired, own_file } = understand(answer)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{text}")?;
    } else {
        writeln!(out, "{resealed} secrets were sealed anew; the key {key} seals from now on")?;
        match (retired.as_slice(), own_file) {
            ([], _) => {}
            (gone, true) => writeln!(out, "thrown away: {}", gone.join(", "))?,
            (old, false) => {
                writeln!(
                    out,
                    "nothing needs {} any more: take all lines but the last out of the file",
                    old.join(", ")
                )?;
            }
        }
        lost.iter().for_each(|what| note(&format!("{} could not be opened: enter it again", one_line(what))));
    }
    Ok(if lost.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Deserialize)]
struct Audit {
    ledger: Vec<String>,
    forge: Option<ForgeAudit>,
}

#[derive(Deserialize)]
struct ForgeAudit {
    compared: u32,
    breaches: Vec<String>,
    unasked: Vec<Unasked>,
}

#[derive(Deserialize)]
struct Unasked {
    task_id: String,
    why: String,
}

async fn audit(client: &Client, forge: bool, tasks: u16, json: bool) -> Result<ExitCode> {
    let (tasks, mut query) = (tasks.to_string(), Vec::new());
    if forge {
        query.extend([("forge", "true"), ("tasks", tasks.as_str())]);
    }
    let answer = client.get(&["api", "v1", "audit"], &query).await?;
    let audit: Audit = understand(answer.clone())?;
    let asked = audit.forge.as_ref();
    let well =
        audit.ledger.is_empty() && asked.is_none_or(|forge| forge.breaches.is_empty() && forge.unasked.is_empty());
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{answer}")?;
    } else {
        audit.ledger.iter().try_for_each(|breach| writeln!(out, "ledger: {}", one_line(breach)))?;
        if audit.ledger.is_empty() {
            writeln!(out, "ledger: no breach of I1 to I9")?;
        }
        if let Some(ForgeAudit { compared, breaches, unasked }) = asked {
            breaches.iter().try_for_each(|breach| writeln!(out, "forge: {}", one_line(breach)))?;
            for Unasked { task_id, why } in unasked {
                writeln!(out, "forge: could not ask about {task_id}: {}", one_line(why))?;
            }
            if breaches.is_empty() {
                writeln!(out, "forge: no breach of I10 among {compared} Tasks that wrote something")?;
            }
        }
    }
    if !json && !well {
        bail!("the audit found something; each sentence above says what");
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
