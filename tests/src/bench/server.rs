//! `fettle up` as a process of its own, with its log in a file: a pipe would be read at this side's cost.

use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::world::program;

/// A start takes a fraction of a second; more means that it will not come.
const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks: as exact as a start's time is told.
const LOOK: Duration = Duration::from_millis(1);

/// A Fettle that is ready. Killed when dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// From just before `exec` until `/readyz` said 200.
    pub(super) ready_after: Duration,
    child: Child,
    log: Utf8PathBuf,
}

impl Server {
    /// Starts with state in `folder/data`, on a free port of loopback. Without `config` nothing else is configured.
    pub(super) async fn start(folder: &Utf8Path, config: Option<&Utf8Path>) -> anyhow::Result<Self> {
        let (data, log) = (folder.join("data"), folder.join("log"));
        fs_err::create_dir_all(&data)?;
        let address = data.join("address");
        if fs_err::exists(&address)? {
            fs_err::remove_file(&address)?;
        }
        let output = fs_err::File::create(&log)?.into_file();
        let mut command = Command::new(program("fettle")?);
        command
            .arg("up")
            .arg("--data-dir")
            .arg(&data)
            .args(config.into_iter().flat_map(|file| ["--config", file.as_str()]));
        // The developer's own settings must not be in the figures; git and the sandbox need a `PATH`.
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", folder);
        command.env("FETTLE_SERVER__LISTEN", "127.0.0.1:0");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let started = Instant::now();
        let child = command.spawn().context("while starting fettle")?;
        let mut server = Self { address: SocketAddr::from(([0; 4], 0)), ready_after: Duration::ZERO, child, log };
        server.address = timeout(START_LIMIT, server.ready(&address))
            .await
            .unwrap_or_else(|_| bail!("fettle was not ready within {START_LIMIT:?}; its log:\n{}", server.tail()))?;
        server.ready_after = started.elapsed();
        Ok(server)
    }

    async fn ready(&mut self, address: &Utf8Path) -> anyhow::Result<SocketAddr> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("fettle ended with {status}; its log:\n{}", self.tail());
            }
            let told = fs_err::read_to_string(address).ok().and_then(|text| text.trim().parse().ok());
            if let Some(address) = told
                && is_ready(address).await
            {
                return Ok(address);
            }
            sleep(LOOK).await;
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn tail(&self) -> String {
        let log = fs_err::read_to_string(&self.log).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Asks it to end, and waits.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("while stopping fettle")?;
        let status = match timeout(STOP_LIMIT, self.ended()).await {
            Ok(status) => status?,
            Err(_) => bail!("fettle did not stop within {STOP_LIMIT:?}; its log:\n{}", self.tail()),
        };
        ensure!(status.success(), "fettle ended with {status}; its log:\n{}", self.tail());
        Ok(())
    }

    async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            sleep(LOOK).await;
        }
    }

    /// Ends it without a word, as a crash does; blocks until it is gone.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("while killing fettle")?;
        self.child.wait().context("while killing fettle")?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both do nothing for a process that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn is_ready(address: SocketAddr) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    asked.await.is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200 "))
}
