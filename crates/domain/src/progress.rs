//! When the comment on an issue is brought up to date while a Run is at work, and what it says then.
//!
//! It tells the phase and nothing that changes more often: each edit is a write that the forge counts.

use std::time::Duration;

use jiff::Timestamp;

use crate::effect::{Effect, EffectState, Receipt};
use crate::id::TaskId;

/// Between two edits, and before the first, unless configured: a Task that ends sooner has its result as its only comment.
pub const EVERY: Duration = Duration::from_secs(20);

/// A Task whose Run is at work on an issue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtWork {
    pub task: TaskId,
    pub created_at: Timestamp,
    /// Of its newest step; empty before the first.
    pub phase: String,
    /// Its progress, once that was wanted.
    pub told: Option<Effect>,
}

/// Whether the issue is to be told of the phase, by somebody who asks once in `every`.
pub fn is_due(at_work: &AtWork, now: Timestamp, every: Duration) -> bool {
    match at_work.told.as_ref().map(|effect| &effect.state) {
        None => now.duration_since(at_work.created_at).unsigned_abs() >= every,
        Some(EffectState::Settled { receipt: Receipt::Progress { phase, .. } }) => *phase != at_work.phase,
        // On its way, or the issue takes no comment.
        Some(EffectState::Wanted | EffectState::Intended { .. } | EffectState::Settled { .. }) => false,
    }
}

/// The phase of a Task whose Runs have all ended, several with a patch.
pub const CHOICE: &str = "choice";

/// What a Run does in a phase, as a sentence goes on after "Now:".
pub fn doing(phase: &str) -> &str {
    match phase {
        "" => "getting the repository ready",
        "base_green" => "running its tests as they are",
        "triage" => "reading the issue and the code",
        "reproduce" => "writing a test that shows the problem",
        "fix" => "making the change",
        "verify" => "running all tests on the change, in a fresh checkout",
        "repair" => "mending what the tests found",
        // A worker's word, which people would read as ours.
        _ => "working on it",
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::effect::EffectKind;
    use crate::id::EffectId;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn fixing(told: Option<EffectState>) -> AtWork {
        let (id, task) = (EffectId::from_uuid(Uuid::nil()), TaskId::from_uuid(Uuid::nil()));
        let told = told.map(|state| Effect::new(id, task, EffectKind::Progress, state));
        AtWork { task, created_at: at(0), phase: "fix".into(), told }
    }

    fn tells_of(phase: &str) -> Option<EffectState> {
        Some(EffectState::Settled { receipt: Receipt::Progress { id: 1, phase: phase.into() } })
    }

    #[test]
    fn a_task_that_ends_soon_is_not_told_of_before() {
        assert!(!is_due(&fixing(None), at(19), EVERY));
        assert!(is_due(&fixing(None), at(20), EVERY));
    }

    #[test]
    fn an_edit_is_due_only_when_another_phase_began() {
        assert!(is_due(&fixing(tells_of("reproduce")), at(60), EVERY));
        assert!(!is_due(&fixing(tells_of("fix")), at(3600), EVERY));
    }

    #[test]
    fn nothing_is_asked_for_twice_nor_of_an_issue_that_takes_no_comment() {
        let locked = EffectState::Settled { receipt: Receipt::Withheld { reason: "locked".into() } };
        for told in [EffectState::Wanted, locked] {
            assert!(!is_due(&fixing(Some(told)), at(60), EVERY));
        }
    }
}
