//! What each Run may still spend. The most that a request can take is set aside before it is sent and settled when it has
//! ended, so requests in parallel cannot spend the same tokens; what ends unseen has taken all that was set aside.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use fettle_app::run_token::{RunBudgets, RunClaims};
use fettle_domain::id::RunId;
use jiff::Timestamp;

/// Above it, Runs whose last token has expired are forgotten.
const MANY_RUNS: usize = 4_096;

/// Tokens, and money in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cost {
    pub(crate) tokens: u64,
    pub(crate) micros: u64,
}

/// The sentence names the budget that is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Spent {
    #[error("The run's budget of tokens does not cover this request.")]
    Tokens,
    #[error("The run's budget of GPU time is spent.")]
    GpuTime,
    #[error("The run's budget of money does not cover this request.")]
    Money,
}

#[derive(Debug, Default)]
pub(crate) struct Budgets {
    runs: Mutex<HashMap<RunId, Account>>,
}

#[derive(Debug, Clone, Copy)]
struct Account {
    spent: Cost,
    reserved: Cost,
    gpu_micros: u64,
    expires: Timestamp,
}

/// Set aside until it is settled; dropped, all of it is spent.
#[derive(Debug)]
pub(crate) struct Reservation {
    budgets: Arc<Budgets>,
    run: RunId,
    cost: Cost,
    settled: Option<Cost>,
}

impl Budgets {
    pub(crate) fn reserve(
        self: &Arc<Self>,
        claims: &RunClaims,
        most: Cost,
        now: Timestamp,
    ) -> Result<Reservation, Spent> {
        let mut runs = self.runs();
        if runs.len() >= MANY_RUNS {
            runs.retain(|_, account| account.expires > now || account.reserved != Cost::default());
        }
        let account = runs.entry(claims.run).or_insert(Account::new(claims.expires));
        account.expires = account.expires.max(claims.expires);
        account.check(&claims.budgets, most)?;
        account.reserved = plus(account.reserved, most);
        Ok(Reservation { budgets: Arc::clone(self), run: claims.run, cost: most, settled: None })
    }

    /// What was spent in an earlier life, or is known only afterwards. Kept until `expires` at least.
    pub(crate) fn add(&self, run: RunId, cost: Cost, gpu_micros: u64, expires: Timestamp) {
        let mut runs = self.runs();
        let account = runs.entry(run).or_insert(Account::new(expires));
        account.spent = plus(account.spent, cost);
        account.gpu_micros = account.gpu_micros.saturating_add(gpu_micros);
    }

    fn settle(&self, run: RunId, reserved: Cost, spent: Cost) {
        if let Some(account) = self.runs().get_mut(&run) {
            account.reserved.tokens = account.reserved.tokens.saturating_sub(reserved.tokens);
            account.reserved.micros = account.reserved.micros.saturating_sub(reserved.micros);
            account.spent = plus(account.spent, spent);
        }
    }

    fn runs(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Account>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    pub(crate) fn tokens(&self) -> u64 {
        self.cost.tokens
    }

    pub(crate) fn settle(mut self, spent: Cost) {
        self.settled = Some(spent);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budgets.settle(self.run, self.cost, self.settled.unwrap_or(self.cost));
    }
}

impl Account {
    fn new(expires: Timestamp) -> Self {
        Self { spent: Cost::default(), reserved: Cost::default(), gpu_micros: 0, expires }
    }

    fn check(&self, budgets: &RunBudgets, most: Cost) -> Result<(), Spent> {
        let taken = plus(plus(self.spent, self.reserved), most);
        if budgets.tokens.is_some_and(|limit| taken.tokens > limit) {
            return Err(Spent::Tokens);
        }
        if budgets.micros.is_some_and(|limit| taken.micros > limit) {
            return Err(Spent::Money);
        }
        if budgets.gpu_milliseconds.is_some_and(|limit| self.gpu_micros / 1_000 >= limit) {
            return Err(Spent::GpuTime);
        }
        Ok(())
    }
}

fn plus(one: Cost, other: Cost) -> Cost {
    Cost { tokens: one.tokens.saturating_add(other.tokens), micros: one.micros.saturating_add(other.micros) }
}

#[cfg(test)]
mod tests {
    use fettle_domain::id::JobId;
    use fettle_domain::lease::Fence;
    use fettle_placement::view::Class;
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn claims(budgets: RunBudgets) -> RunClaims {
        RunClaims {
            run: RunId::from_uuid(Uuid::from_u128(1)),
            job: JobId::from_uuid(Uuid::from_u128(2)),
            fence: Fence::new(1),
            models: Vec::new(),
            budgets,
            repository: "ada/engine".to_owned(),
            class: Class::Batch,
            expires: Timestamp::MAX,
        }
    }

    fn tokens(tokens: u64) -> Cost {
        Cost { tokens, micros: 0 }
    }

    fn of_tokens(limit: u64) -> RunClaims {
        claims(RunBudgets { tokens: Some(limit), ..RunBudgets::default() })
    }

    #[test]
    fn what_is_set_aside_is_not_there_for_others_until_it_is_settled() {
        let (budgets, run) = (Arc::new(Budgets::default()), of_tokens(100));
        let first = budgets.reserve(&run, tokens(80), NOW).unwrap();
        assert_eq!(budgets.reserve(&run, tokens(21), NOW).unwrap_err(), Spent::Tokens);
        first.settle(tokens(10));
        drop(budgets.reserve(&run, tokens(90), NOW).unwrap());
        assert_eq!(budgets.reserve(&run, tokens(1), NOW).unwrap_err(), Spent::Tokens, "what ended unseen is spent");
    }

    #[test]
    fn money_and_gpu_time_end_a_run_as_well() {
        let budgets = Arc::new(Budgets::default());
        let run = claims(RunBudgets { tokens: None, gpu_milliseconds: Some(5), micros: Some(1_000) });
        assert_eq!(budgets.reserve(&run, Cost { tokens: 1, micros: 1_001 }, NOW).unwrap_err(), Spent::Money);
        budgets.add(run.run, Cost::default(), 4_999, NOW);
        drop(budgets.reserve(&run, tokens(1), NOW).unwrap());
        budgets.add(run.run, Cost::default(), 1, NOW);
        assert_eq!(budgets.reserve(&run, tokens(1), NOW).unwrap_err(), Spent::GpuTime);
    }

    #[test]
    fn many_at_once_never_spend_more_than_there_is() {
        let (budgets, run) = (Arc::new(Budgets::default()), of_tokens(1_000));
        let spent: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|nth| {
                    let (budgets, run) = (&budgets, &run);
                    scope.spawn(move || {
                        let mut spent = 0;
                        for _ in 0..500 {
                            if let Ok(reservation) = budgets.reserve(run, tokens(7), NOW) {
                                let used = nth % 8;
                                reservation.settle(tokens(used));
                                spent += used;
                            }
                        }
                        spent
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(spent <= 1_000, "{spent}");
        let left = 1_000 - spent;
        assert_eq!(budgets.reserve(&run, tokens(left + 1), NOW).unwrap_err(), Spent::Tokens, "{left} are left");
        drop(budgets.reserve(&run, tokens(left), NOW).unwrap());
    }
}
