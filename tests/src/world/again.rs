//! Programs of a box that die in the middle and come back as who they were: same data, same addresses.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Signal;

use super::{Api, Launch, PATIENCE, Process, TestBox, address_for_workers, canary, message, ready, ready_with};

/// Who serves the API: `fettle up` or the dashboard.
pub const SERVER: usize = 0;
/// The first worker, where it is a program of its own.
pub const WORKER: usize = 1;

/// Every worker and gateway of a box tells its health.
const TELLING: &[&str] = &["--internal-listen", "127.0.0.1:0"];
/// As a cluster starts one for each Run that waits.
const ONE_JOB: &[&str] = &["--once", "--internal-listen", "127.0.0.1:0"];
const LISTEN: &str = "FETTLE_SERVER__LISTEN";
const INTERNAL_LISTEN: &str = "FETTLE_SERVER__INTERNAL_LISTEN";

/// A program with what starts it again.
pub(super) struct Program {
    name: &'static str,
    arguments: &'static [&'static str],
    environment: Vec<(&'static str, String)>,
    pub(super) data: Utf8PathBuf,
    pub(super) process: Process,
    /// What its killed processes logged.
    earlier: Vec<String>,
}

impl Program {
    pub(super) fn start(
        name: &'static str,
        arguments: &'static [&'static str],
        root: &Utf8Path,
        nth: usize,
        environment: Vec<(&'static str, String)>,
        armed: Option<&str>,
    ) -> anyhow::Result<Self> {
        let data = root.join(format!("data-{nth}"));
        let process = launch(name, arguments, root, &data, &environment, armed)?;
        Ok(Self { name, arguments, environment, data, process, earlier: Vec::new() })
    }

    pub(super) fn log(&self) -> Vec<String> {
        [self.earlier.as_slice(), &self.process.log()].concat()
    }
}

fn launch(
    name: &str,
    arguments: &[&str],
    root: &Utf8Path,
    data: &Utf8Path,
    environment: &[(&'static str, String)],
    armed: Option<&str>,
) -> anyhow::Result<Process> {
    let config = root.join("fettle.toml");
    let mut more = vec![(canary::VARIABLE, canary::OF_ENVIRONMENT.to_owned())];
    more.extend_from_slice(environment);
    more.extend(armed.map(|point| ("FETTLE_CRASH_POINT", point.to_owned())));
    Launch { home: root, config: Some(&config), data, own_group: false }.start(name, arguments, &more)
}

impl TestBox {
    /// Starts a second dashboard, on the same ledger, and lets the box's API, webhooks and further workers go to it.
    pub async fn start_another_dashboard(&mut self) -> anyhow::Result<usize> {
        let nth = self.programs.len();
        let admin_key = self.programs[SERVER].data.join("admin.key");
        let mut environment = self.leases.environment();
        environment.push(("FETTLE_AUTH__ADMIN_KEY_FILE", admin_key.to_string()));
        let program = Program::start("fettle-dashboard", &[], &self.root, nth, environment, None)?;
        self.api = ready_with(&program.process, &program.data, &admin_key).await?;
        self.internal = program.process.log().iter().find_map(|line| address_for_workers(line));
        self.programs.push(program);
        self.serving = nth;
        Ok(nth)
    }

    /// Starts the gateway to all models; workers that are started later ask there. Gives the folder of its usage records.
    pub async fn start_inference(&mut self, environment: &[(&'static str, &str)]) -> anyhow::Result<Utf8PathBuf> {
        let nth = self.programs.len();
        let mut environment: Vec<_> = environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        environment.push(("FETTLE_GATEWAY__LISTEN", "127.0.0.1:0".to_owned()));
        let dashboard =
            self.internal.iter().map(|internal| ("FETTLE_AGENT__DASHBOARD_URL", format!("http://{internal}")));
        environment.extend(dashboard);
        let program = Program::start("fettle-inference", TELLING, &self.root, nth, environment, None)?;
        let address =
            |line: &str| Some(message(line)?.split_once(" answers on ")?.1.split_once(", models: ")?.0.to_owned());
        self.gateway = Some(program.process.logged("the gateway answers", PATIENCE, address).await?);
        let usage = program.data.join("usage");
        self.programs.push(program);
        Ok(usage)
    }

    /// Starts a worker beside a dashboard of its own.
    pub fn start_worker(&mut self, armed: Option<&str>) -> anyhow::Result<()> {
        let internal = self.internal.as_ref().context("only a dashboard of its own takes workers")?;
        let mut environment = self.leases.environment();
        environment.push(("FETTLE_AGENT__DASHBOARD_URL", format!("http://{internal}")));
        environment.extend(self.gateway.iter().map(|url| ("FETTLE_GATEWAY__URL", url.clone())));
        let nth = self.programs.len();
        self.programs.push(Program::start("fettle-worker", TELLING, &self.root, nth, environment, armed)?);
        Ok(())
    }

    /// Starts a worker that does one job, if there is one, for whoever listens at `dashboard`. Its number.
    pub fn start_one_job(&mut self, dashboard: SocketAddr) -> anyhow::Result<usize> {
        let mut environment = self.leases.environment();
        environment.push(("FETTLE_AGENT__DASHBOARD_URL", format!("http://{dashboard}")));
        let nth = self.programs.len();
        self.programs.push(Program::start("fettle-worker", ONE_JOB, &self.root, nth, environment, None)?);
        Ok(nth)
    }

    /// Whether a program has ended, which then ended well.
    pub async fn has_ended(&mut self, nth: usize) -> anyhow::Result<bool> {
        if !self.programs[nth].process.has_ended() {
            return Ok(false);
        }
        self.ended(nth).await.map(|()| true)
    }

    /// Where a dashboard listens: for everybody, and for workers.
    pub fn addresses(&self, nth: usize) -> anyhow::Result<[SocketAddr; 2]> {
        let read = |name: &str| -> anyhow::Result<SocketAddr> {
            Ok(fs_err::read_to_string(self.programs[nth].data.join(name))?.trim().parse()?)
        };
        Ok([read("address")?, read("internal-address")?])
    }

    /// The API at whatever stands before the dashboards.
    pub fn api_at(&self, public: SocketAddr, internal: SocketAddr) -> anyhow::Result<Api> {
        let folder = self.root.join("before-the-dashboards");
        fs_err::create_dir_all(&folder)?;
        fs_err::write(folder.join("address"), public.to_string())?;
        fs_err::write(folder.join("internal-address"), internal.to_string())?;
        Api::with_key(&folder, &self.programs[SERVER].data.join("admin.key"))
    }

    /// Ends a dashboard in order and starts it again where it was, as an upgrade does.
    pub async fn replace_dashboard(&mut self, nth: usize) -> anyhow::Result<()> {
        let [public, internal] = self.addresses(nth)?;
        self.programs[nth].process.terminate();
        self.ended(nth).await?;
        let admin_key = self.programs[SERVER].data.join("admin.key");
        let Program { name, arguments, environment, data, process, earlier } = &mut self.programs[nth];
        environment.retain(|(name, _)| !matches!(*name, LISTEN | INTERNAL_LISTEN));
        environment.extend([(LISTEN, public.to_string()), (INTERNAL_LISTEN, internal.to_string())]);
        earlier.append(&mut process.log());
        *process = launch(name, arguments, &self.root, data, environment, None)?;
        ready_with(process, data, &admin_key).await.map(drop)
    }

    /// Waits until a program has died by SIGKILL.
    pub async fn killed(&mut self, nth: usize) -> anyhow::Result<()> {
        let status = self.programs[nth].process.ended(PATIENCE).await?;
        let name = self.programs[nth].name;
        ensure!(status.signal() == Some(Signal::KILL.as_raw()), "{name} ended with {status} instead of being killed");
        Ok(())
    }

    /// Waits until a program has ended well.
    pub async fn ended(&mut self, nth: usize) -> anyhow::Result<()> {
        let status = self.programs[nth].process.ended(PATIENCE).await?;
        ensure!(status.success(), "{} ended with {status}", self.programs[nth].name);
        Ok(())
    }

    /// Kills a program as a power cut would.
    pub fn kill(&mut self, nth: usize) {
        self.programs[nth].process.kill();
    }

    /// Starts a dead program again; who serves the API is ready when this returns.
    pub async fn restart(&mut self, nth: usize, armed: Option<&str>) -> anyhow::Result<()> {
        if nth == self.serving {
            // Whoever knows it goes on asking at the same place.
            let mut listen = vec![(LISTEN, self.api.address().to_owned())];
            listen.extend(self.internal.clone().map(|address| (INTERNAL_LISTEN, address)));
            let environment = &mut self.programs[nth].environment;
            environment.retain(|(name, _)| !listen.iter().any(|(known, _)| known == name));
            environment.append(&mut listen);
        }
        let Program { name, arguments, environment, data, process, earlier } = &mut self.programs[nth];
        earlier.append(&mut process.log());
        *process = launch(name, arguments, &self.root, data, environment, armed)?;
        if nth == self.serving {
            ready(process, data).await?;
        }
        Ok(())
    }

    /// Processes that work in this box and are none of its programs.
    pub fn strays(&self) -> Vec<String> {
        let own: Vec<String> = self.programs.iter().map(|program| program.process.id().to_string()).collect();
        let entries = Utf8Path::new("/proc").read_dir_utf8().into_iter().flatten().flatten();
        let processes = entries.filter(|entry| entry.file_name().bytes().all(|byte| byte.is_ascii_digit()));
        let here = |process: &Utf8Path| {
            let folder = process.join("cwd").read_link_utf8().is_ok_and(|folder| folder.starts_with(&self.root));
            // In a namespace of its own the folder has another name, and its mounts tell.
            let mounts = fs_err::read_to_string(process.join("mountinfo"));
            folder || mounts.is_ok_and(|mounts| mounts.contains(self.root.as_str()))
        };
        let strays = processes.filter(|entry| !own.iter().any(|id| id == entry.file_name()) && here(entry.path()));
        let named = |id: &str| fs_err::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        strays.map(|entry| format!("{} {}", entry.file_name(), named(entry.file_name()).trim())).collect()
    }

    /// Its owner asks for the checks by [`TestBox::finish`]; when it is only dropped, everything is killed and no test fails.
    #[must_use]
    pub fn checked_by_its_owner(mut self) -> Self {
        self.checked = true;
        self
    }

    /// Stops everything and checks what a drop checks; blocks.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.checked = true;
        self.check().with_context(|| format!("the logs:\n{}", self.tails()))
    }
}
