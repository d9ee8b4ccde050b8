//! What every ledger does, whatever it is made of: leases, fences, journals, effects, events.
//!
//! `contract::ledger!(sqlite, make().await)` makes one test of each case; after each, the audit must find nothing.

mod cases;
mod choice;
mod model;
mod progress;
pub mod sequences;
mod turns;
mod world;

pub use cases::*;
pub use choice::{
    a_cancelled_task_stops_all_its_runs, a_person_chooses_among_several_patches,
    each_of_several_runs_hears_every_message, one_of_several_runs_is_stopped_and_the_others_go_on,
    runs_are_added_until_something_is_published, the_only_patch_is_published_unasked,
    the_stop_of_the_last_run_at_work_lets_the_task_come_to_its_end,
};
pub use model::a_job_does_what_its_model_does;
pub use progress::{
    a_cancelled_task_is_not_taken_up_again, a_publication_that_is_cancelled_still_tells_who_was_told,
    a_stop_that_came_too_late_is_no_wish_about_what_is_taken_up_again,
    progress_is_told_beside_the_run_and_what_it_brought_is_remembered,
    who_was_told_of_the_beginning_is_told_of_a_cancellation,
};
pub use turns::{
    a_repository_has_so_many_tasks_at_work_and_a_freed_slot_is_taken, slots, slots_and_turns_outlast_a_restart,
    what_needs_a_label_waits_for_a_worker_that_has_it, whose_turn_it_is_follows_the_rule,
};
pub use world::{CountedIds, ManualTime, Subject, World};

/// All cases against the [`Subject`] that the expression makes, in a module of the given name.
#[macro_export]
macro_rules! ledger_contract {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;

            $crate::ledger_contract! { @cases $make;
                leasing_is_exclusive_and_in_order,
                a_superseded_holder_changes_nothing,
                a_repeated_end_is_recognised,
                the_same_request_gets_the_same_leases,
                three_crashes_without_a_step_kill_a_job_and_its_issue_is_told,
                a_step_between_crashes_keeps_a_job_alive,
                five_failures_kill_a_job,
                a_deferred_job_waits_for_its_time_or_its_event_and_spends_nothing,
                a_cancelled_job_ends_at_once_or_when_its_holder_lets_go,
                a_result_that_comes_in_while_cancelling_is_kept_and_not_published,
                cancelling_a_publication_drops_what_was_not_begun,
                a_delivery_is_accepted_once,
                one_task_at_a_time_works_on_an_issue,
                a_finished_issue_gets_the_next_generation,
                a_retry_continues_the_dead_and_repeats_the_finished,
                a_step_is_recorded_once_and_a_diverged_replay_forgets_the_rest,
                a_finished_run_wants_its_effects_once_and_in_order,
                an_effect_is_intended_and_settled_by_the_live_lease_only,
                effects_wanted_meanwhile_queue_the_publication_again,
                progress_is_told_beside_the_run_and_what_it_brought_is_remembered,
                a_stop_that_came_too_late_is_no_wish_about_what_is_taken_up_again,
                who_was_told_of_the_beginning_is_told_of_a_cancellation,
                a_publication_that_is_cancelled_still_tells_who_was_told,
                a_cancelled_task_is_not_taken_up_again,
                events_are_numbered_without_gaps_by_concurrent_writers,
                the_list_holds_still_while_tasks_are_added,
                a_blob_comes_back_as_it_was_put,
                what_was_answered_survives_a_crash,
                a_message_reaches_the_holder_and_the_next_one_unless_it_was_journaled,
                a_waiting_lease_request_is_woken_by_work,
                a_stale_lease_reads_nothing,
                a_postponed_delivery_makes_room_for_others_and_comes_back,
                tasks_are_counted_by_installation_and_known_by_who_asked,
                depth_counts_what_is_where,
                open_jobs_are_listed_with_whoever_holds_them,
                repositories_are_known_by_their_tasks,
                a_journal_is_read_by_whoever_knows_its_run,
                demand_counts_the_runs_that_workers_hold_or_could_hold,
                a_delivery_is_known_by_the_beginning_of_its_key_for_a_while,
                what_was_announced_only_moves_on_from_where_it_was,
                a_mark_of_looking_moves_only_from_where_it_is,
                an_issue_was_last_asked_for_when_its_newest_task_was,
                what_needs_a_label_waits_for_a_worker_that_has_it,
                a_person_chooses_among_several_patches,
                the_only_patch_is_published_unasked,
                runs_are_added_until_something_is_published,
                a_cancelled_task_stops_all_its_runs,
                one_of_several_runs_is_stopped_and_the_others_go_on,
                the_stop_of_the_last_run_at_work_lets_the_task_come_to_its_end,
                each_of_several_runs_hears_every_message,
                a_job_does_what_its_model_does,
            }
        }
    };
    // A ledger that keeps lanes; PostgreSQL's does not yet.
    ($name:ident with lanes, $make:expr) => {
        $crate::ledger_contract!($name, $make);

        mod lanes {
            use super::*;

            $crate::ledger_contract! { @cases $make;
                whose_turn_it_is_follows_the_rule,
                a_repository_has_so_many_tasks_at_work_and_a_freed_slot_is_taken,
                slots_and_turns_outlast_a_restart,
            }
        }
    };
    (@cases $make:expr; $($case:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let mut world = $crate::contract::ledger::World::of($make);
            $crate::contract::ledger::$case(&mut world).await;
            world.finish().await;
        }
    )*};
}
