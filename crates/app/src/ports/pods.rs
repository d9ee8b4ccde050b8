//! The workers' pods, where Fettle runs in a cluster.

use async_trait::async_trait;
use fettle_domain::pod::PodName;
use jiff::Timestamp;

use super::BoxError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`, as the cluster says it.
    pub phase: String,
    pub ready: bool,
    pub restarts: u32,
    /// `None` while it has no place.
    pub node: Option<String>,
    pub created_at: Timestamp,
    /// Why it does not run, or how it ended, in the cluster's words. Foreign text.
    pub why: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pods {
    /// The newest first.
    pub items: Vec<Pod>,
    /// There are more.
    pub cut: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLog {
    /// The end of it. Foreign text.
    pub text: String,
    /// Its beginning was longer than is read.
    pub cut: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    #[error("no worker has the pod {0}")]
    NotFound(PodName),
    /// It has not begun yet; in the cluster's words.
    #[error("the pod {0} has no log yet: {1}")]
    NotYet(PodName, String),
    /// The operator's turn.
    #[error("the cluster does not let this dashboard see pods: {0}")]
    Refused(String),
    #[error("the cluster could not be asked")]
    Unavailable(#[source] BoxError),
}

#[async_trait]
pub trait ShowPods: Send + Sync {
    async fn list(&self) -> Result<Pods, PodsError>;
    /// The last `lines` of what the worker in it has said.
    async fn log(&self, pod: &PodName, lines: u16) -> Result<PodLog, PodsError>;
}
