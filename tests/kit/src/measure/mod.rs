//! Figures: what was measured, beside what the machine could do in the same minute.

pub mod disk;
pub mod process;
pub mod report;

/// A folder below `folder` for one measurement, removed when dropped.
pub fn home(folder: &camino::Utf8Path) -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("fettle-bench-").tempdir_in(folder)?)
}
