//! Folders, files and secrets.

use camino::Utf8Path;
use similar::TextDiff;

use super::{ActError, ActResult, Action, Check, Description, Keeping, Saving, Trace};
use crate::answers::{SecretFrom, VariableOf};
use crate::environment_file;
use crate::host::{Attrs, Entry, Host, HostView, sha256};

/// A secret is root's alone: systemd hands it to the unit that needs it, and a cluster gets it by its API.
const SECRET_MODE: u32 = 0o600;
const NEW_VALUE: &str = "it has a new value, and the services do not use it yet";
/// More lines of a difference than this tell a person nothing.
const SHOWN_LINES: usize = 40;

pub(super) fn describe(action: &Action) -> Description {
    let (what, why, revert) = match action {
        Action::Dir { path, attrs, keeping } => (
            format!("make the folder {path} ({:o} {}:{})", attrs.mode, attrs.owner.user, attrs.owner.group),
            "files and services below it need it".to_owned(),
            match keeping {
                Keeping::Managed | Keeping::System => "is removed when it is empty",
                Keeping::Seeded | Keeping::Kept => "stays, with what is in it, until --purge",
            },
        ),
        Action::File { path, attrs, keeping, why, .. } => (
            format!("write {path} ({:o} {}:{})", attrs.mode, attrs.owner.user, attrs.owner.group),
            why.clone(),
            match keeping {
                Keeping::Managed | Keeping::System => "becomes what it was before",
                Keeping::Seeded => "stays until --purge: from now on it is yours",
                Keeping::Kept => "stays until --purge",
            },
        ),
        Action::GenerateSecret { path, bytes, why } => {
            (format!("make the secret {path} of {bytes} random bytes"), why.clone(), "stays until --purge")
        }
        Action::CopySecret { from, path } => (
            format!("copy the secret {from} to {path}"),
            "root's alone: what needs it is given it, and nobody else".to_owned(),
            "stays until --purge; the original is not touched",
        ),
        Action::WatchSecret { path } => (
            format!("note which value of {path} the units get"),
            "a new value reaches them when they are started anew".to_owned(),
            "nothing; the secret is yours",
        ),
        _ => unreachable!("only files are described here"),
    };
    Description { what, why, revert: revert.to_owned() }
}

pub(super) fn check_dir(host: &dyn HostView, path: &Utf8Path, attrs: &Attrs, keeping: Keeping) -> ActResult<Check> {
    Ok(match host.entry(path)? {
        Entry::Dir { .. } | Entry::Link { .. } if keeping == Keeping::System => Check::Done,
        Entry::Dir { attrs: now } if now == *attrs => Check::Done,
        Entry::Dir { attrs: now } => Check::Needed(format!("mode {:o} instead of {:o}", attrs.mode, now.mode)),
        Entry::Absent => Check::Needed("it is not there".to_owned()),
        _ => Check::Blocked(format!("{path} is there and no folder; move it away")),
    })
}

pub(super) fn check_file(
    host: &dyn HostView,
    path: &Utf8Path,
    attrs: &Attrs,
    bytes: &[u8],
    keeping: Keeping,
    known: Option<&Trace>,
) -> ActResult<Check> {
    let entry = host.entry(path)?;
    let (digest, now) = match &entry {
        Entry::Absent => return Ok(Check::Needed("it is not there".to_owned())),
        Entry::File { sha256, attrs } => (sha256, attrs),
        _ => return Ok(Check::Blocked(format!("{path} is there and no regular file; move it away"))),
    };
    let known = match known {
        Some(Trace::Path { entry: Entry::File { sha256, .. }, .. }) => Some(sha256),
        _ => None,
    };
    if *digest == sha256(bytes) || keeping == Keeping::Seeded {
        // The operator's own file is never written again, but what reads it has to be told.
        let edited = keeping == Keeping::Seeded && known.is_some_and(|known| known != digest);
        return Ok(match (now == attrs, edited) {
            (false, _) => Check::Needed("other mode or owner".to_owned()),
            (true, true) => {
                Check::Needed("it was changed since the last apply, and the services do not use it yet".to_owned())
            }
            (true, false) => Check::Done,
        });
    }
    let shown = difference(&host.read(path)?, bytes);
    Ok(if known == Some(digest) { Check::Needed(shown) } else { Check::Foreign(shown) })
}

/// `known` is the value, as a hash, that the units were started with.
pub(super) fn check_secret(host: &dyn HostView, path: &Utf8Path, known: Option<&Trace>) -> ActResult<Check> {
    Ok(match host.entry(path)? {
        Entry::Absent => Check::Needed("it is not there".to_owned()),
        Entry::File { sha256, .. } if is_other(known, &sha256) => Check::Needed(NEW_VALUE.to_owned()),
        Entry::File { attrs, .. } if attrs == Attrs::root(SECRET_MODE) => Check::Done,
        Entry::File { .. } => Check::Needed("others could read it".to_owned()),
        _ => Check::Blocked(format!("{path} is there and no regular file; move it away")),
    })
}

/// What the secret is; the error names the place and never a value.
pub(crate) fn value(host: &dyn HostView, from: &SecretFrom) -> ActResult<Result<Vec<u8>, String>> {
    if !matches!(host.entry(from.file())?, Entry::File { .. }) {
        return Ok(Err(format!("{} is not there or no regular file; name the secret's place anew", from.file())));
    }
    let bytes = host.read(from.file())?;
    let SecretFrom::Variable(VariableOf { variable, .. }) = from else { return Ok(Ok(bytes)) };
    let found = environment_file::read(&String::from_utf8_lossy(&bytes)).remove(variable);
    let found = found.filter(|value| !value.is_empty()).map(String::into_bytes);
    Ok(found.ok_or_else(|| format!("{from} has no value; name the secret's place anew")))
}

/// Where it lies is the operator's affair, and so are its rights.
pub(super) fn check_watched(host: &dyn HostView, path: &Utf8Path, known: Option<&Trace>) -> ActResult<Check> {
    Ok(match host.entry(path)? {
        Entry::File { sha256, .. } if is_other(known, &sha256) => Check::Needed(NEW_VALUE.to_owned()),
        Entry::File { .. } if known.is_none() => Check::Needed("its value is not known yet".to_owned()),
        _ => Check::Done,
    })
}

fn is_other(known: Option<&Trace>, now: &str) -> bool {
    matches!(known, Some(Trace::Path { entry: Entry::File { sha256, .. }, .. }) if sha256 != now)
}

pub(super) fn check_copied(
    host: &dyn HostView,
    from: &SecretFrom,
    path: &Utf8Path,
    known: Option<&Trace>,
) -> ActResult<Check> {
    let wanted = match value(host, from)? {
        Ok(value) => sha256(&value),
        // The copy is what counts: nobody has to keep the original.
        Err(_) if !host.entry(path)?.is_absent() => return check_secret(host, path, known),
        Err(why) => return Ok(Check::Blocked(why)),
    };
    Ok(match host.entry(path)? {
        Entry::File { sha256, attrs } if sha256 == wanted && attrs == Attrs::root(SECRET_MODE) => Check::Done,
        Entry::File { .. } => Check::Needed("its value or mode differs".to_owned()),
        Entry::Absent => Check::Needed("it is not there".to_owned()),
        _ => Check::Blocked(format!("{path} is there and no regular file; move it away")),
    })
}

/// Copies a file to where it is safe until the run is over and its receipt gone.
pub(super) fn save(host: &mut dyn Host, path: &Utf8Path, saving: &Saving<'_>) -> ActResult<Trace> {
    let entry = host.entry(path)?;
    let saved = match &entry {
        Entry::File { sha256, .. } => {
            let copy = saving.folder.join(format!("{}-{}", saving.number, &sha256[..16]));
            host.copy(path, &copy, &Attrs::root(SECRET_MODE))?;
            Some(copy)
        }
        _ => None,
    };
    Ok(Trace::Path { entry, saved })
}

pub(super) fn make_dir(host: &mut dyn Host, path: &Utf8Path, attrs: &Attrs) -> ActResult<Trace> {
    host.mkdir(path, attrs)?;
    seen(host, path)
}

pub(super) fn write(
    host: &mut dyn Host,
    path: &Utf8Path,
    attrs: &Attrs,
    bytes: &[u8],
    keeping: Keeping,
    before: &Trace,
) -> ActResult<Trace> {
    let operators = keeping == Keeping::Seeded && matches!(before, Trace::Path { entry: Entry::File { .. }, .. });
    if operators {
        host.set_attrs(path, attrs)?;
    } else {
        host.write(path, bytes, attrs)?;
    }
    seen(host, path)
}

pub(super) fn generate(host: &mut dyn Host, path: &Utf8Path, bytes: usize) -> ActResult<Trace> {
    // A value that is there may already be known to a worker elsewhere.
    if host.entry(path)?.is_absent() {
        let value = hex::encode(host.random(bytes)?);
        host.write(path, value.as_bytes(), &Attrs::root(SECRET_MODE))?;
    } else {
        host.set_attrs(path, &Attrs::root(SECRET_MODE))?;
    }
    seen(host, path)
}

pub(super) fn copy_secret(host: &mut dyn Host, from: &SecretFrom, path: &Utf8Path) -> ActResult<Trace> {
    match value(host, from)? {
        Ok(value) => host.write(path, &value, &Attrs::root(SECRET_MODE))?,
        Err(_) if !host.entry(path)?.is_absent() => host.set_attrs(path, &Attrs::root(SECRET_MODE))?,
        Err(why) => return Err(ActError::Refused(why)),
    }
    seen(host, path)
}

pub(super) fn revert_dir(host: &mut dyn Host, path: &Utf8Path, keeping: Keeping, before: &Trace) -> ActResult<()> {
    match before {
        Trace::Path { entry: Entry::Dir { attrs }, .. } if !host.entry(path)?.is_absent() => {
            Ok(host.set_attrs(path, attrs)?)
        }
        Trace::Path { entry: Entry::Absent, .. } => match keeping {
            // Ours with all in it: taken back only by a purge, or by the very run that made it.
            Keeping::Seeded | Keeping::Kept => Ok(host.remove_tree(path)?),
            // Somebody else's files keep it.
            Keeping::Managed | Keeping::System => Ok(host.rmdir(path).map(drop)?),
        },
        _ => Ok(()),
    }
}

pub(super) fn revert_attrs(host: &mut dyn Host, path: &Utf8Path, before: &Trace) -> ActResult<()> {
    match (before, host.entry(path)?) {
        (Trace::Path { entry: Entry::File { attrs, .. }, .. }, Entry::File { .. }) => Ok(host.set_attrs(path, attrs)?),
        _ => Ok(()),
    }
}

pub(super) fn revert_file(
    host: &mut dyn Host,
    path: &Utf8Path,
    before: &Trace,
    after: Option<&Trace>,
) -> ActResult<()> {
    let Trace::Path { entry, saved } = before else {
        return Err(ActError::Refused(format!("the journal does not say what {path} was before; look at it yourself")));
    };
    match entry {
        Entry::Absent => Ok(host.remove(path)?),
        Entry::File { sha256, attrs } => {
            let now = host.entry(path)?;
            if matches!(&now, Entry::File { sha256: now, .. } if now == sha256) {
                return Ok(host.set_attrs(path, attrs)?);
            }
            // Since it was written an operator may have gone on with it: only what we left is replaced.
            let left_by_us = match (&now, after) {
                (Entry::Absent, _) | (_, None) => true,
                (
                    Entry::File { sha256: now, .. },
                    Some(Trace::Path { entry: Entry::File { sha256: left, .. }, .. }),
                ) => now == left,
                _ => false,
            };
            match (left_by_us, saved) {
                (true, Some(saved)) => Ok(host.copy(saved, path, attrs)?),
                (true, None) => Err(ActError::Refused(format!("no copy of what {path} was before was kept"))),
                (false, _) => {
                    let kept =
                        saved.as_ref().map_or(String::new(), |saved| format!("; what it was before is in {saved}"));
                    Err(ActError::Refused(format!("{path} was changed by somebody else since{kept}")))
                }
            }
        }
        Entry::Dir { .. } | Entry::Link { .. } | Entry::Other => Ok(()),
    }
}

pub(super) fn seen(host: &dyn HostView, path: &Utf8Path) -> ActResult<Trace> {
    Ok(Trace::Path { entry: host.entry(path)?, saved: None })
}

/// Lines that differ, as people read them; only what is no text is not shown.
fn difference(old: &[u8], new: &[u8]) -> String {
    let (Ok(old), Ok(new)) = (str::from_utf8(old), str::from_utf8(new)) else {
        return "the content differs".to_owned();
    };
    let diff = TextDiff::from_lines(old, new);
    let lines = diff.unified_diff().context_radius(1).to_string();
    let mut shown: Vec<&str> = lines.lines().take(SHOWN_LINES).collect();
    if lines.lines().count() > SHOWN_LINES {
        shown.push("…");
    }
    shown.join("\n")
}
