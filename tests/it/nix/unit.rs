//! Text of unit files, compared by what it says.

use std::collections::{BTreeMap, BTreeSet};

/// The values of each key, in their order; keys as `Section.Key`.
pub(crate) type Unit = BTreeMap<String, Vec<String>>;

pub(crate) fn parse(text: &str) -> Unit {
    let mut unit = Unit::new();
    let mut section = "";
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else {
            let (key, value) = line.split_once('=').expect("a line of a unit is a key and a value");
            unit.entry(format!("{section}.{key}")).or_default().push(value.to_owned());
        }
    }
    unit
}

/// Takes away what NixOS adds of its own.
pub(crate) fn without_nixos(mut unit: Unit) -> Unit {
    unit.retain(|key, _| {
        let name = key.split_once('.').map_or("", |(_, name)| name);
        name != "Environment" && !name.starts_with("X-")
    });
    unit
}

/// The keys whose values are not the same.
pub(crate) fn differences<'a>(one: &'a Unit, other: &'a Unit) -> BTreeSet<&'a str> {
    let differs = |key: &&String| one.get(*key) != other.get(*key);
    one.keys().chain(other.keys()).filter(differs).map(String::as_str).collect()
}
