//! The processes of this host as `/proc` shows them, and which of them are whose. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use fettle_placement::id::{EngineId, Epoch};
use serde::{Deserialize, Serialize};

/// In the environment of every process of an engine: `<engine>:<epoch>`.
pub const MARKER: &str = "FETTLE_ENGINE";
/// Beside it: the folder of its records. Two hosts of one user must not take each other's engines for orphans.
pub const MARKER_HOME: &str = "FETTLE_ENGINE_HOME";

/// A process for good: numbers are used again, a number with its start is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    /// Ticks from the boot to its start.
    pub start: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub parent: u32,
    pub session: u32,
    pub start: u64,
}

/// All that run; what has ended and waits for its parent is not among them.
#[derive(Debug, Clone, Default)]
pub struct Table(BTreeMap<u32, Process>);

impl Table {
    pub fn read() -> io::Result<Self> {
        let mut table = BTreeMap::new();
        for entry in fs_err::read_dir("/proc")? {
            // What cannot be read now has just ended.
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(stat) = fs_err::read(format!("/proc/{pid}/stat")) else { continue };
            if let Some(process) = parse(&stat) {
                table.insert(pid, process);
            }
        }
        Ok(Self(table))
    }

    pub fn identity(&self, pid: u32) -> Option<Identity> {
        self.0.get(&pid).map(|process| Identity { pid, start: process.start })
    }

    pub fn has(&self, identity: Identity) -> bool {
        self.identity(identity.pid) == Some(identity)
    }

    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }

    /// All that descend from `root`, without itself.
    pub fn below(&self, root: u32) -> BTreeSet<u32> {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (pid, process) in &self.0 {
            children.entry(process.parent).or_default().push(*pid);
        }
        let mut found = BTreeSet::new();
        let mut next = vec![root];
        while let Some(parent) = next.pop() {
            for child in children.remove(&parent).unwrap_or_default() {
                found.insert(child);
                next.push(child);
            }
        }
        found
    }

    /// Those in the session that `leader` began, without itself. A session's number is not given away while anybody is in it, so
    /// another leader of that number means that all of its first members are gone.
    pub fn in_session_of(&self, leader: Identity) -> BTreeSet<u32> {
        if self.identity(leader.pid).is_some_and(|now| now != leader) {
            return BTreeSet::new();
        }
        let members =
            self.0.iter().filter(|(_, process)| process.session == leader.pid && process.start >= leader.start);
        members.map(|(pid, _)| *pid).filter(|pid| *pid != leader.pid).collect()
    }
}

/// `None` also for what has ended and only waits to be reaped.
fn parse(stat: &[u8]) -> Option<Process> {
    // Positions in proc_pid_stat(5), counted from the field after the name, which is the process's own choice.
    const STATE: usize = 0;
    const PARENT: usize = 1;
    const SESSION: usize = 3;
    const THREADS: usize = 17;
    const START: usize = 19;
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
    // A first thread that has ended before the others is shown as a zombie, too, and the process holds all it has.
    if matches!(*fields.get(STATE)?, "Z" | "X") && number(THREADS)? <= 1 {
        return None;
    }
    Some(Process {
        parent: number(PARENT)?.try_into().ok()?,
        session: number(SESSION)?.try_into().ok()?,
        start: number(START)?,
    })
}

/// Which engine of which host a process says it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub home: String,
    pub engine: EngineId,
    pub epoch: Epoch,
}

impl Mark {
    pub fn value(engine: &EngineId, epoch: Epoch) -> String {
        format!("{engine}:{}", epoch.0)
    }

    /// `None`: it has none, has ended, or is another user's.
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs_err::read(format!("/proc/{pid}/environ")).ok()?)
    }

    fn parse(environ: &[u8]) -> Option<Self> {
        let value = |name: &str| {
            environ.split(|byte| *byte == 0).find_map(|pair| {
                let (found, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
                (found == name).then(|| value.to_owned())
            })
        };
        let mark = value(MARKER)?;
        let (engine, epoch) = mark.rsplit_once(':')?;
        Some(Self { home: value(MARKER_HOME)?, engine: EngineId::new(engine), epoch: Epoch(epoch.parse().ok()?) })
    }
}

/// What a process has done and holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub read: u64,
    pub resident: u64,
    pub anonymous: u64,
}

impl Usage {
    /// Nothing of what cannot be read: it has ended, or is another user's.
    pub fn of(pid: u32) -> Self {
        let io = fs_err::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Self::parse(&io, &status)
    }

    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            read: self.read.max(other.read),
            resident: self.resident.max(other.resident),
            anonymous: self.anonymous.max(other.anonymous),
        }
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            read: self.read.saturating_add(other.read),
            resident: self.resident.saturating_add(other.resident),
            anonymous: self.anonymous.saturating_add(other.anonymous),
        }
    }

    fn parse(io: &str, status: &str) -> Self {
        let number = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_ascii_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        let kib = |name| number(status, name).saturating_mul(1024);
        // Files that are mapped are seen at the disk only, files that are in memory already at the calls only.
        let read = number(io, "rchar:").saturating_add(number(io, "read_bytes:"));
        Self { read, resident: kib("VmRSS:"), anonymous: kib("RssAnon:") }
    }
}

/// What tells this boot from others.
pub fn boot_id() -> io::Result<String> {
    Ok(fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(state: &str, parent: u32, session: u32, threads: u32, start: u64) -> Vec<u8> {
        format!("42 (a) S 1 (b) {state} {parent} 7 {session} 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 {start} 9 5\n")
            .into_bytes()
    }

    #[test]
    fn a_name_with_brackets_does_not_move_the_fields() {
        assert_eq!(parse(&stat("S", 7, 9, 3, 100)), Some(Process { parent: 7, session: 9, start: 100 }));
    }

    #[test]
    fn a_zombie_is_gone_unless_other_threads_of_it_run() {
        assert_eq!(parse(&stat("Z", 7, 9, 1, 100)), None);
        assert!(parse(&stat("Z", 7, 9, 4, 100)).is_some());
    }

    fn table(rows: &[(u32, u32, u32, u64)]) -> Table {
        Table(rows.iter().map(|&(pid, parent, session, start)| (pid, Process { parent, session, start })).collect())
    }

    #[test]
    fn a_session_is_followed_past_its_leader_and_no_further() {
        let leader = Identity { pid: 10, start: 5 };
        let alive = table(&[(10, 1, 10, 5), (11, 10, 10, 6), (12, 11, 12, 7)]);
        assert_eq!(alive.in_session_of(leader), [11].into());
        assert_eq!(alive.below(10), [11, 12].into());
        let ended = table(&[(11, 1, 10, 6)]);
        assert_eq!(ended.in_session_of(leader), [11].into());
        let given_away = table(&[(10, 1, 10, 50), (11, 10, 10, 51)]);
        assert_eq!(given_away.in_session_of(leader), [].into());
    }

    #[test]
    fn a_mark_needs_both_its_parts() {
        let both = b"PATH=/bin\0FETTLE_ENGINE=qwen:3.1:7\0FETTLE_ENGINE_HOME=/run/x\0";
        let mark = Mark { home: "/run/x".to_owned(), engine: EngineId::new("qwen:3.1"), epoch: Epoch(7) };
        assert_eq!(Mark::parse(both), Some(mark));
        assert_eq!(Mark::parse(b"FETTLE_ENGINE=a:7\0"), None);
        assert_eq!(Mark::parse(b"FETTLE_ENGINE=a:x\0FETTLE_ENGINE_HOME=/run/x\0"), None);
        assert_eq!(Mark::parse(b""), None);
    }

    #[test]
    fn usage_is_read_in_bytes() {
        let usage = Usage::parse("rchar: 10\nwchar: 4\nread_bytes: 5\n", "VmRSS:\t  3 kB\nRssAnon:\t 2 kB\n");
        assert_eq!(usage, Usage { read: 15, resident: 3072, anonymous: 2048 });
    }

    #[test]
    fn this_process_is_in_the_table_and_its_start_is_its_own() {
        let table = Table::read().unwrap();
        let identity = table.identity(std::process::id()).unwrap();
        assert!(table.has(identity));
        assert!(!table.has(Identity { start: identity.start + 1, ..identity }));
    }
}
