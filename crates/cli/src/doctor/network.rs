//! What is asked of others: the models' servers and the dashboard.

use std::time::Duration;

use anyhow::{Context as _, Result};
use fettle_inference::catalog;
use fettle_runtime::config::{Config, ModelConfig};
use fettle_runtime::environment::Environment;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::task::JoinSet;

use super::{Check, Flags};
use crate::Common;
use crate::client::{self, Client};
use crate::served::{Listed, listed, told};

/// A server that is up lists its models, and a dashboard its health, at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// One check for each configured model, all asked at once, told in the configuration's order.
pub(super) async fn models(config: &Config, environment: &Environment) -> Vec<Check> {
    if config.gateway.models.is_empty() {
        let remedy = "add one in the browser, on the page Models, or a [[gateway.models]] entry with name and base_url; `fettle fix` takes --model-url instead";
        return vec![Check::warn(
            "models",
            "no model is configured; Tasks wait, unless one was added in the browser",
            remedy,
        )];
    }
    let (mut checks, mut asked) = (Vec::new(), JoinSet::new());
    for (place, model) in config.gateway.models.iter().cloned().enumerate() {
        let id = format!("model.{}", model.name);
        if model.is_local() {
            checks.push((place, local(id, &model, config, environment)));
        } else {
            asked.spawn(async move { (place, check(id, &model).await) });
        }
    }
    checks.extend(asked.join_all().await);
    checks.sort_by_key(|(place, _)| *place);
    checks.into_iter().map(|(_, check)| check).collect()
}

async fn check(id: String, model: &ModelConfig) -> Check {
    let server = model.server().unwrap_or_default();
    match listed(model, ANSWER_LIMIT).await {
        Ok(Listed::Names(names)) => {
            let wanted = model.wire_name();
            if names.is_empty() || names.iter().any(|name| name == wanted) {
                return Check::ok(id, format!("{} answers", server));
            }
            let sentence = format!("{} answers, but does not list `{wanted}`; it lists {}", server, told(&names));
            Check::warn(id, sentence, "name one of these with `model` in its [[gateway.models]] entry")
        }
        Ok(Listed::Refused(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))) => {
            let remedy = "set api_key_file in its [[gateway.models]] entry to a file with a valid key";
            Check::warn(id, format!("{} answers {status}", server), remedy)
        }
        // Not every server lists its models.
        Ok(Listed::Refused(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)) => {
            Check::ok(id, format!("{} answers, without a list of models", server))
        }
        Ok(Listed::Refused(status)) => {
            Check::warn(id, format!("{} answers {status}", server), "look at the log of this server")
        }
        Ok(Listed::Foreign(kind)) => {
            let remedy = "correct base_url in its [[gateway.models]] entry; it mostly ends in /v1";
            Check::warn(id, format!("{} answers with {kind}, not as a model's server does", server), remedy)
        }
        Err(error) => {
            let remedy = "start the model's server, or correct base_url in its [[gateway.models]] entry";
            Check::warn(id, format!("{error:#}"), remedy)
        }
    }
}

/// A model of this machine: its files have to be there, and the program of each of its recipes.
fn local(id: String, model: &ModelConfig, config: &Config, environment: &Environment) -> Check {
    let mut alone = config.clone();
    alone.gateway.models.retain(|one| one.name == model.name);
    let (catalog, refused) = catalog::catalog(&alone);
    if let Some((_, why)) = refused.first() {
        return Check::warn(
            id,
            format!("it would not be served: {why:#}"),
            "put its weights there, or correct its recipe",
        );
    }
    match catalog::missing_programs(&catalog, &alone, environment).as_slice() {
        [] => Check::ok(id, "runs on this machine"),
        [missing, ..] => Check::warn(
            id,
            missing.to_string(),
            "as a service it is looked for on the PATH of `fettle-inference`; give its whole path where that is another",
        ),
    }
}

/// The gateway that workers ask, where they are told of one.
pub(super) async fn gateway(config: &Config) -> Option<Check> {
    const ID: &str = "gateway";
    let url = config.gateway.url.as_ref()?;
    let asked = async {
        let base = Url::parse(url).context("it is no URL")?;
        // Beside `/v1`, and open to everybody: whether it lives is no secret.
        let health = base.join("/healthz").context("it cannot be asked")?;
        let asked = client::http(&base)?.get(health).timeout(ANSWER_LIMIT).send().await;
        Ok::<_, anyhow::Error>(asked.map_err(reqwest::Error::without_url)?.status())
    };
    Some(match asked.await {
        Ok(status) if status.is_success() => Check::ok(ID, format!("{url} answers")),
        Ok(status) => Check::warn(ID, format!("{url} answers {status}"), "look at the log of `fettle-inference`"),
        Err(error) => Check::warn(
            ID,
            format!("{url} does not answer: {error:#}"),
            "start `fettle-inference`, or correct gateway.url; without it no Run has a model",
        ),
    })
}

/// Whether a dashboard runs, is ready and knows us.
pub(super) async fn dashboard(common: &Common, flags: &Flags, config: &Config, environment: &Environment) -> Check {
    const ID: &str = "dashboard";
    let base = match client::address(common, &flags.client, config, environment) {
        Ok(base) => base,
        Err(error) => return Check::warn(ID, format!("{error:#}"), "give --url"),
    };
    let shown = client::shown(&base);
    let told_at = client::health_address(common, &flags.client, config, environment).unwrap_or_else(|| base.clone());
    let health = match ready(&told_at).await {
        Ok(health) => health,
        Err(error) => {
            return Check::warn(ID, client::unanswered(&base, &error), "without it, `fettle fix` works alone");
        }
    };
    let checks = health.iter().flat_map(|health| &health.checks);
    let failing: Vec<String> = checks.filter(|check| !check.ok).map(Part::told).collect();
    if !failing.is_empty() {
        let sentence = format!("{shown} is not ready: {}", failing.join("; "));
        return Check::fail(ID, sentence, "look at the dashboard's log");
    }
    let client = match Client::new(common, &flags.client, environment) {
        Ok(client) => client,
        Err(error) => return Check::warn(ID, format!("{shown} is ready, but {error:#}"), "give --key-file"),
    };
    if let Err(error) = client.get(&["api", "v1", "tasks"], &[("limit", "1")]).await {
        return Check::fail(ID, format!("{error:#}"), "give --data-dir or --key-file of the dashboard that runs there");
    }
    let Some(health) = health else {
        return Check::ok(ID, format!("{shown} answers; it tells its health on its internal listener only"));
    };
    let own = env!("CARGO_PKG_VERSION");
    if health.version != own {
        let sentence = format!("{shown} is ready, in version {}; this is {own}", health.version);
        return Check::warn(ID, sentence, "use the same version of both");
    }
    Check::ok(ID, format!("{shown} is ready"))
}

#[derive(Deserialize)]
struct Health {
    version: String,
    checks: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    name: String,
    ok: bool,
    detail: Option<String>,
}

impl Part {
    fn told(&self) -> String {
        format!("{}: {}", self.name, self.detail.as_deref().unwrap_or("failing"))
    }
}

/// Health needs no key, and tells what fails with a status of its own. `None`: it is not told here.
async fn ready(base: &Url) -> Result<Option<Health>> {
    let response = client::http(base)?.get(client::join(base, &["readyz"], &[])).timeout(ANSWER_LIMIT).send().await?;
    if response.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let body = client::read(response).await?;
    serde_json::from_slice(&body).map(Some).context("what answers there is no Fettle dashboard")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::Status;
    use super::*;

    /// The check of a model whose server gives `answer` to its one request; `None`: there is no server.
    async fn checked(answer: Option<&str>) -> Check {
        fettle_runtime::install_tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let model = ModelConfig::elsewhere("coder", format!("http://{}/v1", listener.local_addr().unwrap()), 65_536);
        let Some(answer) = answer else {
            drop(listener);
            return check("model.coder".to_owned(), &model).await;
        };
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            assert!(head.starts_with(b"GET /v1/models HTTP/1.1\r\n"));
            stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await.unwrap();
        };
        tokio::join!(server, check("model.coder".to_owned(), &model)).1
    }

    #[tokio::test]
    async fn a_model_is_well_when_its_server_answers_and_knows_it() {
        let list = |names: &str| format!("200 OK\r\nconnection: close\r\n\r\n{{\"data\":[{names}]}}");
        for (answer, status, words) in [
            (Some(list(r#"{"id":"coder"},{"id":"other"}"#)), Status::Ok, "answers"),
            (Some(list(r#"{"id":"other"}"#)), Status::Warn, "does not list `coder`; it lists other"),
            (Some("401 Unauthorized\r\nconnection: close\r\n\r\n".to_owned()), Status::Warn, "401"),
            (
                Some("200 OK\r\nconnection: close\r\n\r\n<html>".to_owned()),
                Status::Warn,
                "not as a model's server does",
            ),
            (Some("404 Not Found\r\nconnection: close\r\n\r\n".to_owned()), Status::Ok, "without a list"),
            (None, Status::Warn, "does not answer"),
        ] {
            let check = checked(answer.as_deref()).await;
            assert!(check.status == status && check.sentence.contains(words), "{check:?}");
            assert_eq!((check.id.as_str(), check.remedy.is_some()), ("model.coder", status == Status::Warn));
        }
    }
}
