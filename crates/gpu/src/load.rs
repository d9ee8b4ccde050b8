//! Finds NVIDIA's library and initialises it. Looks at absolute paths first, because a program built by Nix does not search
//! `/usr/lib`; says of each path what came of it, and never falls back in silence.

use std::fmt;
use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

const SONAME: &str = "libnvidia-ml.so.1";

/// In this order, after the configured one: NixOS, Debian and its like, others. Only paths of the own architecture, so that
/// what is loaded can be run.
#[cfg(target_arch = "x86_64")]
const USUAL: &[&str] = &[
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
];
#[cfg(not(target_arch = "x86_64"))]
const USUAL: &[&str] = &[
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
    "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
];

/// Where to look: `configured` (`gpu.nvml_lib`) first, then the usual places, last whatever the dynamic linker finds.
pub fn search(configured: Option<&Path>) -> Vec<PathBuf> {
    let usual = USUAL.iter().chain([&SONAME]).map(PathBuf::from);
    configured.map(Path::to_owned).into_iter().chain(usual).collect()
}

/// One path that was tried, for `fettle doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub path: PathBuf,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With the version of the driver, where it tells.
    Loaded {
        driver: Option<String>,
    },
    Absent,
    Failed(Fault),
}

/// Why a library that is there does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The dynamic linker refuses it.
    Unloadable(String),
    DriverNotLoaded,
    NoPermission,
    /// Library and kernel module are of different versions, as after an update without a reboot.
    VersionMismatch,
    /// 999, mostly of a container that lost its devices.
    Unknown,
    Other(String),
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.outcome)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loaded { driver: Some(driver) } => write!(f, "loaded, driver {driver}"),
            Self::Loaded { driver: None } => f.write_str("loaded, the driver tells no version"),
            Self::Absent => f.write_str("not there"),
            Self::Failed(fault) => fault.fmt(f),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unloadable(why) => write!(f, "cannot be loaded: {why}"),
            Self::DriverNotLoaded => f.write_str("the driver's kernel module is not loaded; load it (`modprobe nvidia`)"),
            Self::NoPermission => f.write_str("no permission for the GPUs; this user needs access to /dev/nvidia*"),
            Self::VersionMismatch => {
                f.write_str("the library and the kernel module are of different versions; reload the driver or reboot")
            }
            Self::Unknown => f.write_str(
                "the driver gives an unknown error (999); in a container, which has lost its devices: recreate it and inject devices by CDI",
            ),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// The first library that loads and initialises, with what was tried up to it; else everything that was tried. Runs the
/// library's own code, so it may hang.
pub(crate) fn load(paths: &[PathBuf]) -> (Option<Nvml>, Vec<Attempt>) {
    let mut attempts = Vec::new();
    for path in paths {
        let tried = Nvml::builder().lib_path(path.as_os_str()).init();
        let (nvml, outcome) = match tried {
            Ok(nvml) => {
                let driver = nvml.sys_driver_version().ok();
                (Some(nvml), Outcome::Loaded { driver })
            }
            Err(e) => (None, outcome(path, e)),
        };
        attempts.push(Attempt { path: path.clone(), outcome });
        if nvml.is_some() {
            return (nvml, attempts);
        }
    }
    (None, attempts)
}

fn outcome(path: &Path, error: NvmlError) -> Outcome {
    if let NvmlError::LibloadingError(e) = &error {
        let text = e.to_string();
        // Of a library that it depends on, the linker names that one first.
        if text.starts_with(&*path.to_string_lossy()) && text.contains("No such file") {
            return Outcome::Absent;
        }
    }
    Outcome::Failed(error.into())
}

impl From<NvmlError> for Fault {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::LibloadingError(e) => Self::Unloadable(e.to_string()),
            NvmlError::DriverNotLoaded => Self::DriverNotLoaded,
            NvmlError::NoPermission => Self::NoPermission,
            NvmlError::LibRmVersionMismatch => Self::VersionMismatch,
            NvmlError::Unknown => Self::Unknown,
            other => Self::Other(other.to_string()),
        }
    }
}
