//! Which commands build and test a repository, and how their results are read.
//!
//! Decided from the files of the base alone: what a patch says about commands is never asked. Nothing here runs anything.

mod config;
mod detect;
mod files;
pub mod report;
mod target;

use fettle_domain::path::RepoPath;
use fettle_domain::proof::CommandSource;

pub use config::{ConfigError, PathRules};
pub use files::BaseFiles;
pub(crate) use files::is_requirements;
pub use target::Selection;
pub(crate) use target::quote;

/// Everything that is run in a repository, from one base.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commands {
    /// What `.fettle.toml` wants done before anything else, with the network of preparation.
    pub setup: Option<String>,
    /// Build, lint and format commands, each compared before and after.
    pub checks: Vec<CheckCommand>,
    /// Empty: no test command is known.
    pub suites: Vec<Suite>,
    /// What lies at the root, for preparation; independent of who chose the test command.
    pub ecosystems: Vec<Ecosystem>,
    pub paths: PathRules,
    /// What the commands run by another name, such as `scripts.test` of `package.json`.
    pub scripts: Vec<String>,
    /// Files at the root that the commands write and the base lacks; never a part of a patch.
    pub by_products: Vec<RepoPath>,
    /// What was seen and not used, one sentence each.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ecosystem {
    Cargo,
    Npm,
    Pytest,
    Make,
}

impl Ecosystem {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cargo => "cargo",
            Self::Npm => "npm",
            Self::Pytest => "pytest",
            Self::Make => "make",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckCommand {
    /// `build`, `lint`, `format`, `typecheck`.
    pub name: String,
    pub command: String,
    pub source: CommandSource,
}

/// One command that runs tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    pub source: CommandSource,
    /// As people would type it at the root.
    pub command: String,
    pub target: TargetForm,
    pub report: ReportForm,
}

/// How a part of the suite is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetForm {
    /// Only the whole command is known.
    None,
    /// `{target}` of `.fettle.toml`.
    Template(String),
    /// Test names behind `--`, file names become the names of their binaries.
    Cargo,
    /// Node ids and files behind the command.
    Pytest,
    /// `node --test` with files and name patterns.
    Node { flags: String },
    /// Files behind `--`.
    Script,
}

/// Where the results of single tests stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportForm {
    /// libtest's lines in the output.
    Libtest,
    /// JUnit by way of `PYTEST_ADDOPTS`, which leaves the command as it is.
    Pytest,
    /// TAP or `spec` lines in the output.
    Node,
    /// jest's or vitest's JSON: these words make the runner write it to `{report}`.
    Json { words: &'static str },
    /// A JUnit file in the workspace.
    Junit { path: String },
    /// Only the exit status.
    Exit,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoverError {
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Finds the commands. Precedence:
///
/// 1. `operator`, the command of `fettle fix --test CMD`: the operator's word for this one run;
/// 2. `.fettle.toml` of the base (what it does not name is left to the next);
/// 3. every ecosystem found at the root, Make only where there is no other.
///
/// A test command replaces all suites; build and lint commands are replaced one by one. Ecosystems in folders below the root
/// are not looked for; a note says so where a manifest was seen.
pub fn discover(files: &BaseFiles, operator: Option<&str>) -> Result<Commands, DiscoverError> {
    let config = match files.text(config::FILE) {
        Some(text) => config::RepoConfig::parse(&text)?,
        None => config::RepoConfig::default(),
    };
    let mut commands = detect::at_root(files);
    config.apply(&mut commands);
    if let Some(command) = operator.map(str::trim).filter(|command| !command.is_empty()) {
        commands.suites = vec![Suite::given(command, CommandSource::Operator)];
    }
    Ok(commands)
}

impl Suite {
    /// A command somebody wrote. Its words say which results can be read from its output without changing what it does.
    pub(crate) fn given(command: &str, source: CommandSource) -> Self {
        let words: Vec<&str> = command.split_whitespace().collect();
        let pair = |first: &str, second: &str| words.windows(2).any(|w| w[0].ends_with(first) && w[1] == second);
        let (target, report) = if pair("cargo", "test") {
            (TargetForm::None, ReportForm::Libtest)
        } else if words.iter().any(|word| *word == "pytest" || word.ends_with("/pytest")) {
            (TargetForm::None, ReportForm::Pytest)
        } else if pair("node", "--test") {
            (TargetForm::None, ReportForm::Node)
        } else {
            (TargetForm::None, ReportForm::Exit)
        };
        Self { source, command: command.to_owned(), target, report }
    }
}

impl Commands {
    /// Whether a command that judges the code names the file `path`: `sh tools/test`, `./tools/test`.
    pub(crate) fn name_file(&self, path: &str) -> bool {
        let suites = self.suites.iter().flat_map(|suite| match &suite.target {
            TargetForm::Template(template) => vec![suite.command.as_str(), template.as_str()],
            TargetForm::None
            | TargetForm::Cargo
            | TargetForm::Pytest
            | TargetForm::Node { .. }
            | TargetForm::Script => {
                vec![suite.command.as_str()]
            }
        });
        let commands = suites
            .chain(self.checks.iter().map(|check| check.command.as_str()))
            .chain(self.scripts.iter().map(String::as_str));
        let is_end =
            |c: char| c.is_whitespace() || matches!(c, '\'' | '"' | ';' | '&' | '|' | '(' | ')' | '<' | '>' | '=');
        commands.flat_map(|command| command.split(is_end)).any(|word| word.strip_prefix("./").unwrap_or(word) == path)
    }

    /// A digest over everything that is run, for caches of results.
    pub fn digest(&self) -> fettle_domain::object::BlobId {
        fettle_domain::object::BlobId::of(format!("{:?}{:?}{:?}", self.setup, self.checks, self.suites).as_bytes())
    }
}
