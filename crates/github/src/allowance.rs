//! How many requests a forge still takes this hour, by what it said last: what can wait leaves a share of them to what cannot.
//!
//! Nothing is counted here. Other programs may use the same credential, so only the forge knows.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use tokio::time::Instant;

/// Of the limit: kept for Tasks, which take some twenty requests each.
const RESERVED_PERCENT: u64 = 20;
/// The limit starts anew each hour; a longer wait is a broken header.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Whose requests are counted together: an installation's, or those of the configured token.
pub(crate) type Owner = Option<u64>;

#[derive(Default)]
pub(crate) struct Allowances(Mutex<HashMap<Owner, Allowance>>);

#[derive(Clone, Copy)]
struct Allowance {
    limit: u64,
    remaining: u64,
    anew_at: Instant,
}

impl Allowances {
    /// How long something that can wait has to. `None`: not at all, as far as we know.
    pub(crate) fn wait(&self, owner: Owner) -> Option<Duration> {
        let allowance = self.all().get(&owner).copied()?;
        let left = allowance.anew_at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        (allowance.remaining * 100 <= allowance.limit * RESERVED_PERCENT).then_some(left)
    }

    /// An answer that says nothing, or not when it begins anew, changes nothing.
    pub(crate) fn note(&self, owner: Owner, headers: &HeaderMap, now: Option<Timestamp>) {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let told = || {
            let reset = i64::try_from(number("x-ratelimit-reset")?).ok()?;
            let left = Timestamp::from_second(reset).ok()?.duration_since(now?);
            let left = Duration::try_from(left).unwrap_or(Duration::ZERO).min(LONGEST_WAIT);
            Some((number("x-ratelimit-limit")?, number("x-ratelimit-remaining")?, left))
        };
        if let Some((limit, remaining, left)) = told() {
            self.all().insert(owner, Allowance { limit, remaining, anew_at: Instant::now() + left });
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Owner, Allowance>> {
        self.0.lock().expect("no holder of the allowances panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(remaining: u64, reset: i64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-ratelimit-limit", 5000), ("x-ratelimit-remaining", remaining), ("x-ratelimit-reset", reset as u64)]
        {
            headers.insert(name, value.into());
        }
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_wait_waits_for_the_next_hour_once_the_reserve_is_reached() {
        let (allowances, now) = (Allowances::default(), Timestamp::from_second(1_700_000_000).unwrap());
        assert_eq!(allowances.wait(Some(1)), None, "nothing is known");
        allowances.note(Some(1), &headers(1001, 1_700_000_600), Some(now));
        assert_eq!(allowances.wait(Some(1)), None);
        allowances.note(Some(1), &headers(1000, 1_700_000_600), Some(now));
        assert_eq!(allowances.wait(Some(1)), Some(Duration::from_secs(600)));
        assert_eq!(allowances.wait(None), None, "another owner has its own");
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(allowances.wait(Some(1)), None, "it has begun anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_cannot_be_is_not_believed() {
        let (allowances, now) = (Allowances::default(), Timestamp::from_second(1_700_000_000).unwrap());
        allowances.note(None, &headers(0, 1_800_000_000), Some(now));
        assert_eq!(allowances.wait(None), Some(LONGEST_WAIT));
        let silent = Allowances::default();
        silent.note(None, &headers(0, 1_700_000_600), None);
        silent.note(None, &HeaderMap::new(), Some(now));
        assert_eq!(silent.wait(None), None);
    }
}
