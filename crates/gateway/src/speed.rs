//! How fast targets were seen to work, as averages that forget.

use std::time::Duration;

use tokio::time::Instant;

use crate::desk::Measured;

/// Taken until something was measured: a middling model on one GPU. All targets begin alike, so it decides nothing.
const FIRST_PREFILL: u64 = 2_000;
const FIRST_DECODE: u64 = 40;
/// The share of a new measurement, as one in so many.
const WEIGHT: u64 = 8;
/// Less than this was over too soon to be measured.
const LEAST_TIME: Duration = Duration::from_millis(5);
/// Of shorter prompts the time is spent on other things.
const LEAST_PROMPT: u64 = 64;
/// After this time without a request a rate has fallen to about a third. The higher of the two counts: an agent at work comes back
/// within the first, and who is asked now and then is not taken for forgotten.
const FORGETS: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(1000)];

/// Tokens a second.
#[derive(Debug)]
pub(crate) struct Speeds {
    prefill: u64,
    decode: u64,
}

impl Speeds {
    pub(crate) fn new() -> Self {
        Self { prefill: FIRST_PREFILL, decode: FIRST_DECODE }
    }

    /// Of the part of a prompt that was not remembered.
    pub(crate) fn prefill(&self) -> u64 {
        self.prefill
    }

    /// Of one request.
    pub(crate) fn decode(&self) -> u64 {
        self.decode
    }

    pub(crate) fn learn(&mut self, measured: &Measured) {
        let uncached = measured.prompt_tokens.saturating_sub(measured.cached_tokens);
        if uncached >= LEAST_PROMPT {
            average(&mut self.prefill, uncached, measured.first_byte);
        }
        average(&mut self.decode, measured.output_tokens, measured.total.saturating_sub(measured.first_byte));
    }
}

fn average(rate: &mut u64, tokens: u64, time: Duration) {
    if tokens > 0 && time >= LEAST_TIME {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let seen = tokens.saturating_mul(1_000_000) / micros;
        *rate = ((*rate * (WEIGHT - 1) + seen) / WEIGHT).max(1);
    }
}

/// Requests in a time. Each one adds a little, and all of it fades.
#[derive(Debug)]
pub(crate) struct Rate {
    /// Faded requests, as of `at`, for each time of [`FORGETS`].
    sums: [f64; FORGETS.len()],
    at: Option<Instant>,
}

impl Rate {
    pub(crate) fn new() -> Self {
        Self { sums: [0.0; FORGETS.len()], at: None }
    }

    pub(crate) fn count(&mut self, now: Instant) {
        self.sums = self.faded(now).map(|sum| sum + 1.0);
        self.at = Some(now);
    }

    /// In a thousand seconds.
    pub(crate) fn milli(&self, now: Instant) -> u32 {
        let rates = self.faded(now).into_iter().zip(FORGETS).map(|(sum, time)| sum / time.as_secs_f64() * 1_000.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded, at least 0; a cast saturates"
        )]
        let milli = rates.fold(0.0, f64::max).round() as u32;
        milli
    }

    fn faded(&self, now: Instant) -> [f64; FORGETS.len()] {
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)).as_secs_f64();
        std::array::from_fn(|nth| self.sums[nth] * (-since / FORGETS[nth].as_secs_f64()).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_approach_what_is_measured() {
        let mut speeds = Speeds::new();
        let measured = Measured {
            prompt_tokens: 10_000,
            cached_tokens: 2_000,
            output_tokens: 100,
            first_byte: Duration::from_secs(1),
            total: Duration::from_secs(2),
        };
        (0..100).for_each(|_| speeds.learn(&measured));
        assert!((7_900..=8_000).contains(&speeds.prefill()), "{speeds:?}");
        assert!((90..=100).contains(&speeds.decode()), "{speeds:?}");
    }

    #[test]
    fn a_steady_stream_has_its_rate_and_silence_ends_it() {
        let (mut rate, begin) = (Rate::new(), Instant::now());
        let second = Duration::from_secs(1);
        (0..3_000).for_each(|nth| rate.count(begin + second * nth));
        let milli = rate.milli(begin + second * 3_000);
        assert!((980..=1_020).contains(&milli), "{milli}");
        assert_eq!(rate.milli(begin + second * 12_000), 0);
    }

    #[test]
    fn a_burst_counts_at_once_and_fades_to_what_is_usual() {
        let (mut rate, begin) = (Rate::new(), Instant::now());
        (0..10).for_each(|_| rate.count(begin));
        assert_eq!(rate.milli(begin), 333, "ten in half a minute");
        let later = rate.milli(begin + Duration::from_secs(300));
        assert!((5..=10).contains(&later), "{later}");
    }
}
