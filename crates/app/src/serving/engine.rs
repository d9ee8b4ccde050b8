//! One engine from its reservation to the last byte that it gives back, and how failures of its recipe count.

use std::collections::BTreeSet;

use fettle_placement::claim::Claim;
use fettle_placement::engine::{Engine, EngineState, Presence, Seat, on_pool};
use fettle_placement::footprint::{Footprint, Slack};
use fettle_placement::id::{Epoch, PoolId};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::reclaim::PoolSample;

use crate::ports::serving::{EngineAddress, EngineLoad, Exit, ExitClass, Since};

/// The first wait after a failure; it doubles with each one in a row.
const BACKOFF: Millis = Millis::secs(10);
/// A model that fails for ever is tried every five minutes.
const MAX_BACKOFF: Millis = Millis::secs(300);
/// An engine that has served for this long has shown that its recipe works.
const PROVEN: Millis = Millis::secs(60);
/// By so much a recipe's claim grows after it ran out of memory.
const RAISE: Slack = Slack { permille: 100, bytes: Bytes::mib(512) };
/// More would make a model that fails for another reason too big for every device, and so refuse it for good.
const MOST_RAISES: u32 = 4;

#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) seat: Seat,
    pub(super) epoch: Epoch,
    pub(super) state: EngineState,
    pub(super) claims: Vec<(PoolId, Claim)>,
    pub(super) observed: Vec<(PoolId, Bytes)>,
    /// The most that was seen while it loaded.
    pub(super) most: Vec<(PoolId, Bytes)>,
    /// Its pools when its load began.
    pub(super) at_start: Vec<(PoolId, PoolSample)>,
    /// Its pools when it was last seen alive, with what it had there.
    pub(super) alive: Vec<(PoolId, PoolSample, Bytes)>,
    pub(super) pids: BTreeSet<u32>,
    pub(super) address: Option<EngineAddress>,
    /// When its load began, then how long it took.
    pub(super) began: Millis,
    pub(super) reload: Millis,
    pub(super) ready_at: Millis,
    /// Ready, and its pools were not sampled since: what it took last is not seen yet.
    pub(super) unseen: bool,
    /// It was running before; where bytes are not known by process, nobody saw what it took.
    pub(super) adopted: bool,
    pub(super) ended: Option<Ended>,
}

/// Its processes are gone; its memory may not be.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) at: Millis,
    pub(super) exit: Exit,
    /// Nobody had asked it to.
    pub(super) failed_in: Option<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Load,
    Serve,
}

impl Held {
    pub(super) fn reserved(seat: Seat, epoch: Epoch, reload: Millis, now: Millis) -> Self {
        let claims = seat.claims.iter().map(|(pool, bytes)| (pool.clone(), Claim::new(*bytes, now))).collect();
        Self {
            seat,
            epoch,
            state: EngineState::Reserved,
            claims,
            observed: Vec::new(),
            most: Vec::new(),
            at_start: Vec::new(),
            alive: Vec::new(),
            pids: BTreeSet::new(),
            address: None,
            began: now,
            reload,
            ready_at: now,
            unseen: false,
            adopted: false,
            ended: None,
        }
    }

    pub(super) fn presence(&self) -> Presence {
        self.state.presence()
    }

    /// Whether it has or had bytes, or a claim, in one of `pools`.
    pub(super) fn is_in(&self, pools: &BTreeSet<&PoolId>) -> bool {
        self.pools().any(|pool| pools.contains(pool))
    }

    pub(super) fn pools(&self) -> impl Iterator<Item = &PoolId> {
        self.seat.claims.iter().chain(&self.observed).map(|(pool, _)| pool)
    }

    pub(super) fn became_ready(&mut self, now: Millis, address: EngineAddress) {
        if self.state == EngineState::Loading || self.state == EngineState::Spawning {
            // Of one that was running already nobody saw how long it took.
            if !self.adopted {
                self.reload = now.since(self.began).max(Millis::new(1));
            }
            self.ready_at = now;
            self.unseen = true;
            self.state = EngineState::Ready;
        }
        self.address = Some(address);
    }

    /// Whether what its pools grow by is its own.
    pub(super) fn grows(&self) -> bool {
        self.unseen || matches!(self.state, EngineState::Spawning | EngineState::Loading)
    }

    /// Whether its pools have to be left alone: it loads or leaves, or what it took at the end of its load is not seen yet.
    pub(super) fn changes(&self) -> bool {
        self.unseen || matches!(self.presence(), Presence::Loading | Presence::Leaving)
    }

    /// What it was doing when it ended, if nobody had asked it to end.
    pub(super) fn unasked(&self) -> Option<Phase> {
        match self.state {
            EngineState::Spawning | EngineState::Loading => Some(Phase::Load),
            EngineState::Ready | EngineState::Draining { .. } | EngineState::Sleeping(_) => Some(Phase::Serve),
            EngineState::Reserved
            | EngineState::Stopping
            | EngineState::Reclaiming
            | EngineState::Gone
            | EngineState::Backoff { .. } => None,
        }
    }

    /// As the planner sees it.
    pub(super) fn for_plan(&self, load: Option<&EngineLoad>, since: Since, pinned: bool) -> Engine {
        let mut seat = self.seat.clone();
        seat.claims = self.claims.iter().map(|(pool, claim)| (pool.clone(), claim.bytes)).collect();
        Engine {
            id: self.seat.engine.clone(),
            epoch: self.epoch,
            seat,
            state: self.state,
            observed: self.observed.clone(),
            inflight: load.map_or(0, |load| load.inflight),
            warm_sessions: load.map_or(0, |load| load.warm_sessions),
            rate_milli: load.map_or(0, |load| load.rate_milli),
            reload: self.reload,
            prefill: PREFILL,
            ready_at: self.ready_at,
            last_used: load.and_then(|load| load.last_used).map_or(self.ready_at, |at| since.of(at)),
            pinned,
        }
    }

    pub(super) fn observed_in(&self, pool: &PoolId) -> Bytes {
        on_pool(&self.observed, pool)
    }
}

/// What one warm session's prefix costs to compute again, until the gateway measures it.
const PREFILL: Millis = Millis::secs(2);

/// A recipe that failed to load so often in a row needs somebody to look at it.
const HOPELESS: u32 = 3;

/// Failures of one recipe since it last worked.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures {
    in_a_row: u32,
    last: Option<(Phase, Exit)>,
    /// It ran out of memory so often, and is given more since.
    raised: u32,
}

impl Failures {
    /// Until when it is not tried again. `foreign_grew`: somebody else took memory during the load, so the claim was not too
    /// small.
    pub(super) fn count(&mut self, phase: Phase, exit: &Exit, now: Millis, foreign_grew: bool) -> Option<Millis> {
        self.in_a_row += 1;
        self.last = Some((phase, exit.clone()));
        let class = exit.class;
        let too_small = class == ExitClass::OutOfMemory && !foreign_grew;
        self.raised = (self.raised + u32::from(too_small)).min(MOST_RAISES);
        // It loaded once, or will with more memory.
        if self.in_a_row == 1 && (too_small || phase == Phase::Serve) {
            return None;
        }
        let doubled = BACKOFF.times(1 << (self.in_a_row - 1).min(8));
        Some(now + doubled.min(MAX_BACKOFF))
    }

    pub(super) fn worked(&mut self, ready_for: Millis) {
        if ready_for >= PROVEN {
            self.in_a_row = 0;
            self.last = None;
        }
    }

    /// Why it failed last.
    pub(super) fn why(&self) -> Option<&str> {
        self.last.as_ref().map(|(_, exit)| exit.why.as_str())
    }

    /// Whether another try is as likely to fail: what is not installed does not start however long one waits, and a file does
    /// not become a model.
    pub(super) fn is_hopeless(&self) -> bool {
        self.last.as_ref().is_some_and(|(phase, exit)| {
            *phase == Phase::Load
                && (matches!(exit.class, ExitClass::NotStarted | ExitClass::BadModel | ExitClass::BadFlag)
                    || self.in_a_row >= HOPELESS)
        })
    }

    pub(super) fn raise(&self, footprint: &Footprint) -> Footprint {
        let slack = Slack {
            permille: footprint.slack.permille + RAISE.permille * self.raised,
            bytes: footprint.slack.bytes + RAISE.bytes.times(self.raised.into()),
        };
        Footprint { slack, ..footprint.clone() }
    }
}
