//! How often an address, or somebody about an account, may try.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::problem::{Code, Problem};

/// Tries of one key within a window.
const WINDOW: Duration = Duration::from_secs(60);
/// Of one address: an office behind one address signs in in the morning.
pub(crate) const PER_ADDRESS: u32 = 60;
/// About one account from one address: a person does not type faster. From elsewhere others may try; the account's own lock counts
/// these, and keeps no familiar address out.
pub(crate) const PER_ACCOUNT: u32 = 10;
/// Keys that are remembered, some 100 bytes each. Beyond them all are forgotten: lock-out still holds then.
const MAX_KEYS: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Limits(Mutex<HashMap<String, (Instant, u32)>>);

impl Limits {
    /// Counts a try.
    pub(crate) fn take(&self, key: String, most: u32) -> Result<(), Problem> {
        let now = Instant::now();
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tries.len() >= MAX_KEYS {
            tries.retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
            if tries.len() >= MAX_KEYS {
                tries.clear();
            }
        }
        let (since, count) = tries.entry(key).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        if *count <= most {
            return Ok(());
        }
        let wait = WINDOW.saturating_sub(now.duration_since(*since));
        Err(Problem::new(Code::TooMany, "Too many tries. Wait a little.").retry_after(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_window_holds_so_many_tries_of_each_key() {
        let limits = Limits::default();
        let take = |key: &str| limits.take(key.to_owned(), 2).is_ok();
        assert_eq!([take("a"), take("a"), take("a"), take("b")], [true, true, false, true]);
        tokio::time::advance(WINDOW).await;
        assert!(take("a"));
        for number in 0..3 * MAX_KEYS {
            assert!(take(&number.to_string()));
        }
        assert!(limits.0.lock().unwrap().len() <= MAX_KEYS);
    }
}
