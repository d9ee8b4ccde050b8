//! The guard of a machine whose GPU shares its memory with the host, as a process of its own: it outlives the supervisor, as
//! engines do. Two files lie between them: who may be ended, written by the supervisor, and what the guard sees, written by it.

mod supervise;
mod watch;

use std::fmt;

use fettle_gpu::guard::Rung;
use fettle_placement::quantity::Bytes;

pub use supervise::{Guarding, guard};
pub use watch::{Flags, watch};

/// A heartbeat that is older says that nobody watches.
const STALE_MICROS: u64 = 1_000_000;

/// What the guard saw last; one line of fixed length, so that it is written in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heartbeat {
    rung: Rung,
    available: Bytes,
    /// Of the kernel's monotonic clock, which all processes share.
    at_micros: u64,
}

impl fmt::Display for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<6} {:020} {:020}", self.rung.name(), self.available.get(), self.at_micros)
    }
}

impl Heartbeat {
    fn read(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let name = words.next()?;
        Some(Self {
            rung: Rung::ALL.into_iter().find(|rung| rung.name() == name)?,
            available: Bytes::new(words.next()?.parse().ok()?),
            at_micros: words.next()?.parse().ok()?,
        })
    }

    /// Why nothing may be loaded; `None`: it may.
    fn closes(heartbeat: Option<Self>, now_micros: u64) -> Option<String> {
        match heartbeat {
            Some(seen) if now_micros.saturating_sub(seen.at_micros) <= STALE_MICROS => match seen.rung {
                Rung::Calm => None,
                rung => Some(format!(
                    "only {:.1} GiB of this machine's memory are available (guard: {})",
                    seen.available.get() as f64 / f64::from(1 << 30),
                    rung.name()
                )),
            },
            _ => Some("the guard over this machine's memory is not running".to_owned()),
        }
    }
}

fn now_micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    u64::try_from(micros).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_closes_the_pool_when_it_is_old_absent_or_not_calm() {
        let beat = |rung| Heartbeat { rung, available: Bytes::gib(15), at_micros: 5_000_000 };
        let calm = beat(Rung::Calm);
        assert_eq!(Heartbeat::read(&calm.to_string()), Some(calm));
        assert_eq!(Heartbeat::closes(Some(calm), 6_000_000), None);
        assert!(Heartbeat::closes(Some(calm), 6_000_001).unwrap().contains("not running"));
        assert!(Heartbeat::closes(None, 0).unwrap().contains("not running"));
        assert!(Heartbeat::closes(Some(beat(Rung::Term)), 5_000_000).unwrap().contains("15.0 GiB"));
    }
}
