//! Where a process keeps what it knows.

use camino::{Utf8Path, Utf8PathBuf};

use crate::config::Config;
use crate::environment::Environment;

/// The data folder and the places in it. Made with mode 0700: ledger, keys and code lie here.
#[derive(Debug, Clone)]
pub struct DataDir {
    root: Utf8PathBuf,
    cache: Utf8PathBuf,
    models: Utf8PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("no data folder is known: give --data-dir, set store.data_dir, or set STATE_DIRECTORY or HOME")]
    Unknown,
    #[error("could not make the data folder {path}")]
    Make {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl DataDir {
    /// `given` on the command line, else `store.data_dir`, else the folder that systemd made for the service, else the
    /// user's state folder. Made when it is missing.
    ///
    /// The worker's workspaces and caches lie below it, also under systemd: `$CACHE_DIRECTORY` is not asked, since a cache
    /// that is cleared under a running worker takes its Runs with it. `agent.cache_dir` moves them.
    pub fn open(given: Option<&Utf8Path>, config: &Config, environment: &Environment) -> Result<Self, DataDirError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let root = given
            .map(Utf8Path::to_owned)
            .or_else(|| config.store.data_dir.clone())
            .or_else(|| environment.default_data_dir())
            .ok_or(DataDirError::Unknown)?;
        let make = |source| DataDirError::Make { path: root.clone(), source };
        let absolute = camino::absolute_utf8(&root).map_err(make)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&absolute).map_err(make)?;
        let cache = config.agent.cache_dir.clone().unwrap_or_else(|| absolute.join("cache"));
        let models = config.gateway.models_dir.clone().unwrap_or_else(|| absolute.join("models"));
        Ok(Self { root: absolute, cache, models })
    }

    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// Ledger and blobs.
    pub fn ledger(&self) -> Utf8PathBuf {
        self.root.join("ledger")
    }

    /// What the CLI on the same machine shows to the API.
    pub fn admin_key(&self) -> Utf8PathBuf {
        self.root.join("admin.key")
    }

    /// What secrets that people enter are sealed with.
    pub fn sealing_keys(&self) -> Utf8PathBuf {
        self.root.join("secrets.key")
    }

    pub fn worker_key(&self) -> Utf8PathBuf {
        self.root.join("worker.key")
    }

    /// The address that a running dashboard listens on, for the CLI.
    pub fn address(&self) -> Utf8PathBuf {
        self.root.join("address")
    }

    /// The address of its internal listener, where health is told; absent where one listener has it all.
    pub fn internal_address(&self) -> Utf8PathBuf {
        self.root.join("internal-address")
    }

    /// The socket of the inference process's admin API.
    pub fn inference_socket(&self) -> Utf8PathBuf {
        self.root.join("inference.sock")
    }

    /// What loads of models took, a line each.
    pub fn loads(&self) -> Utf8PathBuf {
        self.root.join("loads.jsonl")
    }

    /// Devices that get nothing until somebody acts.
    pub fn quarantine(&self) -> Utf8PathBuf {
        self.root.join("quarantine.json")
    }

    /// What models were used for.
    /// Between the supervisor of engines and the guard over the memory that they share with everybody.
    pub fn guard(&self) -> Utf8PathBuf {
        self.root.join("guard")
    }

    /// What was found of how models call tools.
    pub fn examined(&self) -> Utf8PathBuf {
        self.root.join("examined")
    }

    pub fn usage(&self) -> Utf8PathBuf {
        self.root.join("usage")
    }

    /// Records, keys and sockets of engines that run, and nothing else: what does not belong there is thrown away.
    pub fn engines(&self) -> Utf8PathBuf {
        self.root.join("engines")
    }

    pub fn engine_logs(&self) -> Utf8PathBuf {
        self.root.join("engine-logs")
    }

    /// The engines' home: kernels that one life compiled serve the next.
    pub fn engine_home(&self) -> Utf8PathBuf {
        self.cache.join("engines")
    }

    /// Weights that `fettle models add` brought here.
    pub fn models(&self) -> &Utf8Path {
        &self.models
    }

    /// The publisher's mirrors; never shared with a worker of another process.
    pub fn publisher_mirrors(&self) -> Utf8PathBuf {
        self.root.join("mirrors")
    }

    pub fn worker_mirrors(&self) -> Utf8PathBuf {
        self.cache.join("mirrors")
    }

    pub fn prepared(&self) -> Utf8PathBuf {
        self.cache.join("prepared")
    }

    pub fn bases(&self) -> Utf8PathBuf {
        self.cache.join("bases")
    }

    /// Folders of Runs, one level per process so that two processes never clear each other's.
    pub fn scratch(&self, process: &str) -> Utf8PathBuf {
        self.cache.join("runs").join(process)
    }
}
