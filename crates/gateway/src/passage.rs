//! A request that has a place at a target: what it holds while it is sent and its answer passes, and what is written down when
//! that ends, however it does.

use std::sync::Arc;
use std::time::Duration;

use fettle_app::run_token::RunClaims;
use fettle_placement::id::OwnerId;
use fettle_protocols::{Failure, Usage};
use tokio::time::Instant;

use crate::breaker::Outcome;
use crate::budgets::{Cost, Reservation};
use crate::carrier::Carrier;
use crate::desk::{Measured, Went};
use crate::floor::Held;
use crate::front::Front;
use crate::settings::Price;
use crate::thread::Thread;
use crate::usage::{End, OpenAccount, UsageRecord};

/// What a model writes in a second at most, all targets there are included: what was asked for and never seen has cost no more.
const FASTEST_TOKENS_PER_SECOND: u64 = 4_000;
/// Text has no more bytes a token than this on average, so that fewer tokens than its bytes say were not written.
const BYTES_PER_TOKEN: u64 = 4;
/// Above all windows there are: a target that says more counts wrongly, and its word would spend everything.
const MOST_SAID_TOKENS: u64 = 1 << 24;

/// Who is on its way, and since when.
pub(crate) struct Traveller {
    pub(crate) thread: Thread,
    pub(crate) owner: OwnerId,
    pub(crate) run: Option<Box<RunClaims>>,
    pub(crate) model: String,
    pub(crate) price: Option<Price>,
    pub(crate) prompt_estimate: u64,
    /// Answers that are asked for.
    pub(crate) answers: u64,
    pub(crate) attempts: u32,
    pub(crate) arrived: Instant,
    pub(crate) waited: Duration,
}

/// Dropped before its end is told, the caller has hung up.
pub(crate) struct Passage {
    front: Arc<Front>,
    held: Option<Held>,
    reservation: Option<Reservation>,
    account: OpenAccount,
    traveller: Traveller,
    /// `None`: nothing of it has reached the target.
    sent: Option<Instant>,
    /// From then on. `None`: no byte of an answer has come.
    first_byte: Option<Duration>,
    answers: bool,
    pieces: u64,
    answer_bytes: u64,
    usage: Option<Usage>,
    /// How the target failed, where it did.
    said: Option<String>,
}

impl Passage {
    pub(crate) fn new(front: Arc<Front>, held: Held, reservation: Option<Reservation>, traveller: Traveller) -> Self {
        let account = front.accounts().begin(held.upstream.engine.clone());
        Self {
            front,
            held: Some(held),
            reservation,
            account,
            traveller,
            sent: None,
            first_byte: None,
            answers: false,
            pieces: 0,
            answer_bytes: 0,
            usage: None,
            said: None,
        }
    }

    /// From now on the target may be at work on it, whatever is seen of that.
    pub(crate) fn send(&mut self) -> Instant {
        *self.sent.insert(Instant::now())
    }

    pub(crate) fn held(&self) -> &Held {
        self.held.as_ref().expect("a place is held until the end")
    }

    /// The answer's first bytes are there. `work`: tokens that the target has got done for them.
    pub(crate) fn begin(&mut self, work: u64, carrier: &Carrier) {
        self.front.metrics.streams.inc();
        self.first_byte = self.sent.map(|sent| sent.elapsed());
        self.account.add(work);
        self.learn(carrier);
    }

    /// Of an attempt that came to nothing of which anybody has to bear the cost; what was set aside is there for another one.
    pub(crate) fn undo(mut self, went: Went) -> Option<Reservation> {
        self.forget(went);
        self.reservation.take()
    }

    /// A piece of the answer has passed: about a token.
    pub(crate) fn piece(&mut self, carrier: &Carrier) {
        self.account.add(1);
        self.learn(carrier);
    }

    /// Why it may not go on.
    pub(crate) fn forbidden(&self) -> Option<Failure> {
        let claims = self.traveller.run.as_deref()?;
        self.front.access.still_good(claims, self.front.clock.now()).err()
    }

    pub(crate) fn complete(&mut self, carrier: &Carrier) {
        (self.usage, self.answer_bytes) = (carrier.usage(), carrier.answer_bytes());
        self.end(End::Complete);
    }

    pub(crate) fn failed(&mut self, carrier: &Carrier) {
        (self.usage, self.answer_bytes) = (carrier.usage(), carrier.answer_bytes());
        self.end(End::Failed);
    }

    /// Nothing was seen of an answer for as long as somebody waited for it.
    pub(crate) fn unseen(mut self, end: End, said: Option<String>) {
        self.said = said;
        self.end(end);
    }

    /// It ends here, though the target would go on.
    pub(crate) fn cut_off(&mut self) {
        self.end(End::Cancelled);
    }

    fn learn(&mut self, carrier: &Carrier) {
        self.pieces += 1;
        (self.usage, self.answer_bytes) = (carrier.usage(), carrier.answer_bytes());
        if !self.answers
            && carrier.content()
            && let Some(held) = &self.held
        {
            self.answers = true;
            held.answers();
        }
    }

    fn forget(&mut self, went: Went) {
        if let Some(mut held) = self.held.take() {
            held.went(went);
            self.front.accounts().forget(&self.account);
        }
    }

    /// What it took, and whether that was counted here.
    fn used(&self, end: End) -> (Usage, bool) {
        let seen = Seen {
            said: self.usage,
            prompt_estimate: self.traveller.prompt_estimate,
            pieces: self.pieces,
            answer_bytes: self.answer_bytes,
        };
        let Some(reservation) = self.reservation.as_ref().filter(|_| self.first_byte.is_none()) else {
            return seen.used(end);
        };
        // A budget bears what may have been written before anything was seen of it.
        let since = self.sent.map_or(Duration::ZERO, |sent| sent.elapsed());
        let written =
            FASTEST_TOKENS_PER_SECOND.saturating_mul(self.traveller.answers).saturating_mul(milliseconds(since));
        let most = reservation.tokens().saturating_sub(seen.prompt_estimate);
        (Usage { prompt: seen.prompt_estimate, output: most.min(written.div_ceil(1_000)), ..Usage::default() }, true)
    }

    fn end(&mut self, end: End) {
        let (used, estimated) = self.used(end);
        let Some(mut held) = self.held.take() else { return };
        let now = Instant::now();
        let Traveller { thread, owner, run, model, price, attempts, arrived, waited, .. } = &self.traveller;
        // What was guessed piece by piece gives way to what is known now.
        let work = (used.prompt - used.cached).saturating_add(used.output);
        self.account.add(work.saturating_sub(self.account.work()));
        let cost_micros = price.map_or(0, |price| price.of(used.prompt, used.cached, used.output));
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(Cost { tokens: used.prompt.saturating_add(used.output), micros: cost_micros });
        }
        let measured = match (self.first_byte, self.sent) {
            (Some(first_byte), Some(sent)) if end == End::Complete && !estimated => Some(Measured {
                prompt_tokens: used.prompt,
                cached_tokens: used.cached,
                output_tokens: used.output,
                first_byte,
                total: sent.elapsed(),
            }),
            _ => None,
        };
        let span = &thread.span;
        span.record("model.target", held.upstream.name.as_str());
        span.record("tokens.prompt", used.prompt);
        span.record("tokens.output", used.output);
        span.record("attempts", attempts);
        span.record("queue_ms", milliseconds(*waited));
        let word = match end {
            End::Complete => "complete",
            End::Failed => "failed",
            End::Cancelled => "cancelled",
        };
        span.record("outcome", word);
        let outcome = match end {
            End::Complete => Outcome::Good,
            End::Failed => Outcome::Failed,
            End::Cancelled => Outcome::Neutral,
        };
        held.went(Went { outcome, said: self.said.take(), rest: None, measured });
        let record = UsageRecord {
            id: self.front.ids.uuid(),
            ended_at: self.front.clock.now(),
            request: thread.request().to_owned(),
            correlation: thread.correlation().to_owned(),
            owner: owner.as_str().to_owned(),
            run: run.as_ref().map(|claims| claims.run),
            model: model.clone(),
            target: held.upstream.name.clone(),
            recipe: held.upstream.recipe.clone(),
            end,
            attempts: *attempts,
            prompt_tokens: used.prompt,
            cached_tokens: used.cached,
            output_tokens: used.output,
            estimated,
            queue_ms: milliseconds(*waited),
            first_byte_ms: self.first_byte.map(milliseconds),
            total_ms: milliseconds(arrived.elapsed()),
            gpu_micros: 0,
            millijoules: 0,
            cost_micros,
        };
        drop(held);
        let metrics = &self.front.metrics;
        if self.first_byte.is_some() {
            metrics.streams.dec();
        }
        metrics.tokens.with_label_values(&["prompt"]).inc_by(used.prompt);
        metrics.tokens.with_label_values(&["cached"]).inc_by(used.cached);
        metrics.tokens.with_label_values(&["output"]).inc_by(used.output);
        let closed = self.front.accounts().end(&self.account, record, now);
        self.front.store.append(closed);
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if self.sent.is_some() {
            self.end(End::Cancelled);
            return;
        }
        self.forget(Went { outcome: Outcome::Neutral, said: None, rest: None, measured: None });
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(Cost::default());
        }
    }
}

/// What is known of an answer when it ends.
struct Seen {
    said: Option<Usage>,
    prompt_estimate: u64,
    pieces: u64,
    answer_bytes: u64,
}

impl Seen {
    /// The target's word counts when the answer has come to its end; before, it may be what it begins with.
    fn used(&self, end: End) -> (Usage, bool) {
        let counted = self.pieces.max(self.answer_bytes / BYTES_PER_TOKEN);
        let Some(said) = self.said.map(sane) else {
            return (Usage { prompt: self.prompt_estimate, output: counted, ..Usage::default() }, true);
        };
        match end {
            End::Complete => (said, false),
            End::Failed | End::Cancelled => (Usage { output: said.output.max(counted), ..said }, counted > said.output),
        }
    }
}

fn sane(said: Usage) -> Usage {
    let prompt = said.prompt.min(MOST_SAID_TOKENS);
    Usage { prompt, cached: said.cached.min(prompt), output: said.output.min(MOST_SAID_TOKENS), ..said }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(said: Option<(u64, u64)>, pieces: u64, answer_bytes: u64) -> Seen {
        let said = said.map(|(prompt, output)| Usage { prompt, output, ..Usage::default() });
        Seen { said, prompt_estimate: 10, pieces, answer_bytes }
    }

    fn output(seen: &Seen, end: End) -> (u64, bool) {
        let (used, estimated) = seen.used(end);
        (used.output, estimated)
    }

    #[test]
    fn what_a_target_says_at_the_end_counts_and_what_it_says_before_is_the_least() {
        assert_eq!(output(&seen(Some((12, 3)), 50, 4_000), End::Complete), (3, false));
        assert_eq!(output(&seen(Some((12, 1)), 50, 4_000), End::Cancelled), (1_000, true));
        assert_eq!(output(&seen(Some((12, 70)), 50, 40), End::Cancelled), (70, false));
    }

    #[test]
    fn an_answer_in_one_piece_without_a_count_is_as_long_as_its_text() {
        assert_eq!(output(&seen(None, 1, 80_000), End::Complete), (20_000, true));
        assert_eq!(output(&seen(None, 7, 5), End::Cancelled), (7, true));
    }

    #[test]
    fn counts_that_nobody_can_have_are_cut_down() {
        let said = Usage { prompt: u64::MAX, cached: u64::MAX, output: u64::MAX, ..Usage::default() };
        let (used, _) = Seen { said: Some(said), prompt_estimate: 1, pieces: 1, answer_bytes: 1 }.used(End::Complete);
        assert_eq!((used.prompt, used.cached, used.output), (MOST_SAID_TOKENS, MOST_SAID_TOKENS, MOST_SAID_TOKENS));
    }
}
