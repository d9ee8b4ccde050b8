//! Holds the number of processes where no rlimit does: the kernel exempts a superuser from that limit, and at level `landlock` it
//! would count all processes of the user. A clerk beside the sandbox counts, and ends when there are too many.
//!
//! Asking before each fork by a seccomp listener was tried: a signal that comes before the question is read makes the fork fail
//! with EINTR, which no program expects of it.

use std::time::Duration;

use crate::proctree;
use crate::sys;

/// How the clerk ends when there are too many.
pub(super) const TOO_MANY: i32 = 7;

/// A look at one small file; fork bombs grow by thousands in a second.
const GLANCE: Duration = Duration::from_millis(10);
/// After so many glances all processes are counted, even if their number seems the same.
const GLANCES_PER_COUNT: u32 = 50;

/// `root` is the process whose descendants are counted, `limit` how many threads they may have.
pub(super) fn clerk(root: i32, limit: u64) -> ! {
    if sys::die_with_parent().is_err() {
        sys::exit_now(TOO_MANY);
    }
    // A fork bomb of a superuser would starve the one who counts it; ordinary users do not need this, nor may they.
    let _ = sys::go_first();
    let mut counted_at = 0;
    let mut glances = 0;
    loop {
        let total = total_threads();
        if glances == 0 || total > counted_at + limit / 4 {
            // Not to know means not to allow.
            let threads = proctree::below(root).map_or(u64::MAX, |all| all.iter().map(|p| p.threads).sum());
            if threads > limit {
                sys::exit_now(TOO_MANY);
            }
            counted_at = total;
        }
        glances = (glances + 1) % GLANCES_PER_COUNT;
        std::thread::sleep(GLANCE);
    }
}

/// Of the whole host; 0 where the kernel does not say, and then only the regular count finds out.
fn total_threads() -> u64 {
    let text = fs_err::read_to_string("/proc/loadavg").unwrap_or_default();
    let field = text.split_ascii_whitespace().nth(3).and_then(|field| field.split_once('/'));
    field.and_then(|(_, total)| total.parse().ok()).unwrap_or(0)
}
