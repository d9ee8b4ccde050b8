//! PF001 to PF006: root, systemd, architecture, release, kernel, clock.

use jiff::Timestamp;

use super::{Context, Mode, Purpose};
use crate::facts::{HostFacts, Unknown};
use crate::report::{Check, Checked, fail, pass, warn};

pub(super) const CHECKS: &[Check<Context>] = &[
    Check { id: "PF001", name: "root", run: root },
    Check { id: "PF002", name: "systemd", run: systemd },
    Check { id: "PF003", name: "architecture", run: architecture },
    Check { id: "PF004", name: "system", run: release },
    Check { id: "PF005", name: "kernel and cgroups", run: kernel },
    Check { id: "PF006", name: "clock", run: clock },
];

/// Units use nothing that a later one brought.
const OLDEST_SYSTEMD: u32 = 249;
/// The sandbox mounts and closes by calls that came with it.
const OLDEST_KERNEL: (u32, u32) = (5, 14);
const OLDEST_UBUNTU: (u32, u32) = (22, 4);
const OLDEST_DEBIAN: (u32, u32) = (12, 0);
/// No clock that is right shows less: this check was written later.
const WRITTEN: i64 = 1_767_225_600;
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

fn root(facts: &HostFacts, context: &Context) -> Checked {
    match (facts.is_root()?, context.purpose) {
        (true, _) => pass("looked at by root"),
        (false, Purpose::Look) => warn(
            "looked at by an ordinary user, so some checks know less",
            "Run it again with sudo for the whole picture; `apply` will need root in any case.",
        ),
        (false, Purpose::Apply) => {
            fail("run by an ordinary user", "Run it with sudo: it writes to /etc, /opt and /var/lib.")
        }
    }
}

fn systemd(facts: &HostFacts, _: &Context) -> Checked {
    let init = facts.system.init.get()?;
    if init != "systemd" {
        return fail(
            format!("process 1 is {init}"),
            "Run `fettle up` instead, which needs neither systemd nor root, or boot this host with systemd.",
        );
    }
    match facts.system.systemd.get()? {
        Some(version) if *version >= OLDEST_SYSTEMD => pass(format!("systemd {version} is process 1")),
        Some(version) => fail(
            format!("systemd {version} is too old"),
            format!("Upgrade the system: systemd {OLDEST_SYSTEMD} came with Ubuntu 22.04, 252 with Debian 12."),
        ),
        None => fail("there is no systemctl", "Install the package systemd, or run `fettle up` instead."),
    }
}

fn architecture(facts: &HostFacts, context: &Context) -> Checked {
    let arch = facts.system.arch.get()?;
    if !["x86_64", "aarch64"].contains(&arch.as_str()) {
        return fail(arch.clone(), "Use a host with x86_64 or aarch64; Fettle is built for no other processor.");
    }
    match &context.release {
        Some(release) if release.arch != *arch => fail(
            format!("{arch}, but the release {} was built for {}", release.version, release.arch),
            format!("Fetch the release for {arch}."),
        ),
        _ => pass(arch.clone()),
    }
}

/// Those that are tested: Ubuntu (also as DGX OS) from 22.04, Debian from 12, NixOS.
pub(super) fn is_supported(facts: &HostFacts) -> Result<bool, Unknown> {
    let version = || -> Result<(u32, u32), Unknown> { Ok(numbers(facts.os("VERSION_ID")?)) };
    Ok(match facts.os("ID")? {
        "ubuntu" => version()? >= OLDEST_UBUNTU,
        "debian" => version()? >= OLDEST_DEBIAN,
        "nixos" => true,
        _ => false,
    })
}

fn release(facts: &HostFacts, context: &Context) -> Checked {
    let name = facts.os_name()?;
    if !is_supported(facts)? {
        return fail(
            format!("{name} is not among the systems that are tested"),
            "Use DGX OS 6 or newer, Ubuntu 22.04 or newer, Debian 12 or newer, or NixOS; --ignore PF004 goes on at your own risk.",
        );
    }
    if context.mode == Mode::Nixos && !*facts.system.nixos.get()? {
        return fail(format!("{name} is not NixOS"), "Use --mode systemd on this host.");
    }
    pass(name)
}

fn kernel(facts: &HostFacts, _: &Context) -> Checked {
    let kernel = facts.system.kernel.get()?;
    if numbers(kernel) < OLDEST_KERNEL {
        let (major, minor) = OLDEST_KERNEL;
        return fail(
            format!("Linux {kernel} is too old"),
            format!("Boot Linux {major}.{minor} or newer; on Ubuntu the package linux-generic-hwe brings one."),
        );
    }
    let Some(controllers) = facts.system.cgroup.get()? else {
        return fail(
            format!("Linux {kernel} with cgroup version 1"),
            "Boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line: limits and clean ends need cgroup version 2.",
        );
    };
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !controllers.iter().any(|one| one == name)).collect();
    if !missing.is_empty() {
        return warn(
            format!("Linux {kernel}, cgroup version 2 without {}", missing.join(", ")),
            "Take cgroup_disable= off the kernel's command line, or hand these controllers to the container: until then their limits hold nothing.",
        );
    }
    pass(format!("Linux {kernel}, cgroup version 2"))
}

fn clock(facts: &HostFacts, _: &Context) -> Checked {
    let now = *facts.taken.get()?;
    if now < Timestamp::from_second(WRITTEN).expect("a second of this age") {
        return fail(
            format!("the clock says {now:.0}"),
            "Set the clock (`timedatectl set-ntp true`): certificates and tokens of the forge are refused by it.",
        );
    }
    if *facts.system.clock_synchronised.get()? {
        pass("synchronised")
    } else {
        warn(
            "not synchronised with a time server",
            "Run `timedatectl set-ntp true`, or install chrony: GitHub refuses an App's token when the clock is a minute off.",
        )
    }
}

/// The first two numbers of a version.
fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
