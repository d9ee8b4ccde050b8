//! A test that cannot run says so where somebody sees it, and is counted.

use std::io::Write as _;

/// The file in which `cargo xtask test` counts the skips of a run.
const LOG: &str = "FETTLE_SKIP_LOG";

/// Says on the terminal, past the test harness's capture, that a test did not run and why; adds the reason to the log, if
/// there is one.
pub fn skip(reason: &str) {
    let reason = reason.replace(['\n', '\r'], " ");
    let said = std::io::stderr().write_all(format!("SKIPPED: {reason}\n").as_bytes());
    #[expect(clippy::disallowed_methods, reason = "the test runner speaks to tests through the environment")]
    let counted = std::env::var_os(LOG).map_or(Ok(()), |log| {
        // One write, so that lines of several processes stay whole.
        let mut log = fs_err::OpenOptions::new().create(true).append(true).open(std::path::PathBuf::from(log))?;
        log.write_all(format!("{reason}\n").as_bytes())
    });
    assert!(said.is_ok() && counted.is_ok(), "a skip that nobody sees would pass for a success");
}
