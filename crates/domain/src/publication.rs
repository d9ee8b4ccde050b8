//! Which writes to the forge a finished Run asks for. Never silence where there is somebody to tell.

use crate::effect::{Effect, EffectKind, EffectState, Receipt};
use crate::job::JobState;
use crate::run::RunOutcome;
use crate::task::Mode;

/// What of a Task decides where its end can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audience {
    pub mode: Mode,
    /// There is a repository to push to.
    pub has_repo: bool,
    /// There is an issue to comment on and to label.
    pub has_issue: bool,
}

/// How a Run's job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended<'a> {
    With(&'a RunOutcome),
    /// It is dead without an outcome.
    Died,
    /// With one of several patches, among which somebody chooses.
    ToBeChosen,
}

/// In the order they are brought about. Empty for a probe, whose publish job still runs and so proves the path.
pub fn wanted_effects(audience: Audience, ended: Ended<'_>) -> Vec<EffectKind> {
    if audience.mode == Mode::Probe || !audience.has_repo {
        return Vec::new();
    }
    let mut wanted = match ended {
        Ended::With(RunOutcome::ReadyPr | RunOutcome::DraftPr { .. }) => {
            vec![EffectKind::Push, EffectKind::PullRequest]
        }
        Ended::With(
            RunOutcome::Question { .. }
            | RunOutcome::NoChangeNeeded { .. }
            | RunOutcome::Declined { .. }
            | RunOutcome::Unsolved { .. }
            | RunOutcome::Stopped { .. },
        )
        | Ended::Died => Vec::new(),
        Ended::ToBeChosen if audience.has_issue => return vec![EffectKind::Progress],
        Ended::ToBeChosen => return Vec::new(),
        Ended::With(RunOutcome::ProbePassed) => return Vec::new(),
    };
    if audience.has_issue {
        wanted.extend([EffectKind::Comment, EffectKind::Labels]);
    }
    wanted
}

/// Why an effect that nobody began is not brought about any more.
pub const CANCELLED: &str = "the Task was cancelled";

/// Whether the issue of a cancelled Task is still to be told: who was told of the beginning is told of the end, once the
/// Task's newest publish job has nothing to do any more.
pub fn owes_last_word(effects: &[Effect], publish: Option<&JobState>) -> bool {
    let find = |kind| effects.iter().find(|effect| effect.kind == kind);
    let withheld = |effect: &Effect| match &effect.state {
        EffectState::Settled { receipt: Receipt::Withheld { reason } } => reason == CANCELLED,
        EffectState::Wanted | EffectState::Intended { .. } => true,
        EffectState::Settled { .. } => false,
    };
    matches!(publish, None | Some(JobState::Done | JobState::Cancelled))
        && find(EffectKind::Progress).is_some()
        && find(EffectKind::Comment).is_none_or(withheld)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::{EffectId, TaskId};

    const ON_AN_ISSUE: Audience = Audience { mode: Mode::Quickfix, has_repo: true, has_issue: true };
    const PLAIN_TEXT: Audience = Audience { has_issue: false, ..ON_AN_ISSUE };

    #[test]
    fn a_patch_is_pushed_opened_and_then_told_of() {
        use EffectKind::{Comment, Labels, PullRequest, Push};
        let draft = RunOutcome::DraftPr { reasons: vec![] };
        assert_eq!(wanted_effects(ON_AN_ISSUE, Ended::With(&draft)), [Push, PullRequest, Comment, Labels]);
        assert_eq!(wanted_effects(PLAIN_TEXT, Ended::With(&RunOutcome::ReadyPr)), [Push, PullRequest]);
    }

    #[test]
    fn an_issue_hears_of_every_other_end_too() {
        let unsolved = RunOutcome::Unsolved { notes: String::new() };
        for ended in [Ended::With(&unsolved), Ended::Died] {
            assert_eq!(wanted_effects(ON_AN_ISSUE, ended), [EffectKind::Comment, EffectKind::Labels]);
            assert_eq!(wanted_effects(PLAIN_TEXT, ended), []);
        }
    }

    #[test]
    fn an_issue_is_told_that_somebody_has_to_choose() {
        assert_eq!(wanted_effects(ON_AN_ISSUE, Ended::ToBeChosen), [EffectKind::Progress]);
        assert_eq!(wanted_effects(PLAIN_TEXT, Ended::ToBeChosen), []);
    }

    #[test]
    fn a_probe_writes_nothing() {
        let probe = Audience { mode: Mode::Probe, ..ON_AN_ISSUE };
        assert_eq!(wanted_effects(probe, Ended::With(&RunOutcome::ProbePassed)), []);
        assert_eq!(wanted_effects(probe, Ended::Died), []);
    }

    fn effect(kind: EffectKind, state: EffectState) -> Effect {
        Effect::new(EffectId::from_uuid(Uuid::nil()), TaskId::from_uuid(Uuid::nil()), kind, state)
    }

    fn settled(kind: EffectKind, receipt: Receipt) -> Effect {
        effect(kind, EffectState::Settled { receipt })
    }

    #[test]
    fn who_was_told_of_the_beginning_is_told_once_that_it_was_cancelled() {
        let cancelled = || Receipt::Withheld { reason: CANCELLED.into() };
        let progress = settled(EffectKind::Progress, Receipt::Progress { id: 1, phase: "fix".into() });
        assert!(owes_last_word(std::slice::from_ref(&progress), Some(&JobState::Cancelled)));
        assert!(owes_last_word(
            &[progress.clone(), settled(EffectKind::Comment, cancelled())],
            Some(&JobState::Cancelled)
        ));
        assert!(
            !owes_last_word(&[progress.clone(), settled(EffectKind::Comment, Receipt::Comment { id: 1 })], None),
            "it is told"
        );
        let locked = Receipt::Withheld { reason: "the issue takes no comment".into() };
        assert!(
            !owes_last_word(&[progress.clone(), settled(EffectKind::Comment, locked)], Some(&JobState::Done)),
            "it cannot be"
        );
        assert!(
            !owes_last_word(&[settled(EffectKind::Comment, cancelled())], Some(&JobState::Cancelled)),
            "nothing was told"
        );
        assert!(!owes_last_word(std::slice::from_ref(&progress), Some(&JobState::Queued)), "it is on its way");
        let given_up = JobState::Dead { reason: "no".into() };
        assert!(!owes_last_word(&[progress], Some(&given_up)), "it was tried often enough");
    }
}
