//! The line before the writer: callers put commands in, the writer's thread takes all that are there at once.
//!
//! A caller that finds it full waits without holding a thread; the writer sleeps while it is empty.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The callers' end; all its copies are one line.
pub(crate) struct Line<T>(Arc<Shared<T>>);

/// The writer's end. Dropped, however its thread ends, nobody is let in any more and nobody in line is forgotten: what they
/// asked is dropped, which tells them.
pub(crate) struct LineEnd<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    /// The writer sleeps on it.
    came: Condvar,
    /// Places that are free.
    places: Semaphore,
    /// Cancelled when nothing is taken any more.
    ended: CancellationToken,
}

struct State<T> {
    waiting: Vec<T>,
    mood: Mood,
    /// Waking somebody who is awake would cost a call of the kernel for each command.
    asleep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Open,
    /// Who is in line is served, nobody else is let in.
    Closing,
    /// Nobody is served.
    Abandoned,
}

/// What the writer finds.
pub(crate) enum Taken<T> {
    /// At least one, in the order they came.
    Some(Vec<T>),
    /// Nobody came within the time that was given.
    Idle,
    /// Nobody is in line, and nobody comes any more.
    Closed,
    /// The line was left without a word.
    Abandoned,
}

/// A line for `places` that wait at once.
pub(crate) fn line<T>(places: usize) -> (Line<T>, LineEnd<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State { waiting: Vec::new(), mood: Mood::Open, asleep: false }),
        came: Condvar::new(),
        places: Semaphore::new(places),
        ended: CancellationToken::new(),
    });
    (Line(shared.clone()), LineEnd(shared))
}

impl<T> Shared<T> {
    /// Whoever panicked while holding it left a list of commands, which is always whole.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn leave(&self, mood: Mood) {
        self.state().mood = mood;
        self.places.close();
        self.came.notify_one();
    }
}

impl<T> Line<T> {
    /// Waits for a place. `None` when nobody is let in any more.
    pub(crate) async fn join(&self, command: T) -> Option<()> {
        self.0.places.acquire().await.ok()?.forget();
        let wake = {
            let mut state = self.0.state();
            if state.mood != Mood::Open {
                return None;
            }
            state.waiting.push(command);
            std::mem::take(&mut state.asleep)
        };
        if wake {
            self.0.came.notify_one();
        }
        Some(())
    }

    /// Lets nobody in any more; who is in line is still served.
    pub(crate) fn close(&self) {
        self.0.leave(Mood::Closing);
    }

    /// Has the writer stop after what it is at.
    pub(crate) fn abandon(&self) {
        self.0.leave(Mood::Abandoned);
    }

    /// Waits until nobody is served any more.
    pub(crate) async fn ended(&self) {
        self.0.ended.cancelled().await;
    }
}

impl<T> LineEnd<T> {
    /// Takes all that wait, and sleeps while there is nobody: for `idle` at most, if that is given.
    pub(crate) fn take(&self, idle: Option<Duration>) -> Taken<T> {
        let mut state = self.0.state();
        loop {
            match state.mood {
                Mood::Abandoned => return Taken::Abandoned,
                _ if !state.waiting.is_empty() => {
                    let waiting = std::mem::take(&mut state.waiting);
                    self.0.places.add_permits(waiting.len());
                    return Taken::Some(waiting);
                }
                Mood::Closing => return Taken::Closed,
                Mood::Open => {}
            }
            state.asleep = true;
            let (woken, late) = match idle {
                Some(idle) => {
                    let slept = self.0.came.wait_timeout(state, idle);
                    let (state, slept) = slept.unwrap_or_else(|poisoned| poisoned.into_inner());
                    (state, slept.timed_out())
                }
                None => (self.0.came.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner()), false),
            };
            state = woken;
            state.asleep = false;
            if late && state.waiting.is_empty() && state.mood == Mood::Open {
                return Taken::Idle;
            }
        }
    }
}

impl<T> Drop for LineEnd<T> {
    fn drop(&mut self) {
        self.0.leave(Mood::Abandoned);
        let forgotten = std::mem::take(&mut self.0.state().waiting);
        drop(forgotten);
        self.0.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken<T>(taken: Taken<T>) -> Vec<T> {
        match taken {
            Taken::Some(all) => all,
            _ => Vec::new(),
        }
    }

    #[tokio::test]
    async fn all_that_wait_are_taken_in_their_order_and_their_places_are_free_again() {
        let (line, end) = line(2);
        for round in [[1, 2], [3, 4]] {
            for command in round {
                line.join(command).await.unwrap();
            }
            let full = tokio::time::timeout(Duration::from_millis(1), line.join(9)).await;
            assert!(full.is_err(), "a third has no place");
            assert_eq!(taken(end.take(None)), round);
        }
        assert!(matches!(end.take(Some(Duration::ZERO)), Taken::Idle));
    }

    #[tokio::test]
    async fn a_closed_line_serves_who_is_in_it_and_lets_nobody_in() {
        let (line, end) = line(2);
        line.join(1).await.unwrap();
        line.close();
        assert!(line.join(2).await.is_none());
        assert_eq!(taken(end.take(None)), [1]);
        assert!(matches!(end.take(None), Taken::Closed));
    }

    #[tokio::test]
    async fn who_is_in_line_when_the_writer_goes_is_told() {
        let (line, end) = line(2);
        let (command, told) = tokio::sync::oneshot::channel::<()>();
        line.join(command).await.unwrap();
        drop(end);
        assert!(told.await.is_err());
        line.ended().await;
        let (command, _) = tokio::sync::oneshot::channel();
        assert!(line.join(command).await.is_none());
    }

    #[tokio::test]
    async fn a_sleeping_writer_is_woken_by_a_command_and_by_the_end() {
        let (line, end) = line(2);
        let writer = std::thread::spawn(move || (taken(end.take(None)), matches!(end.take(None), Taken::Abandoned)));
        line.join(7).await.unwrap();
        line.abandon();
        line.ended().await;
        let (first, abandoned) = writer.join().unwrap();
        assert!(abandoned);
        // It may have looked only after the line was left, which serves nobody.
        assert!(first.is_empty() || first == [7]);
    }
}
