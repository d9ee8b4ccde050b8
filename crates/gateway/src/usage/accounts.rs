//! Requests at work and what of their engine's time and energy is theirs. Each time the meters are read, what an engine used
//! since is divided over the requests that were there, by the tokens they got done; without requests it is idle.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fettle_app::ports::serving::EngineMeter;
use fettle_placement::id::{EngineId, Epoch};
use tokio::time::Instant;

use super::UsageRecord;
use crate::split::split;

/// A request that has ended waits for the next reading of its engine's meters for so long; they are read each second.
const LAST_SHARE: Duration = Duration::from_secs(5);

type Life = (EngineId, Epoch);

#[derive(Debug, Default)]
pub(crate) struct Accounts {
    engines: BTreeMap<Life, Book>,
    open: HashMap<u64, Account>,
    next: u64,
}

/// A request's place in the books.
#[derive(Debug)]
pub(crate) struct OpenAccount {
    id: u64,
    work: Arc<AtomicU64>,
}

impl OpenAccount {
    /// Tokens that were got done since the last time.
    pub(crate) fn add(&self, tokens: u64) {
        self.work.fetch_add(tokens, Ordering::Relaxed);
    }

    pub(crate) fn work(&self) -> u64 {
        self.work.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Book {
    busy_micros: u64,
    millijoules: Option<u64>,
    idle_micros: u64,
    idle_millijoules: u64,
}

#[derive(Debug)]
struct Account {
    engine: Option<Life>,
    work: Arc<AtomicU64>,
    divided: u64,
    gpu_micros: u64,
    millijoules: u64,
    ended: Option<(Box<UsageRecord>, Instant)>,
}

impl Accounts {
    /// `engine`: `None` for a provider, whose devices are not ours.
    pub(crate) fn begin(&mut self, engine: Option<Life>) -> OpenAccount {
        let (id, work) = (self.next, Arc::new(AtomicU64::new(0)));
        self.next += 1;
        let shared = Arc::clone(&work);
        let account = Account { engine, work: shared, divided: 0, gpu_micros: 0, millijoules: 0, ended: None };
        self.open.insert(id, account);
        OpenAccount { id, work }
    }

    /// An attempt that came to nothing: what it has taken of its engine is nobody's.
    pub(crate) fn forget(&mut self, account: &OpenAccount) {
        let Some(open) = self.open.remove(&account.id) else { return };
        if let Some(book) = open.engine.as_ref().and_then(|engine| self.engines.get_mut(engine)) {
            book.idle_micros += open.gpu_micros;
            book.idle_millijoules += open.millijoules;
        }
    }

    /// The record, if nothing more is to come for it; else it comes out of [`Accounts::measure`].
    pub(crate) fn end(&mut self, account: &OpenAccount, record: UsageRecord, now: Instant) -> Option<UsageRecord> {
        let metered = |one: &Account| one.engine.as_ref().is_some_and(|engine| self.engines.contains_key(engine));
        match self.open.get_mut(&account.id) {
            Some(open) if metered(open) => {
                open.ended = Some((Box::new(record), now));
                None
            }
            _ => {
                self.open.remove(&account.id);
                Some(record)
            }
        }
    }

    /// Divides what was used since the last reading, and gives the records that are complete with it.
    pub(crate) fn measure(&mut self, meters: &[EngineMeter], now: Instant) -> Vec<UsageRecord> {
        for meter in meters {
            self.divide(meter);
        }
        self.engines.retain(|life, _| meters.iter().any(|meter| (&meter.engine, &meter.epoch) == (&life.0, &life.1)));
        let fresh = |one: &Account| one.work.load(Ordering::Relaxed) > one.divided;
        let complete: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, one)| {
                let metered = one.engine.as_ref().is_some_and(|life| self.engines.contains_key(life));
                one.ended
                    .as_ref()
                    .is_some_and(|(_, at)| !metered || !fresh(one) || now.saturating_duration_since(*at) >= LAST_SHARE)
            })
            .map(|(id, _)| *id)
            .collect();
        let mut records: Vec<UsageRecord> = complete.iter().filter_map(|id| self.open.remove(id)?.close()).collect();
        records.sort_by_key(|record| record.ended_at);
        records
    }

    /// The records of all that have ended, with the shares they have so far.
    pub(crate) fn close_all(&mut self) -> Vec<UsageRecord> {
        let ended: Vec<u64> = self.open.iter().filter(|(_, one)| one.ended.is_some()).map(|(id, _)| *id).collect();
        ended.into_iter().filter_map(|id| self.open.remove(&id)?.close()).collect()
    }

    /// Micro-seconds and millijoules of an engine that no request bears.
    #[cfg(test)]
    fn idle(&self, engine: &Life) -> (u64, u64) {
        self.engines.get(engine).map_or((0, 0), |book| (book.idle_micros, book.idle_millijoules))
    }

    fn divide(&mut self, meter: &EngineMeter) {
        let life = (meter.engine.clone(), meter.epoch);
        let busy = u64::try_from(meter.busy.as_micros()).unwrap_or(u64::MAX);
        let Some(book) = self.engines.get_mut(&life) else {
            // What it used before anybody looked is nobody's.
            let book = Book { busy_micros: busy, millijoules: meter.millijoules, ..Book::default() };
            self.engines.insert(life, book);
            return;
        };
        let micros = busy.saturating_sub(book.busy_micros);
        let millijoules = match (meter.millijoules, book.millijoules) {
            (Some(now), Some(before)) => now.saturating_sub(before),
            _ => 0,
        };
        if micros == 0 && millijoules == 0 {
            return;
        }
        (book.busy_micros, book.millijoules) = (busy.max(book.busy_micros), meter.millijoules.or(book.millijoules));
        let mut there: Vec<(&u64, &mut Account)> =
            self.open.iter_mut().filter(|(_, one)| one.engine.as_ref() == Some(&life)).collect();
        there.sort_by_key(|(id, _)| **id);
        if there.is_empty() {
            book.idle_micros += micros;
            book.idle_millijoules += millijoules;
            return;
        }
        let weights: Vec<u64> =
            there.iter().map(|(_, one)| one.work.load(Ordering::Relaxed).saturating_sub(one.divided)).collect();
        let parts = split(micros, &weights).into_iter().zip(split(millijoules, &weights));
        for (((_, account), weight), (micros, millijoules)) in there.into_iter().zip(weights).zip(parts) {
            account.divided += weight;
            account.gpu_micros += micros;
            account.millijoules += millijoules;
        }
    }
}

impl Account {
    fn close(self) -> Option<UsageRecord> {
        let (record, _) = self.ended?;
        Some(UsageRecord { gpu_micros: self.gpu_micros, millijoules: self.millijoules, ..*record })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::usage::End;

    fn life(nth: u8) -> Life {
        (EngineId::new(format!("e{nth}")), Epoch(1))
    }

    fn meter(nth: u8, micros: u64, millijoules: u64) -> EngineMeter {
        let (engine, epoch) = life(nth);
        EngineMeter { engine, epoch, busy: Duration::from_micros(micros), millijoules: Some(millijoules) }
    }

    fn record() -> UsageRecord {
        UsageRecord {
            id: Uuid::nil(),
            ended_at: Timestamp::UNIX_EPOCH,
            request: String::new(),
            correlation: String::new(),
            owner: String::new(),
            run: None,
            model: String::new(),
            target: String::new(),
            recipe: None,
            end: End::Complete,
            attempts: 1,
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            estimated: false,
            queue_ms: 0,
            first_byte_ms: None,
            total_ms: 0,
            gpu_micros: 0,
            millijoules: 0,
            cost_micros: 0,
        }
    }

    #[test]
    fn a_second_is_divided_by_the_tokens_that_were_got_done_in_it() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        accounts.measure(&[meter(1, 500, 50)], now);
        let (one, other) = (accounts.begin(Some(life(1))), accounts.begin(Some(life(1))));
        one.add(30);
        other.add(10);
        assert_eq!(accounts.end(&one, record(), now), None, "its last second is still to come");
        let closed = accounts.measure(&[meter(1, 1_500, 90)], now);
        assert_eq!(closed.iter().map(|one| (one.gpu_micros, one.millijoules)).collect::<Vec<_>>(), [(750, 30)]);
        accounts.end(&other, record(), now);
        let closed = accounts.measure(&[meter(1, 1_600, 91)], now);
        assert_eq!(closed.iter().map(|one| (one.gpu_micros, one.millijoules)).collect::<Vec<_>>(), [(350, 11)]);
        accounts.measure(&[meter(1, 1_700, 99)], now);
        assert_eq!(accounts.idle(&life(1)), (100, 8));
    }

    #[test]
    fn what_nobody_measures_is_written_at_once() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        for engine in [None, Some(life(1))] {
            let account = accounts.begin(engine);
            assert_eq!(accounts.end(&account, record(), now), Some(record()));
        }
    }

    #[test]
    fn a_meter_that_stands_still_holds_a_record_back_for_some_seconds_only() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        accounts.measure(&[meter(1, 500, 50)], now);
        let account = accounts.begin(Some(life(1)));
        account.add(1);
        accounts.end(&account, record(), now);
        assert_eq!(accounts.measure(&[meter(1, 500, 50)], now), []);
        assert_eq!(accounts.measure(&[meter(1, 500, 50)], now + LAST_SHARE).len(), 1);
    }

    proptest! {
        /// What requests and idling bear is what the meters ran on by, however requests come, work and end.
        #[test]
        fn sums_are_what_was_measured(events in proptest::collection::vec((0..5u8, 0..3u8, 0..1_000u64), 0..300)) {
            let (mut accounts, mut now) = (Accounts::default(), Instant::now());
            let mut totals = [(0, 0); 3];
            let all = |totals: &[(u64, u64); 3]| [0, 1, 2].map(|nth| meter(nth, totals[usize::from(nth)].0, totals[usize::from(nth)].1));
            accounts.measure(&all(&totals), now);
            let mut open: Vec<OpenAccount> = Vec::new();
            let mut closed = Vec::new();
            for (event, engine, amount) in events {
                now += Duration::from_millis(amount);
                match event {
                    0 => open.push(accounts.begin(Some(life(engine)))),
                    1 => open.iter().skip(usize::from(engine)).take(2).for_each(|one| one.add(amount)),
                    2 if !open.is_empty() && engine == 2 => {
                        let failed = open.remove(usize::try_from(amount).unwrap() % open.len());
                        accounts.forget(&failed);
                    }
                    2 if !open.is_empty() => {
                        let ended = open.remove(usize::try_from(amount).unwrap() % open.len());
                        closed.extend(accounts.end(&ended, record(), now));
                    }
                    _ => {
                        let total = &mut totals[usize::from(engine)];
                        *total = (total.0 + amount, total.1 + amount / 3);
                        closed.extend(accounts.measure(&all(&totals), now));
                    }
                }
            }
            for one in open.drain(..) {
                closed.extend(accounts.end(&one, record(), now));
            }
            closed.extend(accounts.measure(&all(&totals), now + LAST_SHARE));
            let idle = [0, 1, 2].map(|nth| accounts.idle(&life(nth)));
            let micros = closed.iter().map(|one| one.gpu_micros).chain(idle.iter().map(|one| one.0)).sum::<u64>();
            let millijoules = closed.iter().map(|one| one.millijoules).chain(idle.iter().map(|one| one.1)).sum::<u64>();
            prop_assert_eq!(micros, totals.iter().map(|one| one.0).sum::<u64>());
            prop_assert_eq!(millijoules, totals.iter().map(|one| one.1).sum::<u64>());
        }
    }
}
