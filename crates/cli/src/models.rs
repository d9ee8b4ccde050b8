//! `fettle models`: the models of this machine, on disk and in engines.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_domain::outgoing::visible;
use fettle_engines::models::{Flaw, IsLink, Links, Local, Source, SourceError, Store, StoreError, model_name, ready};
use fettle_inference::admin::{EngineView, LogView, StatusView};
use fettle_inference::examiner::in_words;
use fettle_placement::id::ModelId;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use serde_json::json;

use crate::Common;
use crate::inference_process::{Away, Process};
use crate::progress::{note, one_line};
use crate::table::{short, table};

mod bar;
mod conformance;
mod entry;
mod listing;
mod mirror;

use bar::Bar;
use mirror::Mirror;

/// Of `logs --follow`.
const LOG_AGAIN: Duration = Duration::from_millis(500);
const GIB: f64 = (1 << 30) as f64;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Flags {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Bring a model's files here, whole and checked, and print the entry that it needs in the configuration.
    Add(AddFlags),
    /// List the models that were brought here: size, digest, where they fit, and who uses them.
    List {
        /// Print one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Remove a model's files, also those of an `add` that was interrupted.
    Rm { name: String },
    /// Read every byte again, and say which files are not what they were.
    #[command(after_help = "Exit status: 0 when all files are whole, 1 when one is not.")]
    Verify {
        /// Without one, all models.
        name: Option<String>,
        /// Print one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Show what a model's engine says, also one that has ended.
    Logs {
        /// A model, or one engine as `fettle models` names it.
        name: String,
        /// Go on until Ctrl-C.
        #[arg(long, short)]
        follow: bool,
        /// Of what was said before.
        #[arg(long, default_value_t = 200)]
        lines: usize,
    },
    /// Load a model now, and keep it loaded until the process ends, or `unload`, also when nobody asks for it.
    Load {
        /// As configured: the name of a [[gateway.models]] entry.
        model: String,
        /// No other model pushes it out.
        #[arg(long)]
        pin: bool,
    },
    /// Let a model go, once what it is at has ended; who asks for it next has it loaded again.
    Unload { model: String },
    /// Say what a model's files would take of a GPU, without loading anything.
    Estimate(EstimateFlags),
    /// Ask a model some hundred small questions, and say how it calls tools best; that takes minutes.
    #[command(
        after_help = "Exit status: 0 when it calls tools well enough to work on issues, 1 when it is for chat only."
    )]
    Check {
        /// As configured: the name of a [[gateway.models]] entry.
        model: String,
        /// Also where its server may want money for that.
        #[arg(long)]
        yes: bool,
        /// Ask nothing, and forget what was found: Runs then find out by themselves how it calls tools.
        #[arg(long, conflicts_with_all = ["yes", "json"])]
        forget: bool,
        /// Print one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct AddFlags {
    /// What to call it; `codellama:13b`, `deepseek-coder:6.7b` and `mistral:7b` have recipes ready.
    name: String,
    /// A GGUF file, or a folder of safetensors; without it, what gateway.mirror has under the name.
    path: Option<Utf8PathBuf>,
    /// Take what links in the folder lead to, as a download cache has them.
    #[arg(long, requires = "path")]
    follow_links: bool,
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

pub(crate) async fn run(common: &Common, flags: &Flags, environment: &Environment) -> Result<ExitCode> {
    match &flags.command {
        Some(Command::Estimate(estimate)) => estimated(estimate),
        Some(Command::Check { model, forget: true, .. }) => {
            conformance::forget(&Process::of(common, environment)?, model).await
        }
        Some(Command::Check { model, yes, json, .. }) => {
            let config = Config::load(common.config.as_deref(), environment)?;
            if !yes {
                conformance::may_cost(&config, model)?;
            }
            conformance::is_there(&config, model).await?;
            conformance::check(&Process::of(common, environment)?, model, *yes, *json).await
        }
        Some(Command::Add(add)) => Here::of(common, environment)?.add(add).await,
        Some(Command::List { json }) => Here::of(common, environment)?.list(*json).await,
        Some(Command::Rm { name }) => Here::of(common, environment)?.remove(name).await,
        Some(Command::Verify { name, json }) => Here::of(common, environment)?.verify(name.as_deref(), *json).await,
        Some(Command::Logs { name, follow, lines }) => {
            logs(&Process::of(common, environment)?, name, *follow, *lines).await
        }
        Some(Command::Load { model, pin }) => {
            let order = if *pin { "pin" } else { "load" };
            Process::of(common, environment)?.order(&format!("models/{order}"), &json!({ "model": model })).await?;
            note(&format!("{model} is kept loaded; `fettle placements --why {model}` tells how far it is"));
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Unload { model }) => {
            Process::of(common, environment)?.order("models/unload", &json!({ "model": model })).await?;
            note(&format!("{model} is let go once what it is at has ended"));
            Ok(ExitCode::SUCCESS)
        }
        None => loaded(&Process::of(common, environment)?, flags.json).await,
    }
}

async fn loaded(process: &Process, json: bool) -> Result<ExitCode> {
    let status: StatusView = process.get("status").await?;
    let mut out = std::io::stdout().lock();
    if json {
        let shown = serde_json::json!({
            "models": status.models,
            "engines": status.engines,
            "refused": status.refused,
            "tool_calls": status.tool_calls,
        });
        writeln!(out, "{shown}")?;
    } else {
        write!(out, "{}", engines(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The models on this machine's disk, and who may use them.
struct Here {
    config: Config,
    store: Store,
    process: Process,
}

impl Here {
    fn of(common: &Common, environment: &Environment) -> Result<Self> {
        let config = Config::load(common.config.as_deref(), environment)?;
        let data = DataDir::open(common.data_dir.as_deref(), &config, environment)?;
        Ok(Self { store: Store::at(data.models()), process: Process::at(&data)?, config })
    }

    async fn add(self, flags: &AddFlags) -> Result<ExitCode> {
        let id = model_name(&flags.name)?;
        let (config, store, wanted) = (self.config, self.store, id.clone());
        let source = source(flags, &config)?;
        let brought = tokio::task::spawn_blocking(move || {
            let mut bar = Bar::new();
            let added = source
                .open(&wanted)
                .and_then(|source| store.add(&wanted, source.as_ref(), &mut |seen| bar.show(seen)).map_err(hinted));
            bar.clear();
            let weights = store.weights(&wanted);
            anyhow::Ok((added?, weights?))
        });
        let (model, weights) = brought.await.context("while bringing the model")??;
        let files = model.files.len();
        note(&format!(
            "{id}: {files} file{} of {}, SHA-256 {}",
            if files == 1 { "" } else { "s" },
            model.bytes(),
            model.digest()
        ));
        if !listing::configured(&config, &weights).is_empty() {
            note("The configuration has it already: start Fettle anew, unless it has run since.");
            return Ok(ExitCode::SUCCESS);
        }
        let entry = entry::Entry::of(&id, &weights)?;
        note(&entry.takes()?);
        if config.gateway.models.iter().any(|model| model.name == id.as_str()) {
            note("Put this into fettle.toml in place of the entry of that name, and start Fettle anew:\n");
        } else {
            note("Put this into fettle.toml and start Fettle anew:\n");
        }
        write!(std::io::stdout().lock(), "{}", entry.toml())?;
        Ok(ExitCode::SUCCESS)
    }

    async fn list(self, json: bool) -> Result<ExitCode> {
        // Without the process it is not known what would fit where.
        let status: Option<StatusView> = match self.process.get("status").await {
            Ok(status) => Some(status),
            Err(error) if error.is::<Away>() => None,
            Err(error) => return Err(error),
        };
        let rows = listing::rows(&self.config, &self.store, status.as_ref())?;
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::json!({ "models": rows }))?;
        } else {
            write!(out, "{}", listing::text(&rows, status.is_some()))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn remove(self, name: &str) -> Result<ExitCode> {
        let id = model_name(name)?;
        let files = self.store.files(&id);
        match self.process.get::<StatusView>("status").await {
            Ok(status) => {
                let user = status.engines.iter().find(|engine| {
                    engine.weights.as_deref().is_some_and(|weights| listing::is_within(weights, &files))
                });
                if let Some(engine) = user {
                    bail!(
                        "the engine {} uses its files: take the [[gateway.models]] entry `{}` out of the configuration and start Fettle anew, then remove them",
                        engine.id,
                        engine.model
                    );
                }
            }
            // Engines end with the process.
            Err(error) if error.is::<Away>() => {}
            Err(error) => return Err(error.context("whether an engine uses it is not known, so it stays")),
        }
        let named = listing::configured(&self.config, &files);
        self.store.remove(&id).map_err(hinted)?;
        note(&format!("{id} is removed"));
        for model in named {
            note(&format!("the [[gateway.models]] entry `{model}` names its files still, and can be loaded no more"));
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn verify(self, name: Option<&str>, json: bool) -> Result<ExitCode> {
        let wanted = name.map(model_name).transpose()?;
        let verified =
            tokio::task::spawn_blocking(move || verified(&self.store, wanted)).await.context("verifying")??;
        let whole = verified.iter().all(|(_, flaws)| flaws.is_empty());
        let mut out = std::io::stdout().lock();
        if json {
            let flaw = |(file, flaw): &(String, Flaw)| serde_json::json!({ "file": file, "flaw": said(flaw) });
            let models: Vec<_> = verified
                .iter()
                .map(|(id, flaws)| serde_json::json!({ "name": id, "flaws": flaws.iter().map(flaw).collect::<Vec<_>>() }))
                .collect();
            writeln!(out, "{}", serde_json::json!({ "ok": whole, "models": models }))?;
        } else {
            for (id, flaws) in &verified {
                if flaws.is_empty() {
                    writeln!(out, "{id}: whole")?;
                }
                for (file, flaw) in flaws {
                    writeln!(out, "{id}: {file} {}", said(flaw))?;
                }
            }
        }
        if !whole {
            note("remove a model that is not whole with `fettle models rm` and add it again");
        }
        Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What can go to another thread, as a client that blocks must be made there.
enum From {
    Local(Local),
    Mirror(String),
}

fn source(flags: &AddFlags, config: &Config) -> Result<From> {
    if let Some(path) = &flags.path {
        let links = if flags.follow_links { Links::Follow } else { Links::Refuse };
        return Ok(From::Local(Local { path: camino::absolute_utf8(path)?, links }));
    }
    match &config.gateway.mirror {
        Some(mirror) => Ok(From::Mirror(mirror.clone())),
        None => {
            let file = ready::find(&flags.name).map_or("a GGUF file or a folder of safetensors", |ready| ready.file);
            bail!(
                "no mirror is configured (gateway.mirror): get {file} and give its path, as in `fettle models add {} PATH`",
                flags.name
            )
        }
    }
}

impl From {
    fn open(self, id: &ModelId) -> Result<Box<dyn Source>> {
        Ok(match self {
            Self::Local(local) => Box::new(local),
            Self::Mirror(url) => Box::new(Mirror::of(&url, id, mirror::Patience::default())?),
        })
    }
}

/// An error of the store with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Hinted {
    text: String,
    source: Option<SourceError>,
}

fn hinted(error: StoreError) -> anyhow::Error {
    let hint = match &error {
        StoreError::There(id) => format!("`fettle models rm {id}` removes it"),
        StoreError::Absent(_) => "`fettle models list` lists what there is".to_owned(),
        StoreError::Offer(e) if e.is::<IsLink>() => "--follow-links takes what links lead to".to_owned(),
        StoreError::NoRoom { .. } => "make room, or set gateway.models_dir to a folder on a larger disk".to_owned(),
        StoreError::Source { .. } | StoreError::Short { .. } => {
            "the same command goes on where this one stopped".to_owned()
        }
        _ => return error.into(),
    };
    let text = format!("{error}; {hint}");
    let source = match error {
        StoreError::Offer(source) | StoreError::Source { source, .. } => Some(source),
        _ => None,
    };
    Hinted { text, source }.into()
}

/// A model with its files that are not what they were.
type Verified = (ModelId, Vec<(String, Flaw)>);

fn verified(store: &Store, wanted: Option<ModelId>) -> Result<Vec<Verified>> {
    let ids = match wanted {
        Some(id) => vec![id],
        None => store.list()?.into_iter().filter_map(|entry| entry.whole().map(|model| model.id)).collect(),
    };
    let mut bar = Bar::new();
    let verified = ids
        .into_iter()
        .map(|id| {
            let flaws = store.verify(&id, &mut |seen| bar.show(seen)).map_err(hinted)?;
            Ok((id, flaws))
        })
        .collect();
    bar.clear();
    verified
}

fn said(flaw: &Flaw) -> String {
    match flaw {
        Flaw::Missing => "is missing".to_owned(),
        Flaw::Size { bytes } => format!("has {bytes} bytes, which is not its size"),
        Flaw::Digest => "is not what it was: its digest differs".to_owned(),
    }
}

async fn logs(process: &Process, name: &str, follow: bool, lines: usize) -> Result<ExitCode> {
    let mut part: LogView = process.ask("log", &[("name", name)]).await?;
    let all: Vec<&str> = part.text.split_inclusive('\n').collect();
    let mut text = all[all.len().saturating_sub(lines)..].concat();
    loop {
        let mut out = std::io::stdout().lock();
        write!(out, "{}", visible(&text))?;
        out.flush()?;
        drop(out);
        if !follow {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOG_AGAIN).await;
        part = process.ask("log", &[("name", &part.engine), ("from", &part.next)]).await?;
        text = std::mem::take(&mut part.text);
    }
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
    for (nth, (model, calls)) in status.tool_calls.iter().enumerate() {
        let gap = if nth == 0 { "\n" } else { "" };
        text.push_str(&format!("{gap}{model}: {}\n", one_line(&in_words(calls))));
    }
    text
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
