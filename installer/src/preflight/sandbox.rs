//! PF050 to PF053: how strong the sandbox's walls will be. The attempt was made by whoever gathered the facts.

use fettle_app::ports::sandbox::SandboxLevel;

use super::Context;
use crate::facts::{HostFacts, Unknown};
use crate::report::{Check, Checked, fail, pass, warn};

pub(super) const CHECKS: &[Check<Context>] = &[
    Check { id: "PF050", name: "user namespaces", run: namespaces },
    Check { id: "PF051", name: "landlock", run: landlock },
    Check { id: "PF052", name: "AppArmor and SELinux", run: modules },
    Check { id: "PF053", name: "cgroup delegation", run: delegation },
];

/// Truncating files is not controlled before this one.
const OLDEST_LANDLOCK: u32 = 3;
/// Signals to processes outside are not controlled before this one.
const SIGNAL_LANDLOCK: u32 = 6;
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The level that the worker will find, once the installer has put its AppArmor profile there; none when nothing would be run.
pub fn level(facts: &HostFacts) -> Result<Option<SandboxLevel>, Unknown> {
    if makes_namespaces(facts)? {
        return Ok(Some(SandboxLevel::Full));
    }
    Ok((*facts.sandbox.landlock_abi.get()? >= OLDEST_LANDLOCK).then_some(SandboxLevel::Landlock))
}

/// The attempt succeeded, or failed only for want of the profile.
fn makes_namespaces(facts: &HostFacts) -> Result<bool, Unknown> {
    Ok(facts.sandbox.namespaces.get()?.ok || profile_helps(facts)?)
}

fn profile_helps(facts: &HostFacts) -> Result<bool, Unknown> {
    let sandbox = &facts.sandbox;
    let switched_off = sandbox.max_user_namespaces.known() == Some(&0)
        || sandbox.unprivileged_clone.known().copied().flatten() == Some(false);
    Ok(*sandbox.apparmor_restricts.get()? && !switched_off && facts.has_program("apparmor_parser")?)
}

fn namespaces(facts: &HostFacts, _: &Context) -> Checked {
    let attempt = facts.sandbox.namespaces.get()?;
    if attempt.ok {
        return pass("an ordinary user can make them: level full");
    }
    if profile_helps(facts)? {
        return pass("AppArmor gives them to profiled programs only; the installer loads a profile: level full");
    }
    let remedy = remedy(facts)?;
    match level(facts)? {
        Some(level) => warn(format!("refused ({}): level {}", attempt.said, level.name()), remedy),
        None => fail(format!("refused ({}), and landlock is no way out: nothing would be run", attempt.said), remedy),
    }
}

fn remedy(facts: &HostFacts) -> Result<&'static str, Unknown> {
    let sandbox = &facts.sandbox;
    Ok(if sandbox.max_user_namespaces.known() == Some(&0) {
        "Set user.max_user_namespaces=16384 in /etc/sysctl.d/ and run `sysctl --system`."
    } else if sandbox.unprivileged_clone.known().copied().flatten() == Some(false) {
        "Set kernel.unprivileged_userns_clone=1 in /etc/sysctl.d/ and run `sysctl --system`."
    } else if *sandbox.apparmor_restricts.get()? {
        "Run `apt install apparmor`, so that the profile that comes with Fettle can be loaded."
    } else {
        "Allow user namespaces and mounts in the settings of the container or service around this host."
    })
}

fn landlock(facts: &HostFacts, _: &Context) -> Checked {
    let abi = *facts.sandbox.landlock_abi.get()?;
    let full = makes_namespaces(facts)?;
    let found = if abi == 0 { "not offered by the kernel".to_owned() } else { format!("ABI {abi}") };
    match abi {
        abi if abi >= SIGNAL_LANDLOCK || (full && abi >= OLDEST_LANDLOCK) => pass(found),
        abi if abi >= OLDEST_LANDLOCK => warn(
            found,
            "Boot Linux 6.12 or newer, or allow user namespaces: commands could send signals to the worker's other processes.",
        ),
        _ if full => warn(
            found,
            "Boot Linux 6.2 or newer with landlock in lsm= on its command line: it is the second wall behind the namespaces.",
        ),
        _ => {
            fail(found, "Boot Linux 6.2 or newer with landlock in lsm= on its command line, or allow user namespaces.")
        }
    }
}

fn modules(facts: &HostFacts, _: &Context) -> Checked {
    let sandbox = &facts.sandbox;
    if *sandbox.apparmor_restricts.get()? && !facts.has_program("apparmor_parser")? {
        return fail(
            "AppArmor restricts user namespaces, and apparmor_parser is not there to load a profile",
            "Run `apt install apparmor`.",
        );
    }
    match sandbox.selinux_enforces.get()? {
        Some(true) => warn(
            "SELinux enforces its policy, with which Fettle is not tested",
            "Look for denials with `ausearch -m avc -ts recent` after the installation.",
        ),
        Some(false) => pass("SELinux only watches"),
        None if *sandbox.apparmor_restricts.get()? => pass("AppArmor can load the profile"),
        None => pass("nothing restricts user namespaces"),
    }
}

fn delegation(facts: &HostFacts, _: &Context) -> Checked {
    let remedy = "Boot with cgroup version 2 and its controllers; until then a watcher caps memory and processes, somewhat later than the kernel would.";
    let Some(controllers) = facts.system.cgroup.get()? else { return warn("cgroup version 1", remedy) };
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !controllers.iter().any(|one| one == name)).collect();
    if missing.is_empty() {
        return pass("memory, pids and cpu can be handed down");
    }
    warn(format!("{} cannot be handed down", missing.join(", ")), remedy)
}
