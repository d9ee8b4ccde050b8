//! `.fettle.toml`, the repository's own word about its commands. Read from the base only; a key we do not know is refused,
//! because a misspelt one would change silently what is proven.

use fettle_domain::proof::CommandSource;
use serde::Deserialize;

use super::{CheckCommand, Commands, ReportForm, Suite, TargetForm};

pub(super) const FILE: &str = ".fettle.toml";

/// The file cannot be used; says where and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(".fettle.toml, line {line}: {what}")]
pub struct ConfigError {
    pub line: usize,
    pub what: String,
}

/// Rules that a repository adds to those of the operator, as globs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PathRules {
    /// Further files that hold tests.
    pub tests: Vec<String>,
    /// Files that must not be changed.
    pub forbidden: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RepoConfig {
    setup: Step,
    build: Step,
    test: TestStep,
    lint: Step,
    paths: PathRules,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Step {
    command: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TestStep {
    command: Option<String>,
    /// With `{target}` where a file or test id goes.
    target: Option<String>,
    /// A JUnit file that the command writes, relative to the root.
    report: Option<String>,
}

impl RepoConfig {
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
            ConfigError { line, what: error.message().to_owned() }
        })?;
        let refuse = |key: &str, what: &str| {
            let line = text.lines().position(|line| line.trim_start().starts_with(key)).map_or(1, |at| at + 1);
            Err(ConfigError { line, what: what.to_owned() })
        };
        if config.test.target.as_ref().is_some_and(|target| !target.contains("{target}")) {
            return refuse("target", "`test.target` lacks `{target}`, the place of the file or test id");
        }
        if config.test.report.as_ref().is_some_and(|path| fettle_domain::path::RepoPath::parse(path).is_err()) {
            return refuse("report", "`test.report` is not a path inside the repository");
        }
        if config.test.command.is_none() && (config.test.target.is_some() || config.test.report.is_some()) {
            return refuse("[test]", "`test.target` and `test.report` need `test.command`");
        }
        for glob in config.paths.tests.iter().chain(&config.paths.forbidden) {
            if let Err(error) = globset::Glob::new(glob) {
                return refuse("[paths]", &error.to_string());
            }
        }
        Ok(config)
    }

    pub(super) fn apply(self, commands: &mut Commands) {
        commands.setup = self.setup.command;
        for (name, step) in [("build", self.build), ("lint", self.lint)] {
            if let Some(command) = step.command {
                commands.checks.retain(|check| check.name != name);
                let check = CheckCommand { name: name.to_owned(), command, source: CommandSource::Repository };
                commands.checks.push(check);
            }
        }
        if let Some(command) = self.test.command {
            let mut suite = Suite::given(&command, CommandSource::Repository);
            if let Some(path) = self.test.report {
                suite.report = ReportForm::Junit { path };
            }
            if let Some(template) = self.test.target {
                suite.target = TargetForm::Template(template);
            }
            commands.suites = vec![suite];
        }
        commands.paths = self.paths;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_its_name_and_line() {
        let error = RepoConfig::parse("[test]\ncommand = \"make check\"\ncomand = \"x\"\n").unwrap_err();
        assert_eq!(error.line, 3);
        assert!(error.what.contains("comand"), "{error}");
        assert!(RepoConfig::parse("[tests]\n").unwrap_err().what.contains("tests"));
    }

    #[test]
    fn a_target_without_its_place_and_a_report_outside_are_refused() {
        let text = "[test]\ncommand = \"t\"\ntarget = \"t x\"\n";
        assert_eq!(RepoConfig::parse(text).unwrap_err().line, 3);
        let text = "[test]\ncommand = \"t\"\nreport = \"../r.xml\"\n";
        assert_eq!(RepoConfig::parse(text).unwrap_err().line, 3);
    }
}
