//! Records added up, for people.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{End, ReadError, UsageReader, UsageRecord};

/// What requests are put together by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageBy {
    Model,
    /// A repository, where a Run asked; else who has the key.
    Owner,
    Run,
    /// An engine or a provider.
    Target,
}

/// What some requests have used together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// A model's, owner's, Run's or target's name; `-` where there is none.
    pub name: String,
    pub requests: u64,
    /// Of them, those that the target broke off or the caller gave up.
    pub unfinished: u64,
    /// With the cached ones.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    pub gpu_seconds: f64,
    pub joules: f64,
}

impl UsageReader {
    /// Of requests that ended at `since` or later, as far as records are kept; the largest users of GPU time first, then of
    /// tokens. Blocks, and reads all that is there.
    pub fn sums(&self, by: UsageBy, since: Timestamp) -> Result<Vec<Used>, ReadError> {
        let mut sums: BTreeMap<String, Used> = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.read(after.as_deref())?;
            for record in page.records.iter().filter(|record| record.ended_at >= since) {
                sums.entry(name(by, record)).or_default().add(record);
            }
            if !page.more {
                break;
            }
            after = Some(page.next);
        }
        let mut sums: Vec<Used> = sums.into_iter().map(|(name, used)| Used { name, ..used }).collect();
        let tokens = |used: &Used| used.prompt_tokens.saturating_add(used.output_tokens);
        sums.sort_by(|a, b| b.gpu_seconds.total_cmp(&a.gpu_seconds).then(tokens(b).cmp(&tokens(a))));
        Ok(sums)
    }
}

fn name(by: UsageBy, record: &UsageRecord) -> String {
    match by {
        UsageBy::Model => record.model.clone(),
        UsageBy::Owner => record.owner.clone(),
        UsageBy::Run => record.run.map_or_else(|| "-".to_owned(), |run| run.to_string()),
        UsageBy::Target => record.target.clone(),
    }
}

impl Used {
    fn add(&mut self, record: &UsageRecord) {
        self.requests += 1;
        self.unfinished += u64::from(record.end != End::Complete);
        self.prompt_tokens = self.prompt_tokens.saturating_add(record.prompt_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(record.cached_tokens);
        self.output_tokens = self.output_tokens.saturating_add(record.output_tokens);
        self.gpu_seconds += record.gpu_micros as f64 / 1e6;
        self.joules += record.millijoules as f64 / 1e3;
    }
}
