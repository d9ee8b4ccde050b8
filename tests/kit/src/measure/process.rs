//! What the kernel knows of a process.

use std::time::Duration;

use anyhow::Context as _;

/// Time that all threads of the process have spent on a CPU. Threads that ended are not in it.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut total = 0;
    for thread in fs_err::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while the folder is read.
        let Ok(text) = fs_err::read_to_string(thread?.path().join("schedstat")) else { continue };
        let nanoseconds = text.split_whitespace().next().context("schedstat begins with the time on a CPU")?;
        total += nanoseconds.parse::<u64>().context("schedstat counts nanoseconds")?;
    }
    Ok(Duration::from_nanos(total))
}

/// `VmRSS`: what of the process lies in memory.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has a VmRSS")?;
    let kilobytes = line.trim().trim_end_matches("kB").trim();
    Ok(kilobytes.parse::<u64>().context("VmRSS is in kB")? * 1024)
}

/// The one-minute load average.
pub fn load_average() -> anyhow::Result<f64> {
    let text = fs_err::read_to_string("/proc/loadavg")?;
    let first = text.split_whitespace().next().context("loadavg begins with the last minute")?;
    Ok(first.parse()?)
}
