//! The smoke list: what an installed Fettle must be able to do, tried on the running services from outside. It causes no
//! effect on any forge: its one Task is a probe.

use std::cell::OnceCell;
use std::io::BufRead as _;
use std::time::Duration;

use aws_lc_rs::hmac;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::clock::{Clock as _, IdSource as _};
use fettle_runtime::config::Config;
use fettle_runtime::environment::Environment;
use fettle_runtime::system::{RandomIds, SystemClock};
use reqwest::blocking::{Client, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::guarded;
use crate::layout::{self, CONFIG, STATE};

/// Keys and webhook secrets are some dozens of characters.
const KEY_BYTES: u64 = 4096;
/// One request. Health answers at once; a webhook waits for the disk.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// A probe waits behind whatever the workers do now; with an idle worker it takes a second.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// A model of this host that has to be loaded first.
const MODEL_LIMIT: Duration = Duration::from_secs(330);
/// One folder for each GPU, made by the driver.
const GPUS: &str = "/proc/driver/nvidia/gpus";
const LOOK: Duration = Duration::from_millis(200);

/// What is tried, in this order, and what a pass means.
const LIST: [(&str, &str); 9] = [
    ("SM01", "health: every process is healthy and ready, and all are of one version"),
    ("SM02", "login: an account logs in and out, and a wrong password is refused"),
    ("SM03", "queue: a Task that does nothing is queued, leased and done"),
    ("SM04", "webhook: a signed delivery is taken, a badly signed one is refused"),
    ("SM05", "inference: an engine of this host says one token through the gateway"),
    ("SM06", "events: what happened to the Task of SM03 is streamed"),
    ("SM07", "GPU: the inference service sees every GPU of the host"),
    ("SM08", "sandbox: every worker's walls stand"),
    ("SM09", "metrics: every process tells them, and no secret is in them"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Passed,
    Failed,
    Skipped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tried {
    pub id: &'static str,
    pub what: &'static str,
    pub state: State,
    /// What was seen, or why it was not tried.
    pub detail: String,
    pub took_ms: u64,
}

/// Where the services are, and what may be shown to them.
pub struct Smoke {
    /// Base URLs without a slash at the end.
    pub public: String,
    /// The dashboard's, then one for each worker, then that of the inference service.
    pub internal: Vec<String>,
    pub inference: Option<Inference>,
    /// Units of workers.
    pub workers: Vec<String>,
    pub admin_key: Option<String>,
    pub webhook_secret: Option<String>,
    /// The configuration, if it could be read, names a secret for webhooks.
    has_webhook: bool,
    client: Client,
    /// The Task of SM03, for whoever needs one.
    probe: OnceCell<Result<String, Miss>>,
}

/// The inference service, as far as it is installed here.
pub struct Inference {
    /// Of the gateway.
    pub gateway: String,
    /// Where it tells its health.
    pub internal: String,
    /// The first model whose engines run on this host.
    pub model: Option<String>,
    /// What is shown to the gateway, where it wants to see something.
    pub key: Option<String>,
}

type Seen = Result<String, Miss>;

#[derive(Debug, Clone)]
enum Miss {
    Failed(String),
    Skipped(String),
}

fn failed(error: impl std::fmt::Display) -> Miss {
    Miss::Failed(error.to_string())
}

impl Smoke {
    /// As the configuration of this host says. What only root may read is left out for anybody else, and so is what needs it.
    ///
    /// Errors with a sentence when there is no readable configuration and no `url`.
    pub fn of_host(
        url: Option<&str>,
        token_file: Option<&Utf8Path>,
        workers: Vec<u8>,
        inference: bool,
    ) -> Result<Self, String> {
        let text = fs_err::read_to_string(CONFIG);
        let config = match (&text, url) {
            (Ok(text), _) => Config::parse(CONFIG, text, &Environment::default()).map_err(|error| error.to_string())?,
            (Err(_), Some(_)) => Config::default(),
            (Err(error), None) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err("Fettle is not installed on this host; `fettle-installer apply` installs it".to_owned());
            }
            (Err(error), None) => return Err(format!("{error}; run this as root, or name the dashboard with --url")),
        };
        // The key lies in a folder of the dashboard's, and what is read here is shown to the dashboard.
        let read = |path: Utf8PathBuf| {
            let text = String::from_utf8(guarded::read(&path, KEY_BYTES).ok()?).ok()?;
            Some(text.trim().to_owned())
        };
        let admin_key = match token_file {
            Some(path) => Some(fs_err::read_to_string(path).map_err(|error| error.to_string())?.trim().to_owned()),
            None => read(Utf8Path::new(STATE).join("dashboard/admin.key")),
        };
        let secret = config.forge.webhook_secret_file.as_ref();
        let webhook_secret = secret.and_then(|file| read(Utf8Path::new(layout::CONFIG_DIR).join(file)));
        let health = workers.iter().map(|worker| layout::worker_address(*worker));
        let gateway = config.gateway.listen.as_deref().unwrap_or(layout::GATEWAY);
        let worker_key = config.auth.worker_key_file.as_ref().filter(|_| config.gateway.keys_file.is_some());
        let inference = inference.then(|| Inference {
            gateway: format!("http://{}", layout::local(gateway)),
            internal: layout::INFERENCE_ADDRESS.to_owned(),
            model: config.gateway.models.iter().find(|model| model.is_local()).map(|model| model.name.clone()),
            key: worker_key.and_then(|file| read(Utf8Path::new(layout::CONFIG_DIR).join(file))),
        });
        Ok(Self {
            public: url.map_or_else(
                || format!("http://{}", layout::local(&config.server.listen)),
                |url| url.trim_end_matches('/').to_owned(),
            ),
            internal: std::iter::once(format!("http://{}", layout::local(&config.server.internal_listen)))
                .chain(health)
                .chain(inference.as_ref().map(|inference| inference.internal.clone()))
                .collect(),
            inference,
            workers: workers.into_iter().map(layout::worker).collect(),
            admin_key,
            webhook_secret,
            has_webhook: text.is_err() || secret.is_some(),
            client: Client::builder().timeout(REQUEST_LIMIT).no_proxy().build().map_err(|error| error.to_string())?,
            probe: OnceCell::new(),
        })
    }

    /// Tries the whole list, or one of it.
    ///
    /// Errors with the ids when `only` is none of them.
    pub fn run(&self, only: Option<&str>, mut told: impl FnMut(&Tried)) -> Result<Vec<Tried>, String> {
        if let Some(id) = only.filter(|only| !LIST.iter().any(|(id, _)| id == only)) {
            let ids: Vec<&str> = LIST.iter().map(|(id, _)| *id).collect();
            return Err(format!("there is no {id}; the list has {}", ids.join(", ")));
        }
        let mut all = Vec::new();
        for (id, what) in LIST.into_iter().filter(|(id, _)| only.is_none_or(|only| only == *id)) {
            let begun = SystemClock.now();
            let seen = self.one(id);
            let took_ms = u64::try_from(SystemClock.now().duration_since(begun).as_millis()).unwrap_or(0);
            let (state, detail) = match seen {
                Ok(detail) => (State::Passed, detail),
                Err(Miss::Failed(detail)) => (State::Failed, detail),
                Err(Miss::Skipped(detail)) => (State::Skipped, detail),
            };
            let tried = Tried { id, what, state, detail, took_ms };
            told(&tried);
            all.push(tried);
        }
        Ok(all)
    }

    fn one(&self, id: &str) -> Seen {
        let later = |what: &str| Err(Miss::Skipped(format!("this release has no {what}")));
        match id {
            "SM01" => self.health(),
            "SM02" => later("accounts"),
            "SM03" => self.queue().map(|task| format!("{task} was done")),
            "SM04" => self.webhook(),
            "SM05" => self.inference(),
            "SM06" => self.events(),
            "SM07" => self.gpus(),
            "SM08" => self.sandbox(),
            _ => self.metrics(),
        }
    }

    fn health(&self) -> Seen {
        let mut versions = std::collections::BTreeSet::new();
        for base in &self.internal {
            for path in ["/healthz", "/readyz"] {
                let answer = self.client.get(format!("{base}{path}")).send().map_err(failed)?;
                let status = answer.status();
                let body: Value = answer.json().map_err(failed)?;
                if !status.is_success() {
                    return Err(Miss::Failed(format!("{base}{path} answers {status}: {body}")));
                }
                versions.extend(body["version"].as_str().map(str::to_owned));
            }
        }
        let versions: Vec<String> = versions.into_iter().collect();
        match versions.as_slice() {
            [one] => Ok(format!("{} processes of version {one}", self.internal.len())),
            several => Err(Miss::Failed(format!("the processes have different versions: {}", several.join(", ")))),
        }
    }

    /// The id of a Task that was done.
    fn queue(&self) -> Result<String, Miss> {
        let key = self.admin_key.as_ref().ok_or_else(|| no_key("the dashboard's admin key"))?;
        self.probe.get_or_init(|| self.probe(key)).clone()
    }

    fn probe(&self, key: &str) -> Result<String, Miss> {
        let url = format!("{}/api/v1/tasks", self.public);
        let made = self.client.post(&url).bearer_auth(key).json(&json!({ "mode": "probe" })).send().map_err(failed)?;
        let made = accepted(made)?;
        let task = made["task"]["id"].as_str().ok_or_else(|| failed("the answer names no Task"))?.to_owned();
        let begun = SystemClock.now();
        let is_over = || {
            let took = SystemClock.now().duration_since(begun);
            took > jiff::SignedDuration::try_from(PROBE_LIMIT).unwrap_or_default()
        };
        loop {
            let now = accepted(self.client.get(format!("{url}/{task}")).bearer_auth(key).send().map_err(failed)?)?;
            match (now["state"].as_str(), now["outcome"].as_str()) {
                (Some("done"), Some("probe_passed")) => return Ok(task),
                (Some("done" | "cancelled"), outcome) => {
                    return Err(Miss::Failed(format!("{task} ended with {outcome:?}")));
                }
                // That a Task waits for work under way is no fault.
                (Some(_), _) if is_over() && self.all_busy() => {
                    return Err(Miss::Skipped(format!("{task} waits: every worker is at work")));
                }
                (state, _) if is_over() => {
                    let limit = PROBE_LIMIT.as_secs();
                    return Err(Miss::Failed(format!(
                        "{task} is still {state:?} after {limit} s, and a worker is idle"
                    )));
                }
                _ => std::thread::sleep(LOOK),
            }
        }
    }

    fn all_busy(&self) -> bool {
        let workers = self.internal.iter().skip(1).take(self.workers.len());
        let busy = |base: &String| {
            let answer = self.client.get(format!("{base}/leased")).send();
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        !self.workers.is_empty() && workers.into_iter().all(busy)
    }

    fn inference_here(&self) -> Result<&Inference, Miss> {
        self.inference.as_ref().ok_or_else(|| Miss::Skipped("the inference service is not installed here".to_owned()))
    }

    /// Models elsewhere are not asked: that costs money, and this host is as well without them.
    fn inference(&self) -> Seen {
        let Inference { gateway, model, key, .. } = self.inference_here()?;
        let Some(model) = model else {
            return Err(Miss::Skipped("no model of this host is configured, and none elsewhere is asked".to_owned()));
        };
        let body = json!({ "model": model, "max_tokens": 1, "messages": [{ "role": "user", "content": "1" }] });
        let mut request = self.client.post(format!("{gateway}/v1/chat/completions")).timeout(MODEL_LIMIT).json(&body);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let answer = request.send().map_err(failed)?;
        let status = answer.status().as_u16();
        let body: Value = answer.json().map_err(failed)?;
        let said = || body["error"]["message"].as_str().unwrap_or("no reason").to_owned();
        match status {
            200 if body["choices"][0]["message"].is_object() => Ok(format!("`{model}` answers")),
            200 => Err(Miss::Failed(format!("`{model}` answers with something else: {body}"))),
            401 => Err(no_key("a key of the gateway (auth.worker_key_file)")),
            // Others have the memory: that is how it is meant.
            429 | 503 if body["error"]["code"] != "model_unplaceable" => {
                Err(Miss::Skipped(format!("`{model}` is not served just now: {}", said())))
            }
            status => Err(Miss::Failed(format!("`{model}` is answered with {status}: {}", said()))),
        }
    }

    fn gpus(&self) -> Seen {
        let host = match fs_err::read_dir(GPUS) {
            Ok(entries) => entries.count(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed(error)),
        };
        if host == 0 {
            return Err(Miss::Skipped("this host has no NVIDIA GPU, or its driver is not loaded".to_owned()));
        }
        let base = &self.inference_here()?.internal;
        let text = self.client.get(format!("{base}/metrics")).send().and_then(Response::text).map_err(failed)?;
        let of = |kind: &str| text.lines().filter(|line| line.starts_with(kind)).count();
        let (whole, slices) = (of("fettle_device_health{device=\"GPU-"), of("fettle_device_health{device=\"MIG-"));
        match whole {
            seen if seen == host => Ok(format!("all {host}")),
            // A GPU that is cut into slices is not told beside them.
            _ if slices > 0 => Ok(format!("{whole} of {host} whole, and {slices} MIG slices")),
            seen => Err(Miss::Failed(format!("it sees {seen} of {host}: `fettle doctor` says what NVML answers"))),
        }
    }

    /// A ping opens no Task, whoever sends it.
    fn webhook(&self) -> Seen {
        let secret = self.webhook_secret.as_ref().ok_or_else(|| match self.has_webhook {
            true => no_key("the webhook's secret (forge.webhook_secret_file)"),
            false => Miss::Skipped("no webhook is configured (forge.webhook_secret_file)".to_owned()),
        })?;
        let body = json!({ "zen": "smoke" }).to_string();
        let sign = |key: &str| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
            format!("sha256={}", hex::encode(hmac::sign(&key, body.as_bytes())))
        };
        let send = |signature: String| {
            let request = self.client.post(format!("{}/webhooks/github", self.public)).body(body.clone());
            let request = request.header("content-type", "application/json").header("x-github-event", "ping");
            let request = request.header("x-github-delivery", RandomIds.uuid().to_string());
            request
                .header("x-hub-signature-256", signature)
                .send()
                .map(|answer| answer.status().as_u16())
                .map_err(failed)
        };
        match (send(sign(secret))?, send(sign("not the secret"))?) {
            (200, 401) => Ok("signed: 200, badly signed: 401".to_owned()),
            (good, bad) => {
                Err(Miss::Failed(format!("signed: {good} instead of 200, badly signed: {bad}, where 401 is right")))
            }
        }
    }

    fn events(&self) -> Seen {
        let task = self.queue()?;
        let key = self.admin_key.as_ref().ok_or_else(|| no_key("the dashboard's admin key"))?;
        let url = format!("{}/api/v1/tasks/{task}/events", self.public);
        let stream = self.client.get(url).bearer_auth(key).send().map_err(failed)?;
        let mut seen = 0;
        for line in std::io::BufReader::new(stream).lines() {
            let line = line.map_err(failed)?;
            seen += usize::from(line.starts_with("data:"));
            if line.contains("task_done") {
                return Ok(format!("{seen} events to the end of {task}"));
            }
        }
        Err(Miss::Failed(format!("the stream of {task} ended after {seen} events, before the Task's end")))
    }

    /// What the workers told systemd.
    fn sandbox(&self) -> Seen {
        let mut levels = Vec::new();
        for unit in &self.workers {
            let mut command = std::process::Command::new("systemctl");
            let said = command.args(["show", "--value", "--property=StatusText", unit]).output().map_err(failed)?;
            let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
            match text.rsplit_once("sandbox level ") {
                Some((_, level)) => levels.push(format!("{unit} at level {level}")),
                None => return Err(Miss::Failed(format!("{unit} tells of no sandbox: `{text}`"))),
            }
        }
        if levels.is_empty() {
            return Err(Miss::Skipped("no worker is installed here".to_owned()));
        }
        Ok(levels.join(", "))
    }

    fn metrics(&self) -> Seen {
        let mut series = 0;
        for base in &self.internal {
            let answer = self.client.get(format!("{base}/metrics")).send().map_err(failed)?;
            let status = answer.status();
            let text = answer.text().map_err(failed)?;
            if !status.is_success() {
                return Err(Miss::Failed(format!("{base}/metrics answers {status}")));
            }
            let secrets = self.admin_key.iter().chain(&self.webhook_secret);
            if secrets.into_iter().any(|secret| text.contains(secret.as_str())) {
                return Err(Miss::Failed(format!("a secret is in {base}/metrics")));
            }
            for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
                let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
                if value.is_none() {
                    return Err(Miss::Failed(format!("{base}/metrics has a line that is no series: {line}")));
                }
                series += 1;
            }
        }
        Ok(format!("{series} series"))
    }
}

fn no_key(what: &str) -> Miss {
    Miss::Skipped(format!("{what} cannot be read here: run this as root, or give --token-file"))
}

fn accepted(answer: Response) -> Result<Value, Miss> {
    let status = answer.status();
    let body: Value = answer.json().map_err(failed)?;
    if status.is_success() {
        Ok(body)
    } else {
        Err(Miss::Failed(format!("the API answers {status}: {}", body["detail"])))
    }
}
