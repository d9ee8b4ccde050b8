//! `fettle doctor`: can this machine do the work, and if not, what to do about it.

mod gpus;
mod machine;
mod network;
mod services;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use fettle_app::ports::chain;
use fettle_domain::strength::check_secret;
use fettle_runtime::config::{Config, IntakeMode};
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::secrets;
use fettle_runtime::units::Span;
use secrecy::ExposeSecret as _;
use serde::Serialize;

use crate::check_config::summary;
use crate::progress::{StatusLine, one_line};
use crate::{Common, client};

/// How the keys of the webhooks' secrets begin.
const WEBHOOK_SECRETS: &str = "forge.webhook_secret";
/// What to do about a secret file that cannot be read.
const FILL: &str = "put the secret into this file, readable for the user that Fettle runs as";

#[derive(clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    client: client::Dashboard,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// One question and its answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// `sandbox`, `toolchain.cargo`, `model.coder`: stays the same from version to version.
    id: String,
    status: Status,
    sentence: String,
    /// What to do; absent when nothing needs to be done.
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    /// Something will not work; the rest does.
    Warn,
    /// No Task can come to a good end here.
    Fail,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

impl Check {
    fn ok(id: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self { id: id.into(), status: Status::Ok, sentence: sentence.into(), remedy: None }
    }

    fn warn(id: impl Into<String>, sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id: id.into(), status: Status::Warn, sentence: sentence.into(), remedy: Some(remedy.into()) }
    }

    fn fail(id: impl Into<String>, sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id: id.into(), status: Status::Fail, sentence: sentence.into(), remedy: Some(remedy.into()) }
    }
}

pub(crate) async fn run(common: &Common, flags: &Flags, environment: &Environment) -> Result<ExitCode> {
    let mut status = StatusLine::new();
    status.show("looking at this machine …");
    let checks = examine(common, flags, environment).await;
    status.clear();
    let healthy = checks.iter().all(|check| check.status != Status::Fail);
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", serde_json::json!({ "ok": healthy, "checks": checks }))?;
    } else {
        tell(&mut out, &checks)?;
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn examine(common: &Common, flags: &Flags, environment: &Environment) -> Vec<Check> {
    let mut checks = Vec::new();
    let config = match Config::load(common.config.as_deref(), environment) {
        Ok(config) => config,
        Err(error) => {
            let remedy =
                "correct the configuration; all other checks need it. `fettle check-config FILE` looks at it alone";
            checks.push(Check::fail("config", chain(&error), remedy));
            checks.extend(machine::toolchains(environment).await);
            return checks;
        }
    };
    let name = common.config.as_ref().map_or("the built-in configuration", |path| path.as_str());
    checks.push(Check::ok("config", format!("{name}: {}", summary(&config))));
    match DataDir::open(common.data_dir.as_deref(), &config, environment) {
        Ok(data) => {
            let exposed = secrets::exposed(&config, Some(&data), environment);
            let remedy = "run this command as the owner of the file; a secret that was read by others is best replaced";
            checks.extend(exposed.into_iter().map(|sentence| Check::warn("secrets", sentence, remedy)));
            checks.push(machine::data(&data));
            checks.push(machine::disk(&data, &config));
            checks.push(machine::sandbox(&config, &data).await);
        }
        Err(error) => {
            let remedy = "name a folder that you may write with --data-dir or store.data_dir";
            checks.push(Check::fail("data", chain(&error), remedy));
        }
    }
    checks.extend(machine::toolchains(environment).await);
    checks.push(gpus::check(&config).await);
    checks.extend(network::models(&config, environment).await);
    checks.extend(network::gateway(&config).await);
    checks.extend(services::store(&config).await);
    checks.extend(services::broker(&config).await);
    checks.push(secret_check(&config).unwrap_or_else(|| forge(&config)));
    checks.push(webhook(&config));
    checks.push(poll(&config));
    checks.push(network::dashboard(common, flags, &config, environment).await);
    checks
}

/// A secret file that is named but cannot be read; nothing starts then. Those of webhooks are told with the webhooks.
fn secret_check(config: &Config) -> Option<Check> {
    let others = config.secret_files().into_iter().filter(|(key, _)| !key.starts_with(WEBHOOK_SECRETS));
    let mut tried = others.map(|(key, file)| (key, secrets::read(file)));
    let (key, error) = tried.find_map(|(key, read)| Some((key, read.err()?)))?;
    let sentence = format!("{key}: {}", chain(&error));
    Some(Check::fail("forge", sentence, FILL))
}

fn forge(config: &Config) -> Check {
    let forge = &config.forge;
    let read = |file: &Option<camino::Utf8PathBuf>| file.as_deref().and_then(|file| secrets::read(file).ok());
    if let Some(id) = forge.app_id {
        return Check::ok("forge", format!("{} as GitHub App {id}", forge.api_url));
    }
    match (read(&forge.read_token_file), read(&forge.write_token_file)) {
        (Some(read), Some(write)) if read.expose_secret() == write.expose_secret() => Check::fail(
            "forge",
            "forge.read_token_file and forge.write_token_file hold the same token",
            "give workers a token of their own that can only read: a token cannot be narrowed",
        ),
        (Some(_), Some(_)) => Check::ok("forge", format!("{} with a token to read and one to write", forge.api_url)),
        (None, Some(_)) => Check::warn(
            "forge",
            "there is no token to read with, so private repositories cannot be worked on",
            "set forge.read_token_file to a token that can only read",
        ),
        (_, None) => Check::warn(
            "forge",
            "nothing can be written to the forge, so no pull request is made",
            "set forge.app_id and forge.app_key_file, or forge.write_token_file; `fettle fix` works without",
        ),
    }
}

fn webhook(config: &Config) -> Check {
    let named = config.secret_files().into_iter().filter(|(key, _)| key.starts_with(WEBHOOK_SECRETS));
    if let Some((key, error)) = named.filter_map(|(key, file)| Some((key, secrets::read(file).err()?))).next() {
        return Check::fail("webhook", format!("{key}: {}", chain(&error)), FILL);
    }
    let Some(secret) = config.forge.webhook_secret_file.as_deref().and_then(|file| secrets::read(file).ok()) else {
        if config.forge.intake == IntakeMode::Poll {
            return Check::ok("webhook", "there is no webhook secret, and with forge.intake = \"poll\" none is needed");
        }
        let remedy = "set forge.webhook_secret_file, and the same secret at the forge; or forge.intake = \"poll\" where the forge cannot reach this host";
        return Check::warn(
            "webhook",
            "there is no webhook secret, so webhooks are refused and labels are not seen",
            remedy,
        );
    };
    if let Err(why) = check_secret(secret.expose_secret()) {
        let sentence = format!("anybody who guesses the webhook secret can order work, and {why}");
        return Check::fail(
            "webhook",
            sentence,
            "make one with `openssl rand -hex 32`, and set it at the forge as well",
        );
    }
    Check::ok("webhook", format!("webhooks are signed; label `{}` asks for work", config.forge.label))
}

/// What is found without having been told.
fn poll(config: &Config) -> Check {
    let forge = &config.forge;
    let Some(every) = forge.looks_every() else {
        let why = forge.why_not_looked().unwrap_or_default();
        return match forge.intake {
            IntakeMode::Poll => Check::fail("poll", "no label is ever seen, since nothing can be looked for", why),
            IntakeMode::Webhook => Check::ok("poll", format!("a label whose webhook is lost is not seen: {why}")),
        };
    };
    let redelivery = match forge.redelivers_every() {
        Some(every) => format!("; failed webhook deliveries are asked for again every {}", Span(every)),
        None => String::new(),
    };
    Check::ok("poll", format!("label `{}` is looked for every {}{redelivery}", forge.label, Span(every)))
}

fn tell(out: &mut impl Write, checks: &[Check]) -> std::io::Result<()> {
    let width = checks.iter().map(|check| check.id.chars().count()).max().unwrap_or(0);
    for check in checks {
        writeln!(out, "{:<4}  {:<width$}  {}", check.status.word(), one_line(&check.id), one_line(&check.sentence))?;
        if let Some(remedy) = &check.remedy {
            writeln!(out, "{:<4}  {:<width$}  -> {}", "", "", one_line(remedy))?;
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    match (count(Status::Fail), count(Status::Warn)) {
        (0, 0) => writeln!(out, "\nall is well"),
        (0, warn) => writeln!(out, "\n{warn} to look at; nothing stops work"),
        (fail, warn) => writeln!(out, "\n{fail} failed, {warn} to look at"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("fettle.toml", text, &Environment::default()).unwrap()
    }

    #[test]
    fn credentials_are_judged_by_what_they_allow() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs_err::write(&path, text).unwrap();
            format!("{:?}", path.display())
        };
        let (a, b, same, short) = (file("a", "first"), file("b", "second"), file("c", "first\n"), file("d", "short"));
        let judged = |text: &str| {
            let config = config(&format!("[forge]\n{text}"));
            secret_check(&config).unwrap_or_else(|| forge(&config)).status
        };
        assert_eq!(judged(""), Status::Warn);
        assert_eq!(judged(&format!("write_token_file = {a}")), Status::Warn);
        assert_eq!(judged(&format!("write_token_file = {a}\nread_token_file = {b}")), Status::Ok);
        assert_eq!(judged(&format!("write_token_file = {a}\nread_token_file = {same}")), Status::Fail);
        assert_eq!(judged("write_token_file = \"/nowhere/token\""), Status::Fail);
        assert_eq!(judged(&format!("app_id = 7\napp_key_file = {a}")), Status::Ok);
        assert_eq!(webhook(&config("")).status, Status::Warn);
        let missing = config("[forge]\nwebhook_secret_file = \"/nowhere/secret\"");
        let told = webhook(&missing);
        assert!(told.status == Status::Fail && told.sentence.contains("/nowhere/secret: no such file"), "{told:?}");
        assert_eq!(secret_check(&missing), None);
        assert_eq!(webhook(&config(&format!("[forge]\nwebhook_secret_file = {short}"))).status, Status::Fail);
        assert_eq!(webhook(&config("[forge]\nintake = 'poll'")).status, Status::Ok);
    }

    #[test]
    fn what_is_looked_for_is_told_and_polling_blindly_is_a_failure() {
        let told = |text: &str| {
            let check = poll(&config(&format!("[forge]\n{text}")));
            (check.status, check.sentence)
        };
        assert_eq!(told("").0, Status::Ok);
        assert_eq!(told("intake = 'poll'").0, Status::Fail);
        let app = "app_id = 7\napp_key_file = '/a'\nwebhook_secret_file = '/b'";
        let (status, sentence) = told(app);
        assert_eq!(status, Status::Ok);
        assert_eq!(
            sentence,
            "label `ai-help` is looked for every 600s; failed webhook deliveries are asked for again every 300s"
        );
    }

    #[test]
    fn each_check_is_a_line_with_its_remedy_below() {
        let checks = [Check::ok("data", "fine"), Check::fail("sandbox", "no level works", "allow namespaces")];
        let mut out = Vec::new();
        tell(&mut out, &checks).unwrap();
        let expected = "ok    data     fine\nFAIL  sandbox  no level works\n               -> allow namespaces\n\n1 failed, 0 to look at\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
