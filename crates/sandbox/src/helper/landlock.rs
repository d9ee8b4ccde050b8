//! The file walls that hold without any namespace, and once more inside of them.

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::SandboxLevel;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use crate::spec::{Fault, HOME, Refusal, Spec, TEMPORARY};

/// The newest we know; an older kernel gets what it understands.
const NEWEST: ABI = ABI::V9;
/// Level `landlock` needs this one: from here on truncating is controlled too.
const OLDEST: ABI = ABI::V3;

const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

pub(super) fn restrict(spec: &Spec) -> Result<(), Refusal> {
    if spec.level == SandboxLevel::Full && spec.landlock_abi == 0 {
        return Ok(());
    }
    let status = apply(spec).map_err(|e| Refusal {
        fault: Fault::Walls,
        step: "apply landlock".to_owned(),
        detail: e.to_string(),
        errno: None,
    })?;
    if status.ruleset == RulesetStatus::NotEnforced {
        let detail = "the kernel does not enforce it".to_owned();
        return Err(Refusal { fault: Fault::Walls, step: "apply landlock".to_owned(), detail, errno: None });
    }
    Ok(())
}

fn apply(spec: &Spec) -> Result<RestrictionStatus, RulesetError> {
    let (read, write) = reach(spec);
    let required = match spec.level {
        SandboxLevel::Full => CompatLevel::BestEffort,
        SandboxLevel::Landlock => CompatLevel::HardRequirement,
    };
    Ruleset::default()
        .set_compatibility(required)
        .handle_access(AccessFs::from_all(OLDEST))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(read, AccessFs::from_read(NEWEST)))?
        .add_rules(path_beneath_rules(write, AccessFs::from_all(NEWEST)))?
        .restrict_self()
}

/// What may be read and what may be written.
fn reach(spec: &Spec) -> (Vec<Utf8PathBuf>, Vec<Utf8PathBuf>) {
    let mut read: Vec<Utf8PathBuf>;
    let mut write: Vec<Utf8PathBuf>;
    match spec.level {
        // The tree holds nothing but what was mounted, so all of it may be read.
        SandboxLevel::Full => {
            read = vec!["/".into()];
            write = [TEMPORARY, HOME, "/dev"].map(Utf8PathBuf::from).to_vec();
        }
        SandboxLevel::Landlock => {
            read = spec.system.iter().map(|part| part.inside.clone()).collect();
            write = DEVICES.map(Utf8PathBuf::from).to_vec();
            write.extend(private_folders(&spec.scratch));
        }
    }
    for part in spec.mounts.iter().chain([&spec.workspace]) {
        if part.writable {
            write.push(part.inside.clone());
        } else {
            read.push(part.inside.clone());
        }
    }
    (read, write)
}

/// Home and temporary folder of a command at level `landlock`.
pub(crate) fn private_folders(scratch: &Utf8Path) -> [Utf8PathBuf; 2] {
    [scratch.join("home"), scratch.join("tmp")]
}
