//! PF040 to PF045: what Fettle wants for itself, and what an earlier run left. PF070 to PF073: who else lives here.

use super::{Context, GIB, Mode, size};
use crate::facts::{HostFacts, JournalFacts, ReceiptFacts};
use crate::layout::{BACKUPS, INFERENCE_USER, STATE, USER, WORKER_USER};
use crate::receipt::SCHEMA;
use crate::report::{Check, Checked, fail, pass, warn};

pub(super) const CHECKS: &[Check<Context>] = &[
    Check { id: "PF040", name: "names", run: names },
    Check { id: "PF041", name: "earlier installation", run: receipt },
    Check { id: "PF042", name: "unfinished run", run: journal },
    Check { id: "PF043", name: "lock", run: lock },
    Check { id: "PF044", name: "polkit", run: polkit },
    Check { id: "PF045", name: "Docker socket", run: docker },
];
pub(super) const NEIGHBOURS: &[Check<Context>] = &[
    Check { id: "PF070", name: "Kubernetes", run: kubernetes },
    Check { id: "PF072", name: "backup destination", run: backups },
    Check { id: "PF073", name: "Nix", run: nix },
];

/// Below are the system's own users.
const FIRST_PERSON: u32 = 1000;
const KUBERNETES: [(&str, &str); 6] = [
    ("k3s.service", "k3s"),
    ("k3s-agent.service", "k3s"),
    ("rke2-server.service", "RKE2"),
    ("rke2-agent.service", "RKE2"),
    ("kubelet.service", "a kubelet"),
    ("snap.microk8s.daemon-kubelite.service", "MicroK8s"),
];

fn names(facts: &HostFacts, context: &Context) -> Checked {
    let users = facts.names.users.get()?;
    let persons: Vec<&str> =
        users.iter().filter(|(_, user)| user.uid >= FIRST_PERSON).map(|(name, _)| name.as_str()).collect();
    if !persons.is_empty() && context.mode == Mode::Systemd {
        return fail(
            format!("the user {} is an ordinary account", persons.join(" and ")),
            "Rename it (`usermod -l`), or make it a system account (uid below 1000): services run under this name.",
        );
    }
    let paths = facts.names.paths.get()?;
    // On NixOS the module's units are there as links into the store; nixos-rebuild knows whose they are.
    if paths.is_empty() || context.mode == Mode::Nixos {
        return match users.len() {
            0 => pass("free"),
            _ => pass("users of an earlier installation are there and will be used"),
        };
    }
    match facts.installed.receipt.get()? {
        ReceiptFacts::None => {
            let more = match paths.len() {
                1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            fail(
                format!("{}{more} exist, and no receipt says that we made them", paths[0]),
                "Move them away, or let `apply --overwrite` replace them and keep copies.",
            )
        }
        ReceiptFacts::Unreadable(_) | ReceiptFacts::Present { .. } => pass("in use by the installation that is here"),
    }
}

fn receipt(facts: &HostFacts, context: &Context) -> Checked {
    match facts.installed.receipt.get()? {
        ReceiptFacts::None => pass("none"),
        ReceiptFacts::Unreadable(why) => fail(
            format!("the receipt cannot be read: {why}"),
            "Bring /var/lib/fettle-installer/receipt.json back from a backup: without it nothing can be upgraded or removed.",
        ),
        ReceiptFacts::Present { schema, version, .. } if *schema > SCHEMA => fail(
            format!("version {version} was installed by a newer installer (schema {schema})"),
            "Use the fettle-installer of that release or of a newer one.",
        ),
        ReceiptFacts::Present { version, mode, .. } if mode != context.mode.name() => fail(
            format!("version {version} was installed in mode {mode}"),
            format!(
                "Go on with --mode {mode}, or run `fettle-installer uninstall` first; data and configuration stay."
            ),
        ),
        ReceiptFacts::Present { version, .. } => pass(format!("version {version}")),
    }
}

fn journal(facts: &HostFacts, _: &Context) -> Checked {
    match facts.installed.journal.get()? {
        JournalFacts::None | JournalFacts::Ended => pass("none"),
        JournalFacts::Unfinished(started) => {
            let since = if started.is_empty() { String::new() } else { format!(" since {started}") };
            fail(
                format!("a run of the installer is unfinished{since}"),
                "Run `fettle-installer resume` to end it, or `fettle-installer uninstall` to take it back.",
            )
        }
    }
}

fn lock(facts: &HostFacts, _: &Context) -> Checked {
    match facts.installed.lock.get()? {
        None => pass("free"),
        Some(pid) => fail(
            format!("another installer (pid {pid}) is at work"),
            format!(
                "Wait until it has ended (`ps -p {pid}` shows it); a lock of a dead process is given up by itself."
            ),
        ),
    }
}

fn polkit(facts: &HostFacts, _: &Context) -> Checked {
    if !facts.has_gpu()? {
        return pass("not needed without local engines");
    }
    if facts.unit("polkit.service")?.is_there() {
        return pass("there");
    }
    warn(
        "not installed",
        "Run `apt install polkitd` (NixOS: security.polkit.enable = true; that of Ubuntu 22.04 is too old) before engines run on this host: they are started through it.",
    )
}

fn docker(facts: &HostFacts, _: &Context) -> Checked {
    let Some(socket) = facts.names.docker_socket.get()? else { return pass("no Docker here") };
    if socket.mode & 0o006 != 0 {
        return fail(
            format!("every user may open /run/docker.sock (mode {:04o})", socket.mode),
            "Run `chmod 0660 /run/docker.sock` and find out who widened it: whoever opens it is root.",
        );
    }
    let groups = facts.names.groups.get()?;
    let inside = |name: &str| groups.get("docker").is_some_and(|docker| docker.members.iter().any(|one| one == name));
    match [WORKER_USER, INFERENCE_USER, USER].into_iter().find(|name| inside(name)) {
        Some(name) => fail(
            format!("{name} is in the group docker"),
            format!("Run `gpasswd -d {name} docker`: commands that a model thought of must not reach root."),
        ),
        None => pass("closed to Fettle's users"),
    }
}

fn kubernetes(facts: &HostFacts, _: &Context) -> Checked {
    let units = facts.units.get()?;
    let here: Vec<&str> = KUBERNETES
        .iter()
        .filter(|(unit, _)| units.get(*unit).is_some_and(crate::facts::Unit::is_there))
        .map(|(_, name)| *name)
        .collect();
    match here.first() {
        None => pass("none"),
        Some(name) => warn(
            format!("{name} is on this host"),
            "Leave memory and GPUs to one of the two: pods and Fettle's services do not know of each other.",
        ),
    }
}

fn backups(facts: &HostFacts, context: &Context) -> Checked {
    let folder = context.backups.as_deref().map_or(BACKUPS, |folder| folder.as_str());
    let disk = facts.disk(folder)?;
    if disk.read_only {
        return fail(
            format!("the file system of {folder} is read-only"),
            "Mount it writable, or name another folder for backups.",
        );
    }
    if disk.free_bytes < GIB {
        return fail(
            format!("{} free for backups in {folder}", size(disk.free_bytes)),
            "Make room for 1 GiB, or name another folder for backups.",
        );
    }
    if facts.disk(STATE).is_ok_and(|state| state.device == disk.device) {
        return warn(
            format!("{folder} is on the same file system as the data"),
            "Mount another disk or a share there, or copy the archives away each day: one broken disk would take both.",
        );
    }
    pass(format!("{} free in {folder}", size(disk.free_bytes)))
}

fn nix(facts: &HostFacts, context: &Context) -> Checked {
    let wanted = context.mode == Mode::Nixos || context.release.as_ref().is_some_and(|release| release.flake);
    if !wanted {
        return pass("not needed");
    }
    if !facts.has_program("nix")? {
        return fail(
            "the program nix is not there",
            "Install Nix, or use a release tree or bundle instead of the flake.",
        );
    }
    if facts.unit("nix-daemon.socket")?.is_active() || facts.unit("nix-daemon.service")?.is_active() {
        return pass("the daemon answers");
    }
    fail("the Nix daemon does not run", "Run `systemctl enable --now nix-daemon.socket`.")
}
