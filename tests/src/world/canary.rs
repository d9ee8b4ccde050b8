//! Secrets that are planted so that their leaking shows.

use anyhow::ensure;
use camino::{Utf8Path, Utf8PathBuf};

/// The name of a planted variable; no prefix that programs of ours read.
pub(super) const VARIABLE: &str = "PLANTED_SECRET";
pub(super) const OF_ENVIRONMENT: &str = "canary-of-the-environment-4be1";

/// What must not show up anywhere but in its own place.
#[derive(Default)]
pub struct Canaries(Vec<(String, String)>);

impl Canaries {
    pub fn add(&mut self, name: &str, secret: &str) {
        self.0.push((name.to_owned(), secret.to_owned()));
    }

    /// Plants one in a file of its own.
    pub fn plant(&mut self, file: &Utf8Path, secret: &str) -> anyhow::Result<Utf8PathBuf> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        writeln!(fs_err::OpenOptions::from_options(options).open(file)?, "{secret}")?;
        // Of a key in many lines, any one gives it away.
        let line = secret.lines().map(str::trim).max_by_key(|line| line.len()).unwrap_or_default();
        self.add(file.as_str(), line);
        Ok(file.to_owned())
    }

    /// Errors with the name of the first that `text` contains.
    pub fn absent_from(&self, place: &str, text: &str) -> anyhow::Result<()> {
        for (name, secret) in &self.0 {
            ensure!(!text.contains(secret.as_str()), "the secret of {name} shows up in {place}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_secret_is_found_by_any_long_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::try_from(folder.path().join("key")).unwrap();
        let mut canaries = Canaries::default();
        canaries.plant(&file, "BEGIN\nlong-line-of-a-key\nEND").unwrap();
        assert!(canaries.absent_from("a log", "BEGIN and END").is_ok());
        let error = canaries.absent_from("a log", "x long-line-of-a-key y").unwrap_err().to_string();
        assert!(error.contains("key shows up in a log"), "{error}");
    }
}
