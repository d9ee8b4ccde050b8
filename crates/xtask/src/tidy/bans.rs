//! What a `.clippy.toml` says, as entries that can be compared.

use std::collections::BTreeSet;

use anyhow::Context;

/// One entry for each banned path and for each other setting, such as `disallowed-methods: tokio::spawn`.
pub(super) fn parse(text: &str) -> anyhow::Result<BTreeSet<String>> {
    let table: toml::Table = toml::from_str(text).context("while reading a .clippy.toml")?;
    let mut entries = BTreeSet::new();
    for (key, value) in &table {
        match value.as_array() {
            Some(items) => entries.extend(items.iter().map(|item| format!("{key}: {}", path(item)))),
            None => {
                entries.insert(format!("{key}: {value}"));
            }
        }
    }
    Ok(entries)
}

/// A ban is written as a path, or as a table with a path and the reason; reasons may differ.
fn path(item: &toml::Value) -> String {
    let path = item.get("path").unwrap_or(item);
    path.as_str().map_or_else(|| path.to_string(), str::to_owned)
}

pub(super) fn missing<'a>(root: &'a BTreeSet<String>, own: &'a BTreeSet<String>) -> impl Iterator<Item = &'a str> {
    root.difference(own).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_or_setting_that_is_not_repeated_is_missing() {
        let root = "allow-unwrap-in-tests = true\ndisallowed-methods = [{ path = \"a::b\", reason = \"x\" }, \"c::d\"]";
        let root = parse(root).unwrap();
        let whole =
            parse("allow-unwrap-in-tests = true\ndisallowed-methods = [\"c::d\", \"e::f\", { path = \"a::b\" }]")
                .unwrap();
        assert_eq!(missing(&root, &whole).count(), 0);
        let part = parse("disallowed-methods = [\"c::d\"]").unwrap();
        let missing: Vec<&str> = missing(&root, &part).collect();
        assert_eq!(missing, ["allow-unwrap-in-tests: true", "disallowed-methods: a::b"]);
    }
}
