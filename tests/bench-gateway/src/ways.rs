//! The ways a request can go: to the model's server itself, through Fettle, through nginx as a plain proxy.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8Path;
use fettle_test_kit::process::Process;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::callers::Caller;
use crate::roles::LISTENS;

/// A server that does not listen by then does not start.
const START: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(crate) struct Way {
    pub(crate) caller: Caller,
    pub(crate) process: Process,
    at: SocketAddr,
}

pub(crate) struct Ways {
    pub(crate) direct: Way,
    pub(crate) fettle: Way,
    /// `None`: this machine has none.
    pub(crate) nginx: Option<Way>,
}

impl Ways {
    pub(crate) async fn start(folder: &Utf8Path) -> anyhow::Result<Self> {
        let direct = own("upstream", &["upstream"]).await?;
        let fettle = own("gateway", &["gateway", &direct.at.to_string()]).await?;
        let nginx = nginx(folder, direct.at).await?;
        Ok(Self { direct, fettle, nginx })
    }
}

#[expect(clippy::disallowed_methods, reason = "the runner of the benchmark's own roles")]
async fn own(name: &str, arguments: &[&str]) -> anyhow::Result<Way> {
    let program = std::env::current_exe()?;
    let process = Process::start(name, Command::new(program).args(arguments))?;
    let until = Instant::now() + START;
    loop {
        let said = process.log().into_iter().find_map(|line| line.strip_prefix(LISTENS)?.parse().ok());
        if let Some(at) = said {
            return Ok(Way { caller: Caller::new(at), process, at });
        }
        anyhow::ensure!(Instant::now() < until, "{name} does not listen:\n{}", process.tail());
        sleep(LOOK_AGAIN).await;
    }
}

/// One worker, its connections to the server kept, nothing gathered.
async fn nginx(folder: &Utf8Path, upstream: SocketAddr) -> anyhow::Result<Option<Way>> {
    let at = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = folder.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
         events {{ worker_connections 4096; }}
         http {{
           access_log off; client_body_buffer_size 1m; client_max_body_size 32m;
           client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
           uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi; keepalive_requests 10000000;
           upstream model {{ server {upstream}; keepalive 1024; keepalive_requests 10000000; }}
           server {{
             listen {at};
             location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }}
           }}
         }}"
    );
    fs_err::write(&config, text)?;
    let process =
        match Process::start("nginx", Command::new("nginx").args(["-p", folder.as_str(), "-c", config.as_str()])) {
            Ok(process) => process,
            Err(_) => return Ok(None),
        };
    let until = Instant::now() + START;
    while TcpStream::connect(at).await.is_err() {
        anyhow::ensure!(Instant::now() < until, "nginx does not listen:\n{}", process.tail());
        sleep(LOOK_AGAIN).await;
    }
    Ok(Some(Way { caller: Caller::new(at), process, at }))
}

impl Way {
    /// Time on a CPU so far, in seconds.
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        let time =
            fettle_test_kit::measure::process::cpu_time(self.process.id()).context("while looking at a server")?;
        Ok(time.as_secs_f64())
    }
}
