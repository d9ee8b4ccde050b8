//! The four effects. Each reads what is there before it writes, and again whenever an answer was lost.

use fettle_domain::branch::BranchName;
use fettle_domain::effect::{Effect, EffectState, Intent, Receipt, comment_marker};
use fettle_domain::object::CommitId;
use fettle_domain::proposal::Verdict;
use fettle_domain::repo::Repo;
use fettle_domain::run::{ProvenChange, RunOutcome};
use fettle_domain::secret;
use tracing::{info, warn};

use super::texts::{self, Identity, OutcomeLabel};
use super::{FORGE_WRITE, Halt, Publisher, READ_BACK_PAUSE, Story};
use crate::admission::withdrawn;
use crate::crash::{self, Point};
use crate::leasing::HeldLease;
use crate::ports::forge::{ForgeError, IssueComment, Pull, PullOpened, PullSpec};
use crate::ports::git::{PushError, PushTarget, Pushed, Source};
use crate::ports::journal::Stop;
use crate::ports::ledger::{Fenced, Publication};

/// Branch names tried when others hold the wanted one (`-g2`, `-g3`, …).
const BRANCH_TRIES: u32 = 20;
/// Reads and pushes of one branch before the job waits: each round reads the ref anew.
const PUSH_ROUNDS: u32 = 3;
/// Why a proven change is a draft all the same.
const ASKED_FOR: &str = "who chose this change asked for a draft";

impl Publisher {
    pub(super) async fn push_branch(
        &self,
        held: &HeldLease,
        publication: &Publication,
        effect: &Effect,
    ) -> Result<Receipt, Halt> {
        let (Some(repo), Some(change)) = (&publication.task.repo, change(publication)) else {
            return self.withhold(held, effect, "there is no patch to push".into()).await;
        };
        let options = self.options.now();
        let label = &options.trigger_label;
        if let Some(reason) = withdrawn(&*self.forge, &publication.task, repo, label).await? {
            return self.withhold(held, effect, reason).await;
        }
        let prepared = self.prepare(publication, repo, change, &options).await?;
        match &prepared.verdict {
            Verdict::Publish | Verdict::Draft(_) => {}
            Verdict::NeedsHuman(reasons) => {
                let reason = format!("a person must approve it first: {}", reasons.join("; "));
                return self.withhold(held, effect, reason).await;
            }
            Verdict::Reject(reasons) => {
                let reason = format!("the change was rejected: {}", reasons.join("; "));
                return self.withhold(held, effect, reason).await;
            }
        }
        let commit = prepared.commit;
        let write = Source { token: Some(self.forge.write_token(repo).await?), ..prepared.source };
        let branch = match &effect.state {
            EffectState::Intended { intent: Intent::Push { branch, .. } } => branch.clone(),
            _ => self.free_branch(publication, &write, commit).await?,
        };
        let target = PushTarget { source: write, branch: branch.clone() };
        for round in 0..PUSH_ROUNDS {
            let expected = self.push.remote_tip(&target).await?;
            if expected == Some(commit) {
                info!("{branch} is already at {}", commit.short());
                if round == 0 {
                    self.adopt(held, repo, effect, Intent::Push { branch: branch.clone(), expected, commit }).await?;
                }
                return self.settle_push(held, effect, branch, commit).await;
            }
            if let Some(found) = expected
                && !self.is_ours(publication, &target.source, found).await?
            {
                let reason =
                    format!("{branch} holds commit {} by somebody else, which is never overwritten", found.short());
                return self.withhold(held, effect, reason).await;
            }
            let intent = Intent::Push { branch: branch.clone(), expected, commit };
            self.intend(held, repo, effect, intent, Some(Point::PushIntend)).await?;
            crash::before(Point::PushSend);
            let pushed = self.push.push(&target, expected, commit).await;
            crash::after(Point::PushSend);
            match pushed {
                Ok(Pushed::Moved | Pushed::AlreadyThere) => {
                    return self.settle_push(held, effect, branch, commit).await;
                }
                Ok(Pushed::Conflict { found }) => warn!("{branch} moved to {found:?} meanwhile; reading it again"),
                Err(PushError::NoAnswer(cause)) => {
                    warn!("the push to {branch} was not answered, reading it back: {cause}")
                }
                Err(PushError::Refused(why)) => {
                    return self
                        .withhold(held, effect, format!("the forge refused the push: {}", texts::short(&why)))
                        .await;
                }
                Err(error @ (PushError::Unavailable(_) | PushError::Denied)) => return Err(error.into()),
            }
        }
        Err(Halt::Again(format!("{branch} kept moving")))
    }

    async fn settle_push(
        &self,
        held: &HeldLease,
        effect: &Effect,
        branch: BranchName,
        commit: CommitId,
    ) -> Result<Receipt, Halt> {
        crash::before(Point::PushSettle);
        let receipt = self.settle(held, effect, Receipt::Pushed { branch, commit }).await;
        crash::after(Point::PushSettle);
        receipt
    }

    /// The Task's own branch name, or the next one that nobody else holds.
    async fn free_branch(
        &self,
        publication: &Publication,
        source: &Source,
        commit: CommitId,
    ) -> Result<BranchName, Halt> {
        let task = &publication.task;
        let mut branch = publication.branch.clone();
        for generation in task.generation + 1..=task.generation + BRANCH_TRIES {
            let target = PushTarget { source: source.clone(), branch: branch.clone() };
            match self.push.remote_tip(&target).await? {
                None => return Ok(branch),
                Some(tip) if tip == commit || self.is_ours(publication, source, tip).await? => return Ok(branch),
                Some(_) => branch = BranchName::of(task.mode, task.issue.number, task.id, generation.max(2)),
            }
        }
        Err(Halt::Again(format!("no free branch name near {}", publication.branch)))
    }

    /// Whether `commit` is one that this Task made: our identity and this Task's trailer.
    async fn is_ours(&self, publication: &Publication, source: &Source, commit: CommitId) -> Result<bool, Halt> {
        let described = self.repositories.describe_commit(source, commit).await?;
        Ok(described.is_some_and(|commit| {
            // A person who amends it leaves author and trailer as they are, and becomes its committer.
            let identity = [&commit.author_email, &commit.committer_email];
            identity.iter().all(|email| *email == Identity::EMAIL)
                && texts::carries_trailer(&commit.message, publication.task.id)
        }))
    }

    pub(super) async fn open_pull_request(
        &self,
        held: &HeldLease,
        publication: &Publication,
        effect: &Effect,
        story: &Story,
    ) -> Result<Receipt, Halt> {
        let (Some(repo), Some(change)) = (&publication.task.repo, change(publication)) else {
            return self.withhold(held, effect, "there is no patch to show".into()).await;
        };
        let Some((branch, _)) = &story.pushed else {
            let reason = story.withheld.clone().unwrap_or_else(|| "nothing was pushed".into());
            return self.withhold(held, effect, reason).await;
        };
        if let Some(pull) = self.pull_of(repo, branch).await? {
            info!("adopting pull request #{}", pull.number);
            let base = publication.task.base_branch(repo);
            self.adopt(held, repo, effect, Intent::PullRequest { head: branch.clone(), base, draft: pull.draft })
                .await?;
            return self.settle_pull(held, effect, pull).await;
        }
        let verdict = match self.prepare(publication, repo, change, &self.options.now()).await?.verdict {
            Verdict::Publish if publication.task.as_draft => Verdict::Draft(vec![ASKED_FOR.to_owned()]),
            verdict => verdict,
        };
        let texts = texts::pull_request(publication, change).with_verdict(&verdict, change.proof.level);
        let base = publication.task.base_branch(repo);
        let draft = verdict != Verdict::Publish;
        let spec = PullSpec {
            title: texts.title,
            body: texts.body,
            head: branch.as_str().to_owned(),
            base: base.clone(),
            draft,
        };
        self.intend(
            held,
            repo,
            effect,
            Intent::PullRequest { head: branch.clone(), base, draft },
            Some(Point::PullIntend),
        )
        .await?;
        crash::before(Point::PullSend);
        let opened = self.forge.open_pull(repo, &spec).await;
        crash::after(Point::PullSend);
        match opened {
            Ok(PullOpened::Created(pull)) => self.settle_pull(held, effect, pull).await,
            Ok(PullOpened::Exists) | Err(ForgeError::NoAnswer(_)) => {
                match self.pull_of_patiently(repo, branch).await? {
                    Some(pull) => self.settle_pull(held, effect, pull).await,
                    None => Err(Halt::Again("the forge did not answer and shows no pull request yet".into())),
                }
            }
            Err(ForgeError::Refused(why)) => {
                self.withhold(held, effect, format!("the forge refused the pull request: {}", texts::short(&why))).await
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn settle_pull(&self, held: &HeldLease, effect: &Effect, pull: Pull) -> Result<Receipt, Halt> {
        crash::before(Point::PullSettle);
        let receipt = Receipt::PullRequest { number: pull.number, url: pull.url, draft: pull.draft };
        let receipt = self.settle(held, effect, receipt).await;
        crash::after(Point::PullSettle);
        receipt
    }

    /// The pull request of our branch in any state; one that a person closed is adopted as final.
    async fn pull_of(&self, repo: &Repo, branch: &BranchName) -> Result<Option<Pull>, Halt> {
        Ok(self.forge.pulls_by_head(repo, branch.as_str()).await?.into_iter().min_by_key(|pull| pull.number))
    }

    async fn pull_of_patiently(&self, repo: &Repo, branch: &BranchName) -> Result<Option<Pull>, Halt> {
        if let Some(pull) = self.pull_of(repo, branch).await? {
            return Ok(Some(pull));
        }
        tokio::time::sleep(READ_BACK_PAUSE).await;
        self.pull_of(repo, branch).await
    }

    /// What the issue is told while the Run is at work. Once that has ended the comment of its end says all, unless this one
    /// may be on its way already: then it is found first, and no other is posted beside it.
    pub(super) async fn tell_progress(
        &self,
        held: &HeldLease,
        publication: &Publication,
        effect: &Effect,
        story: &Story,
    ) -> Result<Receipt, Halt> {
        let (Some(repo), Some(issue)) = (&publication.task.repo, publication.task.issue.number) else {
            return self.withhold(held, effect, "there is no issue to tell".into()).await;
        };
        let marker = comment_marker(publication.task.id, super::RESULT_COMMENT);
        let intent = Intent::Progress { issue, marker: marker.clone() };
        if publication.phase.is_none() && effect.state == EffectState::Wanted {
            return match &effect.before {
                Some(before @ Receipt::Progress { .. }) => {
                    self.adopt(held, repo, effect, intent).await?;
                    self.settle(held, effect, before.clone()).await
                }
                _ => self.withhold(held, effect, "the Run had ended".into()).await,
            };
        }
        if effect.state == EffectState::Wanted && !self.pace.has_plenty(repo.installation) {
            let why = "what may be written to the forge this hour is kept for results";
            return self.withhold(held, effect, why.into()).await;
        }
        let phase = publication.phase.clone().unwrap_or_default();
        let receipt = |id| Receipt::Progress { id, phase };
        self.put_the_comment(held, publication, effect, story, Wording { repo, issue, marker, intent }, receipt).await
    }

    pub(super) async fn comment(
        &self,
        held: &HeldLease,
        publication: &Publication,
        effect: &Effect,
        story: &Story,
    ) -> Result<Receipt, Halt> {
        let (Some(repo), Some(issue)) = (&publication.task.repo, publication.task.issue.number) else {
            return self.withhold(held, effect, "there is no issue to answer".into()).await;
        };
        let marker = comment_marker(publication.task.id, super::RESULT_COMMENT);
        let intent = Intent::Comment { issue, marker: marker.clone() };
        let wording = Wording { repo, issue, marker, intent };
        self.put_the_comment(held, publication, effect, story, wording, |id| Receipt::Comment { id }).await
    }

    /// The Task's one comment: edited when it is there, posted when it is surely not.
    async fn put_the_comment(
        &self,
        held: &HeldLease,
        publication: &Publication,
        effect: &Effect,
        story: &Story,
        Wording { repo, issue, marker, intent }: Wording<'_>,
        receipt: impl FnOnce(u64) -> Receipt,
    ) -> Result<Receipt, Halt> {
        let body = self.without_secrets(texts::comment(publication, story, &marker), publication, &marker);
        if let Some(id) = story.comment {
            self.intend(held, repo, effect, intent.clone(), None).await?;
            match self.put_comment(held, repo, issue, Some(id), &body).await {
                Ok(Some(id)) => return self.settle_comment(held, effect, receipt(id)).await,
                Ok(None) => return Err(Halt::Unseen("the forge did not answer whether it took an edit".into())),
                // A person deleted it, and is told all the same.
                Err(PutError::Gone) => {}
                Err(PutError::Halt(halt)) => return Err(halt),
            }
        }
        let mut found = self.own_comments(repo, issue, &marker).await?;
        if found.is_empty() && matches!(effect.state, EffectState::Intended { .. }) {
            // An answer may have been lost, and the forge may read from a replica that lags.
            tokio::time::sleep(READ_BACK_PAUSE).await;
            found = self.own_comments(repo, issue, &marker).await?;
        }
        if let Some(comment) = found.into_iter().next() {
            if comment.body == body {
                self.adopt(held, repo, effect, intent).await?;
            } else {
                self.intend(held, repo, effect, intent, None).await?;
                if self.put_comment(held, repo, issue, Some(comment.id), &body).await?.is_none() {
                    return Err(Halt::Unseen("the forge did not answer whether it took an edit".into()));
                }
            }
            return self.settle_comment(held, effect, receipt(comment.id)).await;
        }
        self.intend(held, repo, effect, intent, Some(Point::CommentIntend)).await?;
        crash::before(Point::CommentSend);
        let posted = self.put_comment(held, repo, issue, None, &body).await;
        crash::after(Point::CommentSend);
        match posted.map_err(Halt::from) {
            Ok(Some(id)) => self.settle_comment(held, effect, receipt(id)).await,
            Ok(None) => {
                tokio::time::sleep(READ_BACK_PAUSE).await;
                // A read that fails shows nothing either.
                let shown = self.own_comments(repo, issue, &marker).await.unwrap_or_default();
                match shown.into_iter().next() {
                    Some(comment) => self.settle_comment(held, effect, receipt(comment.id)).await,
                    None => Err(Halt::Unseen("the forge did not answer and shows no comment yet".into())),
                }
            }
            Err(Halt::Again(why) | Halt::Mend(why)) if self.is_locked(repo, issue).await => {
                self.withhold(held, effect, format!("the issue takes no comment: {why}")).await
            }
            Err(halt) => Err(halt),
        }
    }

    /// The comment's id; `None` when the answer was lost.
    async fn put_comment(
        &self,
        held: &HeldLease,
        repo: &Repo,
        issue: u64,
        id: Option<u64>,
        body: &str,
    ) -> Result<Option<u64>, PutError> {
        held.ready(FORGE_WRITE).await.map_err(Halt::from)?;
        match self.forge.put_comment(repo, issue, id, body).await {
            Ok(id) => Ok(Some(id)),
            Err(ForgeError::NoAnswer(_)) => Ok(None),
            Err(ForgeError::NotFound(_)) if id.is_some() => Err(PutError::Gone),
            Err(error) => Err(PutError::Halt(error.into())),
        }
    }

    async fn own_comments(&self, repo: &Repo, issue: u64, marker: &str) -> Result<Vec<IssueComment>, Halt> {
        let mut comments = self.forge.own_comments(repo, issue, marker).await?;
        comments.sort_by_key(|comment| comment.id);
        Ok(comments)
    }

    async fn is_locked(&self, repo: &Repo, issue: u64) -> bool {
        matches!(self.forge.issue(repo, issue).await, Ok(issue) if issue.locked)
    }

    async fn settle_comment(&self, held: &HeldLease, effect: &Effect, receipt: Receipt) -> Result<Receipt, Halt> {
        crash::before(Point::CommentSettle);
        let receipt = self.settle(held, effect, receipt).await;
        crash::after(Point::CommentSettle);
        receipt
    }

    /// A comment is outgoing text like any other; with a secret in it, only the fact is told.
    fn without_secrets(&self, body: String, publication: &Publication, marker: &str) -> String {
        let findings = secret::scan(&self.options.now().secrets, "comment", &body);
        if findings.is_empty() {
            return body;
        }
        let rules: Vec<String> = findings.into_iter().map(|finding| finding.rule).collect();
        warn!(task.id = %publication.task.id, "withheld a comment: {}", rules.join(", "));
        texts::redacted_comment(publication, &rules, marker)
    }

    pub(super) async fn label(
        &self,
        held: &HeldLease,
        publication: &Publication,
        effect: &Effect,
        story: &Story,
    ) -> Result<Receipt, Halt> {
        let (Some(repo), Some(issue)) = (&publication.task.repo, publication.task.issue.number) else {
            return self.withhold(held, effect, "there is no issue to label".into()).await;
        };
        let label = OutcomeLabel::of(story);
        let add = vec![label.name().to_owned()];
        let remove: Vec<String> =
            OutcomeLabel::ALL.iter().filter(|l| **l != label).map(|l| l.name().to_owned()).collect();
        let intent = Intent::Labels { issue, add: add.clone(), remove: remove.clone() };
        self.intend(held, repo, effect, intent, None).await?;
        let current = match self.forge.issue(repo, issue).await {
            Ok(issue) => issue.labels,
            Err(ForgeError::NotFound(_)) => return self.withhold(held, effect, "the issue is gone".into()).await,
            Err(error) => return Err(error.into()),
        };
        if !current.contains(&add[0]) {
            self.forge.add_labels(repo, issue, &add).await?;
        }
        for stale in remove.iter().filter(|label| current.contains(label)) {
            self.pace.turn(repo.installation).await?;
            held.ready(FORGE_WRITE).await?;
            self.forge.remove_label(repo, issue, stale).await?;
        }
        self.settle(held, effect, Receipt::Labels).await
    }

    /// In this owner's turn to write; durable before the request, and only while the lease lasts longer than the request may take.
    async fn intend(
        &self,
        held: &HeldLease,
        repo: &Repo,
        effect: &Effect,
        intent: Intent,
        point: Option<Point>,
    ) -> Result<(), Halt> {
        self.pace.turn(repo.installation).await?;
        if let Some(point) = point {
            crash::before(point);
        }
        let said = self.ledger.intend(&held.lease(), effect.id, &intent).await?;
        if let Some(point) = point {
            crash::after(point);
        }
        match said {
            Fenced::Applied | Fenced::AlreadyApplied => Ok(held.ready(FORGE_WRITE).await?),
            Fenced::Stale => Err(Halt::Stopped(Stop::Lost)),
        }
    }

    /// What is there already was written for this effect before it was wanted again; its receipt needs an intent of now.
    async fn adopt(&self, held: &HeldLease, repo: &Repo, effect: &Effect, intent: Intent) -> Result<(), Halt> {
        match effect.state {
            EffectState::Wanted => self.intend(held, repo, effect, intent, None).await,
            EffectState::Intended { .. } | EffectState::Settled { .. } => Ok(()),
        }
    }

    async fn withhold(&self, held: &HeldLease, effect: &Effect, reason: String) -> Result<Receipt, Halt> {
        info!(effect.kind = effect.kind.name(), "not written: {reason}");
        self.settle(held, effect, Receipt::Withheld { reason }).await
    }
}

/// Where a comment goes, and what is journaled before.
struct Wording<'a> {
    repo: &'a Repo,
    issue: u64,
    marker: String,
    intent: Intent,
}

/// Why a comment was not taken.
enum PutError {
    /// There is no comment of that number.
    Gone,
    Halt(Halt),
}

impl From<Halt> for PutError {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl From<PutError> for Halt {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Gone => Self::Again("the comment was deleted a moment ago".into()),
            PutError::Halt(halt) => halt,
        }
    }
}

fn change(publication: &Publication) -> Option<&ProvenChange> {
    let result = publication.task.run.result.as_ref()?;
    match result.outcome {
        RunOutcome::ReadyPr | RunOutcome::DraftPr { .. } => result.change.as_ref(),
        RunOutcome::Question { .. }
        | RunOutcome::NoChangeNeeded { .. }
        | RunOutcome::Declined { .. }
        | RunOutcome::Unsolved { .. }
        | RunOutcome::Stopped { .. }
        | RunOutcome::ProbePassed => None,
    }
}
