//! Finds the strongest level that this host really allows, by trying; never by guessing from versions.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_app::ports::sandbox::{
    Access, CommandEnd, Network, SandboxCommand, SandboxError, SandboxLevel, SandboxLimits, SandboxReport,
};
use tokio_util::sync::CancellationToken;

use crate::cgroup::Delegation;
use crate::process::{Failure, ProcessSandbox};
use crate::spec::{Fault, Refusal};
use crate::sys;

const HELPER: &str = "fettle-sandbox";
/// The trial takes milliseconds; a host under load may need more.
const TRIAL_TIME: Duration = Duration::from_secs(20);
/// Truncating files is not controlled before this one.
const OLDEST_LANDLOCK: u32 = 3;
/// Signals to processes outside are not controlled before this one.
const SIGNAL_LANDLOCK: u32 = 6;

#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// The executable `fettle-sandbox`; see [`helper_beside_current_exe`].
    pub helper: Utf8PathBuf,
    /// Below this nothing is run.
    pub min_level: SandboxLevel,
    /// Nothing stronger is tried. `Full` but for tests of the weaker level.
    pub max_level: SandboxLevel,
    /// A folder of this process for short-lived files; made when it is missing.
    pub scratch: Utf8PathBuf,
}

/// The helper as it is installed: in the folder of the running executable (or above it, where cargo puts test executables).
pub fn helper_beside_current_exe() -> Result<Utf8PathBuf, SandboxError> {
    let own = std::env::current_exe().map_err(|e| SandboxError::Failed(e.into()))?;
    let own = Utf8PathBuf::try_from(own).map_err(|e| SandboxError::Failed(e.into()))?;
    let folders = own.ancestors().skip(1).take(2);
    let mut candidates = folders.map(|folder| folder.join(HELPER));
    candidates.find(|path| path.is_file()).ok_or_else(|| {
        SandboxError::Unavailable(format!("{HELPER} is missing: it belongs beside {own}, as the packages install it"))
    })
}

impl ProcessSandbox {
    /// Tries the levels from the strongest down and keeps the first that works; the report says what is missing for more.
    ///
    /// Errors: `Unavailable` when not even `min_level` can be had, with the reasons and what to do about them.
    pub async fn probe(options: SandboxOptions) -> Result<Self, SandboxError> {
        let SandboxOptions { helper, min_level, max_level, scratch } = options;
        if !helper.is_file() {
            return Err(SandboxError::Unavailable(format!("the sandbox helper {helper} is missing")));
        }
        fs_err::create_dir_all(&scratch).map_err(|e| SandboxError::Failed(e.into()))?;
        let mut notes = Vec::new();
        let delegation = Delegation::find().map_err(|note| notes.push(note)).ok();
        let report =
            SandboxReport { level: max_level, cgroup: delegation.is_some(), landlock_abi: sys::landlock_abi(), notes };
        let mut sandbox =
            Self { helper, scratch, report, delegation, proc: true, cap: true, started: AtomicU64::new(0) };

        let found = match max_level {
            SandboxLevel::Full => sandbox.try_full().await? || sandbox.try_landlock().await?,
            SandboxLevel::Landlock => sandbox.try_landlock().await?,
        };
        let Self { report, .. } = &sandbox;
        if !found {
            let why = report.notes.join("; ");
            return Err(SandboxError::Unavailable(format!(
                "no sandbox level works on this host, so nothing is run: {why}"
            )));
        }
        if report.level < min_level {
            let (level, wanted, why) = (report.level.name(), min_level.name(), report.notes.join("; "));
            return Err(SandboxError::Unavailable(format!(
                "sandbox level {wanted} is required, but this host allows only {level}, so nothing is run: {why}"
            )));
        }
        Ok(sandbox)
    }

    async fn try_full(&mut self) -> Result<bool, SandboxError> {
        self.report.level = SandboxLevel::Full;
        let mut tried = self.trial().await?;
        if tried.as_ref().is_some_and(|refusal| refusal.fault == Fault::Proc) {
            self.proc = false;
            self.cap = false;
            self.note(
                "commands see no /proc, because the container around masks its own: start it with an unmasked /proc",
            );
            tried = self.trial().await?;
        }
        if tried.as_ref().is_some_and(|refusal| refusal.fault == Fault::Cap) {
            self.cap = false;
            tried = self.trial().await?;
        }
        if let Some(refusal) = tried {
            self.note(format!("level full is refused ({refusal}): {}", namespace_advice(&refusal)));
            return Ok(false);
        }
        if self.report.landlock_abi == 0 {
            self.note(
                "landlock is missing as a second wall: use a kernel with CONFIG_SECURITY_LANDLOCK and name it in lsm=",
            );
        }
        if !self.cap {
            self.note_uncapped("run the worker as an ordinary user, or on Linux 6.14 or newer with an unmasked /proc");
        }
        Ok(true)
    }

    async fn try_landlock(&mut self) -> Result<bool, SandboxError> {
        self.report.level = SandboxLevel::Landlock;
        let abi = self.report.landlock_abi;
        if abi < OLDEST_LANDLOCK {
            self.note(format!(
                "level landlock needs landlock ABI {OLDEST_LANDLOCK}, here it is {abi}: use Linux 6.2 or newer with landlock in lsm="
            ));
            return Ok(false);
        }
        if let Some(refusal) = self.trial().await? {
            self.note(format!("level landlock is refused ({refusal})"));
            return Ok(false);
        }
        if abi < SIGNAL_LANDLOCK {
            self.note("commands may send signals to other processes of the worker's user: use Linux 6.12 or newer");
        }
        self.note_uncapped("run the worker as an ordinary user");
        Ok(true)
    }

    /// A superuser's processes are beyond the rlimit that holds those of everybody else.
    fn note_uncapped(&mut self, advice: &str) {
        let (user, _) = sys::effective_ids();
        if user == 0 && !self.report.cgroup {
            self.note(format!(
                "the kernel does not limit how many processes a superuser's command has, so they are only counted, and a fork bomb \
                 can starve the host before it is ended: {advice}"
            ));
        }
    }

    fn note(&mut self, note: impl Into<String>) {
        self.report.notes.push(note.into());
    }

    /// Runs a command that does nothing. `Some` says which wall could not be built.
    async fn trial(&self) -> Result<Option<Refusal>, SandboxError> {
        let failed = |e: std::io::Error| SandboxError::Failed(e.into());
        let workspace = tempfile::Builder::new().prefix("trial-").tempdir_in(&self.scratch).map_err(failed)?;
        let path = Utf8PathBuf::try_from(workspace.path().to_owned()).map_err(|e| SandboxError::Failed(e.into()))?;
        let command = SandboxCommand {
            argv: ["/bin/sh", "-c", "exit 0"].map(str::to_owned).to_vec(),
            workspace: path.canonicalize_utf8().map_err(failed)?,
            workspace_access: Access::ReadWrite,
            cwd: Utf8PathBuf::new(),
            mounts: Vec::new(),
            env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
            network: Network::None,
            limits: SandboxLimits { time: TRIAL_TIME, ..SandboxLimits::default() },
        };
        match self.attempt(&command, &CancellationToken::new()).await {
            Ok(output) if output.succeeded() => Ok(None),
            Ok(output) => {
                let detail = match output.end {
                    CommandEnd::Exited(code) => {
                        format!("it ended with {code}: {}", String::from_utf8_lossy(&output.output).trim())
                    }
                    end => format!("it ended with {end:?}"),
                };
                Ok(Some(Refusal { fault: Fault::Walls, step: "run /bin/sh inside".to_owned(), detail, errno: None }))
            }
            Err(Failure::Refused(refusal)) => Ok(Some(refusal)),
            Err(Failure::Other(error)) => Err(error),
        }
    }
}

/// What the operator can do about a refusal.
fn namespace_advice(refusal: &Refusal) -> &'static str {
    let says = |file: &str, value: &str| fs_err::read_to_string(file).is_ok_and(|text| text.trim() == value);
    if refusal.errno == Some(libc::ENOSYS) {
        "use Linux 5.14 or newer"
    } else if says("/proc/sys/user/max_user_namespaces", "0") {
        "set user.max_user_namespaces above 0"
    } else if says("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "set kernel.unprivileged_userns_clone=1"
    } else if says("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor restricts user namespaces, install the profile that comes with Fettle or set \
         kernel.apparmor_restrict_unprivileged_userns=0"
    } else {
        "the container or service around refuses namespaces, allow user namespaces and mounts in its seccomp profile and settings"
    }
}
