//! Whose turn it is: fair between owners, interactive wants before batch, the oldest first within.
//!
//! Each owner has a line for each class, and a line pays for every load that is started for it. The line that has paid least
//! is next. In the long run that is deficit round robin; what a line has paid is all that must be remembered for it.

use std::collections::BTreeMap;

use crate::id::{ModelId, OwnerId};
use crate::view::{Class, Policy, Want};

/// What each line has paid, less what the cheapest has: it comes out of one placement and goes into the next view. A line
/// without wants is forgotten, and begins again beside the cheapest: who was away saves up nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Turns(BTreeMap<(OwnerId, Class), u64>);

impl Turns {
    /// `demand` in the order in which it is served. Wants of `first`, which others make room for, come before all others; those
    /// that nobody waits for come last.
    pub(crate) fn order<'w>(&self, demand: &'w [Want], first: Option<&ModelId>, policy: &Policy) -> Vec<&'w Want> {
        let mut wants: Vec<&Want> = demand.iter().collect();
        wants.sort_by_key(|want| (want.oldest, &want.owner, want.class, &want.model));
        let (mut ordered, rest): (Vec<_>, Vec<_>) =
            wants.into_iter().partition(|want| want.waiting > 0 && Some(&want.model) == first);
        let (waiting, kept): (Vec<_>, Vec<_>) = rest.into_iter().partition(|want| want.waiting > 0);

        let mut lines: BTreeMap<(&OwnerId, Class), Vec<&Want>> = BTreeMap::new();
        for want in waiting.into_iter().rev() {
            lines.entry((&want.owner, want.class)).or_default().push(want);
        }
        let entry = self.entry(lines.keys().copied());
        let mut paid: Vec<u64> = lines.keys().map(|line| self.paid(*line).unwrap_or(entry)).collect();
        let mut lines: Vec<_> = lines.into_iter().collect();
        loop {
            let heads = lines.iter().enumerate().filter_map(|(nth, (_, line))| Some((nth, *line.last()?)));
            let Some((nth, _)) = heads.min_by_key(|(nth, head)| (paid[*nth], head.oldest, *nth)) else { break };
            ordered.extend(lines[nth].1.pop());
            paid[nth] += price(lines[nth].0.1, policy);
        }
        ordered.extend(kept);
        ordered
    }

    /// After loads were started for `served`.
    #[must_use]
    pub(crate) fn after(&self, demand: &[Want], served: &[&Want], policy: &Policy) -> Self {
        let waiting = || demand.iter().filter(|want| want.waiting > 0);
        let entry = self.entry(waiting().map(|want| (&want.owner, want.class)));
        let mut next: BTreeMap<(OwnerId, Class), u64> = waiting()
            .map(|want| {
                let paid = self.paid((&want.owner, want.class)).unwrap_or(entry);
                ((want.owner.clone(), want.class), paid)
            })
            .collect();
        for want in served {
            if let Some(paid) = next.get_mut(&(want.owner.clone(), want.class)) {
                *paid += price(want.class, policy);
            }
        }
        let least = next.values().min().copied().unwrap_or_default();
        next.values_mut().for_each(|paid| *paid -= least);
        Self(next)
    }

    fn paid(&self, (owner, class): (&OwnerId, Class)) -> Option<u64> {
        self.0.get(&(owner.clone(), class)).copied()
    }

    /// What a new line is taken to have paid.
    fn entry<'o>(&self, lines: impl Iterator<Item = (&'o OwnerId, Class)>) -> u64 {
        lines.filter_map(|line| self.paid(line)).min().unwrap_or_default()
    }
}

fn price(class: Class, policy: &Policy) -> u64 {
    match class {
        Class::Interactive => 1,
        Class::Batch => policy.interactive_weight.max(1).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quantity::Millis;

    fn want(owner: &str, model: &str, class: Class, oldest: u64) -> Want {
        Want {
            model: ModelId::new(model),
            owner: OwnerId::new(owner),
            class,
            waiting: 1,
            oldest: Millis::secs(oldest),
            replicas: (0, 1),
        }
    }

    /// Serves the first want, time after time.
    fn served(mut demand: Vec<Want>, times: usize) -> Vec<String> {
        let (mut turns, policy) = (Turns::default(), Policy::default());
        let mut order = Vec::new();
        for _ in 0..times {
            let Some(next) = turns.order(&demand, None, &policy).first().map(|want| (*want).clone()) else { break };
            turns = turns.after(&demand, &[&next], &policy);
            demand.retain(|want| *want != next);
            order.push(next.owner.to_string());
        }
        order
    }

    #[test]
    fn an_old_backlog_of_one_owner_does_not_stand_before_others() {
        let mut demand: Vec<_> =
            (0..50).map(|nth| want("ada", &format!("m{nth:02}"), Class::Interactive, nth)).collect();
        demand.push(want("ben", "x", Class::Interactive, 100));
        demand.push(want("ben", "y", Class::Interactive, 101));
        assert_eq!(served(demand, 4), ["ada", "ben", "ada", "ben"]);
    }

    #[test]
    fn interactive_wants_have_eight_turns_for_each_one_of_batch() {
        let line = |owner, class| (0..20).map(move |nth| want(owner, &format!("{owner}{nth}"), class, nth));
        let demand = line("ada", Class::Interactive).chain(line("ben", Class::Batch)).collect();
        let order = served(demand, 18);
        assert_eq!(order.iter().filter(|owner| *owner == "ben").count(), 2, "{order:?}");
    }

    #[test]
    fn whom_others_make_room_for_is_first_and_what_nobody_waits_for_last() {
        let kept = Want { waiting: 0, ..want("ada", "kept", Class::Interactive, 0) };
        let demand = [kept, want("ada", "a", Class::Interactive, 1), want("ben", "b", Class::Batch, 9)];
        let turns = Turns::default();
        let order = turns.order(&demand, Some(&ModelId::new("b")), &Policy::default());
        let models: Vec<_> = order.iter().map(|want| want.model.as_str()).collect();
        assert_eq!(models, ["b", "a", "kept"]);
    }

    proptest! {
        #[test]
        fn everybody_is_in_the_order_once_and_no_line_gets_ahead_of_its_share(
            owners in proptest::collection::vec(0..4u8, 1..40),
        ) {
            let demand: Vec<_> = owners.iter().enumerate()
                .map(|(nth, owner)| want(&owner.to_string(), &format!("m{nth}"), Class::Interactive, nth as u64)).collect();
            prop_assert_eq!(Turns::default().order(&demand, None, &Policy::default()).len(), demand.len());
            let order = served(demand.clone(), demand.len());
            // While two owners both have wants left, their counts differ by one at most.
            for end in 1..order.len() {
                let count = |owner: &str| order[..end].iter().filter(|one| *one == owner).count();
                let left = |owner: &str| order[end..].iter().any(|one| one == owner);
                let counts: Vec<_> = ["0", "1", "2", "3"].into_iter().filter(|owner| left(owner)).map(count).collect();
                if let (Some(most), Some(least)) = (counts.iter().max(), counts.iter().min()) {
                    prop_assert!(most - least <= 1, "{:?}", order);
                }
            }
        }
    }
}
