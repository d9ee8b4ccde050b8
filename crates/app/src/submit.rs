//! Asking for work without the forge's own events: the port through which API, CLI and foreign messages make a Task.
//!
//! The caller has read the request's form; whether its content names a repository, an issue and a person that may ask
//! for work is decided behind this port.

use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::id::{CorrelationId, RunId, TaskId};
use fettle_domain::task::Mode;

use crate::ports::BoxError;
use crate::ports::ledger::{LedgerError, Opened};

/// What somebody asks for, not yet checked against the forge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTask {
    /// `owner/name` or an https or ssh URL on a configured forge. Absent only for a probe.
    pub repository: Option<String>,
    pub issue: Option<u64>,
    /// Title and body of a Task without an issue. Never together with `issue`.
    pub text: Option<(String, String)>,
    pub mode: Mode,
    /// A configured model's name; absent for the first one.
    pub model: Option<String>,
    /// Beside the first Run.
    pub further: Vec<FurtherRun>,
    /// The base branch; absent for the repository's default.
    pub base: Option<String>,
    /// `admin`, or the forge login whose permission decides.
    pub actor: String,
    /// `api`, `cli` or `foreign`.
    pub trigger: &'static str,
    /// The same key from the same trigger is the same request.
    pub idempotency_key: Option<String>,
    pub correlation: CorrelationId,
}

/// Another Run of the same Task, to be compared with the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FurtherRun {
    /// A configured model's name; absent for the first one.
    pub model: Option<String>,
    /// What this Run is told and the others are not.
    pub instruction: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    pub task: TaskId,
    pub opened: Opened,
}

/// By what the asker can do about it.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// `pointer` is a JSON pointer into the request's native form: `/repository`.
    #[error("{detail}")]
    Invalid { pointer: String, detail: String },
    /// A repository's URL is not on the configured forge.
    #[error("`{host}` is not the configured forge ({known})")]
    UnknownHost { host: String, known: String },
    #[error("{0} may not start work here")]
    NotPermitted(String),
    #[error("{0} does not exist or is not visible")]
    NotFound(Missing),
    /// The forge did not answer or limits us.
    #[error("{what} is not available")]
    Unavailable {
        what: String,
        retry_after: Duration,
        #[source]
        cause: BoxError,
    },
    #[error("could not store the Task")]
    Ledger(#[source] LedgerError),
}

/// What the forge does not show us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    Repository(String),
    Issue {
        repository: String,
        number: u64,
    },
    /// Of whoever asks.
    Login(String),
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Repository(name) => write!(f, "the repository {name}"),
            Self::Issue { repository, number } => write!(f, "issue #{number} of {repository}"),
            Self::Login(login) => f.write_str(login),
        }
    }
}

#[async_trait]
pub trait SubmitTask: Send + Sync {
    /// Durable when it returns.
    async fn submit(&self, request: NewTask) -> Result<Submitted, SubmitError>;

    /// Further Runs of a Task, in their order. Durable when it returns.
    /// The same `key` again for the same Task adds nothing and gives the same Runs.
    async fn add_runs(
        &self,
        task: TaskId,
        by: &str,
        runs: Vec<FurtherRun>,
        key: Option<&str>,
    ) -> Result<Vec<RunId>, SubmitError>;
}
