//! Reads what test binaries print: how many tests passed, and which did not really run.

use std::collections::BTreeMap;

/// Begins a line by which a test says that it could not run.
const SKIPPED: &str = "SKIPPED";

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TestOutput {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// One entry for each test that the harness or the test itself left out.
    pub(crate) skipped: Vec<String>,
    in_successes: bool,
}

impl TestOutput {
    /// Takes a line of standard output; says whether a reader wants to see it. What successful tests print is asked for
    /// only to find the skips in it.
    pub(crate) fn read_out(&mut self, line: &str) -> bool {
        if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" {
            self.in_successes = false;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.in_successes = false;
            self.passed += count(counts, " passed");
            self.failed += count(counts, " failed");
        } else if let Some((test, reason)) = ignored(line) {
            self.skipped.push(format!("{test} is ignored{reason}"));
        }
        self.read_err(line);
        !self.in_successes
    }

    /// Takes a line that went past the harness.
    pub(crate) fn read_err(&mut self, line: &str) {
        if let Some(reason) = line.strip_prefix(SKIPPED) {
            self.skipped.push(reason.trim_start_matches([':', ' ']).to_owned());
        }
    }

    /// Adds what the skip log holds beyond the lines that were read: each skip is told in one place or in both.
    pub(crate) fn add_log(&mut self, log: &str) {
        let mut read = BTreeMap::<String, usize>::new();
        for reason in &self.skipped {
            *read.entry(reason.clone()).or_default() += 1;
        }
        for reason in log.lines() {
            match read.get_mut(reason) {
                Some(count) if *count > 0 => *count -= 1,
                _ => self.skipped.push(reason.to_owned()),
            }
        }
    }
}

/// The number before `what` in `ok. 12 passed; 0 failed; …`.
fn count(counts: &str, what: &str) -> u64 {
    let before = counts.split(what).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// The test and `: reason`, if it gives one, of `test some::name ... ignored, reason`.
fn ignored(line: &str) -> Option<(&str, String)> {
    let (test, rest) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((test, rest.strip_prefix(", ").map(|reason| format!(": {reason}")).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
running 3 tests
test a::works ... ok
test b::waits ... ignored, needs the moon
test c::skips ... ok

successes:

---- c::skips stdout ----
SKIPPED: no python here
noise

successes:
    a::works
    c::skips

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s
test result: FAILED. 1 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";

    #[test]
    fn passes_failures_and_skips_are_counted_and_the_noise_of_success_is_hidden() {
        let mut output = TestOutput::default();
        let shown: Vec<&str> = TEXT.lines().filter(|line| output.read_out(line)).collect();
        assert_eq!((output.passed, output.failed), (3, 4));
        assert_eq!(output.skipped, ["b::waits is ignored: needs the moon", "no python here"]);
        assert!(!shown.contains(&"noise") && !shown.contains(&"    a::works"), "{shown:?}");
        assert!(shown.contains(&"test a::works ... ok") && shown.iter().any(|line| line.contains("FAILED")));
    }

    #[test]
    fn what_failed_tests_print_stays_visible() {
        let mut output = TestOutput::default();
        let text = ["successes:", "quiet", "failures:", "---- d::breaks stdout ----", "left: 1"];
        let shown: Vec<&str> = text.into_iter().filter(|line| output.read_out(line)).collect();
        assert_eq!(shown, ["failures:", "---- d::breaks stdout ----", "left: 1"]);
    }

    #[test]
    fn a_skip_told_in_the_log_and_on_the_terminal_counts_once() {
        let mut output = TestOutput::default();
        output.read_err("SKIPPED: offline");
        output.add_log("offline\noffline\nno cgroup\n");
        assert_eq!(output.skipped, ["offline", "offline", "no cgroup"]);
    }
}
