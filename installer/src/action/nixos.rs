//! What is done to a NixOS host: one module is written, and the system is built anew.

use camino::Utf8Path;

use super::{ActError, ActResult, Action, Check, Description, Keeping, Trace, Way, file};
use crate::host::{Attrs, Entry, Host, HostView};

/// Where NixOS has it, whatever the caller's search path.
const REBUILD: &str = "/run/current-system/sw/bin/nixos-rebuild";

pub(super) fn describe(action: &Action) -> Description {
    let (what, why, revert) = match action {
        Action::NixosModule { path, .. } => {
            (format!("write {path}"), "what is asked for, as an option of NixOS", "becomes the placeholder that it was")
        }
        Action::NixosRebuild { way: Way::Forth } => (
            "nixos-rebuild switch".to_owned(),
            "NixOS makes users, units and folders from its configuration",
            "nothing",
        ),
        Action::NixosRebuild { way: Way::Back } => (
            "on the way back: nixos-rebuild switch".to_owned(),
            "the module will have been taken back then",
            "the system is built as it was before",
        ),
        _ => unreachable!("only what concerns NixOS is described here"),
    };
    Description { what, why: why.to_owned(), revert: revert.to_owned() }
}

pub(super) fn check(host: &dyn HostView, path: &Utf8Path, text: &str, known: Option<&Trace>) -> ActResult<Check> {
    if matches!(host.entry(path)?, Entry::Absent) {
        return Ok(Check::Blocked(format!(
            "{path} is not there. The configuration of NixOS is yours: put `{{ }}` into that file, import it and Fettle's module \
             (`nixosModules.default` of its flake) in your configuration, and run this again"
        )));
    }
    let now = host.read(path)?;
    if known.is_none() && is_placeholder(&now) {
        return Ok(Check::Needed("it holds the placeholder".to_owned()));
    }
    file::check_file(host, path, &Attrs::root(0o644), text.as_bytes(), Keeping::Managed, known)
}

fn is_placeholder(text: &[u8]) -> bool {
    let text = text.iter().filter(|byte| !byte.is_ascii_whitespace());
    text.eq(b"{}")
}

pub(super) fn write(host: &mut dyn Host, path: &Utf8Path, text: &str, before: &Trace) -> ActResult<Trace> {
    file::write(host, path, &Attrs::root(0o644), text.as_bytes(), Keeping::Managed, before)
}

pub(super) fn rebuild(host: &mut dyn Host) -> ActResult<Trace> {
    let said = host.change(Utf8Path::new(REBUILD), &["switch"])?;
    if said.ok { Ok(Trace::Nothing) } else { Err(ActError::Refused(format!("nixos-rebuild failed: {}", said.text))) }
}
