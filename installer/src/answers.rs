//! What the operator decides: a small TOML file, or nothing at all.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use crate::layout::MAX_WORKERS;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answers {
    /// How many workers run: as many issues are worked on at a time. 1 to 99.
    pub workers: u8,
    /// Becomes `fettle.toml`, when there is none yet; sections and keys as there.
    pub settings: toml::Table,
    /// Secrets by file name, as `settings` names them: where each is now. They are copied, never shown.
    pub secrets: BTreeMap<String, Utf8PathBuf>,
    /// How long the services may take to become ready, in seconds.
    pub gate_timeout: u32,
    /// A backup every night.
    pub backup: bool,
}

impl Default for Answers {
    fn default() -> Self {
        Self { workers: 1, settings: toml::Table::new(), secrets: BTreeMap::new(), gate_timeout: 60, backup: true }
    }
}

impl Answers {
    /// Errors with a sentence that names the line or the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let answers: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if !(1..=MAX_WORKERS).contains(&answers.workers) {
            return Err(format!("workers: {} is not between 1 and {MAX_WORKERS}", answers.workers));
        }
        if answers.gate_timeout == 0 {
            return Err("gate_timeout: 0 s is no time in which a service could start".to_owned());
        }
        let strange = answers
            .secrets
            .iter()
            .find(|(name, path)| name.is_empty() || name.contains('/') || name.starts_with('.') || !path.is_absolute());
        if let Some((name, path)) = strange {
            return Err(format!("secrets: `{name}` must be a plain file name, and `{path}` an absolute path"));
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_a_complete_answer_and_nonsense_is_refused_by_name() {
        assert_eq!(Answers::parse("").unwrap(), Answers::default());
        for (text, named) in [
            ("workers = 0", "workers"),
            ("workers = 100", "99"),
            ("wrokers = 2", "wrokers"),
            ("gate_timeout = 0", "gate_timeout"),
            ("[secrets]\n\"../x\" = \"/srv/x\"", "../x"),
            ("[secrets]\nx = \"root/x\"", "root/x"),
        ] {
            assert!(Answers::parse(text).unwrap_err().contains(named), "{text}");
        }
    }
}
