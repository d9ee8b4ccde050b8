//! The models of this machine: what the configuration says of them, put together with what their files say.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::serving::{Catalog, LocalModel, LocalRecipe};
use fettle_engines::driver;
use fettle_engines::models::weights;
use fettle_engines::settings::Programs;
use fettle_placement::device::ComputeCapability;
use fettle_placement::estimate::{estimate, measured};
use fettle_placement::footprint::{Footprint, Parts, Slack, Source};
use fettle_placement::id::{ModelId, RecipeId};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::{EngineKind, Recipe, RunsOn, SleepLevel};
use fettle_placement::view::Policy;
use fettle_runtime::config::{Config, Gpu, ModelConfig, RecipeConfig};
use fettle_runtime::environment::Environment;
use sha2::{Digest as _, Sha256};

use crate::start::programs;

/// Bytes that a disk gives in a millisecond, to foresee the first load; later ones are measured.
const LOADED_PER_MILLI: u64 = 1 << 20;
/// Starting a process, its libraries and its driver, however small the model.
const LEAST_LOAD: Millis = Millis::secs(5);

/// The catalog, and for each model that cannot be run why not. Those that can are served all the same.
pub fn catalog(config: &Config) -> (Catalog, Vec<(String, anyhow::Error)>) {
    let programs = programs(config);
    let mut models = Vec::new();
    let mut refused = Vec::new();
    for model in config.gateway.models.iter().filter(|model| model.is_local()) {
        match local(model, &programs) {
            Ok(model) => models.push(model),
            Err(why) => refused.push((model.name.clone(), why)),
        }
    }
    (Catalog { models, policy: policy(&config.gpu) }, refused)
}

/// A program that a recipe needs and that nobody would find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingProgram {
    pub model: String,
    pub engine: EngineKind,
    pub program: Utf8PathBuf,
}

impl fmt::Display for MissingProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, engine, program } = self;
        let engine = engine.name();
        write!(
            f,
            "`{model}` is run by {engine}, and there is no program {program}: install it, or name it with gpu.engines.{engine}.program"
        )
    }
}

/// Looked for as engines find them: a path as it is, a name on this process's PATH. Each program is told once.
pub fn missing_programs(catalog: &Catalog, config: &Config, environment: &Environment) -> Vec<MissingProgram> {
    let programs = programs(config);
    let path: Vec<&Utf8Path> = environment.find("PATH").unwrap_or_default().split(':').map(Utf8Path::new).collect();
    let is_there = |program: &Utf8Path| match program.components().count() {
        1 => path.iter().any(|folder| folder.join(program).is_file()),
        _ => program.is_file(),
    };
    let mut missing: Vec<MissingProgram> = Vec::new();
    for recipe in catalog.all().map(|local| &local.recipe) {
        let Some(program) = programs.of(recipe.engine).filter(|program| !is_there(program)) else { continue };
        if missing.iter().all(|known| known.program != program) {
            missing.push(MissingProgram {
                model: recipe.model.to_string(),
                engine: recipe.engine,
                program: program.to_owned(),
            });
        }
    }
    missing
}

fn policy(gpu: &Gpu) -> Policy {
    let millis = |span: fettle_runtime::units::Span| Millis::new(u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX));
    Policy {
        recipes: gpu.recipes,
        min_residency: millis(gpu.min_residency),
        starve_after: millis(gpu.starve_after),
        drain_deadline: millis(gpu.drain_deadline),
        replica_delay: millis(gpu.replica_delay),
        idle_ttl: Some(millis(gpu.idle_ttl)).filter(|ttl| *ttl > Millis::ZERO),
        ..Policy::default()
    }
}

fn local(model: &ModelConfig, programs: &Programs) -> Result<LocalModel> {
    let default;
    let recipes = match (&model.path, model.recipes.as_slice()) {
        (Some(path), []) => {
            default = [usual(path)];
            &default[..]
        }
        (_, recipes) => recipes,
    };
    let recipes = recipes.iter().map(|recipe| seated(model, recipe, programs)).collect::<Result<Vec<_>>>()?;
    let replicas = (model.replicas[0], model.replicas[1]);
    Ok(LocalModel { id: ModelId::new(&model.name), recipes, replicas, pinned: model.pinned })
}

/// What fits the files: GGUF is llama.cpp's, all else vLLM's.
fn usual(path: &Utf8Path) -> RecipeConfig {
    let gguf = path.extension() == Some("gguf");
    RecipeConfig::of(if gguf { EngineKind::LlamaServer } else { EngineKind::Vllm })
}

fn seated(model: &ModelConfig, config: &RecipeConfig, programs: &Programs) -> Result<LocalRecipe> {
    let weights = match (&model.path, &config.file) {
        (Some(path), Some(file)) if file.is_relative() => path.join(file),
        (_, Some(file)) => file.clone(),
        (Some(path), None) => path.clone(),
        (None, None) => Utf8PathBuf::new(),
    };
    let context = config.context.unwrap_or_else(|| u32::try_from(model.context).unwrap_or(u32::MAX));
    let recipe = recipe(&ModelId::new(&model.name), config, context, &weights);
    if let Some(refused) = driver::refusal(&recipe, &weights, programs) {
        bail!("its recipe for {} cannot be started: {refused}", config.engine.name());
    }
    let footprint = footprint(&recipe, config, &weights)
        .with_context(|| format!("what `{}` takes with {} cannot be known", model.name, config.engine.name()))?;
    Ok(LocalRecipe { recipe, footprint, weights })
}

fn recipe(model: &ModelId, config: &RecipeConfig, context: u32, weights: &Utf8Path) -> Recipe {
    let recipe = Recipe {
        id: RecipeId::new(""),
        model: model.clone(),
        engine: config.engine,
        build: String::new(),
        quant: String::new(),
        kv: config.kv,
        on: config.device,
        tp: config.tp,
        ctx: context,
        parallel: config.parallel,
        min_cc: ComputeCapability(0, 0),
        sleep: SleepLevel::Never,
        flags: config.args.clone(),
    };
    Recipe { id: name(&recipe, weights), ..recipe }
}

/// Readable, and another one for whatever is different.
fn name(recipe: &Recipe, weights: &Utf8Path) -> RecipeId {
    let digest = hex::encode(Sha256::digest(format!("{recipe:?} {weights}")));
    let on = match recipe.on {
        RunsOn::Gpu if recipe.tp > 1 => format!(" tp{}", recipe.tp),
        RunsOn::Gpu => String::new(),
        RunsOn::Cpu => " cpu".to_owned(),
    };
    RecipeId::new(format!("{}{on} ctx{} {}", recipe.engine.name(), recipe.ctx, &digest[..8]))
}

/// What the files at `path` would take with the engine that fits them.
pub fn estimated(path: &Utf8Path, context: u32, parallel: u16, tp: u8) -> Result<Footprint> {
    let config = RecipeConfig { tp, parallel, context: Some(context), ..usual(path) };
    let recipe = recipe(&ModelId::new("estimated"), &config, context, path);
    footprint(&recipe, &config, path)
}

fn footprint(recipe: &Recipe, config: &RecipeConfig, weights: &Utf8Path) -> Result<Footprint> {
    let (shards, host, slack, source) = match config.memory {
        Some(memory) => {
            let parts = Parts { weights: Bytes::new(memory.0), ..Parts::default() };
            (vec![parts; usize::from(recipe.tp)], Bytes::ZERO, Slack::NONE, Source::Dictated)
        }
        None => {
            let facts = weights::facts(weights)?;
            let estimate = estimate(&facts, recipe, measured::CONTEXT);
            (estimate.shards, estimate.host, Slack::FIRST, Source::Formula)
        }
    };
    let bytes: Bytes = shards.iter().map(|parts| parts.weights).sum();
    let load = LEAST_LOAD + Millis::new(bytes.get() / LOADED_PER_MILLI);
    Ok(Footprint { shards, slack, host, peak_permille: 1000, load, source })
}

#[cfg(test)]
mod tests {
    use fettle_placement::recipe::KvType;
    use fettle_runtime::environment::Environment;

    use super::*;

    fn of(text: &str) -> (Catalog, Vec<(String, anyhow::Error)>) {
        let text = format!("{text}\n[gpu.engines.command]\nprogram = \"/usr/bin/engine\"\n");
        catalog(&Config::parse("fettle.toml", &text, &Environment::default()).unwrap())
    }

    #[test]
    fn a_recipe_that_says_what_it_takes_needs_no_files() {
        let (catalog, refused) = of(r#"
            [[gateway.models]]
            name = "coder"
            [[gateway.models.recipes]]
            engine = "command"
            memory = "20GiB"
            tp = 2
        "#);
        assert!(refused.is_empty(), "{refused:?}");
        let local = &catalog.models[0].recipes[0];
        assert_eq!(local.footprint.claims().collect::<Vec<_>>(), [Bytes::gib(20), Bytes::gib(20)]);
        assert!(local.recipe.id.as_str().starts_with("command tp2 ctx65536 "), "{}", local.recipe.id);
        assert_eq!(local.recipe.kv, KvType::F16);
    }

    #[test]
    fn a_model_whose_files_are_not_there_is_told_and_the_others_are_served() {
        let (catalog, refused) = of(r#"
            [[gateway.models]]
            name = "lost"
            path = "/nowhere/model.gguf"
            [[gateway.models]]
            name = "coder"
            recipes = [{ engine = "command", memory = "1GiB", device = "cpu" }]
        "#);
        assert_eq!(catalog.models.len(), 1);
        assert_eq!(refused[0].0, "lost");
        assert!(format!("{:#}", refused[0].1).contains("/nowhere/model.gguf"));
    }

    #[test]
    fn what_is_set_differently_is_another_recipe() {
        let id = |context: u32| {
            let text = format!(
                "[[gateway.models]]\nname = \"a\"\nrecipes = [{{ engine = \"command\", memory = \"1GiB\", context = {context} }}]"
            );
            of(&text).0.models[0].recipes[0].recipe.id.clone()
        };
        assert_eq!(id(4096), id(4096));
        assert_ne!(id(4096), id(8192));
    }

    #[test]
    fn programs_are_looked_for_as_engines_find_them_and_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let found = folder.path().join("found");
        fs_err::write(&found, "").unwrap();
        let told = |program: &str| {
            let text = format!(
                "[gpu.engines.command]\nprogram = \"{program}\"\n\
                 [[gateway.models]]\nname = \"a\"\nrecipes = [{{ engine = \"command\", memory = \"1GiB\" }}]\n\
                 [[gateway.models]]\nname = \"b\"\nrecipes = [{{ engine = \"command\", memory = \"1GiB\" }}]\n"
            );
            let config = Config::parse("fettle.toml", &text, &Environment::default()).unwrap();
            let environment = Environment::from_pairs([("PATH", folder.path().to_str().unwrap())]);
            missing_programs(&catalog(&config).0, &config, &environment)
        };
        assert_eq!(told(found.to_str().unwrap()), []);
        assert_eq!(told("found"), []);
        let missing = told("/nowhere/engine");
        assert_eq!(missing.len(), 1);
        assert!(missing[0].to_string().contains("there is no program /nowhere/engine"), "{}", missing[0]);
        assert_eq!(told("lost").len(), 1);
    }
}
