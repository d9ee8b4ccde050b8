//! `fettle check-config`: says whether a configuration file would be accepted. What NixOS, Helm and the installer run.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use fettle_app::ports::chain;
use fettle_app::run_token::RunTokenKey;
use fettle_domain::budget::MIN_CONTEXT_TOKENS;
use fettle_runtime::config::{BrokerKind, Config, ConfigError, IntakeMode, kind_of, overrides_a_key};
use fettle_runtime::environment::Environment;
use fettle_runtime::secrets;
use serde_json::json;

use crate::progress::note;

/// A configuration is read by people; a larger file is a wrong path.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// The configuration file, or `-` for standard input.
    #[arg(value_name = "FILE")]
    file: Utf8PathBuf,
    /// Apply the FETTLE_<SECTION>__<KEY> variables of this shell as well.
    #[arg(long)]
    with_environment: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(flags: &Flags, environment: &Environment) -> Result<ExitCode> {
    let none = Environment::default();
    let variables = if flags.with_environment { environment } else { &none };
    let name = if flags.file == "-" { "standard input" } else { flags.file.as_str() };
    let checked = load(flags, variables)?;
    let mut out = std::io::stdout().lock();
    match checked {
        Ok(config) => {
            let mut warnings = warnings(&config, environment);
            warnings.extend(left_out(flags, environment));
            let summary = summary(&config);
            if flags.json {
                writeln!(out, "{}", json!({ "ok": true, "file": name, "summary": summary, "warnings": warnings }))?;
            } else {
                warnings.iter().for_each(|warning| note(&format!("warning: {warning}")));
                writeln!(out, "ok: {name}: {summary}")?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let error = chain(&error);
            if flags.json {
                writeln!(out, "{}", json!({ "ok": false, "file": name, "error": error }))?;
            } else {
                note(&format!("error: {error}"));
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

fn load(flags: &Flags, environment: &Environment) -> Result<Result<Config, ConfigError>> {
    if flags.file != "-" {
        return Ok(Config::load(Some(&flags.file), environment));
    }
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_CONFIG_BYTES)
        .read_to_string(&mut text)
        .context("could not read standard input")?;
    Ok(Config::parse("standard input", &text, environment))
}

/// One line on what is configured.
pub(crate) fn summary(config: &Config) -> String {
    let forge = &config.forge;
    let access = match (forge.app_id, &forge.write_token_file, &forge.read_token_file) {
        (Some(id), ..) => format!("as GitHub App {id}"),
        (None, Some(_), _) => "with tokens".to_owned(),
        (None, None, Some(_)) => "with a read token only".to_owned(),
        (None, None, None) => "without credentials".to_owned(),
    };
    let kept = if config.store.url.is_some() { "ledger in PostgreSQL" } else { "ledger in a file" };
    let broker = match config.transport.url.as_deref().and_then(kind_of) {
        None => "no broker",
        Some(BrokerKind::Redis) => "Redis as broker",
        Some(BrokerKind::RabbitMq) => "RabbitMQ as broker",
    };
    let names: Vec<&str> = config.gateway.models.iter().map(|model| model.name.as_str()).collect();
    let models = if names.is_empty() { "no models".to_owned() } else { format!("models {}", names.join(", ")) };
    let plural = if config.agent.workers == 1 { "Run" } else { "Runs" };
    format!(
        "listens on {}; {} {access}, {}, label `{}`; {kept}, {broker}; {models}; {} {plural} at a time, sandbox {} or stronger",
        config.server.listen,
        forge.api_url,
        forge.intake_in_words(),
        forge.label,
        config.agent.workers,
        config.agent.sandbox.min_level.name(),
    )
}

/// What is accepted and still will not do what it seems to.
fn warnings(config: &Config, environment: &Environment) -> Vec<String> {
    let mut warnings = missing_secrets(config);
    warnings.extend(useless_keys(config));
    warnings.extend(blind(config));
    warnings.extend(config.agent.unmet_needs());
    warnings.extend(alone_in_company(config).map(str::to_owned));
    warnings.extend(half_of_the_tokens(config).map(str::to_owned));
    warnings.extend(narrow(config));
    warnings.extend(unserved(config));
    warnings.extend(taken_twice(config));
    warnings.extend(secrets::exposed(config, None, environment));
    warnings
}

/// Models of this machine with a window that no Run's prompt has room in.
fn narrow(config: &Config) -> impl Iterator<Item = String> {
    config.gateway.models.iter().filter(|model| !model.serves_runs()).map(|model| {
        format!(
            "gateway.models `{}`: its context of {} tokens is enough for other programs, and too small for Runs, which need {MIN_CONTEXT_TOKENS}",
            model.name, model.context
        )
    })
}

/// Models of this machine that nobody would get an answer from. No error: the others are served all the same, and their files
/// may come only where the configuration is used.
fn unserved(config: &Config) -> impl Iterator<Item = String> {
    let (_, refused) = fettle_inference::catalog::catalog(config);
    refused.into_iter().map(|(model, why)| format!("gateway.models `{model}` would not be served: {why:#}"))
}

/// One address for two listeners: whoever starts second fails.
fn taken_twice(config: &Config) -> Option<String> {
    let server = &config.server;
    let mut listeners = vec![("server.listen", &server.listen), ("server.internal_listen", &server.internal_listen)];
    listeners.extend(config.gateway.listen.as_ref().map(|listen| ("gateway.listen", listen)));
    // With port 0 each gets one of its own.
    listeners.retain(|(_, address)| !address.ends_with(":0"));
    let twice = |(nth, (key, address)): (usize, &(&'static str, &String))| {
        let (first, _) = listeners[..nth].iter().find(|(_, other)| other == address)?;
        Some(format!("{first} and {key} are both {address}, and only one of them can listen there"))
    };
    listeners.iter().enumerate().find_map(twice)
}

/// Variables that would change what is checked, and were not asked for.
fn left_out(flags: &Flags, environment: &Environment) -> Option<String> {
    let names: Vec<&str> = environment.iter().map(|(name, _)| name).filter(|name| overrides_a_key(name)).collect();
    (!flags.with_environment && !names.is_empty())
        .then(|| format!("{} are set here and not looked at; --with-environment applies them", names.join(", ")))
}

/// Dashboards on one database do each other's work, so they need the same credentials, and clients the same keys.
fn alone_in_company(config: &Config) -> Option<&'static str> {
    let (forge, auth) = (&config.forge, &config.auth);
    let can_write = forge.app_id.is_some() || forge.write_token_file.is_some();
    match config.store.url.is_some() {
        true if auth.admin_key_file.is_none() || auth.worker_key_file.is_none() => Some(
            "store.url is for several dashboards, and this one would make its own keys: set auth.admin_key_file and auth.worker_key_file",
        ),
        true if !can_write => Some(
            "store.url is for several dashboards, and this one would take publications without being able to write to the forge",
        ),
        true | false => None,
    }
}

/// Whoever polls without what it takes sees only what is completed in the browser.
fn blind(config: &Config) -> Option<String> {
    let why = config.forge.why_not_looked().filter(|_| config.forge.intake == IntakeMode::Poll)?;
    Some(format!("forge.intake is `poll`, and only repositories that are added in the browser are looked at: {why}"))
}

/// With an App neither token is needed.
fn half_of_the_tokens(config: &Config) -> Option<&'static str> {
    let forge = &config.forge;
    match (forge.app_id, &forge.read_token_file, &forge.write_token_file) {
        (None, None, Some(_)) => Some(
            "forge.write_token_file is set without forge.read_token_file: workers have no token, so private repositories cannot be worked on",
        ),
        (None, Some(_), None) => Some(
            "forge.read_token_file is set without forge.write_token_file: nothing can be written to the forge, so no pull request is made",
        ),
        (None, None, None) | (None, Some(_), Some(_)) | (Some(_), _, _) => None,
    }
}

/// Secret files that cannot be read here. No error: they may come only where the configuration is used.
fn missing_secrets(config: &Config) -> Vec<String> {
    let tried = config.secret_files().into_iter().map(|(key, file)| (key, secrets::read(file)));
    tried.filter_map(|(key, read)| Some(format!("{key}: {}", chain(&read.err()?)))).collect()
}

/// Files that are there, and that a process will refuse to start with.
fn useless_keys(config: &Config) -> Vec<String> {
    let gateway = &config.gateway;
    let there = |file: &Option<camino::Utf8PathBuf>| file.clone().filter(|file| file.is_file());
    let keys = there(&gateway.keys_file).and_then(|file| fettle_inference::keys::read(&file).err());
    let weak = secrets::shared(config).into_iter().filter_map(|(key, file)| {
        let weak = secrets::read_strong(file.filter(|file| file.is_file())?).err()?;
        matches!(weak, secrets::SecretError::Weak { .. }).then(|| format!("{key}: {weak}"))
    });
    let run_tokens = there(&gateway.run_token_key_file)
        .and_then(|file| Some(RunTokenKey::new(&secrets::read(&file).ok()?).err()?.to_string()));
    let keys = keys.map(|error| format!("gateway.keys_file: {error:#}"));
    keys.into_iter().chain(weak).chain(run_tokens.map(|error| format!("gateway.run_token_key_file: {error}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_what_is_there_and_a_missing_secret_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("token");
        fs_err::write(&there, "not-a-real-token\n").unwrap();
        let text = format!(
            "[forge]\nwrite_token_file = {:?}\nread_token_file = \"/nowhere/read\"\n\
             [[gateway.models]]\nname = \"coder\"\nbase_url = \"http://127.0.0.1:1/v1\"\napi_key_file = \"/nowhere/key\"\n",
            there.display()
        );
        let config = Config::parse("fettle.toml", &text, &Environment::default()).unwrap();
        let summary = summary(&config);
        assert!(
            summary.contains("with tokens, webhooks off, repositories added in the browser polled every ")
                && summary.contains("models coder; 1 Run at a time"),
            "{summary}"
        );
        let warnings = missing_secrets(&config);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[0] == "forge.read_token_file: could not read the secret file /nowhere/read: no such file",
            "{warnings:?}"
        );
        assert!(warnings[1].starts_with("gateway.models `coder`: api_key_file: "), "{warnings:?}");
    }

    #[test]
    fn models_that_nobody_would_get_an_answer_from_are_warned_of() {
        let warned = |text: &str| {
            let config = Config::parse("fettle.toml", text, &Environment::default()).unwrap();
            unserved(&config).chain(taken_twice(&config)).collect::<Vec<_>>()
        };
        let command = |argument: &str| {
            format!(
                "[gpu.engines.command]\nprogram = \"/bin/true\"\nargs = [\"{argument}\"]\n\
                 [[gateway.models]]\nname = \"m\"\nrecipes = [{{ engine = \"command\", memory = \"1GiB\" }}]\n"
            )
        };
        assert_eq!(warned(&command("--port={port}")), Vec::<String>::new());
        let told = warned(&command("--port={prt}"));
        assert!(told.len() == 1 && told[0].contains("`{prt}` of the command is no name that is filled in"), "{told:?}");
        let told = warned("[[gateway.models]]\nname = \"m\"\npath = \"/nowhere/m.gguf\"\n");
        assert!(told.len() == 1 && told[0].contains("/nowhere/m.gguf"), "{told:?}");
        let told = warned("[server]\nlisten = \"127.0.0.1:9000\"\n[gateway]\nlisten = \"127.0.0.1:9000\"\n");
        assert!(told.len() == 1 && told[0].contains("server.listen and gateway.listen are both"), "{told:?}");
        assert_eq!(
            warned("[server]\nlisten = \"127.0.0.1:0\"\ninternal_listen = \"127.0.0.1:0\"\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn polling_is_told_and_so_is_what_it_lacks() {
        let parse = |text: &str| {
            Config::parse("fettle.toml", &format!("[forge]\nintake = 'poll'\n{text}"), &Environment::default()).unwrap()
        };
        let able = parse("app_id = 7\napp_key_file = '/a'\npoll_every = '90s'");
        assert!(
            summary(&able).contains("as GitHub App 7, polling every 90s, webhooks off, label"),
            "{}",
            summary(&able)
        );
        assert_eq!(blind(&able), None);
        let blinded = parse("");
        let told = summary(&blinded);
        assert!(
            told.contains("without credentials, repositories added in the browser polled every 60s, webhooks off"),
            "{told}"
        );
        let warned = blind(&blinded).unwrap();
        assert!(warned.contains("forge.app_id") && warned.contains("only repositories that are added"), "{warned}");
        assert_eq!(blind(&Config::default()), None);
    }

    #[test]
    fn one_token_without_the_other_is_a_warning() {
        let warned = |text: &str| {
            let config = Config::parse("fettle.toml", &format!("[forge]\n{text}"), &Environment::default()).unwrap();
            half_of_the_tokens(&config)
        };
        assert!(warned("write_token_file = \"/a\"").unwrap().contains("private repositories"));
        assert!(warned("read_token_file = \"/a\"").unwrap().contains("no pull request"));
        assert_eq!(warned("read_token_file = \"/a\"\nwrite_token_file = \"/b\""), None);
        assert_eq!(warned("app_id = 7\napp_key_file = \"/a\"\nread_token_file = \"/b\""), None);
    }
}
