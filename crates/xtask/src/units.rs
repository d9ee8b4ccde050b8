//! The systemd units: `units.toml` in, the text of unit files out. The NixOS module repeats these rules with Nix's builtins,
//! so they are few: profiles in their order, later keys first; sections in a fixed order; keys by their bytes.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use cargo_metadata::camino::Utf8Path;
use serde::Deserialize;
use toml::Value;

pub(crate) const SOURCE: &str = "systemd/units.toml";
pub(crate) const RENDERED: &str = "systemd/units";

const SECTIONS: [&str; 6] = ["Unit", "Slice", "Socket", "Timer", "Service", "Install"];

/// Values of keys, by section.
type Sections = BTreeMap<String, BTreeMap<String, Value>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    /// The first line of every file, as a comment.
    notice: String,
    /// `@name@` in a value, and what stands there on a host without Nix.
    placeholders: BTreeMap<String, String>,
    profile: BTreeMap<String, Sections>,
    unit: BTreeMap<String, Unit>,
}

#[derive(Deserialize)]
struct Unit {
    #[serde(default)]
    profiles: Vec<String>,
    #[serde(flatten)]
    sections: Sections,
}

/// The unit files by their names.
///
/// Errors name the unit, and the profile, section, key or placeholder that cannot be rendered.
pub(crate) fn render(source: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let source: Source = toml::from_str(source)?;
    let one = |(name, unit): (&String, &Unit)| {
        let text = unit_text(&source, unit).with_context(|| format!("while rendering {name}"))?;
        Ok((name.clone(), text))
    };
    source.unit.iter().map(one).collect()
}

fn unit_text(source: &Source, unit: &Unit) -> anyhow::Result<String> {
    let merged = merge(source, unit)?;
    if let Some(strange) = merged.keys().find(|section| !SECTIONS.contains(&section.as_str())) {
        bail!("there is no section {strange}");
    }
    let mut text = format!("# {}\n", source.notice);
    for (section, keys) in SECTIONS.iter().filter_map(|name| merged.get_key_value(*name)) {
        text.push_str(&format!("\n[{section}]\n"));
        for (key, value) in keys {
            for line in lines(value).with_context(|| format!("in {section}.{key}"))? {
                let line = fill(&line, &source.placeholders).with_context(|| format!("in {section}.{key}"))?;
                text.push_str(&format!("{key}={line}\n"));
            }
        }
    }
    Ok(text)
}

fn merge(source: &Source, unit: &Unit) -> anyhow::Result<Sections> {
    let mut merged = Sections::new();
    for name in &unit.profiles {
        overlay(&mut merged, source.profile.get(name).with_context(|| format!("there is no profile {name}"))?);
    }
    overlay(&mut merged, &unit.sections);
    Ok(merged)
}

fn overlay(below: &mut Sections, above: &Sections) {
    for (section, keys) in above {
        below.entry(section.clone()).or_default().extend(keys.clone());
    }
}

/// The values that `key=` stands before, one a line.
fn lines(value: &Value) -> anyhow::Result<Vec<String>> {
    match value {
        // It would leave nothing behind, while `key=` means something to systemd: that is said by an empty string.
        Value::Array(entries) if entries.is_empty() => bail!("an empty array has no line"),
        Value::Array(entries) => entries.iter().map(scalar).collect(),
        single => Ok(vec![scalar(single)?]),
    }
}

fn scalar(value: &Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => {
            ensure!(!text.contains('\n'), "a value has one line");
            Ok(text.clone())
        }
        Value::Integer(number) => Ok(number.to_string()),
        Value::Boolean(truth) => Ok(truth.to_string()),
        other => bail!("a value is text, an integer or a boolean, not {}", other.type_str()),
    }
}

fn fill(line: &str, placeholders: &BTreeMap<String, String>) -> anyhow::Result<String> {
    let filled =
        placeholders.iter().fold(line.to_owned(), |line, (name, value)| line.replace(&format!("@{name}@"), value));
    // systemd's own signs, `@system-service` and `worker@.service`, have no second one after a plain word.
    let mut between = filled.split('@').skip(1).collect::<Vec<_>>();
    between.pop();
    let unknown = between.into_iter().find(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase()));
    ensure!(unknown.is_none(), "nothing is known for @{}@", unknown.unwrap_or_default());
    Ok(filled)
}

/// Writes the unit files below `root`, or with `check` says which would change. A file that no unit made is one too many.
pub(crate) fn codegen(root: &Utf8Path, check: bool) -> anyhow::Result<()> {
    let made =
        render(&fs_err::read_to_string(root.join(SOURCE))?).with_context(|| format!("while reading {SOURCE}"))?;
    let folder = root.join(RENDERED);
    fs_err::create_dir_all(&folder)?;
    let mut committed = BTreeMap::new();
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        committed.insert(entry.file_name().to_owned(), fs_err::read_to_string(entry.path())?);
    }
    if committed == made {
        return Ok(());
    }
    if check {
        let names = made.keys().chain(committed.keys());
        let mut stale: Vec<&str> =
            names.filter(|name| made.get(*name) != committed.get(*name)).map(String::as_str).collect();
        stale.sort_unstable();
        stale.dedup();
        bail!("{} in {RENDERED} out of date; run `cargo xtask codegen`", stale.join(", "));
    }
    for name in committed.keys().filter(|name| !made.contains_key(*name)) {
        fs_err::remove_file(folder.join(name))?;
    }
    for (name, text) in &made {
        fs_err::write(folder.join(name), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(units: &str) -> String {
        format!(
            r#"
            notice = "Made."
            placeholders = {{ bin = "/opt/bin" }}
            [profile.walls.Service]
            Nice = 1
            Lines = ["@all", "~@some @more"]
            Empty = ""
            [profile.open.Service]
            Lines = ["@all"]
            Walls = false
            {units}"#
        )
    }

    fn refusal(units: &str) -> String {
        format!("{:#}", render(&source(units)).unwrap_err())
    }

    #[test]
    fn profiles_are_laid_over_each_other_and_the_unit_over_them() {
        let made = render(&source(
            r#"
            [unit."b.service"]
            profiles = ["walls", "open"]
            [unit."b.service".Install]
            WantedBy = "a.target"
            [unit."b.service".Service]
            Nice = 2
            ExecStart = "@bin@/b"
            [unit."a.target".Unit]
            Description = "A"
            "#,
        ))
        .unwrap();
        let service = "# Made.\n\n[Service]\nEmpty=\nExecStart=/opt/bin/b\nLines=@all\nNice=2\nWalls=false\n\n\
                       [Install]\nWantedBy=a.target\n";
        let target = "# Made.\n\n[Unit]\nDescription=A\n";
        assert_eq!(made, [("a.target", target), ("b.service", service)].map(|(a, b)| (a.into(), b.into())).into());
    }

    #[test]
    fn an_array_is_a_line_for_each_entry_in_its_order() {
        let made = render(&source("[unit.\"a.service\"]\nprofiles = [\"walls\"]")).unwrap();
        assert!(made["a.service"].contains("\nLines=@all\nLines=~@some @more\n"), "{made:?}");
    }

    #[test]
    fn what_cannot_be_rendered_is_refused_with_its_place() {
        let unit = |line: &str| format!("[unit.\"a.service\".Service]\n{line}");
        assert_eq!(
            refusal("[unit.\"a.service\"]\nprofiles = [\"gone\"]"),
            "while rendering a.service: there is no profile gone"
        );
        assert_eq!(
            refusal(&unit("ExecStart = \"@bni@/a\"")),
            "while rendering a.service: in Service.ExecStart: nothing is known for @bni@"
        );
        assert!(refusal(&unit("Lines = []")).ends_with("in Service.Lines: an empty array has no line"));
        assert!(refusal(&unit("Nice = 1.5")).ends_with("not float"));
        assert!(refusal(&unit("Nice = \"1\\n2\"")).ends_with("a value has one line"));
        assert!(refusal("[unit.\"a.service\".Servcie]\nNice = 1").ends_with("there is no section Servcie"));
    }

    #[test]
    fn codegen_writes_what_is_missing_removes_what_is_left_over_and_then_finds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        fs_err::create_dir_all(root.join(RENDERED)).unwrap();
        fs_err::write(root.join(SOURCE), source("[unit.\"a.target\".Unit]\nDescription = \"A\"")).unwrap();
        fs_err::write(root.join(RENDERED).join("old.service"), "").unwrap();

        let stale = codegen(root, true).unwrap_err().to_string();
        codegen(root, false).unwrap();
        let current = codegen(root, true);
        let left = root.join(RENDERED).join("old.service").exists();
        assert!(stale.starts_with("a.target, old.service in systemd/units out of date"), "{stale}");
        assert!(current.is_ok() && !left);
    }
}
