//! What every broker does, whatever it speaks: hints, other programs' messages, announcements.
//!
//! `contract::transport!(name, make().await)` makes one test of each case, on the broker that the expression starts. An
//! expression that gives `None` has said why there is no such broker here.

mod cases;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::transport::{Announcement, Announcer, ForeignInbox, Transport};
use fettle_test_kit::brokers::redis::RedisServer;

pub use cases::*;

/// What one process holds of a broker. Dropped, it is as if the process had died.
#[derive(Clone)]
pub struct Client {
    pub transport: Arc<dyn Transport>,
    pub inbox: Arc<dyn ForeignInbox>,
    pub announcer: Arc<dyn Announcer>,
}

/// A broker under test, of its own for each case, running and empty at first.
#[async_trait]
pub trait Subject: Send + Sync {
    /// As a process makes it at its start; the broker may be away.
    async fn client(&self) -> Client;
    /// How long it takes at most until a hint or message that its reader did not settle comes again: to another client, and
    /// to the same one. A few seconds, so clients under test are made with short limits.
    fn comes_again_within(&self) -> Duration;
    /// Forgets everything that the broker holds, beneath its clients' feet.
    async fn wipe(&self);
    /// `None`: this broker cannot be away.
    fn power(&self) -> Option<&dyn Power>;

    /// Leaves a message on `agent-tasks`, as another program does. The id that must come with it.
    async fn leave(&self, body: &Bytes) -> Option<String>;
    /// What lies on `agent-tasks.dead`, the oldest first, with its reasons.
    async fn buried(&self) -> Vec<(Bytes, String)>;
    /// Another program begins to listen on `fettle.events`.
    async fn listen(&self);
    /// What it has heard so far, in the order in which it came.
    async fn heard(&self) -> Vec<Announcement>;
}

/// The broker's life. What was durable before is there after.
#[async_trait]
pub trait Power: Send + Sync {
    /// Ends it at once, without a goodbye.
    async fn off(&self);
    /// Starts it again at the same address, and waits until it answers.
    async fn on(&self);
}

#[async_trait]
impl Power for RedisServer {
    async fn off(&self) {
        self.kill().await;
    }

    async fn on(&self) {
        self.go_on().await;
    }
}

/// All cases against the [`Subject`] that the expression makes, in a module of the given name.
#[macro_export]
macro_rules! transport_contract {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;

            $crate::transport_contract! { @cases $make;
                each_hint_goes_to_one_reader,
                depth_counts_the_hints_that_nobody_has_taken,
                wait_ends_after_its_time,
                a_waiting_reader_is_woken,
                many_waiters_get_at_most_one_hint_each,
                a_hint_of_a_dead_reader_comes_again,
                a_hint_that_its_reader_forgot_comes_again,
                a_dropped_wait_loses_no_hint_for_good,
                a_broker_that_is_away_costs_time_and_nothing_else,
                a_client_may_be_older_than_its_broker,
                a_wiped_broker_works_again,
                a_foreign_message_comes_once_as_it_was_left,
                foreign_messages_come_in_order,
                an_untaken_message_comes_again_and_says_so,
                a_dropped_next_loses_no_message,
                a_message_that_is_too_large_is_cut,
                a_message_outlives_its_broker,
                what_is_buried_carries_its_reason,
                announcements_arrive_in_order,
            }
        }
    };
    (@cases $make:expr; $($case:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let Some(subject) = $make else { return };
            $crate::contract::transport::$case(&subject).await;
        }
    )*};
}
