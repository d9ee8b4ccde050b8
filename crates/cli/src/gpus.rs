//! `fettle gpus`, `fettle models` and `fettle placements`: what the inference process of this machine has where, and why.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_inference::admin::{DeviceView, EngineView, EventView, PoolView, StatusView};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;

use crate::progress::{note, one_line};
use crate::{Common, conformance};

/// The process answers from what it knows; it asks no driver first.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Of `--watch`.
const AGAIN: Duration = Duration::from_secs(1);
const GIB: f64 = (1 << 30) as f64;
/// Enough to tell the devices of one machine apart.
const SHORT_ID: usize = 12;

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
pub(crate) struct ModelFlags {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<ModelCommand>,
}

#[derive(clap::Subcommand)]
enum ModelCommand {
    /// Say what a model's files would take of a GPU, without loading anything.
    Estimate(EstimateFlags),
    /// Ask a model some hundred small questions, and say how it calls tools best; that takes minutes.
    Check {
        /// As configured: the name of a [[gateway.models]] entry.
        model: String,
    },
}

#[derive(clap::Args)]
struct EstimateFlags {
    /// A GGUF file, or a folder of safetensors.
    path: Utf8PathBuf,
    /// Tokens of one sequence.
    #[arg(long, default_value_t = 65_536)]
    context: u32,
    /// Sequences at once.
    #[arg(long, default_value_t = 4)]
    parallel: u16,
    /// GPUs that hold it together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    tp: u8,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct PlacementFlags {
    /// Only this model: why it is where it is, or why it waits.
    #[arg(long, value_name = "MODEL")]
    why: Option<String>,
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

pub(crate) async fn models(common: &Common, flags: &ModelFlags, environment: &Environment) -> Result<ExitCode> {
    if let Some(ModelCommand::Estimate(estimate)) = &flags.command {
        return estimated(estimate);
    }
    let process = Process::of(common, environment)?;
    if let Some(ModelCommand::Check { model }) = &flags.command {
        return conformance::check(&process, model, flags.json).await;
    }
    let status: StatusView = process.get("status").await?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        let shown =
            serde_json::json!({ "models": status.models, "engines": status.engines, "refused": status.refused });
        writeln!(out, "{shown}")?;
    } else {
        write!(out, "{}", engines(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn placements(common: &Common, flags: &PlacementFlags, environment: &Environment) -> Result<ExitCode> {
    let process = Process::of(common, environment)?;
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

/// What is asked over the socket; the host's name means nothing there.
const ADMIN: &str = "http://inference/admin/v1/";

/// The inference process of this machine, over its socket.
pub(crate) struct Process {
    socket: Utf8PathBuf,
    http: reqwest::Client,
}

impl Process {
    fn of(common: &Common, environment: &Environment) -> Result<Self> {
        let config = Config::load(common.config.as_deref(), environment)?;
        let socket = DataDir::open(common.data_dir.as_deref(), &config, environment)?.inference_socket();
        let http = reqwest::Client::builder().unix_socket(socket.as_std_path()).timeout(ANSWER_LIMIT).build()?;
        Ok(Self { socket, http })
    }

    async fn get<T: DeserializeOwned>(&self, what: &str) -> Result<T> {
        let response = self.send(Method::GET, what, None).await?;
        response
            .json()
            .await
            .with_context(|| format!("what answers at {} is no inference process of this version", self.socket))
    }

    async fn order(&self, what: &str, body: &serde_json::Value) -> Result<()> {
        self.send(Method::POST, what, Some(body)).await.map(drop)
    }

    /// For what takes its time.
    pub(crate) async fn order_and_wait<T: DeserializeOwned>(&self, what: &[&str], limit: Duration) -> Result<T> {
        let mut url = Url::parse(ADMIN).context("while naming what is asked for")?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(what);
        }
        Ok(self.answered(self.http.post(url).timeout(limit)).await?.json().await?)
    }

    async fn send(&self, method: Method, what: &str, body: Option<&serde_json::Value>) -> Result<reqwest::Response> {
        let mut request = self.http.request(method, format!("{ADMIN}{what}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        self.answered(request).await
    }

    async fn answered(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
        let response = request.send().await.with_context(|| self.away())?;
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => bail!("{}", one_line(&response.text().await?)),
            status => bail!("the inference process answers {status}: {}", one_line(&response.text().await?)),
        }
    }

    fn away(&self) -> String {
        format!(
            "no inference process answers at {}; start `fettle up` or fettle-inference, or name its data folder with --data-dir",
            self.socket
        )
    }
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
        device.name.clone(),
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

fn engines(status: &StatusView) -> String {
    let mut text = String::new();
    let header = ["MODEL", "ENGINE", "RECIPE", "STATE", "DEVICES", "CLAIM GiB", "IN-FLIGHT", "RELOAD"];
    let mut rows = Vec::new();
    for model in &status.models {
        let of_model: Vec<&EngineView> = status.engines.iter().filter(|engine| engine.model == *model).collect();
        for engine in &of_model {
            let claim: u64 = engine.claims.iter().map(|(_, bytes)| bytes).sum();
            rows.push([
                model.clone(),
                engine.id.clone(),
                engine.recipe.clone(),
                engine.state.clone(),
                engine.devices.iter().map(|id| short(id)).collect::<Vec<_>>().join(" "),
                format!("{:.1}", claim as f64 / GIB),
                engine.in_flight.to_string(),
                Millis::new(engine.reload_ms).to_string(),
            ]);
        }
        if of_model.is_empty() {
            let refused = status.refused.iter().any(|refused| refused.model == *model);
            let state = if refused { "waiting" } else { "not loaded" };
            let dash = || "-".to_owned();
            rows.push([model.clone(), dash(), dash(), state.to_owned(), dash(), dash(), dash(), dash()]);
        }
    }
    table(&mut text, &header, &rows);
    if status.models.is_empty() {
        text.push_str("\nNo model of this machine is configured: a [[gateway.models]] entry with `path` is one.\n");
    }
    text
}

fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn table<const N: usize>(text: &mut String, header: &[&str; N], rows: &[[String; N]]) {
    let width = |nth: usize| {
        let cells = rows.iter().map(|row| row[nth].chars().count());
        cells.chain([header[nth].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _never_fails = writeln!(text, "{}", padded.join("  ").trim_end());
    };
    line(&mut header.iter().copied());
    rows.iter().for_each(|row| line(&mut row.iter().map(String::as_str)));
}

fn estimated(flags: &EstimateFlags) -> Result<ExitCode> {
    let footprint =
        fettle_inference::catalog::estimated(Utf8Path::new(&flags.path), flags.context, flags.parallel, flags.tp)?;
    let mut out = std::io::stdout().lock();
    let claims: Vec<Bytes> = footprint.claims().collect();
    if flags.json {
        let shards: Vec<_> = footprint
            .shards
            .iter()
            .zip(&claims)
            .map(|(parts, claim)| {
                serde_json::json!({
                    "weights": parts.weights, "kv": parts.kv, "compute": parts.compute,
                    "context": parts.context, "claim": claim,
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::json!({ "devices": shards, "host": footprint.host }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (nth, (parts, claim)) in footprint.shards.iter().zip(&claims).enumerate() {
        let (weights, kv, compute, context) = (parts.weights, parts.kv, parts.compute, parts.context);
        writeln!(
            out,
            "GPU {}: {claim} claimed (weights {weights}, cache {kv}, scratch {compute}, driver {context}, the rest until loads were measured)",
            nth + 1
        )?;
    }
    if footprint.host > Bytes::ZERO {
        writeln!(out, "host: {}", footprint.host)?;
    }
    Ok(ExitCode::SUCCESS)
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

    #[test]
    fn columns_stand_below_each_other() {
        let mut text = String::new();
        table(&mut text, &["A", "B"], &[["long".into(), "x".into()], ["y".into(), "z".into()]]);
        assert_eq!(text, "A     B\nlong  x\ny     z\n");
    }
}
