//! Whether the forge has what the ledger says it has, no more and no less: invariant I10. Reads only.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_domain::branch::BranchName;
use fettle_domain::effect::{EffectState, Receipt, comment_marker};
use fettle_domain::id::TaskId;
use fettle_domain::repo::Repo;
use futures::StreamExt as _;

use crate::ports::chain;
use crate::ports::forge::{F, Forge, ForgeError};
use crate::ports::ledger::{L, Ledger, TaskFilter, TaskView};
use crate::publishing::RESULT_COMMENT;

/// Questions to the forge at once; it limits how many, and this is in nobody's way.
const AT_ONCE: usize = 4;

/// What the comparison came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForgeAudit {
    /// Tasks that have written something.
    pub compared: u32,
    /// One sentence each; empty when all of it fits.
    pub breaches: Vec<String>,
    /// Those that could not be asked about, and why.
    pub unasked: Vec<(TaskId, String)>,
}

/// The edge asks through this.
#[async_trait]
pub trait AuditForge: Send + Sync {
    /// Compares the newest `tasks` Tasks.
    async fn audit(&self, tasks: u16) -> L<ForgeAudit>;
}

/// With the ledger's and the forge's help.
pub struct Auditing {
    pub ledger: Arc<dyn Ledger>,
    pub forge: Arc<dyn Forge>,
}

#[async_trait]
impl AuditForge for Auditing {
    async fn audit(&self, tasks: u16) -> L<ForgeAudit> {
        let tasks = self.ledger.tasks(TaskFilter::default(), None, tasks).await?;
        let written = tasks.iter().filter_map(|task| Some((task, task.repo.as_ref()?, Written::of(task))));
        let written = written.filter(|(_, _, written)| *written != Written::default());
        let comparisons: Vec<_> = written.map(|(task, repo, written)| self.compared(task, repo, written)).collect();
        let asked: Vec<_> = futures::stream::iter(comparisons).buffered(AT_ONCE).collect().await;
        let mut audit = ForgeAudit { compared: asked.len().try_into().unwrap_or(u32::MAX), ..ForgeAudit::default() };
        for (task, answer) in asked {
            match answer {
                Ok(breaches) => audit.breaches.extend(breaches),
                Err(error) => {
                    audit.compared -= 1;
                    audit.unasked.push((task, chain(&error)));
                }
            }
        }
        Ok(audit)
    }
}

impl Auditing {
    async fn compared(&self, task: &TaskView, repo: &Repo, written: Written) -> (TaskId, F<Vec<String>>) {
        let found = self.found(task, repo, &written).await;
        (task.id, found.map(|found| judge(task.id, &written, &found)))
    }

    async fn found(&self, task: &TaskView, repo: &Repo, written: &Written) -> Result<Found, ForgeError> {
        let pulls = match &written.branch {
            Some(branch) => self.forge.pulls_by_head(repo, branch.as_str()).await?,
            None => Vec::new(),
        };
        let marker = comment_marker(task.id, RESULT_COMMENT);
        let comments = match task.issue.number.filter(|_| written.comment.is_some()) {
            Some(issue) => self.forge.own_comments(repo, issue, &marker).await?,
            None => Vec::new(),
        };
        Ok(Found {
            pulls: pulls.iter().map(|pull| pull.number).collect(),
            comments: comments.iter().map(|comment| comment.id).collect(),
        })
    }
}

/// What the ledger has receipts for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Written {
    branch: Option<BranchName>,
    pull: Option<u64>,
    comment: Option<u64>,
}

impl Written {
    fn of(task: &TaskView) -> Self {
        let mut written = Self::default();
        for effect in &task.effects {
            let EffectState::Settled { receipt } = &effect.state else { continue };
            match receipt {
                Receipt::Pushed { branch, .. } => written.branch = Some(branch.clone()),
                Receipt::PullRequest { number, .. } => written.pull = Some(*number),
                Receipt::Progress { id, .. } | Receipt::Comment { id } => written.comment = Some(*id),
                Receipt::Labels | Receipt::Withheld { .. } => {}
            }
        }
        written
    }
}

/// What the forge has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Found {
    pulls: Vec<u64>,
    comments: Vec<u64>,
}

/// A person may delete a comment or a repository's pull requests may be gone; that is theirs to do and no breach.
fn judge(task: TaskId, written: &Written, found: &Found) -> Vec<String> {
    let mut breaches = Vec::new();
    let branch = written.branch.as_ref().map_or("its branch", BranchName::as_str);
    if found.pulls.len() > 1 {
        breaches.push(format!("I10: {task} has {} pull requests of {branch}: {:?}", found.pulls.len(), found.pulls));
    }
    if let (Some(ours), [other]) = (written.pull, found.pulls.as_slice())
        && ours != *other
    {
        breaches.push(format!("I10: {task} says that it opened #{ours}, and {branch} is that of #{other}"));
    }
    if written.pull.is_none() && !found.pulls.is_empty() {
        breaches.push(format!("I10: {task} has no pull request, and the forge has {:?} of {branch}", found.pulls));
    }
    if found.comments.len() > 1 {
        breaches.push(format!("I10: {task} has {} result comments: {:?}", found.comments.len(), found.comments));
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_pull_request_or_comment_is_a_breach_and_what_people_removed_is_none() {
        let task = TaskId::from_uuid(uuid::Uuid::from_u128(7));
        let written = Written { branch: None, pull: Some(4), comment: Some(9) };
        let told = |pulls: &[u64], comments: &[u64]| {
            judge(task, &written, &Found { pulls: pulls.to_vec(), comments: comments.to_vec() }).len()
        };
        assert_eq!((told(&[4], &[9]), told(&[], &[])), (0, 0));
        assert_eq!((told(&[4, 5], &[9]), told(&[4], &[9, 10]), told(&[5], &[])), (1, 1, 1));
        let none = Written { pull: None, ..written };
        assert_eq!(judge(task, &none, &Found { pulls: vec![4], comments: Vec::new() }).len(), 1);
    }
}
