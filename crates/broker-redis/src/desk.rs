//! Between one reader and many who wait: each entry goes to one of them, and one that nobody takes comes back.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};

use crate::stream::Entry;

pub(crate) struct Desk {
    state: Mutex<State>,
    changed: Notify,
    unwanted: Unwanted,
    /// As long as an entry is its reader's.
    unsettled_after: Duration,
}

/// What becomes of an entry when whoever waited for it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwanted {
    /// Others may be free: it goes back to the stream at once.
    PutBack,
    /// It keeps its id, and is given to whoever asks here next.
    Keep,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiter>,
    /// Read, and in nobody's hand: who waited was dropped meanwhile.
    returned: VecDeque<Entry>,
    /// Ids that were handed out and not settled, with the time of their reading. By the server's account they are this
    /// process's, as are entries whose answer was lost: this tells them apart.
    in_hand: HashMap<String, Instant>,
}

struct Waiter {
    since: Instant,
    until: Instant,
    answer: oneshot::Sender<Entry>,
}

impl Desk {
    pub(crate) fn new(unwanted: Unwanted, unsettled_after: Duration) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), unwanted, unsettled_after }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the desk panics")
    }

    /// The next entry, `None` after `max` or when [`Desk::dismiss`]ed. May be dropped at any time.
    pub(crate) async fn take(self: &Arc<Self>, max: Duration) -> Option<Entry> {
        let (answer, awaited) = oneshot::channel();
        let since = Instant::now();
        self.state().waiting.push_back(Waiter { since, until: since + max, answer });
        let mut ticket = Ticket { desk: Arc::clone(self), awaited };
        self.changed.notify_one();
        match timeout(max, &mut ticket.awaited).await {
            Ok(answer) => answer.ok(),
            Err(_) => {
                ticket.awaited.close();
                ticket.awaited.try_recv().ok()
            }
        }
    }

    /// Until there is something to do for the reader: somebody waits, or something came back that should not stay.
    pub(crate) async fn called(&self) {
        loop {
            let changed = self.changed.notified();
            let must_go_back = self.unwanted == Unwanted::PutBack && !self.state().returned.is_empty();
            if must_go_back || self.demand().is_some() {
                return;
            }
            changed.await;
        }
    }

    /// How many wait, and until when the last of them does; `None`: nobody waits.
    pub(crate) fn demand(&self) -> Option<(usize, Instant)> {
        let mut state = self.state();
        let now = Instant::now();
        state.waiting.retain(|waiter| waiter.until > now && !waiter.answer.is_closed());
        let until = state.waiting.iter().map(|waiter| waiter.until).max()?;
        Some((state.waiting.len(), until))
    }

    /// Gives the entry to whoever has waited longest. With nobody waiting it comes back, if it should go to the stream, or is
    /// kept.
    pub(crate) fn hand(&self, mut entry: Entry) -> Option<Entry> {
        let mut state = self.state();
        let now = Instant::now();
        state.in_hand.retain(|_, since| now.duration_since(*since) < self.unsettled_after);
        while let Some(waiter) = state.waiting.pop_front() {
            state.in_hand.insert(entry.id.clone(), entry.read_at);
            match waiter.answer.send(entry) {
                Ok(()) => return None,
                Err(unsent) => entry = unsent,
            }
            state.in_hand.remove(&entry.id);
        }
        match self.unwanted {
            Unwanted::PutBack => Some(entry),
            Unwanted::Keep => {
                state.returned.push_back(entry);
                None
            }
        }
    }

    /// All that came back and is still this process's to hand out.
    pub(crate) fn returned(&self) -> VecDeque<Entry> {
        let mut returned = std::mem::take(&mut self.state().returned);
        returned.retain(|entry| entry.read_at.elapsed() < self.unsettled_after);
        returned
    }

    pub(crate) fn knows(&self, id: &str) -> bool {
        let state = self.state();
        state.in_hand.contains_key(id) || state.returned.iter().any(|entry| entry.id == id)
    }

    pub(crate) fn settled(&self, id: &str) {
        self.state().in_hand.remove(id);
    }

    /// Tells all who waited then that there is nothing.
    pub(crate) fn dismiss(&self, who_waited_at: Instant) {
        self.state().waiting.retain(|waiter| waiter.since > who_waited_at);
    }

    fn give_back(&self, entry: Entry) {
        let mut state = self.state();
        state.in_hand.remove(&entry.id);
        state.returned.push_back(entry);
        drop(state);
        self.changed.notify_one();
    }
}

/// A place in the queue. Dropped with an answer in it, the answer goes back to the desk.
struct Ticket {
    desk: Arc<Desk>,
    awaited: oneshot::Receiver<Entry>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.awaited.close();
        if let Ok(entry) = self.awaited.try_recv() {
            self.desk.give_back(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn desk(unwanted: Unwanted) -> Arc<Desk> {
        Arc::new(Desk::new(unwanted, LONG))
    }

    fn entry(id: &str) -> Entry {
        Entry { id: id.to_owned(), fields: vec![], redelivered: false, read_at: Instant::now() }
    }

    /// Somebody who waits, as far as having joined.
    async fn waiting(desk: &Arc<Desk>, max: Duration) -> std::pin::Pin<Box<impl Future<Output = Option<Entry>>>> {
        let desk = Arc::clone(desk);
        let mut taking = Box::pin(async move { desk.take(max).await });
        assert!(is_pending(&mut taking).await, "there is nothing yet");
        taking
    }

    async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }

    fn id(entry: Option<Entry>) -> Option<String> {
        entry.map(|entry| entry.id)
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_goes_to_who_has_waited_longest_and_still_waits() {
        let desk = desk(Unwanted::PutBack);
        let gone = waiting(&desk, LONG).await;
        let (first, second) = (waiting(&desk, LONG).await, waiting(&desk, LONG).await);
        drop(gone);
        assert_eq!(desk.demand().map(|(count, _)| count), Some(2));
        assert!(desk.hand(entry("1")).is_none() && desk.hand(entry("2")).is_none());
        assert_eq!((id(first.await), id(second.await)), (Some("1".into()), Some("2".into())));
        assert_eq!(id(desk.hand(entry("3"))), Some("3".into()), "nobody waits");
        assert!(desk.knows("1") && !desk.knows("3"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_took_comes_back() {
        for unwanted in [Unwanted::PutBack, Unwanted::Keep] {
            let desk = desk(unwanted);
            let dropped = waiting(&desk, LONG).await;
            assert!(desk.hand(entry("1")).is_none());
            drop(dropped);
            if unwanted == Unwanted::PutBack {
                desk.called().await;
            }
            assert!(desk.knows("1"), "it came back, and is no lost answer");
            let returned: Vec<_> = desk.returned().into_iter().map(|entry| entry.id).collect();
            assert_eq!(returned, ["1"]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_the_last_moment_is_taken() {
        let desk = desk(Unwanted::PutBack);
        let late = waiting(&desk, Duration::from_secs(1)).await;
        assert!(desk.hand(entry("1")).is_none());
        tokio::time::advance(LONG).await;
        assert_eq!(id(late.await), Some("1".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_too_long_is_no_longer_ours() {
        let desk = desk(Unwanted::Keep);
        assert!(desk.hand(entry("1")).is_none(), "kept");
        assert!(desk.knows("1"));
        tokio::time::advance(LONG).await;
        assert!(desk.returned().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_ends_the_waits_that_it_hit() {
        let desk = desk(Unwanted::PutBack);
        let hit = waiting(&desk, LONG).await;
        let fault = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let mut later = waiting(&desk, LONG).await;
        desk.dismiss(fault);
        assert!(hit.await.is_none());
        assert!(is_pending(&mut later).await);
    }
}
