//! Sees how models call tools: each model of this machine when it is first ready, any other when somebody asks for it.
//!
//! An examination is a caller like any other, at the gateway, and the last in line: it ends when somebody waits for another
//! model, and is begun again later. What was found is kept for as long as weights, recipe and server stay the same.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_agent::conformance::{self, Examination, Extent, Seen, Unfinished, Verdict, examine, prompt_tokens};
use fettle_app::adding::Added;
use fettle_app::ports::clock::Clock;
use fettle_app::ports::model::{ModelInfo, ToolCalls};
use fettle_app::ports::serving::{Demand, Supply};
use fettle_app::serving::Catalog;
use fettle_llm::{OpenAiCompatible, OpenAiOptions};
use fettle_runtime::config::{Config, Conformance, ModelKind};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Of a whole examination. A model that needs longer for four hundred short answers is too slow to work with.
const LIMIT: Duration = Duration::from_secs(5 * 60);
/// After an examination that came to no end; twice as long after each further one.
const AGAIN_AFTER: Duration = Duration::from_secs(10 * 60);
/// A model that is too slow for it today is too slow tomorrow.
const AGAIN_AT_MOST: Duration = Duration::from_secs(24 * 3600);
/// How soon a model that became ready is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Questions at once to a model elsewhere.
const PARALLEL_ELSEWHERE: usize = 4;
/// Wrong answers of a smoke run that are luck.
const SMOKE_LUCK: u32 = 1;

/// What somebody wants now.
pub enum Wish {
    Examine {
        model: String,
        /// Also where its server may want money for that.
        may_cost: bool,
        answer: oneshot::Sender<Result<Report, String>>,
    },
    /// That what was found of it counts no longer; Runs then find out by themselves.
    Forget { model: String, answer: oneshot::Sender<Result<(), String>> },
}

/// What was found of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub model: String,
    /// Names weights, recipe and server.
    pub bundle: String,
    /// RFC 3339.
    pub at: String,
    pub tool_calls: ToolCalls,
    pub seen: Vec<Seen>,
}

/// A model that may be examined.
#[derive(Debug, Clone)]
struct Subject {
    context_tokens: u64,
    bundle: String,
    parallel: usize,
    is_local: bool,
    /// Somebody added it, and may remove it.
    is_added: bool,
    report: Option<Report>,
    /// What is known was seen of this very process's engine, or nothing has to be.
    settled: bool,
    not_before: Option<Instant>,
    /// Examinations in a row that came to no end.
    unfinished: u32,
    /// What the bundle is made of beside files, and these.
    described: Vec<String>,
    weights: Vec<Utf8PathBuf>,
}

impl Subject {
    fn put_off(&mut self, now: Instant) {
        let wait = AGAIN_AFTER.saturating_mul(1 << self.unfinished.min(8)).min(AGAIN_AT_MOST);
        self.unfinished += 1;
        self.not_before = Some(now + wait);
    }

    /// As the files are now.
    fn bundle(&self) -> String {
        let stamps = self.weights.iter().map(|weights| stamp(weights));
        let of: Vec<String> = self.described.iter().cloned().chain(stamps).collect();
        hex::encode(&Sha256::digest(of.join("\n"))[..16])
    }
}

/// What an examiner works with.
pub struct Parts {
    pub mode: Conformance,
    /// The gateway's root, and a key that it knows.
    pub url: String,
    pub key: SecretString,
    pub folder: Utf8PathBuf,
    pub supply: watch::Receiver<Arc<Supply>>,
    pub demand: watch::Receiver<Arc<Demand>>,
    pub wishes: mpsc::Receiver<Wish>,
    /// Models that people added are examined when somebody asks for it.
    pub added: watch::Receiver<Arc<Added>>,
    pub told: watch::Sender<Arc<BTreeMap<String, ToolCalls>>>,
    pub clock: Arc<dyn Clock>,
}

pub struct Examiner {
    parts: Parts,
    subjects: BTreeMap<String, Subject>,
}

impl Examiner {
    /// Knows what earlier processes found of the same bundles.
    pub fn new(config: &Config, catalog: &Catalog, parts: Parts) -> Self {
        let mut subjects = subjects(config, catalog);
        for (name, subject) in &mut subjects {
            subject.report = recall(&parts.folder, name, &subject.bundle);
        }
        let examiner = Self { parts, subjects };
        examiner.tell();
        examiner
    }

    /// Until `stop`, one model after the other.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(wish) = self.parts.wishes.recv() => {
                    let (model, may_cost, mut answer) = match wish {
                        Wish::Examine { model, may_cost, answer } => (model, may_cost, answer),
                        Wish::Forget { model, answer } => {
                            let _ = answer.send(self.forget(&model).map_err(|why| format!("{why:#}")));
                            continue;
                        }
                    };
                    self.take_added();
                    if let Some(why) = self.costs(&model).filter(|_| !may_cost) {
                        let _ = answer.send(Err(why));
                        continue;
                    }
                    tokio::select! {
                        // Whoever asked has gone, and with him who pays for it.
                        () = answer.closed() => info!("the examination of `{model}` is given up: nobody waits for it"),
                        examined = self.examined(&model, Extent::Whole, &stop) => {
                            let _ = answer.send(examined.map_err(|why| format!("{why:#}")));
                        }
                    }
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            self.take_added();
            let (supply, demand) = (self.parts.supply.borrow().clone(), self.parts.demand.borrow().clone());
            if let Some((name, extent)) = due(self.parts.mode, &self.subjects, &supply, &demand, Instant::now()) {
                match self.examined(&name, extent, &stop).await {
                    Ok(report) => info!(model.id = name, "`{name}`: {}", in_words(&report.tool_calls)),
                    Err(why) => {
                        warn!(model.id = name, "how `{name}` calls tools is not known: {why:#}");
                        if let Some(subject) = self.subjects.get_mut(&name) {
                            subject.put_off(Instant::now());
                        }
                    }
                }
            }
        }
    }

    /// What was added since is known, what was changed is another subject, and what was removed is none.
    fn take_added(&mut self) {
        if !self.parts.added.has_changed().unwrap_or(false) {
            return;
        }
        let added = self.parts.added.borrow_and_update().clone();
        self.subjects.retain(|name, subject| !subject.is_added || added.model(name).is_some());
        for model in &added.models {
            let profile = &model.profile;
            let mut fresh = Subject {
                is_added: true,
                ..elsewhere(profile.context_tokens, profile.kind, profile.server(), profile.wire_name())
            };
            let known = self.subjects.get(&profile.name);
            if known.is_none_or(|known| known.is_added && known.bundle != fresh.bundle) {
                fresh.report = recall(&self.parts.folder, &profile.name, &fresh.bundle);
                self.subjects.insert(profile.name.clone(), fresh);
            }
        }
        self.tell();
    }

    /// Why asking this model all questions may cost somebody money.
    fn costs(&self, name: &str) -> Option<String> {
        let subject = self.subjects.get(name).filter(|subject| !subject.is_local)?;
        let millions = prompt_tokens(subject.context_tokens) as f64 / 1e6;
        Some(format!(
            "`{name}` is answered by a server elsewhere, which may cost money: some 220 questions with about {millions:.1} million tokens in all, and as many again for each form that it does not know well. Add --yes to ask them"
        ))
    }

    fn forget(&mut self, name: &str) -> Result<()> {
        self.take_added();
        let subject = self.subjects.get_mut(name).with_context(|| format!("no model is called `{name}`"))?;
        match fs_err::remove_file(file(&self.parts.folder, &subject.bundle)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        (subject.report, subject.settled, subject.not_before) = (None, false, None);
        info!(model.id = name, "what was found of `{name}` is forgotten");
        self.tell();
        Ok(())
    }

    /// Asks, keeps what was found and tells it. A smoke run that goes badly becomes a whole one.
    async fn examined(&mut self, name: &str, extent: Extent, stop: &CancellationToken) -> Result<Report> {
        let subject = self.subjects.get_mut(name).with_context(|| format!("no model is called `{name}`"))?;
        let bundle = subject.bundle();
        let mut extent = extent;
        if subject.bundle != bundle {
            // What is known is of other weights.
            (subject.bundle, subject.report, extent) = (bundle, None, Extent::Whole);
        }
        let subject = subject.clone();
        let mut seen = self.ask(name, &subject, extent, stop).await?;
        if let (Extent::Smoke(_), [only]) = (extent, seen.as_slice()) {
            let lucky = only.score.asked - only.score.right <= SMOKE_LUCK;
            if let Some(known) = subject.report.clone().filter(|_| lucky) {
                self.settle(name, known.clone());
                return Ok(known);
            }
            seen = self.ask(name, &subject, Extent::Whole, stop).await?;
        }
        let report = Report {
            model: name.to_owned(),
            bundle: subject.bundle,
            at: self.parts.clock.now().to_string(),
            tool_calls: conformance::told(&seen),
            seen,
        };
        keep(&self.parts.folder, &report).context("what was found cannot be kept")?;
        self.settle(name, report.clone());
        Ok(report)
    }

    async fn ask(&self, name: &str, subject: &Subject, extent: Extent, stop: &CancellationToken) -> Result<Vec<Seen>> {
        let info = ModelInfo { name: name.to_owned(), context_tokens: subject.context_tokens };
        let mut options = OpenAiOptions::new(info, format!("{}/v1", self.parts.url), name);
        options.api_key = Some(self.parts.key.clone());
        options.is_gateway = true;
        let model = OpenAiCompatible::new(options)?;
        let examination = Examination { extent, parallel: subject.parallel, limit: LIMIT };
        let cancel = stop.child_token();
        let mut demand = self.parts.demand.clone();
        let wanted_elsewhere = demand.wait_for(|demand| others_wait(demand, name));
        tokio::select! {
            seen = examine(&model, examination, &cancel) => Ok(seen?),
            // What it asks for is dropped, and the engine is free for whoever waits.
            _ = wanted_elsewhere => Err(Unfinished::Cancelled).context("somebody waits for another model"),
        }
    }

    fn settle(&mut self, name: &str, report: Report) {
        if let Some(subject) = self.subjects.get_mut(name) {
            subject.report = Some(report);
            subject.settled = true;
            subject.unfinished = 0;
        }
        self.tell();
    }

    fn tell(&self) {
        let known = self.subjects.iter();
        let told =
            known.filter_map(|(name, subject)| Some((name.clone(), subject.report.as_ref()?.tool_calls.clone())));
        self.parts.told.send_replace(Arc::new(told.collect()));
    }
}

fn others_wait(demand: &Demand, name: &str) -> bool {
    demand.waiting.iter().any(|waiting| waiting.model.as_str() != name)
}

/// Which model is to be examined now, and how thoroughly: one that is ready, that nobody keeps from it, and of which this
/// process has not seen how it calls tools. Models elsewhere cost money and are never asked without being told to.
fn due(
    mode: Conformance,
    subjects: &BTreeMap<String, Subject>,
    supply: &Supply,
    demand: &Demand,
    now: Instant,
) -> Option<(String, Extent)> {
    if mode == Conformance::Off {
        return None;
    }
    let ready = |name: &str| {
        let mut models = supply.models.iter();
        models.any(|model| model.id.as_str() == name && model.engines.iter().any(|engine| !engine.draining))
    };
    let open = subjects.iter().filter(|(name, subject)| {
        let waits = subject.not_before.is_some_and(|not_before| now < not_before);
        subject.is_local && !subject.settled && !waits && ready(name) && !others_wait(demand, name)
    });
    open.map(|(name, subject)| (name.clone(), extent(subject))).next()
}

fn extent(subject: &Subject) -> Extent {
    let known = subject.report.as_ref().map(|report| conformance::verdict(&report.seen));
    match known {
        Some(Verdict::Works(form)) => Extent::Smoke(form.dialect),
        // It may have been bad luck, or another template since; that costs little to find out.
        Some(Verdict::ChatOnly(_)) | None => Extent::Whole,
    }
}

/// One sentence for people.
pub fn in_words(calls: &ToolCalls) -> String {
    match calls {
        ToolCalls::Form { dialect, edits, stream, right, asked } => {
            let streamed = if *stream { "streamed" } else { "not streamed" };
            format!(
                "tools are called in the {dialect} form, {streamed}, files changed by {edits}; {right} of {asked} right"
            )
        }
        ToolCalls::ChatOnly { why } => format!("for chat only: {why}"),
    }
}

fn subjects(config: &Config, catalog: &Catalog) -> BTreeMap<String, Subject> {
    let local = catalog.models.iter().filter_map(|model| {
        let recipe = model.recipes.first()?;
        let all = model.recipes.iter().map(|one| one.recipe.id.to_string()).collect();
        let weights = model.recipes.iter().map(|one| one.weights.clone()).collect();
        let (context_tokens, parallel) = (u64::from(recipe.recipe.ctx), usize::from(recipe.recipe.parallel));
        Some((model.id.to_string(), subject(context_tokens, all, weights, parallel, true)))
    });
    let elsewhere = config
        .gateway
        .models
        .iter()
        .filter(|model| !model.is_local())
        .map(|model| (model.name.clone(), elsewhere(model.context, model.kind, model.server(), model.wire_name())));
    local.chain(elsewhere).collect()
}

fn elsewhere(context_tokens: u64, kind: ModelKind, server: Option<&str>, wire_name: &str) -> Subject {
    let server = vec![format!("{kind:?} {server:?} {wire_name}")];
    subject(context_tokens, server, Vec::new(), PARALLEL_ELSEWHERE, false)
}

fn subject(
    context_tokens: u64,
    described: Vec<String>,
    weights: Vec<Utf8PathBuf>,
    parallel: usize,
    is_local: bool,
) -> Subject {
    let subject = Subject {
        context_tokens,
        bundle: String::new(),
        parallel,
        is_local,
        is_added: false,
        report: None,
        settled: false,
        not_before: None,
        unfinished: 0,
        described,
        weights,
    };
    Subject { bundle: subject.bundle(), ..subject }
}

/// Whether files are still the same, of a folder all that lie in it: reading all of their bytes would take longer than the
/// examination.
fn stamp(weights: &Utf8Path) -> String {
    let about = |path: &Utf8Path| {
        let about = fs_err::metadata(path).ok()?;
        let modified = about.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(format!("{} {} {}", path.file_name().unwrap_or_default(), about.len(), modified.as_nanos()))
    };
    let within = weights.read_dir_utf8().into_iter().flatten().flatten().filter_map(|entry| about(entry.path()));
    let mut all: Vec<String> = within.collect();
    all.extend(about(weights).filter(|_| !weights.is_dir()));
    all.sort_unstable();
    all.join("\n")
}

fn file(folder: &Utf8Path, bundle: &str) -> Utf8PathBuf {
    folder.join(format!("{bundle}.json"))
}

/// What an older or newer version wrote in another shape is as good as nothing.
fn recall(folder: &Utf8Path, model: &str, bundle: &str) -> Option<Report> {
    let text = fs_err::read(file(folder, bundle)).ok()?;
    let report: Report = serde_json::from_slice(&text).ok()?;
    (report.bundle == bundle).then(|| Report { model: model.to_owned(), ..report })
}

fn keep(folder: &Utf8Path, report: &Report) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (whole, begun) = (file(folder, &report.bundle), folder.join("begun"));
    fs_err::write(&begun, serde_json::to_vec_pretty(report)?)?;
    Ok(fs_err::rename(begun, whole)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fettle_agent::conformance::Score;
    use fettle_agent::dialect::Dialect;
    use fettle_app::ports::serving::{Endpoint, EngineAddress, ReadyEngine, ServedModel, Waiting};
    use fettle_placement::id::{EngineId, Epoch, ModelId, OwnerId};
    use fettle_placement::view::Class;

    use super::*;

    fn ready(name: &str) -> Supply {
        let address =
            EngineAddress { at: Endpoint::Unix("e".into()), key: None, model: name.to_owned(), kv_tokens: None };
        let engine = ReadyEngine {
            engine: EngineId::new("e"),
            epoch: Epoch(1),
            recipe: "r".to_owned(),
            address,
            parallel: 1,
            draining: false,
            devices: Vec::new(),
        };
        let model =
            ServedModel { id: ModelId::new(name), context_tokens: 32_768, engines: vec![engine], unserved: None };
        Supply { models: vec![model] }
    }

    fn waiting_for(name: &str) -> Demand {
        let waiting = Waiting {
            model: ModelId::new(name),
            owner: OwnerId::new("ada"),
            class: Class::Interactive,
            requests: 1,
            oldest: Instant::now(),
        };
        Demand { waiting: vec![waiting] }
    }

    fn one(name: &str, change: impl FnOnce(&mut Subject)) -> BTreeMap<String, Subject> {
        let mut subject = subject(32_768, vec![name.to_owned()], Vec::new(), 1, true);
        change(&mut subject);
        BTreeMap::from([(name.to_owned(), subject)])
    }

    fn found(dialect: Dialect, right: u32) -> Report {
        let seen = Seen {
            dialect,
            score: Score { right, asked: 200 },
            by_kind: BTreeMap::new(),
            streaming: Score::default(),
            edits: BTreeMap::new(),
            wrong: Vec::new(),
        };
        let seen = vec![seen];
        let tool_calls = conformance::told(&seen);
        Report { model: "coder".into(), bundle: "b".into(), at: String::new(), tool_calls, seen }
    }

    #[tokio::test]
    async fn a_model_is_due_once_it_is_ready_and_nobody_waits_for_another() {
        let (calm, now) = (Demand::default(), Instant::now());
        let asked = |subjects: &BTreeMap<String, Subject>, supply: &Supply, demand: &Demand| {
            due(Conformance::Auto, subjects, supply, demand, now).map(|(_, extent)| extent)
        };
        let fresh = one("coder", |_| {});
        assert_eq!(asked(&fresh, &ready("coder"), &calm), Some(Extent::Whole));
        assert_eq!(asked(&fresh, &ready("coder"), &waiting_for("coder")), Some(Extent::Whole), "it comes after those");
        assert_eq!(asked(&fresh, &ready("coder"), &waiting_for("other")), None);
        assert_eq!(asked(&fresh, &Supply::default(), &calm), None);
        assert_eq!(due(Conformance::Off, &fresh, &ready("coder"), &calm, now), None);
        assert_eq!(asked(&one("coder", |one| one.settled = true), &ready("coder"), &calm), None);
        assert_eq!(asked(&one("coder", |one| one.is_local = false), &ready("coder"), &calm), None, "it costs money");
        let later = one("coder", |one| one.not_before = Some(now + Duration::from_secs(1)));
        assert_eq!(asked(&later, &ready("coder"), &calm), None);
        let known = one("coder", |one| one.report = Some(found(Dialect::Xml, 199)));
        assert_eq!(asked(&known, &ready("coder"), &calm), Some(Extent::Smoke(Dialect::Xml)));
        let refused = one("coder", |one| one.report = Some(found(Dialect::Xml, 5)));
        assert_eq!(asked(&refused, &ready("coder"), &calm), Some(Extent::Whole));
    }

    #[test]
    fn a_file_that_was_replaced_in_its_folder_is_another_bundle() {
        let home = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(home.path()).unwrap().to_owned();
        fs_err::write(folder.join("model.safetensors"), "one").unwrap();
        let subject = subject(32_768, vec!["recipe".to_owned()], vec![folder.clone()], 1, true);
        assert_eq!(subject.bundle(), subject.bundle);
        fs_err::write(folder.join("model.safetensors"), "another").unwrap();
        assert_ne!(subject.bundle(), subject.bundle);
    }

    #[test]
    fn a_model_that_is_too_slow_is_asked_ever_more_rarely() {
        let mut subject = subject(32_768, Vec::new(), Vec::new(), 1, true);
        let now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..12 {
            subject.put_off(now);
            waits.push(subject.not_before.unwrap() - now);
        }
        assert_eq!((waits[0], waits[1], waits[11]), (AGAIN_AFTER, AGAIN_AFTER * 2, AGAIN_AT_MOST));
    }

    #[test]
    fn what_was_found_is_known_again_for_the_same_bundle_and_no_other() {
        let home = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(home.path()).unwrap().join("examined");
        let report = found(Dialect::Native, 200);
        keep(&folder, &report).unwrap();
        assert_eq!(recall(&folder, "coder", "b"), Some(report));
        assert_eq!(recall(&folder, "coder", "c"), None);
        fs_err::write(file(&folder, "b"), "{").unwrap();
        assert_eq!(recall(&folder, "coder", "b"), None);
    }
}
