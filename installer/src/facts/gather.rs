//! Looks at a host once and writes down what was seen.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_runtime::config::{Config, IntakeMode};
use fettle_runtime::environment::Environment;
use jiff::Timestamp;

use super::parse;
use super::watch::PROGRAMS;
use super::{
    Ask, Backup, ConfigFacts, Files, Gpu, HostFacts, Installed, JournalFacts, Kind, Kubernetes, Listener, NEEDS_ROOT,
    Names, Network, Protocol, ReceiptFacts, SandboxFacts, SecretFacts, Seen, Strength, System, Unit, Unknown, Updates,
    VERIFIED,
};
use crate::layout;

/// What is looked for beyond what every host has.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Of the caller, for the proxies in it.
    pub environment: Environment,
    /// `host:port` that Fettle will have to reach: forge and models.
    pub reach: Vec<String>,
    /// Folders on whose file systems room is needed, beside our own.
    pub folders: Vec<Utf8PathBuf>,
}

const FOLDERS: [&str; 6] = [layout::STATE, layout::BACKUPS, "/opt/fettle", "/nix", "/tmp", crate::k3s::layout::DATA];
const USERS: [&str; 3] = [layout::USER, layout::WORKER_USER, layout::INFERENCE_USER];
const GROUPS: [&str; 4] = [layout::USER, layout::WORKER_USER, layout::INFERENCE_USER, "docker"];
const PROGRAMS_WANTED: [&str; 8] = [
    "apparmor_parser",
    "nix",
    "nixos-rebuild",
    "nvidia-container-runtime",
    "systemd-sysusers",
    "systemd-tmpfiles",
    "unattended-upgrade",
    "unshare",
];
const UNITS: [&str; 29] = [
    layout::DASHBOARD,
    layout::INFERENCE,
    layout::TARGET,
    layout::BACKUP_TIMER,
    "apt-daily-upgrade.timer",
    "chrony.service",
    "chronyd.service",
    "dnf-automatic.timer",
    "docker.service",
    "firewalld.service",
    "k3s-agent.service",
    "k3s.service",
    "kubelet.service",
    "nftables.service",
    "nix-daemon.service",
    "nix-daemon.socket",
    "nixos-upgrade.timer",
    "ntp.service",
    "ntpd.service",
    "ntpsec.service",
    "nvidia-fabricmanager.service",
    "nvidia-persistenced.service",
    "openntpd.service",
    "polkit.service",
    "rke2-agent.service",
    "rke2-server.service",
    "snap.microk8s.daemon-kubelite.service",
    "systemd-timesyncd.service",
    "ufw.service",
];
const UNIT_PROPERTIES: &str = "--property=Id,LoadState,ActiveState,UnitFileState,WatchdogUSec,NeedDaemonReload";
/// Those of `/etc/dgx-release` that are recorded; the serial number is not.
const DGX_KEYS: [&str; 6] =
    ["DGX_NAME", "DGX_PRETTY_NAME", "DGX_PLATFORM", "DGX_SWBUILD_VERSION", "DGX_OTA_VERSION", "DGX_OTA_DATE"];
const OS_KEYS: [&str; 7] = ["ID", "ID_LIKE", "NAME", "PRETTY_NAME", "VERSION_ID", "VERSION_CODENAME", "VARIANT_ID"];
/// Where the library is, in the order in which it is loaded; the soname alone would not be found by every build.
const NVML: [&str; 4] = [
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
];
/// PCI ids.
const NVIDIA: &str = "0x10de";
const DISPLAY: [&str; 2] = ["0x0300", "0x0302"];
const BRIDGE: &str = "0x0680";
/// Descriptors looked at when sockets are given to processes.
const DESCRIPTOR_LIMIT: usize = 400_000;
/// Shorter ones can be guessed by whoever may try.
const SHORT_SECRET: usize = 16;
const PLACEHOLDERS: [&str; 8] =
    ["changeme", "change-me", "secret", "password", "example", "placeholder", "todo", "replace-me"];

pub fn gather(files: &Files, ask: &dyn Ask, wanted: &Wanted) -> HostFacts {
    let uid = ask.uid();
    let disk = |path: &Utf8Path| seen(files.disk(path));
    let folders = FOLDERS.iter().map(Utf8PathBuf::from).chain(wanted.folders.iter().cloned());
    let (config, named) = config(files);
    HostFacts {
        origin: String::new(),
        taken: Seen::Known(ask.now()),
        uid: Seen::Known(uid),
        system: system(files, ask),
        disks: folders.map(|path| (path.clone(), disk(&path))).collect(),
        memory: text(files, "/proc/meminfo", parse::memory),
        listeners: listeners(files, uid),
        network: network(files, ask, wanted),
        gpu: gpu(files),
        kubernetes: kubernetes(files),
        names: names(files),
        installed: installed(files),
        sandbox: sandbox(files, ask),
        units: units(files, ask),
        programs: programs(files),
        updates: updates(files),
        backup: Backup { verified: verified(files) },
        config,
        attributes: [layout::CONFIG, layout::SECRETS]
            .map(|path| (Utf8PathBuf::from(path), seen(files.stat(path))))
            .into(),
        secrets: secrets(files, &named),
    }
}

fn seen<T>(result: Result<T, Unknown>) -> Seen<T> {
    match result {
        Ok(value) => Seen::Known(value),
        Err(unknown) => Seen::Unknown(unknown),
    }
}

/// A file that every host has, read and understood.
fn text<T>(files: &Files, path: &str, parse: impl FnOnce(&str) -> Option<T>) -> Seen<T> {
    match files.read(path) {
        Ok(Some(text)) => parse(&text).map_or_else(|| Seen::unknown(format!("{path} makes no sense")), Seen::Known),
        Ok(None) => Seen::unknown(format!("{path} is not there")),
        Err(unknown) => Seen::Unknown(unknown),
    }
}

fn line(text: &str) -> Option<String> {
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn system(files: &Files, ask: &dyn Ask) -> System {
    let keep = |keys: &[&str], text: &str| {
        let all = parse::assignments(text);
        all.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect::<BTreeMap<_, _>>()
    };
    let uname = ask.uname();
    let os = match files.read("/etc/os-release") {
        Ok(None) => text(files, "/usr/lib/os-release", |text| Some(keep(&OS_KEYS, text))),
        found => seen(found).map(|text| keep(&OS_KEYS, &text.unwrap_or_default())),
    };
    System {
        os,
        nixos: seen(files.has("/etc/NIXOS")),
        dgx: seen(files.read("/etc/dgx-release")).map(|text| text.map(|text| keep(&DGX_KEYS, &text))),
        product: seen(files.read("/sys/class/dmi/id/product_name")).map(|text| text.as_deref().and_then(line)),
        kernel: Seen::Known(uname.release),
        arch: Seen::Known(uname.machine),
        init: text(files, "/proc/1/comm", line),
        systemd: systemd(files, ask),
        container: container(files),
        cgroup: seen(files.read("/sys/fs/cgroup/cgroup.controllers"))
            .map(|text| text.map(|text| text.split_whitespace().map(str::to_owned).collect())),
        clock_synchronised: clock(files, ask),
    }
}

fn systemd(files: &Files, ask: &dyn Ask) -> Seen<Option<u32>> {
    match ask.run("systemctl", &["--version"]) {
        Ok(said) => parse::systemd_version(&said)
            .map_or_else(|| Seen::unknown("systemctl names no version"), |version| Seen::Known(Some(version))),
        Err(why) => match files.has("/run/systemd/system") {
            Ok(false) => Seen::Known(None),
            _ => Seen::unknown(why),
        },
    }
}

fn container(files: &Files) -> Seen<Option<String>> {
    match files.read("/run/systemd/container") {
        Ok(Some(name)) => return Seen::Known(line(&name)),
        Ok(None) => {}
        Err(unknown) => return Seen::Unknown(unknown),
    }
    for (mark, name) in [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")] {
        match files.has(mark) {
            Ok(true) => return Seen::Known(Some(name.to_owned())),
            Ok(false) => {}
            Err(unknown) => return Seen::Unknown(unknown),
        }
    }
    Seen::Known(None)
}

fn clock(files: &Files, ask: &dyn Ask) -> Seen<bool> {
    match ask.run("timedatectl", &["show", "--property=NTPSynchronized"]) {
        Ok(said) if said.trim() == "NTPSynchronized=yes" => Seen::Known(true),
        Ok(said) if said.trim() == "NTPSynchronized=no" => Seen::Known(false),
        Ok(_) => Seen::unknown("timedatectl does not say it"),
        Err(why) => match files.has("/run/systemd/timesync/synchronized") {
            Ok(true) => Seen::Known(true),
            _ => Seen::unknown(why),
        },
    }
}

fn listeners(files: &Files, uid: u32) -> Seen<Vec<Listener>> {
    let mut sockets = Vec::new();
    for (path, protocol) in [
        ("/proc/net/tcp", Protocol::Tcp),
        ("/proc/net/tcp6", Protocol::Tcp),
        ("/proc/net/udp", Protocol::Udp),
        ("/proc/net/udp6", Protocol::Udp),
    ] {
        match files.read(path) {
            Ok(text) => sockets.extend(parse::sockets(&text.unwrap_or_default(), protocol)),
            Err(unknown) => return Seen::Unknown(unknown),
        }
    }
    let owners = owners(files, sockets.iter().map(|socket| socket.inode).collect());
    let unknown = if uid == 0 {
        "no process holds it: another container or the kernel does".to_owned()
    } else {
        format!("{NEEDS_ROOT} to name other users' processes")
    };
    let listener = |socket: parse::Socket| Listener {
        protocol: socket.protocol,
        address: socket.address,
        port: socket.port,
        process: owners.get(&socket.inode).map_or_else(|| Seen::unknown(&unknown), |name| Seen::Known(name.clone())),
    };
    let mut listeners: Vec<Listener> = sockets.into_iter().map(listener).collect();
    listeners.sort_by_key(|one| (one.port, one.protocol, one.address));
    Seen::Known(listeners)
}

/// Which process holds which socket, as far as this user may see.
fn owners(files: &Files, mut wanted: BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut owners = BTreeMap::new();
    let mut looked = 0;
    let processes = files.list("/proc").ok().flatten().unwrap_or_default();
    for pid in processes.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let folder = format!("/proc/{pid}/fd");
        let descriptors = files.list(&folder).ok().flatten().unwrap_or_default();
        for descriptor in descriptors {
            looked += 1;
            if wanted.is_empty() || looked > DESCRIPTOR_LIMIT {
                return owners;
            }
            let target = files.target(&format!("{folder}/{descriptor}"));
            let inode = target.as_deref().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
            let Some(inode) = inode.and_then(|inode| inode.parse().ok()) else { continue };
            if wanted.remove(&inode) {
                let name = files.read(&format!("/proc/{pid}/comm")).ok().flatten().unwrap_or_default();
                owners.insert(inode, format!("{} (pid {pid})", name.trim()));
            }
        }
    }
    owners
}

fn network(files: &Files, ask: &dyn Ask, wanted: &Wanted) -> Network {
    let resolvers = seen(files.read("/etc/resolv.conf")).map(|text| {
        let text = text.unwrap_or_default();
        let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        servers.map(|server| server.trim().to_owned()).filter(|server| !server.is_empty()).collect()
    });
    let names = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];
    let proxies = wanted.environment.iter().filter_map(|(name, value)| {
        let name = name.to_ascii_lowercase();
        (names.contains(&name.as_str()) && !value.is_empty()).then(|| (name, parse::without_credentials(value)))
    });
    Network {
        host_name: text(files, "/proc/sys/kernel/hostname", line),
        resolvers,
        proxies: proxies.collect(),
        reach: wanted.reach.iter().cloned().zip(ask.connect(&wanted.reach)).collect(),
    }
}

fn gpu(files: &Files) -> Gpu {
    let (on_bus, switches) = match pci(files) {
        Ok((gpus, switches)) => (Seen::Known(gpus), Seen::Known(switches)),
        Err(unknown) => (Seen::Unknown(unknown.clone()), Seen::Unknown(unknown)),
    };
    let driver = seen(files.read("/proc/driver/nvidia/version")).and_then(|text| match text {
        None => Seen::Known(None),
        Some(text) => parse::driver(&text).map_or_else(
            || Seen::unknown("/proc/driver/nvidia/version names no version"),
            |version| Seen::Known(Some(version)),
        ),
    });
    Gpu {
        on_bus,
        switches,
        driver,
        models: seen(models(files)),
        nvml: seen(nvml(files)),
        nodes: seen(files.list("/dev"))
            .map(|names| names.unwrap_or_default().into_iter().filter(|name| name.starts_with("nvidia")).collect()),
        classes: text(files, "/proc/devices", |text| Some(parse::classes(text))),
        mig_instances: seen(mig_instances(files)),
    }
}

fn kubernetes(files: &Files) -> Kubernetes {
    let there = crate::k3s::layout::FOREIGN.iter().map(|(path, _)| Ok((path, files.has(path)?)));
    let there: Result<Vec<_>, Unknown> = there.collect();
    let paths = there.map(|found| found.into_iter().filter(|(_, is)| *is).map(|(path, _)| (*path).into()).collect());
    Kubernetes { paths: seen(paths), routes: text(files, "/proc/net/route", parse::routes) }
}

/// GPUs and bridges of NVIDIA.
fn pci(files: &Files) -> Result<(u32, u32), Unknown> {
    let folder = "/sys/bus/pci/devices";
    let (mut gpus, mut switches) = (0, 0);
    for device in files.list(folder)?.unwrap_or_default() {
        let value = |file: &str| files.read(&format!("{folder}/{device}/{file}"));
        if value("vendor")?.is_none_or(|vendor| vendor.trim() != NVIDIA) {
            continue;
        }
        let class = value("class")?.unwrap_or_default();
        if DISPLAY.iter().any(|display| class.starts_with(display)) {
            gpus += 1;
        } else if class.starts_with(BRIDGE) {
            switches += 1;
        }
    }
    Ok((gpus, switches))
}

fn models(files: &Files) -> Result<Vec<String>, Unknown> {
    let folder = "/proc/driver/nvidia/gpus";
    let mut models = Vec::new();
    for gpu in files.list(folder)?.unwrap_or_default() {
        let text = files.read(&format!("{folder}/{gpu}/information"))?.unwrap_or_default();
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"));
        models.push(model.unwrap_or("unknown model").trim().to_owned());
    }
    Ok(models)
}

fn nvml(files: &Files) -> Result<Option<Utf8PathBuf>, Unknown> {
    for path in NVML {
        if files.has(path)? {
            return Ok(Some(path.into()));
        }
    }
    Ok(None)
}

/// `capabilities/gpu0/mig/gi1`, one folder for each instance.
fn mig_instances(files: &Files) -> Result<u32, Unknown> {
    let folder = "/proc/driver/nvidia/capabilities";
    let mut instances = 0;
    for gpu in files.list(folder)?.unwrap_or_default().iter().filter(|name| name.starts_with("gpu")) {
        let inside = files.list(&format!("{folder}/{gpu}/mig"))?.unwrap_or_default();
        instances += u32::try_from(inside.iter().filter(|name| name.starts_with("gi")).count()).unwrap_or(u32::MAX);
    }
    Ok(instances)
}

fn names(files: &Files) -> Names {
    Names {
        users: text(files, "/etc/passwd", |text| Some(parse::users(text, &USERS))),
        groups: text(files, "/etc/group", |text| Some(parse::groups(text, &GROUPS))),
        paths: seen(paths(files)),
        docker_socket: seen(files.stat("/run/docker.sock")),
    }
}

/// What an installation makes and manages: units, users, folders, programs.
fn paths(files: &Files) -> Result<Vec<Utf8PathBuf>, Unknown> {
    let mut paths = Vec::new();
    for (folder, prefix) in [
        ("/opt", "fettle"),
        (layout::UNITS, "fettle"),
        ("/etc/sysusers.d", "fettle"),
        ("/etc/tmpfiles.d", "fettle"),
        ("/etc/apparmor.d", "fettle"),
    ] {
        let names = files.list(folder)?.unwrap_or_default();
        // Folders of drop-ins are the administrator's.
        let ours = names.iter().filter(|name| name.starts_with(prefix) && !name.ends_with(".d"));
        paths.extend(ours.map(|name| Utf8Path::new(folder).join(name)));
    }
    Ok(paths)
}

fn installed(files: &Files) -> Installed {
    let home = Utf8Path::new(layout::HOME);
    let lock = files.stat(home.join("lock").as_str()).and_then(|lock| {
        let Some(lock) = lock else { return Ok(None) };
        let holder = parse::lock_holder(&files.read("/proc/locks")?.unwrap_or_default(), lock.inode);
        // A run looks after it has locked.
        Ok(holder.filter(|pid| *pid != std::process::id()))
    });
    Installed {
        receipt: seen(files.read(home.join("receipt.json").as_str()))
            .map(|text| text.map_or(ReceiptFacts::None, |text| receipt(&text))),
        journal: seen(files.read(home.join("journal.jsonl").as_str()))
            .map(|text| text.map_or(JournalFacts::None, |text| journal(&text))),
        lock: seen(lock),
    }
}

/// Only what every schema has: a newer receipt must still be told from a broken one.
fn receipt(text: &str) -> ReceiptFacts {
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return ReceiptFacts::Unreadable(error.to_string()),
    };
    let Some(schema) = value["schema"].as_u64().and_then(|schema| u32::try_from(schema).ok()) else {
        return ReceiptFacts::Unreadable("it names no schema".to_owned());
    };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let last = value["generations"].as_array().and_then(|generations| generations.last());
    ReceiptFacts::Present {
        schema,
        version: text(&value["product"]["version"]),
        mode: text(&value["mode"]),
        installed: last.and_then(|last| last["installed"].as_str()?.parse().ok()),
    }
}

/// A torn last line was never acted upon.
fn journal(text: &str) -> JournalFacts {
    let records = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let (mut started, mut ended) = (String::new(), true);
    for record in records {
        match record["record"].as_str() {
            Some("begin") => {
                started = record["run"]["started"].as_str().unwrap_or_default().to_owned();
                ended = false;
            }
            Some("end") => ended = true,
            _ => {}
        }
    }
    if ended { JournalFacts::Ended } else { JournalFacts::Unfinished(started) }
}

fn sandbox(files: &Files, ask: &dyn Ask) -> SandboxFacts {
    let switch = |path: &str| seen(files.read(path)).map(|text| text.as_deref().map(|text| text.trim() == "1"));
    SandboxFacts {
        namespaces: ask.namespaces(),
        landlock_abi: ask.landlock_abi(),
        apparmor_restricts: switch("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
            .map(|on| on.unwrap_or(false)),
        profile_loaded: seen(files.read("/sys/kernel/security/apparmor/profiles")).map(|text| {
            let mut profiles = text.as_deref().unwrap_or_default().lines();
            profiles.any(|line| line.split_whitespace().next() == Some(layout::WORKER_USER))
        }),
        selinux_enforces: switch("/sys/fs/selinux/enforce"),
        max_user_namespaces: text(files, "/proc/sys/user/max_user_namespaces", |text| text.trim().parse().ok()),
        unprivileged_clone: switch("/proc/sys/kernel/unprivileged_userns_clone"),
    }
}

fn units(files: &Files, ask: &dyn Ask) -> Seen<BTreeMap<String, Unit>> {
    let wants = files.list("/etc/systemd/system/fettle.target.wants").ok().flatten().unwrap_or_default();
    let workers = wants.into_iter().filter(|name| name.starts_with("fettle-worker@"));
    let names: Vec<String> = UNITS.iter().map(|name| (*name).to_owned()).chain(workers).collect();
    let arguments: Vec<&str> = ["show", UNIT_PROPERTIES].into_iter().chain(names.iter().map(String::as_str)).collect();
    match ask.run("systemctl", &arguments) {
        Ok(said) => Seen::Known(parse::units(&said)),
        Err(why) => Seen::unknown(why),
    }
}

fn programs(files: &Files) -> Seen<Vec<String>> {
    let mut found = Vec::new();
    for program in PROGRAMS_WANTED {
        for folder in PROGRAMS {
            match files.has(&format!("{folder}/{program}")) {
                Ok(true) => {
                    found.push(program.to_owned());
                    break;
                }
                Ok(false) => {}
                Err(unknown) => return Seen::Unknown(unknown),
            }
        }
    }
    Seen::Known(found)
}

fn updates(files: &Files) -> Updates {
    let reboot = files.has("/run/reboot-required").and_then(|here| Ok(here || files.has("/var/run/reboot-required")?));
    Updates { automatic: seen(automatic(files)), reboot_required: seen(reboot) }
}

fn automatic(files: &Files) -> Result<Option<String>, Unknown> {
    let folder = "/etc/apt/apt.conf.d";
    // Later files win, as apt reads them.
    let mut unattended = false;
    for name in files.list(folder)?.unwrap_or_default() {
        let text = files.read(&format!("{folder}/{name}"))?.unwrap_or_default();
        let mut settings =
            text.lines().filter_map(|line| line.trim().strip_prefix("APT::Periodic::Unattended-Upgrade"));
        if let Some(value) = settings.next_back() {
            unattended = value.trim().trim_end_matches(';').trim_matches('"') != "0";
        }
    }
    if unattended && files.has("/usr/bin/unattended-upgrade")? {
        return Ok(Some("unattended-upgrades".to_owned()));
    }
    for (mark, name) in [
        ("/etc/systemd/system/timers.target.wants/dnf-automatic.timer", "dnf-automatic"),
        ("/etc/systemd/system/timers.target.wants/dnf-automatic-install.timer", "dnf-automatic"),
        ("/etc/systemd/system/timers.target.wants/nixos-upgrade.timer", "nixos-upgrade"),
    ] {
        // The link leads into another tree; that it is there is enough.
        if files.stat(mark)?.is_some() {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

fn verified(files: &Files) -> Seen<Option<Timestamp>> {
    seen(files.read(VERIFIED)).and_then(|text| {
        let Some(text) = text else { return Seen::Known(None) };
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let time = value["verified"].as_str().and_then(|time| time.parse().ok());
        time.map_or_else(|| Seen::unknown(format!("{VERIFIED} makes no sense")), |time| Seen::Known(Some(time)))
    })
}

/// With the files of secrets that it names.
fn config(files: &Files) -> (Seen<Option<ConfigFacts>>, Vec<Utf8PathBuf>) {
    let text = match files.read(layout::CONFIG) {
        Ok(Some(text)) => text,
        Ok(None) => return (Seen::Known(None), Vec::new()),
        Err(unknown) => return (Seen::Unknown(unknown), Vec::new()),
    };
    let config = match Config::parse(layout::CONFIG, &text, &Environment::default()) {
        Ok(config) => config,
        Err(error) => return (Seen::unknown(error.to_string()), Vec::new()),
    };
    let named = config.secret_files().into_iter().map(|(_, file)| Utf8Path::new(layout::CONFIG_DIR).join(file));
    let plain = config.gateway.models.iter().filter(|model| model.server().is_some_and(is_plain));
    let facts = ConfigFacts {
        listen: config.server.listen.clone(),
        internal_listen: config.server.internal_listen.clone(),
        app: config.forge.app_key_file.is_some(),
        read_token: config.forge.read_token_file.is_some(),
        write_token: config.forge.write_token_file.is_some(),
        webhook_secret: config.forge.webhook_secret_file.is_some(),
        polls: config.forge.intake == IntakeMode::Poll,
        min_level: config.agent.sandbox.min_level,
        prepare_network: config.agent.sandbox.prepare_network,
        plain_models: plain.map(|model| model.name.clone()).collect(),
    };
    (Seen::Known(Some(facts)), named.collect())
}

/// Unencrypted, and not on this host.
fn is_plain(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let name = if host.starts_with('[') { host.split(']').next() } else { host.split(':').next() };
    let name = name.unwrap_or_default().trim_start_matches('[');
    name != "localhost" && !name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn secrets(files: &Files, named: &[Utf8PathBuf]) -> Seen<BTreeMap<Utf8PathBuf, SecretFacts>> {
    let inside = match files.list(layout::SECRETS) {
        Ok(names) => names.unwrap_or_default(),
        Err(unknown) => return Seen::Unknown(unknown),
    };
    let inside = inside.iter().map(|name| Utf8Path::new(layout::SECRETS).join(name));
    let all: BTreeSet<Utf8PathBuf> = named.iter().cloned().chain(inside).collect();
    let mut found = BTreeMap::new();
    for path in all {
        let file = match files.stat(path.as_str()) {
            Ok(file) => file,
            Err(unknown) => return Seen::Unknown(unknown),
        };
        let strength = match file {
            Some(file) if file.kind == Kind::File => {
                seen(files.read(path.as_str())).map(|text| strength(text.unwrap_or_default().trim()))
            }
            _ => Seen::unknown("it is no file"),
        };
        found.insert(path, SecretFacts { file, strength });
    }
    Seen::Known(found)
}

fn strength(secret: &str) -> Strength {
    let plain = secret.to_ascii_lowercase();
    match secret.len() {
        0 => Strength::Empty,
        _ if PLACEHOLDERS.iter().any(|word| plain == *word || plain.starts_with(&format!("{word}-"))) => {
            Strength::Placeholder
        }
        length if length < SHORT_SECRET => Strength::Short,
        _ => Strength::Fine,
    }
}
