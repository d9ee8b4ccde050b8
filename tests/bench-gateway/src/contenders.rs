//! The gateways that are measured, each as its own makers would run it. What is not on this machine is fetched once and kept in
//! `target`; what cannot be had is missing, and says why.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use clap::ValueEnum;
use fettle_test_kit::Process;
use fettle_test_kit::measure::process::{cpu_time, resident_bytes};
use tokio::time::Instant;

use crate::load::{Door, What, flood};

/// A Python with a web framework in it starts in half a minute on a slow machine.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// A download over a slow line.
const PROVIDE_LIMIT: Duration = Duration::from_secs(10 * 60);
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// nginx as a plain proxy
    Nginx,
    /// TensorZero's gateway, of the package `tensorzero`
    Tensorzero,
    /// LiteLLM's proxy
    Litellm,
}

impl Peer {
    pub(crate) const ALL: [Self; 3] = [Self::Nginx, Self::Tensorzero, Self::Litellm];
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().expect("no peer is skipped").get_name())
    }
}

/// One that runs, and ends when dropped.
pub(crate) struct Contender {
    pub(crate) door: Door,
    process: Process,
    /// Its configuration and state.
    _home: Option<tempfile::TempDir>,
}

impl Drop for Contender {
    fn drop(&mut self) {
        // One with workers of its own ends them when it is asked to.
        let _killed = self.process.stop();
    }
}

impl Contender {
    /// The model's server alone.
    pub(crate) async fn direct(own: &Utf8Path) -> anyhow::Result<Self> {
        let process = Process::start("the model's server", Command::new(own).arg("upstream"))?;
        let listens = |line: &str| line.strip_prefix("listens on ").map(str::to_owned);
        let authority = process.logged("it listens", READY_LIMIT, listens).await?;
        Self { door: door(authority, "/v1/chat/completions", ""), process, _home: None }.ready().await
    }

    /// The real program, as `fettle-inference` is run on a machine without a GPU.
    pub(crate) async fn fettle(own: &Utf8Path, upstream: &str) -> anyhow::Result<Self> {
        let (home, folder, port) = place()?;
        let models: String = ["fast", "paced"]
            .map(|name| format!("[[gateway.models]]\nname = \"{name}\"\nbase_url = \"http://{upstream}/v1\"\n"))
            .concat();
        let config = folder.join("fettle.toml");
        let text = format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n[gpu]\nmode = \"off\"\n{models}");
        fs_err::write(&config, text)?;
        let mut command = Command::new(own.with_file_name("fettle-inference"));
        command.arg("--config").arg(&config).arg("--data-dir").arg(folder.join("data"));
        let process = Process::start("fettle-inference", &mut command)?;
        let door = door(format!("127.0.0.1:{port}"), "/v1/chat/completions", "");
        Self { door, process, _home: Some(home) }.ready().await
    }

    pub(crate) async fn peer(peer: Peer, upstream: &str) -> anyhow::Result<Self> {
        match peer {
            Peer::Nginx => nginx(upstream).await,
            Peer::Tensorzero => tensorzero(upstream).await,
            Peer::Litellm => litellm(upstream).await,
        }
    }

    async fn ready(self) -> anyhow::Result<Self> {
        let begun = Instant::now();
        loop {
            match flood(&self.door, What::Whole, 1, Duration::ZERO).await {
                Ok(_) => {
                    // Once with each kind, so that whatever is made at the first request is made.
                    flood(&self.door, What::Stream { events: 2, paced: false }, 2, LOOK).await?;
                    flood(&self.door, What::Stream { events: 2, paced: true }, 2, LOOK).await?;
                    return Ok(self);
                }
                Err(error) if begun.elapsed() > READY_LIMIT => {
                    bail!("it does not answer: {error:#}; its log:\n{}", self.process.tail())
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Of it and its workers, so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.tree().into_iter().map(cpu_time).sum()
    }

    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        self.tree().into_iter().map(resident_bytes).sum()
    }

    fn tree(&self) -> Vec<u32> {
        let mut found = vec![self.process.id()];
        let mut looked = 0;
        while let Some(pid) = found.get(looked) {
            let children = fs_err::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
            looked += 1;
        }
        found
    }
}

fn door(authority: String, path: &str, prefix: &str) -> Door {
    Door { authority, path: path.to_owned(), prefix: prefix.to_owned() }
}

/// A folder, and a port that was free a moment ago.
fn place() -> anyhow::Result<(tempfile::TempDir, Utf8PathBuf, u16)> {
    let home = tempfile::tempdir()?;
    let folder = Utf8PathBuf::try_from(home.path().to_owned())?;
    Ok((home, folder, std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()))
}

async fn nginx(upstream: &str) -> anyhow::Result<Contender> {
    let (home, folder, port) = place()?;
    let config = folder.join("nginx.conf");
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("    {name}_temp_path {folder}/{name};\n"))
        .concat();
    let text = format!(
        "daemon off;\nworker_processes auto;\npid {folder}/pid;\nerror_log stderr;\nevents {{ worker_connections 1024; }}\n\
         http {{\n{temporary}    access_log off;\n    keepalive_requests 1000000;\n    \
         upstream model {{ server {upstream}; keepalive 128; keepalive_requests 1000000; }}\n    \
         server {{\n        listen 127.0.0.1:{port};\n        location / {{\n            proxy_pass http://model;\n            \
         proxy_http_version 1.1;\n            proxy_set_header Connection \"\";\n            proxy_buffering off;\n        }}\n    }}\n}}\n"
    );
    fs_err::write(&config, text)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&folder).arg("-e").arg("stderr").arg("-c").arg(&config);
    let process = Process::start("nginx", &mut command)?;
    let door = door(format!("127.0.0.1:{port}"), "/v1/chat/completions", "");
    Contender { door, process, _home: Some(home) }.ready().await
}

async fn tensorzero(upstream: &str) -> anyhow::Result<Contender> {
    let python = python()?;
    let (home, folder, _) = place()?;
    let config = folder.join("tensorzero.toml");
    let models: String = ["fast", "paced"]
        .map(|name| {
            format!(
                "[models.{name}]\nrouting = [\"it\"]\n[models.{name}.providers.it]\ntype = \"openai\"\nmodel_name = \"{name}\"\n\
                 api_base = \"http://{upstream}/v1/\"\napi_key_location = \"none\"\n"
            )
        })
        .concat();
    fs_err::write(&config, format!("[gateway]\nobservability.enabled = false\n{models}"))?;
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(sources().join("tensorzero_peer.py")).arg(&config);
    let process = Process::start("TensorZero", &mut command)?;
    let base = |line: &str| line.strip_prefix("listens on http://").map(|url| url.trim_end_matches('/').to_owned());
    let url = process.logged("it listens", READY_LIMIT, base).await?;
    let (authority, path) = url.split_once('/').context("TensorZero's address has a path")?;
    let path = format!("/{path}/chat/completions");
    let door = door(authority.to_owned(), &path, "tensorzero::model_name::");
    Contender { door, process, _home: Some(home) }.ready().await
}

async fn litellm(upstream: &str) -> anyhow::Result<Contender> {
    let python = python()?;
    let (home, folder, port) = place()?;
    let config = folder.join("litellm.yaml");
    let models: String = ["fast", "paced"]
        .map(|name| {
            format!(
                "  - model_name: {name}\n    litellm_params:\n      model: openai/{name}\n      \
                 api_base: http://{upstream}/v1\n      api_key: none\n"
            )
        })
        .concat();
    fs_err::write(&config, format!("model_list:\n{models}"))?;
    let mut command = Command::new(python.with_file_name("litellm"));
    // Without it, it asks a server elsewhere what models cost.
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").env("LITELLM_MODE", "PRODUCTION");
    command.args(["--host", "127.0.0.1", "--telemetry", "False", "--port", &port.to_string(), "--config"]).arg(&config);
    let process = Process::start("LiteLLM", &mut command)?;
    let door = door(format!("127.0.0.1:{port}"), "/v1/chat/completions", "");
    Contender { door, process, _home: Some(home) }.ready().await
}

fn sources() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// A Python with TensorZero and LiteLLM.
fn python() -> anyhow::Result<Utf8PathBuf> {
    let folder = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fettle-test-cache/gateway-peers");
    let program = folder.join("bin/python");
    let wanted = sources().join("requirements.txt");
    // Written last, so a download that was interrupted begins anew.
    let installed = folder.join("installed.txt");
    let text = fs_err::read_to_string(&wanted)?;
    if fs_err::read_to_string(&installed).is_ok_and(|installed| installed == text) {
        return Ok(program);
    }
    fs_err::create_dir_all(&folder)?;
    told(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    told(Command::new(&program).args(install).arg(&wanted))?;
    fs_err::write(&installed, text)?;
    Ok(program)
}

fn told(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut process = Process::start(&name, command)?;
    let ended =
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(process.ended(PROVIDE_LIMIT)))?;
    ensure!(ended.success(), "{name} failed ({ended}): {}", process.tail());
    Ok(())
}

/// Of a peer that was measured.
pub(crate) fn version(peer: Peer) -> anyhow::Result<String> {
    let text = match peer {
        Peer::Nginx => {
            let said = Command::new("nginx").arg("-v").output()?.stderr;
            return Ok(String::from_utf8_lossy(&said).trim().trim_start_matches("nginx version: nginx/").to_owned());
        }
        Peer::Tensorzero | Peer::Litellm => fs_err::read_to_string(sources().join("requirements.txt"))?,
    };
    let line = text.lines().find(|line| line.starts_with(&peer.to_string())).context("it is named")?;
    Ok(line.rsplit('=').next().unwrap_or_default().to_owned())
}
