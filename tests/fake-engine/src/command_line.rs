//! What an engine is told by its arguments and environment, each kind in its own way. A flag that the kind does not know is
//! refused, as the real ones do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    LlamaServer,
    Vllm,
    Sglang,
    Ollama,
    Plain,
}

#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) kind: Kind,
    pub(crate) at: At,
    pub(crate) key: Option<String>,
    pub(crate) model: String,
    /// Tokens of one sequence, and how many of those at once.
    pub(crate) ctx: u64,
    pub(crate) parallel: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum At {
    Socket(PathBuf),
    Port(SocketAddr),
}

impl Kind {
    pub(crate) fn of(program: &str) -> Self {
        match program.rsplit('/').next() {
            Some("llama-server") => Self::LlamaServer,
            Some("vllm") => Self::Vllm,
            Some("sglang") => Self::Sglang,
            Some("ollama") => Self::Ollama,
            _ => Self::Plain,
        }
    }

    /// Flags with a value, and flags without.
    fn flags(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::LlamaServer => (
                &[
                    "--model",
                    "--alias",
                    "--ctx-size",
                    "--parallel",
                    "--cache-type-k",
                    "--cache-type-v",
                    "--batch-size",
                    "--ubatch-size",
                    "--fit",
                    "--cache-ram",
                    "--host",
                    "--api-key-file",
                    "--flash-attn",
                    "--gpu-layers",
                    "--split-mode",
                    "--tensor-split",
                    "--device",
                    "--threads",
                    "--lora",
                ],
                &["--no-kv-unified", "--offline", "--metrics", "--embeddings", "--embedding", "--jinja"],
            ),
            Self::Vllm => (
                &[
                    "--served-model-name",
                    "--gpu-memory-utilization",
                    "--max-model-len",
                    "--max-num-seqs",
                    "--max-num-batched-tokens",
                    "--tensor-parallel-size",
                    "--kv-cache-dtype",
                    "--uds",
                    "--runner",
                    "--tool-call-parser",
                    "--dtype",
                ],
                &["--enable-sleep-mode", "--enable-auto-tool-choice", "--enforce-eager"],
            ),
            Self::Sglang => (
                &[
                    "--config",
                    "--model-path",
                    "--served-model-name",
                    "--mem-fraction-static",
                    "--max-total-tokens",
                    "--context-length",
                    "--max-running-requests",
                    "--tp",
                    "--kv-cache-dtype",
                    "--host",
                    "--port",
                ],
                &["--enable-metrics", "--is-embedding", "--disable-cuda-graph"],
            ),
            Self::Ollama => (&[], &[]),
            Self::Plain => (&["--socket", "--port", "--key", "--model", "--ctx", "--parallel", "--devices"], &[]),
        }
    }
}

impl Order {
    /// The error is the argument that is not understood.
    pub(crate) fn read(kind: Kind, arguments: &[String], environment: &[(String, String)]) -> Result<Self, String> {
        let (valued, bare) = kind.flags();
        let mut values: BTreeMap<&str, &str> = BTreeMap::new();
        let mut places: Vec<&str> = Vec::new();
        let mut rest = arguments.iter().map(String::as_str);
        while let Some(argument) = rest.next() {
            let (name, joined) = argument.split_once('=').map_or((argument, None), |(name, value)| (name, Some(value)));
            if valued.contains(&name) {
                values.insert(name, joined.or_else(|| rest.next()).ok_or(name)?);
            } else if argument.starts_with("--") && !bare.contains(&argument) {
                return Err(argument.to_owned());
            } else if !argument.starts_with("--") {
                places.push(argument);
            }
        }
        let variable = |name: &str| environment.iter().find(|(one, _)| one == name).map(|(_, value)| value.clone());
        let number = |name: &str| values.get(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(1);
        let text = |name: &str| values.get(name).map(|value| (*value).to_owned());
        let port = |text: &str| {
            text.parse().map(|port: u16| At::Port(([127, 0, 0, 1], port).into())).map_err(|_| text.to_owned())
        };
        let of_variable = |name: &str| variable(name).and_then(|value| value.parse().ok()).unwrap_or(1);
        match kind {
            Kind::LlamaServer => {
                let parallel = number("--parallel");
                let key = text("--api-key-file").and_then(|file| fs_err::read_to_string(file).ok());
                Ok(Self {
                    kind,
                    at: At::Socket(text("--host").ok_or("--host")?.into()),
                    key: key.map(|key| key.trim().to_owned()),
                    model: text("--alias").ok_or("--alias")?,
                    ctx: number("--ctx-size") / parallel,
                    parallel,
                })
            }
            Kind::Vllm => Ok(Self {
                kind,
                at: At::Socket(text("--uds").ok_or("--uds")?.into()),
                key: variable("VLLM_API_KEY"),
                model: text("--served-model-name")
                    .or_else(|| places.get(1).map(|&model| model.to_owned()))
                    .ok_or("model")?,
                ctx: number("--max-model-len"),
                parallel: number("--max-num-seqs"),
            }),
            Kind::Sglang => {
                let config = text("--config").and_then(|file| fs_err::read_to_string(file).ok()).unwrap_or_default();
                Ok(Self {
                    kind,
                    at: port(values.get("--port").copied().unwrap_or("30000"))?,
                    key: config.lines().find_map(|line| line.strip_prefix("api-key: ").map(str::to_owned)),
                    model: text("--served-model-name").ok_or("--served-model-name")?,
                    ctx: number("--context-length"),
                    parallel: number("--max-running-requests"),
                })
            }
            Kind::Ollama => {
                let host = variable("OLLAMA_HOST").ok_or("OLLAMA_HOST")?;
                Ok(Self {
                    kind,
                    at: At::Port(host.parse().map_err(|_| host)?),
                    key: None,
                    model: String::new(),
                    ctx: of_variable("OLLAMA_CONTEXT_LENGTH"),
                    parallel: of_variable("OLLAMA_NUM_PARALLEL"),
                })
            }
            Kind::Plain => Ok(Self {
                kind,
                at: match text("--socket") {
                    Some(path) => At::Socket(path.into()),
                    None => port(values.get("--port").ok_or("--port")?)?,
                },
                key: text("--key").or_else(|| variable("FETTLE_ENGINE_KEY")),
                model: text("--model").unwrap_or_default(),
                ctx: number("--ctx"),
                parallel: number("--parallel"),
            }),
        }
    }

    pub(crate) fn kv_tokens(&self) -> u64 {
        self.ctx * self.parallel
    }
}
