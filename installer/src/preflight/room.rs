//! PF010 to PF015: space, inodes, memory, and a temporary folder from which programs may run.

use super::{Context, GIB, Mode, size};
use crate::facts::HostFacts;
use crate::layout::STATE;
use crate::report::{Check, Checked, fail, pass, warn};

pub(super) const CHECKS: &[Check<Context>] = &[
    Check { id: "PF010", name: "space for state", run: state },
    Check { id: "PF011", name: "inodes for state", run: inodes },
    Check { id: "PF012", name: "space for models", run: models },
    Check { id: "PF013", name: "space for releases", run: releases },
    Check { id: "PF014", name: "memory", run: memory },
    Check { id: "PF015", name: "temporary folder", run: temporary },
];

/// Mirrors, workspaces and the ledger of a first week.
const STATE_LEAST: u64 = 10 * GIB;
const STATE_COMFORT: u64 = 50 * GIB;
/// A workspace with its dependencies has tens of thousands of files.
const INODES_LEAST: u64 = 200_000;
const INODES_COMFORT: u64 = 1_000_000;
/// One large model, quantised.
const MODELS_COMFORT: u64 = 100 * GIB;
/// Three generations stay, and the next one is unpacked beside them.
const RELEASES_KEPT: u64 = 4;
const RELEASES_LEAST: u64 = GIB;
/// What `nixos-rebuild` fetches and builds beside what runs.
const STORE_LEAST: u64 = 8 * GIB;
/// The unit's `MemoryMax` of the dashboard, and of each worker.
const DASHBOARD_MEMORY: u64 = 4 * GIB;
const WORKER_MEMORY: u64 = 12 * GIB;
const MEMORY_LEAST: u64 = 8 * GIB;

fn state(facts: &HostFacts, _: &Context) -> Checked {
    let disk = facts.disk(STATE)?;
    let free = format!("{} free for {STATE}", size(disk.free_bytes));
    if disk.read_only {
        return fail(
            format!("the file system of {STATE} is read-only"),
            format!("Mount it writable, or mount another one at {STATE}."),
        );
    }
    match disk.free_bytes {
        bytes if bytes < STATE_LEAST => fail(
            free,
            format!("Make room for at least {}, or mount a larger file system at {STATE}.", size(STATE_LEAST)),
        ),
        bytes if bytes < STATE_COMFORT => warn(
            free,
            format!("Plan for {} or more: mirrors and workspaces of busy repositories grow.", size(STATE_COMFORT)),
        ),
        _ => pass(free),
    }
}

fn inodes(facts: &HostFacts, _: &Context) -> Checked {
    let disk = facts.disk(STATE)?;
    if disk.total_inodes == 0 {
        return pass("the file system makes them as needed");
    }
    let free = format!("{} free for {STATE}", disk.free_inodes);
    match disk.free_inodes {
        count if count < INODES_LEAST => fail(
            free,
            format!(
                "Remove folders of many small files, or make a file system with more inodes (mkfs.ext4 -i 8192) at {STATE}."
            ),
        ),
        count if count < INODES_COMFORT => warn(
            free,
            format!("Keep an eye on `df -i {STATE}`: a workspace with its dependencies takes tens of thousands."),
        ),
        _ => pass(free),
    }
}

fn models(facts: &HostFacts, context: &Context) -> Checked {
    if !facts.has_gpu()? {
        return pass("no GPU here, so no models either");
    }
    let folder = context.models.as_deref().map_or(STATE, |models| models.as_str());
    let disk = facts.disk(folder)?;
    let free = format!("{} free for models in {folder}", size(disk.free_bytes));
    if disk.free_bytes < MODELS_COMFORT {
        return warn(
            free,
            format!(
                "Mount a file system with {} or more before models are served from this host; remote models need none.",
                size(MODELS_COMFORT)
            ),
        );
    }
    pass(free)
}

fn releases(facts: &HostFacts, context: &Context) -> Checked {
    let (folder, least) = match context.mode {
        Mode::Systemd | Mode::K3s => {
            let bytes = context.release.as_ref().map_or(0, |release| release.bytes.saturating_mul(RELEASES_KEPT));
            ("/opt/fettle", bytes.max(RELEASES_LEAST))
        }
        Mode::Nixos => ("/nix", STORE_LEAST),
    };
    let disk = facts.disk(folder)?;
    let free = format!("{} free for {folder}", size(disk.free_bytes));
    if disk.no_exec {
        return fail(
            format!("the file system of {folder} is mounted noexec"),
            format!("Mount it without noexec: the programs run from {folder}."),
        );
    }
    if disk.free_bytes < least {
        let how = match context.mode {
            Mode::Systemd | Mode::K3s => "remove what is not needed there",
            Mode::Nixos => "run `nix-collect-garbage --delete-older-than 14d`",
        };
        return fail(free, format!("Make room for {}: {how}.", size(least)));
    }
    pass(free)
}

fn memory(facts: &HostFacts, context: &Context) -> Checked {
    let total = facts.memory.get()?.total_bytes;
    let workers = u64::from(context.ports.workers);
    let wanted = DASHBOARD_MEMORY + workers * WORKER_MEMORY;
    // Firmware keeps a part to itself: 16 GiB of modules show as 15.6.
    let has = |bytes: u64| total >= bytes / 16 * 15;
    if !has(MEMORY_LEAST) {
        return fail(
            size(total),
            format!("Use a host with {} or more: a test suite in the sandbox alone may take that.", size(MEMORY_LEAST)),
        );
    }
    if !has(wanted) {
        return warn(
            format!("{}, while dashboard and {workers} workers may take {}", size(total), size(wanted)),
            "Run fewer workers (workers = … in the answers), or lower agent.sandbox.memory.",
        );
    }
    pass(size(total))
}

fn temporary(facts: &HostFacts, _: &Context) -> Checked {
    let disk = facts.disk("/tmp")?;
    if disk.read_only {
        return fail("/tmp is read-only", "Mount a writable /tmp: `systemctl enable --now tmp.mount` does.");
    }
    if disk.no_exec {
        return warn(
            "/tmp is mounted noexec",
            "Mount /tmp without noexec: what prepares a workspace may run programs from there.",
        );
    }
    if disk.free_bytes < GIB {
        return fail(
            format!("{} free in /tmp", size(disk.free_bytes)),
            "Make room for 1 GiB in /tmp: services keep short-lived files there.",
        );
    }
    pass(format!("{} free, programs may run", size(disk.free_bytes)))
}
