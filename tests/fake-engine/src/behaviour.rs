//! How a fake engine behaves, as a file beside its name.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// From its start until it takes requests.
    pub load_ms: u64,
    pub gpu: Option<Gpu>,
    /// Processes beside the first, as tensor-parallel ranks are. Each holds as much of the GPU.
    pub workers: u32,
    pub faults: Vec<Fault>,
    /// Said in turn, the last one again and again; with none it repeats what it was told.
    pub answers: Vec<String>,
    /// Between two words of a streamed answer, and before an unstreamed one for each of its words.
    pub word_ms: u64,
    /// Requests to a model that are answered before it crashes, with [`Fault::Crash`].
    pub answered_before_crash: u64,
    /// Tokens that it says its cache holds; 0: as many as it is asked to hold.
    pub kv_tokens: u64,
}

/// Memory in the state of `fettle-fake-nvml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The folder of the installed library.
    pub nvml: PathBuf,
    pub uuid: String,
    /// Of each process.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Ends in the middle of its load, saying so.
    OutOfMemory,
    BadModel,
    Driver,
    /// Stops loading and does nothing more.
    Stall,
    /// Is well, and never answers.
    Mute,
    /// What it held stays used when it ends properly, and is nobody's.
    Leak,
    /// Its workers go on after it.
    OrphanedWorkers,
    /// Its workers have sessions of their own.
    DetachedWorkers,
    /// Its workers have an empty environment.
    HidingWorkers,
    IgnoreTerm,
    /// Is killed by a signal while it serves.
    Crash,
}

impl Behaviour {
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    pub(crate) fn file(program: &str) -> PathBuf {
        PathBuf::from(format!("{program}.json"))
    }

    pub(crate) fn beside(program: &str) -> io::Result<Self> {
        Self::read(&Self::file(program))
    }

    /// The default where there is no file.
    pub(crate) fn read(file: &Path) -> io::Result<Self> {
        match fs_err::read(file) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e),
        }
    }
}

/// A fake engine called `name` in `folder`, which behaves so. `built` is the program. Gives its path.
pub fn link(built: &Path, folder: &Path, name: &str, behaviour: &Behaviour) -> io::Result<PathBuf> {
    let program = folder.join(name);
    fs_err::write(Behaviour::file(&program.to_string_lossy()), serde_json::to_vec(behaviour)?)?;
    if !program.exists() {
        symlink(built, &program)?;
    }
    Ok(program)
}
