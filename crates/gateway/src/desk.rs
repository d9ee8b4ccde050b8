//! Who is served where, and who waits: the books of all targets, lines and sessions, as one value that is told what happens
//! and when. It sends nothing, waits for nothing and reads no clock.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use fettle_app::ports::serving::When;
use fettle_placement::id::{ModelId, OwnerId};
use fettle_placement::view::Class;
use tokio::time::Instant;

use crate::breaker::{Breaker, Outcome, Permit};
use crate::line::{Line, Waiter};
use crate::retry::{self, Failed, Savings, Verdict};
use crate::routing::{self, Candidate, Policy, TargetId};
use crate::speed::{Rate, Speeds};
use crate::sticky::Sticky;

/// Requests that an engine gets beyond what it works on at once: the next one begins without a round trip through here, and
/// the rest can still go elsewhere.
const AHEAD: u32 = 2;

/// What requests stand in line for: everything behind it can answer them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    /// A model of this machine.
    Local(ModelId),
    /// A provider, by a number that no other has had.
    Provider(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TargetFacts {
    pub(crate) id: TargetId,
    /// Requests that it works on at once.
    pub(crate) parallel: u32,
    /// Takes nothing new.
    pub(crate) draining: bool,
}

/// What is behind a source now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceFacts {
    pub(crate) targets: Vec<TargetFacts>,
    pub(crate) unserved: Option<NotNow>,
}

/// Why nothing is there, in the planner's sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotNow {
    pub(crate) why: String,
    pub(crate) when: When,
}

/// One request, as far as its place matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    /// In order of preference; a later one is used when nothing behind an earlier one can take the request now.
    pub(crate) sources: Vec<Source>,
    pub(crate) owner: OwnerId,
    pub(crate) class: Class,
    pub(crate) session: u64,
    pub(crate) prompt_tokens: u64,
    /// Of the answer, as far as one can guess.
    pub(crate) output_tokens: u64,
    /// A target that has just failed it: another one first.
    pub(crate) avoid: Option<TargetId>,
    /// It is there to find out whether the targets answer, so one that is left alone is asked too.
    pub(crate) knocks: bool,
}

/// The right to send one request to one target; given back with [`Desk::release`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) target: TargetId,
    /// Which of the ask's sources it is behind.
    pub(crate) source: usize,
    pub(crate) policy: Policy,
    pub(crate) cached_tokens: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    session: u64,
    /// Past a breaker that was closed.
    knocked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arrival {
    Go(Grant),
    /// Its grant comes with some later event, under this number.
    Waits(u64),
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The model is not in the supply any more.
    Unknown,
    QueueFull,
    /// Never on this machine.
    Never(String),
    /// Its engines do not start.
    Failing {
        why: String,
        retry_after: Duration,
    },
    /// Everything that could answer has failed lately, or its place is not known to come.
    Broken {
        last: Option<LastFailure>,
        retry_after: Duration,
    },
}

/// How a target failed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastFailure {
    pub(crate) sentence: String,
    pub(crate) ago: Duration,
}

/// What became of a waiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) waiter: u64,
    pub(crate) to: Result<Grant, Refusal>,
}

/// How a granted request went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Went {
    pub(crate) outcome: Outcome,
    /// What whoever asked is told of a failure.
    pub(crate) said: Option<String>,
    /// The target asked to be left alone for so long.
    pub(crate) rest: Option<Duration>,
    pub(crate) measured: Option<Measured>,
}

/// One answer, for the speeds and the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) first_byte: Duration,
    pub(crate) total: Duration,
}

/// What is known of a target's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TargetLoad {
    pub(crate) inflight: u32,
    pub(crate) warm_sessions: u32,
    pub(crate) rate_milli: u32,
    pub(crate) last_used: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crowd {
    pub(crate) source: Source,
    pub(crate) owner: OwnerId,
    pub(crate) class: Class,
    pub(crate) requests: usize,
    pub(crate) oldest: Instant,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) queue_limit: usize,
    pub(crate) interactive_weight: u32,
    pub(crate) sticky_ttl: Duration,
}

#[derive(Debug)]
pub(crate) struct Desk {
    rules: Rules,
    sources: BTreeMap<Source, SourceBook>,
    targets: HashMap<TargetId, TargetBook>,
    sticky: Sticky,
    savings: Savings,
    next_waiter: u64,
    /// Waiters that made room for others, to be told.
    turned_away: Vec<Called>,
}

#[derive(Debug)]
struct SourceBook {
    targets: Vec<TargetId>,
    unserved: Option<NotNow>,
    line: Line<Ask>,
    /// Of everything behind it, as one recipe does it about the same everywhere.
    speeds: Speeds,
}

#[derive(Debug)]
struct TargetBook {
    parallel: u32,
    draining: bool,
    inflight: u32,
    queued_tokens: u64,
    breaker: Breaker,
    failed: Option<(String, Instant)>,
    rate: Rate,
    last_used: Option<Instant>,
}

impl Desk {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            sources: BTreeMap::new(),
            targets: HashMap::new(),
            sticky: Sticky::new(rules.sticky_ttl),
            savings: Savings::new(),
            next_waiter: 0,
            turned_away: Vec::new(),
        }
    }

    /// What is behind each source from now on; sources that are not named are gone.
    pub(crate) fn supply(&mut self, facts: BTreeMap<Source, SourceFacts>, now: Instant) -> Vec<Called> {
        let mut called = Vec::new();
        let gone: Vec<Source> = self.sources.keys().filter(|source| !facts.contains_key(source)).cloned().collect();
        for mut book in gone.into_iter().filter_map(|source| self.sources.remove(&source)) {
            let waiters = book.line.drain();
            called.extend(waiters.into_iter().map(|one| Called { waiter: one.id, to: Err(Refusal::Unknown) }));
        }
        let (mut present, mut turned) = (Vec::new(), Vec::new());
        let weight = self.rules.interactive_weight;
        for (source, SourceFacts { targets, unserved }) in facts {
            for facts in &targets {
                let book = self.targets.entry(facts.id).or_insert_with(TargetBook::new);
                (book.parallel, book.draining) = (facts.parallel, facts.draining);
                present.push(facts.id);
            }
            let book = self.sources.entry(source).or_insert_with(|| SourceBook::new(weight));
            book.targets = targets.iter().map(|facts| facts.id).collect();
            book.unserved = unserved;
            if let Some(why) = book.hopeless() {
                turned.extend(book.line.drain().into_iter().map(|waiter| (waiter, why.clone())));
            }
        }
        let vanished: Vec<TargetId> = self.targets.keys().copied().filter(|id| !present.contains(id)).collect();
        for target in vanished {
            self.targets.remove(&target);
            self.sticky.forget_target(target);
        }
        for (waiter, why) in turned {
            match self.line_for(&waiter.ask, now) {
                Some(book) => book.line.push(waiter),
                None => called.push(Called { waiter: waiter.id, to: Err(why) }),
            }
        }
        called.extend(self.call(now));
        called
    }

    pub(crate) fn arrive(&mut self, ask: Ask, now: Instant) -> Arrival {
        if ask.avoid.is_none() {
            self.savings.earn();
        }
        let alone = |book: &SourceBook| book.line.len() == 0;
        let first =
            ask.avoid.is_some() || self.openings(&ask, now).all(|source| self.sources.get(source).is_none_or(alone));
        if first && let Some(grant) = self.place(&ask, now) {
            return Arrival::Go(grant);
        }
        self.wait(ask, now)
    }

    /// Who had to make room for somebody that has just arrived: to be asked after every arrival.
    pub(crate) fn turned_away(&mut self) -> Vec<Called> {
        std::mem::take(&mut self.turned_away)
    }

    /// A waiter has gone. True: it was still in line; otherwise its call is on its way to it.
    pub(crate) fn leave(&mut self, waiter: u64) -> bool {
        self.sources.values_mut().any(|book| book.line.remove(waiter).is_some())
    }

    pub(crate) fn release(&mut self, source: &Source, grant: &Grant, went: Went, now: Instant) -> Vec<Called> {
        if let Some(book) = self.targets.get_mut(&grant.target) {
            book.inflight = book.inflight.saturating_sub(1);
            book.queued_tokens = book.queued_tokens.saturating_sub(grant.output_tokens);
            match (grant.knocked, went.outcome) {
                (true, Outcome::Good) => book.breaker.found_well(),
                // Whoever knocks finds out, and makes nobody wait for longer.
                (true, _) => {}
                (false, outcome) => book.breaker.record(outcome, now),
            }
            match went.outcome {
                Outcome::Neutral => {}
                Outcome::Good | Outcome::Gone | Outcome::Failed | Outcome::Misconfigured => {
                    book.failed = went.said.map(|said| (said, now));
                }
            }
            if let Some(rest) = went.rest {
                book.breaker.rest(now + rest);
                book.failed = None;
            }
            if let Some(measured) = went.measured {
                let tokens = measured.prompt_tokens.saturating_add(measured.output_tokens);
                self.sticky.keep(grant.session, grant.target, tokens, now);
                if let Some(source) = self.sources.get_mut(source) {
                    source.speeds.learn(&measured);
                }
            }
        }
        self.call(now)
    }

    /// A granted request's answer has begun.
    pub(crate) fn answers(&mut self, target: TargetId, now: Instant) -> Vec<Called> {
        let Some(book) = self.targets.get_mut(&target) else { return Vec::new() };
        book.breaker.answers();
        self.call(now)
    }

    /// Whether a failed attempt is followed by another one.
    pub(crate) fn retry(&mut self, ask: &Ask, mut failed: Failed, failing: TargetId, now: Instant) -> Verdict {
        failed.elsewhere = ask.sources.iter().filter_map(|source| self.sources.get(source)).any(|book| {
            book.targets
                .iter()
                .any(|id| *id != failing && self.targets.get(id).is_some_and(|one| one.is_free(ask, now)))
        });
        retry::decide(failed, &mut self.savings)
    }

    /// Lets those in who may go: to be asked after every event, and now and then for breakers whose pause is over.
    pub(crate) fn call(&mut self, now: Instant) -> Vec<Called> {
        let mut called = Vec::new();
        let waiting: Vec<Source> =
            self.sources.iter().filter(|(_, book)| book.line.len() > 0).map(|(source, _)| source.clone()).collect();
        for source in waiting {
            while let Some(ask) = self.sources.get(&source).and_then(|book| book.line.peek()).map(|one| one.ask.clone())
            {
                let Some(grant) = self.place(&ask, now) else { break };
                let Some(waiter) = self.sources.get_mut(&source).and_then(|book| book.line.take()) else { break };
                called.push(Called { waiter: waiter.id, to: Ok(grant) });
            }
        }
        called
    }

    pub(crate) fn forget_old(&mut self, now: Instant) {
        self.sticky.forget_old(now);
    }

    pub(crate) fn queue_depth(&self) -> usize {
        self.sources.values().map(|book| book.line.len()).sum()
    }

    pub(crate) fn crowds(&self) -> Vec<Crowd> {
        let mut crowds = Vec::new();
        for (source, book) in &self.sources {
            crowds.extend(book.line.waiting().map(|(owner, class, requests, oldest)| Crowd {
                source: source.clone(),
                owner: owner.clone(),
                class,
                requests,
                oldest,
            }));
        }
        crowds
    }

    pub(crate) fn loads(&self, now: Instant) -> HashMap<TargetId, TargetLoad> {
        let warm = self.sticky.warm(now);
        let load = |(id, book): (&TargetId, &TargetBook)| {
            let load = TargetLoad {
                inflight: book.inflight,
                warm_sessions: warm.get(id).copied().unwrap_or(0),
                rate_milli: book.rate.milli(now),
                last_used: book.last_used,
            };
            (*id, load)
        };
        self.targets.iter().map(load).collect()
    }

    /// 0 open for requests, 1 one may try, 2 closed.
    pub(crate) fn breaker_state(&self, target: TargetId, now: Instant) -> Option<i64> {
        self.targets.get(&target).map(|book| match book.breaker.permit(now) {
            Permit::Open => 0,
            Permit::Probe => 1,
            Permit::Closed { .. } => 2,
        })
    }

    /// The sentence for a request that waited in vain.
    pub(crate) fn why_waiting(&self, ask: &Ask) -> Option<NotNow> {
        ask.sources.iter().filter_map(|source| self.sources.get(source)).find_map(|book| book.unserved.clone())
    }

    /// The sources that `ask` may use now, the preferred one first. A later one only if nothing can be had of those before it: an
    /// engine that is full or on its way is waited for.
    fn openings<'a>(&'a self, ask: &'a Ask, now: Instant) -> impl Iterator<Item = &'a Source> {
        let mut over = false;
        ask.sources.iter().take_while(move |source| {
            let before = over;
            over = self.sources.get(*source).is_some_and(|book| book.may_serve_soon(&self.targets, now));
            !before
        })
    }

    /// Anything but the target that has just failed it, else that one again.
    fn place(&mut self, ask: &Ask, now: Instant) -> Option<Grant> {
        let sources = if ask.avoid.is_some() { ask.sources.len() } else { self.openings(ask, now).count() };
        let elsewhere = (0..sources).find_map(|nth| self.grant(ask, nth, ask.avoid, now));
        if ask.avoid.is_none() || elsewhere.is_some() {
            return elsewhere;
        }
        (0..sources).find_map(|nth| self.grant(ask, nth, None, now))
    }

    fn grant(&mut self, ask: &Ask, nth: usize, avoid: Option<TargetId>, now: Instant) -> Option<Grant> {
        let book = self.sources.get(&ask.sources[nth])?;
        let home = self.sticky.find(ask.session, now);
        let free = |id: &&TargetId| self.targets.get(id).is_some_and(|target| target.is_free(ask, now));
        let open = book.targets.iter().filter(free).filter(|id| Some(**id) != avoid);
        let candidates: Vec<Candidate> = open
            .filter_map(|id| {
                let target = self.targets.get(id)?;
                let remembered = home.filter(|home| home.target == *id).map_or(0, |home| home.tokens);
                Some(Candidate {
                    target: *id,
                    inflight: target.inflight,
                    queued_tokens: target.queued_tokens,
                    cached_tokens: remembered.min(ask.prompt_tokens),
                    prefill_rate: book.speeds.prefill(),
                    decode_rate: book.speeds.decode().saturating_mul(u64::from(target.parallel.max(1))),
                })
            })
            .collect();
        let choice = routing::choose(&candidates, ask.prompt_tokens, home.map(|home| home.target))?;
        let cached = candidates.iter().find(|one| one.target == choice.target).map_or(0, |one| one.cached_tokens);
        let target = self.targets.get_mut(&choice.target)?;
        let permit = target.breaker.permit(now);
        if permit == Permit::Probe {
            target.breaker.probe(now);
        }
        target.inflight += 1;
        target.queued_tokens += ask.output_tokens;
        target.rate.count(now);
        target.last_used = Some(now);
        // From here on, so that the second request of a conversation follows the first while that one still runs.
        self.sticky.keep(ask.session, choice.target, home.map_or(0, |home| home.tokens), now);
        Some(Grant {
            target: choice.target,
            source: nth,
            policy: choice.policy,
            cached_tokens: cached,
            prompt_tokens: ask.prompt_tokens,
            output_tokens: ask.output_tokens,
            session: ask.session,
            knocked: matches!(permit, Permit::Closed { .. }),
        })
    }

    fn wait(&mut self, ask: Ask, now: Instant) -> Arrival {
        let mut refusal = Refusal::Unknown;
        let mut found = None;
        for source in &ask.sources {
            let Some(book) = self.sources.get(source) else { continue };
            match self.standing(source, book, now) {
                Standing::MayCome
                    if book.line.len() < self.rules.queue_limit || book.line.crowder(&ask.owner).is_some() =>
                {
                    found = Some(source.clone());
                    break;
                }
                Standing::MayCome => refusal = Refusal::QueueFull,
                Standing::Refused(why) if refusal == Refusal::Unknown => refusal = why,
                Standing::Refused(_) => {}
            }
        }
        let Some(book) = found.and_then(|source| self.sources.get_mut(&source)) else {
            return Arrival::Refused(refusal);
        };
        if book.line.len() >= self.rules.queue_limit {
            let gone = book.line.crowder(&ask.owner).cloned().and_then(|crowder| book.line.remove_newest(&crowder));
            self.turned_away.extend(gone.map(|gone| Called { waiter: gone.id, to: Err(Refusal::QueueFull) }));
        }
        let id = self.next_waiter;
        self.next_waiter += 1;
        let tried = ask.avoid.is_some();
        let waiter = Waiter {
            id,
            owner: ask.owner.clone(),
            class: ask.class,
            tokens: ask.prompt_tokens.saturating_add(ask.output_tokens),
            since: now,
            ask,
        };
        if tried {
            book.line.push_front(waiter)
        } else {
            book.line.push(waiter)
        }
        Arrival::Waits(id)
    }

    /// The first in order that may serve it.
    fn line_for(&mut self, ask: &Ask, now: Instant) -> Option<&mut SourceBook> {
        let may_come = |source: &&Source| {
            let book = self.sources.get(*source);
            book.is_some_and(|book| matches!(self.standing(source, book, now), Standing::MayCome))
        };
        let source = ask.sources.iter().find(may_come)?;
        self.sources.get_mut(source)
    }

    fn standing(&self, source: &Source, book: &SourceBook, now: Instant) -> Standing {
        if let Some(why) = book.hopeless() {
            return Standing::Refused(why);
        }
        // An engine that failed is started again or replaced; a provider is not ours to mend.
        let broken = |id: &TargetId| match self.targets.get(id)?.breaker.permit(now) {
            Permit::Closed { until } => Some(until.saturating_duration_since(now)),
            Permit::Open | Permit::Probe => None,
        };
        let pauses: Option<Vec<Duration>> = book.targets.iter().map(broken).collect();
        match (source, pauses.as_deref().and_then(|pauses| pauses.iter().min())) {
            (Source::Provider(_), Some(pause)) => {
                Standing::Refused(Refusal::Broken { last: self.last_failure(book, now), retry_after: *pause })
            }
            _ => Standing::MayCome,
        }
    }
}

impl Desk {
    fn last_failure(&self, book: &SourceBook, now: Instant) -> Option<LastFailure> {
        let failed = book.targets.iter().filter_map(|id| self.targets.get(id)?.failed.as_ref());
        let (sentence, at) = failed.max_by_key(|(_, at)| *at)?;
        Some(LastFailure { sentence: sentence.clone(), ago: now.saturating_duration_since(*at) })
    }
}

enum Standing {
    MayCome,
    Refused(Refusal),
}

impl SourceBook {
    fn new(interactive_weight: u32) -> Self {
        Self { targets: Vec::new(), unserved: None, line: Line::new(interactive_weight), speeds: Speeds::new() }
    }

    /// Something is there or on its way, so that waiting for it is worth more than the next in order.
    fn may_serve_soon(&self, targets: &HashMap<TargetId, TargetBook>, now: Instant) -> bool {
        let closed = |book: &TargetBook| matches!(book.breaker.permit(now), Permit::Closed { .. });
        let alive = |id: &TargetId| targets.get(id).is_some_and(|book| !book.draining && !closed(book));
        self.targets.iter().any(alive) || (self.targets.is_empty() && self.unserved.is_none())
    }

    /// Waiting here is of no use.
    fn hopeless(&self) -> Option<Refusal> {
        let NotNow { why, when } = self.unserved.as_ref().filter(|_| self.targets.is_empty())?;
        match *when {
            When::Waiting(_) => None,
            When::Mended(retry_after) => Some(Refusal::Failing { why: why.clone(), retry_after }),
            When::Never => Some(Refusal::Never(why.clone())),
        }
    }
}

impl TargetBook {
    fn new() -> Self {
        Self {
            parallel: 1,
            draining: false,
            inflight: 0,
            queued_tokens: 0,
            breaker: Breaker::new(),
            failed: None,
            rate: Rate::new(),
            last_used: None,
        }
    }

    fn is_free(&self, ask: &Ask, now: Instant) -> bool {
        !self.draining
            && self.inflight < self.parallel.saturating_add(AHEAD)
            && (ask.knocks || !matches!(self.breaker.permit(now), Permit::Closed { .. }))
    }
}

#[cfg(test)]
mod tests;
