//! What each request has used, as records on disk that the ledger pulls by cursor. A record is written once, with an id, so
//! whoever pulls may pull again.

mod accounts;
mod store;
mod sums;

pub(crate) use accounts::{Accounts, OpenAccount};
pub(crate) use store::Store;
pub use store::{Page, ReadError, UsageReader};
pub use sums::{UsageBy, Used};

use fettle_domain::id::RunId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One request that was sent to a target, as a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// UUID v7.
    pub id: Uuid,
    pub ended_at: Timestamp,
    pub request: String,
    pub correlation: String,
    pub owner: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub run: Option<RunId>,
    /// As the caller named it.
    pub model: String,
    /// An engine's or a provider's name.
    pub target: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub recipe: Option<String>,
    pub end: End,
    pub attempts: u32,
    /// `cached` is part of `prompt`.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// The target did not say what it used: counted here.
    pub estimated: bool,
    pub queue_ms: u64,
    /// `None`: no byte came.
    pub first_byte_ms: Option<u64>,
    /// From arrival to the last byte.
    pub total_ms: u64,
    pub gpu_micros: u64,
    pub millijoules: u64,
    /// Millionths of the currency that prices are configured in.
    pub cost_micros: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Complete,
    /// The target broke off.
    Failed,
    /// The caller hung up.
    Cancelled,
}
