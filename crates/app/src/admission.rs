//! Whether what a Task was asked for is still wanted: read before a Run begins, and again right before the first write.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::intake::is_same_label;
use fettle_domain::repo::Repo;

use crate::adding::KnownModels;
use crate::live::Live;
use crate::ports::chain;
use crate::ports::forge::{F, Forge, ForgeError};
use crate::ports::ledger::{Admission, Admissions, TaskView};
use crate::publishing::PublishOptions;
use crate::run_token::RunTokens;

/// A forge that does not answer is asked again after this; meanwhile the worker takes other work.
const FORGE_PAUSE: Duration = Duration::from_secs(15);

/// Answers whether a leased Run may begin, by asking the forge.
pub struct Gate {
    pub forge: Arc<dyn Forge>,
    /// Its label is the one whose presence triggered; a Task triggered by it is not worked on once it is gone.
    pub options: Live<PublishOptions>,
    /// `None`: no gateway checks any.
    pub run_tokens: Option<RunTokens>,
    pub models: KnownModels,
}

#[async_trait]
impl Admissions for Gate {
    async fn admit(&self, task: &TaskView) -> Admission {
        let Some(repo) = &task.repo else { return Admission::Go { read_token: None, run_token: None, model: None } };
        match self.ask(task, repo).await {
            Ok(admission) => admission,
            Err(ForgeError::RateLimited { wait }) => {
                Admission::Later { wait, why: "the forge limits our rate".to_owned() }
            }
            Err(error @ (ForgeError::Unavailable(_) | ForgeError::NoAnswer(_))) => {
                Admission::Later { wait: FORGE_PAUSE, why: chain(&error) }
            }
            Err(error @ (ForgeError::Refused(_) | ForgeError::Denied(_) | ForgeError::NotFound(_))) => {
                Admission::Refused { why: chain(&error) }
            }
        }
    }
}

impl Gate {
    async fn ask(&self, task: &TaskView, repo: &Repo) -> F<Admission> {
        if let Some(reason) = withdrawn(&*self.forge, task, repo, &self.options.now().trigger_label).await? {
            return Ok(Admission::Withdrawn { reason });
        }
        let read_token = self.forge.read_token(repo).await?;
        let Some((name, model)) = self.models.choose(task.run.model.as_deref()) else {
            return Ok(Admission::Go { read_token, run_token: None, model: None });
        };
        let run_token = self.run_tokens.as_ref().map(|tokens| tokens.token(task, name));
        Ok(Admission::Go { read_token, run_token, model })
    }
}

/// Why nobody wants the Task's issue solved any more, if so.
pub(crate) async fn withdrawn(
    forge: &dyn Forge,
    task: &TaskView,
    repo: &Repo,
    trigger_label: &str,
) -> F<Option<String>> {
    let Some(number) = task.issue.number else { return Ok(None) };
    let issue = match forge.issue(repo, number).await {
        Ok(issue) => issue,
        Err(ForgeError::NotFound(_)) => return Ok(Some("the issue is gone".to_owned())),
        Err(error) => return Err(error),
    };
    Ok(if !issue.open {
        Some("the issue was closed meanwhile".to_owned())
    } else if issue.locked {
        Some("the issue was locked meanwhile".to_owned())
    } else if task.trigger == "label" && !issue.labels.iter().any(|label| is_same_label(label, trigger_label)) {
        Some(format!("the label {trigger_label} was taken off meanwhile"))
    } else {
        None
    })
}
