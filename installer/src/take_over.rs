//! Takes the place of an installation of the founding layout: `/etc/ai-agent/env`, `/opt/ai-agent`, `aiagent.service`. What is
//! there is read, what becomes of it is decided as answers for the planner, and the rest is told with a reason. Carrying it
//! out is an ordinary `apply`, so it is taken back like one.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_domain::strength::check_secret;
use serde::Serialize;
use toml::{Table, Value};

use crate::answers::{Answers, SecretFrom, VariableOf};
use crate::environment_file;
use crate::host::{Entry, HostResult, HostView};

const PROGRAMS: &str = "/opt/ai-agent";
const ENVIRONMENT: &str = "/etc/ai-agent/env";
/// The service, and the two that a host has instead where dashboard and worker were installed apart.
const UNITS: [&str; 3] = ["aiagent.service", "aiagent-app.service", "aiagent-rq.service"];
const UNIT_FOLDERS: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
const OPENAI: &str = "https://api.openai.com/v1";
const SECRET_IN_URL: &str =
    "its address holds a password, which a configuration must not; put a proxy there that adds it";
const OLLAMA: &str = "http://127.0.0.1:11434";

/// An installation as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub programs: bool,
    /// None when there is no file of them.
    pub variables: Option<BTreeMap<String, String>>,
    pub units: Vec<String>,
}

/// Reads what is there; none when nothing is.
pub fn look(host: &dyn HostView) -> HostResult<Option<Found>> {
    let mut found = Found { programs: !host.entry(Utf8Path::new(PROGRAMS))?.is_absent(), ..Found::default() };
    if matches!(host.entry(Utf8Path::new(ENVIRONMENT))?, Entry::File { .. }) {
        let text = host.read(Utf8Path::new(ENVIRONMENT))?;
        found.variables = Some(environment_file::read(&String::from_utf8_lossy(&text)));
    }
    for unit in UNITS {
        for folder in UNIT_FOLDERS {
            if !found.units.iter().any(|known| known == unit)
                && !host.entry(&Utf8Path::new(folder).join(unit))?.is_absent()
            {
                found.units.push(unit.to_owned());
            }
        }
    }
    Ok((found != Found::default()).then_some(found))
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TakeOver {
    pub answers: Answers,
    pub carried: Vec<Told>,
    /// What stays where it is, and what to do about it.
    pub left: Vec<Told>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    pub what: String,
    /// Where it goes, or why it does not.
    pub how: String,
}

/// `model` names the model where the installation does not.
pub fn take_over(found: &Found, model: Option<&str>) -> TakeOver {
    let variables = found.variables.clone().unwrap_or_default();
    let taking = TakeOver { answers: Answers::default(), carried: Vec::new(), left: Vec::new() };
    let mut taking = Taking { variables, used: BTreeSet::new(), forge: Table::new(), models: Vec::new(), taking };
    taking.forge();
    taking.models(model);
    taking.rest();
    taking.end(found)
}

struct Taking {
    variables: BTreeMap<String, String>,
    used: BTreeSet<String>,
    forge: Table,
    models: Vec<Value>,
    taking: TakeOver,
}

impl Taking {
    /// The first of these that has a value, which is then dealt with; so are the others.
    fn take(&mut self, names: &[&str]) -> Option<(String, String)> {
        self.used.extend(names.iter().map(|name| (*name).to_owned()));
        names.iter().find_map(|name| {
            let value = self.variables.get(*name).filter(|value| !value.is_empty())?;
            Some(((*name).to_owned(), value.clone()))
        })
    }

    fn carry(&mut self, what: &str, to: String) {
        self.taking.carried.push(Told { what: what.to_owned(), how: to });
    }

    fn leave(&mut self, what: &str, why: &str) {
        self.taking.left.push(Told { what: what.to_owned(), how: why.to_owned() });
    }

    /// The secret's path, as the configuration names it. Its value stays in the file until it is copied.
    fn secret(&mut self, variable: &str, name: &str) -> Value {
        let from = VariableOf { file: ENVIRONMENT.into(), variable: variable.to_owned() };
        self.taking.answers.secrets.insert(name.to_owned(), SecretFrom::Variable(from));
        self.carry(variable, format!("/etc/fettle/secrets/{name}"));
        format!("secrets/{name}").into()
    }

    fn forge(&mut self) {
        let webhook = self.take(&["GITHUB_WEBHOOK_SECRET", "WEBHOOK_SECRET"]);
        if let Some((variable, _)) = webhook.as_ref().filter(|(_, value)| check_secret(value).is_err()) {
            self.leave(
                variable,
                "it can be guessed, and Fettle takes none with less than 128 bits: make a new one (`openssl rand -hex 32`), give \
                 it to the forge and name it as forge.webhook_secret_file",
            );
        } else if let Some((variable, _)) = webhook {
            let path = self.secret(&variable, "webhook-secret");
            self.forge.insert("webhook_secret_file".to_owned(), path);
        }
        let key = self.take(&["GITHUB_APP_PRIVATE_KEY_PATH", "GITHUB_PRIVATE_KEY_PATH", "GITHUB_APP_PRIVATE_KEY_FILE"]);
        let id = self.take(&["GITHUB_APP_ID"]);
        match (id, key) {
            (Some((variable, id)), Some((key, file))) => match (id.parse::<i64>(), Utf8PathBuf::from(&file)) {
                (Ok(id), file) if file.is_absolute() => {
                    self.forge.insert("app_id".to_owned(), id.into());
                    self.forge.insert("app_key_file".to_owned(), "secrets/github-app.pem".into());
                    self.taking.answers.secrets.insert("github-app.pem".to_owned(), SecretFrom::File(file));
                    self.carry(&variable, "forge.app_id".to_owned());
                    self.carry(&key, "/etc/fettle/secrets/github-app.pem".to_owned());
                }
                _ => self.leave(
                    &variable,
                    "it is no number, or the key's path is not absolute; name the App in the answers",
                ),
            },
            (Some((variable, _)), None) | (None, Some((variable, _))) => {
                self.leave(&variable, "an App is its id and its key's file, and one of them is not named");
            }
            (None, None) => {}
        }
        if let Some((variable, _)) = self.take(&["GITHUB_TOKEN", "GH_TOKEN"]) {
            if self.forge.contains_key("app_id") {
                self.leave(&variable, "the App takes its place; revoke it");
            } else {
                let path = self.secret(&variable, "write-token");
                self.forge.insert("write_token_file".to_owned(), path);
                self.leave(
                    "a token for workers",
                    "a token cannot be narrowed, so workers want one of their own that can only read: \
                     name it as forge.read_token_file",
                );
            }
        }
        let api = self.take(&["GITHUB_API_URL"]);
        if let Some((variable, _)) = api.as_ref().filter(|(_, value)| value.contains(['@', '?'])) {
            self.leave(variable, SECRET_IN_URL);
        } else if let Some((variable, value)) = api {
            self.carry(&variable, "forge.api_url and forge.hosts".to_owned());
            let host = value.split("://").nth(1).and_then(|rest| rest.split(['/', ':']).next()).unwrap_or_default();
            let host = host.strip_prefix("api.").unwrap_or(host);
            self.forge.insert("hosts".to_owned(), Value::Array(vec![host.into()]));
            self.forge.insert("api_url".to_owned(), value.into());
        }
    }

    fn models(&mut self, asked: Option<&str>) {
        let ollama = self.take(&["OLLAMA_BASE_URL", "OLLAMA_URL", "OLLAMA_HOST"]);
        let ollama_model = self.take(&["OLLAMA_MODEL"]);
        let openai = self.take(&["OPENAI_API_KEY"]);
        let base = self.take(&["OPENAI_BASE_URL", "OPENAI_API_BASE"]);
        let named = self.take(&["OPENAI_MODEL", "AI_MODEL", "MODEL_NAME", "MODEL", "AIDER_MODEL"]);
        if ollama.is_some() || ollama_model.is_some() {
            let url = ollama.as_ref().map_or(OLLAMA, |(_, url)| url.as_str());
            let url = format!("{}/v1", with_scheme(url).trim_end_matches('/').trim_end_matches("/v1"));
            match ollama_model.as_ref().map(|(_, model)| model.as_str()).or(asked) {
                _ if url.contains(['@', '?']) => self.leave("OLLAMA_BASE_URL", SECRET_IN_URL),
                Some(model) => self.model(model, &url, None, ollama_model.as_ref().or(ollama.as_ref())),
                None => self.leave("OLLAMA_BASE_URL", "no model is named for it; say which with --model"),
            }
        }
        let Some((variable, _)) = &openai else {
            for (variable, _) in base.iter().chain(&named) {
                self.leave(variable, "there is no OPENAI_API_KEY that it would belong to");
            }
            return;
        };
        if base.as_ref().is_some_and(|(_, url)| url.contains(['@', '?'])) {
            self.leave("OPENAI_BASE_URL", SECRET_IN_URL);
            return;
        }
        let url = base.as_ref().map_or(OPENAI, |(_, url)| url.as_str()).to_owned();
        let model = named.as_ref().map(|(_, model)| model.strip_prefix("openai/").unwrap_or(model));
        match model.or(asked).map(str::to_owned) {
            // Two of one name cannot be told apart.
            Some(model)
                if self.models.iter().any(|other| other.get("name").and_then(Value::as_str) == Some(&*model)) =>
            {
                self.leave(variable, "a model of the same name is carried over already");
            }
            Some(model) => {
                let key = self.secret(variable, "openai-api-key");
                self.model(&model, &url, Some(key), named.as_ref().or(base.as_ref()));
            }
            None => self.leave(variable, "no model is named for it; say which with --model"),
        }
    }

    fn model(&mut self, name: &str, url: &str, key: Option<Value>, from: Option<&(String, String)>) {
        let mut model = Table::new();
        model.insert("name".to_owned(), name.into());
        model.insert("base_url".to_owned(), url.into());
        if let Some(key) = key {
            model.insert("api_key_file".to_owned(), key);
        }
        self.models.push(model.into());
        let what = from.map_or("the model", |(variable, _)| variable.as_str()).to_owned();
        self.carry(&what, format!("the model `{name}` at {url}"));
    }

    /// By name only: any of them may be a secret.
    fn rest(&mut self) {
        let others: Vec<String> = self.variables.keys().filter(|name| !self.used.contains(*name)).cloned().collect();
        for name in others {
            let why = match name.as_str() {
                "API_KEY" => "Fettle makes an admin key of its own: /var/lib/fettle/dashboard/admin.key",
                "FLASK_SECRET" | "SECRET_KEY" => "Fettle has no use for it",
                "REDIS_URL" | "RABBITMQ_URL" | "AMQP_URL" => {
                    "the queue is Fettle's own ledger; let the old one run empty, or send what waits in it again"
                }
                "AI_TASK_DIR" => "Fettle keeps Tasks in /var/lib/fettle; what lies in that folder is not touched",
                _ => "Fettle knows no setting like it",
            };
            self.leave(&name, why);
        }
    }

    fn end(mut self, found: &Found) -> TakeOver {
        for unit in &found.units {
            self.carry(unit, "stopped and disabled; enabled and started again when Fettle is removed".to_owned());
        }
        self.taking.answers.retire.clone_from(&found.units);
        if found.programs {
            self.leave(PROGRAMS, "it is not touched; remove it when you do not want to go back any more");
        }
        let settings = &mut self.taking.answers.settings;
        if !self.forge.is_empty() {
            settings.insert("forge".to_owned(), self.forge.into());
        }
        if !self.models.is_empty() {
            let models = Table::from_iter([("models".to_owned(), Value::Array(self.models))]);
            settings.insert("gateway".to_owned(), models.into());
        }
        self.taking
    }
}

/// Ollama's own variable leaves the scheme out.
fn with_scheme(url: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(environment: &str, model: Option<&str>) -> TakeOver {
        let found = Found {
            programs: true,
            variables: Some(environment_file::read(environment)),
            units: vec![UNITS[0].to_owned()],
        };
        take_over(&found, model)
    }

    fn settings(taken: &TakeOver) -> String {
        toml::to_string(&taken.answers.settings).unwrap()
    }

    #[test]
    fn what_the_founding_layout_knows_becomes_answers_that_can_be_applied() {
        let taken = taken(
            "OPENAI_API_KEY=sk-canary\nOPENAI_MODEL=gpt-x\nGITHUB_TOKEN=ghp_canary\nWEBHOOK_SECRET=hook-canary-of-20-ch\n\
             OLLAMA_HOST=127.0.0.1:11434\nOLLAMA_MODEL=codellama:13b\nAPI_KEY=admin-canary\n\
             REDIS_URL=redis://:redis-canary@127.0.0.1:6379/0\nFLASK_SECRET=flask-canary\nAI_TASK_DIR=/tmp/ai_tasks\nODD=odd-canary\n",
            None,
        );
        assert_eq!(
            settings(&taken),
            "[forge]\nwebhook_secret_file = \"secrets/webhook-secret\"\nwrite_token_file = \"secrets/write-token\"\n\n\
             [[gateway.models]]\nbase_url = \"http://127.0.0.1:11434/v1\"\nname = \"codellama:13b\"\n\n\
             [[gateway.models]]\napi_key_file = \"secrets/openai-api-key\"\nbase_url = \"https://api.openai.com/v1\"\nname = \"gpt-x\"\n"
        );
        let secrets: Vec<String> = taken.answers.secrets.iter().map(|(name, from)| format!("{name}: {from}")).collect();
        assert_eq!(
            secrets,
            [
                "openai-api-key: OPENAI_API_KEY in /etc/ai-agent/env",
                "webhook-secret: WEBHOOK_SECRET in /etc/ai-agent/env",
                "write-token: GITHUB_TOKEN in /etc/ai-agent/env",
            ]
        );
        assert_eq!(taken.answers.retire, ["aiagent.service"]);
        let left: Vec<&str> = taken.left.iter().map(|told| told.what.as_str()).collect();
        let expected =
            ["a token for workers", "AI_TASK_DIR", "API_KEY", "FLASK_SECRET", "ODD", "REDIS_URL", "/opt/ai-agent"];
        assert_eq!(left, expected);
        let everything = format!("{taken:?}{}", toml::to_string(&taken.answers).unwrap());
        assert!(!everything.contains("canary"), "{everything}");
        let written = toml::to_string_pretty(&taken.answers).unwrap();
        assert_eq!(Answers::parse(&written).unwrap(), taken.answers);
    }

    #[test]
    fn an_app_takes_the_tokens_place_and_an_enterprise_server_keeps_its_address() {
        let taken = taken(
            "GITHUB_APP_ID=12\nGITHUB_APP_PRIVATE_KEY_PATH=/srv/app.pem\nGITHUB_TOKEN=x\nGITHUB_API_URL=https://ghe.example.org/api/v3\n",
            None,
        );
        assert_eq!(
            settings(&taken),
            "[forge]\napi_url = \"https://ghe.example.org/api/v3\"\napp_id = 12\napp_key_file = \"secrets/github-app.pem\"\nhosts = [\"ghe.example.org\"]\n"
        );
        assert!(taken.left.iter().any(|told| told.what == "GITHUB_TOKEN" && told.how.contains("revoke")));
    }

    #[test]
    fn what_cannot_be_carried_over_is_said_with_what_to_do() {
        for (environment, what, why) in [
            ("OPENAI_API_KEY=x", "OPENAI_API_KEY", "--model"),
            ("OLLAMA_BASE_URL=http://a:b@127.0.0.1\nOLLAMA_MODEL=m", "OLLAMA_BASE_URL", "password"),
            ("OPENAI_API_KEY=x\nMODEL=m\nOPENAI_API_BASE=https://a:b@host/v1", "OPENAI_BASE_URL", "password"),
            ("MODEL=m", "MODEL", "OPENAI_API_KEY"),
            ("WEBHOOK_SECRET=short", "WEBHOOK_SECRET", "can be guessed"),
            ("GITHUB_APP_ID=12", "GITHUB_APP_ID", "one of them"),
            ("GITHUB_APP_ID=x\nGITHUB_PRIVATE_KEY_PATH=/srv/key", "GITHUB_APP_ID", "no number"),
        ] {
            let taken = taken(environment, None);
            assert!(
                taken.left.iter().any(|told| told.what == what && told.how.contains(why)),
                "{environment}: {taken:?}"
            );
            assert_eq!((taken.answers.secrets.len(), settings(&taken).as_str()), (0, ""), "{environment}");
        }
        let asked = taken("OPENAI_API_KEY=x", Some("gpt-x"));
        assert!(settings(&asked).contains("gpt-x"));
    }
}
