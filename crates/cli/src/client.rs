//! The dashboard's API for people's commands: finds address and key, asks, and turns refusals into sentences.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use camino::Utf8PathBuf;
use fettle_app::ports::chain;
use fettle_domain::outgoing::visible;
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::secrets;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::Value;

use crate::{Common, GLOBAL};

/// A dashboard accepts at once; more means that nobody is there.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// To submit a Task the dashboard asks the forge, with retries of its own.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// A page of Tasks stays below a megabyte; a Task carries at most its issue's text.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Which dashboard is asked, and as whom.
#[derive(clap::Args)]
pub(crate) struct Dashboard {
    /// The dashboard's address, such as http://127.0.0.1:8080; default: the one that runs on this data folder.
    #[arg(long, global = true, value_name = "URL", help_heading = GLOBAL)]
    url: Option<String>,
    /// The file with the admin key; default: auth.admin_key_file, or admin.key in the data folder.
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    key_file: Option<Utf8PathBuf>,
}

pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key_file: Utf8PathBuf,
    authorization: HeaderValue,
}

/// Of an answer that is read as it comes.
pub(crate) struct Parts(Response);

impl Parts {
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let chunk = tokio::time::timeout(ANSWER_LIMIT, self.0.chunk()).await;
        Ok(chunk.context("the dashboard fell silent")??)
    }
}

/// Why a call came to nothing, in words for the person at the terminal.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Absent when nobody answered.
    pub(crate) status: Option<StatusCode>,
    text: String,
}

impl Failure {
    pub(crate) fn unanswered(text: impl Into<String>) -> Self {
        Self { status: None, text: text.into() }
    }

    /// The same call may come through later: nobody answered, or the server has a trouble of its own.
    pub(crate) fn may_pass(&self) -> bool {
        self.status.is_none_or(|status| status.is_server_error())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl Client {
    pub(crate) fn new(common: &Common, flags: &Dashboard, environment: &Environment) -> Result<Self> {
        let config = Config::load(common.config.as_deref(), environment)?;
        let base = address(common, flags, &config, environment)?;
        let key_file = match &flags.key_file {
            Some(file) => file.clone(),
            None => match &config.auth.admin_key_file {
                Some(file) => file.clone(),
                None => DataDir::open(common.data_dir.as_deref(), &config, environment)?.admin_key(),
            },
        };
        if !key_file.exists() {
            bail!(
                "there is no admin key at {key_file}: a dashboard makes one in its data folder at its first start, unless auth.admin_key_file names another; name it with --key-file"
            );
        }
        let key = secrets::read(&key_file)?;
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))
            .map_err(|_| anyhow!("{key_file} holds characters that no key has; is it the right file?"))?;
        authorization.set_sensitive(true);
        if base.scheme() == "http" && !is_loopback(&base) {
            crate::progress::note(&format!(
                "warning: {base} is not encrypted, so the admin key can be read on the way"
            ));
        }
        Ok(Self { http: http(&base)?, base, key_file, authorization })
    }

    pub(crate) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value> {
        let request = self.request(Method::GET, path, query).timeout(ANSWER_LIMIT);
        Ok(self.answer(request).await?.1)
    }

    /// Status and body: the status tells a new thing from one that was there.
    pub(crate) async fn post(
        &self,
        path: &[&str],
        body: Option<&Value>,
        idempotency_key: Option<&str>,
    ) -> Result<(StatusCode, Value)> {
        let mut request = self.request(Method::POST, path, &[]).timeout(ANSWER_LIMIT);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        Ok(self.answer(request).await?)
    }

    pub(crate) async fn patch(&self, path: &[&str], body: &Value) -> Result<Value> {
        let request = self.request(Method::PATCH, path, &[]).timeout(ANSWER_LIMIT).json(body);
        Ok(self.answer(request).await?.1)
    }

    /// An answer of any length. Waits for its head only; each part of it has [`ANSWER_LIMIT`].
    pub(crate) async fn stream(&self, path: &[&str]) -> Result<Parts> {
        let request = self.request(Method::GET, path, &[]);
        match tokio::time::timeout(ANSWER_LIMIT, self.send(request)).await {
            Ok(response) => Ok(Parts(response?)),
            Err(_) => Err(Failure::unanswered(format!("{} does not answer", shown(&self.base))).into()),
        }
    }

    /// An event feed, from its beginning or after the event `last`. Waits for the head of the answer only.
    pub(crate) async fn feed(&self, path: &[&str], last: Option<&str>) -> Result<Response, Failure> {
        let mut request = self.request(Method::GET, path, &[]).header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        match tokio::time::timeout(ANSWER_LIMIT, self.send(request)).await {
            Ok(response) => response,
            Err(_) => Err(Failure::unanswered(format!("{} does not answer", shown(&self.base)))),
        }
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        self.http.request(method, join(&self.base, path, query)).header(AUTHORIZATION, self.authorization.clone())
    }

    async fn answer(&self, request: RequestBuilder) -> Result<(StatusCode, Value), Failure> {
        let response = self.send(request).await?;
        let status = response.status();
        let body = read(response).await.map_err(|error| self.unanswered(&error))?;
        let value = serde_json::from_slice(&body);
        let not_ours = |_| Failure {
            status: Some(status),
            text: format!("{} answered, but not as a Fettle dashboard does", shown(&self.base)),
        };
        Ok((status, value.map_err(not_ours)?))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unanswered(&error.into()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = read(response).await.unwrap_or_default();
        let text = if status == StatusCode::UNAUTHORIZED {
            format!(
                "{} does not accept the admin key in {}. The key lies in the data folder of the dashboard that listens there: \
                 name that folder with --data-dir, or the file with --key-file",
                shown(&self.base),
                self.key_file
            )
        } else {
            sentence(status, &body)
        };
        Err(Failure { status: Some(status), text })
    }

    fn unanswered(&self, error: &anyhow::Error) -> Failure {
        Failure::unanswered(unanswered(&self.base, error))
    }
}

/// A client for `base`: bounded waits, no redirects (a key stays with its server), no proxy to this machine.
pub(crate) fn http(base: &Url) -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("fettle/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_LIMIT)
        .redirect(redirect::Policy::none());
    let builder = if is_loopback(base) { builder.no_proxy() } else { builder };
    builder.build().context("could not set up the HTTP client")
}

/// Of a server of large files: `silence` bounds each wait and not the whole. It may send us on, but not out of TLS.
pub(crate) fn files(base: &Url, silence: Duration, redirects: usize) -> Result<reqwest::blocking::Client> {
    let policy = redirect::Policy::custom(move |next| {
        let leaves_tls =
            next.previous().last().is_some_and(|from| from.scheme() == "https") && next.url().scheme() != "https";
        if leaves_tls || next.previous().len() > redirects { next.stop() } else { next.follow() }
    });
    let builder = reqwest::blocking::Client::builder()
        .user_agent(concat!("fettle/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_LIMIT)
        .timeout(silence)
        .redirect(policy);
    let builder = if is_loopback(base) { builder.no_proxy() } else { builder };
    builder.build().context("could not set up the HTTP client")
}

/// Where the dashboard listens: as given, as the running one has written down, or as configured.
pub(crate) fn address(common: &Common, flags: &Dashboard, config: &Config, environment: &Environment) -> Result<Url> {
    if let Some(url) = &flags.url {
        return base_url(url).ok_or_else(|| {
            anyhow!("--url: `{}` is not an http or https URL without user name and password", visible(url))
        });
    }
    let written = DataDir::open(common.data_dir.as_deref(), config, environment)
        .ok()
        .and_then(|data| fs_err::read_to_string(data.address()).ok());
    let address = written.as_deref().map_or(config.server.listen.as_str(), str::trim);
    let reachable = reachable(address).with_context(|| format!("`{address}` is not an address; give --url"))?;
    base_url(&format!("http://{reachable}")).with_context(|| format!("`{address}` is not an address; give --url"))
}

/// Where the dashboard tells its health, when it has written down that this is not where the API is. Only of the dashboard
/// on this machine, not of one that was named.
pub(crate) fn health_address(
    common: &Common,
    flags: &Dashboard,
    config: &Config,
    environment: &Environment,
) -> Option<Url> {
    let data = DataDir::open(common.data_dir.as_deref(), config, environment).ok().filter(|_| flags.url.is_none())?;
    let written = fs_err::read_to_string(data.internal_address()).ok()?;
    base_url(&format!("http://{}", reachable(written.trim())?))
}

/// Who listens on every address is reached over loopback.
fn reachable(address: &str) -> Option<SocketAddr> {
    let mut address: SocketAddr = address.parse().ok()?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        _ => {}
    }
    Some(address)
}

pub(crate) fn base_url(text: &str) -> Option<Url> {
    let mut url = Url::parse(text.trim()).ok()?;
    let plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    url.set_fragment(None);
    (plain && url.has_host()).then_some(url)
}

/// `base` with the segments of `path` behind its own.
pub(crate) fn join(base: &Url, path: &[&str], query: &[(&str, &str)]) -> Url {
    let mut url = base.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    url
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// As people write it.
pub(crate) fn shown(base: &Url) -> &str {
    base.as_str().trim_end_matches('/')
}

/// The whole body, up to [`MAX_ANSWER_BYTES`].
pub(crate) async fn read(mut response: Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            bail!("the answer is larger than {} MiB", MAX_ANSWER_BYTES / 1024 / 1024);
        }
    }
    Ok(body)
}

/// Why nobody answered at `base`, and what to do.
pub(crate) fn unanswered(base: &Url, error: &anyhow::Error) -> String {
    let base = shown(base);
    let of = |found: fn(&reqwest::Error) -> bool| error.downcast_ref::<reqwest::Error>().is_some_and(found);
    if of(reqwest::Error::is_timeout) {
        format!("{base} does not answer in time; look at the dashboard's log, and at `fettle doctor`")
    } else if refused(error) {
        format!("nothing listens on {base}: start it with `fettle up`, or name the dashboard with --url")
    } else {
        format!("could not reach {base}: {}", chain(error.as_ref()))
    }
}

fn refused(error: &anyhow::Error) -> bool {
    let refused = |cause: &&(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    error.chain().find(refused).is_some()
}

/// The body of an error, as far as it is told to people.
#[derive(Deserialize)]
struct Problem {
    title: String,
    detail: String,
    request_id: String,
    #[serde(default)]
    errors: Vec<FieldError>,
}

#[derive(Deserialize)]
struct FieldError {
    pointer: String,
    detail: String,
}

fn sentence(status: StatusCode, body: &[u8]) -> String {
    let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
        return format!("the answer was {status}, and not one of a Fettle dashboard");
    };
    let mut text = problem.title;
    let told = problem.errors.iter().any(|error| error.detail == problem.detail);
    if !told {
        text += &format!(": {}", problem.detail);
    }
    for error in &problem.errors {
        text += &format!("\n  {}: {}", error.pointer, error.detail);
    }
    text += &format!("\n  request {}", problem.request_id);
    visible(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_with_its_fields_once_and_its_request() {
        let body = serde_json::json!({
            "type": "/problems/refused", "title": "The request was refused", "status": 422, "code": "refused",
            "detail": "there is no model `x`", "request_id": "request_7",
            "errors": [{ "pointer": "/model", "detail": "there is no model `x`" }],
        });
        let text = sentence(StatusCode::UNPROCESSABLE_ENTITY, body.to_string().as_bytes());
        assert_eq!(text, "The request was refused\n  /model: there is no model `x`\n  request request_7");
        let body =
            serde_json::json!({ "title": "Not found", "detail": "task \u{1b}[31m does not exist.", "request_id": "r" });
        assert_eq!(
            sentence(StatusCode::NOT_FOUND, body.to_string().as_bytes()),
            "Not found: task [31m does not exist.\n  request r"
        );
        assert!(sentence(StatusCode::BAD_GATEWAY, b"<html>").contains("502 Bad Gateway"));
    }

    #[test]
    fn a_dashboard_on_all_addresses_is_reached_over_loopback() {
        for (listens, reached) in [
            ("0.0.0.0:81", Some("127.0.0.1:81")),
            ("[::]:81", Some("127.0.0.1:81")),
            ("192.0.2.7:81", Some("192.0.2.7:81")),
            ("here", None),
        ] {
            assert_eq!(reachable(listens).map(|address| address.to_string()).as_deref(), reached);
        }
    }

    #[test]
    fn a_path_is_added_to_the_given_url_and_nothing_else() {
        let base = base_url("https://box.example/fettle/").unwrap();
        let url = join(&base, &["api", "v1", "tasks", "../x"], &[("after", "a b")]);
        assert_eq!(url.as_str(), "https://box.example/fettle/api/v1/tasks/..%2Fx?after=a+b");
        for odd in ["ftp://x", "box:8080", "http://user:pw@x", "x"] {
            assert!(base_url(odd).is_none(), "{odd}");
        }
    }
}
