//! Which GPUs reach each other over NVLink: the connected parts of what the links say. Numbers them by their lowest member, so
//! the same machine has the same islands whatever the order of its devices.

use std::collections::BTreeMap;

use fettle_placement::id::{DeviceId, IslandId};

/// The other end of an active link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    Gpu {
        /// PCI bus id.
        bus: String,
    },
    /// It joins all GPUs that have one: every GPU of an NVSwitch machine is wired to all its switches.
    Switch,
}

/// A GPU with its place on the bus, and where its active links lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    pub id: DeviceId,
    pub bus: String,
    pub remotes: Vec<Remote>,
}

/// The island of each GPU that has a neighbour; a GPU without one is in none.
pub fn islands(gpus: &[Linked]) -> BTreeMap<DeviceId, IslandId> {
    let mut parts = Parts::of(gpus.len());
    let mut behind_switches = None;
    for (place, gpu) in gpus.iter().enumerate() {
        for remote in &gpu.remotes {
            match remote {
                Remote::Switch => parts.join(place, *behind_switches.get_or_insert(place)),
                Remote::Gpu { bus } => {
                    // A link to what is not there, such as a GPU that another container has, joins nothing.
                    if let Some(other) = gpus.iter().position(|other| same_bus(&other.bus, bus)) {
                        parts.join(place, other);
                    }
                }
            }
        }
    }
    let mut members: BTreeMap<usize, Vec<&DeviceId>> = BTreeMap::new();
    for (place, gpu) in gpus.iter().enumerate() {
        members.entry(parts.root(place)).or_default().push(&gpu.id);
    }
    let mut groups: Vec<Vec<&DeviceId>> = members.into_values().filter(|group| group.len() > 1).collect();
    for group in &mut groups {
        group.sort();
    }
    groups.sort();
    let named = groups
        .iter()
        .enumerate()
        .flat_map(|(number, group)| group.iter().map(move |id| ((*id).clone(), IslandId::new(format!("nvl{number}")))));
    named.collect()
}

/// Drivers write the domain with four digits or eight, and the letters in either case.
fn same_bus(one: &str, other: &str) -> bool {
    let short = |bus: &str| bus.trim_start_matches('0').to_ascii_lowercase();
    short(one) == short(other)
}

/// Union-find.
struct Parts {
    parents: Vec<usize>,
}

impl Parts {
    fn of(count: usize) -> Self {
        Self { parents: (0..count).collect() }
    }

    fn root(&mut self, mut place: usize) -> usize {
        while self.parents[place] != place {
            self.parents[place] = self.parents[self.parents[place]];
            place = self.parents[place];
        }
        place
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.parents[one] = other;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gpu(number: usize, remotes: Vec<Remote>) -> Linked {
        Linked { id: DeviceId::new(format!("GPU-{number}")), bus: format!("00000000:{number:02X}:00.0"), remotes }
    }

    fn to(number: usize) -> Remote {
        Remote::Gpu { bus: format!("0000:{number:02x}:00.0") }
    }

    fn named(gpus: &[Linked]) -> Vec<(String, String)> {
        islands(gpus).iter().map(|(id, island)| (id.to_string(), island.to_string())).collect()
    }

    fn pair(id: &str, island: &str) -> (String, String) {
        (id.to_owned(), island.to_owned())
    }

    #[test]
    fn bridges_make_pairs_and_a_gpu_alone_has_no_island() {
        let gpus = [
            gpu(10, vec![to(11)]),
            gpu(11, vec![]),
            gpu(12, vec![]),
            gpu(13, vec![to(14)]),
            gpu(14, vec![to(13), to(99)]),
        ];
        let wanted = [pair("GPU-10", "nvl0"), pair("GPU-11", "nvl0"), pair("GPU-13", "nvl1"), pair("GPU-14", "nvl1")];
        assert_eq!(named(&gpus), wanted);
    }

    #[test]
    fn a_switch_joins_all_that_have_a_link_to_one() {
        let gpus = [gpu(1, vec![Remote::Switch]), gpu(2, vec![Remote::Switch; 18]), gpu(3, vec![])];
        assert_eq!(named(&gpus), [pair("GPU-1", "nvl0"), pair("GPU-2", "nvl0")]);
    }

    proptest! {
        #[test]
        fn islands_do_not_depend_on_the_order_of_devices(
            links in prop::collection::vec((0..8usize, 0..8usize), 0..10), order in Just((0..8usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let gpus: Vec<Linked> = (0..8)
                .map(|number| gpu(number, links.iter().filter(|(from, _)| *from == number).map(|(_, end)| to(*end)).collect()))
                .collect();
            let shuffled: Vec<Linked> = order.iter().map(|place| gpus[*place].clone()).collect();
            let found = islands(&gpus);
            prop_assert_eq!(&found, &islands(&shuffled));
            // Both ends of a link are in one island.
            for (from, end) in links.iter().filter(|(from, end)| from != end) {
                prop_assert_eq!(found.get(&gpus[*from].id), found.get(&gpus[*end].id));
                prop_assert!(found.contains_key(&gpus[*from].id));
            }
        }
    }
}
