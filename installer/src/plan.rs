//! What has to be done to a host so that a release runs on it: facts, answers and the receipt go in; actions, their order and
//! refusals come out. Pure: the same input gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_runtime::config::{Config, ModelConfig, ModelKind};
use fettle_runtime::environment::Environment;
use serde::{Deserialize, Serialize};

use crate::action::{ActResult, Action, Check, ClusterAct, Gate, Keeping, Manifest, Way};
use crate::answers::{self, Answers};
use crate::host::{Attrs, HostView, Owner};
use crate::journal::{Product, Step};
use crate::k3s;
use crate::layout::{
    self, BACKUP_TIMER, CONFIG, CURRENT, DASHBOARD, INFERENCE, INFERENCE_SOCKET, RELEASES, SECRETS, SOCKETS, STATE,
    TARGET, USER,
};
use crate::receipt::{GENERATIONS, Receipt};

/// Bytes of a generated secret: 256 bits.
const SECRET_BYTES: usize = 32;
const WORKERS: &str = "fettle-worker@.service";
pub(crate) const WORKER_KEY: &str = "worker.key";
/// The head of a configuration that the installer wrote.
const CONFIG_HEAD: &str = "# Fettle's configuration. The installer wrote it once; it is yours now.\n\
# After a change: fettle check-config /etc/fettle/fettle.toml && fettle-installer apply\n\n";

const ANSWERS_HEAD: &str = "# What fettle-installer was asked for. `fettle-installer apply` starts from it; \
`apply --answers FILE` replaces it.\n\n";

/// A release tree, read and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub source: Utf8PathBuf,
    pub manifest: Manifest,
    pub manifest_sha256: String,
    /// Files below `share/fettle`, by their path there.
    pub shared: BTreeMap<Utf8PathBuf, String>,
}

impl Release {
    /// The folder's name below `releases`: a version may be built more than once.
    pub fn name(&self) -> String {
        format!("{}-{}", self.manifest.version, &self.manifest_sha256[..12])
    }

    pub fn path(&self) -> Utf8PathBuf {
        Utf8Path::new(RELEASES).join(self.name())
    }
}

/// What the planner knows of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `/etc/fettle/fettle.toml`, if it is there.
    pub config: Option<String>,
    /// Files that are there, of those that a configuration might name as secrets.
    pub secrets: BTreeSet<Utf8PathBuf>,
    /// The kernel lets only profiled programs make user namespaces.
    pub apparmor_restricts_namespaces: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub product: Product,
    pub actions: Vec<Action>,
    /// Why it cannot be carried out; nothing is done while there is one.
    pub refusals: Vec<String>,
}

pub fn plan(release: &Release, facts: &Facts, answers: &Answers) -> Plan {
    let mut plan = Planning { release, facts, answers, actions: Vec::new(), refusals: Vec::new() };
    plan.whole();
    let product = Product { version: release.manifest.version.clone(), release: release.name() };
    Plan { product, actions: plan.actions, refusals: plan.refusals }
}

struct Planning<'a> {
    release: &'a Release,
    facts: &'a Facts,
    answers: &'a Answers,
    actions: Vec<Action>,
    refusals: Vec<String>,
}

impl Planning<'_> {
    fn whole(&mut self) {
        let text = self.config_text();
        let named = if self.facts.config.is_some() { CONFIG } else { "[settings] of the answers" };
        let config = match Config::parse(named, &text, &Environment::default()) {
            Ok(config) => config,
            Err(error) => return self.refusals.push(error.to_string()),
        };
        self.reachable(&config);
        let credentials = self.credentials(&config);
        self.programs();
        self.users();
        self.folders();
        self.configuration(text, &credentials);
        let units: Vec<String> = self.services().collect();
        self.actions.push(Action::Restart { units: units.clone(), way: Way::Back });
        self.actions.push(Action::Reload { way: Way::Back });
        self.actions.push(Action::SwitchRelease { path: CURRENT.into(), target: self.release.path() });
        if self.answers.commands {
            self.actions.extend(command_links());
        }
        self.units(&config, &credentials);
        self.rules();
        self.actions.push(Action::Reload { way: Way::Forth });
        self.apparmor();
        self.actions.push(Action::Restart { units, way: Way::Forth });
        self.actions.push(Action::Sweep {
            // The inner one first.
            units: layout::SLICES.map(str::to_owned).into(),
            folders: vec![layout::RUNTIME.into()],
            files: vec![layout::TIMER_STAMP.into()],
        });
        self.retire();
        self.start();
        self.gate(&config);
    }

    /// What is restarted, in this order: workers ask the others.
    fn services(&self) -> impl Iterator<Item = String> + use<> {
        let inference = self.answers.inference.then(|| INFERENCE.to_owned());
        std::iter::once(DASHBOARD.to_owned()).chain(inference).chain(self.workers())
    }

    fn workers(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.answers.workers).map(layout::worker)
    }

    fn dir(&mut self, path: impl Into<Utf8PathBuf>, mode: u32, keeping: Keeping) {
        self.actions.push(Action::Dir { path: path.into(), attrs: Attrs::root(mode), keeping });
    }

    fn file(&mut self, path: impl Into<Utf8PathBuf>, text: String, why: &str) {
        let (path, attrs) = (path.into(), Attrs::root(0o644));
        self.actions.push(Action::File { path, attrs, text, keeping: Keeping::Managed, why: why.to_owned() });
    }

    fn shared(&self, folder: &str) -> Vec<(String, String)> {
        let inside =
            self.release.shared.iter().filter(|(path, _)| path.parent().is_some_and(|parent| parent == folder));
        let named = inside.filter_map(|(path, text)| Some((path.file_name()?.to_owned(), text.clone())));
        named.filter(|(name, _)| self.answers.inference || !is_of_inference(name)).collect()
    }

    fn programs(&mut self) {
        self.dir("/opt/fettle", 0o755, Keeping::Managed);
        self.dir(RELEASES, 0o755, Keeping::Managed);
        self.actions.push(Action::Release {
            source: self.release.source.clone(),
            path: self.release.path(),
            manifest_sha256: self.release.manifest_sha256.clone(),
        });
    }

    fn users(&mut self) {
        self.dir("/etc/sysusers.d", 0o755, Keeping::System);
        let mut files = self.shared("sysusers");
        // After the group that its user joins: systemd would make that as well, and then nobody would take it back.
        files.sort_by_key(|(name, _)| is_of_inference(name));
        for (name, text) in files {
            let file = Utf8Path::new("/etc/sysusers.d").join(name);
            let users: Vec<String> = text.lines().filter_map(user_of).collect();
            self.file(file.clone(), text, "systemd makes the users of the services from it");
            self.actions.push(Action::Users { file, users });
        }
    }

    fn folders(&mut self) {
        self.dir("/etc/tmpfiles.d", 0o755, Keeping::System);
        for (name, text) in self.shared("tmpfiles") {
            self.file(Utf8Path::new("/etc/tmpfiles.d").join(name), text, "folders come back after they were cleared");
        }
        self.dir(STATE, 0o755, Keeping::Seeded);
        self.dir(layout::BACKUPS, 0o700, Keeping::Seeded);
        self.dir(layout::LOGS, 0o755, Keeping::Seeded);
        self.dir(layout::CONFIG_DIR, 0o755, Keeping::Seeded);
        self.dir(SECRETS, 0o700, Keeping::Seeded);
    }

    /// What the host has, else what the answers make of the defaults.
    fn config_text(&self) -> String {
        if let Some(text) = &self.facts.config {
            return text.clone();
        }
        let settings = settings(self.answers);
        format!("{CONFIG_HEAD}{}", toml::to_string_pretty(&settings).expect("a table that was read can be written"))
    }

    fn configuration(&mut self, text: String, credentials: &BTreeMap<&'static str, BTreeMap<String, Utf8PathBuf>>) {
        let attrs = Attrs { mode: 0o640, owner: Owner::new("root", USER) };
        let why = "all processes read it; no secret is in it".to_owned();
        self.actions.push(Action::File { path: CONFIG.into(), attrs, text, keeping: Keeping::Seeded, why });
        self.actions.push(answers_file(self.answers, 0o644));
        let ours = secrets(self.answers, Utf8Path::new(SECRETS));
        let known: BTreeSet<String> = ours.iter().map(Action::key).collect();
        self.actions.extend(ours);
        let handed: BTreeSet<&Utf8PathBuf> = credentials.values().flat_map(BTreeMap::values).collect();
        let watched = handed.into_iter().map(|path| Action::WatchSecret { path: path.clone() });
        self.actions.extend(watched.filter(|action| !known.contains(&action.key())));
        let program = self.release.path().join("bin/fettle");
        self.actions.push(Action::CheckConfig { program, config: CONFIG.into() });
    }

    /// Errors with models that no worker could ask.
    fn reachable(&mut self, config: &Config) {
        if self.answers.inference || config.gateway.url.is_some() {
            return;
        }
        let needs = |model: &&ModelConfig| {
            !matches!(model.kind, ModelKind::OpenaiCompatible | ModelKind::Openai) || model.is_local()
        };
        self.refusals.extend(config.gateway.models.iter().filter(needs).map(|model| {
            format!(
                "the model `{}` is reached through a gateway: set inference = true in the answers, or gateway.url to another host's",
                model.name
            )
        }));
    }

    /// Per unit: name and path of each secret that it gets.
    fn credentials(&mut self, config: &Config) -> BTreeMap<&'static str, BTreeMap<String, Utf8PathBuf>> {
        let mut credentials: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (key, file) in config.secret_files() {
            let path = Utf8Path::new(layout::CONFIG_DIR).join(file);
            let name = path.file_name().unwrap_or_default().to_owned();
            if !answers::is_secret_name(&name) || !is_plain(&path) {
                self.refusals.push(format!(
                    "{key}: the path {:?} goes into a unit, and there only letters, digits, `/`, `.`, `-`, `_`, `@` and `+` mean themselves; rename it",
                    path.as_str()
                ));
                continue;
            }
            let planned = path.parent().is_some_and(|folder| folder == SECRETS)
                && (name == WORKER_KEY || self.answers.secrets.contains_key(&name));
            if !planned && !self.facts.secrets.contains(&path) {
                self.refusals.push(format!(
                    "{key} names {path}, which is not there: put the secret there (owner root, mode 0600), or name it in the answers' [secrets]"
                ));
                continue;
            }
            for unit in self.receivers(&key, config) {
                let earlier = credentials.entry(unit).or_default().insert(name.clone(), path.clone());
                if earlier.is_some_and(|earlier| earlier != path) {
                    self.refusals.push(format!(
                        "two secrets have the file name {name}; a unit tells them apart by it, so rename one"
                    ));
                }
            }
        }
        credentials
    }

    /// Who needs a secret, by its key in the configuration. The worker never gets what can write to the forge, nor the models'
    /// keys when it asks a gateway.
    fn receivers(&self, key: &str, config: &Config) -> Vec<&'static str> {
        let mut units = vec![DASHBOARD];
        let is_of_models = key.starts_with("gateway.models");
        let asks_gateway = self.answers.inference || config.gateway.url.is_some();
        if matches!(key, "auth.worker_key_file" | "forge.read_token_file" | "transport.worker_password_file")
            // The dashboard asks no model; it looks for these keys in whatever is about to leave.
            || is_of_models && !asks_gateway
        {
            units.push(WORKERS);
        }
        // Workers show it the key that they show to the dashboard.
        if self.answers.inference && (is_of_models || matches!(key, "auth.worker_key_file" | "gateway.keys_file")) {
            units.push(INFERENCE);
        }
        units
    }

    fn units(&mut self, config: &Config, credentials: &BTreeMap<&'static str, BTreeMap<String, Utf8PathBuf>>) {
        for (name, text) in self.shared("units") {
            self.file(layout::unit_file(&name), text, "systemd runs Fettle by it");
        }
        for (unit, secrets) in credentials {
            let lines: String = secrets.iter().map(|(name, path)| format!("LoadCredential={name}:{path}\n")).collect();
            self.drop_in(unit, "10-secrets.conf", format!("[Service]\n{lines}"), "systemd hands the unit its secrets");
        }
        let gateway = config.gateway.listen.as_deref().unwrap_or(layout::GATEWAY);
        let listens = [&config.server.listen, &config.server.internal_listen].map(String::as_str);
        let inference = self.answers.inference.then_some((INFERENCE_SOCKET, gateway));
        for (socket, address) in SOCKETS.into_iter().zip(listens).chain(inference) {
            // An empty value first: an address given again would be added to the unit's own.
            let text = format!("[Socket]\nListenStream=\nListenStream={address}\n");
            let unit = self.shared("units").into_iter().find(|(name, _)| name == socket);
            if !unit.is_some_and(|(_, text)| text.lines().any(|line| line == format!("ListenStream={address}"))) {
                self.drop_in(socket, "10-listen.conf", text, "the configuration names another address");
            }
        }
        // Not in fettle.toml: that is the operator's, and this goes with the service.
        if self.answers.inference && config.gateway.url.is_none() {
            let text = format!("[Service]\nEnvironment=FETTLE_GATEWAY__URL=http://{}\n", layout::local(gateway));
            self.drop_in(WORKERS, "10-gateway.conf", text, "workers ask this host's gateway for all models");
        }
    }

    /// The inference service's user may start and end engines.
    fn rules(&mut self) {
        if !self.answers.inference {
            return;
        }
        // Where there is no polkit yet, it finds the rule when it comes.
        self.dir("/etc/polkit-1", 0o755, Keeping::System);
        self.dir("/etc/polkit-1/rules.d", 0o755, Keeping::System);
        for (name, text) in self.shared("polkit") {
            let path = Utf8Path::new("/etc/polkit-1/rules.d").join(name);
            self.file(path, text, "engines are units, which the inference service starts and ends");
        }
    }

    fn drop_in(&mut self, unit: &str, name: &str, text: String, why: &str) {
        let (folder, file) = layout::drop_in(unit, name);
        // Drop-ins of the administrator keep the folder.
        self.dir(folder, 0o755, Keeping::Managed);
        self.file(file, text, why);
    }

    fn apparmor(&mut self) {
        if !self.facts.apparmor_restricts_namespaces {
            return;
        }
        self.dir("/etc/apparmor.d", 0o755, Keeping::System);
        for (name, text) in self.shared("apparmor") {
            let profile = Utf8Path::new("/etc/apparmor.d").join(name);
            self.file(profile.clone(), text, "without it the sandbox could not make its namespaces");
            self.actions.push(Action::AppArmor { profile });
        }
    }

    /// After everything that can be prepared while what is retired still runs.
    fn retire(&mut self) {
        self.actions.extend(self.answers.retire.iter().map(|unit| Action::Retire { unit: unit.clone() }));
    }

    fn start(&mut self) {
        let timer = self.answers.backup.nightly.then(|| BACKUP_TIMER.to_owned());
        let socket = self.answers.inference.then_some(INFERENCE_SOCKET);
        let sockets = SOCKETS.into_iter().chain(socket).map(str::to_owned);
        let wanted: Vec<String> = sockets.chain(self.services()).chain(timer).collect();
        for unit in wanted.iter().cloned().chain([TARGET.to_owned()]) {
            self.actions.push(Action::Enable { unit });
        }
        // Taken back after the service that starts engines, it ends those that are left.
        let engines = self.answers.inference.then(|| layout::ENGINES.to_owned());
        // Sockets first: what connects while a service starts waits and is not refused.
        for unit in engines.into_iter().chain(wanted).chain([TARGET.to_owned()]) {
            self.actions.push(Action::Start { unit });
        }
    }

    fn gate(&mut self, config: &Config) {
        let dashboard = format!("http://{}/readyz", layout::local(&config.server.internal_listen));
        let workers = (1..=self.answers.workers).map(|worker| format!("{}/readyz", layout::worker_address(worker)));
        let inference = self.answers.inference.then(|| format!("{}/readyz", layout::INFERENCE_ADDRESS));
        let urls = std::iter::once(dashboard).chain(inference).chain(workers).collect();
        let version = self.release.manifest.version.clone();
        self.actions.push(Action::HealthGate { gate: Gate { urls, version, limit_s: self.answers.gate_timeout } });
        if self.answers.smoke {
            self.actions.push(Action::Smoke { program: self.release.path().join("bin/fettle-installer") });
        }
    }
}

/// What is asked for, and what Fettle cannot do without.
pub(crate) fn settings(answers: &Answers) -> toml::Table {
    let mut settings = answers.settings.clone();
    let auth = settings.entry("auth").or_insert_with(|| toml::Table::new().into());
    if let Some(auth) = auth.as_table_mut() {
        auth.entry("worker_key_file").or_insert_with(|| format!("secrets/{WORKER_KEY}").into());
    }
    settings
}

/// The answers, as they are kept for the next run.
pub(crate) fn answers_file(answers: &Answers, mode: u32) -> Action {
    let text = format!("{ANSWERS_HEAD}{}", toml::to_string_pretty(answers).expect("answers are plain data"));
    let why = "the next apply, upgrade or rollback starts from these answers".to_owned();
    Action::File { path: layout::ANSWERS.into(), attrs: Attrs::root(mode), text, keeping: Keeping::Kept, why }
}

/// On everybody's search path.
pub(crate) fn command_links() -> Vec<Action> {
    let folder = Action::Dir { path: layout::COMMANDS.into(), attrs: Attrs::root(0o755), keeping: Keeping::System };
    let links = ["fettle", "fettle-installer"].map(|program| {
        let (path, target) = (Utf8Path::new(layout::COMMANDS).join(program), Utf8Path::new(CURRENT).join("bin"));
        Action::Link { path, target: target.join(program) }
    });
    std::iter::once(folder).chain(links).collect()
}

/// Where each secret of the answers is copied to.
pub(crate) fn copied_secrets(answers: &Answers, folder: &Utf8Path) -> Vec<Action> {
    let copied = answers.secrets.iter();
    copied.map(|(name, from)| Action::CopySecret { from: from.clone(), path: folder.join(name) }).collect()
}

/// Where each secret is made or copied to.
pub(crate) fn secrets(answers: &Answers, folder: &Utf8Path) -> Vec<Action> {
    let key = (!answers.secrets.contains_key(WORKER_KEY)).then(|| Action::GenerateSecret {
        path: folder.join(WORKER_KEY),
        bytes: SECRET_BYTES,
        why: "workers show it to the dashboard".to_owned(),
    });
    key.into_iter().chain(copied_secrets(answers, folder)).collect()
}

/// Nothing in it means something else in a unit: no blank, no `%`, no `:`, no end of the line.
fn is_plain(path: &Utf8Path) -> bool {
    path.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-@+".contains(&byte))
}

fn is_of_inference(file: &str) -> bool {
    layout::INFERENCE_FILES.iter().any(|start| file.starts_with(start))
}

fn user_of(line: &str) -> Option<String> {
    line.strip_prefix("u ").and_then(|rest| rest.split_whitespace().next()).map(str::to_owned)
}

/// What is done about files that somebody else has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Foreign {
    #[default]
    Refuse,
    /// A copy is kept.
    Overwrite,
}

/// A plan, compared with the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settled {
    pub steps: Vec<Step>,
    /// For each step, what would change.
    pub needs: Vec<String>,
    /// By path or key, with the difference.
    pub conflicts: Vec<(String, String)>,
    pub blocked: Vec<String>,
}

/// Keeps what has to be done. What an earlier run did and this plan does not want any more is taken back first.
pub fn settle(plan: &Plan, host: &dyn HostView, receipt: Option<&Receipt>, foreign: Foreign) -> ActResult<Settled> {
    let mut settled = Settled::default();
    let wanted: BTreeSet<String> = plan.actions.iter().map(Action::key).collect();
    let earlier = || receipt.into_iter().flat_map(|receipt| receipt.known().rev());
    let obsolete = earlier().filter(|entry| is_obsolete(entry, &wanted));
    let mut changed: BTreeSet<String> = BTreeSet::new();
    for entry in obsolete {
        changed.insert(entry.id.clone());
        let (action, before, after) = (entry.action.clone(), entry.before.clone(), entry.after.clone());
        settled.steps.push(Step::Undo { action, before, after });
        settled.needs.push("no longer wanted".to_owned());
    }
    let mut steps: Vec<(Action, String)> = Vec::new();
    let mut gates: Vec<(Action, String)> = Vec::new();
    for action in &plan.actions {
        let known = receipt.and_then(|receipt| receipt.find(&action.key())).map(|entry| &entry.after);
        match action.check(host, known)? {
            // How it is now says nothing about how it is after a change.
            Check::Done if is_gate(action) => gates.push((action.clone(), String::new())),
            Check::Done if follows(action, &steps) => {
                steps.push((action.clone(), "what it is made of changes".to_owned()));
            }
            Check::Done => {}
            Check::Needed(what) => steps.push((action.clone(), what)),
            Check::Foreign(what) => match foreign {
                Foreign::Refuse => settled.conflicts.push((action.key(), what)),
                Foreign::Overwrite => steps.push((action.clone(), what)),
            },
            Check::Blocked(what) => settled.blocked.push(what),
        }
    }
    if !changed.is_empty() || !steps.iter().all(|(action, _)| is_companion(action)) {
        steps.extend(gates);
    }
    changed.extend(steps.iter().filter(|(action, _)| !is_companion(action)).map(|(action, _)| action.key()));
    let installed = receipt.is_some_and(Receipt::is_installed);
    let is_new = ["nixos-module".to_owned(), format!("switch:{CURRENT}")].iter().any(|key| changed.contains(key));
    let first = is_new && !installed;
    for (action, what) in steps {
        let Some(action) = companion(action, &changed, first) else { continue };
        settled.steps.push(Step::Do { action });
        settled.needs.push(what);
    }
    // Last: while anything before can fail, every release that could be gone back to is still there.
    if !settled.steps.is_empty() {
        for entry in earlier().filter(|entry| is_outdated(entry, plan, receipt)) {
            let (action, before, after) = (entry.action.clone(), entry.before.clone(), entry.after.clone());
            settled.steps.push(Step::Undo { action, before, after });
            settled.needs.push(format!("more than {GENERATIONS} generations old"));
        }
        for entry in earlier().filter(|entry| is_placed(&entry.action) && !wanted.contains(&entry.id)) {
            let (action, before, after) = (entry.action.clone(), entry.before.clone(), entry.after.clone());
            settled.steps.push(Step::Undo { action, before, after });
            settled.needs.push("of an earlier release".to_owned());
        }
    }
    Ok(settled)
}

/// A release that no generation leads to once this plan is carried out.
fn is_outdated(entry: &crate::receipt::Entry, plan: &Plan, receipt: Option<&Receipt>) -> bool {
    let Action::Release { path, .. } = &entry.action else { return false };
    let generations = receipt.into_iter().flat_map(|receipt| receipt.generations.iter().rev());
    let kept =
        generations.map(|generation| generation.release.as_str()).filter(|release| *release != plan.product.release);
    let kept: Vec<&str> = kept.take(GENERATIONS - 1).collect();
    path.file_name().is_some_and(|name| name != plan.product.release && !kept.contains(&name))
}

/// Something lasting that the plan lacks. Releases stay, to be gone back to; whatever is kept stays as well.
fn is_obsolete(entry: &crate::receipt::Entry, wanted: &BTreeSet<String>) -> bool {
    let passing = matches!(entry.action, Action::Release { .. } | Action::Reload { .. } | Action::NixosRebuild { .. })
        || is_placed(&entry.action);
    !wanted.contains(&entry.id) && !entry.action.is_kept() && !passing
}

/// It is as it should be, and will not be once what comes before it is done.
fn follows(action: &Action, steps: &[(Action, String)]) -> bool {
    let Action::Cluster { act } = action else { return false };
    let made_of = act.made_of();
    steps.iter().any(|(step, _)| made_of.contains(&step.key()))
}

/// A file out of a bundle.
fn is_placed(action: &Action) -> bool {
    matches!(action, Action::Cluster { act: ClusterAct::Place { .. } })
}

/// Decides whether what was done counts.
fn is_gate(action: &Action) -> bool {
    match action {
        Action::HealthGate { .. } | Action::Smoke { .. } => true,
        Action::Cluster { act } => act.is_gate(),
        _ => false,
    }
}

/// Needed only because of something else.
fn is_companion(action: &Action) -> bool {
    matches!(
        action,
        Action::Reload { .. }
            | Action::Restart { .. }
            | Action::AppArmor { .. }
            | Action::CheckConfig { .. }
            | Action::NixosRebuild { .. }
    ) || matches!(action, Action::Cluster { act } if act.is_companion())
}

/// A companion as far as what `changed` needs it; everything else as it is.
fn companion(action: Action, changed: &BTreeSet<String>, first: bool) -> Option<Action> {
    let units = format!("file:{}", layout::UNITS);
    let any_unit = changed.iter().any(|key| key.starts_with(&units));
    match action {
        Action::Reload { way } => any_unit.then_some(Action::Reload { way }),
        // Nothing runs yet at the first installation.
        Action::Restart { .. } if first => None,
        Action::Restart { units, way } => {
            let units: Vec<String> = units.into_iter().filter(|unit| concerns(unit, changed)).collect();
            (!units.is_empty()).then_some(Action::Restart { units, way })
        }
        Action::AppArmor { profile } => {
            changed.contains(&format!("file:{profile}")).then_some(Action::AppArmor { profile })
        }
        Action::NixosRebuild { .. } if !changed.contains("nixos-module") => None,
        Action::CheckConfig { .. } if changed.is_empty() => None,
        Action::Cluster { act } => act.is_needed(changed, first).then_some(Action::Cluster { act }),
        other => Some(other),
    }
}

/// A service runs something else after these changes.
fn concerns(unit: &str, changed: &BTreeSet<String>) -> bool {
    if [k3s::layout::UNIT, k3s::layout::AGENT_UNIT].contains(&unit) {
        let own = format!("file:{}", layout::unit_file(unit));
        let config = format!("file:{}/", k3s::layout::CONFIG_DIR);
        let program = format!("place:{}", k3s::layout::K3S);
        return changed.iter().any(|key| *key == own || *key == program || key.starts_with(&config));
    }
    let template = unit.split_once('@').map_or_else(|| unit.to_owned(), |(stem, _)| format!("{stem}@.service"));
    changed.iter().any(|key| {
        let of_unit = key
            .strip_prefix(&format!("file:{}/", layout::UNITS))
            .is_some_and(|file| file == template || file.starts_with(&format!("{template}.d/")));
        of_unit || *key == format!("switch:{CURRENT}") || *key == format!("file:{CONFIG}") || key.starts_with("secret:")
    })
}

/// Everything that an uninstallation takes back, newest first.
pub fn uninstall(receipt: &Receipt, purge: bool) -> Vec<Step> {
    let entries = receipt.known().rev().filter(|entry| purge || !entry.action.is_kept());
    entries
        .map(|entry| Step::Undo {
            action: entry.action.clone(),
            before: entry.before.clone(),
            after: entry.after.clone(),
        })
        .collect()
}
