//! The two ways to start a keeper and to end what it keeps: as a child of this process, or as a unit of systemd.

use std::collections::BTreeSet;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_placement::id::EngineId;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tracing::warn;

use crate::cgroup;
use crate::keeper::kill;
use crate::record::{Folder, Record, file_name};
use crate::settings::{self, Settings};

/// For what systemd answers at once; a start waits for the program to be executed.
const SYSTEMCTL: Duration = Duration::from_secs(20);
/// What the units are called, before their instance.
const UNITS: &str = "fettle-engine@";

pub(crate) struct Launcher {
    kind: settings::Launcher,
    keeper: Utf8PathBuf,
    pub(crate) delegated: Option<Utf8PathBuf>,
}

/// How to get hold of an engine that was started.
pub(crate) enum Hand {
    /// Closing its standard input ends it.
    Child(Box<Child>),
    Unit {
        systemctl: Utf8PathBuf,
        unit: String,
    },
}

impl Launcher {
    pub(crate) fn new(settings: &Settings) -> Self {
        let delegated = match settings.launcher {
            settings::Launcher::Direct => cgroup::delegated(),
            settings::Launcher::Systemd { .. } => None,
        };
        Self { kind: settings.launcher.clone(), keeper: settings.keeper.clone(), delegated }
    }

    /// What the record has to say of how it will be started.
    pub(crate) fn prepare(&self, record: &mut Record) -> io::Result<()> {
        match (&self.kind, &self.delegated) {
            (settings::Launcher::Systemd { .. }, _) => record.unit = Some(unit_of(&record.engine)),
            (settings::Launcher::Direct, Some(parent)) => {
                record.cgroup = Some(cgroup::make(parent, &file_name(&record.engine), record.epoch.0)?);
            }
            (settings::Launcher::Direct, None) => {}
        }
        Ok(())
    }

    /// Whether engines end with this process.
    pub(crate) fn is_direct(&self) -> bool {
        self.kind == settings::Launcher::Direct
    }

    /// The error is a sentence.
    pub(crate) async fn start(&self, folder: &Folder, record: &Record) -> Result<Hand, String> {
        match &self.kind {
            settings::Launcher::Direct => {
                let child = Command::new(&self.keeper)
                    .arg("keep")
                    .arg(folder.path())
                    .env_clear()
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .spawn()
                    .map_err(|e| format!("the keeper of engines cannot be started: {e}"))?;
                Ok(Hand::Child(Box::new(child)))
            }
            settings::Launcher::Systemd { systemctl } => {
                let unit = record.unit.clone().ok_or("its record names no unit")?;
                ask(systemctl, &["start", &unit]).await.map_err(|e| format!("systemd does not start {unit}: {e}"))?;
                Ok(Hand::Unit { systemctl: systemctl.clone(), unit })
            }
        }
    }

    /// Of an engine of an earlier life. `None`: it was a child, and there is nothing to get hold of but its processes.
    pub(crate) fn take_up(&self, record: &Record) -> Option<Hand> {
        match (&self.kind, &record.unit) {
            (settings::Launcher::Systemd { systemctl }, Some(unit)) => {
                Some(Hand::Unit { systemctl: systemctl.clone(), unit: unit.clone() })
            }
            _ => None,
        }
    }

    /// Units of engines that are not at rest.
    pub(crate) async fn units(&self) -> Vec<Hand> {
        let settings::Launcher::Systemd { systemctl } = &self.kind else { return Vec::new() };
        let pattern = format!("{UNITS}*");
        let states = "--state=active,activating,reloading,deactivating";
        match ask(systemctl, &["list-units", &pattern, states, "--plain", "--no-legend", "--full"]).await {
            Ok(list) => {
                let names = list.lines().filter_map(|line| line.split_ascii_whitespace().next());
                let units = names.filter(|name| name.starts_with(UNITS));
                units.map(|unit| Hand::Unit { systemctl: systemctl.clone(), unit: unit.to_owned() }).collect()
            }
            Err(e) => {
                warn!(error = e, "systemd does not say which engines it runs");
                Vec::new()
            }
        }
    }
}

impl Hand {
    /// Whether whoever keeps the engine is alive, as far as the launcher can tell.
    pub(crate) async fn is_held(&mut self) -> bool {
        match self {
            Self::Child(child) => matches!(child.try_wait(), Ok(None)),
            Self::Unit { systemctl, unit } => {
                match ask(systemctl, &["show", "--property=ActiveState", "--value", unit]).await {
                    Ok(state) => !matches!(state.trim(), "inactive" | "failed"),
                    // Not seen is not gone.
                    Err(_) => true,
                }
            }
        }
    }

    pub(crate) fn unit(&self) -> Option<&str> {
        match self {
            Self::Child(_) => None,
            Self::Unit { unit, .. } => Some(unit),
        }
    }

    /// The keeper passes it on to the engine's group.
    pub(crate) async fn terminate(&self) {
        match self {
            Self::Child(child) => {
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
                    // It may have ended meanwhile.
                    let _nobody = rustix::process::kill_process(pid, Signal::TERM);
                }
            }
            Self::Unit { systemctl, unit } => {
                if let Err(e) = ask(systemctl, &["stop", "--no-block", unit]).await {
                    warn!(unit, error = e, "systemd does not stop an engine");
                }
            }
        }
    }

    /// Everything at once. The keeper ends by itself when nothing is left, so it goes only where it is alone.
    pub(crate) async fn kill(&self, pids: &BTreeSet<u32>, group: Option<&Utf8Path>) {
        end(pids, group);
        match self {
            Self::Child(child) if pids.is_empty() => {
                if let Some(pid) = child.id() {
                    kill(pid);
                }
            }
            Self::Child(_) => {}
            Self::Unit { systemctl, unit } => {
                if let Err(e) = ask(systemctl, &["kill", "--signal=KILL", unit]).await {
                    warn!(unit, error = e, "systemd does not kill an engine");
                }
                self.terminate().await;
            }
        }
    }
}

pub(crate) fn unit_of(engine: &EngineId) -> String {
    format!("{UNITS}{}.service", file_name(engine))
}

/// SIGKILL to all of them, by the group where that is allowed.
pub(crate) fn end(pids: &BTreeSet<u32>, group: Option<&Utf8Path>) {
    let _or_one_by_one = group.map(cgroup::kill);
    for pid in pids {
        kill(*pid);
    }
}

/// What systemd says; the error is what it complains of.
async fn ask(systemctl: &Utf8Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(systemctl);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(SYSTEMCTL, command.output()).await {
        Err(_) => return Err(format!("no answer within {} s", SYSTEMCTL.as_secs())),
        Ok(Err(e)) => return Err(e.to_string()),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next().unwrap_or("it fails and does not say why").to_owned())
}
