//! `fettle gpus` and `fettle placements`: what the inference process of this machine has where, and why.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use fettle_inference::admin::{DeviceView, EngineView, EventView, PlanView, PoolView, StatusView};
use fettle_runtime::environment::Environment;

use crate::Common;
use crate::inference_process::{ANSWER_LIMIT, Process};
use crate::progress::{note, one_line};
use crate::table::{short, table};

/// Of `--watch`.
const AGAIN: Duration = Duration::from_secs(1);
const GIB: f64 = (1 << 30) as f64;

#[derive(clap::Args)]
pub(crate) struct GpuFlags {
    /// Print one JSON object instead of a table.
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Show it anew each second, until Ctrl-C.
    #[arg(long)]
    watch: bool,
    #[command(subcommand)]
    command: Option<GpuCommand>,
}

#[derive(clap::Subcommand)]
enum GpuCommand {
    /// Put nothing on a device any more, and let its engines go.
    Quarantine {
        /// Its id, or the beginning of it.
        device: String,
        /// What is wrong, for whoever looks later.
        #[arg(long)]
        why: String,
    },
    /// Use a device again that was quarantined.
    Release {
        /// Its id, or the beginning of it.
        device: String,
    },
}

#[derive(clap::Args)]
pub(crate) struct PlacementFlags {
    /// Only this model: why it is where it is, or why it waits.
    #[arg(long, value_name = "MODEL")]
    why: Option<String>,
    /// What would be done if this model were asked for now. Nothing is.
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["why", "events"])]
    plan: Option<String>,
    /// Of `--plan`: how many requests at once.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "plan", value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// What happened: loads, evictions, refusals, the newest last.
    #[arg(long)]
    events: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn gpus(common: &Common, flags: &GpuFlags, environment: &Environment) -> Result<ExitCode> {
    let process = Process::of(common, environment)?;
    match &flags.command {
        Some(GpuCommand::Quarantine { device, why }) => {
            process.order(&format!("devices/{device}/quarantine"), &serde_json::json!({ "why": why })).await?;
            note(&format!("{device} is quarantined; `fettle gpus release {device}` ends it"));
        }
        Some(GpuCommand::Release { device }) => {
            process.order(&format!("devices/{device}/release"), &serde_json::json!({})).await?;
            note(&format!("{device} is released; if it is still not well it will be quarantined again"));
        }
        None if flags.watch => loop {
            let status: StatusView = process.get("status").await?;
            let mut out = std::io::stdout().lock();
            write!(out, "\x1b[H\x1b[2J{}", devices(&status))?;
            out.flush()?;
            drop(out);
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                _ = tokio::signal::ctrl_c() => break,
            }
        },
        None => {
            let status: StatusView = process.get("status").await?;
            let mut out = std::io::stdout().lock();
            if flags.json {
                let shown = serde_json::json!({ "devices": status.devices, "pools": status.pools });
                writeln!(out, "{shown}")?;
            } else {
                write!(out, "{}", devices(&status))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn placements(common: &Common, flags: &PlacementFlags, environment: &Environment) -> Result<ExitCode> {
    let process = Process::of(common, environment)?;
    if let Some(model) = &flags.plan {
        return would(&process, model, flags.requests, flags.json).await;
    }
    let wanted = |model: &str| flags.why.as_ref().is_none_or(|why| why == model);
    let mut out = std::io::stdout().lock();
    if flags.events {
        let mut events: Vec<EventView> = process.get("events").await?;
        events.retain(|event| wanted(&event.model));
        if flags.json {
            writeln!(out, "{}", serde_json::to_string(&events)?)?;
        } else {
            events
                .iter()
                .try_for_each(|event| writeln!(out, "{}  {:<11}  {}", event.at, event.kind, one_line(&event.text)))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut status: StatusView = process.get("status").await?;
    if let Some(model) = flags.why.as_ref().filter(|model| !status.models.contains(model)) {
        bail!("this machine runs no model `{model}`; it has {}", list(&status.models));
    }
    status.models.retain(|model| wanted(model));
    status.engines.retain(|engine| wanted(&engine.model));
    status.refused.retain(|refused| wanted(&refused.model));
    if flags.json {
        writeln!(out, "{}", serde_json::to_string(&status)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for model in &status.models {
        let engines: Vec<&EngineView> = status.engines.iter().filter(|engine| engine.model == *model).collect();
        for engine in &engines {
            writeln!(out, "{:<24}  {:<10}  {}", engine.id, engine.state, one_line(&engine.why))?;
        }
        for refused in status.refused.iter().filter(|refused| refused.model == *model) {
            writeln!(out, "{model:<24}  {:<10}  {}", "waiting", one_line(&refused.why))?;
        }
        if engines.is_empty() && status.refused.iter().all(|refused| refused.model != *model) {
            writeln!(out, "{model:<24}  {:<10}  nobody asks for it", "not loaded")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn would(process: &Process, model: &str, requests: u32, json: bool) -> Result<ExitCode> {
    let asked = serde_json::json!({ "model": model, "requests": requests });
    let plan: PlanView = process.order_and_wait("plan", &asked, ANSWER_LIMIT).await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&plan)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for reason in &plan.reasons {
        writeln!(out, "{}", one_line(reason))?;
    }
    for refusal in &plan.refusals {
        writeln!(out, "{model}: {}", one_line(refusal))?;
    }
    if plan.reasons.is_empty() && plan.refusals.is_empty() {
        writeln!(out, "{model}: nothing; its engines would take that")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn devices(status: &StatusView) -> String {
    let mut text = String::new();
    let header = ["DEVICE", "NAME", "POOL", "FREE/CAP GiB", "CLAIMED", "FOREIGN", "UTIL", "W", "C", "ISLAND", "HEALTH"];
    let rows: Vec<[String; 11]> = status.devices.iter().map(|device| row(device, &status.pools)).collect();
    table(&mut text, &header, &rows);
    if status.devices.iter().all(|device| device.id == "cpu") {
        text.push_str(
            "\nThis machine has no GPU that Fettle can use; models elsewhere and recipes for the CPU are served.\n",
        );
        text.push_str("`fettle doctor` tells where NVIDIA's library was looked for.\n");
    }
    text
}

fn row(device: &DeviceView, pools: &[PoolView]) -> [String; 11] {
    let pool = pools.iter().find(|pool| pool.id == device.pool);
    let gib = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / GIB));
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let memory = pool.map(|pool| format!("{:.1}/{:.1}", pool.free as f64 / GIB, pool.cap as f64 / GIB));
    let closed = pool.and_then(|pool| pool.closed.as_ref()).filter(|_| device.why.is_none());
    let health = match device.why.as_ref().or(closed) {
        Some(why) => format!("{}: {}", device.health, one_line(why)),
        None => device.health.clone(),
    };
    [
        short(&device.id),
        one_line(&device.name),
        device.pool.split_once(':').map_or_else(|| device.pool.clone(), |(kind, id)| format!("{kind}:{}", short(id))),
        or_dash(memory),
        gib(pool.map(|pool| pool.claimed)),
        gib(pool.map(|pool| pool.foreign)),
        or_dash(device.gpu_percent.map(|percent| format!("{percent}%"))),
        or_dash(device.watts.map(|watts| format!("{watts:.0}"))),
        or_dash(device.celsius.map(|celsius| celsius.to_string())),
        or_dash(device.island.clone()),
        health,
    ]
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_explains_itself() {
        let cpu = DeviceView {
            id: "cpu".into(),
            name: "CPU".into(),
            pool: "host".into(),
            island: None,
            health: "ok".into(),
            why: None,
            gpu_percent: None,
            memory_percent: None,
            watts: None,
            celsius: None,
            busy_seconds: None,
            joules: None,
        };
        let text = devices(&StatusView { devices: vec![cpu], ..StatusView::default() });
        assert!(text.contains("no GPU that Fettle can use"), "{text}");
    }
}
