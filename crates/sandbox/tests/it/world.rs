//! What the tests share: a workspace, a sandbox per level, and a look at what is left over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::{
    Access, CommandEnd, Network, Sandbox, SandboxCommand, SandboxError, SandboxLevel, SandboxLimits, SandboxOutput,
};
use fettle_sandbox::{ProcessSandbox, SandboxOptions};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Generous: only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) level: SandboxLevel,
    pub(crate) sandbox: ProcessSandbox,
    pub(crate) workspace: Utf8PathBuf,
    /// Beside the workspace, of no business to a command.
    pub(crate) outside: Utf8PathBuf,
    /// Occurs in the command line of the processes of this world and nowhere else.
    pub(crate) marker: String,
    _root: TempDir,
}

pub(crate) fn options(level: SandboxLevel, scratch: Utf8PathBuf) -> SandboxOptions {
    SandboxOptions { helper: env!("CARGO_BIN_EXE_fettle-sandbox").into(), min_level: level, max_level: level, scratch }
}

/// One world per level of this host.
pub(crate) async fn worlds() -> Vec<World> {
    let mut worlds = Vec::new();
    for level in [SandboxLevel::Full, SandboxLevel::Landlock] {
        worlds.extend(world(level).await);
    }
    assert!(!worlds.is_empty(), "no sandbox level works on this host");
    worlds
}

/// `None`, with a line on the output, where the host does not allow the level.
pub(crate) async fn world(level: SandboxLevel) -> Option<World> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let root = TempDir::new().unwrap();
    let path = Utf8Path::from_path(root.path()).unwrap().canonicalize_utf8().unwrap();
    let [workspace, outside] = ["workspace", "outside"].map(|name| path.join(name));
    fs_err::create_dir(&workspace).unwrap();
    fs_err::create_dir(&outside).unwrap();
    let marker = format!("marker-{}-{}-end", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    match ProcessSandbox::probe(options(level, path.join("scratch"))).await {
        Ok(sandbox) => Some(World { level, sandbox, workspace, outside, marker, _root: root }),
        Err(SandboxError::Unavailable(why)) => {
            println!("SKIPPED at level {}: {why}", level.name());
            None
        }
        Err(error) => panic!("the probe failed: {error:?}"),
    }
}

pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// Whether the host has the interpreter in a place that a sandbox sees; says so if not.
pub(crate) fn has_python() -> bool {
    let found = Utf8Path::new(PYTHON).exists();
    if !found {
        println!("SKIPPED: {PYTHON} is missing");
    }
    found
}

impl World {
    pub(crate) fn shell(&self, script: &str) -> SandboxCommand {
        self.command(&["sh", "-c", script, &self.marker])
    }

    pub(crate) fn command(&self, argv: &[&str]) -> SandboxCommand {
        SandboxCommand {
            argv: argv.iter().map(|&a| a.to_owned()).collect(),
            workspace: self.workspace.clone(),
            workspace_access: Access::ReadWrite,
            cwd: Utf8PathBuf::new(),
            mounts: Vec::new(),
            env: BTreeMap::from([("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())]),
            network: Network::None,
            limits: SandboxLimits { time: PATIENCE, ..SandboxLimits::default() },
        }
    }

    pub(crate) async fn run(&self, command: &SandboxCommand) -> SandboxOutput {
        let output = self.sandbox.run(command, &CancellationToken::new()).await;
        output.unwrap_or_else(|e| panic!("at level {}: {e:?}", self.level.name()))
    }

    /// Runs a script that must succeed; gives its output.
    pub(crate) async fn succeed(&self, script: &str) -> String {
        let output = self.run(&self.shell(script)).await;
        let text = String::from_utf8_lossy(&output.output).into_owned();
        assert_eq!(output.end, CommandEnd::Exited(0), "at level {}: {text}", self.level.name());
        text
    }

    /// Runs a script that must fail by itself.
    pub(crate) async fn fail(&self, script: &str) {
        let output = self.run(&self.shell(script)).await;
        let text = String::from_utf8_lossy(&output.output);
        assert!(
            matches!(output.end, CommandEnd::Exited(code) if code != 0),
            "at level {}: {:?} {text}",
            self.level.name(),
            output.end
        );
    }

    /// Command lines of this world's processes that are still alive.
    pub(crate) fn survivors(&self) -> Vec<String> {
        let processes = fs_err::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|process| fs_err::read(process.path().join("cmdline")).ok());
        lines
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&self.marker))
            .collect()
    }

    /// Waits until `condition` holds.
    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let polling = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, polling).await.is_ok(), "at level {}: never {what}", self.level.name());
    }

    pub(crate) async fn until_started(&self) {
        let file = self.workspace.join("started");
        self.until("started", || file.exists()).await;
    }
}
