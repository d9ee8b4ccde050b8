//! What an operator chooses of the gateway. Secrets are here as values; who reads files and durations is the composition root.

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_app::run_token::RunTokenKey;
use fettle_placement::id::OwnerId;
use fettle_placement::view::Class;
use secrecy::SecretString;

/// Requests that wait for one model. More would wait longer than their callers do.
const QUEUE_PER_MODEL: usize = 512;
/// SDKs give up after 600 s; whoever is held for half of that can still be answered.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Engines keep about 94 % of the prefixes that come again within it.
const STICKY_TTL: Duration = Duration::from_secs(600);
/// Most providers allow no more at once, and all of them say so with 429.
const PROVIDER_PARALLEL: u32 = 64;

/// Eight requests of the largest size, or a thousand conversations of agents. Each may be in memory twice while it is translated.
const MOST_BODY_BYTES: usize = 256 << 20;

pub struct Settings {
    pub keys: Vec<StaticKey>,
    /// What the dashboard signs run tokens with. `None`: there are none.
    pub run_token_key: Option<RunTokenKey>,
    /// Whom requests without any key come from. `None`: they are refused.
    pub without_key: Option<OwnerId>,
    /// Profiles and aliases: what a name stands for, in order of preference. Members are models of this machine or
    /// `provider/model`, never other names.
    pub names: BTreeMap<String, Vec<String>>,
    pub providers: Vec<Provider>,
    pub queue: Queue,
    pub sticky_ttl: Duration,
    pub timeouts: Timeouts,
    /// Of all requests together that wait for an answer to begin.
    pub most_body_bytes: usize,
    /// A folder of the gateway's own.
    pub usage_folder: Utf8PathBuf,
}

impl Settings {
    /// Only the models of this machine, and nobody may ask yet.
    pub fn new(usage_folder: Utf8PathBuf) -> Self {
        Self {
            keys: Vec::new(),
            run_token_key: None,
            without_key: None,
            names: BTreeMap::new(),
            providers: Vec::new(),
            queue: Queue::default(),
            sticky_ttl: STICKY_TTL,
            timeouts: Timeouts::default(),
            most_body_bytes: MOST_BODY_BYTES,
            usage_folder,
        }
    }
}

#[derive(Debug)]
pub struct StaticKey {
    pub key: SecretString,
    /// Whom its requests are counted for.
    pub owner: OwnerId,
    pub class: Class,
    /// Names as requests give them. `None`: all.
    pub models: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy)]
pub struct Queue {
    pub per_model: usize,
    pub max_wait: Duration,
    /// Tokens of interactive requests for each one of batch.
    pub interactive_weight: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self { per_model: QUEUE_PER_MODEL, max_wait: MAX_WAIT, interactive_weight: 8 }
    }
}

#[derive(Debug, Clone)]
pub struct Provider {
    /// Before the slash in `provider/model`; without a slash.
    pub name: String,
    pub kind: ProviderKind,
    /// The server's root; a `/v1` at its end is left out. `None`: the provider's own, where the kind has one.
    pub base_url: Option<String>,
    pub api_key: Option<SecretString>,
    /// Those that can be asked for, with what they cost; the account may have others, which nobody here chose to pay for.
    pub models: Vec<ProviderModel>,
    /// Requests at once.
    pub parallel: u32,
}

impl Provider {
    pub fn new(name: impl Into<String>, kind: ProviderKind) -> Self {
        Self { name: name.into(), kind, base_url: None, api_key: None, models: Vec::new(), parallel: PROVIDER_PARALLEL }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    OpenAi,
    Anthropic,
    Google,
    Ollama,
    OpenAiCompatible,
}

impl ProviderKind {
    pub(crate) const fn root(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("https://api.openai.com"),
            Self::Anthropic => Some("https://api.anthropic.com"),
            Self::Google => Some("https://generativelanguage.googleapis.com"),
            Self::Ollama => Some("http://127.0.0.1:11434"),
            Self::OpenAiCompatible => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderModel {
    pub name: String,
    pub context_tokens: Option<u64>,
    pub price: Option<Price>,
}

/// Millionths of the currency for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    pub prompt: u64,
    /// Of the part of a prompt that the provider remembered.
    pub cached: u64,
    pub output: u64,
}

impl Price {
    /// In millionths of the currency, rounded up.
    pub(crate) fn of(&self, prompt: u64, cached: u64, output: u64) -> u64 {
        let cached = cached.min(prompt);
        let sum = u128::from(prompt - cached) * u128::from(self.prompt)
            + u128::from(cached) * u128::from(self.cached)
            + u128::from(output) * u128::from(self.output);
        u64::try_from(sum.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    pub connect_local: Duration,
    pub connect_remote: Duration,
    /// Of a streamed answer: a long prompt on a busy engine begins late.
    pub first_byte_local: Duration,
    pub first_byte_remote: Duration,
    /// An answer that is not streamed comes when all of it is there; SDKs wait for so long.
    pub whole_answer: Duration,
    pub between_chunks: Duration,
    /// A caller that takes nothing more of its answer is gone, or keeps others from the model.
    pub unread: Duration,
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect_local: Duration::from_secs(2),
            connect_remote: Duration::from_secs(5),
            first_byte_local: Duration::from_secs(300),
            first_byte_remote: Duration::from_secs(120),
            whole_answer: Duration::from_secs(600),
            between_chunks: Duration::from_secs(120),
            unread: Duration::from_secs(30),
            total: Duration::from_secs(60 * 60),
        }
    }
}

/// Why the gateway cannot be set up: the operator's turn.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("two providers are called {name}")]
    ProviderTwice { name: String },
    #[error("the provider name `{name}` is empty or has a slash")]
    ProviderName { name: String },
    #[error(
        "the base_url of provider {name} must be an http or https URL without user name, password, query and fragment"
    )]
    BaseUrl { name: String },
    #[error("the API key of provider {name} holds characters that cannot be sent")]
    ApiKey { name: String },
    #[error("the certificates of this machine cannot be read")]
    Certificates(#[source] fettle_app::ports::BoxError),
    #[error("a metric is registered twice")]
    Metrics(#[source] prometheus::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_rounded_up_once() {
        let price = Price { prompt: 3_000_000, cached: 300_000, output: 15_000_000 };
        assert_eq!(price.of(1_000, 400, 10), 600 * 3 + 120 + 150);
        assert_eq!(price.of(1, 1, 0), 1);
    }
}
