//! A Task with several Runs: which of them speaks for it, and whose patch is published.
//!
//! Each Run works for itself. One that ends with a patch waits until all have ended; then a person chooses, unless there is
//! nothing to choose. A person may stop one of them; what it comes to after all is kept, and is no choice.

use crate::job::JobState;
use crate::run::RunOutcome;
use crate::task::{Mode, TaskState};

/// Runs of one Task at most: more patches than this nobody compares.
pub const MAX_RUNS: usize = 8;

/// Why the job of a Run waits whose patch is one of several.
pub const TO_BE_CHOSEN: &str = "several Runs have a patch: choose the one that is published";

/// What the worker of a Run is told that was stopped without its Task.
pub const STOPPED_ALONE: &str = "this Run was stopped; the others of its Task go on";

/// What follows once every Run of a Task has ended. Positions are those of the Runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// How this Run ended is the end of the Task.
    Publish(usize),
    /// A person chooses among those with a patch; this is the first of them, and leads until then.
    Choice(usize),
}

/// `ends`: in the Runs' order, without those that were stopped; `None` for one that died without an outcome. Not empty.
pub fn follows(ends: &[Option<&RunOutcome>]) -> Follows {
    let mut patches = (0..ends.len()).filter(|&nth| ends[nth].is_some_and(has_patch));
    match (patches.next(), patches.next()) {
        (Some(first), Some(_)) => Follows::Choice(first),
        (Some(only), None) => Follows::Publish(only),
        // The first that has something to say is what the issue is told.
        (None, _) => Follows::Publish(ends.iter().position(Option::is_some).unwrap_or(0)),
    }
}

/// Whether there is something to publish.
pub fn has_patch(outcome: &RunOutcome) -> bool {
    matches!(outcome, RunOutcome::ReadyPr | RunOutcome::DraftPr { .. })
}

/// Whether a Task takes `more` Runs beside those it `has`; else the rest of a sentence that begins with the Task.
///
/// `published`: a patch of it is pushed or is to be, and one Task makes one pull request.
pub fn may_be_added(
    mode: Mode,
    state: TaskState,
    is_cancelled: bool,
    published: bool,
    has: usize,
    more: usize,
) -> Result<(), String> {
    if more == 0 {
        return Err("was asked for no Run at all".to_owned());
    }
    if mode == Mode::Probe {
        return Err("is a probe, which has one Run".to_owned());
    }
    if is_cancelled || state == TaskState::Cancelled {
        return Err("was cancelled; retry it as a new Task".to_owned());
    }
    if published {
        return Err("has its pull request; retry it as a new Task, which gets a branch of its own".to_owned());
    }
    if has + more > MAX_RUNS {
        return Err(format!("has {has} Runs, and a Task has at most {MAX_RUNS}"));
    }
    Ok(())
}

/// Whether the `nth` of a Task's Runs can be stopped while the others go on; else the rest of a sentence that begins with the
/// Run. `has_come`: it has ended, or has a patch that waits to be chosen.
pub fn may_be_stopped(jobs: &[&JobState], nth: usize, has_come: bool) -> Result<(), String> {
    if has_come {
        return Err("has ended".to_owned());
    }
    let goes_on = |job: &JobState| !matches!(job, JobState::Cancelled | JobState::Cancelling { .. });
    if !jobs.iter().enumerate().any(|(other, job)| other != nth && goes_on(job)) {
        return Err("has no other beside it that goes on; cancel the Task instead".to_owned());
    }
    Ok(())
}

/// The Run whose job says in which state the Task is: one at work, else one that will be, else one that waits. Of those that
/// have all ended, one that was cancelled with its Task, else the leading one. `jobs` are not empty, `leading` is one of them.
pub fn speaker(jobs: &[&JobState], leading: usize, is_cancelled: bool) -> usize {
    let rank = |nth: usize| match jobs[nth] {
        JobState::Leased { .. } | JobState::Cancelling { .. } => 0,
        JobState::Queued => 1,
        JobState::Delayed { .. } => 2,
        JobState::Waiting { .. } => 3,
        JobState::Cancelled if is_cancelled => 4,
        JobState::Done | JobState::Dead { .. } | JobState::Cancelled if nth == leading => 5,
        JobState::Done | JobState::Dead { .. } | JobState::Cancelled => 6,
    };
    (0..jobs.len()).min_by_key(|&nth| (rank(nth), nth != leading, nth)).unwrap_or(leading)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::id::WorkerId;

    const READY: RunOutcome = RunOutcome::ReadyPr;

    fn unsolved() -> RunOutcome {
        RunOutcome::Unsolved { notes: String::new() }
    }

    #[test]
    fn a_person_chooses_only_where_there_is_a_choice() {
        let (draft, unsolved) = (RunOutcome::DraftPr { reasons: vec![] }, unsolved());
        assert_eq!(follows(&[Some(&READY), Some(&draft)]), Follows::Choice(0));
        assert_eq!(follows(&[None, Some(&READY), Some(&draft)]), Follows::Choice(1), "the first patch leads");
        assert_eq!(follows(&[Some(&unsolved), Some(&draft), None]), Follows::Publish(1));
        assert_eq!(follows(&[None, Some(&unsolved)]), Follows::Publish(1), "an outcome says more than a death");
        assert_eq!(follows(&[None, None]), Follows::Publish(0));
        assert_eq!(follows(&[Some(&READY)]), Follows::Publish(0), "one Run is as it always was");
    }

    #[test]
    fn what_is_at_work_speaks_for_the_task() {
        let leased = JobState::Leased { worker: WorkerId::from_uuid(Uuid::nil()), until: Timestamp::UNIX_EPOCH };
        let waiting = JobState::Waiting { reason: TO_BE_CHOSEN.into() };
        let dead = JobState::Dead { reason: String::new() };
        assert_eq!(speaker(&[&JobState::Queued, &leased, &waiting], 0, false), 1);
        assert_eq!(speaker(&[&waiting, &JobState::Queued, &dead], 0, false), 1);
        assert_eq!(speaker(&[&JobState::Done, &waiting, &waiting], 0, false), 1);
        assert_eq!(speaker(&[&JobState::Done, &dead, &JobState::Done], 1, false), 1, "the leading one");
        assert_eq!(speaker(&[&JobState::Done, &JobState::Cancelled], 0, true), 1, "with its Task");
        assert_eq!(speaker(&[&JobState::Done, &JobState::Cancelled], 0, false), 0, "it alone was stopped");
    }

    #[test]
    fn the_last_run_that_goes_on_is_stopped_only_with_its_task() {
        let dead = JobState::Dead { reason: String::new() };
        assert!(may_be_stopped(&[&JobState::Queued, &JobState::Queued], 1, false).is_ok());
        assert!(may_be_stopped(&[&dead, &JobState::Queued], 1, false).is_ok(), "what is left is told of");
        assert!(may_be_stopped(&[&JobState::Cancelled, &JobState::Queued], 1, false).is_err());
        assert!(may_be_stopped(&[&JobState::Queued], 0, false).is_err());
        assert!(may_be_stopped(&[&JobState::Queued, &dead], 1, true).is_err());
    }
}
