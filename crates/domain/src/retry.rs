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

/// Full-jitter exponential back-off before try `attempt + 1`, beginning with at most `base`. `jitter` is uniform in `0..=u16::MAX`, chosen by the caller.
pub fn back_off(base: Duration, attempt: u16, jitter: u16) -> Duration {
    let ceiling = base.saturating_mul(1 << attempt.min(10)).min(BACK_OFF_CAP);
    ceiling.mul_f64(f64::from(jitter) / f64::from(u16::MAX))
}
