//! Whose turn it is: which of the queued jobs is leased next, so that nobody starves and nobody's backlog is in the way.
//!
//! Jobs stand in lanes: one repository's Runs, one installation's publications. Of each lane the first job can be next, when
//! the lane has a free slot. A job's *turn* is an instant, and the earliest turn goes first. It is fixed once the job stands
//! in line, so a ledger can keep it in an index, and yet everything ages: whatever comes later has a later turn.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::id::JobId;
use crate::job::JobKind;
use crate::label::Labels;
use crate::repo::Repo;

/// A level of priority is worth this long in line: so a job rises by a level for each such span that it waits.
pub const AGING: SignedDuration = SignedDuration::from_mins(10);

/// From 0 to 9. A job of any level is overtaken only by what is asked for within 90 minutes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(u8);

impl Priority {
    /// Somebody sits and waits: the command line, the API, a chat.
    pub const ASKED: Self = Self(6);
    /// An issue.
    pub const ISSUE: Self = Self(4);

    /// Of a Task, by what asked for it.
    pub fn of_trigger(trigger: &str) -> Self {
        if matches!(trigger, "api" | "cli") { Self::ASKED } else { Self::ISSUE }
    }

    /// Anything above 9 is 9.
    pub fn new(level: u8) -> Self {
        Self(level.min(9))
    }

    pub fn get(self) -> u8 {
        self.0
    }

    fn head_start(self) -> SignedDuration {
        AGING * i32::from(self.0)
    }
}

/// Where a job stands: which model and what worker it is for, and whose slots it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Empty: the first configured one, or none is needed.
    pub model: String,
    /// Of a worker.
    pub needs: Labels,
    /// `repo:77`, `installation:5`, `token`, `anybody`.
    pub slots_of: String,
    pub priority: Priority,
}

impl Place {
    /// A repository's Runs share its slots. What a forge limits is the installation or the one token, so publications share
    /// those.
    pub fn of(kind: JobKind, repo: Option<&Repo>, model: Option<&str>, needs: &Labels, trigger: &str) -> Self {
        let (model, needs, slots_of) = match kind {
            JobKind::Run => {
                let slots_of =
                    repo.map_or_else(|| "anybody".to_owned(), |repo| format!("{REPOSITORY}{}", repo.forge_id));
                (model.unwrap_or_default().to_owned(), needs.clone(), slots_of)
            }
            JobKind::Publish => {
                let installation = repo.and_then(|repo| repo.installation);
                let slots_of = installation.map_or_else(|| TOKEN.to_owned(), |id| format!("{INSTALLATION}{id}"));
                (String::new(), Labels::default(), slots_of)
            }
        };
        Self { model, needs, slots_of, priority: Priority::of_trigger(trigger) }
    }
}

const REPOSITORY: &str = "repo:";
const INSTALLATION: &str = "installation:";
const TOKEN: &str = "token";
/// GitHub asks to write one after the other.
const PUBLICATIONS: u32 = 1;
/// A repository's Runs at work at once, unless configured: a team with one repository has use for its workers, and whose
/// turn it is, and not this, keeps the others from starving.
pub const PER_REPOSITORY: u16 = 4;

/// How many may be at work at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// Runs of one repository.
    pub per_repository: u32,
    /// Runs that a model takes at once, by its name; without an entry, as many as there are workers.
    pub per_model: BTreeMap<String, u32>,
    /// What an empty model stands for.
    pub default_model: String,
}

impl Default for Slots {
    fn default() -> Self {
        Self { per_repository: PER_REPOSITORY.into(), per_model: BTreeMap::new(), default_model: String::new() }
    }
}

impl Slots {
    /// Of a [`Place::slots_of`].
    pub fn of(&self, slots_of: &str) -> u32 {
        if slots_of.starts_with(REPOSITORY) {
            self.per_repository
        } else if slots_of.starts_with(INSTALLATION) || slots_of == TOKEN {
            PUBLICATIONS
        } else {
            u32::MAX
        }
    }

    pub fn of_model(&self, model: &str) -> u32 {
        let name = if model.is_empty() { &self.default_model } else { model };
        self.per_model.get(name).copied().unwrap_or(u32::MAX)
    }
}

/// The turn of a job among those of its lane.
pub fn in_lane(runnable_at: Timestamp, priority: Priority) -> Timestamp {
    runnable_at.saturating_sub(priority.head_start()).unwrap_or(Timestamp::MIN)
}

/// The turn of a lane's first job among all lanes'. A lane that was just served stands behind those that were not, however
/// long its own backlog has waited.
pub fn among_lanes(runnable_at: Timestamp, priority: Priority, lane_served_at: Timestamp) -> Timestamp {
    in_lane(runnable_at.max(lane_served_at), priority)
}

/// A queued job, as the rule sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub job: JobId,
    /// The order in which jobs came; settles what the clock cannot.
    pub seq: u64,
    pub lane: u64,
    pub runnable_at: Timestamp,
    pub priority: Priority,
}

/// A lane that jobs stand in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    pub id: u64,
    pub served_at: Timestamp,
    pub free_slots: u32,
}

/// The job to lease next. What ledgers do with indexes, said in full; their contract compares the two.
pub fn next<'w>(waiting: &'w [Waiting], lanes: &[Lane]) -> Option<&'w Waiting> {
    let first_of = |lane: u64| {
        let own = waiting.iter().filter(move |job| job.lane == lane);
        own.min_by_key(|job| (in_lane(job.runnable_at, job.priority), job.seq))
    };
    let free = lanes.iter().filter(|lane| lane.free_slots > 0);
    free.filter_map(|lane| Some((lane.served_at, first_of(lane.id)?)))
        .min_by_key(|(served_at, job)| (among_lanes(job.runnable_at, job.priority, *served_at), job.seq))
        .map(|(_, job)| job)
}

/// A lane in which jobs stand, as [`count`] sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Whose slots its jobs take: a [`Place::slots_of`].
    pub slots_of: String,
    /// A [`Place::model`].
    pub model: String,
    /// Of its owner, the same in all the owner's lanes.
    pub free_slots: u32,
    /// What the model can still take, the same in all the model's lanes.
    pub free_of_model: u32,
    pub queued: u32,
}

/// How many jobs could be leased one after the other. Lanes give theirs in the order in which they are passed, which is that of
/// their turns; an owner's lanes share its slots, and lanes of one model what it can take.
pub fn count(lanes: impl IntoIterator<Item = Standing>) -> u32 {
    let (mut slots, mut models) = (BTreeMap::new(), BTreeMap::new());
    let mut count: u32 = 0;
    for lane in lanes {
        let free = slots.entry(lane.slots_of).or_insert(lane.free_slots);
        let takes = models.entry(lane.model).or_insert(lane.free_of_model);
        let given = lane.queued.min(*free).min(*takes);
        *free -= given;
        *takes -= given;
        count = count.saturating_add(given);
    }
    count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn job(seq: u64, lane: u64, seconds: i64, level: u8) -> Waiting {
        let job = JobId::from_uuid(Uuid::from_u128(seq.into()));
        Waiting { job, seq, lane, runnable_at: at(seconds), priority: Priority::new(level) }
    }

    fn lane(id: u64, served: i64) -> Lane {
        Lane { id, served_at: at(served), free_slots: 1 }
    }

    fn seq_of_next(waiting: &[Waiting], lanes: &[Lane]) -> Option<u64> {
        next(waiting, lanes).map(|job| job.seq)
    }

    /// Leases until nothing is left, a second each, one slot for all.
    fn order(mut waiting: Vec<Waiting>, mut lanes: Vec<Lane>, mut now: i64) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some(job) = next(&waiting, &lanes).cloned() {
            lanes.iter_mut().find(|lane| lane.id == job.lane).unwrap().served_at = at(now);
            waiting.retain(|other| other.seq != job.seq);
            order.push(job.seq);
            now += 1;
        }
        order
    }

    #[test]
    fn a_lane_is_first_come_first_served_unless_somebody_waits_at_a_screen() {
        let waiting = [job(1, 1, 0, 4), job(2, 1, 1, 4), job(3, 1, 2, 6)];
        assert_eq!(order(waiting.to_vec(), vec![lane(1, -1)], 3), [3, 1, 2]);
    }

    #[test]
    fn a_backlog_does_not_stand_before_others() {
        let mut waiting: Vec<_> = (0..1000).map(|seq| job(seq, 1, -3600, 4)).collect();
        waiting.push(job(5000, 2, 0, 4));
        waiting.push(job(5001, 3, 0, 4));
        let order = order(waiting, vec![lane(1, 0), lane(2, -9999), lane(3, -9999)], 1);
        assert!(order[..4].contains(&5000) && order[..4].contains(&5001), "{:?}", &order[..4]);
    }

    #[test]
    fn a_full_lane_is_passed_over() {
        let waiting = [job(1, 1, 0, 9), job(2, 2, 5, 0)];
        let full = Lane { free_slots: 0, ..lane(1, -1) };
        assert_eq!(seq_of_next(&waiting, &[full.clone(), lane(2, -1)]), Some(2));
        assert_eq!(seq_of_next(&waiting, &[full]), None);
    }

    #[test]
    fn a_repository_has_its_slots_once_however_many_models_its_jobs_are_for() {
        let standing = |repo: u64, model: &str, queued| Standing {
            slots_of: format!("repo:{repo}"),
            model: model.into(),
            free_slots: 2,
            free_of_model: 3,
            queued,
        };
        assert_eq!(count([standing(77, "", 2), standing(77, "coder", 1)]), 2);
        assert_eq!(count([standing(77, "", 1), standing(77, "coder", 5), standing(78, "coder", 5)]), 4);
        assert_eq!(count([standing(1, "coder", 5), standing(2, "coder", 5)]), 3, "more than the model takes");
    }

    #[test]
    fn a_job_of_the_lowest_level_is_leased_though_the_highest_keep_coming() {
        let starved = job(0, 1, 0, 0);
        // One of the highest level a minute, each from a repository that was never served.
        for minute in 0.. {
            let fresh = job(minute + 1, minute + 2, i64::try_from(minute).unwrap() * 60, 9);
            let lanes = [lane(1, -1), lane(fresh.lane, -1)];
            if seq_of_next(&[starved.clone(), fresh], &lanes) == Some(0) {
                assert_eq!(minute, 90, "nine levels of ten minutes; who came first settles a draw");
                return;
            }
        }
    }

    proptest! {
        /// While others are served, nobody's place gets worse than those who stand in line already.
        #[test]
        fn who_waits_is_overtaken_by_later_ones_only_within_its_levels(
            early in 0..100i64, level in 0..10u8, gap in 0..20_000i64, other in 0..10u8,
        ) {
            let (mine, theirs) = (job(1, 1, early, level), job(2, 2, early + gap, other));
            let lanes = [lane(1, -1), lane(2, -1)];
            let head_start = i64::from(other.saturating_sub(level)) * AGING.as_secs();
            if gap > head_start {
                prop_assert_eq!(seq_of_next(&[mine, theirs], &lanes), Some(1));
            }
        }

        #[test]
        fn something_is_next_exactly_when_a_lane_with_a_free_slot_has_a_job(
            jobs in proptest::collection::vec((0..5u64, 0..1000i64, 0..10u8), 0..20),
            slots in proptest::collection::vec(0..2u32, 5),
        ) {
            let waiting: Vec<_> = jobs.iter().enumerate()
                .map(|(seq, (lane, at, level))| job(seq as u64, *lane, *at, *level)).collect();
            let lanes: Vec<_> = slots.iter().enumerate()
                .map(|(id, free)| Lane { id: id as u64, served_at: at(-1), free_slots: *free }).collect();
            let possible = waiting.iter().any(|job| lanes[usize::try_from(job.lane).unwrap()].free_slots > 0);
            prop_assert_eq!(next(&waiting, &lanes).is_some(), possible);
        }
    }
}
