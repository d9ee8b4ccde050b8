//! PF030 to PF037: GPUs and their driver. Nothing here is a failure: models may be served by another host.

use super::{Context, size};
use crate::facts::{HostFacts, Unknown};
use crate::report::{Check, Checked, pass, warn};

pub(super) const CHECKS: &[Check<Context>] = &[
    Check { id: "PF030", name: "GPU driver", run: driver },
    Check { id: "PF031", name: "NVML library", run: nvml },
    Check { id: "PF032", name: "GPU device nodes", run: nodes },
    Check { id: "PF033", name: "GPU device classes", run: classes },
    Check { id: "PF034", name: "persistence daemon", run: persistence },
    Check { id: "PF035", name: "fabric manager", run: fabric },
    Check { id: "PF036", name: "MIG", run: mig },
    Check { id: "PF037", name: "unified memory", run: unified },
];

/// The oldest branch that NVIDIA still mends for data centres.
const OLDEST_DRIVER: u32 = 535;
/// Machines with NVSwitches, also where those are not seen as bridges (from the fourth generation on).
const SWITCHED: [&str; 6] = ["A100", "H100", "H200", "B200", "B300", "HGX"];
/// GPUs whose memory is the host's.
const UNIFIED: [&str; 3] = ["GB10", "Thor", "Orin"];
const NO_GPU: &str = "no NVIDIA GPU here; models may be served elsewhere";
const NO_DRIVER: &str = "the driver has not taken the GPUs";

/// What the rest asks first: is there anything that a driver has taken?
enum Gpus {
    Absent,
    Waiting,
    Taken(usize),
}

fn gpus(facts: &HostFacts) -> Result<Gpus, Unknown> {
    let taken = facts.gpu.models.get()?.len();
    Ok(match (taken, facts.has_gpu()?) {
        (0, false) => Gpus::Absent,
        (0, true) => Gpus::Waiting,
        (count, _) => Gpus::Taken(count),
    })
}

/// Runs `check` where a driver has taken GPUs.
fn taken(facts: &HostFacts, check: impl FnOnce(usize) -> Checked) -> Checked {
    match gpus(facts)? {
        Gpus::Absent => pass(NO_GPU),
        Gpus::Waiting => warn(NO_DRIVER, "See PF030 first."),
        Gpus::Taken(count) => check(count),
    }
}

fn driver(facts: &HostFacts, _: &Context) -> Checked {
    let on_bus = *facts.gpu.on_bus.get()?;
    let Some(version) = facts.gpu.driver.get()? else {
        return if facts.has_gpu()? {
            warn(
                format!("{on_bus} GPU(s) and no driver"),
                "Install the data centre driver (`apt install nvidia-driver-580-server-open`; NixOS: services.xserver.videoDrivers = [ \"nvidia\" ]) and reboot, unless models are remote.",
            )
        } else {
            pass(NO_GPU)
        };
    };
    let count = facts.gpu.models.get()?.len();
    if count == 0 {
        return warn(
            format!("driver {version} has taken no GPU"),
            "Look for NVRM in `dmesg`: Blackwell GPUs need the open kernel modules (package nvidia-driver-…-open).",
        );
    }
    if version.split('.').next().and_then(|major| major.parse::<u32>().ok()).unwrap_or(0) < OLDEST_DRIVER {
        return warn(
            format!("driver {version} is old"),
            format!("Upgrade the driver to branch {OLDEST_DRIVER} or newer."),
        );
    }
    let models = facts.gpu.models.get()?;
    pass(format!("driver {version}, {count} x {}", models[0]))
}

fn nvml(facts: &HostFacts, _: &Context) -> Checked {
    taken(facts, |_| match facts.gpu.nvml.get()? {
        Some(path) => pass(path.as_str()),
        None => warn(
            "libnvidia-ml.so.1 is at none of the paths where it is looked for",
            "Install the driver's user part (`apt install libnvidia-compute-580-server`), or set gpu.nvml_lib to its path.",
        ),
    })
}

fn nodes(facts: &HostFacts, _: &Context) -> Checked {
    taken(facts, |count| {
        let nodes = facts.gpu.nodes.get()?;
        let numbered = |name: &&String| {
            name.strip_prefix("nvidia")
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let gpus = nodes.iter().filter(numbered).count();
        let missing: Vec<&str> =
            ["nvidiactl", "nvidia-uvm"].into_iter().filter(|name| !nodes.iter().any(|node| node == name)).collect();
        if gpus < count || !missing.is_empty() {
            let found = match missing.as_slice() {
                [] => format!("{gpus} of {count} GPUs have a node in /dev"),
                missing => format!("{} missing in /dev", missing.join(" and ")),
            };
            return warn(
                found,
                "Run `nvidia-modprobe -u -c 0`, and enable nvidia-persistenced.service so that it holds after a reboot.",
            );
        }
        pass(format!("{gpus} in /dev"))
    })
}

fn classes(facts: &HostFacts, _: &Context) -> Checked {
    taken(facts, |_| {
        let classes = facts.gpu.classes.get()?;
        let has = |name: &str| classes.iter().any(|class| class == name);
        // Driver 550.40 gave the first one its present name; units allow both.
        if !has("nvidia") && !has("nvidia-frontend") {
            return warn("no class nvidia in /proc/devices", "Load the driver: `modprobe nvidia`.");
        }
        if !has("nvidia-uvm") {
            return warn(
                "no class nvidia-uvm in /proc/devices",
                "Run `modprobe nvidia-uvm` and name it in /etc/modules-load.d: a unit that starts before it never gets the device.",
            );
        }
        pass(classes.join(", "))
    })
}

fn persistence(facts: &HostFacts, _: &Context) -> Checked {
    taken(facts, |_| {
        if facts.unit("nvidia-persistenced.service")?.is_active() {
            return pass("running");
        }
        warn(
            "nvidia-persistenced.service does not run",
            "Run `systemctl enable --now nvidia-persistenced` (NixOS: hardware.nvidia.nvidiaPersistenced = true): without it the driver starts anew for every program that asks.",
        )
    })
}

fn fabric(facts: &HostFacts, _: &Context) -> Checked {
    let product = facts.system.product.known().and_then(Option::as_deref).unwrap_or_default();
    let switched = *facts.gpu.switches.get()? > 0 || SWITCHED.iter().any(|name| product.contains(name));
    if !switched {
        return pass("no NVSwitch here");
    }
    taken(facts, |_| {
        if facts.unit("nvidia-fabricmanager.service")?.is_active() {
            return pass("running");
        }
        warn(
            "nvidia-fabricmanager.service does not run on a host with NVSwitches",
            "Run `systemctl enable --now nvidia-fabricmanager` in the driver's own version (NixOS: hardware.nvidia.datacenter.enable = true): without it no program can use these GPUs.",
        )
    })
}

fn mig(facts: &HostFacts, _: &Context) -> Checked {
    taken(facts, |_| match *facts.gpu.mig_instances.get()? {
        0 => pass("no GPU is split"),
        count => warn(
            format!("GPUs are split into {count} instance(s)"),
            "Keep it if that is meant: each instance is a small GPU of its own; `nvidia-smi mig -dci && nvidia-smi mig -dgi` joins them again.",
        ),
    })
}

fn unified(facts: &HostFacts, _: &Context) -> Checked {
    taken(facts, |_| {
        let models = facts.gpu.models.get()?;
        let is_unified = |model: &String| model.split_whitespace().any(|word| UNIFIED.contains(&word));
        if !models.iter().any(is_unified) {
            return pass("GPUs have memory of their own");
        }
        let memory = facts.memory.get()?;
        let shared = format!("{} shared by GPU and host", size(memory.total_bytes));
        if memory.swap_bytes > 0 {
            return warn(
                format!("{shared}, with {} of swap", size(memory.swap_bytes)),
                "Run `swapoff -a` and take swap out of /etc/fstab: with it, a model that is too large freezes the host instead of being ended.",
            );
        }
        pass(shared)
    })
}
