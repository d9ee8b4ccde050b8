//! What the host is told once: where things are, which programs there are, how long it waits. Reads no file and no environment.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::EngineKind;

#[derive(Debug, Clone)]
pub struct Settings {
    /// Records, keys and sockets, one folder an engine; made 0700. Must not outlive the boot of the machine for nothing: a
    /// record of an earlier boot is thrown away.
    pub folder: Utf8PathBuf,
    /// One file an engine and its older half.
    pub logs: Utf8PathBuf,
    /// The engines' home: kernels that one life compiled serve the next.
    pub cache: Utf8PathBuf,
    /// The program `fettle-engine-keeper`.
    pub keeper: Utf8PathBuf,
    pub launcher: Launcher,
    /// The environment of this process. What engines get of it is a short list, see [`INHERITED`].
    pub environment: BTreeMap<String, String>,
    pub programs: Programs,
    pub limits: Limits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launcher {
    /// Engines are children and end with this process, however it ends.
    Direct,
    /// Each engine is a unit `fettle-engine@<name>` and outlives this process. The unit must look for its order in
    /// [`Settings::folder`].
    Systemd {
        /// The program.
        systemctl: Utf8PathBuf,
    },
}

/// Names that engines inherit; everything else, keys of providers above all, stays here.
pub const INHERITED: &[&str] =
    &["CUDA_HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "NIX_LD", "NIX_LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ"];

/// The engines of this machine. `None`: recipes for it cannot be started.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    pub llama_server: Option<LlamaServer>,
    pub vllm: Option<Program>,
    pub sglang: Option<Program>,
    pub ollama: Option<Program>,
    pub command: Option<Command>,
}

impl Programs {
    /// What is executed for an engine of that kind.
    pub fn of(&self, kind: EngineKind) -> Option<&Utf8Path> {
        let program = match kind {
            EngineKind::LlamaServer => &self.llama_server.as_ref()?.program,
            EngineKind::Vllm => self.vllm.as_ref()?,
            EngineKind::Sglang => self.sglang.as_ref()?,
            EngineKind::Ollama => self.ollama.as_ref()?,
            EngineKind::Command => return self.command.as_ref()?.argv.first().map(Utf8Path::new),
        };
        Some(&program.program)
    }
}

#[derive(Debug, Clone)]
pub struct Program {
    pub program: Utf8PathBuf,
    /// Added to what the driver says, before the recipe's own flags. What the planner dictates is refused here.
    pub args: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct LlamaServer {
    pub program: Program,
    /// Prompts that it keeps in host memory. No footprint counts them, so the default is none.
    pub cache_ram: Bytes,
}

/// Any server that speaks OpenAI's protocol.
#[derive(Debug, Clone)]
pub struct Command {
    /// `{socket} {port} {model} {devices} {claim_bytes} {ctx} {parallel}` stand for what the planner dictates. With `{socket}`
    /// it listens there, else on `{port}` of loopback.
    pub argv: Vec<String>,
    /// Answers with success when requests are taken.
    pub health: String,
    pub answers: Answers,
}

/// What an engine is asked to see whether it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    Chat,
    Embeddings,
}

#[derive(Debug, Clone)]
pub struct Limits {
    /// From the order to the first process.
    pub spawn: Millis,
    /// Without a byte of log, of files, or of memory while it loads.
    pub stall: Millis,
    /// From asking politely to killing.
    pub grace: Millis,
    /// Between two looks at an engine that loads or stops.
    pub look: Millis,
    /// Between two looks at one that serves.
    pub look_ready: Millis,
    /// Between two sweeps for orphans.
    pub sweep: Millis,
    /// For the one token. A first request compiles kernels.
    pub token: Millis,
    /// Of a log file; there are two of them an engine.
    pub log: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            spawn: Millis::secs(30),
            stall: Millis::secs(120),
            grace: Millis::secs(10),
            look: Millis::new(200),
            look_ready: Millis::secs(1),
            sweep: Millis::secs(30),
            token: Millis::secs(180),
            log: Bytes::mib(8),
        }
    }
}
