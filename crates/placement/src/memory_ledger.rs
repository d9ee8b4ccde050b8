//! The memory ledger: how many bytes of each pool nobody has, and nobody has been promised. It is never optimistic: of two
//! sources that differ the smaller counts, and what cannot be seen counts as used.
//!
//! For a pool, with `hold = max(claim, observed)` of each engine and reserve and `foreign = max(0, used - sum observed)`:
//!
//! ```text
//! avail = min( cap  - margin - foreign - sum hold,
//!              free - margin - sum (hold - observed) )     0 if stale, frozen, or no device of the pool takes loads
//! ```

use std::fmt;

use crate::device::{Attribution, Device, Pool, PoolKind};
use crate::engine::{Engine, Presence, on_pool};
use crate::id::PoolId;
use crate::quantity::{Bytes, Millis};
use crate::view::{Policy, View};

/// One pool's account. Sums are signed: a pool may well have promised more than a foreign process has left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    cap: i128,
    used: i128,
    free: i128,
    margin: i128,
    observed: i128,
    /// Holds of reserves and of engines that are there to stay.
    staying: i128,
    /// Holds of engines on their way out.
    leaving: i128,
    /// Claims of engines that wait for those.
    reserved: i128,
    closed: Option<Closed>,
}

/// Why a pool offers nothing, however much of it is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    Stale {
        age: Millis,
    },
    Frozen(String),
    /// No device that draws on it takes loads.
    NoDevice,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale { age } => write!(f, "last sampled {age} ago"),
            Self::Frozen(why) => write!(f, "frozen: {why}"),
            Self::NoDevice => f.write_str("no device of it takes loads"),
        }
    }
}

impl Account {
    /// `engines` may name other pools too; what they have there is not looked at.
    pub fn open<'e>(
        pool: &Pool,
        devices: &[Device],
        engines: impl IntoIterator<Item = &'e Engine>,
        now: Millis,
        policy: &Policy,
    ) -> Self {
        let takes_loads = devices.iter().any(|device| device.pool == pool.id && device.health.takes_loads());
        let mut account = Self::empty(pool, takes_loads, now, policy);
        for engine in engines {
            account.enter(engine, &pool.id);
        }
        account
    }

    /// With the pool's reserves and no engine.
    pub(crate) fn empty(pool: &Pool, takes_loads: bool, now: Millis, policy: &Policy) -> Self {
        let age = now.since(pool.sampled);
        let closed = if age > policy.stale_after {
            Some(Closed::Stale { age })
        } else if let Some(why) = &pool.frozen {
            Some(Closed::Frozen(why.clone()))
        } else {
            // Host memory is there whatever becomes of the GPUs.
            (!takes_loads && pool.kind != PoolKind::Host).then_some(Closed::NoDevice)
        };
        Self {
            cap: pool.cap.signed(),
            used: pool.used.signed(),
            free: pool.free.signed(),
            margin: margin(pool).signed(),
            observed: pool.reserves.iter().map(|one| one.observed.signed()).sum(),
            staying: pool.reserves.iter().map(|one| one.claim.max(one.observed).signed()).sum(),
            leaving: 0,
            reserved: 0,
            closed,
        }
    }

    /// Counts an engine in, and says what it holds.
    pub(crate) fn enter(&mut self, engine: &Engine, pool: &PoolId) -> Bytes {
        let (presence, observed) = (engine.state.presence(), on_pool(&engine.observed, pool));
        let hold = held(engine, presence, observed, pool);
        match presence {
            Presence::Absent => return hold,
            Presence::Reserved => self.reserved += hold.signed(),
            Presence::Loading | Presence::Resident => self.staying += hold.signed(),
            Presence::Leaving => self.leaving += hold.signed(),
        }
        self.observed += observed.signed();
        hold
    }

    /// What a load may take. A load is admitted when, in every pool of its seat, this is at least its claim and its peak.
    pub fn avail(&self) -> Bytes {
        match self.closed {
            Some(_) => Bytes::ZERO,
            None => Bytes::there(self.room()),
        }
    }

    pub fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    /// As [`Self::avail`], with what is missing as a negative amount, and though the pool be closed.
    pub(crate) fn room(&self) -> i128 {
        self.by_cap().min(self.by_free())
    }

    /// The sum of what has been promised; at most the pool's size, or something was promised that is not there.
    pub fn holds(&self) -> Bytes {
        Bytes::there(self.promised())
    }

    /// What processes use that are not ours.
    pub fn foreign(&self) -> Bytes {
        Bytes::there(self.used - self.observed)
    }

    /// How far the two sources differ. Above the margin, one of them is wrong and somebody should look.
    pub fn skew(&self) -> Bytes {
        Bytes::there((self.by_cap() - self.by_free()).abs())
    }

    fn promised(&self) -> i128 {
        self.staying + self.leaving.max(self.reserved)
    }

    fn by_cap(&self) -> i128 {
        self.cap - self.margin - (self.used - self.observed).max(0) - self.promised()
    }

    fn by_free(&self) -> i128 {
        self.free - self.margin - (self.promised() - self.observed)
    }

    /// Promises `bytes` to somebody who has none of them yet.
    pub(crate) fn promise(&mut self, bytes: Bytes) {
        self.staying += bytes.signed();
    }

    /// Takes back the promise to an engine; what it has is seen as free, as it will be once it is gone.
    pub(crate) fn release(&mut self, hold: Bytes, presence: Presence) {
        match presence {
            Presence::Absent => {}
            Presence::Reserved => self.reserved -= hold.signed(),
            Presence::Loading | Presence::Resident => self.staying -= hold.signed(),
            Presence::Leaving => self.leaving -= hold.signed(),
        }
    }
}

/// What stays free whatever is asked for.
fn margin(pool: &Pool) -> Bytes {
    match pool.attribution {
        Attribution::Exact => pool.margin,
        // What grows during a load is taken for the load's own, so it may be somebody else's.
        Attribution::Blind => pool.margin.times(2),
    }
}

/// What a pool has for one engine when nothing but its reserves is there.
pub fn capacity(pool: &Pool) -> Bytes {
    let reserves: Bytes = pool.reserves.iter().map(|reserve| reserve.claim).sum();
    Bytes::there(pool.cap.signed() - margin(pool).signed() - reserves.signed())
}

/// What `engine` holds of `pool`: never less than was seen, and while it loads never less than its peak.
pub fn hold(engine: &Engine, pool: &PoolId) -> Bytes {
    held(engine, engine.state.presence(), on_pool(&engine.observed, pool), pool)
}

fn held(engine: &Engine, presence: Presence, observed: Bytes, pool: &PoolId) -> Bytes {
    let claim = || on_pool(&engine.seat.claims, pool);
    match presence {
        Presence::Absent => Bytes::ZERO,
        Presence::Loading | Presence::Reserved => claim().max(observed).max(on_pool(&engine.seat.peaks, pool)),
        Presence::Resident | Presence::Leaving => claim().max(observed),
    }
}

/// The account of every pool in `view`, in the order of its pools.
pub fn accounts(view: &View, policy: &Policy) -> Vec<(PoolId, Account)> {
    let account = |pool: &Pool| Account::open(pool, &view.devices, &view.engines, view.now, policy);
    view.pools.iter().map(|pool| (pool.id.clone(), account(pool))).collect()
}

/// Whether every pool of a seat has room for it, now. `claims` and `peaks` have one entry a pool.
pub fn admits(accounts: &[(PoolId, Account)], claims: &[(PoolId, Bytes)], peaks: &[(PoolId, Bytes)]) -> bool {
    claims.iter().all(|(pool, claim)| {
        let account = accounts.iter().find(|(id, _)| id == pool).map(|(_, account)| account);
        account.is_some_and(|account| account.avail() >= (*claim).max(on_pool(peaks, pool)))
    })
}

#[cfg(test)]
mod tests;
