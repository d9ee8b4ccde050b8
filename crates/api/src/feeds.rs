//! What all who follow events share: a limited number of seats, the newest events read once for everybody, and the place
//! where each of them is.
//!
//! Nothing is kept for a follower but its place: one that is slow reads on from there, from the ledger where it has to.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, Method};
use fettle_app::ports::ledger::{L, Ledger};
use fettle_domain::access::{Action, Actor, Object};
use fettle_domain::event::EventBody as Body;
use fettle_domain::id::TaskId;
use tokio::time::Instant;

use crate::auth::{Caller, recognise};
use crate::problem::{Code, Problem};
use crate::state::ApiState;
use crate::v1::events::EventBody;

/// Feeds at once, of both kinds. Each is a connection and some 20 KB, measured by `bench api`; browsers hold one per tab.
const MAX_FEEDS: usize = 1024;
/// Of one actor: a dozen tabs and a script. Without it, one viewer could take all.
const MAX_FEEDS_PER_ACTOR: usize = 16;
/// Read at once: one short read of the ledger.
pub(crate) const PAGE: u16 = 200;
/// Newest events that are kept for all followers, some megabyte. Whoever is further behind reads from the ledger.
pub(crate) const WINDOW: u64 = 1024;
/// Another dashboard's events ring no bell here, and nor does the end of a session; looking finds them.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Words are told at most so often: of many Runs no follower is told more often than of one.
pub(crate) const HEAR_EVERY: Duration = Duration::from_millis(250);

/// An event as it is told, and what feeds choose by.
pub(crate) struct Told {
    pub(crate) event: EventBody,
    /// Of the Task, for now: one that was given up may be taken up again.
    pub(crate) is_last: bool,
    /// Changes what waits or is at work.
    pub(crate) of_queue: bool,
}

/// Shared by all feeds of a process.
#[derive(Default)]
pub(crate) struct Feeds {
    seats: Mutex<Seats>,
    window: tokio::sync::Mutex<Option<Window>>,
}

#[derive(Default)]
struct Seats {
    taken: usize,
    by_actor: HashMap<String, usize>,
}

/// The right to follow; given back when it is dropped.
pub(crate) struct Seat {
    feeds: Arc<Feeds>,
    actor: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.feeds.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.taken -= 1;
        if let Some(taken) = seats.by_actor.get_mut(&self.actor) {
            *taken -= 1;
            if *taken == 0 {
                seats.by_actor.remove(&self.actor);
            }
        }
    }
}

impl Feeds {
    pub(crate) fn take_seat(self: &Arc<Self>, actor: &Actor) -> Result<Seat, Problem> {
        // Nobody's user name is one of these: they have no space in them.
        let actor = actor.user.map_or_else(|| "the admin key".to_owned(), |user| user.to_string());
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let later = Duration::from_secs(10);
        if seats.by_actor.get(&actor).is_some_and(|taken| *taken >= MAX_FEEDS_PER_ACTOR) {
            let detail = format!("You follow events {MAX_FEEDS_PER_ACTOR} times already. Close one of these feeds.");
            return Err(Problem::new(Code::TooMany, detail).retry_after(later));
        }
        if seats.taken >= MAX_FEEDS {
            let detail = "Too many event feeds are open. Close one, or try again later.";
            return Err(Problem::new(Code::Busy, detail).retry_after(later));
        }
        seats.taken += 1;
        *seats.by_actor.entry(actor.clone()).or_default() += 1;
        Ok(Seat { feeds: self.clone(), actor })
    }

    /// From the window, if all after `after` is in it: the events, and up to where there are no others. Many who wake at once
    /// wait for one read.
    async fn recent(&self, ledger: &dyn Ledger, task: Option<TaskId>, after: u64) -> L<Option<(Vec<Arc<Told>>, u64)>> {
        let newest = *ledger.newest_event().borrow();
        let mut kept = self.window.lock().await;
        let window = kept.get_or_insert_with(|| Window::from(newest));
        if after < window.from {
            return Ok(None);
        }
        if window.to < newest || window.looked_at.is_none_or(|at| at.elapsed() >= LOOK_AGAIN) {
            window.read(ledger, newest).await?;
        }
        Ok((after >= window.from).then(|| window.after(task, after)))
    }
}

/// All events with a number above `from`, up to `to`.
struct Window {
    from: u64,
    to: u64,
    events: VecDeque<Arc<Told>>,
    looked_at: Option<Instant>,
}

impl Window {
    fn from(seq: u64) -> Self {
        Self { from: seq, to: seq, events: VecDeque::new(), looked_at: None }
    }

    async fn read(&mut self, ledger: &dyn Ledger, newest: u64) -> L<()> {
        if newest.saturating_sub(self.to) > WINDOW {
            *self = Self::from(newest - WINDOW);
        }
        loop {
            let events = ledger.events(None, self.to, PAGE).await?;
            let drained = events.len() < usize::from(PAGE);
            for event in events {
                self.to = event.seq;
                self.events.push_back(Arc::new(event.into()));
            }
            while self.events.len() as u64 > WINDOW {
                self.from = self.events.pop_front().map_or(self.from, |oldest| oldest.event.seq);
            }
            if drained {
                break;
            }
        }
        self.looked_at = Some(Instant::now());
        Ok(())
    }

    fn after(&self, task: Option<TaskId>, after: u64) -> (Vec<Arc<Told>>, u64) {
        let first = self.events.partition_point(|told| told.event.seq <= after);
        let wanted = self.events.iter().skip(first).filter(|told| task.is_none_or(|task| told.event.task_id == task));
        let page: Vec<_> = wanted.take(PAGE.into()).cloned().collect();
        let upto = page.last().filter(|_| page.len() == usize::from(PAGE)).map_or(self.to, |last| last.event.seq);
        (page, upto.max(after))
    }
}

/// Where somebody is in the events of one Task, or of all.
pub(crate) struct Place {
    task: Option<TaskId>,
    /// All up to here was told.
    pub(crate) after: u64,
    /// The Task may have ended: at the start, and after an event that says so.
    look_at_task: bool,
    /// The Task has ended, and everything was told.
    pub(crate) ended: bool,
}

impl Place {
    pub(crate) fn new(task: Option<TaskId>, after: u64) -> Self {
        Self { task, after, look_at_task: task.is_some(), ended: false }
    }

    /// The next read may find that the Task has ended.
    pub(crate) fn looks_at_task(&self) -> bool {
        self.look_at_task
    }

    /// The next events, and whether there may be more of them. The Task is looked at before its events are read, so that a Task
    /// seen as ended has told its last event.
    pub(crate) async fn read(&mut self, api: &ApiState) -> L<(Vec<Arc<Told>>, bool)> {
        let over = match self.task {
            Some(task) if self.look_at_task => api.ledger.task(task).await?.state.is_final(),
            _ => false,
        };
        // A Task's end may be seen before its bell has rung, so the window may lack what led to it.
        let recent = if over { None } else { api.feeds.recent(&*api.ledger, self.task, self.after).await? };
        let (events, upto) = match recent {
            Some(recent) => recent,
            None => self.read_ledger(&*api.ledger).await?,
        };
        let more = events.len() == usize::from(PAGE);
        self.look_at_task = (over && more) || events.iter().any(|told| self.task.is_some() && told.is_last);
        self.after = upto;
        self.ended = over && !more;
        Ok((events, more))
    }

    async fn read_ledger(&self, ledger: &dyn Ledger) -> L<(Vec<Arc<Told>>, u64)> {
        // What was there before the read is in it, however few of it are this Task's.
        let newest = *ledger.newest_event().borrow();
        let events = ledger.events(self.task, self.after, PAGE).await?;
        let last = events.last().map_or(self.after, |last| last.seq);
        let upto = if events.len() < usize::from(PAGE) { last.max(newest) } else { last };
        Ok((events.into_iter().map(|event| Arc::new(Told::from(event))).collect(), upto))
    }
}

/// With what a follower has come, and from where: a feed outlasts sessions, tokens and keys.
pub(crate) struct Follower {
    headers: HeaderMap,
    peer: Option<IpAddr>,
    known_at: Instant,
    _seat: Seat,
}

impl Follower {
    pub(crate) fn new(api: &ApiState, caller: &Caller, headers: HeaderMap) -> Result<Self, Problem> {
        let seat = api.feeds.take_seat(&caller.actor)?;
        Ok(Self { headers, peer: caller.origin.address.parse().ok(), known_at: Instant::now(), _seat: seat })
    }

    /// Whether what it has come with is still good. Looks every [`LOOK_AGAIN`].
    pub(crate) async fn may_stay(&mut self, api: &ApiState) -> Result<(), Problem> {
        if self.known_at.elapsed() < LOOK_AGAIN {
            return Ok(());
        }
        let caller = recognise(api, &Method::GET, &self.headers, self.peer).await?;
        caller.may(Action::TasksRead, Object::Shared)?;
        self.known_at = Instant::now();
        Ok(())
    }
}

impl From<fettle_domain::event::Event> for Told {
    fn from(event: fettle_domain::event::Event) -> Self {
        let is_last = matches!(event.body, Body::TaskDone { .. } | Body::TaskCancelled);
        let of_queue = match event.body {
            Body::TaskCreated { .. }
            | Body::TaskJoined { .. }
            | Body::RunLeased { .. }
            | Body::RunFailed { .. }
            | Body::RunLapsed { .. }
            | Body::RunEnded { .. }
            | Body::PublishFailed { .. }
            | Body::CancelRequested { .. }
            | Body::TaskCancelled
            | Body::TaskDone { .. }
            | Body::Redriven { .. }
            | Body::RunsAdded { .. }
            | Body::RunChosen { .. }
            | Body::RunStopped { .. } => true,
            Body::Step { .. } | Body::EffectIntended { .. } | Body::EffectSettled { .. } => false,
        };
        Self { event: event.into(), is_last, of_queue }
    }
}

#[cfg(test)]
mod tests {
    use fettle_domain::access::{Role, Via};
    use fettle_domain::id::UserId;
    use uuid::Uuid;

    use super::*;

    fn actor(number: u128) -> Actor {
        let user = (number > 0).then(|| UserId::from_uuid(Uuid::from_u128(number)));
        Actor { user, name: "somebody".into(), role: Role::Viewer, scope: None, via: Via::Session }
    }

    #[test]
    fn nobody_takes_all_seats_and_a_seat_that_is_left_is_free() {
        let feeds = Arc::<Feeds>::default();
        let mut held: Vec<Seat> = (0..MAX_FEEDS_PER_ACTOR).map(|_| feeds.take_seat(&actor(1)).unwrap()).collect();
        assert_eq!(feeds.take_seat(&actor(1)).err().map(|problem| problem.code), Some(Code::TooMany));
        held.push(feeds.take_seat(&actor(2)).unwrap());
        held.remove(0);
        held.push(feeds.take_seat(&actor(1)).unwrap());
        for number in 0.. {
            match feeds.take_seat(&actor(3 + number / 10)) {
                Ok(seat) => held.push(seat),
                Err(problem) => {
                    assert_eq!((problem.code, held.len()), (Code::Busy, MAX_FEEDS));
                    break;
                }
            }
        }
        held.clear();
        assert!(feeds.seats.lock().unwrap().by_actor.is_empty());
        assert!(feeds.take_seat(&actor(0)).is_ok());
    }
}
