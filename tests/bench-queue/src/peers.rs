//! Other queues, each as its own makers would run it, on the Redis that is as durable as the ledger. What is not on this machine
//! is fetched once with the registries' own clients and kept in `target`; what cannot be had is missing, and says why.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use clap::ValueEnum;
use fettle_test_kit::brokers::redis::RedisServer;
use tokio::process::Command;
use tokio::time::timeout;

/// A cold build on two slow cores, or a download over a slow line.
const PROVIDE_LIMIT: Duration = Duration::from_secs(10 * 60);
/// One measurement of one peer; a machine on which it takes longer is too slow for it.
const RUN_LIMIT: Duration = Duration::from_secs(60);
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// RQ and Celery take as many jobs as fill this.
const SECONDS: f64 = 1.5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// Raw Redis Streams
    Streams,
    /// apalis with apalis-redis
    Apalis,
    /// RQ with its SimpleWorker
    Rq,
    /// Celery on Redis: prefork 2, acks late, prefetch 1
    Celery,
}

impl Peer {
    pub(crate) const ALL: [Self; 4] = [Self::Streams, Self::Apalis, Self::Rq, Self::Celery];
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().expect("no peer is skipped").get_name())
    }
}

fn sources() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

fn cache() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fettle-test-cache/queue-peers")
}

/// apalis, built.
pub(crate) struct Apalis {
    program: Utf8PathBuf,
}

impl Apalis {
    pub(crate) async fn provide() -> anyhow::Result<Self> {
        let (manifest, target) = (sources().join("apalis/Cargo.toml"), cache().join("apalis"));
        let mut build = Command::new("cargo");
        build.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]).arg(manifest);
        build.arg("--target-dir").arg(&target);
        told(build, PROVIDE_LIMIT).await?;
        Ok(Self { program: target.join("release/queue-peer-apalis") })
    }

    /// Cycles a second of `jobs` that stand in an empty Redis before the first is taken.
    pub(crate) async fn cycles(&self, server: &RedisServer, jobs: u64, callers: u32) -> anyhow::Result<f64> {
        server.flush().await;
        let mut command = Command::new(&self.program);
        command.args([server.url(), jobs.to_string(), callers.to_string()]);
        let [pushing, working] = numbers(&told(command, RUN_LIMIT).await?)?;
        Ok(jobs as f64 / (pushing + working))
    }

    pub(crate) fn version() -> anyhow::Result<String> {
        let lock = fs_err::read_to_string(sources().join("apalis/Cargo.lock"))?;
        let after = lock.split("name = \"apalis-redis\"\nversion = \"").nth(1).context("apalis-redis is locked")?;
        Ok(after.split('"').next().unwrap_or_default().to_owned())
    }
}

/// A Python with RQ and Celery.
pub(crate) struct Python {
    program: Utf8PathBuf,
}

impl Python {
    pub(crate) async fn provide() -> anyhow::Result<Self> {
        let folder = cache().join("venv");
        let program = folder.join("bin/python");
        let wanted = sources().join("python/requirements.txt");
        // Written last, so a download that was interrupted begins anew.
        let installed = folder.join("installed.txt");
        let wanted_text = fs_err::read_to_string(&wanted)?;
        if fs_err::read_to_string(&installed).is_ok_and(|text| text == wanted_text) {
            return Ok(Self { program });
        }
        fs_err::create_dir_all(cache())?;
        let mut make = Command::new("python3");
        make.args(["-m", "venv", "--clear"]).arg(&folder);
        told(make, PROVIDE_LIMIT).await?;
        let mut install = Command::new(&program);
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&wanted);
        told(install, PROVIDE_LIMIT).await?;
        fs_err::write(&installed, wanted_text)?;
        Ok(Self { program })
    }

    pub(crate) async fn rq(&self, server: &RedisServer) -> anyhow::Result<f64> {
        server.flush().await;
        let mut command = self.script("rq_peer.py");
        command.args([server.url(), SECONDS.to_string()]);
        rate(&told(command, RUN_LIMIT).await?)
    }

    pub(crate) async fn celery(&self, server: &RedisServer) -> anyhow::Result<f64> {
        server.flush().await;
        let mut command = self.script("celery_peer.py");
        let limit = RUN_LIMIT / 2;
        command.args([SECONDS.to_string(), limit.as_secs().to_string()]);
        command.env("QUEUE_PEER_URL", server.url());
        rate(&told(command, RUN_LIMIT).await?)
    }

    /// Of an installed package.
    pub(crate) async fn version(&self, package: &str) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["-c", "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))", package]);
        Ok(told(command, ASK_LIMIT).await?.trim().to_owned())
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        // No compiled files beside the sources, from the worker that it starts neither.
        command.env("PYTHONDONTWRITEBYTECODE", "1").arg(sources().join("python").join(name));
        command
    }
}

/// What `command` printed; it is killed with its children when it takes too long or is no longer waited for.
async fn told(mut command: Command, limit: Duration) -> anyhow::Result<String> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let child = command.spawn().with_context(|| format!("while starting {name}"))?;
    let _group = Group(child.id());
    let output = timeout(limit, child.wait_with_output()).await;
    let output = output.with_context(|| format!("{name} takes longer than {} s", limit.as_secs()))??;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim().lines().last().unwrap_or("it says nothing");
    ensure!(output.status.success(), "{name} failed ({}): {last}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program's process group, killed when dropped: what it started must not outlive it.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let group = self.0.and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            let _gone_already = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// `jobs seconds`, as jobs a second.
fn rate(text: &str) -> anyhow::Result<f64> {
    let [jobs, seconds] = numbers(text)?;
    Ok(jobs / seconds)
}

fn numbers(text: &str) -> anyhow::Result<[f64; 2]> {
    let numbers = text.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>();
    let numbers = numbers.with_context(|| format!("a peer says `{}`", text.trim()))?;
    let two: Result<[f64; 2], _> = numbers.try_into();
    two.map_err(|found| anyhow::anyhow!("a peer tells {} numbers instead of two", found.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_says_anything_else_has_no_rate() {
        assert_eq!(rate("30 1.5\n").unwrap(), 20.0);
        for wrong in ["", "30", "30 1.5 2", "30 fast"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
