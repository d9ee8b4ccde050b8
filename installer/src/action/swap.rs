//! Exchanges files and folders by renaming: what was there is never overwritten, and after a crash it is plain to see how far
//! it came.

use camino::Utf8Path;

use super::{ActError, ActResult, Action, Check, Description, Trace};
use crate::host::{Entry, Host, HostView};

pub(super) fn describe(action: &Action) -> Description {
    let Action::Swap { from, path, aside } = action else { unreachable!("only exchanges are described here") };
    Description {
        what: format!("put {from} in the place of {path}"),
        why: format!("it is what the backup holds; what was there waits in {aside}"),
        revert: "what was there comes back".to_owned(),
    }
}

pub(super) fn check(host: &dyn HostView, from: &Utf8Path) -> ActResult<Check> {
    Ok(if host.entry(from)?.is_absent() { Check::Done } else { Check::Needed("it was not put there yet".to_owned()) })
}

/// Killed after the first rename, `path` is absent and `aside` is there; after the second, `from` is absent.
pub(super) fn execute(host: &mut dyn Host, from: &Utf8Path, path: &Utf8Path, aside: &Utf8Path) -> ActResult<Trace> {
    if !host.entry(from)?.is_absent() {
        if !host.entry(path)?.is_absent() {
            refuse_both(host, path, aside)?;
            host.rename(path, aside)?;
        }
        host.rename(from, path)?;
    }
    Ok(Trace::Path { entry: host.entry(path)?, saved: None })
}

pub(super) fn revert(
    host: &mut dyn Host,
    from: &Utf8Path,
    path: &Utf8Path,
    aside: &Utf8Path,
    before: &Trace,
) -> ActResult<()> {
    let was_absent = matches!(before, Trace::Path { entry: Entry::Absent, .. });
    let waits = !host.entry(aside)?.is_absent();
    if !waits && !was_absent {
        // Not even begun, or taken back already.
        return Ok(());
    }
    if !host.entry(path)?.is_absent() && (waits || host.entry(from)?.is_absent()) {
        refuse_both(host, path, from)?;
        host.rename(path, from)?;
    }
    if waits { Ok(host.rename(aside, path)?) } else { Ok(()) }
}

/// Renaming over something would lose it.
fn refuse_both(host: &dyn HostView, one: &Utf8Path, other: &Utf8Path) -> ActResult<()> {
    if host.entry(other)?.is_absent() {
        return Ok(());
    }
    Err(ActError::Refused(format!(
        "{one} and {other} are both there, so something else has written {one} meanwhile; keep what you need of it, remove it, and go on"
    )))
}
