//! Whether an installation is fit to be relied upon. Facts go in, findings come out, as in `preflight`.

use jiff::{SignedDuration, Timestamp};

use fettle_app::ports::sandbox::SandboxLevel;
use fettle_runtime::config::PrepareNetwork;

use crate::facts::{ConfigFacts, HostFacts, Kind, ReceiptFacts, Stat, Strength, Unknown};
use crate::layout::{
    BACKUP_TIMER, BACKUPS, CONFIG, DASHBOARD, INFERENCE, INFERENCE_USER, SECRETS, STATE, TARGET, USER, WORKER_USER,
};
use crate::preflight::{level, size};
use crate::report::{Check, Checked, Finding, fail, pass, warn};

const CHECKS: &[Check<()>] = &[
    Check { id: "PC01", name: "TLS", run: tls },
    Check { id: "PC02", name: "internal address", run: internal },
    Check { id: "PC03", name: "configuration's mode", run: config_mode },
    Check { id: "PC04", name: "secrets' modes", run: secret_modes },
    Check { id: "PC05", name: "secrets' strength", run: secret_strength },
    Check { id: "PC06", name: "webhook secret", run: webhook },
    Check { id: "PC07", name: "GitHub App", run: app },
    Check { id: "PC08", name: "backup timer", run: timer },
    Check { id: "PC09", name: "verified backup", run: verified },
    Check { id: "PC10", name: "backup's disk", run: backup_disk },
    Check { id: "PC11", name: "space", run: space },
    Check { id: "PC12", name: "clock", run: clock },
    Check { id: "PC13", name: "security updates", run: updates },
    Check { id: "PC14", name: "reboot", run: reboot },
    Check { id: "PC15", name: "release", run: release },
    Check { id: "PC16", name: "sandbox", run: sandbox },
    Check { id: "PC17", name: "weakest sandbox", run: weakest },
    Check { id: "PC18", name: "preparation's network", run: preparation },
    Check { id: "PC19", name: "services", run: services },
    Check { id: "PC20", name: "watchdog", run: watchdog },
    Check { id: "PC21", name: "units", run: units },
    Check { id: "PC22", name: "models' connections", run: models },
    Check { id: "PC23", name: "Docker", run: docker },
];

/// One night may fail; a second one is somebody's turn.
const BACKUP_LATE: SignedDuration = SignedDuration::from_hours(50);
const BACKUP_OLD: SignedDuration = SignedDuration::from_hours(7 * 24);
const RELEASE_OLD: SignedDuration = SignedDuration::from_hours(120 * 24);
/// Of the whole file system.
const SPACE_LEAST_PERCENT: u64 = 5;
const SPACE_COMFORT_PERCENT: u64 = 15;

pub fn checks(facts: &HostFacts) -> Vec<Finding> {
    CHECKS.iter().map(|check| check.find(facts, &())).collect()
}

fn config(facts: &HostFacts) -> Result<&ConfigFacts, Unknown> {
    let config = facts.config.get()?.as_ref();
    config.ok_or_else(|| Unknown { why: format!("{CONFIG} is not there: is Fettle installed?") })
}

fn is_local(address: &str) -> bool {
    address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
}

fn tls(facts: &HostFacts, (): &()) -> Checked {
    let listen = &config(facts)?.listen;
    if is_local(listen) {
        return pass(format!("{listen} is for this host only; what stands before it speaks TLS"));
    }
    fail(
        format!("{listen} is open to the network without TLS"),
        "Set server.listen = \"127.0.0.1:8080\" and put a reverse proxy with a certificate before it (caddy, nginx).",
    )
}

fn internal(facts: &HostFacts, (): &()) -> Checked {
    let listen = &config(facts)?.internal_listen;
    if is_local(listen) {
        return pass(listen.clone());
    }
    fail(
        format!("{listen} offers the worker API, health and metrics to the network"),
        "Set server.internal_listen = \"127.0.0.1:8081\".",
    )
}

fn config_mode(facts: &HostFacts, (): &()) -> Checked {
    if *facts.system.nixos.get()? {
        return pass("made by NixOS, where everybody may read it; no secret is in it");
    }
    let Some(stat) = file(facts, CONFIG)? else { return Err(Unknown { why: format!("{CONFIG} is not there") }) };
    if stat.uid != 0 || stat.mode & 0o027 != 0 {
        return fail(
            format!("{CONFIG} has mode {:04o} and belongs to user {}", stat.mode, stat.uid),
            format!("Run `chown root:{USER} {CONFIG} && chmod 0640 {CONFIG}`."),
        );
    }
    pass(format!("{:04o}, root's", stat.mode))
}

fn file<'a>(facts: &'a HostFacts, path: &str) -> Result<Option<&'a Stat>, Unknown> {
    let found = facts.attributes.get(camino::Utf8Path::new(path));
    match found {
        Some(seen) => Ok(seen.get()?.as_ref()),
        None => Err(Unknown { why: "it was not recorded".to_owned() }),
    }
}

fn secret_modes(facts: &HostFacts, (): &()) -> Checked {
    if let Some(folder) = file(facts, SECRETS)?
        && (folder.uid != 0 || folder.mode & 0o077 != 0)
    {
        return fail(
            format!("{SECRETS} has mode {:04o} and belongs to user {}", folder.mode, folder.uid),
            format!("Run `chown root:root {SECRETS} && chmod 0700 {SECRETS}`."),
        );
    }
    let secrets = facts.secrets.get()?;
    for (path, secret) in secrets {
        let Some(stat) = &secret.file else {
            return fail(
                format!("{path} is named by the configuration and not there"),
                "Put it there (owner root, mode 0600), or take its key out.",
            );
        };
        if stat.kind != Kind::File || stat.uid != 0 || stat.mode & 0o077 != 0 {
            return fail(
                format!("{path} has mode {:04o} and belongs to user {}", stat.mode, stat.uid),
                format!(
                    "Run `chown root:root {path} && chmod 0600 {path}`, and change the secret if others could read it."
                ),
            );
        }
    }
    pass(format!("{} file(s), root's alone", secrets.len()))
}

fn secret_strength(facts: &HostFacts, (): &()) -> Checked {
    for (path, secret) in facts.secrets.get()? {
        if secret.file.is_none() {
            continue;
        }
        let what = match secret.strength.get()? {
            Strength::Empty => "is empty",
            Strength::Placeholder => "holds the placeholder of an example",
            Strength::Short => "is short enough to be guessed",
            Strength::Fine => continue,
        };
        return fail(
            format!("{path} {what}"),
            format!(
                "Make a new one: `openssl rand -hex 32 > {path}` for a key of ours, or fetch it anew from whoever gives it out."
            ),
        );
    }
    pass("none is empty, short or an example's")
}

fn webhook(facts: &HostFacts, (): &()) -> Checked {
    let config = config(facts)?;
    if config.webhook_secret {
        return pass("set");
    }
    if config.polls {
        return pass("none, and none is needed: labels are looked for");
    }
    warn(
        "none, so webhooks are refused and a label on an issue starts nothing",
        "Set forge.webhook_secret_file, with the same secret in the App's webhook settings.",
    )
}

fn app(facts: &HostFacts, (): &()) -> Checked {
    let config = config(facts)?;
    match (config.app, config.write_token) {
        (true, false) => pass("tokens are minted per repository and hour"),
        (true, true) => warn(
            "an App is set, and a personal write token as well",
            "Take forge.write_token_file out and revoke the token: it is not needed beside the App.",
        ),
        (false, true) => warn(
            "a personal access token writes to the forge",
            "Make a GitHub App and set forge.app_id and forge.app_key_file: its tokens last an hour and name one repository.",
        ),
        (false, false) => fail(
            "nothing lets Fettle write to the forge, so no pull request is opened",
            "Set forge.app_id and forge.app_key_file.",
        ),
    }
}

fn timer(facts: &HostFacts, (): &()) -> Checked {
    let unit = facts.unit(BACKUP_TIMER)?;
    match (unit.is_active(), unit.enabled == "enabled") {
        (true, true) => pass("every night"),
        (true, false) => {
            fail("the timer runs until the next reboot only", format!("Run `systemctl enable {BACKUP_TIMER}`."))
        }
        (false, _) => fail("no backup is made at night", format!("Run `systemctl enable --now {BACKUP_TIMER}`.")),
    }
}

fn verified(facts: &HostFacts, (): &()) -> Checked {
    let now = *facts.taken.get()?;
    let Some(last) = *facts.backup.verified.get()? else {
        return fail(
            "no backup was ever restored on trial",
            "Run `fettle-installer backup create && fettle-installer backup verify`.",
        );
    };
    let age = age(now, last);
    let found = format!("{} ago", span(age));
    let remedy = "Look at `journalctl -u fettle-backup.service`, then run `fettle-installer backup create && fettle-installer backup verify`.";
    match age {
        age if age > BACKUP_OLD => fail(found, remedy),
        age if age > BACKUP_LATE => warn(found, remedy),
        _ => pass(found),
    }
}

fn backup_disk(facts: &HostFacts, (): &()) -> Checked {
    let (backups, state) = (facts.disk(BACKUPS)?, facts.disk(STATE)?);
    if backups.device == state.device {
        return warn(
            format!("{BACKUPS} is on the file system that holds the data"),
            format!("Mount another disk or a share at {BACKUPS}, or copy the archives away each day."),
        );
    }
    pass("another file system than the data's")
}

fn space(facts: &HostFacts, (): &()) -> Checked {
    let disk = facts.disk(STATE)?;
    let percent = disk.free_bytes.saturating_mul(100) / disk.total_bytes.max(1);
    let found = format!("{percent} % of {} free for {STATE}", size(disk.total_bytes));
    let remedy =
        format!("Make room: `du -xh {STATE} | sort -h | tail` shows what is large; a full disk stops all work.");
    match percent {
        percent if percent < SPACE_LEAST_PERCENT => fail(found, remedy),
        percent if percent < SPACE_COMFORT_PERCENT => warn(found, remedy),
        _ => pass(found),
    }
}

fn clock(facts: &HostFacts, (): &()) -> Checked {
    if *facts.system.clock_synchronised.get()? {
        return pass("synchronised");
    }
    fail(
        "not synchronised with a time server",
        "Run `timedatectl set-ntp true`, or install chrony: GitHub refuses an App's token when the clock is a minute off.",
    )
}

fn updates(facts: &HostFacts, (): &()) -> Checked {
    match facts.updates.automatic.get()? {
        Some(name) => pass(name.clone()),
        None => warn(
            "nothing installs them by itself",
            "Run `apt install unattended-upgrades && dpkg-reconfigure -plow unattended-upgrades` (NixOS: system.autoUpgrade.enable).",
        ),
    }
}

fn reboot(facts: &HostFacts, (): &()) -> Checked {
    if *facts.updates.reboot_required.get()? {
        return warn(
            "an update waits for a reboot",
            "Run `systemctl reboot` in a quiet hour: Runs are leased anew afterwards.",
        );
    }
    pass("none is asked for")
}

fn release(facts: &HostFacts, (): &()) -> Checked {
    match facts.installed.receipt.get()? {
        ReceiptFacts::None => fail("Fettle was not installed by its installer", "Run `fettle-installer apply`."),
        ReceiptFacts::Unreadable(why) => fail(
            format!("the receipt cannot be read: {why}"),
            "Bring /var/lib/fettle-installer/receipt.json back from a backup.",
        ),
        ReceiptFacts::Present { version, installed: None, .. } => pass(format!("{version}, of unknown age")),
        ReceiptFacts::Present { version, installed: Some(installed), .. } => {
            let age = age(*facts.taken.get()?, *installed);
            let found = format!("{version}, installed {} ago", span(age));
            if age > RELEASE_OLD {
                return warn(found, "Look whether there is a newer release, and run `fettle-installer upgrade`.");
            }
            pass(found)
        }
    }
}

fn sandbox(facts: &HostFacts, (): &()) -> Checked {
    match level(facts)? {
        Some(SandboxLevel::Full) if facts.sandbox.namespaces.get()?.ok || *facts.sandbox.profile_loaded.get()? => {
            pass("full")
        }
        Some(SandboxLevel::Full) => warn(
            "AppArmor keeps namespaces from the worker, since its profile is not loaded",
            "Run `fettle-installer apply`, or `apparmor_parser -r /etc/apparmor.d/fettle-worker` if the file is there.",
        ),
        Some(SandboxLevel::Landlock) => {
            warn("landlock only", "See PF050 of `fettle-installer preflight`, which says what refuses namespaces.")
        }
        None => fail("no level works, so nothing is run", "See PF050 and PF051 of `fettle-installer preflight`."),
    }
}

fn weakest(facts: &HostFacts, (): &()) -> Checked {
    match config(facts)?.min_level {
        SandboxLevel::Full => pass("full"),
        SandboxLevel::Landlock => warn(
            "agent.sandbox.min_level is landlock: should namespaces fail one day, work goes on behind weaker walls",
            "Set agent.sandbox.min_level = \"full\" where PC16 says full.",
        ),
    }
}

fn preparation(facts: &HostFacts, (): &()) -> Checked {
    match config(facts)?.prepare_network {
        PrepareNetwork::None => pass("none"),
        PrepareNetwork::Proxy => pass("named hosts only"),
        PrepareNetwork::Host => fail(
            "agent.sandbox.prepare_network is host: a repository's own scripts reach your whole network",
            "Set it to \"proxy\" and name the package registries in agent.sandbox.prepare_hosts.",
        ),
    }
}

fn services(facts: &HostFacts, (): &()) -> Checked {
    let inference = facts.unit(INFERENCE)?.is_there().then_some(INFERENCE);
    for name in [DASHBOARD, TARGET].into_iter().chain(inference) {
        let unit = facts.unit(name)?;
        if !unit.is_active() {
            let state = if unit.active.is_empty() { "not there" } else { &unit.active };
            return fail(
                format!("{name} is {state}"),
                format!("Run `systemctl status {name}` and `journalctl -u {name} -n 50`."),
            );
        }
        if unit.enabled != "enabled" {
            return fail(format!("{name} does not start at boot"), format!("Run `systemctl enable {name}`."));
        }
    }
    let workers = workers(facts)?;
    match workers.iter().find(|(_, unit)| !unit.is_active()) {
        Some((name, unit)) => fail(
            format!("{name} is {}", unit.active),
            format!("Run `systemctl status {name}` and `journalctl -u {name} -n 50`."),
        ),
        None if workers.is_empty() => fail(
            "there is no worker, so nothing is worked on",
            "Run `fettle-installer apply` with workers = 1 or more.",
        ),
        None => pass(format!("dashboard and {} worker(s) run, and start at boot", workers.len())),
    }
}

fn workers(facts: &HostFacts) -> Result<Vec<(&String, &crate::facts::Unit)>, Unknown> {
    Ok(facts.units.get()?.iter().filter(|(name, _)| name.starts_with("fettle-worker@")).collect())
}

fn watchdog(facts: &HostFacts, (): &()) -> Checked {
    let dashboard = facts.unit(DASHBOARD)?;
    let inference = facts.unit(INFERENCE)?;
    let workers = workers(facts)?;
    let named = workers.iter().map(|(name, unit)| (name.as_str(), *unit));
    let inference = inference.is_there().then_some((INFERENCE, &inference));
    let unwatched =
        std::iter::once((DASHBOARD, &dashboard)).chain(inference).chain(named).find(|(_, unit)| unit.watchdog_s == 0);
    match unwatched {
        Some((name, _)) => fail(
            format!("systemd does not watch {name}"),
            format!(
                "Take WatchdogSec= out of its drop-ins (`systemctl cat {name}` shows them): a process that hangs is restarted by it."
            ),
        ),
        None => pass(format!("every {} s", dashboard.watchdog_s)),
    }
}

fn units(facts: &HostFacts, (): &()) -> Checked {
    let stale = facts.units.get()?.iter().find(|(name, unit)| name.starts_with("fettle") && unit.needs_reload);
    match stale {
        Some((name, _)) => warn(
            format!("systemd has not read what is in the files of {name}"),
            format!("Run `systemctl daemon-reload && systemctl restart {name}`."),
        ),
        None => pass("as systemd has read them"),
    }
}

fn models(facts: &HostFacts, (): &()) -> Checked {
    let plain = &config(facts)?.plain_models;
    if plain.is_empty() {
        return pass("encrypted, or on this host");
    }
    warn(
        format!("{} is asked over plain HTTP on another host", plain.join(", ")),
        "Use https in its base_url: source code and keys travel there.",
    )
}

fn docker(facts: &HostFacts, (): &()) -> Checked {
    let groups = facts.names.groups.get()?;
    let inside = |name: &str| groups.get("docker").is_some_and(|docker| docker.members.iter().any(|one| one == name));
    match [WORKER_USER, INFERENCE_USER, USER].into_iter().find(|name| inside(name)) {
        Some(name) => fail(
            format!("{name} is in the group docker, which is as good as root"),
            format!("Run `gpasswd -d {name} docker`."),
        ),
        None => pass("closed to Fettle's users"),
    }
}

fn age(now: Timestamp, then: Timestamp) -> SignedDuration {
    now.duration_since(then).max(SignedDuration::ZERO)
}

/// Hours up to two days, then days.
fn span(age: SignedDuration) -> String {
    match age.as_hours() {
        hours if hours < 48 => format!("{hours} h"),
        hours => format!("{} days", hours / 24),
    }
}
