//! When a failed job is tried again, and when it is dead.

use std::time::Duration;

/// Failures after which a job is dead.
pub const MAX_ATTEMPTS: u16 = 5;
/// Lease expiries in a row, without a new step between them, after which a job is dead: it kills its workers.
pub const MAX_CRASHES_WITHOUT_STEP: u16 = 3;
/// Lease expiries in all after which a job is dead.
pub const MAX_CRASHES: u16 = 10;
/// The first back-off in production; each further one doubles up to [`BACK_OFF_CAP`].
pub const BACK_OFF_BASE: Duration = Duration::from_secs(10);
/// One poison job costs minutes, not the day.
pub const BACK_OFF_CAP: Duration = Duration::from_secs(600);

/// The longest pause before another try of what somebody has to mend first: with [`MAX_ATTEMPTS`] there is an hour and a half for it.
pub const MEND_CAP: Duration = Duration::from_secs(64 * 60);

/// The pause before try `attempt + 1` where a person or another program has to mend something first, as a token that is refused. Fourfold
/// each time: soon enough for whoever is at it, late enough for whoever is not.
pub fn mend_pause(base: Duration, attempt: u16) -> Duration {
    base.saturating_mul(6).saturating_mul(1 << (2 * u32::from(attempt.min(10)))).min(MEND_CAP)
}

/// Full-jitter exponential back-off before try `attempt + 1`, beginning with at most `base`. `jitter` is uniform in `0..=u16::MAX`, chosen by the caller.
pub fn back_off(base: Duration, attempt: u16, jitter: u16) -> Duration {
    let ceiling = base.saturating_mul(1 << attempt.min(10)).min(BACK_OFF_CAP);
    ceiling.mul_f64(f64::from(jitter) / f64::from(u16::MAX))
}
