//! The endpoint for all callers of models: OpenAI's, Anthropic's and Ollama's API in front of local engines and providers.
//!
//! It decides who may ask, who is served where and who waits, and counts what was used. What is local it is told
//! ([`fettle_app::ports::serving::Supply`]); it starts and stops no engine and knows no GPU. What the APIs look like is
//! `fettle-protocols`' matter. Prompts, answers and keys are never logged.

mod access;
mod bodies;
mod breaker;
mod budgets;
mod carrier;
mod desk;
mod endpoint;
mod floor;
mod front;
mod gateway;
mod line;
mod metrics;
mod names;
mod passage;
mod providers;
mod relay;
mod retry;
mod routing;
mod settings;
mod speed;
mod split;
mod sticky;
mod thread;
mod upstream;
mod usage;

pub use gateway::{Gateway, Parts, Told};
pub use providers::{Providers, Served};
pub use settings::{Price, Provider, ProviderKind, ProviderModel, Queue, Settings, SettingsError, StaticKey, Timeouts};
pub use usage::{End, Page, ReadError, UsageBy, UsageReader, UsageRecord, Used};
