//! A request that was sent: what it holds while its answer passes, and what is written down when that ends, however it does.

use std::sync::Arc;
use std::time::Duration;

use fettle_domain::id::RunId;
use fettle_placement::id::OwnerId;
use fettle_protocols::Usage;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::breaker::Outcome;
use crate::budgets::{Cost, Reservation};
use crate::desk::{Measured, Went};
use crate::floor::Held;
use crate::front::Front;
use crate::settings::Price;
use crate::thread::Thread;
use crate::usage::{End, OpenAccount, UsageRecord};

/// Who is on its way, and since when.
pub(crate) struct Traveller {
    pub(crate) thread: Thread,
    pub(crate) owner: OwnerId,
    pub(crate) run: Option<(RunId, Timestamp)>,
    pub(crate) model: String,
    pub(crate) price: Option<Price>,
    pub(crate) prompt_estimate: u64,
    pub(crate) attempts: u32,
    pub(crate) arrived: Instant,
    pub(crate) waited: Duration,
    /// From its sending.
    pub(crate) first_byte: Duration,
}

/// Dropped before its end is told, the caller has hung up.
pub(crate) struct Passage {
    front: Arc<Front>,
    held: Option<Held>,
    reservation: Option<Reservation>,
    account: OpenAccount,
    traveller: Traveller,
    begun: Instant,
    pieces: u64,
    usage: Option<Usage>,
}

impl Passage {
    pub(crate) fn new(
        front: Arc<Front>,
        held: Held,
        reservation: Option<Reservation>,
        account: OpenAccount,
        traveller: Traveller,
    ) -> Self {
        front.metrics.streams.inc();
        let (begun, held) = (Instant::now(), Some(held));
        Self { front, held, reservation, account, traveller, begun, pieces: 1, usage: None }
    }

    /// A piece of the answer has passed: about a token.
    pub(crate) fn piece(&mut self, usage: Option<Usage>) {
        self.pieces += 1;
        self.account.add(1);
        self.usage = usage;
    }

    pub(crate) fn complete(&mut self, usage: Option<Usage>) {
        self.usage = usage;
        self.end(End::Complete);
    }

    pub(crate) fn failed(&mut self, usage: Option<Usage>) {
        self.usage = usage;
        self.end(End::Failed);
    }

    fn end(&mut self, end: End) {
        let Some(mut held) = self.held.take() else { return };
        let now = Instant::now();
        let Traveller { thread, owner, run, model, price, prompt_estimate, attempts, arrived, waited, first_byte } =
            &self.traveller;
        let used = self.usage.unwrap_or(Usage { prompt: *prompt_estimate, output: self.pieces, ..Usage::default() });
        if self.usage.is_some() {
            // What the target counted goes before what was guessed piece by piece.
            let counted = used.prompt.saturating_sub(used.cached) + used.output;
            self.account.add(counted.saturating_sub(self.account.work()));
        }
        let cost_micros = price.map_or(0, |price| price.of(used.prompt, used.cached, used.output));
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(Cost { tokens: used.prompt + used.output, micros: cost_micros });
        }
        let since_sent = *first_byte + self.begun.elapsed();
        let measured = self.usage.filter(|_| end == End::Complete).map(|usage| Measured {
            prompt_tokens: usage.prompt,
            cached_tokens: usage.cached,
            output_tokens: usage.output,
            first_byte: *first_byte,
            total: since_sent,
        });
        let outcome = match end {
            End::Complete => Outcome::Good,
            End::Failed => Outcome::Failed,
            End::Cancelled => Outcome::Neutral,
        };
        held.went(Went { outcome, rest: None, measured });
        let record = UsageRecord {
            id: self.front.ids.uuid(),
            ended_at: self.front.clock.now(),
            request: thread.request().to_owned(),
            correlation: thread.correlation().to_owned(),
            owner: owner.as_str().to_owned(),
            run: run.map(|(run, _)| run),
            model: model.clone(),
            target: held.upstream.name.clone(),
            recipe: held.upstream.recipe.clone(),
            end,
            attempts: *attempts,
            prompt_tokens: used.prompt,
            cached_tokens: used.cached,
            output_tokens: used.output,
            estimated: self.usage.is_none(),
            queue_ms: milliseconds(*waited),
            first_byte_ms: Some(milliseconds(*first_byte)),
            total_ms: milliseconds(arrived.elapsed()),
            gpu_micros: 0,
            millijoules: 0,
            cost_micros,
        };
        drop(held);
        let metrics = &self.front.metrics;
        metrics.streams.dec();
        metrics.tokens.with_label_values(&["prompt"]).inc_by(used.prompt);
        metrics.tokens.with_label_values(&["cached"]).inc_by(used.cached);
        metrics.tokens.with_label_values(&["output"]).inc_by(used.output);
        let closed = self.front.accounts().end(&self.account, record, now);
        self.front.store.append(closed);
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.end(End::Cancelled);
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
