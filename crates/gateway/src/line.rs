//! Requests that wait for one model: fair between owners by the tokens they ask for, interactive ones before batch, the
//! oldest first within.
//!
//! Each owner has a queue for each class, and a queue pays for what is taken out of it. The one that has paid least is next:
//! deficit round robin in the long run, with one number to remember.

use std::collections::{BTreeMap, VecDeque};

use fettle_placement::id::OwnerId;
use fettle_placement::view::Class;
use tokio::time::Instant;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiter<T> {
    pub(crate) id: u64,
    pub(crate) owner: OwnerId,
    pub(crate) class: Class,
    /// Tokens that it is expected to take.
    pub(crate) tokens: u64,
    pub(crate) since: Instant,
    pub(crate) ask: T,
}

#[derive(Debug)]
pub(crate) struct Line<T> {
    queues: BTreeMap<(OwnerId, Class), Queue<T>>,
    /// What whoever was served last had paid: a new queue begins there, so that nobody saves up by being away.
    floor: u64,
    waiting: usize,
    interactive_weight: u64,
}

#[derive(Debug)]
struct Queue<T> {
    paid: u64,
    waiters: VecDeque<Waiter<T>>,
}

impl<T> Line<T> {
    pub(crate) fn new(interactive_weight: u32) -> Self {
        Self { queues: BTreeMap::new(), floor: 0, waiting: 0, interactive_weight: u64::from(interactive_weight.max(1)) }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    pub(crate) fn push(&mut self, waiter: Waiter<T>) {
        self.queue(&waiter).waiters.push_back(waiter);
        self.waiting += 1;
    }

    /// One that has waited and was served in vain keeps its place.
    pub(crate) fn push_front(&mut self, waiter: Waiter<T>) {
        self.queue(&waiter).waiters.push_front(waiter);
        self.waiting += 1;
    }

    /// The next one in turn; it stays until it is taken.
    pub(crate) fn peek(&self) -> Option<&Waiter<T>> {
        self.next().and_then(|key| self.queues[key].waiters.front())
    }

    pub(crate) fn take(&mut self) -> Option<Waiter<T>> {
        let key = self.next()?.clone();
        let queue = self.queues.get_mut(&key)?;
        let waiter = queue.waiters.pop_front()?;
        self.floor = self.floor.max(queue.paid);
        // At least one token, so that turns go round whatever is asked for.
        let weight = match waiter.class {
            Class::Interactive => 1,
            Class::Batch => self.interactive_weight,
        };
        queue.paid = queue.paid.saturating_add(waiter.tokens.max(1).saturating_mul(weight));
        self.waiting -= 1;
        self.drop_empty(&key);
        Some(waiter)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Waiter<T>> {
        let (key, nth) = self.queues.iter().find_map(|(key, queue)| {
            queue.waiters.iter().position(|waiter| waiter.id == id).map(|nth| (key.clone(), nth))
        })?;
        let removed = self.queues.get_mut(&key)?.waiters.remove(nth);
        self.waiting -= usize::from(removed.is_some());
        self.drop_empty(&key);
        removed
    }

    /// Who has to make room for another one of `owner`, if the line is full: whoever has most in it, and would still have as many.
    pub(crate) fn crowder(&self, owner: &OwnerId) -> Option<&OwnerId> {
        let mut counts: BTreeMap<&OwnerId, usize> = BTreeMap::new();
        for ((owner, _), queue) in &self.queues {
            *counts.entry(owner).or_default() += queue.waiters.len();
        }
        let own = counts.get(owner).copied().unwrap_or(0);
        let (crowder, most) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        (most > own + 1).then_some(crowder)
    }

    /// Of one owner's, the one that came last.
    pub(crate) fn remove_newest(&mut self, owner: &OwnerId) -> Option<Waiter<T>> {
        let of_owner = self.queues.iter().filter(|((one, _), _)| one == owner);
        let newest = of_owner.flat_map(|(_, queue)| &queue.waiters).map(|waiter| waiter.id).max()?;
        self.remove(newest)
    }

    /// Each owner's requests of a class: how many, and since when the oldest waits.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (&OwnerId, Class, usize, Instant)> {
        self.queues.iter().filter_map(|((owner, class), queue)| {
            let oldest = queue.waiters.iter().map(|waiter| waiter.since).min()?;
            Some((owner, *class, queue.waiters.len(), oldest))
        })
    }

    pub(crate) fn drain(&mut self) -> Vec<Waiter<T>> {
        self.waiting = 0;
        std::mem::take(&mut self.queues).into_values().flat_map(|queue| queue.waiters).collect()
    }

    fn next(&self) -> Option<&(OwnerId, Class)> {
        let front = |queue: &Queue<T>| queue.waiters.front().map(|waiter| waiter.since);
        self.queues
            .iter()
            .filter(|(_, queue)| !queue.waiters.is_empty())
            .min_by_key(|(key, queue)| (queue.paid, front(queue), *key))
            .map(|(key, _)| key)
    }

    fn queue(&mut self, waiter: &Waiter<T>) -> &mut Queue<T> {
        let floor = self.floor;
        self.queues
            .entry((waiter.owner.clone(), waiter.class))
            .and_modify(|queue| {
                if queue.waiters.is_empty() {
                    queue.paid = queue.paid.max(floor);
                }
            })
            .or_insert_with(|| Queue { paid: floor, waiters: VecDeque::new() })
    }

    /// A queue without waiters is kept only while it has paid more than others.
    fn drop_empty(&mut self, key: &(OwnerId, Class)) {
        let floor = self.floor;
        if self.waiting == 0 {
            self.queues.clear();
            self.floor = 0;
        } else if self.queues.get(key).is_some_and(|queue| queue.waiters.is_empty()) {
            self.queues.retain(|_, queue| !queue.waiters.is_empty() || queue.paid > floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn waiter(id: u64, owner: &str, class: Class, tokens: u64, since: Instant) -> Waiter<()> {
        Waiter { id, owner: OwnerId::new(owner), class, tokens, since: since + Duration::from_millis(id), ask: () }
    }

    fn taken(line: &mut Line<()>) -> Vec<(String, u64)> {
        std::iter::from_fn(|| line.take()).map(|waiter| (waiter.owner.to_string(), waiter.id)).collect()
    }

    #[test]
    fn a_long_queue_of_one_owner_does_not_stand_before_another() {
        let (mut line, now) = (Line::new(8), Instant::now());
        (0..50).for_each(|id| line.push(waiter(id, "ada", Class::Interactive, 100, now)));
        (50..52).for_each(|id| line.push(waiter(id, "ben", Class::Interactive, 100, now)));
        let order: Vec<_> = taken(&mut line).into_iter().take(4).map(|(owner, _)| owner).collect();
        assert_eq!(order, ["ada", "ben", "ada", "ben"]);
    }

    #[test]
    fn whoever_asks_for_much_waits_for_more_of_the_others() {
        let (mut line, now) = (Line::new(8), Instant::now());
        (0..3).for_each(|id| line.push(waiter(id, "ada", Class::Interactive, 1_000, now)));
        (10..20).for_each(|id| line.push(waiter(id, "ben", Class::Interactive, 100, now)));
        let order = taken(&mut line);
        let second = order.iter().position(|(_, id)| *id == 1).unwrap();
        assert!(second >= 10, "{order:?}");
    }

    #[test]
    fn interactive_requests_get_eight_tokens_for_each_one_of_batch() {
        let (mut line, now) = (Line::new(8), Instant::now());
        (0..100).for_each(|id| line.push(waiter(id, "ada", Class::Interactive, 10, now)));
        (100..200).for_each(|id| line.push(waiter(id, "ben", Class::Batch, 10, now)));
        let batch = taken(&mut line).into_iter().take(90).filter(|(owner, _)| owner == "ben").count();
        assert!((9..=11).contains(&batch), "{batch}");
    }

    #[test]
    fn who_was_away_saves_up_nothing() {
        let (mut line, now) = (Line::new(8), Instant::now());
        (0..20).for_each(|id| line.push(waiter(id, "ada", Class::Interactive, 10, now)));
        (0..10).for_each(|_| drop(line.take()));
        (20..30).for_each(|id| line.push(waiter(id, "ben", Class::Interactive, 10, now)));
        let ben = taken(&mut line).into_iter().take(10).filter(|(owner, _)| owner == "ben").count();
        assert!((5..=6).contains(&ben), "{ben}");
    }

    #[test]
    fn one_served_in_vain_is_the_next_of_its_queue() {
        let (mut line, now) = (Line::new(8), Instant::now());
        (0..3).for_each(|id| line.push(waiter(id, "ada", Class::Interactive, 10, now)));
        let first = line.take().unwrap();
        line.push_front(first);
        assert_eq!(taken(&mut line).into_iter().map(|(_, id)| id).collect::<Vec<_>>(), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn nobody_is_lost_or_doubled(events in proptest::collection::vec((0..4u8, 0..4u8, 1..500u64), 0..300)) {
            let (mut line, now) = (Line::new(8), Instant::now());
            let (mut inside, mut next) = (std::collections::BTreeSet::new(), 0);
            for (event, owner, tokens) in events {
                match event {
                    0 | 1 => {
                        let class = if event == 0 { Class::Interactive } else { Class::Batch };
                        line.push(waiter(next, &owner.to_string(), class, tokens, now));
                        inside.insert(next);
                        next += 1;
                    }
                    2 => {
                        let peeked = line.peek().map(|waiter| waiter.id);
                        let taken = line.take().map(|waiter| waiter.id);
                        prop_assert_eq!(peeked, taken);
                        prop_assert_eq!(taken.is_some(), !inside.is_empty());
                        if let Some(id) = taken {
                            prop_assert!(inside.remove(&id));
                        }
                    }
                    _ => {
                        let id = tokens % next.max(1);
                        prop_assert_eq!(line.remove(id).is_some(), inside.remove(&id));
                    }
                }
                prop_assert_eq!(line.len(), inside.len());
                prop_assert_eq!(line.waiting().map(|(_, _, count, _)| count).sum::<usize>(), inside.len());
            }
        }
    }
}
