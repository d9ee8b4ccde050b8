//! What each command does: facts from the edge, the planner's decision, the run, and the exit status.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::clock::Clock as _;
use fettle_runtime::environment::Environment;
use fettle_runtime::system::SystemClock;

use crate::action::file::value as secret_value;
use crate::action::{Action, Check, ClusterAct};
use crate::answers::{Answers, K3s, SecretFrom};
use crate::cli::{Command, Flags, How, OnFailure as KeepOrRevert, Predecessor, Wanted};
use crate::console::Reporter;
use crate::exit::{Exit, where_it_stands};
use crate::facts::{self, Files, HostFacts, RealAsk, gather};
use crate::host::{Entry, HostView, RealHost, sha256};
use crate::journal::{OnFailure, Product, Purpose, Run, Step};
use crate::k3s::{self, bundle::Bundle, token::Token};
use crate::layout::{self, ANSWERS, CONFIG, CURRENT, HOME, RELEASES, SECRETS};
use crate::lock::{self, Lock, LockError};
use crate::nixos;
use crate::plan::{Facts, Foreign, Plan, Release, Settled, plan, settle, uninstall};
use crate::preflight::{self, Context, Mode};
use crate::receipt::{Generation, Receipt};
use crate::release;
use crate::report::{self, Preflight, Show};
use crate::run::{Home, Outcome, RunError, Runner, forget};
use crate::smoke::{Smoke, State, Tried};
use crate::take_over;

/// Why a command ended otherwise than done: the status, and a sentence with what to do.
#[derive(Debug)]
pub struct Ended {
    pub exit: Exit,
    pub why: String,
}

pub(crate) type Ends<T> = Result<T, Ended>;

fn ended(exit: Exit) -> impl Fn(String) -> Ended {
    move |why| Ended { exit, why }
}

pub(crate) fn unexpected(error: impl std::error::Error) -> Ended {
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    Ended { exit: Exit::Unexpected, why: causes.map(ToString::to_string).collect::<Vec<_>>().join(": ") }
}

impl From<RunError> for Ended {
    fn from(error: RunError) -> Self {
        let exit = if matches!(error, RunError::Unfinished) { Exit::Conflict } else { Exit::Unexpected };
        Self { exit, ..unexpected(error) }
    }
}

impl From<LockError> for Ended {
    fn from(error: LockError) -> Self {
        let exit = if matches!(error, LockError::Held) { Exit::Locked } else { Exit::Unexpected };
        Self { exit, ..unexpected(error) }
    }
}

/// Does what was typed; the sentence of a failure is told here.
pub fn run(flags: Flags) -> Exit {
    let mut reporter = Reporter::new(flags.json);
    let outcome = RealHost::new().map_err(unexpected).and_then(|host| {
        let mut session = Session { host, home: Home(HOME.into()), reporter: &mut reporter, mode: host_mode() };
        session.command(flags.command)
    });
    let (exit, why) = match outcome {
        Ok(exit) => (exit, String::new()),
        Err(Ended { exit, why }) => {
            reporter.say(&format!("error: {why}"));
            (exit, why)
        }
    };
    reporter.summary(&serde_json::json!({ "exit": exit as u8, "reason": why }));
    exit
}

pub(crate) struct Session<'a> {
    pub(crate) host: RealHost,
    pub(crate) home: Home,
    pub(crate) reporter: &'a mut Reporter,
    /// What a run is carried out in.
    mode: Mode,
}

impl Session<'_> {
    fn command(&mut self, command: Command) -> Ends<Exit> {
        match command {
            Command::Detect => self.told(|out, facts, show| report::detect(out, facts, show)),
            Command::ProductionChecks => self.told(|out, facts, show| report::production_checks(out, facts, show)),
            Command::Preflight { mode, ignore } => {
                let asked = Preflight { mode, ignore, context: Context::of(mode.unwrap_or(Mode::Systemd)) };
                let judged = report::judge(&observe(), &asked).map_err(ended(Exit::Usage))?;
                self.told(|out, _, show| report::preflight(out, &judged, show))
            }
            Command::Plan { wanted, output, explain } => self.plan(&wanted, output.as_deref(), explain),
            Command::Apply { wanted, how } => self.apply(&wanted, &how),
            Command::Import { from: Predecessor::Aiagent, model, output, release, how } => {
                self.import(model.as_deref(), output.as_deref(), release.as_deref(), &how)
            }
            Command::Resume => self.resume(),
            Command::Status => self.status(),
            Command::Verify => self.verify(),
            Command::Join { server, token_file, wanted, how } => match server.zip(token_file) {
                Some((server, token)) => self.join(server, token, &wanted, &how),
                None => self.next_node(),
            },
            Command::Upgrade { to, how, gate_timeout } if self.is_cluster() => {
                let bundle = to.canonicalize_utf8().map(Utf8PathBuf::into_string);
                let bundle = bundle.map_err(|error| Ended { exit: Exit::Usage, why: format!("{to}: {error}") })?;
                let wanted = Wanted { answers: None, release: None, mode: Some(Mode::K3s), bundle: Some(bundle) };
                let mut answers = self.wanted_answers(&wanted)?;
                answers.gate_timeout = gate_timeout.unwrap_or(answers.gate_timeout);
                let aim = self.aim(wanted.mode, None, &answers)?;
                self.carry_out(&aim, &answers, &how, Purpose::Upgrade)
            }
            Command::Rollback { .. } | Command::Backup(_) | Command::Restore(_) if self.is_cluster() => {
                let why = format!(
                    "in mode k3s helm goes back: `{helm} rollback {name} --namespace {namespace} --kubeconfig {config}`, or `fettle-installer \
                     upgrade --to` the earlier bundle. Of the ledger the chart makes backups (k3s.values.backup.enabled), of the cluster k3s \
                     takes snapshots (`k3s etcd-snapshot ls`)",
                    helm = k3s::layout::HELM,
                    name = k3s::RELEASE_NAME,
                    namespace = k3s::NAMESPACE,
                    config = k3s::layout::KUBECONFIG,
                );
                Err(Ended { exit: Exit::Usage, why })
            }
            Command::Smoke { .. } if self.is_cluster() => self.smoke_of_cluster(),
            Command::Upgrade { to, how, gate_timeout } => {
                no_release_on_nixos()?;
                let release = self.release(Some(&to))?;
                self.switch(release, &how, Purpose::Upgrade, gate_timeout)
            }
            Command::Rollback { to, how } => self.rollback(to, &how),
            Command::Backup(command) => crate::backup::backup(self, &command),
            Command::Restore(flags) => crate::backup::restore(self, &flags),
            Command::SupportBundle(flags) => crate::support::support_bundle(self, &flags),
            Command::Smoke { url, token_file, only } => {
                self.smoke(url.as_deref(), token_file.as_deref(), only.as_deref())
            }
            Command::Uninstall { purge, dry_run, yes } => self.uninstall(purge, dry_run, yes),
        }
    }

    /// What a report says, and its exit status.
    fn told(&self, say: impl FnOnce(&mut dyn std::io::Write, &HostFacts, Show) -> std::io::Result<u8>) -> Ends<Exit> {
        let mut stdout = std::io::stdout().lock();
        let show = Show { json: self.reporter.is_json(), colour: stdout.is_terminal(), brief: false };
        match say(&mut stdout, &observe(), show).map_err(unexpected)? {
            report::DONE => Ok(Exit::Done),
            _ => Ok(Exit::Preflight),
        }
    }

    /// Shows what does not pass.
    ///
    /// Errors when something failed that nobody said is all right.
    fn preflight(&mut self, aim: &Aim, answers: &Answers, ignore: &[String]) -> Ends<()> {
        let release = match aim {
            Aim::Systemd(release) | Aim::K3s { release, .. } => {
                let files = release.manifest.files.keys();
                let bytes = files.filter_map(|name| fs_err::metadata(release.source.join(name)).ok());
                Some(preflight::Release {
                    version: release.manifest.version.clone(),
                    arch: release.manifest.arch.clone(),
                    bytes: bytes.map(|found| found.len()).sum(),
                    flake: false,
                })
            }
            Aim::Nixos => None,
        };
        let facts = observe();
        let receipt = self.receipt()?;
        let context = Context {
            release,
            purpose: preflight::Purpose::Apply,
            ports: preflight::Ports {
                workers: answers.workers,
                inference: preflight::Ports::default().inference.filter(|_| answers.inference),
                ..preflight::Ports::default()
            },
            cluster: preflight::Cluster {
                networks: vec![answers.k3s.cluster_cidr.clone(), answers.k3s.service_cidr.clone()],
                ours: receipt.as_ref().is_some_and(|receipt| k3s::is_ours(receipt, &facts)),
                gpus: answers.k3s.gpus > 0,
                serves: answers.k3s.join.is_empty(),
            },
            ..Context::of(aim.mode())
        };
        let asked = Preflight { mode: Some(aim.mode()), ignore: ignore.to_vec(), context };
        let judged = report::judge(&facts, &asked).map_err(ended(Exit::Usage))?;
        let mut stderr = std::io::stderr().lock();
        let show = Show { json: false, colour: stderr.is_terminal(), brief: true };
        report::preflight(&mut stderr, &judged, show).map_err(unexpected)?;
        if judged.passed() {
            return Ok(());
        }
        let why =
            "preflight failed: do what its lines say, or name what is all right with --ignore; nothing was changed";
        Err(Ended { exit: Exit::Preflight, why: why.to_owned() })
    }

    fn plan(&mut self, wanted: &Wanted, output: Option<&Utf8Path>, explain: bool) -> Ends<Exit> {
        let answers = self.wanted_answers(wanted)?;
        let aim = self.aim(wanted.mode, wanted.release.as_deref(), &answers)?;
        let plan = self.planned(&aim, &answers)?;
        let settled = self.settled(&plan, Foreign::Refuse)?;
        if let Some(output) = output {
            let text = serde_json::to_string_pretty(&plan).map_err(unexpected)?;
            fs_err::write(output, text + "\n").map_err(unexpected)?;
        }
        match aim {
            _ if self.reporter.is_json() => {
                let steps: Vec<serde_json::Value> = settled.steps.iter().zip(&settled.needs).map(told_of).collect();
                let conflicts: BTreeMap<&String, &String> =
                    settled.conflicts.iter().map(|(key, what)| (key, what)).collect();
                let plan = serde_json::json!({ "steps": steps, "conflicts": conflicts, "blocked": settled.blocked });
                let _ = writeln!(std::io::stdout().lock(), "{plan}");
            }
            // What is asked for is the module, to be looked at or put into a repository.
            Aim::Nixos => {
                let _ = write!(std::io::stdout().lock(), "{}", nixos::module(&answers));
                self.show(&mut std::io::stderr().lock(), &settled, explain);
            }
            Aim::Systemd(_) | Aim::K3s { .. } => self.show(&mut std::io::stdout().lock(), &settled, explain),
        }
        if settled.steps.is_empty() && settled.conflicts.is_empty() && settled.blocked.is_empty() {
            self.reporter.say("There is nothing to do.");
        }
        refuse(&settled)?;
        Ok(Exit::Done)
    }

    fn apply(&mut self, wanted: &Wanted, how: &How) -> Ends<Exit> {
        let answers = self.wanted_answers(wanted)?;
        let aim = self.aim(wanted.mode, wanted.release.as_deref(), &answers)?;
        let installed = self.receipt()?.filter(Receipt::is_installed);
        let purpose = match (installed, &aim) {
            (Some(receipt), Aim::Systemd(release) | Aim::K3s { release, .. })
                if receipt.product.release != release.name() =>
            {
                Purpose::Upgrade
            }
            _ => Purpose::Apply,
        };
        self.carry_out(&aim, &answers, how, purpose)
    }

    fn import(
        &mut self,
        model: Option<&str>,
        output: Option<&Utf8Path>,
        release: Option<&Utf8Path>,
        how: &How,
    ) -> Ends<Exit> {
        // Its variables are root's alone.
        self.need_root()?;
        let Some(found) = take_over::look(&self.host).map_err(unexpected)? else {
            let why = "there is no such installation here: no /opt/ai-agent, /etc/ai-agent/env or aiagent.service";
            return Err(Ended { exit: Exit::Usage, why: why.to_owned() });
        };
        let take_over = take_over::take_over(&found, model);
        self.reporter.say("Carried over:");
        take_over.carried.iter().for_each(|told| self.reporter.say(&format!("  {} -> {}", told.what, told.how)));
        self.reporter.say("Left as it is:");
        take_over.left.iter().for_each(|told| self.reporter.say(&format!("  {}: {}", told.what, told.how)));
        if let Some(output) = output {
            let text = toml::to_string_pretty(&take_over.answers).expect("answers are plain data");
            fs_err::write(output, text).map_err(unexpected)?;
            self.reporter.say(&format!("The answers are in {output}: `fettle-installer apply --answers {output}`."));
            return Ok(Exit::Done);
        }
        if Utf8Path::new(CONFIG).is_file() && self.answers(None)? != take_over.answers {
            let why = format!(
                "{CONFIG} is there already and is yours: nothing is written over it. Write the answers to a file with \
                 --output, put what you want of them into it, and run `fettle-installer apply`"
            );
            return Err(Ended { exit: Exit::Conflict, why });
        }
        let aim = self.aim(Some(host_mode()), release, &take_over.answers)?;
        self.carry_out(&aim, &take_over.answers, how, Purpose::Apply)
    }

    fn rollback(&mut self, to: Option<u32>, how: &How) -> Ends<Exit> {
        no_release_on_nixos()?;
        let receipt = self.installed()?;
        let generation = earlier(&receipt, to).map_err(ended(Exit::Usage))?;
        let path = Utf8Path::new(RELEASES).join(&generation.release);
        let release = self.release(Some(&path))?;
        self.switch(release, how, Purpose::Rollback, None)
    }

    fn switch(&mut self, release: Release, how: &How, purpose: Purpose, gate_timeout: Option<u32>) -> Ends<Exit> {
        self.installed()?;
        let mut answers = self.answers(None)?;
        answers.gate_timeout = gate_timeout.unwrap_or(answers.gate_timeout);
        self.carry_out(&Aim::Systemd(Box::new(release)), &answers, how, purpose)
    }

    fn carry_out(&mut self, aim: &Aim, answers: &Answers, how: &How, purpose: Purpose) -> Ends<Exit> {
        self.refuse_unfinished()?;
        let plan = self.planned(aim, answers)?;
        let recorded = self.answers(None)?.settings;
        if aim.mode() == Mode::Systemd && Utf8Path::new(CONFIG).is_file() && answers.settings != recorded {
            self.reporter.say(&format!(
                "{CONFIG} is there and is yours: [settings] of the answers is not written over it; change it there."
            ));
        }
        let foreign = if how.overwrite { Foreign::Overwrite } else { Foreign::Refuse };
        let settled = self.settled(&plan, foreign)?;
        if settled.steps.is_empty() && settled.conflicts.is_empty() && settled.blocked.is_empty() {
            self.reporter
                .say(&format!("Fettle {} is installed and well; there is nothing to do.", plan.product.version));
            return Ok(Exit::Done);
        }
        if how.dry_run {
            self.show(&mut std::io::stdout().lock(), &settled, true);
            return refuse(&settled).map(|()| Exit::Done);
        }
        refuse(&settled)?;
        self.need_root()?;
        if let Aim::Systemd(release) | Aim::K3s { release, .. } = aim
            && settled.steps.iter().any(|step| matches!(step, Step::Do { action: Action::Release { .. } }))
        {
            release::verify(&self.host, release).map_err(ended(Exit::Bundle))?;
        }
        let places =
            |step: &Step| matches!(step, Step::Do { action: Action::Cluster { act: ClusterAct::Place { .. } } });
        if let Aim::K3s { bundle, .. } = aim
            && settled.steps.iter().any(places)
        {
            bundle.verify(&self.host).map_err(ended(Exit::Bundle))?;
        }
        self.preflight(aim, answers, &how.ignore)?;
        self.show(&mut std::io::stderr().lock(), &settled, false);
        self.confirm(how.yes, &format!("{} steps will be taken.", settled.steps.len()))?;
        let _lock = self.lock()?;
        if purpose == Purpose::Upgrade && !how.no_backup && aim.mode() == Mode::Systemd {
            crate::backup::before_upgrade(self)?;
        }
        let on_failure = match how.on_failure {
            KeepOrRevert::Revert => OnFailure::Revert,
            KeepOrRevert::Keep => OnFailure::Keep,
        };
        #[cfg(feature = "crash-points")]
        self.host.kill_at(how.kill_at);
        self.mode = aim.mode();
        let exit = self.start(purpose, on_failure, plan.product.clone(), settled.steps)?;
        if exit == Exit::Done {
            let next = match aim {
                Aim::K3s { .. } => next_steps_of_cluster(&answers.k3s),
                Aim::Systemd(_) | Aim::Nixos => next_steps().to_owned(),
            };
            self.reporter.say(&format!("Fettle {} runs. {next}", plan.product.version));
        }
        Ok(exit)
    }

    pub(crate) fn start(
        &mut self,
        purpose: Purpose,
        on_failure: OnFailure,
        product: Product,
        steps: Vec<Step>,
    ) -> Ends<Exit> {
        let started = SystemClock.now().to_string();
        let text = serde_json::to_vec(&(&started, &steps)).map_err(unexpected)?;
        let id = sha256(&text)[..16].to_owned();
        self.reporter.of_plan(&id);
        let run = Run { id, purpose, on_failure, started, product, mode: self.mode.name().to_owned(), steps };
        let (home, reporter) = (self.home.clone(), &mut *self.reporter);
        let mut watch = |event: crate::run::Event<'_>| reporter.step(&event);
        let outcome = Runner::new(&home, &mut watch).start(&mut self.host, run)?;
        Ok(self.tell(&outcome, purpose))
    }

    fn resume(&mut self) -> Ends<Exit> {
        self.need_root()?;
        let Some(progress) = self.unfinished()? else {
            self.reporter.say("No run is unfinished; there is nothing to resume.");
            return Ok(Exit::Done);
        };
        let _lock = self.lock()?;
        self.reporter.of_plan(&progress.run.id);
        let (home, reporter) = (self.home.clone(), &mut *self.reporter);
        let mut watch = |event: crate::run::Event<'_>| reporter.step(&event);
        let outcome = Runner::new(&home, &mut watch).resume(&mut self.host)?;
        Ok(outcome.map_or(Exit::Done, |outcome| self.tell(&outcome, progress.run.purpose)))
    }

    fn tell(&mut self, outcome: &Outcome, purpose: Purpose) -> Exit {
        match outcome {
            Outcome::Done => {}
            Outcome::Reverted { reason, .. } => {
                self.reporter.say(&format!("It failed, and everything is as it was before: {reason}"));
            }
            Outcome::Kept { reason, .. } => self.reporter.say(&format!(
                "It failed, and what was done stays: {reason}\n`fettle-installer resume` tries again, `fettle-installer uninstall` takes it back."
            )),
            Outcome::Stuck { reason, stuck, .. } => self.reporter.say(&format!(
                "It failed: {reason}\nTaking it back failed as well: {stuck}\nMend that and run `fettle-installer resume`."
            )),
        }
        Exit::of(outcome, purpose)
    }

    /// A k3s that somebody has installed since works with data that ours has left: that is theirs now.
    fn leave_others_alone(&self, receipt: &Receipt) -> Ends<()> {
        let keeps = receipt.find(&format!("dir:{}", k3s::layout::DATA)).is_some() && !k3s::has_k3s(receipt);
        for path in [k3s::layout::K3S, k3s::layout::UNIT_FILE] {
            if keeps && !self.host.entry(path.into()).map_err(unexpected)?.is_absent() {
                let why = format!(
                    "{path} was not installed by Fettle, and works with the folders that Fettle's k3s has left. Nothing was taken away: \
                     uninstall that k3s first, or go on with it and leave these folders to it"
                );
                return Err(Ended { exit: Exit::Conflict, why });
            }
        }
        Ok(())
    }

    fn uninstall(&mut self, purge: bool, dry_run: bool, yes: bool) -> Ends<Exit> {
        let unfinished = self.unfinished()?;
        let receipt = self.receipt()?;
        if unfinished.is_none() && receipt.is_none() {
            let left = purge && !self.host.entry(self.home.0.as_path()).map_err(unexpected)?.is_absent();
            if left && !dry_run {
                self.need_root()?;
                forget(&mut self.host, &self.home.0).map_err(unexpected)?;
            }
            self.reporter.say("Fettle is not installed; there is nothing to take away.");
            return Ok(Exit::Done);
        }
        if let Some(progress) = &unfinished {
            self.reporter
                .say(&format!("An earlier run is unfinished ({}); it is taken back first.", where_it_stands(progress)));
        }
        if dry_run {
            let receipt = receipt.unwrap_or_default();
            let steps = uninstall(&receipt, purge);
            let settled = Settled { needs: vec![String::new(); steps.len()], steps, ..Settled::default() };
            self.show(&mut std::io::stdout().lock(), &settled, true);
            return Ok(Exit::Done);
        }
        self.need_root()?;
        if let Some(receipt) = &receipt {
            self.leave_others_alone(receipt)?;
        }
        let what = if purge {
            "Fettle will be removed with all its data, configuration and secrets."
        } else {
            "Fettle will be removed; data, configuration and secrets stay."
        };
        self.confirm(yes, what)?;
        let lock = self.lock()?;
        if unfinished.is_some() {
            let (home, reporter) = (self.home.clone(), &mut *self.reporter);
            let mut watch = |event: crate::run::Event<'_>| reporter.step(&event);
            let mut runner = Runner::new(&home, &mut watch);
            if let Some(Outcome::Stuck { stuck, .. }) = runner.turn_back(&mut self.host, "uninstall was asked for")? {
                return Err(Ended { exit: Exit::NotReverted, why: stuck });
            }
        }
        if let Some(receipt) = self.receipt()? {
            let unknown: Vec<String> = receipt.unknown().map(ToString::to_string).collect();
            if !unknown.is_empty() {
                let why = format!(
                    "the receipt names actions of a newer installer, which must take them back: {}",
                    unknown.join(", ")
                );
                return Err(Ended { exit: Exit::NotReverted, why });
            }
            let steps = uninstall(&receipt, purge);
            let exit = self.start(Purpose::Uninstall { purge }, OnFailure::Keep, Product::default(), steps)?;
            if exit != Exit::Done {
                return Ok(exit);
            }
        }
        drop(lock);
        match self.receipt()? {
            Some(receipt) => {
                let kept =
                    receipt.known().filter_map(|entry| entry.id.split_once(':').map(|(_, path)| path.to_owned()));
                let kept: std::collections::BTreeSet<String> =
                    kept.filter(|path| Utf8Path::new(path).exists()).collect();
                let kept: Vec<String> = kept.into_iter().collect();
                self.reporter.say(&format!(
                    "Fettle is removed. These stay: {}, its users, and {HOME}. `uninstall --purge` removes them too; run it \
                     from the release that you installed from.",
                    kept.join(", ")
                ));
            }
            None => {
                forget(&mut self.host, &self.home.0).map_err(unexpected)?;
                self.reporter.say("Fettle is removed, and nothing of it stays.");
            }
        }
        Ok(Exit::Done)
    }

    fn status(&mut self) -> Ends<Exit> {
        let receipt = self.receipt()?;
        let mut lines = Vec::new();
        let mut units = serde_json::Map::new();
        match &receipt {
            None => lines.push("Fettle is not installed.".to_owned()),
            Some(receipt) if !receipt.is_installed() => {
                lines.push("Fettle was removed; data, configuration and secrets are still there.".to_owned());
            }
            Some(receipt) => {
                lines.push(format!(
                    "Fettle {} ({}), installed {}",
                    receipt.product.version, receipt.product.release, receipt.created
                ));
                for generation in &receipt.generations {
                    let is_last = receipt.generations.last().is_some_and(|last| last.n == generation.n);
                    let runs = if is_last { "  <- runs" } else { "" };
                    lines.push(format!(
                        "  generation {} {} {}{runs}",
                        generation.n, generation.release, generation.installed
                    ));
                }
                for entry in receipt.known() {
                    let Action::Start { unit } = &entry.action else { continue };
                    let said = self.host.ask(Utf8Path::new("systemctl"), &["is-active", unit]).map_err(unexpected)?;
                    let state = said.text.trim().to_owned();
                    lines.push(format!("  {unit:<42} {}", if said.ok { state.clone() } else { state.to_uppercase() }));
                    units.insert(unit.clone(), state.into());
                }
            }
        }
        let unfinished = self.unfinished()?.map(|progress| where_it_stands(&progress));
        let at_work = unfinished.is_some() && self.is_at_work();
        match &unfinished {
            Some(stands) if at_work => lines.push(format!("A run of the installer is at work: {stands}.")),
            Some(stands) => {
                lines.push(format!("A run is unfinished: {stands}. `fettle-installer resume` goes on with it."));
            }
            None => {}
        }
        let mut stdout = std::io::stdout().lock();
        if self.reporter.is_json() {
            let _ = writeln!(
                stdout,
                "{}",
                serde_json::json!({
                    "units": units, "unfinished": unfinished, "at_work": at_work, "receipt": receipt,
                })
            );
        } else {
            let _ = writeln!(stdout, "{}", lines.join("\n"));
        }
        Ok(Exit::Done)
    }

    fn smoke(&mut self, url: Option<&str>, token_file: Option<&Utf8Path>, only: Option<&str>) -> Ends<Exit> {
        // Without root the receipt cannot be read; then the usual one worker is taken for granted.
        let workers = match self.receipt() {
            Ok(Some(receipt)) => receipt.workers(),
            Ok(None) => Vec::new(),
            Err(_) => vec![1],
        };
        // One that is down has to be missed, and one that NixOS brought is in no receipt.
        let runs =
            self.host.ask(Utf8Path::new("systemctl"), &["is-active", layout::INFERENCE]).is_ok_and(|said| said.ok);
        let inference = runs || matches!(self.receipt(), Ok(Some(receipt)) if receipt.has_inference());
        let smoke = Smoke::of_host(url, token_file, workers, inference).map_err(ended(Exit::Usage))?;
        let reporter = &mut *self.reporter;
        let told = |tried: &Tried| {
            let word = match tried.state {
                State::Passed => "passed",
                State::Failed => "FAILED",
                State::Skipped => "skipped",
            };
            reporter.say(&format!("{} {word:<8} {:>6} ms  {}: {}", tried.id, tried.took_ms, tried.what, tried.detail));
        };
        let tried = smoke.run(only, told).map_err(ended(Exit::Usage))?;
        let count = |state: State| tried.iter().filter(|tried| tried.state == state).count();
        let (passed, failed, skipped) = (count(State::Passed), count(State::Failed), count(State::Skipped));
        self.reporter.say(&format!("{passed} passed, {failed} failed, {skipped} skipped"));
        Ok(if failed > 0 {
            Exit::Unexpected
        } else if passed == 0 {
            Exit::Skipped
        } else {
            Exit::Done
        })
    }

    /// Each action on record against the host.
    fn verify(&mut self) -> Ends<Exit> {
        let receipt = self.installed()?;
        let mut drift = Vec::new();
        for entry in receipt.known() {
            match entry.action.check(&self.host, Some(&entry.after)).map_err(unexpected)? {
                Check::Done => {}
                Check::Needed(_) if matches!(entry.action, Action::Reload { .. } | Action::AppArmor { .. }) => {}
                Check::Needed(what) | Check::Foreign(what) | Check::Blocked(what) => {
                    drift.push(format!("{}: {what}", entry.id));
                }
            }
        }
        if drift.is_empty() {
            self.reporter.say("The host is as it was installed.");
            return Ok(Exit::Done);
        }
        Err(Ended {
            exit: Exit::Conflict,
            why: format!("the host differs from what was installed:\n{}", drift.join("\n")),
        })
    }

    fn release(&self, named: Option<&Utf8Path>) -> Ends<Release> {
        let source = match named {
            Some(path) => path
                .canonicalize_utf8()
                .map_err(|error| Ended { exit: Exit::Usage, why: format!("{path}: {error}") })?,
            None => {
                release::own().or_else(|| Utf8Path::new(CURRENT).canonicalize_utf8().ok()).ok_or_else(|| Ended {
                    exit: Exit::Usage,
                    why: "this program lies in no release tree; name one with --release".to_owned(),
                })?
            }
        };
        release::read(&self.host, &source).map_err(ended(Exit::Bundle))
    }

    pub(crate) fn answers(&self, named: Option<&Utf8Path>) -> Ends<Answers> {
        let path = match named {
            Some(path) => path,
            None if Utf8Path::new(ANSWERS).is_file() => Utf8Path::new(ANSWERS),
            None => return Ok(Answers::default()),
        };
        let text = fs_err::read_to_string(path).map_err(|error| Ended { exit: Exit::Usage, why: error.to_string() })?;
        Answers::parse(&text).map_err(|error| Ended { exit: Exit::Usage, why: format!("{path}: {error}") })
    }

    /// The answers with what was typed besides.
    fn wanted_answers(&self, wanted: &Wanted) -> Ends<Answers> {
        let mut answers = self.answers(wanted.answers.as_deref())?;
        if let Some(bundle) = &wanted.bundle {
            answers.k3s.source = match bundle.starts_with("https://") {
                true => bundle.clone(),
                false => Utf8Path::new(bundle)
                    .canonicalize_utf8()
                    .map_err(|error| Ended { exit: Exit::Usage, why: format!("{bundle}: {error}") })?
                    .into_string(),
            };
        }
        Ok(answers)
    }

    /// This host was made a cluster, or joined one, by an installer.
    fn is_cluster(&self) -> bool {
        matches!(self.receipt(), Ok(Some(receipt)) if receipt.mode == Mode::K3s.name() && receipt.is_installed())
    }

    fn join(&mut self, server: String, token: Utf8PathBuf, wanted: &Wanted, how: &How) -> Ends<Exit> {
        let mut answers = self.wanted_answers(wanted)?;
        let token =
            token.canonicalize_utf8().map_err(|error| Ended { exit: Exit::Usage, why: format!("{token}: {error}") })?;
        answers.k3s.join = server;
        answers.secrets.insert(k3s::layout::TOKEN.to_owned(), SecretFrom::File(token));
        let text = toml::to_string(&answers).map_err(unexpected)?;
        let answers = Answers::parse(&text).map_err(ended(Exit::Usage))?;
        let aim = self.aim(Some(Mode::K3s), wanted.release.as_deref(), &answers)?;
        self.carry_out(&aim, &answers, how, Purpose::Apply)
    }

    /// The form of the token that the answers name; none when it cannot be read.
    fn token(&self, answers: &Answers) -> Option<Token> {
        let name = k3s::layout::TOKEN;
        let named = answers.secrets.get(name).and_then(|from| secret_value(&self.host, from).ok()?.ok());
        // The copy is what counts: nobody has to keep the original.
        let text = named.or_else(|| self.host.read(&Utf8Path::new(SECRETS).join(name)).ok())?;
        Some(Token::read(&String::from_utf8_lossy(&text)))
    }

    /// The one command for the next node; what is secret in it is the name of a file.
    fn next_node(&mut self) -> Ends<Exit> {
        if !self.is_cluster() {
            let why = "this host is no cluster; name one with --server and --token-file".to_owned();
            return Err(Ended { exit: Exit::Usage, why });
        }
        let token = Utf8Path::new(k3s::layout::FULL_AGENT_TOKEN);
        // A link is that to the word of servers.
        let is_own = matches!(self.host.entry(token).map_err(unexpected)?, Entry::File { .. });
        let text = if is_own { self.host.read(token).map_err(unexpected)? } else { Vec::new() };
        if Token::read(&String::from_utf8_lossy(&text)) != Token::Node {
            let why = format!(
                "{token} is not there, or no token of nodes: run this on the cluster's first host, after `fettle-installer apply`"
            );
            return Err(Ended { exit: Exit::Usage, why });
        }
        let address = observe().network.host_name.known().cloned().unwrap_or_else(|| "THIS-HOST".to_owned());
        self.reporter.say(&format!(
            "Copy {token} (readable by root alone) and the bundle to the other host. It makes nodes, and no servers. There, as root:"
        ));
        let _ = writeln!(
            std::io::stdout().lock(),
            "BUNDLE/release/bin/fettle-installer join --server https://{address}:6443 --token-file agent-token --bundle BUNDLE"
        );
        Ok(Exit::Done)
    }

    fn smoke_of_cluster(&mut self) -> Ends<Exit> {
        let (namespace, name) = (k3s::NAMESPACE.to_owned(), k3s::RELEASE_NAME.to_owned());
        let act = Action::Cluster { act: ClusterAct::Test { namespace, name } };
        act.execute(&mut self.host, &crate::action::Trace::Nothing).map_err(unexpected)?;
        self.reporter.say("helm test passed: a Task went the whole way, and the ledger is in order");
        Ok(Exit::Done)
    }

    /// What is to be installed, and how this host takes it.
    fn aim(&self, mode: Option<Mode>, release: Option<&Utf8Path>, answers: &Answers) -> Ends<Aim> {
        let cluster = self.is_cluster().then_some(Mode::K3s);
        match mode.or(cluster).unwrap_or_else(host_mode) {
            Mode::K3s => {
                // Nothing is wrong with a bundle that nobody has named.
                let exit = if answers.k3s.source.is_empty() { Exit::Usage } else { Exit::Bundle };
                let bundle = Bundle::read(&self.host, &answers.k3s.source).map_err(ended(exit))?;
                bundle.vouched(&answers.k3s).map_err(ended(Exit::Bundle))?;
                let inside = Utf8Path::new(bundle.source()).join(k3s::bundle::RELEASE);
                let named = release.or_else(|| inside.is_dir().then_some(inside.as_path()));
                Ok(Aim::K3s { release: Box::new(self.release(named)?), bundle })
            }
            Mode::Systemd => Ok(Aim::Systemd(Box::new(self.release(release)?))),
            Mode::Nixos => Ok(Aim::Nixos),
        }
    }

    fn planned(&self, aim: &Aim, answers: &Answers) -> Ends<Plan> {
        let plan = match aim {
            Aim::Systemd(release) => plan(release, &planner_facts(&self.host, answers)?, answers),
            Aim::Nixos => nixos::plan(answers, env!("CARGO_PKG_VERSION"), own_program()?),
            Aim::K3s { release, bundle } => {
                let facts = k3s::Facts::of(&observe(), self.receipt()?.as_ref());
                k3s::plan(release, bundle, &k3s::Facts { token: self.token(answers), ..facts }, answers)
            }
        };
        if plan.refusals.is_empty() {
            Ok(plan)
        } else {
            Err(Ended { exit: Exit::Conflict, why: plan.refusals.join("\n") })
        }
    }

    fn settled(&self, plan: &Plan, foreign: Foreign) -> Ends<Settled> {
        settle(plan, &self.host, self.receipt()?.as_ref(), foreign).map_err(unexpected)
    }

    pub(crate) fn receipt(&self) -> Ends<Option<Receipt>> {
        Receipt::read(&self.host, &self.home.receipt()).map_err(readable_by_root)
    }

    pub(crate) fn installed(&self) -> Ends<Receipt> {
        self.receipt()?.filter(Receipt::is_installed).ok_or_else(|| Ended {
            exit: Exit::Usage,
            why: "Fettle is not installed on this host; `fettle-installer apply` installs it".to_owned(),
        })
    }

    fn unfinished(&self) -> Ends<Option<crate::journal::Progress>> {
        let progress = crate::journal::read(&self.host, &self.home.journal()).map_err(readable_by_root)?;
        Ok(progress.filter(|progress| !progress.ended))
    }

    pub(crate) fn refuse_unfinished(&self) -> Ends<()> {
        match self.unfinished()? {
            Some(_) if self.is_at_work() => Err(LockError::Held.into()),
            Some(_) => Err(RunError::Unfinished.into()),
            None => Ok(()),
        }
    }

    /// Somebody holds the lock: what is unfinished is not interrupted.
    fn is_at_work(&self) -> bool {
        matches!(lock::take(&self.home.0), Err(LockError::Held))
    }

    pub(crate) fn need_root(&self) -> Ends<()> {
        if rustix::process::geteuid().is_root() {
            return Ok(());
        }
        Err(Ended {
            exit: Exit::Usage,
            why: "this changes the host: run it as root. What it would do is shown without, by `plan` or --dry-run"
                .to_owned(),
        })
    }

    pub(crate) fn lock(&mut self) -> Ends<Lock> {
        self.home.make(&mut self.host).map_err(unexpected)?;
        let lock = lock::take(&self.home.0)?;
        if self.unfinished()?.is_none() {
            // What a restoration had laid out when it was killed, before it exchanged anything: secrets are in it.
            crate::backup::discard_leftovers(self)?;
        }
        Ok(lock)
    }

    /// Unattended, nobody could answer: then giving the command is the answer.
    fn confirm(&mut self, yes: bool, what: &str) -> Ends<()> {
        if yes || !std::io::stdin().is_terminal() {
            return Ok(());
        }
        let _ = write!(std::io::stderr(), "{what} Go on? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map_err(unexpected)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Ended { exit: Exit::Usage, why: "nothing was done".to_owned() }),
        }
    }

    fn show(&self, out: &mut dyn std::io::Write, settled: &Settled, explain: bool) {
        for (step, need) in settled.steps.iter().zip(&settled.needs) {
            let description = step.action().describe();
            let undo = if matches!(step, Step::Undo { .. }) { "take back: " } else { "" };
            let _ = writeln!(out, "  - {undo}{}", description.what);
            if explain {
                let _ = writeln!(out, "      why: {}", description.why);
                if !need.is_empty() {
                    let _ = writeln!(out, "      now: {}", need.replace('\n', "\n           "));
                }
                let _ = writeln!(out, "      taken back: {}", description.revert);
            }
        }
    }
}

/// What an installation consists of.
enum Aim {
    Systemd(Box<Release>),
    /// The flake of the host brings the release.
    Nixos,
    K3s {
        release: Box<Release>,
        bundle: Bundle,
    },
}

impl Aim {
    fn mode(&self) -> Mode {
        match self {
            Self::Systemd(_) => Mode::Systemd,
            Self::Nixos => Mode::Nixos,
            Self::K3s { .. } => Mode::K3s,
        }
    }
}

fn host_mode() -> Mode {
    if Utf8Path::new("/etc/NIXOS").exists() { Mode::Nixos } else { Mode::Systemd }
}

fn own_program() -> Ends<Utf8PathBuf> {
    let path = std::env::current_exe().map_err(unexpected)?;
    Utf8PathBuf::try_from(path).map_err(unexpected)
}

fn no_release_on_nixos() -> Ends<()> {
    if host_mode() == Mode::Systemd {
        return Ok(());
    }
    let why = "on NixOS the release comes with your flake: update its input and run `nixos-rebuild switch`; \
               `nixos-rebuild switch --rollback` goes back";
    Err(Ended { exit: Exit::Usage, why: why.to_owned() })
}

/// A step, for programs.
fn told_of((step, need): (&Step, &String)) -> serde_json::Value {
    let action = step.action();
    let description = action.describe();
    let undo = matches!(step, Step::Undo { .. });
    serde_json::json!({
        "key": action.key(), "undo": undo, "what": description.what, "why": description.why,
        "revert": description.revert, "now": need,
    })
}

/// What only root can look at; for anybody else that is all there is to say.
fn readable_by_root(error: impl std::error::Error) -> Ended {
    let ended = unexpected(error);
    if rustix::process::geteuid().is_root() {
        return ended;
    }
    Ended { exit: Exit::Usage, why: format!("{}; run this as root", ended.why) }
}

/// Errors with everything that keeps the plan from being carried out.
fn refuse(settled: &Settled) -> Ends<()> {
    if let Some(first) = settled.blocked.first() {
        return Err(Ended { exit: Exit::Preflight, why: first.clone() });
    }
    if settled.conflicts.is_empty() {
        return Ok(());
    }
    let conflicts: Vec<String> =
        settled.conflicts.iter().map(|(key, what)| format!("{key} was changed by somebody else:\n{what}")).collect();
    let why = format!(
        "{}\nPut your change into a drop-in or `fettle.toml`, or use --overwrite (a copy is kept).",
        conflicts.join("\n")
    );
    Err(Ended { exit: Exit::Conflict, why })
}

pub(crate) fn observe() -> HostFacts {
    gather(
        &Files::below("/"),
        &RealAsk,
        &facts::Wanted { environment: Environment::of_process(), ..facts::Wanted::default() },
    )
}

/// What the planner needs to know of this host.
pub(crate) fn planner_facts(host: &dyn HostView, answers: &Answers) -> Ends<Facts> {
    let read = |path: &str| -> Ends<Option<String>> {
        match fs_err::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Ended { exit: Exit::Usage, why: format!("{error}; run this as root") }),
        }
    };
    let config = read(CONFIG)?;
    let mut secrets: std::collections::BTreeSet<Utf8PathBuf> = std::collections::BTreeSet::new();
    if rustix::process::geteuid().is_root() {
        let names = host.list(Utf8Path::new(SECRETS)).map_err(unexpected)?;
        secrets.extend(names.iter().map(|name| Utf8Path::new(SECRETS).join(name)));
    }
    // A configuration may name secrets anywhere; which are there is all that the planner asks.
    let text = config.clone().unwrap_or_else(|| toml::to_string(&answers.settings).unwrap_or_default());
    let named = fettle_runtime::config::Config::parse(CONFIG, &text, &Default::default());
    if let Ok(named) = &named {
        let paths = named.secret_files().into_iter().map(|(_, file)| Utf8Path::new(layout::CONFIG_DIR).join(file));
        secrets.extend(paths.filter(|path| path.is_file()));
    }
    let restricted = fs_err::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    let apparmor_restricts_namespaces = restricted.is_ok_and(|value| value.trim() == "1");
    Ok(Facts { config, secrets, apparmor_restricts_namespaces })
}

/// The generation that is meant.
///
/// Errors with those that there are.
fn earlier(receipt: &Receipt, to: Option<u32>) -> Result<&Generation, String> {
    let others: Vec<&Generation> =
        receipt.generations.iter().filter(|one| one.release != receipt.product.release).collect();
    let found = match to {
        Some(n) => others.iter().find(|generation| generation.n == n),
        None => others.last(),
    };
    found.copied().ok_or_else(|| {
        let known: Vec<String> =
            others.iter().map(|generation| format!("{} ({})", generation.n, generation.version)).collect();
        match known.as_slice() {
            [] => "there is no earlier generation to go back to".to_owned(),
            known => format!("there is no such generation to go back to; there are {}", known.join(", ")),
        }
    })
}

fn next_steps_of_cluster(answers: &K3s) -> String {
    if !answers.join.is_empty() {
        return "This node has joined; `k3s kubectl get nodes` on the other host shows it.".to_owned();
    }
    let way_in = match (answers.host.as_str(), answers.tls.as_str()) {
        ("", _) => "No way in from outside was asked for (k3s.host)".to_owned(),
        (host, "none") => format!("It is at http://{host}/"),
        (host, _) => format!("It is at https://{host}/"),
    };
    format!(
        "{way_in} · `k3s kubectl --namespace {} get pods` · `fettle-installer join` shows the command for a further node",
        k3s::NAMESPACE
    )
}

fn next_steps() -> &'static str {
    "Health: curl http://127.0.0.1:8081/healthz · configuration: /etc/fettle/fettle.toml, then `fettle-installer apply` · `fettle-installer status` shows more."
}
