//! Users, units and what the service manager and the kernel's security modules are told.

use super::{ActError, ActResult, Action, Check, Description, Trace, Way};
use crate::host::{Host, HostView, UnitVerb};
use crate::layout;

pub(super) fn describe(action: &Action) -> Description {
    let (what, why, revert) = match action {
        Action::Users { users, .. } => (
            format!("make the users {}", users.join(", ")),
            "each process gets a user of its own, so that none reads another's memory or files",
            "stay while their files stay; --purge removes them",
        ),
        Action::CheckConfig { config, .. } => (
            format!("check {config} with the new release"),
            "an unknown key fails here and not in the night",
            "nothing",
        ),
        Action::AppArmor { profile } => (
            format!("load the AppArmor profile {profile}"),
            "this kernel lets only named programs make the namespaces that the sandbox is built of",
            "is unloaded",
        ),
        Action::Reload { way: Way::Forth } => {
            ("let systemd read its units again".to_owned(), "units were written", "nothing")
        }
        Action::Reload { way: Way::Back } => (
            "on the way back: let systemd read its units again".to_owned(),
            "units will have been removed then",
            "systemd reads its units again",
        ),
        Action::Enable { unit } => {
            (format!("enable {unit}"), "it comes back after a reboot", "becomes as enabled as it was")
        }
        Action::Start { unit } => (format!("start {unit}"), "Fettle runs when this is over", "is stopped if it was"),
        Action::Retire { unit } => (
            format!("stop and disable {unit}"),
            "Fettle takes its place, and two would answer the same issues",
            "is enabled and started again if it was",
        ),
        Action::Smoke { .. } => (
            "try the smoke list".to_owned(),
            "ready is what a service says; that a Task passes through all of them is what counts",
            "nothing",
        ),
        Action::Sweep { .. } => (
            "on the way back: sweep up what services left behind".to_owned(),
            "slices, runtime folders and the timer's memory outlive the services",
            "they are removed",
        ),
        Action::Stop { units } => (
            format!("stop {}", units.join(", ")),
            "nothing may write while what it writes to is exchanged",
            "those that ran are started again",
        ),
        Action::Restart { units, way: Way::Forth } => {
            (format!("restart {}, one after the other", units.join(", ")), "they run what is new", "nothing")
        }
        Action::Restart { units, way: Way::Back } => (
            format!("on the way back: restart {}", units.join(", ")),
            "they would go on with what failed",
            "they run what was there before",
        ),
        _ => unreachable!("only what concerns the system is described here"),
    };
    Description { what, why: why.to_owned(), revert: revert.to_owned() }
}

pub(super) fn check(action: &Action, host: &dyn HostView) -> ActResult<Check> {
    let needed_unless = |done: bool, what: &str| if done { Check::Done } else { Check::Needed(what.to_owned()) };
    Ok(match action {
        Action::Users { users, .. } => {
            let absent = absent_users(host, users)?;
            needed_unless(absent.is_empty(), &format!("not there: {}", absent.join(", ")))
        }
        Action::CheckConfig { program, config } => {
            // Before the first installation neither is there; executing it then is what counts.
            if host.entry(program)?.is_absent() || host.entry(config)?.is_absent() {
                Check::Needed("the release is not there yet".to_owned())
            } else {
                let said = host.ask(program, &["check-config", config.as_str()])?;
                if said.ok { Check::Done } else { Check::Blocked(said.text) }
            }
        }
        Action::Enable { unit } => needed_unless(host.unit(unit)?.enabled, "it is not enabled"),
        Action::Start { unit } => needed_unless(host.unit(unit)?.active, "it does not run"),
        Action::Retire { unit } => {
            let state = host.unit(unit)?;
            needed_unless(!state.enabled && !state.active, "it is enabled or runs")
        }
        Action::Stop { units } => needed_unless(active(host, units)?.is_empty(), "they run"),
        // Whether these are needed follows from what else is done; the planner drops them.
        Action::Smoke { .. } => Check::Done,
        Action::AppArmor { .. } | Action::Reload { .. } | Action::Restart { .. } | Action::Sweep { .. } => {
            Check::Needed(String::new())
        }
        _ => unreachable!("only what concerns the system is checked here"),
    })
}

pub(super) fn before(action: &Action, host: &dyn HostView) -> ActResult<Trace> {
    Ok(match action {
        Action::Users { users, .. } => Trace::Users { absent: absent_users(host, users)? },
        Action::Enable { unit } | Action::Start { unit } | Action::Retire { unit } => {
            Trace::Unit { state: host.unit(unit)? }
        }
        Action::Stop { units } => Trace::Active { units: active(host, units)? },
        _ => Trace::Nothing,
    })
}

fn active(host: &dyn HostView, units: &[String]) -> ActResult<Vec<String>> {
    let mut active = Vec::new();
    for unit in units {
        if host.unit(unit)?.active {
            active.push(unit.clone());
        }
    }
    Ok(active)
}

fn absent_users(host: &dyn HostView, users: &[String]) -> ActResult<Vec<String>> {
    let mut absent = Vec::new();
    for user in users {
        if !host.has_user(user)? || !host.has_group(user)? {
            absent.push(user.clone());
        }
    }
    Ok(absent)
}

pub(super) fn execute(action: &Action, host: &mut dyn Host) -> ActResult<Trace> {
    match action {
        Action::Users { file, .. } => host.sysusers(file)?,
        Action::CheckConfig { program, config } => {
            let said = host.ask(program, &["check-config", config.as_str()])?;
            if !said.ok {
                return Err(ActError::Refused(format!("{config} is refused: {}", said.text)));
            }
        }
        Action::Smoke { program } => {
            let said = host.ask(program, &["smoke"])?;
            if !said.ok {
                return Err(ActError::Gate(said.text));
            }
        }
        Action::AppArmor { profile } => host.load_apparmor(profile)?,
        Action::Reload { way: Way::Forth } => host.daemon_reload()?,
        Action::Restart { units, way: Way::Forth } => {
            for unit in units {
                // What runs is about to be what is new: that it does not start says that it is not healthy.
                host.units(UnitVerb::TryRestart, unit).map_err(|error| ActError::Gate(error.to_string()))?;
            }
        }
        Action::Reload { way: Way::Back } | Action::Restart { way: Way::Back, .. } | Action::Sweep { .. } => {}
        Action::Enable { unit } => host.units(UnitVerb::Enable, unit)?,
        Action::Start { unit } => host.units(UnitVerb::Start, unit)?,
        Action::Retire { unit } => {
            if host.unit(unit)?.enabled {
                host.units(UnitVerb::Disable, unit)?;
            }
            host.units(UnitVerb::Stop, unit)?;
        }
        Action::Stop { units } => {
            for unit in units {
                host.units(UnitVerb::Stop, unit)?;
            }
        }
        _ => unreachable!("only what concerns the system is executed here"),
    }
    match action {
        Action::Enable { unit } | Action::Start { unit } | Action::Retire { unit } => {
            Ok(Trace::Unit { state: host.unit(unit)? })
        }
        _ => Ok(Trace::Nothing),
    }
}

pub(super) fn revert(action: &Action, host: &mut dyn Host, before: &Trace) -> ActResult<()> {
    match (action, before) {
        (Action::Users { .. }, Trace::Users { absent }) => {
            for user in absent.iter().rev() {
                host.remove_user(user)?;
            }
        }
        (Action::AppArmor { profile }, _) => host.unload_apparmor(profile)?,
        (Action::Sweep { units, folders, files }, _) => {
            for unit in units {
                host.units(UnitVerb::Stop, unit)?;
            }
            for folder in folders {
                host.remove_tree(folder)?;
            }
            for file in files {
                host.remove(file)?;
            }
        }
        (Action::Reload { way: Way::Back }, _) => host.daemon_reload()?,
        (Action::Restart { units, way: Way::Back }, _) => {
            for unit in units {
                host.units(UnitVerb::TryRestart, unit)?;
            }
        }
        (Action::Stop { .. }, Trace::Active { units }) => {
            for unit in units.iter().rev() {
                host.units(UnitVerb::Start, unit)?;
            }
        }
        (Action::Enable { unit }, Trace::Unit { state }) if !state.enabled => host.units(UnitVerb::Disable, unit)?,
        // Who has removed it since does not want it back.
        (Action::Retire { unit }, Trace::Unit { state }) if !host.unit(unit)?.absent => {
            if state.enabled {
                host.units(UnitVerb::Enable, unit)?;
            }
            if state.active {
                host.units(UnitVerb::Start, unit)?;
            }
        }
        (Action::Start { unit }, Trace::Unit { state }) if !state.active => {
            host.units(UnitVerb::Stop, unit)?;
            // A connection that came while only the service was stopped has started it again.
            if let Some(service) = layout::behind(unit) {
                host.units(UnitVerb::Stop, service)?;
            }
        }
        _ => {}
    }
    Ok(())
}
