//! The port's implementation: one helper process per command, and a supervisor beside it that enforces the limits.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::{
    CommandEnd, KilledBy, Network, Sandbox, SandboxCommand, SandboxError, SandboxLevel, SandboxLimits, SandboxOutput,
    SandboxReport,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::cgroup::{Delegation, Group};
use crate::environment::{Proxy as ProxyVariables, environment};
use crate::etc::{self, Names};
use crate::helper;
use crate::output::Collector;
use crate::proxy::Proxy;
use crate::running::{DEATH, Running};
use crate::spec::{Bind, Fault, HOME, Refusal, Report, Spec, SpecNetwork, TEMPORARY, WORKSPACE};
use crate::validate;
use crate::watch::{self, Folder};

/// As much as a pipe holds.
const READ_BYTES: usize = 64 * 1024;

/// Runs each command in its own sandbox, at the level that [`ProcessSandbox::probe`] found.
#[derive(Debug)]
pub struct ProcessSandbox {
    pub(crate) helper: Utf8PathBuf,
    pub(crate) scratch: Utf8PathBuf,
    pub(crate) report: SandboxReport,
    pub(crate) delegation: Option<Delegation>,
    /// Whether commands at level `full` see a `/proc` of their own.
    pub(crate) proc: bool,
    /// Whether the kernel caps the process numbers of a command at level `full`.
    pub(crate) cap: bool,
    /// Names the cgroups.
    pub(crate) started: AtomicU64,
}

/// Why a command has no output: the helper would not, or something else.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Refusal),
    Other(SandboxError),
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Self {
        Self::Other(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Other(SandboxError::Failed(error.into()))
    }
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    fn report(&self) -> &SandboxReport {
        &self.report
    }

    fn workspace_inside(&self, workspace: &Utf8Path) -> Utf8PathBuf {
        match self.report.level {
            SandboxLevel::Full => WORKSPACE.into(),
            SandboxLevel::Landlock => workspace.to_owned(),
        }
    }

    async fn run(&self, command: &SandboxCommand, cancel: &CancellationToken) -> Result<SandboxOutput, SandboxError> {
        self.attempt(command, cancel).await.map_err(|failure| match failure {
            Failure::Other(error) => error,
            Failure::Refused(refusal) => match refusal.fault {
                Fault::Request => SandboxError::Invalid(refusal.to_string()),
                Fault::Walls | Fault::Proc | Fault::Cap => SandboxError::Unavailable(format!(
                    "the sandbox could not be entered at level {}: {refusal}",
                    self.report.level.name()
                )),
            },
        })
    }
}

/// How the supervision of a command ended.
enum Verdict {
    Reported(Report),
    /// The helper has gone without a report.
    Vanished,
    Stopped(CommandEnd),
}

impl ProcessSandbox {
    /// Like `run`, but a refusal of the helper keeps its details.
    pub(crate) async fn attempt(
        &self,
        command: &SandboxCommand,
        cancel: &CancellationToken,
    ) -> Result<SandboxOutput, Failure> {
        validate::command(command)?;
        let scratch = tempfile::Builder::new().prefix("command-").tempdir_in(&self.scratch)?;
        let spec = self.spec(command, &scratch)?;
        let group = self.group(&command.limits)?;
        let started = Instant::now();
        let watched = self.watched(&spec, &command.limits);
        let (mut running, mut output) = Running::start(&self.helper, &spec, scratch, group).await?;

        let mut proxy = None;
        let mut collector = Collector::new(command.limits.output_kept_bytes);
        let mut watchers = JoinSet::new();
        watchers.spawn(watch::disk(watched));
        if let Some(pid) = running.pid() {
            watchers.spawn(watch::tree(pid, command.limits));
        }
        let verdict =
            supervise(command, cancel, started, &mut running, &mut output, &mut collector, &mut watchers, &mut proxy)
                .await?;
        if matches!(verdict, Verdict::Stopped(_)) {
            running.stop();
        }
        // The helper holds the pipe too, so its end of file says that all is over.
        drain(&mut output, &mut collector).await?;
        let out_of_memory = running.ran_out_of_memory();
        running.finish().await?;

        let end = match verdict {
            Verdict::Stopped(end) => end,
            Verdict::Reported(Report::Refused(refusal)) => return Err(Failure::Refused(refusal)),
            Verdict::Reported(Report::Ended { status }) => end_of(status, out_of_memory),
            Verdict::Reported(Report::TooMany) => CommandEnd::Killed(KilledBy::Processes),
            // Nothing inside can kill the init, so this was the host's out-of-memory killer.
            Verdict::Reported(Report::Lost { status })
                if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL =>
            {
                CommandEnd::Killed(KilledBy::Memory)
            }
            Verdict::Reported(Report::Lost { status }) => {
                return Err(
                    io::Error::other(format!("the init of the sandbox was lost with status {status:#x}")).into()
                );
            }
            Verdict::Vanished if out_of_memory => CommandEnd::Killed(KilledBy::Memory),
            Verdict::Reported(Report::Listening) | Verdict::Vanished => {
                return Err(io::Error::other("the sandbox helper ended without a report").into());
            }
        };
        let collected = collector.finish();
        Ok(SandboxOutput {
            end,
            output: collected.output,
            bytes_total: collected.bytes_total,
            truncated: collected.truncated,
            took: started.elapsed(),
            denied_hosts: proxy.as_ref().map(Proxy::denied).unwrap_or_default(),
        })
    }

    fn spec(&self, command: &SandboxCommand, scratch: &TempDir) -> Result<Spec, Failure> {
        let level = self.report.level;
        let scratch =
            Utf8Path::from_path(scratch.path()).ok_or_else(|| io::Error::other("the scratch folder is not UTF-8"))?;
        let scratch = scratch.canonicalize_utf8()?;
        let network = match (&command.network, level) {
            (Network::None, _) => SpecNetwork::None,
            (Network::Host, _) => SpecNetwork::Host,
            (Network::AllowList { .. }, SandboxLevel::Full) => SpecNetwork::Proxy,
            (Network::AllowList { .. }, SandboxLevel::Landlock) => {
                let why = "an allow-list of hosts needs sandbox level full; here it is landlock".to_owned();
                return Err(SandboxError::Unavailable(why).into());
            }
        };
        let inside = self.workspace_inside(&command.workspace);
        let workspace = validate::workspace(&command.workspace, inside, command.workspace_access)?;
        let mut mounts = validate::mounts(&command.mounts, &workspace.inside, level)?;
        let (home, temporary, system, names);
        match level {
            SandboxLevel::Full => {
                [home, temporary] = [HOME, TEMPORARY].map(Utf8PathBuf::from);
                system = etc::system();
                names = if network == SpecNetwork::Host { Names::Host } else { Names::Own };
            }
            SandboxLevel::Landlock => {
                [home, temporary] = helper::private_folders(&scratch);
                fs_err::create_dir(&home)?;
                fs_err::create_dir(&temporary)?;
                system = etc::System { binds: etc::unmoved_system(), symlinks: Vec::new() };
                names = Names::Own;
                if network == SpecNetwork::Host {
                    let resolver = Utf8PathBuf::from("/etc/resolv.conf");
                    mounts.push(Bind { host: resolver.clone(), inside: resolver, writable: false });
                }
            }
        }
        let proxy = if network == SpecNetwork::Proxy { ProxyVariables::Inside } else { ProxyVariables::Absent };
        Ok(Spec {
            level,
            argv: command.argv.clone(),
            env: environment(&command.env, &home, &temporary, proxy),
            cwd: workspace.inside.join(&command.cwd),
            scratch,
            workspace,
            mounts,
            system: system.binds,
            symlinks: system.symlinks,
            files: etc::files(names),
            network,
            proc: self.proc,
            cap: self.cap,
            landlock_abi: self.report.landlock_abi,
            temporary_bytes: command.limits.temporary_bytes,
            open_files: command.limits.open_files,
            processes: command.limits.processes,
            cpus: command.limits.cpus,
        })
    }

    fn group(&self, limits: &SandboxLimits) -> io::Result<Option<Group>> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", std::process::id());
        self.delegation.as_ref().map(|delegation| Group::make(delegation, &name, limits)).transpose()
    }

    /// The folders that no file system keeps small.
    fn watched(&self, spec: &Spec, limits: &SandboxLimits) -> Vec<Folder> {
        let mut folders = Vec::new();
        if spec.workspace.writable {
            folders.push(Folder { path: spec.workspace.host.clone().into(), bytes: limits.workspace_bytes });
        }
        if spec.level == SandboxLevel::Landlock {
            folders.push(Folder { path: spec.scratch.clone().into(), bytes: limits.temporary_bytes });
        }
        folders
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one running command, borrowed apart for the select below")]
async fn supervise(
    command: &SandboxCommand,
    cancel: &CancellationToken,
    started: Instant,
    running: &mut Running,
    output: &mut pipe::Receiver,
    collector: &mut Collector,
    watchers: &mut JoinSet<KilledBy>,
    proxy: &mut Option<Proxy>,
) -> io::Result<Verdict> {
    let deadline = tokio::time::sleep_until(started + command.limits.time);
    tokio::pin!(deadline);
    let mut buffer = vec![0; READ_BYTES];
    let mut open = true;
    loop {
        tokio::select! {
            report = running.report() => match report? {
                Some(Report::Listening) => {
                    let listener = running.take_passed().ok_or_else(|| io::Error::other("the helper sent no listener"))?;
                    *proxy = Some(start_proxy(listener, &command.network)?);
                }
                Some(report) => return Ok(Verdict::Reported(report)),
                None => return Ok(Verdict::Vanished),
            },
            count = output.read(&mut buffer), if open => {
                let count = count?;
                open = count > 0;
                collector.add(&buffer[..count]);
                if collector.total() > command.limits.output_killed_bytes {
                    return Ok(Verdict::Stopped(CommandEnd::Killed(KilledBy::Output)));
                }
            }
            Some(Ok(broken)) = watchers.join_next() => return Ok(Verdict::Stopped(CommandEnd::Killed(broken))),
            () = cancel.cancelled() => return Ok(Verdict::Stopped(CommandEnd::Cancelled)),
            () = &mut deadline => return Ok(Verdict::Stopped(CommandEnd::TimedOut)),
        }
    }
}

fn start_proxy(listener: OwnedFd, network: &Network) -> io::Result<Proxy> {
    let hosts = match network {
        Network::AllowList { hosts } => hosts.as_slice(),
        Network::None | Network::Host => &[],
    };
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    Ok(Proxy::start(tokio::net::TcpListener::from_std(listener)?, hosts))
}

async fn drain(output: &mut pipe::Receiver, collector: &mut Collector) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let until = Instant::now() + DEATH;
    while let Ok(count) = timeout(until.saturating_duration_since(Instant::now()), output.read(&mut buffer)).await {
        match count? {
            0 => break,
            count => collector.add(&buffer[..count]),
        }
    }
    Ok(())
}

/// From the status of `wait`.
fn end_of(status: i32, out_of_memory: bool) -> CommandEnd {
    if libc::WIFSIGNALED(status) {
        if out_of_memory {
            return CommandEnd::Killed(KilledBy::Memory);
        }
        return CommandEnd::Signalled(libc::WTERMSIG(status));
    }
    CommandEnd::Exited(libc::WEXITSTATUS(status))
}
