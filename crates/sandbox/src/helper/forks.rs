//! Holds the number of processes. Threads count everywhere: to the kernel each is one.
//!
//! | | an ordinary user | a superuser, whom the kernel exempts from RLIMIT_NPROC |
//! |---|---|---|
//! | `full` | RLIMIT_NPROC, which is counted per user namespace | the highest process number of the namespace |
//! | `landlock` | RLIMIT_NPROC on top of what the user runs already | only the clerk |
//!
//! Where the kernel holds the number, one more fork fails with EAGAIN. The clerk is a process beside the sandbox that counts and ends
//! when there are too many, and the whole tree with it; a fork bomb may have taken all the numbers of the host by then. So it is the
//! net below the others: it allows [`SLACK`] more than they do.
//!
//! Asking before each fork by a seccomp listener was tried: a signal that comes before the question is read makes the fork fail
//! with EINTR, which no program expects of it.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use crate::proctree;
use crate::sys::{self, Fork, Limit, Wait};

/// A process number stays taken as long as it names a group or session, so an ended leader may hold one. Few programs leave more.
pub(super) const SLACK: u32 = 32;

/// After the first round the kernel gives no number below this one (`RESERVED_PIDS`).
const FIRST_NUMBER: u32 = 300;
/// More than this the kernel refuses on every machine (`PID_MAX_LIMIT`).
const LAST_NUMBER: u32 = 4 * 1024 * 1024;
/// From this release on each process namespace has its own `pid_max`. Before, it was the host's, and a superuser's sandbox would
/// change that, so there is nothing to try: the release decides.
const OWN_PID_MAX: (u32, u32) = (6, 14);

const PID_MAX: &str = "/proc/sys/kernel/pid_max";
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// `pid_max` of a namespace in which `processes` may run beside its init; that number itself is never given.
fn pid_max(processes: u32) -> u32 {
    processes.saturating_add(SLACK + FIRST_NUMBER).min(LAST_NUMBER)
}

/// Leaves the caller's process namespace only so many numbers. Refused on a kernel where that would concern the host.
///
/// Needs a writable `/proc`, and that no process but the init has a number yet.
pub(super) fn cap(processes: u32) -> io::Result<()> {
    if !has_own_pid_max(&fs_err::read_to_string(RELEASE)?) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "pid_max belongs to the host before Linux 6.14"));
    }
    set(PID_MAX, pid_max(processes))?;
    // Skips the low numbers, which would be given once and come on top; then the clerk has to count.
    match set(LAST_PID, FIRST_NUMBER - 1) {
        // The kernel was built without checkpoints (CRIU).
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn set(file: &str, number: u32) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(number.to_string().as_bytes())
}

/// `release` is like `6.18.2-arch1`.
fn has_own_pid_max(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OWN_PID_MAX,
        _ => false,
    }
}

/// Allows the caller's user `processes` more than run now. The kernel exempts a superuser.
///
/// The kernel counts a user's processes over all containers, so `/proc` may show too few of them. It is asked instead: the least
/// limit under which a fork succeeds tells their number.
pub(super) fn allow_more(processes: u32) -> io::Result<()> {
    let mut refused = 0;
    let mut allowed = FIRST_NUMBER;
    while !may_fork_at(allowed)? {
        if allowed > LAST_NUMBER {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        refused = allowed;
        allowed *= 2;
    }
    while allowed - refused > 1 {
        let middle = refused.midpoint(allowed);
        if may_fork_at(middle)? {
            allowed = middle;
        } else {
            refused = middle;
        }
    }
    sys::set_limit(Limit::Processes, u64::from(refused) + u64::from(processes))
}

fn may_fork_at(limit: u32) -> io::Result<bool> {
    sys::set_soft_limit(Limit::Processes, u64::from(limit))?;
    match sys::fork() {
        Ok(Fork::Child) => sys::exit_now(0),
        Ok(Fork::Parent(child)) => sys::reap(child, Wait::Block).map(|_| true),
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(e) => Err(e),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_max_is_left_alone_where_it_may_be_the_hosts() {
        for own in ["6.14.0", "6.18.44-fc-v595", "7.0.0-rc1", "10.2"] {
            assert!(has_own_pid_max(own), "{own}");
        }
        for shared in ["6.13.9", "6.8.0-49-generic", "5.15.0", "4.18", "2.6.99", "", "x", "6", "6.x"] {
            assert!(!has_own_pid_max(shared), "{shared}");
        }
    }

    #[test]
    fn pid_max_leaves_room_for_the_limit_and_stays_in_the_kernels_bounds() {
        assert_eq!(pid_max(60), 300 + 60 + SLACK);
        assert!(pid_max(0) > FIRST_NUMBER);
        assert_eq!(pid_max(u32::MAX), LAST_NUMBER);
    }
}
