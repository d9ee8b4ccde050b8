//! What is on a machine: files, users, units. Two of these, compared, show what an installation left behind.

use std::collections::BTreeMap;

use anyhow::Context as _;

use super::machine::Machine;

/// What changes by itself while a machine runs, and what others keep as their own memory.
const PASSING: &[&str] = &[
    "/dev",
    "/proc",
    "/run",
    "/sys",
    "/tmp",
    "/var/tmp",
    "/var/log/journal",
    "/var/log/wtmp",
    "/var/log/lastlog",
    "/var/cache",
    "/var/lib/systemd",
    "/var/lib/dbus",
    "/srv",
    "/etc/machine-id",
    "/etc/.updated",
    "/var/.updated",
    "/usr/lib/systemd",
    // The copies that the user database keeps of itself before each change.
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/.pwd.lock",
    "/etc/subuid-",
    "/etc/subgid-",
    // Byte code of Python.
    "/usr/lib/python3",
    "/usr/share/python3",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace(BTreeMap<String, String>);

impl Trace {
    pub fn of(machine: &Machine) -> anyhow::Result<Self> {
        let prune: Vec<String> = PASSING.iter().map(|path| format!("-path {path} -prune -o")).collect();
        let find = format!("find / -xdev {}", prune.join(" "));
        let list = format!("{find} -type l -printf '%p\\t-> %l\\n' -o -type f,d -printf '%p\\t%m %u:%g\\n'");
        let hash = format!("{find} -type f -print0 | xargs --null --no-run-if-empty sha256sum");
        let mut trace: BTreeMap<String, String> = BTreeMap::new();
        for line in machine.run(&list)?.whole().context("while listing files")?.text.lines() {
            let (path, attributes) = line.split_once('\t').with_context(|| format!("strange line `{line}`"))?;
            trace.insert(path.to_owned(), attributes.to_owned());
        }
        for line in machine.run(&hash)?.whole().context("while hashing files")?.text.lines() {
            let (hash, path) = line.split_once("  ").with_context(|| format!("strange line `{line}`"))?;
            trace.insert(format!("content of {path}"), hash.to_owned());
        }
        for (what, line) in [
            ("unit file", "systemctl list-unit-files --no-legend --no-pager --plain"),
            ("unit", "systemctl list-units --all --no-legend --no-pager --plain 'fettle*'"),
            ("stamp", "ls /var/lib/systemd/timers 2>/dev/null || true"),
            ("run", "ls /run | grep fettle || true"),
        ] {
            for line in machine.run(line)?.whole()?.text.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let Some((name, rest)) = words.split_first() else { continue };
                trace.insert(format!("{what} {name}"), rest.join(" "));
            }
        }
        Ok(Self(trace))
    }

    /// What differs: `path: before / after`.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(after.0.keys()).collect();
        let different = names.into_iter().filter(|name| self.0.get(*name) != after.0.get(*name));
        let value = |trace: &Self, name: &String| trace.0.get(name).map_or("absent", String::as_str).to_owned();
        different.map(|name| format!("{name}: {} / {}", value(self, name), value(after, name))).collect()
    }
}
