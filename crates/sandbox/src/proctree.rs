//! Who descends from a process, read from `/proc`.

use std::collections::BTreeMap;
use std::io;

use crate::sys;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) threads: u64,
    /// Pages shared with others are counted in full.
    pub(crate) resident_bytes: u64,
}

/// All descendants of `root`, without itself. A process whose parents have ended counts while its subreaper is a descendant or `root`.
pub(crate) fn below(root: i32) -> io::Result<Vec<Process>> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    for entry in fs_err::read_dir("/proc")? {
        // What cannot be read now has just ended, or is none of ours.
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended since the folder was read.
        let Ok(stat) = fs_err::read(format!("/proc/{pid}/stat")) else { continue };
        if let Some((parent, process)) = parse(pid, &stat) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found: Vec<Process> = Vec::new();
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for process in children.remove(&parent).unwrap_or_default() {
            next.push(process.pid);
            found.push(process);
        }
    }
    Ok(found)
}

/// Parent and facts from `/proc/PID/stat`. The name in brackets is the process's own choice, so parsing starts after the last one.
fn parse(pid: i32, stat: &[u8]) -> Option<(i32, Process)> {
    // Positions in proc_pid_stat(5), counted from the field after the name.
    const PARENT: usize = 1;
    const THREADS: usize = 17;
    const RESIDENT_PAGES: usize = 21;
    let end_of_name = stat.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let process =
        Process { pid, threads: number(THREADS)?, resident_bytes: number(RESIDENT_PAGES)? * sys::page_bytes() };
    Some((fields.get(PARENT)?.parse().ok()?, process))
}

/// The share of a process in memory: shared pages are divided among those who share them. `None` where the kernel does not say.
pub(crate) fn proportional_bytes(pid: i32) -> Option<u64> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_numbers_does_not_move_the_fields() {
        let stat = b"42 (a) S 1 (b) R 7 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 3 0 100 9999 5 0 0\n";
        let (parent, process) = parse(42, stat).expect("it is a valid line");
        assert_eq!(parent, 7);
        assert_eq!(process, Process { pid: 42, threads: 3, resident_bytes: 5 * sys::page_bytes() });
    }
}
