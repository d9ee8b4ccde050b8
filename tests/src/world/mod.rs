//! The real programs in a box: a forge, a scripted model and Fettle in a temporary home, on free ports of loopback.
//!
//! When a box is dropped it stops what it started and, unless the test has failed already, looks for what must never be:
//! a workspace that stayed, an error in a log, a ledger that contradicts itself, a secret outside of its place.

mod again;
mod api;
mod canary;
mod programs;
pub mod repository;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::ledger::Ledger as _;
use fettle_domain::repo::RepoName;
use fettle_runtime::system::{RandomIds, SystemClock};
use fettle_store_postgres::{Database, PostgresLedger};
use fettle_store_sqlite::{Options, SqliteLedger};
use serde_json::Value;

pub use again::{SERVER, WORKER};
pub use api::Api;
pub use canary::Canaries;
pub use fettle_test_kit::Process;
pub use programs::program;

use again::Program;

use crate::forge::{AppKey, AppOptions, ForgeEmulator, ForgeOptions, PatAccess, Role};
use crate::model::{ModelServer, Script};
use crate::postgres::PASSWORD;

/// The longest that anything in a box may take; what takes this long hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Who may ask for work in the box's repository.
pub const MAINTAINER: &str = "ann";
/// The label that asks.
pub const LABEL: &str = "ai-help";
/// The account of the tokens.
const MACHINE_USER: &str = "fettle-machine";
/// The Runs' work is more than a folder of a few files; anything else is said at once.
const READY: Duration = Duration::from_secs(20);

/// Which programs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `fettle up`.
    One,
    /// `fettle-dashboard` and `fettle-worker`.
    Two,
    /// `fettle-dashboard`, whose worker comes by [`TestBox::start_worker`].
    Dashboard,
}

/// What Fettle shows to the forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// One personal access token that reads and one that writes.
    Tokens,
    App,
}

/// How long leases last, and all that goes with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leases {
    /// A second: what waits for their end does so within a test.
    Short,
    /// As in production.
    Real,
}

impl Leases {
    fn environment(self) -> Vec<(&'static str, String)> {
        match self {
            Self::Short => vec![("FETTLE_TEST_TIMING", "1".to_owned())],
            Self::Real => Vec::new(),
        }
    }
}

/// How a box is made.
pub struct Setup<'a> {
    pub layout: Layout,
    pub auth: Auth,
    pub script: Script,
    /// The label that asks for work.
    pub label: &'a str,
    pub repository: &'a [(&'a str, &'a str)],
    /// `point:before` or `point:after` at which the program that serves the API kills itself.
    pub armed: Option<&'a str>,
    /// A bot that may ask for work.
    pub allowed_bot: Option<&'a str>,
    /// The address of a broker between the programs.
    pub broker: Option<&'a str>,
    /// The address of a PostgreSQL database for the ledger, without user and password.
    pub store: Option<&'a str>,
    /// The forge shares a secret with us, and so its webhooks are taken.
    pub webhooks: bool,
    /// Neither credentials of the forge nor models stand in the configuration: they are to be entered.
    pub bare: bool,
    /// Further lines of the section `[forge]`.
    pub forge: &'a str,
    /// Lines of the section `[agent]`.
    pub agent: &'a str,
    /// Lines of the section `[telemetry]`.
    pub telemetry: &'a str,
    pub leases: Leases,
}

impl Setup<'_> {
    /// One process, tokens, the small repository.
    pub fn with(script: Script) -> Self {
        Self {
            layout: Layout::One,
            auth: Auth::Tokens,
            script,
            label: LABEL,
            repository: repository::CLAMP,
            armed: None,
            allowed_bot: None,
            broker: None,
            store: None,
            webhooks: true,
            bare: false,
            forge: "",
            agent: "",
            telemetry: "",
            leases: Leases::Short,
        }
    }
}

/// Secrets that a bare box has nowhere.
#[derive(Debug, Default)]
pub struct ToEnter {
    pub read_token: String,
    pub write_token: String,
    pub model_key: String,
}

pub struct TestBox {
    pub forge: ForgeEmulator,
    pub model: ModelServer,
    pub api: Api,
    pub repo: RepoName,
    pub webhook_secret: String,
    pub to_enter: ToEnter,
    /// The one that serves the API first.
    programs: Vec<Program>,
    /// Where a dashboard of its own listens for workers.
    internal: Option<String>,
    /// Where workers ask for models, when not at the model's server.
    gateway: Option<String>,
    /// The dashboard that `api` and `internal` are of.
    serving: usize,
    leases: Leases,
    root: Utf8PathBuf,
    /// The ledger's database, when it is not a file.
    database: Option<Database>,
    canaries: Canaries,
    expected_errors: Vec<String>,
    checked: bool,
    _home: tempfile::TempDir,
}

impl TestBox {
    /// Everything is up and ready for a webhook.
    pub async fn start(setup: Setup<'_>) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("fettle-box-").tempdir()?;
        let root = Utf8PathBuf::try_from(home.path().to_owned())?;
        let mut canaries = Canaries::default();
        canaries.add(canary::VARIABLE, canary::OF_ENVIRONMENT);
        canaries.plant(&root.join(".netrc"), "canary-of-the-home-77c0")?;

        let (app_key, app) = match setup.auth {
            Auth::Tokens => (None, None),
            Auth::App => {
                let (private, public) = AppKey::generate()?;
                (Some(private), Some(AppOptions::new(public)))
            }
        };
        let app_id = app.as_ref().map(|app| app.id);
        let forge = ForgeEmulator::start(ForgeOptions { app, folder: None }).await?;
        let repo = forge.create_repository("octo/clamp", setup.repository).await?;
        forge.set_role(&repo, MAINTAINER, Some(Role::Write));
        let model_key = "canary-of-the-model-1f02";
        let model = ModelServer::start(setup.script.requiring_key(model_key));
        let webhook_secret = "canary-of-the-webhook-90aa".to_owned();

        let keys = root.join("keys");
        fs_err::create_dir_all(&keys)?;
        let mut to_enter = ToEnter::default();
        if setup.bare {
            to_enter = ToEnter {
                read_token: forge.add_token(MACHINE_USER, PatAccess::Read),
                write_token: forge.add_token(MACHINE_USER, PatAccess::Write),
                model_key: model_key.to_owned(),
            };
            canaries.add("the read token", &to_enter.read_token);
            canaries.add("the write token", &to_enter.write_token);
            canaries.add("the model's key", model_key);
        }
        let mut plant = |name: &str, secret: &str| canaries.plant(&keys.join(name), secret);
        let forge_keys = match app_key {
            None if setup.bare => String::new(),
            Some(private) => {
                let id = app_id.unwrap_or_default();
                format!("app_id = {id}\napp_key_file = '{}'", plant("app.pem", &private)?)
            }
            None => {
                let read = plant("read", &forge.add_token(MACHINE_USER, PatAccess::Read))?;
                let write = plant("write", &forge.add_token(MACHINE_USER, PatAccess::Write))?;
                format!("read_token_file = '{read}'\nwrite_token_file = '{write}'")
            }
        };
        let webhook = match setup.webhooks {
            true => format!("webhook_secret_file = '{}'", plant("webhook", &webhook_secret)?),
            false => String::new(),
        };
        let bots: Vec<u64> = setup.allowed_bot.map(|login| forge.add_user(login)).into_iter().collect();
        let models = match setup.bare {
            true => {
                let file = plant("run-tokens", "canary-of-the-key-of-run-tokens-71c9e2")?;
                format!("[gateway]\nrun_token_key_file = '{file}'\n")
            }
            false => format!(
                "[[gateway.models]]\nname = 'scripted'\nbase_url = '{}'\napi_key_file = '{}'\n",
                model.base_url(),
                plant("model", model_key)?
            ),
        };
        let config = root.join("fettle.toml");
        let text = format!(
            "[server]\nlisten = '127.0.0.1:0'\ninternal_listen = '127.0.0.1:0'\n\
             [forge]\napi_url = '{}'\nhosts = ['{}']\nlabel = '{}'\nallowed_bots = {bots:?}\n{webhook}\n{forge_keys}\n{}\n\
             [agent]\n{}\n[auth]\nworker_key_file = '{}'\n{models}",
            forge.url(),
            forge.address(),
            setup.label,
            setup.forge,
            setup.agent,
            plant("worker", "canary-of-the-worker-key-53d8")?,
        );
        // Without lines there is no section: tests of reloads add their own.
        let telemetry = match setup.telemetry {
            "" => String::new(),
            lines => format!("[telemetry]\n{lines}\n"),
        };
        let transport = setup.broker.map(|url| format!("[transport]\nurl = '{url}'\n")).unwrap_or_default();
        let store = match setup.store {
            Some(url) => {
                let file = plant("database", PASSWORD)?;
                format!("[store]\nurl = '{url}'\nuser = 'postgres'\npassword_file = '{file}'\n")
            }
            None => String::new(),
        };
        fs_err::write(&config, text + &telemetry + &transport + &store)?;
        let database = setup.store.map(|url| Database {
            user: Some("postgres".to_owned()),
            password: Some(PASSWORD.into()),
            ..Database::at(url)
        });
        if setup.store.is_some() {
            migrate(&root, &config)?;
        }

        let environment = setup.leases.environment();
        let server = match setup.layout {
            Layout::One => Program::start("fettle", &["up"], &root, SERVER, environment, setup.armed)?,
            Layout::Two | Layout::Dashboard => {
                Program::start("fettle-dashboard", &[], &root, SERVER, environment, setup.armed)?
            }
        };
        let api = ready(&server.process, &server.data).await?;
        let internal = server.process.log().iter().find_map(|line| address_for_workers(line));
        canaries.add("admin.key", fs_err::read_to_string(server.data.join("admin.key"))?.trim());
        let mut started = Self {
            forge,
            model,
            api,
            repo,
            webhook_secret,
            to_enter,
            programs: vec![server],
            internal,
            gateway: None,
            serving: SERVER,
            leases: setup.leases,
            root,
            database,
            canaries,
            expected_errors: Vec::new(),
            checked: false,
            _home: home,
        };
        if setup.layout == Layout::Two {
            started.start_worker(None)?;
        }
        Ok(started)
    }

    /// A new issue about the bug, by somebody without rights.
    pub fn issue(&self) -> u64 {
        self.forge.create_issue(&self.repo, "a-user", repository::TITLE, repository::BODY)
    }

    /// Sets the label as the maintainer and tells Fettle.
    pub async fn label(&self, issue: u64) -> anyhow::Result<()> {
        self.forge.label(&self.repo, issue, LABEL, MAINTAINER);
        let payload = self.forge.issue_labeled(&self.repo, issue, LABEL, MAINTAINER);
        self.deliver("issues", &payload).await
    }

    /// Comments and tells Fettle.
    pub async fn comment(&self, issue: u64, author: &str, text: &str) -> anyhow::Result<()> {
        let comment = self.forge.comment(&self.repo, issue, author, text);
        let payload = self.forge.comment_created(&self.repo, issue, comment);
        self.deliver("issue_comment", &payload).await
    }

    /// A signed delivery; errors when it is not accepted.
    pub async fn deliver(&self, event: &str, payload: &Value) -> anyhow::Result<()> {
        let answer = self.forge.deliver(&self.api.webhooks(), event, payload, &self.webhook_secret).await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status == 202, "the delivery was answered with {status}: {text}");
        Ok(())
    }

    /// An issue, its label, and the Task after its end.
    pub async fn solve(&self, issue: u64) -> anyhow::Result<Value> {
        self.label(issue).await?;
        let task = self.api.task_opened(0, PATIENCE).await?;
        self.api.task_ended(&task, PATIENCE).await
    }

    /// Waits until so many deliveries were found to ask for nothing; gives what was said of them.
    pub async fn closed_deliveries(&self, count: usize) -> anyhow::Result<Vec<String>> {
        let seen = std::cell::RefCell::new(Vec::new());
        self.process(SERVER)
            .logged("deliveries were closed", PATIENCE, |line| {
                if let Some((_, why)) = message(line)?.split_once(" asks for nothing: ") {
                    seen.borrow_mut().push(why.to_owned());
                }
                (seen.borrow().len() >= count).then_some(())
            })
            .await
            .with_context(|| format!("while waiting for {count} closed deliveries"))?;
        Ok(seen.into_inner())
    }

    /// Bodies of the comments that Fettle wrote on an issue.
    pub fn answers_on(&self, issue: u64) -> Vec<String> {
        let issue = self.forge.issue(&self.repo, issue).expect("the issue exists");
        let ours = |author: &str| author == MACHINE_USER || author.ends_with("[bot]");
        issue.comments.into_iter().filter(|comment| ours(&comment.author)).map(|comment| comment.body).collect()
    }

    /// Folders of Runs that exist now.
    pub fn workspaces(&self) -> Vec<Utf8PathBuf> {
        let children = |folder: &Utf8Path| -> Vec<Utf8PathBuf> {
            let entries = folder.read_dir_utf8().into_iter().flatten();
            entries.flatten().map(|entry| entry.into_path()).collect()
        };
        let processes = self.programs.iter().flat_map(|program| children(&program.data.join("cache/runs")));
        processes.flat_map(|process| children(&process.join("runs"))).collect()
    }

    /// An `ERROR` line with this text is part of the test.
    pub fn expect_error(&mut self, text: &str) {
        self.expected_errors.push(text.to_owned());
    }

    /// The logs of all programs.
    pub fn log(&self) -> Vec<String> {
        self.programs.iter().flat_map(Program::log).collect()
    }

    /// The configuration of all programs.
    pub fn config(&self) -> Utf8PathBuf {
        self.root.join("fettle.toml")
    }

    /// Programs that were started, dead ones too.
    pub fn process_count(&self) -> usize {
        self.programs.len()
    }

    pub fn process(&self, nth: usize) -> &Process {
        &self.programs[nth].process
    }

    /// The last lines of all logs.
    pub fn tails(&self) -> String {
        self.programs.iter().map(|program| program.process.tail()).collect::<Vec<_>>().join("\n")
    }

    fn check(&mut self) -> anyhow::Result<()> {
        // The worker first: it lets go of its lease while somebody listens.
        for Program { process, .. } in self.programs.iter_mut().rev() {
            let status = process.stop()?;
            ensure!(status.success(), "a program ended with {status}:\n{}", process.tail());
        }
        let left = self.workspaces();
        ensure!(left.is_empty(), "workspaces stayed: {left:?}");
        for line in self.log() {
            let expected = self.expected_errors.iter().any(|text| line.contains(text.as_str()));
            ensure!(expected || !line.contains("\"level\":\"ERROR\""), "an error was logged: {line}");
            ensure!(!line.contains("panicked at"), "a program panicked: {line}");
        }
        self.audit()?;
        self.look_for_secrets()
    }

    fn audit(&self) -> anyhow::Result<()> {
        let (ledger, database) = (self.programs[SERVER].data.join("ledger"), self.database.clone());
        // A runtime of its own: the test's may be gone, or be the one that drops the box.
        let audited = std::thread::spawn(move || -> anyhow::Result<Vec<String>> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                if let Some(database) = database {
                    let options = fettle_store_postgres::Options::new(Arc::new(RandomIds));
                    let ledger = PostgresLedger::open(&database, options).await?;
                    let breaches = ledger.audit().await?;
                    ledger.close().await?;
                    return Ok(breaches);
                }
                let options = Options::new(Arc::new(SystemClock), Arc::new(RandomIds));
                let ledger = SqliteLedger::open(ledger, options).await?;
                let breaches = ledger.audit().await?;
                ledger.close().await?;
                Ok(breaches)
            })
        });
        let breaches = audited.join().map_err(|_| anyhow::anyhow!("the audit panicked"))??;
        ensure!(breaches.is_empty(), "the ledger contradicts itself: {breaches:#?}");
        Ok(())
    }

    fn look_for_secrets(&self) -> anyhow::Result<()> {
        let look = |place: &str, text: &str| self.canaries.absent_from(place, text);
        self.log().iter().try_for_each(|line| look("a log", line))?;
        self.api.answers().iter().try_for_each(|answer| look("the API", answer))?;
        for request in self.forge.requests() {
            let body = request.body.map(|body| body.to_string()).unwrap_or_default();
            let place = format!("{} {}", request.method, request.path);
            look(&place, &format!("{}?{}\n{body}", request.path, request.query))?;
        }
        for request in self.model.requests() {
            look("what the model reads", &request.body.to_string())?;
        }
        let objects = Command::new("git")
            .args(["cat-file", "--batch-all-objects", "--batch"])
            .current_dir(self.forge.bare(&self.repo))
            .output()
            .context("while reading the objects on the forge")?;
        ensure!(objects.status.success(), "git cat-file failed");
        look("the objects on the forge", &String::from_utf8_lossy(&objects.stdout))
    }
}

impl Drop for TestBox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told = self.model.requests().last().map(|last| last.conversation().last_text().to_owned());
            let text = format!("the logs:\n{}\nthe model was told last: {}\n", self.tails(), told.unwrap_or_default());
            // Nobody is left to tell if this fails.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        } else if !self.checked
            && let Err(error) = self.check()
        {
            panic!("{error:#}\nthe logs:\n{}", self.tails());
        }
    }
}

/// How a program of ours is started: nothing of the developer's home and environment but the toolchains.
pub struct Launch<'a> {
    pub home: &'a Utf8Path,
    pub config: Option<&'a Utf8Path>,
    pub data: &'a Utf8Path,
    /// A process group of its own: the terminal's Ctrl-C does not reach it.
    pub own_group: bool,
}

impl Launch<'_> {
    pub fn start(&self, name: &str, arguments: &[&str], more: &[(&str, String)]) -> anyhow::Result<Process> {
        let mut command = Command::new(program(name)?);
        command.args(arguments).arg("--data-dir").arg(self.data);
        if let Some(config) = self.config {
            command.arg("--config").arg(config);
        }
        command.env_clear().current_dir(self.home);
        command.env("HOME", self.home).envs(toolchains()).envs(more.iter().map(|(name, value)| (*name, value)));
        if self.own_group {
            command.process_group(0);
        }
        Process::start(name, &mut command)
    }
}

/// What finds the toolchains without the developer's home.
#[expect(clippy::disallowed_methods, reason = "the programs under test get an environment of their own")]
pub fn toolchains() -> BTreeMap<&'static str, String> {
    let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut found = BTreeMap::new();
    if let Some(path) = given("PATH") {
        found.insert("PATH", path);
    }
    if let Some(rustup) = given("RUSTUP_HOME").or_else(|| Some(format!("{}/.rustup", given("HOME")?))) {
        found.insert("RUSTUP_HOME", rustup);
    }
    found
}

/// `fettle-dashboard migrate`, as an operator runs it.
fn migrate(home: &Utf8Path, config: &Utf8Path) -> anyhow::Result<()> {
    let mut command = Command::new(program("fettle-dashboard")?);
    command.arg("--config").arg(config).arg("migrate").env_clear().env("HOME", home);
    let output = command.output().context("while starting fettle-dashboard migrate")?;
    ensure!(output.status.success(), "migrate failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Waits until a dashboard serves; its API.
pub async fn ready(process: &Process, data: &Utf8Path) -> anyhow::Result<Api> {
    ready_with(process, data, &data.join("admin.key")).await
}

/// As [`ready`], with a key that lies elsewhere.
async fn ready_with(process: &Process, data: &Utf8Path, key: &Utf8Path) -> anyhow::Result<Api> {
    let serves = |line: &str| message(line)?.contains(" listens on http://").then_some(());
    process.logged("it serves", READY, serves).await?;
    let api = Api::with_key(data, key)?;
    let asked = api.health("/readyz").await;
    let (status, text) = asked.with_context(|| format!("not ready after saying so; its log:\n{}", process.tail()))?;
    ensure!(status == 200, "not ready after saying so: {text}");
    Ok(api)
}

fn address_for_workers(line: &str) -> Option<String> {
    Some(message(line)?.split_once("the worker API listens on ")?.1.trim().to_owned())
}

/// The sentence of a line of the log, which is JSON.
pub fn message(line: &str) -> Option<String> {
    serde_json::from_str::<Value>(line).ok()?["message"].as_str().map(str::to_owned)
}
