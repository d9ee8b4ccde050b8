//! The real clock and the real ids.

use fettle_app::ports::clock::{Clock, IdSource, SecretSource};
use jiff::{Timestamp, Unit};
use uuid::Uuid;

/// The system's clock, cut to microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one implementation of the Clock port")]
    fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        now.round(jiff::TimestampRound::new().smallest(Unit::Microsecond).mode(jiff::RoundMode::Trunc)).unwrap_or(now)
    }
}

/// UUID v7: time-ordered, 74 random bits.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl IdSource for RandomIds {
    #[expect(clippy::disallowed_methods, reason = "this is the one implementation of the IdSource port")]
    fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }
}

/// The kernel's random bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomSecrets;

impl SecretSource for RandomSecrets {
    fn secret(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes once it has started");
        bytes
    }
}

/// `host/pid`, for people who look at leases.
pub fn process_name() -> String {
    let host = sysinfo::System::host_name().unwrap_or_else(|_| "localhost".into());
    format!("{host}/{}", std::process::id())
}
